"""One connection of the HTTP port: uvicorn's protocol, with a bound on every wait.

uvicorn has none on how long a request may take to come, nor on how long a client may take to read its answer. Here the
whole request, its TLS handshake included, must be there in REQUEST_SECONDS, and the whole answer with the client
REPLY_SECONDS later. A stream of events (SSE) goes on for as long as its client reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16_384  # of a request: line and headers; browsers and Prometheus send some hundred
REQUEST_SECONDS = 5.0  # for the TLS handshake and the whole request
REPLY_SECONDS = 10.0  # for making the reply and its way to the client
IDLE_SECONDS = 5  # until a connection without a request is closed: a page's next ones come at once
EVENT_STREAM = b"text/event-stream"

# Nothing is fetched from elsewhere, nothing inline is run, and nobody else shows or sends these pages.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]

# uvicorn warns of each request that is none, which is the client's affair
_unheard = logging.getLogger(f"{__name__}.uvicorn")
_unheard.setLevel(logging.CRITICAL + 1)


class Place(Protocol):
    """A connection's place among the others."""

    drop: Callable[[], object]

    def renew(self) -> None:
        """Be the newest."""

    def stream(self) -> None:
        """Count among the streams of events from now on."""

    def leave(self) -> None:
        """Make room."""


class BoundedProtocol(H11Protocol):
    """A connection's requests, one after the other. For the loop's thread."""

    def __init__(self, config: Config, state: ServerState, place: Place, began: float) -> None:
        """Serve a connection that was accepted at `began`, by the loop's clock, s."""
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self.logger, self.access_log = _unheard, False
        self.app = self._answer  # for this connection's requests
        self._place, self._began = place, began
        self._deadline: asyncio.TimerHandle | None = None
        self._idle = self._streaming = False
        self._unread_since: float | None = None  # by the loop's clock: the client takes nothing

    # -- as asyncio calls it -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for the first request."""
        super().connection_made(transport)
        self._place.drop = transport.abort
        self._within(REQUEST_SECONDS - (self.loop.time() - self._began))

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._place.leave()
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]  # as asyncio has it
        """Let a client that only says that it has sent all have its answer."""
        if self.scheme == "https" or self.cycle is None or self.cycle.response_complete:
            return None
        self.cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        if self._idle:
            self._idle = False
            self._place.renew()
            self._within(REQUEST_SECONDS)
        try:
            super().data_received(data)
        except h11.ProtocolError as error:
            logger.debug("an HTTP connection of %s failed: %s", self.client, error)
            self.transport.abort()
            return
        if not self._idle and self.cycle is not None and self.conn.their_state is not h11.SEND_BODY:
            self._received()

    def pause_writing(self) -> None:
        """Note that the client takes nothing."""
        self._unread_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that it does again."""
        self._unread_since = None
        super().resume_writing()

    # -- as uvicorn calls it -------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, and hang up."""
        logger.debug("no HTTP request, from %s: %s", self.client, msg)
        body = msg.encode("ascii", "replace") + b"\n"
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *_common_headers(),
        ]
        events = h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body)
        with contextlib.suppress(h11.LocalProtocolError):  # in the middle of an answer
            for event in (*events, h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def on_response_complete(self) -> None:
        """Wait for the next request; what the client has not read yet must go within the reply's time."""
        finished, self._idle, self._streaming = self.cycle, True, False
        super().on_response_complete()
        if self.cycle is not finished:  # the next one had been sent already
            self._idle = False
            self._received()

    # -- our own -------------------------------------------------------------------------------------------------------

    async def _answer(self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        started = False

        async def sending(message: ASGISendEvent) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = [*message.get("headers", ()), *_common_headers()]
                if any(name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in headers):
                    self._streaming = True
                    self._place.stream()
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.config.loaded_app(scope, receive, sending)
        except Exception:  # an error in one reply goes to the client and the log, and must not end the server
            logger.exception("the reply to %s %r failed", scope["method"], scope["path"])
            if started:
                self.transport.abort()
                return
            body = b"this page failed; the daemon's log says why\n"
            length = str(len(body)).encode()
            plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", length)]
            await sending({"type": "http.response.start", "status": 500, "headers": plain, "trailers": False})
            await sending({"type": "http.response.body", "body": body, "more_body": False})

    def _received(self) -> None:
        """Note that a whole request is there."""
        if not self._streaming:
            self._within(REPLY_SECONDS)

    def _within(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(max(seconds, 0.0), self._late)

    def _late(self) -> None:
        if self._streaming:
            if self._unread_since is None or self.loop.time() - self._unread_since < REPLY_SECONDS:
                self._within(REPLY_SECONDS)
                return
        elif self._idle and not self.transport.get_write_buffer_size():
            return  # uvicorn hangs up after IDLE_SECONDS
        self.transport.abort()


def _common_headers() -> list[tuple[bytes, bytes]]:
    return [*SECURITY_HEADERS, (b"date", email.utils.formatdate(usegmt=True).encode())]


def protocol_config(app: Any) -> Config:
    """Return what uvicorn's protocol asks for; none of its own server, signals and logs are used."""
    config = Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    config.load()
    return config
