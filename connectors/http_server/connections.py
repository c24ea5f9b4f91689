"""Connections of the HTTP port: each new one is served, whatever those before it do.

One thread holds them all and never waits for any: TLS handshakes, requests that come slowly or not at all, and clients
that do not read their answer only take a place among MAX_CONNECTIONS. Where all are taken the oldest loses its place to
the new one, so a probe, which is over in milliseconds, always gets through. A connection carries one request.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
MAX_REQUEST_BYTES = 16_384  # line and headers; Prometheus and probes send some hundred
REQUEST_SECONDS = 5.0  # for the TLS handshake and the whole request
REPLY_SECONDS = 10.0  # for making the reply and its way to the client
BACKLOG = 128  # connections that the kernel keeps until they are accepted
NO_DESCRIPTOR_SECONDS = 0.05  # before accepting is tried again


class Request(NamedTuple):
    """What a reply depends on."""

    path: str
    query: str
    headers: Message
    client: str  # address

    def header(self, name: str) -> str:
        """Return what all headers of a name say, in one line (RFC 9110, 5.3); empty if there is none."""
        return ",".join(self.headers.get_all(name, []))


class Reply(NamedTuple):
    """A response to GET; HEAD gets it without its body."""

    status: HTTPStatus
    headers: list[tuple[str, str]]
    body: bytes


Respond = Callable[[Request], Awaitable[Reply]]


def text_reply(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Reply:
    """Return a reply of plain text."""
    return Reply(status, [("Content-Type", "text/plain; charset=utf-8"), *headers], text.encode() + b"\n")


class Connections:
    """Accepts connections on one address and answers them with `respond`, in a separate thread."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, respond: Respond) -> None:
        """Listen from now on. Raises OSError."""
        self._tls, self._respond = tls, respond
        ipv6 = ":" in host
        self._listener = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ipv6 else socket.AF_INET,
            backlog=BACKLOG,
            dualstack_ipv6=ipv6 and socket.has_dualstack_ipv6(),  # so that :: is for IPv4, too
        )
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._served: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_log_quietly)
        self._accepting = self._loop.create_task(self._accept())
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and hang up on those that are connected."""
        self._loop.call_soon_threadsafe(self._accepting.cancel)
        self._thread.join()

    def _run(self) -> None:
        runner = asyncio.Runner(loop_factory=lambda: self._loop)  # which ends every task when it is closed
        with self._listener, runner, contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._accepting)

    async def _accept(self) -> None:
        while True:
            try:
                connection, address = await self._loop.sock_accept(self._listener)
            except OSError as error:  # no file descriptor is left, or the client has gone already
                logger.debug("an HTTP connection could not be accepted: %s", error)
                self._drop_oldest()
                await asyncio.sleep(NO_DESCRIPTOR_SECONDS)
                continue
            if len(self._served) >= MAX_CONNECTIONS:
                self._drop_oldest()
            task = self._loop.create_task(self._serve(connection, str(address[0])))
            self._served[task] = None
            task.add_done_callback(lambda done: self._served.pop(done, None))
            await asyncio.sleep(0)  # those that are connected get their turn between two new ones

    def _drop_oldest(self) -> None:
        oldest = next(iter(self._served), None)
        if oldest is not None:
            del self._served[oldest]
            oldest.cancel()

    async def _serve(self, connection: socket.socket, client: str) -> None:
        """Answer one connection's request, and close it."""
        reader = asyncio.StreamReader(MAX_REQUEST_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, connection, ssl=self._tls)
                head = await reader.readuntil(b"\r\n\r\n")
            async with asyncio.timeout(REPLY_SECONDS):
                writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
                await self._answer(_Head(head), client, writer)
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            logger.debug("an HTTP request from %s failed: %s", client, error or type(error).__name__)
        finally:
            if transport is None:
                connection.close()
            else:
                transport.abort()

    async def _answer(self, head: _Head, client: str, writer: asyncio.StreamWriter) -> None:
        reply = await self._reply(head, client)
        if reply is None:
            return
        lines = [
            f"HTTP/1.1 {reply.status.value} {reply.status.phrase}",
            f"Date: {email.utils.formatdate(usegmt=True)}",
            *(f"{name}: {value}" for name, value in reply.headers),
            f"Content-Length: {len(reply.body)}",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        ]
        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
        if head.command != "HEAD":
            writer.write(reply.body)
        writer.close()  # once all is written, TLS' own goodbye too
        await writer.wait_closed()

    async def _reply(self, head: _Head, client: str) -> Reply | None:
        if not head.is_request:
            return head.refusal
        if head.command not in {"GET", "HEAD"}:
            status = HTTPStatus.METHOD_NOT_ALLOWED
            return text_reply(status, status.phrase, ("Allow", "GET, HEAD"))
        try:
            target = urlsplit(head.path)  # a path, or the whole URL, as proxies send it (RFC 9112, 3.2)
        except ValueError:
            return text_reply(HTTPStatus.BAD_REQUEST, HTTPStatus.BAD_REQUEST.phrase)
        request = Request(unquote(target.path) or "/", target.query, head.headers, client)
        try:
            return await self._respond(request)
        except Exception:  # an error in one reply goes to the client and the log, and must not end the server
            logger.exception("the reply to GET %r failed", request.path)
            return text_reply(HTTPStatus.INTERNAL_SERVER_ERROR, "this page failed; the daemon's log says why")


class _Head(BaseHTTPRequestHandler):
    """A request's line and headers: the standard library's parser, without its connection."""

    def __init__(self, head: bytes) -> None:
        self.rfile = BytesIO(head)
        self.raw_requestline = self.rfile.readline()
        self.refusal: Reply | None = None  # the answer to what is no request; an empty one has none
        self.is_request = self.parse_request()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Keep what the parser answers."""
        status = HTTPStatus(code)
        self.refusal = text_reply(status, message or status.phrase)


def _log_quietly(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    error = context.get("exception")
    logger.debug("an HTTP connection failed: %s", context.get("message"), exc_info=error)  # type: ignore[arg-type]
