"""Requests to one URL of a receiver, and what its answers mean."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import ssl
import time
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from connectors.http_client.post import DeadlineError, HttpPoster
from connectors.http_client.url_policy import TargetRefusedError, Targets, parse_url
from connectors.notify.settings import ReceiverSettings, parse_headers

MAX_RETRY_AFTER_SECONDS = 86_400.0  # a receiver's mistake must not silence the alerts for years
MAX_REASON_BYTES = 4096  # of a refusal's body that are read; a success is not read at all
MAX_REASON_CHARACTERS = 300  # of them that are logged
MAX_ANSWER_BYTES = 65_536  # of a success, where the receiver's answer matters


class DeliveryResult(NamedTuple):
    """The result of one attempt."""

    status: int  # 0: no HTTP answer
    reason: str  # for the log
    retry_after: float = 0.0  # s
    body: bytes = b""  # of a success, where it was asked for

    @property
    def delivered(self) -> bool:
        """Whether it was taken."""
        return 200 <= self.status < 300


def retry_after_seconds(header: str, now: float) -> float:
    """Return what a Retry-After header (seconds or an HTTP date) asks for at Unix time `now`, in s; 0 for none."""
    text = header.strip()
    seconds = float(text) if text.isascii() and text.isdigit() else _http_date(text, now) - now
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def _http_date(text: str, otherwise: float) -> float:
    """Return a date as Unix time, s; `otherwise` where it is none."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return otherwise


class Client:
    """Posts JSON to one URL, one request at a time."""

    def __init__(self, name: str, settings: ReceiverSettings, url: str) -> None:
        """`name` is the receiver's. Raises ValueError."""
        self.endpoint = endpoint = parse_url(url)
        self._name, self._timeout, self._headers = name, settings.timeout_seconds, parse_headers(settings.headers)
        tls = ssl.create_default_context() if endpoint.tls else None
        targets = Targets(settings.allowed_hosts, f"receivers.{name}.allowed_hosts")
        self._poster = HttpPoster(endpoint.host, endpoint.port, tls, partial(targets.refuses, endpoint.host))

    def post(
        self, body: bytes, headers: Mapping[str, str] | None = None, path: str = "", *, answers: bool = False
    ) -> DeliveryResult:
        """Make one attempt, in at most `timeout_seconds`; `path` follows the URL's own, `answers`: read its body."""
        endpoint = self.endpoint
        sent = {"content-type": "application/json", "user-agent": "longwatch", **(headers or {})}
        if endpoint.authorization is not None:
            sent.setdefault("authorization", endpoint.authorization)
        target = f"{endpoint.target.rstrip('/')}{path}" if path else endpoint.target
        try:
            with self._poster.post(target, body, self._headers | sent, self._timeout) as response:
                return self._answer(response, answers=answers)
        except TargetRefusedError as error:
            return DeliveryResult(0, str(error))
        except DeadlineError:
            return DeliveryResult(0, f"no answer within receivers.{self._name}.timeout_seconds = {self._timeout:g}")
        except (OSError, http.client.HTTPException) as error:
            return DeliveryResult(0, endpoint.redact(f"{type(error).__name__}: {error}"))

    def end(self) -> None:
        """Cancel the attempt in progress and every later one; thread-safe."""
        self._poster.end()

    def _answer(self, response: http.client.HTTPResponse, *, answers: bool) -> DeliveryResult:
        if 200 <= response.status < 300:
            return DeliveryResult(response.status, "", body=response.read(MAX_ANSWER_BYTES) if answers else b"")
        reason = f"it answered {response.status}"
        with contextlib.suppress(OSError, http.client.HTTPException):  # the text is optional
            said = response.read(MAX_REASON_BYTES).decode("utf-8", "replace")
            reason += f" {self.endpoint.redact(said)[:MAX_REASON_CHARACTERS]!r}"
        # its dates refer to its own clock
        retry_after = retry_after_seconds(
            response.headers.get("Retry-After", ""), _http_date(response.headers.get("Date", ""), time.time())
        )
        return DeliveryResult(response.status, reason, retry_after)
