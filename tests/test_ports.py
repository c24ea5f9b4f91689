"""A port of our own: nobody else's, dead until a server of ours takes it, and dead again afterwards."""

from __future__ import annotations

import socket

import pytest

from tests.ports import own_port


def test_a_port_of_our_own_answers_only_while_our_server_listens() -> None:
    port = own_port()
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)):
            socket.create_connection(("127.0.0.1", port)).close()


def test_a_port_of_our_own_is_not_given_away() -> None:
    ours = {own_port() for _ in range(50)}
    theirs = set()
    for _ in range(5_000):
        with socket.create_server(("127.0.0.1", 0)) as server:
            theirs.add(server.getsockname()[1])
    assert len(ours) == 50
    assert not ours & theirs
