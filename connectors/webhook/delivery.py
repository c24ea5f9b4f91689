"""One attempt to deliver a message to the webhook, and its result."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import ssl
import time
from functools import partial
from typing import NamedTuple

from connectors.http_client.post import DeadlineError, HttpPoster
from connectors.http_client.url_policy import TargetRefusedError, Targets, parse_url
from connectors.webhook.outbox import Message
from connectors.webhook.settings import WebhookSettings, parse_secrets
from connectors.webhook.standard_webhooks import sign

MAX_RETRY_AFTER_SECONDS = 86_400.0  # a receiver's mistake must not silence the alerts for years
MAX_REASON_BYTES = 4096  # of a refusal's body that are read; a success is not read at all
MAX_REASON_CHARACTERS = 300  # of them that are logged


class DeliveryResult(NamedTuple):
    """The result of one attempt."""

    status: int  # 0: no HTTP answer
    reason: str  # for the log
    retry_after: float = 0.0  # s


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


class WebhookClient:
    """Delivers messages to one receiver, one at a time."""

    def __init__(self, settings: WebhookSettings) -> None:
        self.endpoint = endpoint = parse_url(settings.url.get_secret_value())
        self.keys = parse_secrets(settings.secret.get_secret_value())
        self._timeout = settings.timeout_seconds
        tls = ssl.create_default_context() if endpoint.tls else None
        targets = Targets(settings.allowed_hosts)
        self._poster = HttpPoster(endpoint.host, endpoint.port, tls, partial(targets.refuses, endpoint.host))

    def deliver(self, message: Message) -> DeliveryResult:
        """Make one attempt, in at most `timeout_seconds`."""
        request = self.endpoint.target, message.body, self._headers(message)
        try:
            with self._poster.post(*request, self._timeout) as response:
                return self._answer(response)
        except TargetRefusedError as error:
            return DeliveryResult(0, str(error))
        except DeadlineError:
            return DeliveryResult(0, f"no answer within webhook.timeout_seconds = {self._timeout:g}")
        except (OSError, http.client.HTTPException) as error:
            return DeliveryResult(0, self.endpoint.redact(f"{type(error).__name__}: {error}"))

    def end(self) -> None:
        """Cancel the attempt in progress and every later one; thread-safe."""
        self._poster.end()

    def _answer(self, response: http.client.HTTPResponse) -> DeliveryResult:
        if 200 <= response.status < 300:
            return DeliveryResult(response.status, "")
        reason = f"it answered {response.status}"
        with contextlib.suppress(OSError, http.client.HTTPException):  # the text is optional
            said = response.read(MAX_REASON_BYTES).decode("utf-8", "replace")
            reason += f" {self.endpoint.redact(said)[:MAX_REASON_CHARACTERS]!r}"
        # its dates refer to its own clock
        retry_after = retry_after_seconds(
            response.headers.get("Retry-After", ""), _http_date(response.headers.get("Date", ""), time.time())
        )
        return DeliveryResult(response.status, reason, retry_after)

    def _headers(self, message: Message) -> dict[str, str]:
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "longwatch",
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
        }
        if self.keys:
            headers["webhook-signature"] = sign(self.keys, message.id, timestamp, message.body)
        if self.endpoint.authorization is not None:
            headers["authorization"] = self.endpoint.authorization
        return headers
