"""One attempt to deliver a message to the webhook, and what came of it."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from connectors.message import sign
from connectors.outbox import Message
from connectors.targets import Endpoint, TargetRefusedError, Targets

MAX_RETRY_AFTER_SECONDS = 86_400.0  # a receiver's slip must not silence the alerts for years
MAX_REASON_BYTES = 4096  # of a refusal's body that are read; a success is not read at all
MAX_REASON_CHARACTERS = 300  # of them that are logged


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt."""

    status: int | None  # None: no HTTP answer
    reason: str  # for the log
    retry_after: float = 0.0  # s


def retry_after_seconds(header: str | None, now: float) -> float:
    """Return what a Retry-After header (seconds or an HTTP date) asks for at Unix time `now`, in s; 0 for none."""
    if header is None:
        return 0.0
    text = header.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - now
        except (ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def _time_of(response: http.client.HTTPResponse, now: float) -> float:
    """Return the receiver's own time, by which its dates are meant; `now` where it does not tell."""
    try:
        return email.utils.parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
    except (ValueError, OverflowError):
        return now


class Poster:
    """Posts messages to one receiver, one at a time and each over a connection of its own."""

    def __init__(self, endpoint: Endpoint, targets: Targets, keys: Sequence[bytes], timeout_seconds: float) -> None:
        """`targets` says which addresses the endpoint may lead to; without `keys` messages go unsigned."""
        self._endpoint, self._targets, self._keys, self._timeout = endpoint, targets, keys, timeout_seconds
        self._tls = ssl.create_default_context() if endpoint.tls else None
        self._socket: socket.socket | None = None  # the attempt's that is under way
        self._ended = False

    def post(self, message: Message) -> Answer:
        """Make one attempt, in at most `timeout_seconds` however slowly the receiver drips."""
        timeout = self._timeout
        began = time.monotonic()
        connection = self._connection(timeout)
        deadline = threading.Timer(timeout, self._cut)
        deadline.daemon = True
        deadline.start()
        try:
            connection.sock = self._socket = self._connect(timeout)
            if self._ended:
                self._cut()  # end() came before there was a socket to cut
            connection.request("POST", self._endpoint.target, message.body, self._headers(message))
            response = connection.getresponse()
            if 200 <= response.status < 300:
                return Answer(response.status, "")
            retry_after = retry_after_seconds(response.headers.get("Retry-After"), _time_of(response, time.time()))
            with contextlib.suppress(OSError, http.client.HTTPException):  # the status is known, its text is extra
                said = response.read(MAX_REASON_BYTES).decode("utf-8", "replace")
                shown = self._endpoint.redact(said)[:MAX_REASON_CHARACTERS]
                return Answer(response.status, f"it answered {response.status} {shown!r}", retry_after)
            return Answer(response.status, f"it answered {response.status}", retry_after)
        except TargetRefusedError as error:
            return Answer(None, str(error))
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() - began >= timeout:
                return Answer(None, f"no answer within webhook.timeout_seconds = {timeout:g}")
            return Answer(None, self._endpoint.redact(f"{type(error).__name__}: {error}"))
        finally:
            deadline.cancel()
            self._socket = None
            connection.close()

    def end(self) -> None:
        """Give up the attempt that is under way, and every later one; for any thread."""
        self._ended = True
        self._cut()

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        """Return the protocol without its socket, which `_connect` makes."""
        protocol = http.client.HTTPConnection if self._tls is None else http.client.HTTPSConnection
        return protocol(self._endpoint.host, self._endpoint.port, timeout=timeout)

    def _connect(self, timeout: float) -> socket.socket:
        plain = self._targets.connect(self._endpoint.host, self._endpoint.port, timeout)
        plain.settimeout(timeout)  # `_cut` sees to the whole
        if self._tls is None:
            return plain
        try:
            return self._tls.wrap_socket(plain, server_hostname=self._endpoint.host)
        except BaseException:
            plain.close()
            raise

    def _headers(self, message: Message) -> dict[str, str]:
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "longwatch",
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
        }
        if self._keys:
            headers["webhook-signature"] = sign(self._keys, message.id, timestamp, message.body)
        if self._endpoint.authorization is not None:
            headers["authorization"] = self._endpoint.authorization
        return headers

    def _cut(self) -> None:
        """Wake the attempt that is under way by ending its connection."""
        under_way = self._socket
        if under_way is not None:
            with contextlib.suppress(OSError):
                # the plain socket's shutdown: TLS would wait for its own lock
                socket.socket.shutdown(under_way, socket.SHUT_RDWR)
