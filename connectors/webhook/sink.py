"""Alert webhooks, signed as Standard Webhooks, from an outbox that survives crashes and receivers that are down.

What an attempt's answer means:

| answer                       | counted as  | what follows                                                     |
|------------------------------|-------------|------------------------------------------------------------------|
| 2xx                          | `delivered` | everything that waited for the receiver is due now               |
| none, 408, 425, 429, 502-504 | `retried`   | the receiver is unavailable: all deliveries pause and back off   |
| other 5xx                    | `retried`   | likewise, but alone once others get through                       |
| 3xx, other 4xx               | `failed`    | this message backs off alone and no longer holds back its stream |
| 410                          | `failed`    | nothing more is sent until the daemon is started again           |

A message is tried until it is older than `max_age_seconds`, then it is `dropped`: a person corrects a wrong path or
secret (404, 401), and the alerts should still be there then. Redirects are never followed, so that a receiver
cannot send us elsewhere; `http_client/url_policy.py` says which addresses may be connected to. A crash between a
receiver's 2xx and our record of it sends the message once more, with the same `webhook-id`, by which receivers
recognise it.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from connectors.batches import Alert
from connectors.common.background import OngoingProblem
from connectors.webhook.delivery import DeliveryResult, WebhookClient
from connectors.webhook.outbox import MAX_PENDING, Message, NewMessage, Outbox, OutboxError, OutboxFullError
from connectors.webhook.settings import WebhookSettings
from connectors.webhook.standard_webhooks import webhook_body, webhook_id

logger = logging.getLogger(__name__)

OUTBOX_FILE = "outbox.sqlite3"

BACKOFF_FACTOR = 4.0  # 5 s, 20 s, 80 s, 5 min, 21 min, then the cap: a short outage costs a short wait
RETRY_CAP_SECONDS = 1800.0  # so late an alert may come after an outage of hours or days, at two requests an hour
STOP_SECONDS = 1.5  # close() returns within 2 s, whatever the receiver does
MAX_IN_MEMORY = 1_000  # alerts that wait in memory for the disk, some MB; then no more should come
MAX_TOGETHER = 100  # outcomes recorded in one transaction
TOGETHER_SECONDS = 0.25  # the longest delay of that: what is not recorded when the process is killed is sent again
IDLE_SECONDS = 60.0  # the thread is woken by write(); this only bounds what a lost wake-up would cost

# A message that makes the receiver fail (500) holds back its stream no longer than this many attempts, about two hours
# by default, where no other stream's message shows that the receiver works.
MAX_HOLDING_ATTEMPTS = 12

UNAVAILABLE = frozenset({0, 408, 425, 429, 502, 503, 504})  # the receiver is, or a proxy in front of it; 0: no answer


class WebhookSink:
    """Takes alerts into the outbox, and delivers them from there in a separate thread, each stream's in order."""

    def __init__(
        self,
        settings: WebhookSettings,
        directory: Path,
        *,
        on_delivery: Callable[[str], object] = lambda outcome: None,
        on_pending: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Open the outbox in `directory` and begin to deliver what waits there.

        `on_delivery` is called with each attempt's outcome (`delivered`, `retried`, `failed`, `dropped`), `on_pending`
        with the number of alerts that wait; both from any thread. Raises OutboxError, ValueError (no url).
        """
        self._settings = settings
        self._client = WebhookClient(settings)
        self._endpoint = self._client.endpoint
        self._on_delivery = on_delivery
        self._on_pending = on_pending
        self._outbox = Outbox(directory / OUTBOX_FILE)
        self._kept: list[NewMessage] = []  # not in the outbox yet
        self._keeping = threading.Lock()  # for a moment
        self._storing = threading.Lock()  # while the disk is written
        self._unrecorded: list[tuple[int, str]] = []  # outcomes not in the outbox yet, by message
        # Ages are measured by a clock that does not jump: setting it forward by days would drop everything that waits
        self._ahead = time.time() - time.monotonic()
        self._failures = 0  # since the receiver last took something: how long the pause is
        self._paused_until = 0.0  # monotonic, s
        self._endpoint_gone = False
        self._logged = ""  # the problem that the log already knows of
        self.problem = OngoingProblem(2 * IDLE_SECONDS)  # what stops deliveries, other than an unreachable receiver
        self._stop = threading.Event()
        self._wake = threading.Event()
        waiting = self._outbox.pending
        on_pending(waiting)
        signed = "signed" if self._client.keys else "unsigned, since webhook.secret is empty"
        logger.info("alerts go to the webhook at %s, %s; %d pending from the last run", self._endpoint, signed, waiting)
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def write(self, alerts: Sequence[Alert]) -> None:
        """Take alerts, without waiting for the disk: they are in the outbox for good once `flush` has returned.

        Those that it has had before are left out.
        """
        if not alerts:
            return
        messages = [NewMessage(webhook_id(alert), alert.stream, webhook_body(alert)) for alert in alerts]
        with self._keeping:
            self._kept += messages
        self._wake.set()

    def flush(self) -> None:
        """Return when all alerts are in the outbox. Raises OutboxError.

        It is OutboxFullError where they cannot be written at present; they are kept then.
        """
        with self._storing:
            with self._keeping:
                messages = self._kept.copy()
            if not messages:
                return
            try:
                dropped = self._outbox.add(messages, self._now())
            except OutboxFullError:
                self._on_pending(self._outbox.pending + len(messages))
                raise
            with self._keeping:
                del self._kept[: len(messages)]
        for message_id in dropped:
            logger.error("alert %s was dropped: more than %d are pending", message_id, MAX_PENDING)
            self._on_delivery("dropped")
        self._on_pending(self._outbox.pending)
        self._wake.set()

    @property
    def full(self) -> bool:
        """Whether so many alerts wait to be written to the outbox that no more should come."""
        return len(self._kept) > MAX_IN_MEMORY

    def position(self) -> dict[str, int]:
        """Return nothing: an alert that is written again after a crash is known by its id."""
        return {}

    def restore(self, position: Mapping[str, int]) -> None:
        """Do nothing, see `position`."""

    def close(self) -> None:
        """Stop within 2 s; what was not delivered waits in the outbox for the next start."""
        self._stop.set()
        self._wake.set()
        self._client.end()
        self._thread.join(STOP_SECONDS)
        with contextlib.suppress(OutboxError):
            self._record_outcomes()
            self.flush()
        if self._kept:
            logger.error(
                "%d alerts could not be written to %s: they will be raised again from their events",
                len(self._kept),
                self._outbox.path,
            )
        waiting = self._outbox.pending
        if waiting:
            logger.info("%d alerts stay in %s for the next start", waiting, self._outbox.path)
        self._outbox.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                wait = self._step()
            except OutboxError as error:
                if self._stop.is_set():
                    return  # close() gave up waiting for this attempt
                self._log_once("outbox", str(error))
                self.problem.report(str(error))
                wait = self._settings.retry_base_seconds
            except Exception as error:  # deliveries must continue whatever fails
                logger.exception("delivery of an alert to %s failed unexpectedly", self._endpoint)
                self.problem.report(f"the delivery fails unexpectedly: {type(error).__name__}")
                wait = self._settings.retry_base_seconds
            self._wake.wait(wait)
            self._wake.clear()

    def _step(self) -> float:
        """Take what was written into the outbox, and deliver what is due. Returns how long nothing is to be done, in s.

        Outcomes are recorded together, so that a burst of alerts does not cost the disk a transaction each.
        """
        self._record_outcomes()  # left over from a full disk: those messages must not be sent twice
        with contextlib.suppress(OutboxFullError):
            self.flush()
        now = time.monotonic()
        if self._endpoint_gone:
            self.problem.report(f"the webhook at {self._endpoint} answered 410 Gone: nothing more is sent there")
            return IDLE_SECONDS
        if now < self._paused_until:
            return self._paused_until - now
        messages = self._outbox.next(now, MAX_TOGETHER)
        if not messages:
            return min(self._outbox.next_due(now) - now, IDLE_SECONDS)
        for message in messages:
            answer = self._client.deliver(message)
            if not answer.status and self._stop.is_set():
                break  # interrupted by close(): says nothing about the receiver
            if not 200 <= answer.status < 300:
                self._record_outcomes()
                self._failed(message, answer)
                break
            self._delivered(message)
            if self._stop.is_set() or time.monotonic() - now > TOGETHER_SECONDS:
                break
        self._record_outcomes()
        self._on_pending(self._outbox.pending)
        return 0.0

    def _record_outcomes(self) -> None:
        """Write outcomes to the outbox."""
        if self._unrecorded:
            self._outbox.finish(self._unrecorded)
            self._unrecorded = []

    def _now(self) -> float:
        return time.monotonic() + self._ahead

    def _delivered(self, message: Message) -> None:
        self._on_delivery("delivered")
        self._unrecorded.append((message.sequence, "delivered"))
        logger.debug("alert %s was delivered to %s", message.id, self._endpoint)
        if self._failures:
            # A message that failed no more often than the outage lasted failed because of it. One that failed more
            # often failed while others got through, and keeps its own backoff.
            self._outbox.retry_now(self._failures)
        if self._logged:
            logger.info("the webhook at %s takes alerts again; %d pending", self._endpoint, self._outbox.pending)
        self._failures = 0
        self._logged = ""

    def _failed(self, message: Message, answer: DeliveryResult) -> None:
        now = time.monotonic()
        status = answer.status
        attempts = message.attempts + 1
        if status == 410:
            self._endpoint_gone = True
            self._on_delivery("failed")
            logger.error(
                "the webhook at %s answered 410 Gone: nothing more is sent there. %d alerts are pending in the outbox; "
                "set webhook.url to where they should go, or empty, and restart",
                self._endpoint,
                self._outbox.pending,
            )
            return
        unavailable = status in UNAVAILABLE
        out_of_order = refused = status < 500 and not unavailable
        due = now + self._backoff(attempts)
        if not refused:
            self._failures += 1
            self._paused_until = now + max(self._backoff(self._failures), answer.retry_after)
            out_of_order = attempts > self._failures or (not unavailable and attempts >= MAX_HOLDING_ATTEMPTS)
            if not out_of_order:
                due = self._paused_until
        self._log_once(str(status), f"the webhook at {self._endpoint} does not take alerts: {answer.reason}")
        if self._now() - message.created > self._settings.max_age_seconds:
            self._on_delivery("dropped")
            self._unrecorded.append((message.sequence, "dropped"))
            logger.error(
                "alert %s was dropped: not delivered within webhook.max_age_seconds; last: %s",
                message.id,
                answer.reason,
            )
            return
        self._outbox.retry(message.sequence, due, out_of_order=out_of_order)
        self._on_delivery("failed" if refused else "retried")

    def _backoff(self, failures: int) -> float:
        """Return the wait after that many failures, in s: exponential, with full jitter."""
        longest = self._settings.retry_base_seconds * BACKOFF_FACTOR ** min(failures - 1, 20)
        return random.uniform(0.0, min(longest, RETRY_CAP_SECONDS))

    def _log_once(self, kind: str, problem: str) -> None:
        """Log a problem when it begins or changes, not at every attempt."""
        if kind != self._logged:
            logger.warning("%s; alerts stay in the outbox and are retried", problem)
            self._logged = kind
