"""All receivers as one: what is told goes into one outbox on disk, and from there to each receiver by its courier."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import translate
from pathlib import Path
from typing import NamedTuple

import msgspec

from connectors.batches import Alert
from connectors.common.background import OngoingProblem
from connectors.json_records import IncidentRecord
from connectors.notify.alertmanager import Alertmanager, AlertmanagerWebhook
from connectors.notify.courier import STOP_SECONDS, Courier
from connectors.notify.outbox import (
    INCIDENT,
    MAX_PENDING,
    NewMessage,
    Outbox,
    OutboxError,
    OutboxFullError,
)
from connectors.notify.pagerduty import PagerDuty
from connectors.notify.receivers import Receiver, Webhook
from connectors.notify.settings import MAX_AGE_SECONDS, ReceiverSettings
from connectors.notify.slack import Slack
from connectors.notify.standard_webhooks import header_id, webhook_body, webhook_id

logger = logging.getLogger(__name__)

OUTBOX_FILE = "outbox.sqlite3"
FORMER_NAME = "webhook"  # the receiver that is likely the one from when there was but one
MAX_REVISIONS = 1_000  # of an incident that is over, by which receivers are found that know of it
MAX_IN_MEMORY = 1_000  # messages that wait in memory for the disk, some MB; then no more should come

_KINDS: Mapping[str, Callable[[str, ReceiverSettings, str], Receiver]] = {
    "webhook": Webhook,
    "alertmanager": Alertmanager,
    "pagerduty": PagerDuty,
    "slack": Slack,
    "alertmanager-webhook": AlertmanagerWebhook,
}


class Told(NamedTuple):
    """A state of an incident, and the streams that it has."""

    record: IncidentRecord
    streams: Collection[str]
    receivers: Collection[str] | None = None  # the only ones that are told of it; None: all


class _Filter:
    """Of what a receiver is told."""

    def __init__(self, settings: ReceiverSettings) -> None:
        self.tell = settings.tell
        self._critical = settings.least_severity == "critical"
        self._pattern = re.compile("|".join(map(translate, settings.streams))) if settings.streams else None

    def __call__(self, severity: str, streams: Collection[str]) -> bool:
        """Whether it is told of what has this severity and these streams."""
        if self._critical and severity != "critical":
            return False
        return self._pattern is None or any(map(self._pattern.match, streams))


def make_receiver(name: str, settings: ReceiverSettings, external_url: str = "") -> Receiver:
    """Return a receiver. Raises ValueError."""
    return _KINDS[settings.type](name, settings, external_url)


def _filters(receivers: Mapping[str, ReceiverSettings]) -> dict[str, _Filter]:
    return {name: _Filter(settings) for name, settings in receivers.items()}


def _revision(record: IncidentRecord, revision: int) -> str:
    """Return the id of a message that tells a revision of an incident."""
    return header_id(f"{record.id}-{revision}")


class Dispatcher:
    """Takes states of incidents, and alerts, into the outbox; couriers deliver them from there."""

    def __init__(
        self,
        receivers: Mapping[str, ReceiverSettings],
        directory: Path,
        external_url: str = "",
        *,
        on_delivery: Callable[[str, str], object] = lambda receiver, outcome: None,
        on_pending: Callable[[str, int], object] = lambda receiver, count: None,
    ) -> None:
        """Open the outbox in `directory` and begin to deliver what waits there.

        `on_delivery` is called with a receiver and each attempt's outcome (`courier.OUTCOMES`), `on_pending` with a
        receiver and the number of messages that wait for it; both from any thread. Raises OutboxError, ValueError.
        """
        self._external_url, self._on_delivery, self._on_pending = external_url, on_delivery, on_pending
        self._settings, self._filters = dict(receivers), _filters(receivers)
        self._couriers: dict[str, Courier] = {}
        self._retired: list[Courier] = []  # of receivers that are told no more
        made = self._made(receivers)
        self._outbox = Outbox(directory / OUTBOX_FILE)
        self._kept: list[NewMessage] = []  # not in the outbox yet
        self._keeping = threading.Lock()  # for a moment
        self._storing = threading.Lock()  # while the disk is written
        try:
            self._adopt()
            self._couriers = {name: self._courier(name, settings, made[name]) for name, settings in receivers.items()}
        except BaseException:
            self._outbox.close()
            raise

    def _made(self, receivers: Mapping[str, ReceiverSettings]) -> dict[str, Receiver]:
        return {name: make_receiver(name, settings, self._external_url) for name, settings in receivers.items()}

    def _courier(
        self, name: str, settings: ReceiverSettings, receiver: Receiver, former: Courier | None = None
    ) -> Courier:
        return Courier(
            name,
            settings,
            receiver,
            self._outbox,
            take=self.flush,
            on_delivery=lambda outcome: self._on_delivery(name, outcome),
            on_pending=lambda count: self._on_pending(name, count),
            former=former,
        )

    def use(self, receivers: Mapping[str, ReceiverSettings]) -> None:
        """Tell these from now on; for the thread that writes alerts.

        Those that stay as they are go on undisturbed. What waits for one that changes is sent by its new settings, once
        the attempt in progress is over; what waits for one that is gone stays, for it may come back.
        """
        changed = {name: of for name, of in receivers.items() if of != self._settings.get(name)}
        made, former = self._made(changed), self._couriers
        leaving = [courier for name, courier in former.items() if name in changed or name not in receivers]
        for courier in leaving:
            courier.retire()
        # each whole, one after the other: other threads read them
        self._couriers = {
            name: self._courier(name, of, made[name], former.get(name)) if name in changed else former[name]
            for name, of in receivers.items()
        }
        self._settings, self._filters = dict(receivers), _filters(receivers)
        self._retired = [courier for courier in (*self._retired, *leaving) if courier.alive]
        for name in former.keys() - receivers.keys():
            if waiting := self._outbox.pending(name):
                logger.warning("%d messages wait for receiver %s, which is not set any more", waiting, name)

    @property
    def problems(self) -> dict[str, OngoingProblem]:
        """What stops deliveries, other than an unreachable receiver; by receiver."""
        return {name: courier.problem for name, courier in self._couriers.items()}

    def _adopt(self) -> None:
        """Find who is told what waits from former settings."""
        webhooks = [name for name, settings in self._settings.items() if settings.type == "webhook"]
        heir = FORMER_NAME if FORMER_NAME in webhooks else next(iter(webhooks), None)
        longest = max((of.max_age_seconds for of in self._settings.values()), default=MAX_AGE_SECONDS)
        for receiver, count in self._outbox.adopt(self._settings.keys(), heir, time.time() - longest).items():
            logger.error(
                "%d messages were dropped: they waited too long for receiver %s, which is not set any more",
                *(count, receiver or FORMER_NAME),
            )

    def tell(self, told: Sequence[Told]) -> None:
        """Take states of incidents, without waiting for the disk: they are durable once `flush` has returned.

        A revision that was told before is left out.
        """
        messages = []
        takers = {name: takes for name, takes in self._filters.items() if takes.tell == "incidents"}
        for record, streams, only in told:
            body = msgspec.json.encode(record)
            messages += [
                NewMessage(name, _revision(record, record.revision), record.id, body, INCIDENT)
                for name, takes in takers.items()
                if ((only is None or name in only) and takes(record.severity, streams)) or self._ends_for(name, record)
            ]
        self._keep(messages)

    def _ends_for(self, name: str, record: IncidentRecord) -> bool:
        """Whether a receiver was told of an incident that is over now: by its present settings it might not hear."""
        if record.state != "resolved":
            return False
        former = range(max(record.revision - MAX_REVISIONS, 0), record.revision)
        return self._outbox.knows(name, [_revision(record, revision) for revision in former])

    def write(
        self, alerts: Sequence[Alert], only: Callable[[Alert], Collection[str] | None] = lambda alert: None
    ) -> None:
        """Take alerts for those who are told of each, likewise; `only` returns who is told of one, None: all."""
        takers = {name: takes for name, takes in self._filters.items() if takes.tell == "alerts"}
        if takers:
            self._keep(
                [
                    NewMessage(name, webhook_id(alert), alert.stream, webhook_body(alert))
                    for alert in alerts
                    for of_alert in (only(alert),)
                    for name, takes in takers.items()
                    if (of_alert is None or name in of_alert) and takes(alert.severity, (alert.stream,))
                ]
            )

    def _keep(self, messages: Sequence[NewMessage]) -> None:
        if messages:
            with self._keeping:
                self._kept += messages
            self._wake({message.receiver for message in messages})

    def flush(self) -> None:
        """Return when all that was taken is in the outbox. Raises OutboxError.

        It is OutboxFullError where it cannot be written at present; it is kept then.
        """
        with self._storing:
            with self._keeping:
                messages = self._kept.copy()
            if not messages:
                return
            waiting = Counter(message.receiver for message in messages)
            try:
                dropped = self._outbox.add(messages, time.time())
            except OutboxFullError:
                couriers = self._couriers
                for name, count in waiting.items():
                    if name in couriers:
                        couriers[name].pending(count)
                raise
            with self._keeping:
                del self._kept[: len(messages)]
        couriers = self._couriers
        for name, message_id in dropped:
            if name in couriers:
                couriers[name].dropped(message_id, f"more than {MAX_PENDING} are pending")
        self._wake(waiting, report=True)

    def _wake(self, names: Iterable[str], *, report: bool = False) -> None:
        couriers = self._couriers
        for name in names:
            if (courier := couriers.get(name)) is not None:  # else it was taken away just now
                if report:
                    courier.pending()
                courier.wake()

    @property
    def full(self) -> bool:
        """Whether so much waits to be written to the outbox that no more should come."""
        return len(self._kept) > MAX_IN_MEMORY

    def close(self) -> None:
        """Stop within 2 s; what was not delivered waits in the outbox for the next start."""
        couriers = [*self._retired, *self._couriers.values()]
        for courier in couriers:
            courier.stop()
        deadline = time.monotonic() + STOP_SECONDS
        for courier in couriers:
            courier.join(max(deadline - time.monotonic(), 0.0))
        with contextlib.suppress(OutboxError):
            self.flush()
        if self._kept:
            logger.error(
                "%d messages could not be written to %s: alerts will be raised again from their events",
                *(len(self._kept), self._outbox.path),
            )
        if waiting := self._outbox.pending():
            logger.info("%d messages stay in %s for the next start", waiting, self._outbox.path)
        self._outbox.close()
