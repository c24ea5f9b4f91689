"""HTTP POST with one deadline for all of it, from looking up the name to the last byte of the answer that is read.

Addresses are tried as RFC 8305 says ("happy eyeballs"): each a moment after the one before, and the first that answers
is taken. So an address that swallows packets does not use up the time of those that would answer.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from ipaddress import ip_address
from typing import Any

from connectors.common.background import run_in_thread
from connectors.http_client.url_policy import Address, TargetRefusedError

NEXT_ADDRESS_SECONDS = 0.25  # after which the next address is tried as well
LOOK_SECONDS = 0.1  # between two checks of the deadline
MAX_INTERIM = 20  # answers 1xx before the one that counts

_Found = tuple[int, int, int, str, tuple[Any, ...]]  # what getaddrinfo says of an address


class DeadlineError(TimeoutError):
    """Something was not done by its deadline."""


class HttpPoster:
    """Posts to one host, one request at a time, each over a new connection."""

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        refuses: Callable[[Address], str | None] = lambda address: None,
    ) -> None:
        """`tls` says which certificates of `host` are trusted, None for plain http.

        `refuses` returns why an address may not be connected to, None if it may.
        """
        self._host, self._port, self._tls, self._refuses = host, port, tls, refuses
        self._lookup: Future[Sequence[_Found]] | None = None  # started and not finished
        self._socket: socket.socket | None = None  # of the request in progress
        self._ended = threading.Event()

    @contextlib.contextmanager
    def post(
        self, target: str, body: bytes, headers: Mapping[str, str], timeout_seconds: float
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request; yields the response, whose body may be read within the context.

        Raises DeadlineError after so many seconds in all, however slowly bytes trickle in; TargetRefusedError,
        OSError or HTTPException where there is no answer.
        """
        deadline = time.monotonic() + timeout_seconds
        cutting = threading.Timer(timeout_seconds, self._cut)
        cutting.daemon = True
        cutting.start()
        try:
            connection = self._hold(self.connect(deadline), deadline)
            protocol = http.client.HTTPConnection(self._host, self._port)
            if self._tls is not None:
                protocol.default_port = http.client.HTTPS_PORT  # which the Host header leaves out
                wrapped = self._tls.wrap_socket(connection, server_hostname=self._host, do_handshake_on_connect=False)
                connection = self._hold(wrapped, deadline)
                wrapped.do_handshake()
            protocol.response_class = _FinalResponse
            protocol.sock = connection
            protocol.request("POST", target, body, headers)
            with protocol.getresponse() as response:
                self._check(deadline)  # a truncated head parses as a complete one
                yield response
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline:
                raise DeadlineError("no answer in time") from error
            raise
        finally:
            cutting.cancel()
            if self._socket is not None:
                self._socket.close()
            self._socket = None

    def end(self) -> None:
        """Cancel the request in progress and every later one; thread-safe."""
        self._ended.set()
        self._cut()

    def connect(self, deadline: float) -> socket.socket:
        """Return a connection; `deadline` is monotonic, s.

        Raises TargetRefusedError where there is no address that may be connected to, DeadlineError, and OSError where
        none answers or `end` was called.
        """
        allowed, refusals = deque[_Found](), list[str]()
        for found in self._look_up(deadline):
            refusal = self._refuses(ip_address(str(found[4][0]).partition("%")[0]))
            if refusal is None:
                allowed.append(found)
            else:
                refusals.append(refusal)
        if not allowed:
            raise TargetRefusedError("; ".join(dict.fromkeys(refusals)) or f"{self._host} has no address")
        connection = self._first_to_answer(allowed, deadline)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(True)  # `_cut` wakes who waits for it
        return connection

    def _look_up(self, deadline: float) -> Sequence[_Found]:
        """Ask the resolver, which takes no deadline: a late answer serves the next attempt."""
        lookup = self._lookup = self._lookup or run_in_thread(
            lambda: socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        )
        while not wait([lookup], LOOK_SECONDS).done:
            self._check(deadline)
        self._lookup = None
        return lookup.result()

    def _first_to_answer(self, places: deque[_Found], deadline: float) -> socket.socket:
        failure = OSError("no address")
        with selectors.DefaultSelector() as begun:
            try:
                next_at = 0.0  # monotonic, s
                while places or begun.get_map():
                    self._check(deadline)
                    now = time.monotonic()
                    if places and (now >= next_at or not begun.get_map()):
                        next_at = now + NEXT_ADDRESS_SECONDS
                        try:
                            connection = _begin(*places.popleft())
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

    def _hold(self, connection: socket.socket, deadline: float) -> socket.socket:
        """Let `_cut` end this connection. Raises OSError where it was called already."""
        self._socket = connection
        self._check(deadline)
        return connection

    def _check(self, deadline: float) -> None:
        if self._ended.is_set():
            raise ConnectionAbortedError("given up")
        if time.monotonic() >= deadline:
            raise DeadlineError("no answer in time")

    def _cut(self) -> None:
        """Wake the request in progress by shutting its connection down."""
        under_way = self._socket
        if under_way is not None:
            with contextlib.suppress(OSError):
                # the plain socket's shutdown: TLS would wait for its own lock
                socket.socket.shutdown(under_way, socket.SHUT_RDWR)


def _begin(family: int, kind: int, protocol: int, _: str, address: tuple[Any, ...]) -> socket.socket:
    """Return a socket that is being connected. Raises OSError."""
    connection = socket.socket(family, kind, protocol)
    connection.setblocking(False)
    error_number = connection.connect_ex(address)
    if error_number not in {0, errno.EINPROGRESS}:
        connection.close()
        raise OSError(error_number, os.strerror(error_number))
    return connection


class _FinalResponse(http.client.HTTPResponse):
    """The answer after all interim ones (1xx: processing, early hints); the base class knows only 100."""

    def begin(self) -> None:
        """Read the status and headers that count. Raises HTTPException where only interim ones come."""
        for _ in range(MAX_INTERIM):
            super().begin()
            if self.status >= http.client.OK:
                return
            self.headers = self.msg = None  # type: ignore[assignment]  # as before the first
        raise http.client.HTTPException(f"{MAX_INTERIM} interim answers (1xx) and no final one")
