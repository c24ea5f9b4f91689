"""What the daemon shows over HTTP: /metrics for Prometheus, /livez and /readyz for whoever restarts and routes."""

from __future__ import annotations

import html
import io
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, make_wsgi_app
from pydantic import BaseModel, ConfigDict, Field

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 16_384  # line and headers; Prometheus and probes send some hundred
REQUEST_SECONDS = 5.0  # for the whole of them, so that nobody holds a thread by sending slowly
MAX_REQUESTS = 32  # at a time; each is a thread

PLAIN = "text/plain; charset=utf-8"

_PAGES = {
    "/metrics": "metrics for Prometheus",
    "/livez": "whether the processing loop advances",
    "/readyz": "whether the state is restored and events are scored",
}

Check = Callable[[], tuple[bool, str]]


class HttpSettings(BaseModel):
    """The [http] section."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 or :: for all.")
    port: int = Field(default=9464, ge=0, le=65535, description="Port to listen on; 0: any that is free.")


class HttpError(Exception):
    """The server cannot listen where it was told to; the text names the settings."""


class _Reply(NamedTuple):
    status: HTTPStatus
    headers: list[tuple[str, str]]
    body: bytes


class HttpServer:
    """Serves GET and HEAD from threads of its own, and asks nothing of the loop but two answers.

    `live` and `ready` return whether, and why not (or a word on how it stands). They are called from any thread, must
    answer at once, and `live` must not depend on Kafka: a broker that is down is no reason to be restarted.
    """

    def __init__(self, settings: HttpSettings, registry: CollectorRegistry, live: Check, ready: Check) -> None:
        """Serve the metrics of `registry`."""
        self._settings = settings
        self._exposition = make_wsgi_app(registry)
        self._checks = {"/livez": live, "/readyz": ready}
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        """The port that is listened on, once started."""
        if self._server is None:
            raise RuntimeError("the server has not been started")
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen, and serve from now on. Raises HttpError when the address cannot be had."""
        host, port = self._settings.host, self._settings.port
        try:
            self._server = _Server(host, port, self._reply)
        except OSError as error:
            raise HttpError(
                f"cannot listen on http.host = {host}, http.port = {port}: {error.strerror or error}; "
                "set them to an address of this machine and a free port"
            ) from error
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True).start()
        logger.info("metrics and health are served on http://%s:%d/", f"[{host}]" if ":" in host else host, self.port)

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _reply(self, path: str, query: str, accept: str, accept_encoding: str) -> _Reply:
        if path == "/metrics":
            return self._metrics(query, accept, accept_encoding)
        if path in self._checks:
            fine, word = self._checks[path]()
            status = HTTPStatus.OK if fine else HTTPStatus.SERVICE_UNAVAILABLE
            return _text(status, word or ("ok" if fine else "not ok"), ("Cache-Control", "no-store"))
        if path == "/":
            links = "".join(
                f'<li><a href="{page[1:]}">{page}</a>: {html.escape(what)}</li>' for page, what in _PAGES.items()
            )
            body = f'<!doctype html><html lang="en"><title>longwatch</title><h1>longwatch</h1><ul>{links}</ul></html>\n'
            return _Reply(HTTPStatus.OK, [("Content-Type", "text/html; charset=utf-8")], body.encode())
        return _text(HTTPStatus.NOT_FOUND, f"nothing here; there are {', '.join(_PAGES)}")

    def _metrics(self, query: str, accept: str, accept_encoding: str) -> _Reply:
        """Let prometheus-client choose format and compression from what the client accepts."""
        status, headers = HTTPStatus.OK, list[tuple[str, str]]()

        def start_response(line: str, chosen: Iterable[tuple[str, str]], *_: Any) -> None:
            nonlocal status
            status = HTTPStatus(int(line.split(" ", 1)[0]))
            headers.extend(chosen)

        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": query,
            "HTTP_ACCEPT": accept,
            "HTTP_ACCEPT_ENCODING": accept_encoding,
        }
        body = b"".join(self._exposition(environ, start_response))
        return _Reply(status, headers, body)


def _text(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> _Reply:
    return _Reply(status, [("Content-Type", PLAIN), *headers], text.encode() + b"\n")


Respond = Callable[[str, str, str, str], _Reply]


class _Server(ThreadingMixIn, TCPServer):
    allow_reuse_address = True  # a restart must not wait for the last connection's TIME_WAIT
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, respond: Respond) -> None:
        self.respond = respond
        self._free = threading.BoundedSemaphore(MAX_REQUESTS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # a client that went away, or a check that raised; neither may write to stderr
        logger.debug("an HTTP request from %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def setup(self) -> None:
        super().setup()
        # The parser of the standard library bounds neither the time nor, usefully, the size of a request.
        self.rfile = io.BufferedReader(io.BytesIO(self._read_head()))

    def _read_head(self) -> bytes:
        """Read up to the empty line that ends the headers; empty if it does not come in time or is too far."""
        head = b""
        deadline = time.monotonic() + REQUEST_SECONDS
        while b"\r\n\r\n" not in head:
            left = deadline - time.monotonic()
            if left <= 0 or len(head) > MAX_REQUEST_BYTES:
                return b""
            self.connection.settimeout(left)
            try:
                some = self.connection.recv(4096)
            except OSError:
                return b""
            if not some:
                return b""
            head += some
        self.connection.settimeout(REQUEST_SECONDS)
        return head

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path, _, query = self.path.partition("?")
        accept, accept_encoding = self.headers.get("Accept", ""), self.headers.get("Accept-Encoding", "")
        try:
            reply = self.server.respond(path, query, accept, accept_encoding)
        except Exception:  # a reply that cannot be made is told to the client and the log, and ends nothing
            logger.exception("the reply to GET %s could not be made", path)
            reply = _text(HTTPStatus.INTERNAL_SERVER_ERROR, "this page failed; the daemon's log says why")
        self._send(reply, with_body=with_body)

    def _send(self, reply: _Reply, *, with_body: bool) -> None:
        self.send_response_only(reply.status)  # without the banner that tells Python's version
        self.send_header("Date", self.date_time_string())
        for name, value in reply.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        self.end_headers()
        if with_body:
            self.wfile.write(reply.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the parser refuses: another method (501 by its own word, which is 405 here), a broken request."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        headers = [("Allow", "GET, HEAD")] if status is HTTPStatus.METHOD_NOT_ALLOWED else []
        self._send(_text(status, message or status.phrase, *headers), with_body=True)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        logger.debug(format, *args)
