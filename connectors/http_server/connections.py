"""Connections of the HTTP port: each new one is served, whatever those before it do.

One thread holds them all and never waits for any: TLS handshakes, requests that come slowly or not at all, and clients
that do not read their answer only take a place among MAX_CONNECTIONS. Where all are taken, the one whose request is the
oldest loses its place to the new one, so a probe, which is over in milliseconds, always gets through. Streams of events
have MAX_STREAMS places of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

from uvicorn.server import ServerState

from connectors.http_server import protocol
from connectors.http_server.protocol import BoundedProtocol, protocol_config

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
MAX_STREAMS = 64
BACKLOG = 128  # connections that the kernel keeps until they are accepted
NO_DESCRIPTOR_SECONDS = 0.05  # before accepting is tried again


class _Place:
    """One connection's place among the others."""

    def __init__(self, all_places: _Places) -> None:
        self._all = all_places
        self.drop: Callable[[], object] = lambda: None
        self.task: asyncio.Task[None] | None = None  # while it connects

    def renew(self) -> None:
        """Be the newest."""
        self._all.enter(self)

    def stream(self) -> None:
        """Count among the streams of events from now on."""
        self._all.stream(self)

    def leave(self) -> None:
        """Make room."""
        self._all.leave(self)


class _Places:
    """Who is connected, the oldest first."""

    def __init__(self) -> None:
        self._requests: dict[_Place, None] = {}
        self._streams: dict[_Place, None] = {}

    def enter(self, place: _Place) -> None:
        self.leave(place)
        if len(self._requests) >= MAX_CONNECTIONS:
            self.drop_oldest()
        self._requests[place] = None

    def stream(self, place: _Place) -> None:
        self.leave(place)
        if len(self._streams) >= MAX_STREAMS:
            _drop_first(self._streams)
        self._streams[place] = None

    def leave(self, place: _Place) -> None:
        self._requests.pop(place, None)
        self._streams.pop(place, None)

    def drop_oldest(self) -> None:
        _drop_first(self._requests)

    def drop_all(self) -> None:
        while self._requests:
            _drop_first(self._requests)
        while self._streams:
            _drop_first(self._streams)


def _drop_first(places: dict[_Place, None]) -> None:
    if (first := next(iter(places), None)) is not None:
        del places[first]
        first.drop()


class Connections:
    """Accepts connections on one address and answers them by an ASGI app, in a separate thread."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, app: Any) -> None:
        """Listen from now on. Raises OSError."""
        self._tls = tls
        ipv6 = ":" in host
        self._listener = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ipv6 else socket.AF_INET,
            backlog=BACKLOG,
            dualstack_ipv6=ipv6 and socket.has_dualstack_ipv6(),  # so that :: is for IPv4, too
        )
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._config, self._state, self._places = protocol_config(app), ServerState(), _Places()
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(_log_quietly)
        self._accepting = self.loop.create_task(self._accept())
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and hang up on those that are connected."""
        self.loop.call_soon_threadsafe(self._accepting.cancel)
        self._thread.join()

    def _run(self) -> None:
        runner = asyncio.Runner(loop_factory=lambda: self.loop)  # which ends every task when it is closed
        with self._listener, runner, contextlib.suppress(asyncio.CancelledError):
            self.loop.run_until_complete(self._accepting)

    async def _accept(self) -> None:
        try:
            while True:
                try:
                    connection, _ = await self.loop.sock_accept(self._listener)
                except OSError as error:  # no file descriptor is left, or the client has gone already
                    logger.debug("an HTTP connection could not be accepted: %s", error)
                    self._places.drop_oldest()
                    await asyncio.sleep(NO_DESCRIPTOR_SECONDS)
                    continue
                place = _Place(self._places)
                place.task = self.loop.create_task(self._connect(connection, place))
                place.drop = place.task.cancel
                place.renew()
                await asyncio.sleep(0)  # those that are connected get their turn between two new ones
        finally:
            self._places.drop_all()

    async def _connect(self, connection: socket.socket, place: _Place) -> None:
        began, transport = self.loop.time(), None
        try:
            async with asyncio.timeout(protocol.REQUEST_SECONDS):
                transport, _ = await self.loop.connect_accepted_socket(
                    lambda: BoundedProtocol(self._config, self._state, place, began), connection, ssl=self._tls
                )
        except OSError as error:
            logger.debug("an HTTP connection failed: %s", error or type(error).__name__)
        finally:
            place.task = None
            if transport is None:
                place.leave()
                connection.close()


def _log_quietly(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    error = context.get("exception")
    logger.debug("an HTTP connection failed: %s", context.get("message"), exc_info=error)  # type: ignore[arg-type]
