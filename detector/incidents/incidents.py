"""Incidents over streams: a sink of alerts that groups them, remembers them on disk, and has people told.

What is told of an incident is its state: `wait_seconds` after its first alert, at most every UPDATE_SECONDS as others
join, at once as it becomes critical, and as it resolves. Each state is a revision with a number: that it is told is
written first, then it goes to the outbox, which knows it by that number, then that it went is written. So a crash at
any moment leaves each told once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from connectors.batches import Alert
from connectors.common.background import OngoingProblem
from connectors.common.sqlite import FileError
from connectors.encode import alert_record
from connectors.errors import UserError
from connectors.json_records import IncidentRecord
from connectors.notify.dispatcher import Dispatcher, Told
from detector.config.sections import IncidentsSettings
from detector.incidents.grouping import Grouping, Incident, Member
from detector.incidents.store import FoundAlert, IncidentsError, IncidentStore, Page

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 60.0  # between two updates of an incident, so that a growing one does not flood
IDLE_SECONDS = 60.0  # the thread is woken by what is written; this only bounds what a lost wake-up would cost
RETRY_SECONDS = 5.0
FORGET_SECONDS = 3600.0  # between two looks for what is too old
STOP_SECONDS = 1.5
DAY = 86_400.0
MAX_IN_MEMORY = 1_000  # alerts that wait in memory for the disk
ALERTS_SHOWN = 50  # of an incident in a list, and in what is told
STREAMS_NAMED, MAX_NAMED = 10, 200  # of an incident, and in all, that a metric names
ALERTS_OF_ONE = 1_000  # of an incident asked for by itself


class Firing(NamedTuple):
    """A stream of an open incident."""

    incident: str
    stream: str
    severity: str


@dataclass(slots=True, eq=False)
class _Watched:
    """When an open incident is to be told, and when it is over."""

    due: float  # monotonic, s
    untold: bool = True
    told_severity: str = ""
    told_at: float = 0.0  # monotonic, s
    quiet_since: float = 0.0  # monotonic, s: the last change


class Incidents:
    """The sink. `write`, `flush` and what reads may be called from any thread."""

    def __init__(
        self,
        directory: Path,
        settings: IncidentsSettings,
        dispatcher: Dispatcher | None = None,
        *,
        routes: Mapping[str, Collection[str]] = MappingProxyType({}),
        on_opened: Callable[[str], object] = lambda severity: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open `incidents.db` in `directory`, and go on with what is open there. Raises IncidentsError.

        `routes`: the receivers that are told of a rule's alerts, by its name; empty or none: all that take them.
        `on_opened` is called with the severity of each incident that begins.
        """
        self._settings, self._dispatcher, self._on_opened, self._clock = settings, dispatcher, on_opened, clock
        self.routes = routes  # may be replaced at any time
        self._stop, self._wake = threading.Event(), threading.Event()
        self._damage: FileError | None = None  # of the file, found while it was read or written
        self._store = IncidentStore(directory, self._damaged)
        self._kept: list[Alert] = []  # not in the store yet
        self._keeping = threading.Lock()  # for a moment
        self._working = threading.Lock()  # while the disk is written
        self._grouping = Grouping(settings.window_seconds)
        self._watched: dict[str, _Watched] = {}
        self._telling: list[str] = []  # may not have reached the outbox
        self._ended: list[str] = []  # over, and not told yet
        self._forget_due = 0.0
        self._listeners: list[Callable[[Sequence[str]], object]] = []
        self.firing: tuple[Firing, ...] = ()  # of the open incidents, the newest first
        self.changes = 0  # rises with each change, for those who show incidents live
        self.problem = OngoingProblem(2 * IDLE_SECONDS)
        self._stale = True  # memory has to be read from the store
        with self._working:
            self._keep_up()
        self._thread = threading.Thread(target=self._run, name="incidents", daemon=True)
        self._thread.start()

    # -- a sink of alerts ----------------------------------------------------------------------------------------------

    def write(self, alerts: Sequence[Alert]) -> None:
        """Take alerts, without waiting for the disk: they are in the store once `flush` has returned."""
        if not alerts:
            return
        if self._dispatcher is not None:
            self._dispatcher.write(alerts, lambda alert: self._told_by([alert.rule]))
        with self._keeping:
            self._kept += alerts
        self._wake.set()

    def flush(self) -> None:
        """Return when all alerts are in the store, and what is told of them in the outbox. Raises IncidentsError.

        It is a NotWrittenError where they cannot be written at present; they are kept then.
        """
        with self._working:
            self._keep_up()
        if self._dispatcher is not None:
            self._dispatcher.flush()

    @property
    def problems(self) -> dict[str, OngoingProblem]:
        """What stops incidents from being grouped, or told; by the name that metrics give it."""
        of_receivers = {} if self._dispatcher is None else self._dispatcher.problems
        return {"incidents": self.problem, **{f"receiver {name}": problem for name, problem in of_receivers.items()}}

    @property
    def full(self) -> bool:
        """Whether so many alerts wait to be written that no more should come."""
        return len(self._kept) > MAX_IN_MEMORY or (self._dispatcher is not None and self._dispatcher.full)

    def position(self) -> dict[str, int]:
        """Return nothing: an alert that is written again after a crash is known by its id."""
        return {}

    def restore(self, position: Mapping[str, int]) -> None:
        """Do nothing, see `position`."""

    def close(self) -> None:
        """Stop; what has not been told is told after the next start."""
        self._stop.set()
        self._wake.set()
        self._thread.join(STOP_SECONDS)
        try:
            with contextlib.suppress(UserError):
                self.flush()
        finally:
            if self._dispatcher is not None:
                self._dispatcher.close()
            self._store.close()

    # -- reading -------------------------------------------------------------------------------------------------------

    def open(self, limit: int = 1_000) -> list[IncidentRecord]:
        """Return the open incidents, newest first, each with its worst alerts."""
        return [record for _, record in self._store.records("open = 1", (), limit, ALERTS_SHOWN)]

    def recent(self, limit: int = 100, before: str | None = None, state: str = "all") -> Page:
        """Return incidents, newest first, from the cursor `before` on; state: "open", "resolved" or "all".

        Raises ValueError for a cursor that is none.
        """
        where = {"open": "open = 1", "resolved": "open = 0", "all": "1"}[state]
        values: list[int] = []
        if before is not None:
            where, values = f"{where} AND sequence < ?", [int(before)]
        found = self._store.records(where, values, limit, ALERTS_SHOWN)
        return Page([record for _, record in found], str(found[-1][0]) if len(found) == limit else None)

    def get(self, incident_id: str) -> IncidentRecord | None:
        """Return an incident with its alerts, ALERTS_OF_ONE at most; None if there is none of that id."""
        found = self._store.records("id = ?", (incident_id,), 1, ALERTS_OF_ONE)
        return found[0][1] if found else None

    def alert(self, alert_id: str) -> FoundAlert | None:
        """Return an alert's record and its incident; None if there is none of that id."""
        return self._store.alert(alert_id)

    def open_count(self) -> int:
        """Return how many incidents are open."""
        return len(self._grouping.open)

    def standing(self) -> list[Incident]:
        """Return the open incidents as they are grouped, oldest first."""
        with self._working:
            return list(self._grouping.open.values())

    def on_change(self, listener: Callable[[Sequence[str]], object]) -> None:
        """Call `listener` with the ids of incidents that have changed, from any thread; it must return at once."""
        self._listeners.append(listener)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._working:
                    self._keep_up()
                    wait = self._look()
            except UserError as error:  # the store's, or the outbox's
                if self.problem.report(str(error)):
                    logger.error("incidents wait: %s", error)  # noqa: TRY400 - its text says it all
                wait = RETRY_SECONDS
            except Exception as error:  # incidents must go on whatever fails
                logger.exception("incidents failed unexpectedly")
                self.problem.report(f"incidents fail unexpectedly: {type(error).__name__}")
                wait = RETRY_SECONDS
            self._wake.wait(wait)
            self._wake.clear()

    def _damaged(self, why: FileError) -> None:
        """Have the thread mend the file; whoever has found the damage may be any thread."""
        self._damage = why
        self._wake.set()

    def _keep_up(self) -> None:
        """Group what was written; a file that is damaged is put aside for a new one first. Raises IncidentsError."""
        for last in (False, True):
            try:
                self._mend()
                self._load()
                self._take_kept()
            except IncidentsError:
                if last or self._damage is None:
                    raise
            else:
                return

    def _mend(self) -> None:
        if self._damage is not None:
            self._stale = True
            self._store.begin_anew(self._damage)
            self._damage = None

    def _take_kept(self) -> None:
        """Group what was written. What is in memory is as the store has it, or `_stale`."""
        with self._keeping:
            alerts = self._kept.copy()
        if not alerts:
            return
        now, changed, begun, grown = self._clock(), dict[str, Incident](), list[Incident](), set[str]()
        self._stale = True
        with self._store.changes():
            for alert in alerts:
                before = len(self._grouping.open)
                incident = self._take(alert)
                if incident is not None:
                    changed[incident.id] = incident
                    begun += [incident] if len(self._grouping.open) > before else []
                    grown |= {incident.id} if alert.status == "firing" else set()
            for incident in changed.values():
                self._store.save(incident, time.time())
        self._stale = False
        with self._keeping:
            del self._kept[: len(alerts)]
        for incident in begun:
            self._on_opened(incident.severity)
        for incident in changed.values():
            watched = self._watched.setdefault(incident.id, _Watched(now + self._settings.wait_seconds))
            watched.quiet_since = now
            if incident.severity != watched.told_severity and watched.told_severity:
                watched.untold, watched.due = True, now
            elif incident.id in grown and not watched.untold:
                watched.untold, watched.due = True, max(now, watched.told_at + UPDATE_SECONDS)
        self._changed(list(changed))
        self._wake.set()

    def _take(self, alert: Alert) -> Incident | None:
        """Put an alert into its incident, and return that if it changes."""
        member = Member(*(getattr(alert, name) for name in Member._fields))
        _, record = alert_record(alert)
        self._grouping.pass_time(alert.ended_at or alert.started_at)
        known = self._store.status(alert.id)
        if known is not None:
            status, incident_id = known
            incident = self._grouping.open.get(incident_id)
            if incident is None or status == "resolved" or alert.status == "firing":
                return None  # it comes again
            incident.resolve(member)
            self._store.update(member, record)
            return incident
        incident = self._grouping.joined(member)
        if incident is None:
            incident = self._grouping.begin(member)
            self._store.save(incident, time.time())
            if alert.status == "resolved":  # it fired before this file began, and may have been told of then
                self._store.continue_from(incident.id, int(time.time()))
        else:
            incident.take(member)
        self._store.add(incident, member, record)
        return incident

    def _look(self) -> float:
        """End what is over, and tell what is due. Returns how long there is nothing to do, s."""
        self._load()
        now, window = self._clock(), self._settings.window_seconds
        over = set(self._grouping.over())
        over |= {
            incident
            for incident in self._grouping.open.values()
            if not incident.firing and now - self._watched[incident.id].quiet_since >= window
        }
        due = [name for name, w in self._watched.items() if w.untold and w.due <= now]
        telling = list(dict.fromkeys([*due, *self._ended, *(incident.id for incident in over)]))
        if telling or now >= self._forget_due:
            self._stale = True
            with self._store.changes():
                for incident in over:
                    self._store.save(incident, time.time(), is_open=False)
                self._store.tell(telling)
                if now >= self._forget_due:
                    self._store.forget(time.time() - self._settings.max_age_days * DAY)
                    self._forget_due = now + FORGET_SECONDS
            self._stale = False
            for incident in over:
                del self._grouping.open[incident.id], self._watched[incident.id]
            self._ended = []
            for name in due:
                if (watched := self._watched.get(name)) is not None:
                    watched.untold, watched.told_at = False, now
                    watched.told_severity = self._grouping.open[name].severity
            self._telling = list(dict.fromkeys([*self._telling, *telling]))
            self._changed(telling)
        self._hand_over()
        self.problem.clear()
        waits = [w.due - now for w in self._watched.values() if w.untold]
        waits += [self._watched[i.id].quiet_since + window - now for i in self._grouping.open.values() if not i.firing]
        return max(min([*waits, IDLE_SECONDS]), 0.0)

    def _hand_over(self) -> None:
        """Hand what is told to the outbox, and note that."""
        if not self._telling:
            return
        if self._dispatcher is not None:
            found = (self._store.records("id = ?", (name,), 1, ALERTS_SHOWN) for name in self._telling)
            records = [record for rows in found for _, record in rows]
            self._dispatcher.tell(
                [
                    Told(record, self._store.streams(record.id), self._told_by(self._store.rules(record.id)))
                    for record in records
                ]
            )
            self._dispatcher.flush()
        self._store.told(self._telling)
        self._telling = []

    def _told_by(self, rules: Collection[str]) -> Collection[str] | None:
        """Return who is told of alerts of these rules: whoever one of them names; None: one names nobody, so all."""
        routes = [self.routes.get(rule, ()) for rule in rules]
        return {name for route in routes for name in route} if routes and all(routes) else None

    def _changed(self, ids: Sequence[str]) -> None:
        self.changes += 1
        self.firing = self._firing()
        for listener in self._listeners:
            listener(ids)

    def _load(self) -> None:
        """Read what is open, as the store has it, where memory may not be as it."""
        if not self._stale:
            return
        now, oldest = self._clock(), time.time() - self._settings.max_age_days * DAY
        self._telling, untold, told = self._store.untold()
        grouping = Grouping(self._settings.window_seconds)
        watched: dict[str, _Watched] = {}
        for changed, members in self._store.open_members():
            first, *others = members
            incident = grouping.begin(first)
            for member in others:
                incident.take(member)
            if changed < oldest:  # its alerts will never resolve: their streams are others' now
                incident.firing = 0
            # what is new is told soon, what has changed a little later: it may be over by then
            later = UPDATE_SECONDS if incident.id in told else self._settings.wait_seconds
            watched[incident.id] = _Watched(now + later, untold=incident.id in untold, quiet_since=now)
            if incident.id in told:
                watched[incident.id].told_severity = incident.severity
        self._ended = [name for name in untold if name not in watched]
        self._grouping, self._watched, self._stale = grouping, watched, False
        self.firing = self._firing()

    def _firing(self) -> tuple[Firing, ...]:
        """Return what a metric may name: some streams of each incident, the worst first."""
        found: list[Firing] = []
        for incident in reversed([one for one in self._grouping.open.values() if one.firing]):
            others = sorted(nsmallest(STREAMS_NAMED, incident.streams - {incident.worst}))
            streams = [incident.worst, *others][: min(STREAMS_NAMED, MAX_NAMED - len(found))]
            found += [Firing(incident.id, stream, incident.severity) for stream in streams]
        return tuple(found)
