"""What the daemon shows over HTTP: /metrics for Prometheus, /livez and /readyz for orchestrators.

With a user name and password set, everything but /livez and /readyz asks for them: probes have none, and get no more
than a short status. With a certificate set, there is only https. (prometheus-client's own
server has neither passwords nor probes, and one thread for each connection, however long it is silent.)
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import html
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from ipaddress import ip_address

from prometheus_client import CollectorRegistry, make_wsgi_app

from connectors.common.throttle import LogThrottle
from connectors.http_server.connections import Connections, Reply, Request, text_reply
from connectors.http_server.settings import HttpError, HttpSettings

logger = logging.getLogger(__name__)

# A version of a text format on which prometheus-client fails, or that it only claims to write
UNKNOWN_VERSION = re.compile(r";\s*version=(?!(0\.0\.1|0\.0\.4|1\.0\.0)\s*(;|$))")

_PAGES = {
    "/metrics": "metrics for Prometheus",
    "/livez": "whether the processing loop advances",
    "/readyz": "whether the state is restored and events are scored",
}

Check = Callable[[], tuple[bool, str]]


class HttpServer:
    """Serves GET and HEAD from separate threads; it needs only two answers from the processing loop.

    `live` and `ready` return a flag and a text: why not, or a short status. They are called from any thread, must
    answer at once, and `live` must not depend on Kafka: a broker that is down is no reason to be restarted.
    """

    def __init__(self, settings: HttpSettings, registry: CollectorRegistry, live: Check, ready: Check) -> None:
        """Serve the metrics of `registry`."""
        self._settings = settings
        self._exposition = make_wsgi_app(registry)
        self._checks = {"/livez": live, "/readyz": ready}
        self._connections: Connections | None = None
        self.port = settings.port  # 0 becomes the one that is listened on, once started
        self._writer = ThreadPoolExecutor(1, "http-metrics")  # so that /metrics cannot delay a probe
        credentials = f"{settings.username}:{settings.password.get_secret_value()}"
        self._credentials = _digest(base64.b64encode(credentials.encode()).decode())
        self._refusals = LogThrottle()

    def start(self) -> None:
        """Listen, and serve from now on. Raises HttpError when the address or the certificate cannot be had."""
        host, port = self._settings.host, self._settings.port
        tls = self._settings.tls()
        try:
            self._connections = Connections(host, port, tls, self._reply)
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

    async def _reply(self, request: Request) -> Reply:
        path = request.path
        if path in self._checks:
            fine, word = self._checks[path]()
            status = HTTPStatus.OK if fine else HTTPStatus.SERVICE_UNAVAILABLE
            return text_reply(status, word or ("ok" if fine else "not ok"), ("Cache-Control", "no-store"))
        if not self._may_see(request):
            challenge = ("WWW-Authenticate", 'Basic realm="longwatch", charset="UTF-8"')
            return text_reply(HTTPStatus.UNAUTHORIZED, "a user name and password are needed here", challenge)
        if path == "/metrics":
            return await asyncio.get_running_loop().run_in_executor(self._writer, self._metrics, request)
        if path == "/":
            links = "".join(
                f'<li><a href="{page[1:]}">{page}</a>: {html.escape(what)}</li>' for page, what in _PAGES.items()
            )
            body = f'<!doctype html><html lang="en"><title>longwatch</title><h1>longwatch</h1><ul>{links}</ul></html>\n'
            return Reply(HTTPStatus.OK, [("Content-Type", "text/html; charset=utf-8")], body.encode())
        return text_reply(HTTPStatus.NOT_FOUND, f"nothing here; there are {', '.join(_PAGES)}")

    def _may_see(self, request: Request) -> bool:
        scheme, _, given = request.header("Authorization").partition(" ")
        if not self._settings.username:
            return True
        if scheme.lower() == "basic" and hmac.compare_digest(_digest(given.strip()), self._credentials):
            return True
        # a browser's first request has no user name: that is no attempt
        if scheme and (count := self._refusals.due()):
            logger.warning("%d requests with a wrong user name or password, the last from %s", count, request.client)
        return False

    def _metrics(self, request: Request) -> Reply:
        """Let prometheus-client choose format and compression from what the client accepts."""
        headers: list[tuple[str, str]] = []
        accepted = (wanted for wanted in request.header("Accept").split(",") if not UNKNOWN_VERSION.search(wanted))
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": request.query,
            "HTTP_ACCEPT": ",".join(accepted),
            "HTTP_ACCEPT_ENCODING": request.header("Accept-Encoding"),
        }
        body = b"".join(self._exposition(environ, lambda _, chosen: headers.extend(chosen)))
        return Reply(HTTPStatus.OK, headers, body)


def _digest(text: str) -> bytes:
    """Return something of one length, to be compared in constant time."""
    return hashlib.sha256(text.encode()).digest()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
