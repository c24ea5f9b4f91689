"""What the daemon shows over HTTP: /metrics for Prometheus, /livez and /readyz for whoever restarts and routes.

With a user name and password set, everything but /livez and /readyz asks for them: probes have none, and hear no more
than a word on how it stands. With a certificate set, there is only https.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import html
import io
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, make_wsgi_app
from pydantic import Field, SecretStr, model_validator

from connectors.settings_base import Section

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 16_384  # line and headers; Prometheus and probes send some hundred
REQUEST_SECONDS = 5.0  # for the whole of them, so that nobody holds a thread by sending slowly
MAX_REQUESTS = 32  # at a time; each is a thread

LEAST_PASSWORD = 12  # characters: nothing slows down who guesses
REFUSAL_LOG_SECONDS = 60.0  # between two lines about refused passwords

PLAIN = "text/plain; charset=utf-8"

_PAGES = {
    "/metrics": "metrics for Prometheus",
    "/livez": "whether the processing loop advances",
    "/readyz": "whether the state is restored and events are scored",
}

Check = Callable[[], tuple[bool, str]]


class HttpSettings(Section):
    """The [http] section."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 or :: for all.")
    port: int = Field(default=9464, ge=0, le=65535, description="Port to listen on; 0: any that is free.")
    username: str = Field(
        default="", description="User name to ask for (basic authentication), but for /livez and /readyz; empty: none."
    )
    password: SecretStr = Field(
        default=SecretStr(""), description="Password that goes with username, 12 characters or more."
    )
    ssl_certfile: str = Field(
        default="", description="PEM file of this server's certificate, with its chain: https only. Empty: plain http."
    )
    ssl_keyfile: str = Field(default="", description="PEM file of the key to ssl_certfile.")
    ssl_key_password: SecretStr = Field(default=SecretStr(""), description="Password of ssl_keyfile, if it has one.")

    @model_validator(mode="after")
    def _check(self) -> HttpSettings:
        password = self.password.get_secret_value()
        if bool(self.username) != bool(password):
            raise ValueError("http.username and http.password belong together: set both or none")
        if ":" in self.username or not self.username.isprintable():
            raise ValueError("http.username must be printable and hold no colon, which ends it in basic authentication")
        if password and (len(password) < LEAST_PASSWORD or not password.isprintable()):
            raise ValueError(
                f"http.password must be printable and have {LEAST_PASSWORD} characters or more: make one with "
                "openssl rand -base64 24"
            )
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise ValueError("http.ssl_certfile and http.ssl_keyfile belong together: set both or none")
        return self

    def tls(self) -> ssl.SSLContext | None:
        """Return what https needs, None for plain http. Raises HttpError where certificate or key cannot be used."""
        if not self.ssl_certfile:
            return None
        for name, path in (("ssl_certfile", self.ssl_certfile), ("ssl_keyfile", self.ssl_keyfile)):
            try:
                Path(path).open("rb").close()
            except OSError as error:
                raise HttpError(f"http.{name} {path}: cannot be read: {error.strerror or error}") from None
        asked = False

        def password() -> str:
            nonlocal asked
            asked = True
            return self.ssl_key_password.get_secret_value()

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:  # without `password` OpenSSL would wait for one at the terminal
            context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, password)
        except (OSError, ssl.SSLError) as error:
            if asked:
                reason = "the key is locked, and http.ssl_key_password does not open it"
            elif isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
                reason = "the key does not belong to the certificate"
            else:
                reason = "expected a certificate and a key in PEM form"
            raise HttpError(
                f"http.ssl_certfile {self.ssl_certfile} with http.ssl_keyfile {self.ssl_keyfile} cannot be used: "
                f"{reason}"
            ) from None
        return context


class HttpError(Exception):
    """The server cannot listen as it was told to; the text names the settings."""


class _Request(NamedTuple):
    path: str
    query: str
    accept: str
    accept_encoding: str
    authorization: str
    client: str  # address


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
        self._credentials = _digest(settings.username, settings.password.get_secret_value())
        self._refusals = 0  # since the log last told of some
        self._told_refusals = -REFUSAL_LOG_SECONDS  # monotonic, s
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        """The port that is listened on, once started."""
        if self._server is None:
            raise RuntimeError("the server has not been started")
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen, and serve from now on. Raises HttpError when the address or the certificate cannot be had."""
        host, port = self._settings.host, self._settings.port
        tls = self._settings.tls()
        try:
            self._server = _Server(host, port, tls, self._reply)
        except OSError as error:
            raise HttpError(
                f"cannot listen on http.host = {host}, http.port = {port}: {error.strerror or error}; "
                "set them to an address of this machine and a free port"
            ) from error
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True).start()
        place = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}/"
        asks = ", with a password" if self._settings.username else ""
        logger.info("metrics and health are served on %s%s", place, asks)
        if self._settings.username and tls is None and not _is_loopback(host):
            logger.warning("http.password travels in clear text: set http.ssl_certfile, or put a TLS proxy before it")

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _reply(self, request: _Request) -> _Reply:
        path = request.path
        if path in self._checks:
            fine, word = self._checks[path]()
            status = HTTPStatus.OK if fine else HTTPStatus.SERVICE_UNAVAILABLE
            return _text(status, word or ("ok" if fine else "not ok"), ("Cache-Control", "no-store"))
        if not self._may_see(request):
            challenge = ("WWW-Authenticate", 'Basic realm="longwatch", charset="UTF-8"')
            return _text(HTTPStatus.UNAUTHORIZED, "a user name and password are needed here", challenge)
        if path == "/metrics":
            return self._metrics(request.query, request.accept, request.accept_encoding)
        if path == "/":
            links = "".join(
                f'<li><a href="{page[1:]}">{page}</a>: {html.escape(what)}</li>' for page, what in _PAGES.items()
            )
            body = f'<!doctype html><html lang="en"><title>longwatch</title><h1>longwatch</h1><ul>{links}</ul></html>\n'
            return _Reply(HTTPStatus.OK, [("Content-Type", "text/html; charset=utf-8")], body.encode())
        return _text(HTTPStatus.NOT_FOUND, f"nothing here; there are {', '.join(_PAGES)}")

    def _may_see(self, request: _Request) -> bool:
        if not self._settings.username:
            return True
        if hmac.compare_digest(self._credentials, _given(request.authorization)):
            return True
        if request.authorization:  # a browser's first request has none: that is no attempt
            self._tell_refusal(request.client)
        return False

    def _tell_refusal(self, client: str) -> None:
        now = time.monotonic()
        with self._lock:
            self._refusals += 1
            if now - self._told_refusals < REFUSAL_LOG_SECONDS:
                return
            count, self._refusals, self._told_refusals = self._refusals, 0, now
        logger.warning("%d requests with a wrong user name or password, the last from %s", count, client)

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


def _digest(username: str, password: str) -> bytes:
    """Return something of one length, to be compared in constant time."""
    return hashlib.sha256(f"{username}:{password}".encode()).digest()


def _given(authorization: str) -> bytes:
    """Return the digest of what an Authorization header holds; of nothing where it is not well-formed."""
    scheme, _, text = authorization.partition(" ")
    try:
        given = base64.b64decode(text.strip(), validate=True) if scheme.lower() == "basic" else b""
    except binascii.Error:
        given = b""
    return hashlib.sha256(given).digest()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _text(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> _Reply:
    return _Reply(status, [("Content-Type", PLAIN), *headers], text.encode() + b"\n")


Respond = Callable[[_Request], _Reply]


class _Server(ThreadingMixIn, TCPServer):
    allow_reuse_address = True  # a restart must not wait for the last connection's TIME_WAIT
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, respond: Respond) -> None:
        self.respond = respond
        self._tls = tls
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

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection, in a thread of its own: the TLS handshake too, so that nobody holds up the others."""
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(REQUEST_SECONDS)  # of the whole handshake
        with self._tls.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)
            with contextlib.suppress(OSError):
                wrapped.shutdown(socket.SHUT_WR)  # else the close may take the reply's end with it

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
        accept, accept_encoding, authorization = (
            self.headers.get(name, "") for name in ("Accept", "Accept-Encoding", "Authorization")
        )
        request = _Request(path, query, accept, accept_encoding, authorization, self.client_address[0])
        try:
            reply = self.server.respond(request)
        except Exception:  # a reply that cannot be made is told to the client and the log, and ends nothing
            logger.exception("the reply to GET %r could not be made", path)
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
