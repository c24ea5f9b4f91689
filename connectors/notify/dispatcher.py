"""All receivers as one: what is told goes into one outbox on disk, and from there to each receiver by its courier."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
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
from connectors.notify.settings import ReceiverSettings
from connectors.notify.slack import Slack
from connectors.notify.standard_webhooks import header_id, webhook_body, webhook_id

logger = logging.getLogger(__name__)

OUTBOX_FILE = "outbox.sqlite3"
FORMER_NAME = "webhook"  # the receiver that is likely the one from when there was but one
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
        self._critical = settings.least_severity == "critical"
        self._pattern = re.compile("|".join(map(translate, settings.streams))) if settings.streams else None

    def takes(self, severity: str, streams: Collection[str]) -> bool:
        """Whether it is told of what has this severity and these streams."""
        if self._critical and severity != "critical":
            return False
        return self._pattern is None or any(map(self._pattern.match, streams))


def make_receiver(name: str, settings: ReceiverSettings, external_url: str = "") -> Receiver:
    """Return a receiver. Raises ValueError."""
    return _KINDS[settings.type](name, settings, external_url)


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
        self._settings = dict(receivers)
        self._filters = {name: _Filter(settings) for name, settings in receivers.items()}
        made = {name: make_receiver(name, settings, external_url) for name, settings in receivers.items()}
        self._outbox = Outbox(directory / OUTBOX_FILE)
        self._kept: list[NewMessage] = []  # not in the outbox yet
        self._keeping = threading.Lock()  # for a moment
        self._storing = threading.Lock()  # while the disk is written
        try:
            self._adopt()
            self._couriers = {
                name: Courier(
                    name,
                    settings,
                    made[name],
                    self._outbox,
                    take=self.flush,
                    on_delivery=lambda outcome, name=name: on_delivery(name, outcome),  # type: ignore[misc]
                    on_pending=lambda count, name=name: on_pending(name, count),  # type: ignore[misc]
                )
                for name, settings in receivers.items()
            }
        except BaseException:
            self._outbox.close()
            raise

    @property
    def problems(self) -> dict[str, OngoingProblem]:
        """What stops deliveries, other than an unreachable receiver; by receiver."""
        return {name: courier.problem for name, courier in self._couriers.items()}

    def _adopt(self) -> None:
        """Find who is told what waits from former settings."""
        webhooks = [name for name, settings in self._settings.items() if settings.type == "webhook"]
        heir = FORMER_NAME if FORMER_NAME in webhooks else next(iter(webhooks), None)
        longest = max((settings.max_age_seconds for settings in self._settings.values()), default=0.0)
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
        for record, streams, only in told:
            body = msgspec.json.encode(record)
            messages += [
                NewMessage(name, header_id(f"{record.id}-{record.revision}"), record.id, body, INCIDENT)
                for name, settings in self._settings.items()
                if settings.tell == "incidents"
                and (only is None or name in only)
                and self._filters[name].takes(record.severity, streams)
            ]
        self._keep(messages)

    def write(
        self, alerts: Sequence[Alert], only: Callable[[Alert], Collection[str] | None] = lambda alert: None
    ) -> None:
        """Take alerts for those who are told of each, likewise; `only` returns who is told of one, None: all."""
        names = [name for name, settings in self._settings.items() if settings.tell == "alerts"]
        if names:
            self._keep(
                [
                    NewMessage(name, webhook_id(alert), alert.stream, webhook_body(alert))
                    for alert in alerts
                    for of_alert in (only(alert),)
                    for name in names
                    if (of_alert is None or name in of_alert)
                    and self._filters[name].takes(alert.severity, (alert.stream,))
                ]
            )

    def _keep(self, messages: Sequence[NewMessage]) -> None:
        if messages:
            with self._keeping:
                self._kept += messages
            for name in {message.receiver for message in messages}:
                self._couriers[name].wake()

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
                for name, count in waiting.items():
                    self._couriers[name].pending(count)
                raise
            with self._keeping:
                del self._kept[: len(messages)]
        for name, message_id in dropped:
            self._couriers[name].dropped(message_id, f"more than {MAX_PENDING} are pending")
        for name in waiting:
            self._couriers[name].pending()
            self._couriers[name].wake()

    @property
    def full(self) -> bool:
        """Whether so much waits to be written to the outbox that no more should come."""
        return len(self._kept) > MAX_IN_MEMORY

    def close(self) -> None:
        """Stop within 2 s; what was not delivered waits in the outbox for the next start."""
        for courier in self._couriers.values():
            courier.stop()
        deadline = time.monotonic() + STOP_SECONDS
        for courier in self._couriers.values():
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
