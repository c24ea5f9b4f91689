"""The engine, and the daemon that drives it. Stands on `connectors` and `training`."""

__version__ = "0.1.0"
