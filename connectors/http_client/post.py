"""HTTP POST with one deadline for all of it, from looking up the name to the last byte of the answer that is read."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping

from connectors.http_client.connect import Connector, DeadlineError

MAX_INTERIM = 20  # answers 1xx before the one that counts


class HttpPoster:
    """Posts to one host, one request at a time, each over a new connection."""

    def __init__(self, connector: Connector, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """`tls` is None for plain http; else it says which certificates of `host` are trusted."""
        self._connector, self._host, self._port, self._tls = connector, host, port, tls
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
            with self._respond(target, body, headers, deadline) as response:
                if time.monotonic() >= deadline:  # a truncated head parses as a complete one
                    raise DeadlineError("no answer in time")
                yield response
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline:
                raise DeadlineError("no answer in time") from error
            raise
        finally:
            cutting.cancel()
            under_way, self._socket = self._socket, None
            if under_way is not None:
                under_way.close()

    def end(self) -> None:
        """Cancel the request in progress and every later one; thread-safe."""
        self._ended.set()
        self._cut()

    def _respond(
        self, target: str, body: bytes, headers: Mapping[str, str], deadline: float
    ) -> http.client.HTTPResponse:
        protocol = http.client.HTTPConnection(self._host, self._port)
        if self._tls is not None:
            protocol.default_port = http.client.HTTPS_PORT  # which the Host header leaves out
        protocol.response_class = _FinalResponse
        protocol.sock = self._connected(deadline)
        protocol.request("POST", target, body, headers)
        return protocol.getresponse()

    def _connected(self, deadline: float) -> socket.socket:
        connection = self._hold(self._connector.connect(deadline, self._ended), deadline)
        if self._tls is None:
            return connection
        wrapped = self._tls.wrap_socket(connection, server_hostname=self._host, do_handshake_on_connect=False)
        self._hold(wrapped, deadline)
        wrapped.do_handshake()
        return wrapped

    def _hold(self, connection: socket.socket, deadline: float) -> socket.socket:
        """Let `_cut` end this connection, even if it was called already."""
        self._socket = connection
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        if self._ended.is_set() or time.monotonic() >= deadline:
            self._cut()
        return connection

    def _cut(self) -> None:
        """Wake the request in progress by shutting its connection down."""
        under_way = self._socket
        if under_way is not None:
            with contextlib.suppress(OSError):
                # the plain socket's shutdown: TLS would wait for its own lock
                socket.socket.shutdown(under_way, socket.SHUT_RDWR)


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
