"""What the daemon shows over HTTP: /metrics for Prometheus, /livez and /readyz for orchestrators, and an app's pages.

With a user name and password set, everything but /livez and /readyz asks for them: probes have none, and get no more
than a short status. With a certificate set, there is only https. The app (the page and its API) is loaded as it is
first asked for: a daemon that nobody looks at does without.
"""

from __future__ import annotations

import asyncio
import html
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from prometheus_client import CollectorRegistry, make_wsgi_app
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from connectors.http_server.access import Access
from connectors.http_server.connections import Connections
from connectors.http_server.settings import HttpError, HttpSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

# A version of a text format on which prometheus-client fails, or that it only claims to write
UNKNOWN_VERSION = re.compile(r";\s*version=(?!(0\.0\.1|0\.0\.4|1\.0\.0)\s*(;|$))")
METHODS = ("GET", "HEAD")  # of everything but an app's pages
MAX_BODY_BYTES = 65_536  # of a request; what people write is far less
API = "/api/"  # below it errors are JSON

_PAGES = {
    "/metrics": "metrics for Prometheus",
    "/livez": "whether the processing loop advances",
    "/readyz": "whether the state is restored and events are scored",
}

Check = Callable[[], tuple[bool, str]]


class HttpServer:
    """Serves from separate threads; of the processing loop it needs only two answers.

    `live` and `ready` return a flag and a text: why not, or a short status. They are called from any thread, must
    answer at once, and `live` must not depend on Kafka: a broker that is down is no reason to be restarted.
    """

    def __init__(
        self,
        settings: HttpSettings,
        registry: CollectorRegistry,
        live: Check,
        ready: Check,
        *,
        app: Callable[[Access], ASGIApp] | None = None,
        own_token: str = "",
    ) -> None:
        """Serve the metrics of `registry`; all other paths are for what `app` makes, called on a thread of its own.

        The app finds the caller in scope["state"]["caller"].
        """
        self._settings = settings
        self._exposition = make_wsgi_app(registry)
        self._checks = {"/livez": live, "/readyz": ready}
        self._connections: Connections | None = None
        self.port = settings.port  # 0 becomes the one that is listened on, once started
        self._writer = ThreadPoolExecutor(1, "http-metrics")  # so that /metrics cannot delay a probe
        self._access = Access(settings, own_token)
        self._make_app, self._app = app, asyncio.Lock()
        self._loaded: ASGIApp | None = None

    def start(self) -> None:
        """Listen, and serve from now on. Raises HttpError when the address or the certificate cannot be had."""
        host, port = self._settings.host, self._settings.port
        tls = self._settings.tls()
        try:
            self._connections = Connections(host, port, tls, self)
            self.port = self._connections.port
        except OSError as error:
            why = str(error.strerror or error).partition(" (while attempting")[0]  # the address, again
            raise HttpError(
                f"cannot listen on http.host = {host}, http.port = {port}: {why}; "
                "set them to an address of this machine and a free port"
            ) from error
        place = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}/"
        asks = ", with a password" if self._settings.username else ""
        logger.info("metrics and health are served on %s%s", place, asks)
        if self._settings.username and tls is None and not _is_loopback(host):
            logger.warning("http.password travels in clear text: set http.ssl_certfile, or put a TLS proxy before it")

    def close(self) -> None:
        """Stop listening."""
        if self._connections is not None:
            self._connections.close()
            self._connections = None
        self._writer.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""
        if scope["type"] != "http":
            return
        try:
            target = urlsplit(scope["raw_path"].decode("ascii"))  # a path, or the whole URL, as proxies send it
        except ValueError:
            await PlainTextResponse("Bad Request\n", 400)(scope, receive, send)
            return
        path = unquote(target.path) or "/"
        scope = {**scope, "path": path, "raw_path": (target.path or "/").encode("ascii")}
        if path in self._checks:
            response: Response | None = self._method_problem(scope) or self._check(path)
        else:
            response = await self._reply(scope)
        if response is not None:
            await response(scope, receive, send)
            return
        if self._loaded is None:
            async with self._app:
                if self._loaded is None and self._make_app is not None:
                    # seconds, in which probes are still answered
                    self._loaded = await asyncio.to_thread(self._make_app, self._access)
        body = await _body(receive)
        if body is None:
            why = f"the request's body is too large: {MAX_BODY_BYTES} bytes at most"
            refusal = JSONResponse({"error": why}, 413, {"Connection": "close"})
            await refusal(scope, receive, send)
        elif self._loaded is not None:
            await self._loaded(scope, _given(body, receive), send)

    def _check(self, path: str) -> Response:
        fine, word = self._checks[path]()
        text = word or ("ok" if fine else "not ok")
        return PlainTextResponse(f"{text}\n", 200 if fine else 503, {"Cache-Control": "no-store"})

    @staticmethod
    def _method_problem(scope: Scope) -> Response | None:
        if scope["method"] in METHODS:
            return None
        return PlainTextResponse("Method Not Allowed\n", 405, {"Allow": ", ".join(METHODS)})

    async def _reply(self, scope: Scope) -> Response | None:
        """Return the reply to all but probes; None: it is the app's."""
        headers, path = Headers(scope=scope), scope["path"]
        client = str((scope["client"] or ("?",))[0])
        caller = self._access.caller(headers, client)
        if not self._access.may_read(caller):
            why, challenge = "a user name and password are needed here", 'Basic realm="longwatch", charset="UTF-8"'
            asked = {"WWW-Authenticate": challenge}
            if path.startswith(API):
                return JSONResponse({"error": why}, 401, asked)
            return PlainTextResponse(f"{why}\n", 401, asked)
        if path != "/metrics" and self._make_app is not None:
            scope["state"]["caller"] = caller
            return None
        if problem := self._method_problem(scope):
            return problem
        if path == "/metrics":
            return await asyncio.get_running_loop().run_in_executor(self._writer, self._metrics, scope)
        if path == "/":
            return index()
        return PlainTextResponse(f"nothing here; there are {', '.join(_PAGES)}\n", 404)

    def _metrics(self, scope: Scope) -> Response:
        """Let prometheus-client choose format and compression from what the client accepts."""
        given, headers = Headers(scope=scope), list[tuple[str, str]]()
        wanted = ",".join(given.getlist("accept")).split(",")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": scope["query_string"].decode("latin-1"),
            "HTTP_ACCEPT": ",".join(one for one in wanted if not UNKNOWN_VERSION.search(one)),
            "HTTP_ACCEPT_ENCODING": ",".join(given.getlist("accept-encoding")),
        }
        body = b"".join(self._exposition(environ, lambda _, chosen: headers.extend(chosen)))
        return Response(body, headers=dict(headers))


async def _body(receive: Receive) -> bytes | None:
    """Return a request's whole body, None where it is too large; one that comes slowly is cut off by the protocol."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        more = message.get("more_body", False)
    return bytes(body)


def _given(body: bytes, receive: Receive) -> Receive:
    """Return what gives an app a body that is there already."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return messages.pop() if messages else await receive()

    return receiving


def index() -> Response:
    """Return a page that links what is here: for where there is no other."""
    links = "".join(f'<li><a href="{page[1:]}">{page}</a>: {html.escape(what)}</li>' for page, what in _PAGES.items())
    return HTMLResponse(
        f'<!doctype html><html lang="en"><title>longwatch</title><h1>longwatch</h1><ul>{links}</ul></html>\n'
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
