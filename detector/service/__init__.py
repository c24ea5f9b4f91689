"""The running daemon. May use every room but `commands`.

`factory.build_daemon` builds all parts from settings, `daemon.Daemon` runs them: run, startup, tick, shutdown, stop.
"""
