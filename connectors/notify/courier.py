"""What brings the outbox's messages to one receiver, in a thread of its own, so that none holds back another.

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
import math
import random
import threading
import time
from collections.abc import Callable, Mapping

import msgspec

from connectors.common.background import OngoingProblem
from connectors.notify.client import DeliveryResult
from connectors.notify.outbox import Message, Outbox, OutboxError, OutboxFullError
from connectors.notify.receivers import Receiver
from connectors.notify.settings import ReceiverSettings

logger = logging.getLogger(__name__)

OUTCOMES = ("delivered", "retried", "failed", "dropped")

BACKOFF_FACTOR = 4.0  # 5 s, 20 s, 80 s, 5 min, 21 min, then the cap: a short outage costs a short wait
STOP_SECONDS = 1.5  # a stop is over within 2 s, whatever the receiver does
MAX_TOGETHER = 100  # outcomes recorded in one transaction
TOGETHER_SECONDS = 0.25  # the longest delay of that: what is not recorded when the process is killed is sent again
IDLE_SECONDS = 60.0  # the thread is woken by what is added; this only bounds what a lost wake-up would cost

# A message that makes the receiver fail (500) holds back its stream no longer than this many attempts, about two hours
# by default, where no other stream's message shows that the receiver works.
MAX_HOLDING_ATTEMPTS = 12

UNAVAILABLE = frozenset({0, 408, 425, 429, 502, 503, 504})  # the receiver is, or a proxy in front of it; 0: no answer


class Courier:
    """Delivers one receiver's messages, each stream's and each incident's in order."""

    def __init__(
        self,
        name: str,
        settings: ReceiverSettings,
        receiver: Receiver,
        outbox: Outbox,
        take: Callable[[], None],
        on_delivery: Callable[[str], object],
        on_pending: Callable[[int], object],
        former: Courier | None = None,
    ) -> None:
        """Begin to deliver what waits.

        `take` brings what is in memory into the outbox. `on_delivery` and `on_pending` are called from any thread.
        `former` is the one that had this receiver before, and was asked to `retire`: it ends first, so that nothing is
        sent twice.
        """
        self._take, self._former = take, former
        self._memory = f"{name} {settings.type}"  # what one type remembers, another cannot read
        self.name, self._settings, self._receiver, self._outbox = name, settings, receiver, outbox
        self._what = f"receiver {name} at {receiver.place.partition(', signed')[0].partition(', unsigned')[0]}"
        self._on_delivery, self._on_pending = on_delivery, on_pending
        self._unrecorded: list[tuple[int, str]] = []  # outcomes not in the outbox yet, by message
        # Ages are measured by a clock that does not jump: setting it forward by days would drop everything that waits
        self._ahead = time.time() - time.monotonic()
        self._failures = 0  # since the receiver last took something: how long the pause is
        self._paused_until = 0.0  # monotonic, s
        self._remind_due = 0.0 if math.isfinite(receiver.remind_seconds) else math.inf  # monotonic, s
        self._endpoint_gone = False
        self._logged = ""  # the problem that the log already knows of
        self.problem = OngoingProblem(2 * IDLE_SECONDS)  # what stops deliveries, other than an unreachable receiver
        self._stop = threading.Event()
        self._wake = threading.Event()
        waiting = outbox.pending(name)
        on_pending(waiting)
        logger.info("receiver %s: %s at %s; %d pending from before", name, settings.type, receiver.place, waiting)
        self._thread = threading.Thread(target=self._run, name=f"notify-{name}", daemon=True)
        self._thread.start()

    # -- what its receiver remembers -----------------------------------------------------------------------------------

    def recall(self) -> Mapping[str, bytes]:
        """Return what the receiver remembers, by incident."""
        return self._outbox.recall(self._memory, self._now())

    def remember(self, incident: str, value: bytes, seconds: float) -> None:
        """Keep something for the receiver for so long."""
        self._outbox.remember(self._memory, incident, value, self._now() + seconds)

    # -- from outside --------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Look for new messages."""
        self._wake.set()

    def dropped(self, message_id: str, why: str) -> None:
        """Count and log a message that was given up."""
        logger.error("%s was dropped, not told to receiver %s: %s", message_id, self.name, why)
        self._on_delivery("dropped")

    def pending(self, more: int = 0) -> None:
        """Report how many messages wait, `more` that are not in the outbox yet."""
        self._on_pending(self._outbox.pending(self.name) + more)

    def retire(self) -> None:
        """Ask the thread to end once the attempt in progress is over, and its outcome recorded."""
        self._stop.set()
        self._wake.set()

    def stop(self) -> None:
        """Ask the thread to end, and end the attempt in progress."""
        self.retire()
        self._receiver.end()
        if self._former is not None:
            self._former.stop()

    def join(self, seconds: float | None = None) -> None:
        """Wait for the thread's end for so long, None: for as long as it takes; and record what it has done."""
        self._thread.join(seconds)
        with contextlib.suppress(OutboxError):
            self._record_outcomes()

    @property
    def alive(self) -> bool:
        """Whether it delivers."""
        return self._thread.is_alive()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._former is not None:
            self._succeed(self._former)
            self._former = None
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
                logger.exception("delivery to %s failed unexpectedly", self._what)
                self.problem.report(f"the delivery fails unexpectedly: {type(error).__name__}")
                wait = self._settings.retry_base_seconds
            self._wake.wait(wait)
            self._wake.clear()

    def _succeed(self, former: Courier) -> None:
        """Wait for the former one's end, and try all that waits anew: what kept it there may be mended."""
        former.join()
        self._unrecorded = former._unrecorded
        with contextlib.suppress(OutboxError):
            self._outbox.renew(self.name)

    def _step(self) -> float:
        """Take what was written into the outbox, and deliver what is due. Returns how long nothing is to be done, in s.

        Outcomes are recorded together, so that a burst of alerts does not cost the disk a transaction each.
        """
        self._record_outcomes()  # left over from a full disk: those messages must not be sent twice
        with contextlib.suppress(OutboxFullError):
            self._take()
        now = time.monotonic()
        if self._endpoint_gone:
            self.problem.report(f"{self._what} answered 410 Gone: nothing more is sent there")
            return IDLE_SECONDS
        if now >= self._remind_due:
            self._remind(now)
        if now < self._paused_until:
            return min(self._paused_until, self._remind_due) - now
        messages = self._outbox.next(self.name, now, MAX_TOGETHER)
        if not messages:
            return max(min(self._outbox.next_due(self.name, now) - now, self._remind_due - now, IDLE_SECONDS), 0.0)
        for message in messages:
            try:
                answer = self._receiver.deliver(message, self)
            except msgspec.MsgspecError:
                self._unrecorded.append((message.sequence, "dropped"))
                self.dropped(message.id, f"it waited for a receiver of another type than {self._settings.type}")
                continue
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
        self.pending()
        return 0.0

    def _remind(self, now: float) -> None:
        """Tell again what has to be; where that is taken, what waits is due, too."""
        self._remind_due = now + self._receiver.remind_seconds
        answer = self._receiver.remind(self)
        if answer is None or self._stop.is_set():
            return
        if not answer.delivered:
            self._log_once(str(answer.status), f"{self._what} takes no reminders: {answer.reason}")
        elif self._failures:
            self._outbox.retry_now(self.name, self._failures)
            self._paused_until = 0.0

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
        logger.debug("%s was delivered to %s", message.id, self._what)
        if self._failures:
            # A message that failed no more often than the outage lasted failed because of it. One that failed more
            # often failed while others got through, and keeps its own backoff.
            self._outbox.retry_now(self.name, self._failures)
        if self._logged:
            logger.info("%s takes messages again; %d pending", self._what, self._outbox.pending(self.name))
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
                "%s answered 410 Gone: nothing more is sent there. %d messages are pending in the outbox; "
                "set receivers.%s.url to where they should go, or take the section away, and restart",
                self._what,
                self._outbox.pending(self.name),
                self.name,
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
        self._log_once(str(status), f"{self._what} does not take messages: {answer.reason}")
        if self._now() - message.created > self._settings.max_age_seconds:
            self._unrecorded.append((message.sequence, "dropped"))
            self.dropped(message.id, f"older than receivers.{self.name}.max_age_seconds; last: {answer.reason}")
            return
        self._outbox.retry(message.sequence, due, out_of_order=out_of_order)
        self._on_delivery("failed" if refused else "retried")

    def _backoff(self, failures: int) -> float:
        """Return the wait after that many failures, in s: exponential, with full jitter."""
        longest = self._settings.retry_base_seconds * BACKOFF_FACTOR ** min(failures - 1, 20)
        return random.uniform(0.0, min(longest, self._receiver.retry_cap_seconds))

    def _log_once(self, kind: str, problem: str) -> None:
        """Log a problem when it begins or changes, not at every attempt."""
        if kind != self._logged:
            logger.warning("%s; messages stay in the outbox and are retried", problem)
            self._logged = kind
