"""What people say of alerts and streams: kept in a journal, and applied at one point of the stream.

May use checkpointing, the engine and what is below them; knows neither incidents nor the daemon.
"""
