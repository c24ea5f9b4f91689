"""One attempt to deliver a message to the webhook, and its result."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass

from connectors.http_client.post import DeadlineError, HttpPoster
from connectors.http_client.url_policy import Endpoint, TargetRefusedError, Targets
from connectors.webhook.outbox import Message
from connectors.webhook.standard_webhooks import sign

MAX_RETRY_AFTER_SECONDS = 86_400.0  # a receiver's mistake must not silence the alerts for years
MAX_REASON_BYTES = 4096  # of a refusal's body that are read; a success is not read at all
MAX_REASON_CHARACTERS = 300  # of them that are logged


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """The result of one attempt."""

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
    """Return the receiver's own time, to which its dates refer; `now` if it sends none."""
    try:
        return email.utils.parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
    except (ValueError, OverflowError):
        return now


class WebhookClient:
    """Delivers messages to one receiver, one at a time."""

    def __init__(self, endpoint: Endpoint, targets: Targets, keys: Sequence[bytes], timeout_seconds: float) -> None:
        """`targets` says which addresses the endpoint may lead to; without `keys` messages go unsigned."""
        self._endpoint, self._keys, self._timeout = endpoint, keys, timeout_seconds
        tls = ssl.create_default_context() if endpoint.tls else None
        host = endpoint.host
        self._poster = HttpPoster(host, endpoint.port, tls, lambda address: targets.refuses(host, address))

    def deliver(self, message: Message) -> DeliveryResult:
        """Make one attempt, in at most `timeout_seconds`."""
        try:
            with self._poster.post(
                self._endpoint.target, message.body, self._headers(message), self._timeout
            ) as response:
                return self._answer(response)
        except TargetRefusedError as error:
            return DeliveryResult(None, str(error))
        except DeadlineError:
            return DeliveryResult(None, f"no answer within webhook.timeout_seconds = {self._timeout:g}")
        except (OSError, http.client.HTTPException) as error:
            return DeliveryResult(None, self._endpoint.redact(f"{type(error).__name__}: {error}"))

    def end(self) -> None:
        """Cancel the attempt in progress and every later one; thread-safe."""
        self._poster.end()

    def _answer(self, response: http.client.HTTPResponse) -> DeliveryResult:
        if 200 <= response.status < 300:
            return DeliveryResult(response.status, "")
        reason = f"it answered {response.status}"
        with contextlib.suppress(OSError, http.client.HTTPException):  # the text is optional
            said = response.read(MAX_REASON_BYTES).decode("utf-8", "replace")
            reason += f" {self._endpoint.redact(said)[:MAX_REASON_CHARACTERS]!r}"
        retry_after = retry_after_seconds(response.headers.get("Retry-After"), _time_of(response, time.time()))
        return DeliveryResult(response.status, reason, retry_after)

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
