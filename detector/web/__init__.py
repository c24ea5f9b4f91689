"""The page and its API under /api/v1: what the daemon knows, for people and programs.

`streams`, `live` and `fleet` are kept by the daemon whether or not anyone looks, and import no web framework. All else
is imported as it is first asked for, and runs on the HTTP port's threads. The engine is read between two turns of the
loop, and only the loop changes it. May use everything of the detector but the commands and the service.
"""
