"""A receiver of webhooks that checks their signatures by its own reading of the specification."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Delivery(NamedTuple):
    """A message that came with a good signature."""

    id: str
    body: bytes

    @property
    def alert(self) -> dict[str, Any]:
        """The alert's record."""
        found: dict[str, Any] = json.loads(self.body)["data"]
        return found


class Receiver:
    """An HTTP server that takes what is signed as Standard Webhooks ask, by its own reading of that text."""

    def __init__(self) -> None:
        self.taken: list[Delivery] = []
        self.refused: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:  # the sender was killed meanwhile
                    return
                problem = _problem(dict(self.headers), body)
                if problem:
                    receiver.refused.append(problem)
                else:
                    receiver.taken.append(Delivery(self.headers["webhook-id"], body))
                self.send_response(401 if problem else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/alerts"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def ids(self) -> list[str]:
        """The ids in the order of their coming, repeats included."""
        return [delivery.id for delivery in list(self.taken)]


def _problem(headers: Mapping[str, str], body: bytes) -> str:
    """Return what a receiver would refuse a message for, "" for nothing."""
    headers = {name.lower(): value for name, value in headers.items()}
    message_id, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not message_id or not stamp.isdigit() or abs(time.time() - int(stamp)) > 300:
        return f"id {message_id!r}, timestamp {stamp!r}"
    digest = hmac.new(KEY, message_id.encode() + b"." + stamp.encode() + b"." + body, hashlib.sha256).digest()
    signatures = headers.get("webhook-signature", "").split()
    if not any(hmac.compare_digest(found, "v1," + base64.b64encode(digest).decode()) for found in signatures):
        return f"{message_id}: no signature fits, of {len(signatures)}"
    return ""
