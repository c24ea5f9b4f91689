"""Ports for servers that tests start, and for those that nobody answers at."""

from __future__ import annotations

import socket

_held: list[socket.socket] = []


def own_port() -> int:
    """Return a loopback port that nobody else gets while this process lives.

    It is bound, but nobody listens: connections are refused until a server of ours takes it. That server needs
    SO_REUSEADDR, as Java, Go, tokio and Python's HTTP server set it.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _held.append(held)
    return int(held.getsockname()[1])
