"""Memory of what happened: each alert's surroundings on disk, and the recent events, forecast and state of any stream.

It reads the engine and never changes it. Uses the engine, the state and the connectors' words and files.
"""
