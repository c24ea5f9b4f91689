"""A real HTTP server that checks signatures by itself, and alerts to send to it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from connectors.batches import Alert
from connectors.notify.dispatcher import Dispatcher

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
NS = 1_000_000_000


def alert(number: int = 1, status: str = "firing", stream: str = "web-1/cpu") -> Alert:
    started = 1_790_000_000 * NS
    return Alert(
        id=f"alert-{number}",
        stream=stream,
        status=status,
        severity="warning",
        started_at=started,
        ended_at=None if status == "firing" else started + 90 * NS,
        score=5.5,
        threshold=4.5,
        observed={"user": 0.9, "system": 0.1},
        expected={"user": 0.4, "system": 0.1},
        lower={"user": 0.3, "system": 0.0},
        upper={"user": 0.5, "system": 0.2},
        contributions={"user": 0.97, "system": 0.03},
        model_version="prior-1",
        topic="metrics",
        partition=0,
        offset=100 + number,
    )


class Receiver:
    """An HTTP server that answers as `answer` says.

    `hang` keeps the connection open without a word, `half` after half of a head, `drip` answers a byte now and then,
    other texts come before a 204.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answer: Callable[[dict[str, str], bytes], tuple[int, dict[str, str]] | str] = lambda headers, body: (
            204,
            {},
        )
        self._released = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.requests.append((self.path, headers, body))
                answer = receiver.answer(headers, body)
                if answer in ("hang", "half"):
                    if answer == "half":
                        self.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
                    receiver._released.wait(600)
                elif answer == "drip":
                    for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"x" * 10_000:
                        if receiver._released.wait(0.05):
                            return
                        self.wfile.write(bytes([byte]))
                else:
                    if isinstance(answer, str):  # interim answers, as they are
                        self.wfile.write(answer.encode())
                        answer = 204, {}
                    status, extra = answer
                    self.send_response(status)
                    for name, value in extra.items():
                        self.send_header(name, value)
                    self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: Any) -> None:
                pass  # clients that hang up are what some tests are about

        self.server = Server(("127.0.0.1", port), Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for _, headers, _ in self.requests]

    def close(self) -> None:
        self._released.set()
        self.server.shutdown()
        self.server.server_close()


class Counts:
    """What the sink reports to its metrics."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.pending = -1

    def delivery(self, outcome: str) -> None:
        self.outcomes[outcome] += 1

    def waiting(self, count: int) -> None:
        self.pending = count


MakeSink = Callable[..., Dispatcher]


def verify(headers: dict[str, str], body: bytes, secret: str = SECRET) -> bool:
    """Check a signature as a receiver would, from the specification alone."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = headers["webhook-id"].encode() + b"." + headers["webhook-timestamp"].encode() + b"." + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    fresh = abs(time.time() - int(headers["webhook-timestamp"])) < 300
    return fresh and any(
        hmac.compare_digest(signature, f"v1,{expected}") for signature in headers["webhook-signature"].split(" ")
    )
