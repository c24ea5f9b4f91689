"""A connection to a host, with one deadline for looking up its name and for all of its addresses.

Addresses are tried as RFC 8305 says ("happy eyeballs"): each a moment after the one before, and the first that answers
is taken. So an address that swallows packets does not use up the time of those that would answer.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from ipaddress import ip_address
from typing import Any

from connectors.common.background import run_in_thread
from connectors.http_client.url_policy import Address, TargetRefusedError

NEXT_ADDRESS_SECONDS = 0.25  # after which the next address is tried as well
LOOK_SECONDS = 0.1  # between two checks of `ended`

_Found = tuple[int, int, int, str, tuple[Any, ...]]  # what getaddrinfo says of an address


class DeadlineError(TimeoutError):
    """Something was not done by its deadline."""


class Connector:
    """Connects to one host and port. One thread may use it at a time."""

    def __init__(self, host: str, port: int, refuses: Callable[[Address], str | None] = lambda address: None) -> None:
        """`refuses` returns why an address may not be connected to, None if it may."""
        self._host, self._port, self._refuses = host, port, refuses
        self._lookup: Future[Sequence[_Found]] | None = None  # started and not finished

    def connect(self, deadline: float, ended: threading.Event) -> socket.socket:
        """Return a connection; `deadline` is monotonic, s, and setting `ended` gives up.

        Raises TargetRefusedError where there is no address that may be connected to, DeadlineError, and OSError where
        none answers or `ended` is set.
        """
        allowed, refusals = deque[_Found](), list[str]()
        for found in self._look_up(deadline, ended):
            refusal = self._refuses(ip_address(str(found[4][0]).partition("%")[0]))
            if refusal is None:
                allowed.append(found)
            else:
                refusals.append(refusal)
        if not allowed:
            raise TargetRefusedError("; ".join(dict.fromkeys(refusals)) or f"{self._host} has no address")
        connection = _first_to_answer(allowed, deadline, ended)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _look_up(self, deadline: float, ended: threading.Event) -> Sequence[_Found]:
        """Ask the resolver, which takes no deadline: a late answer serves the next attempt."""
        lookup = self._lookup = self._lookup or run_in_thread(
            lambda: socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        )
        while not wait([lookup], LOOK_SECONDS).done:
            _check(deadline, ended)
        self._lookup = None
        return lookup.result()


def _first_to_answer(places: deque[_Found], deadline: float, ended: threading.Event) -> socket.socket:
    failure = OSError("no address")
    with selectors.DefaultSelector() as begun:
        try:
            next_at = 0.0  # monotonic, s
            while places or begun.get_map():
                _check(deadline, ended)
                now = time.monotonic()
                if places and (now >= next_at or not begun.get_map()):
                    next_at = now + NEXT_ADDRESS_SECONDS
                    try:
                        connection = _begin(places.popleft())
                    except OSError as error:
                        failure = error
                    else:
                        begun.register(connection, selectors.EVENT_WRITE, connection)
                    continue
                for key, _ in begun.select(LOOK_SECONDS):
                    candidate: socket.socket = key.data
                    begun.unregister(candidate)
                    error_number = candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not error_number:
                        return candidate
                    candidate.close()
                    failure = OSError(error_number, os.strerror(error_number))
        finally:
            for key in list(begun.get_map().values()):
                key.data.close()
    raise failure


def _begin(place: _Found) -> socket.socket:
    family, kind, protocol, _, address = place
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        connection.connect(address)
    except BlockingIOError:
        pass
    except OSError:
        connection.close()
        raise
    return connection


def _check(deadline: float, ended: threading.Event) -> None:
    if ended.is_set():
        raise ConnectionAbortedError("given up")
    if time.monotonic() >= deadline:
        raise DeadlineError("no answer in time")
