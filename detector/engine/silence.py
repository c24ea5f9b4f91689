"""Streams that stop: told once the others' time says so; it ends as they send again, or are gone.

Whether a stream had stopped is settled as its next event comes, by its partition's clock; to look before that
(`stopped`) only tells it sooner. So what a crash has lost is told again, with the same id, and nothing else is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.batches import BACK, FALSE, GONE, MUTED, RESET, SILENT, Alert, EventBatch, Partition
from connectors.words import silence_summary
from detector.scoring import silence
from detector.scoring.admission import Taken
from detector.scoring.batch import Ids
from detector.scoring.incidents import alert_id
from detector.scoring.rules import StreamRule, StreamRules
from detector.scoring.silence import Coming, Ends, Heard, Told
from detector.state.former import head_of
from detector.state.records import STREAM
from detector.state.silence import Away
from detector.state.stream_cache import PACK_BATCH, StreamCache

Int64 = NDArray[np.int64]

MAX_TOLD = 1_000  # streams at one look; the others at the next
PLACED_AT_ONCE = 10_000  # streams: 5 MB of rows


class Stopped(NamedTuple):
    """What is said of a stream that stopped."""

    stream: str
    place: Partition
    last: int  # time of its last event, ns
    after: float  # seconds without events after which it had stopped; infinite: not known any more
    interval: float  # usual seconds between its events; 0: not known
    longest: float  # usual pause, seconds


def silence_id(stream: str, last: int) -> str:
    """Return the id of the alert of a stream whose last event came at `last`, ns."""
    return alert_id(f"{stream}\0{SILENT}", last)


def silence_alert(
    one: Stopped, rule: StreamRule, version: str, ended_at: int | None = None, by: str = "", passed: float = 0.0
) -> Alert:
    """Return the alert of a stream that stopped; `passed`: seconds that it said nothing, once it has ended."""
    seconds = passed if ended_at is not None else one.after
    after = min(one.after, seconds)
    usual = one.interval or seconds or 1.0
    evidence = {"silent_seconds": seconds, "usual_seconds": one.interval, "usual_longest_seconds": one.longest}
    return Alert(
        id=silence_id(one.stream, one.last),
        stream=one.stream,
        status="firing" if ended_at is None else "resolved",
        severity=rule.severity or "warning",
        started_at=one.last if ended_at is None else min(one.last, ended_at),
        ended_at=ended_at,
        score=math.log10(max(seconds / usual, 1.0)),
        threshold=math.log10(max(after / usual, 1.0)),
        observed={},
        expected={},
        lower={},
        upper={},
        contributions={},
        model_version=version,
        topic=one.place.topic,
        partition=one.place.partition,
        offset=-1,
        resolved_by=by,
        channel=SILENT,
        summary=silence_summary(seconds, one.interval, one.longest),
        evidence={name: value for name, value in evidence.items() if value > 0.0},
        rule=rule.name,
    )


class Silence:
    """Watches an engine's streams for silence, where a rule wants to know. For the daemon's thread."""

    def __init__(self, streams: StreamCache, rules: StreamRules) -> None:
        self._streams, self._states, self._table = streams, streams.states, streams.silence
        self._after = ""  # the stream of the store that was looked at last
        self._take(rules)

    def _take(self, rules: StreamRules) -> None:
        self._rules, self._of = rules, rules.table().of
        if rules.tell_silence and not self._table.watching:  # until now nobody has looked
            self._table.restore(())
        self._table.watching = rules.tell_silence

    def use_rules(self, rules: StreamRules) -> None:
        """Let other rules hold from now on."""
        self._take(rules)
        self._table.unseen = True
        slots = np.fromiter(self._states.slots.values(), np.int64, len(self._states.slots))
        silence.use_rules(self._states.streams.rows, self._of, self._table.clocks, self._table.heard, slots)

    # -- as events come ------------------------------------------------------------------------------------------------

    def hear(self, batch: EventBatch, ids: Ids, taken: Taken) -> list[Alert]:
        """Note which streams a batch's admitted events are of; return the alerts of those that had stopped."""
        table, count, rows = self._table, len(taken.event), self._states.streams.rows
        event = taken.event
        slot, time = ids.slot[event], batch.time[event]
        if not (table.watching or table.silent.any()):
            silence.remember_pauses(rows, slot, time, taken.before)  # somebody may ask tomorrow
            return []
        clock = table.numbers_of(batch.partitions)[batch.partition]
        told = Told(np.empty(len(batch)), np.empty(len(batch), np.int64), np.empty(len(batch)))
        silence.tell_time(table.clocks, clock, batch.time, told)
        muted = time < self._streams.muted_until[slot]
        told = Told(told.now[event], told.time[event], told.reached[event])
        coming = Coming(slot, time, taken.before, taken.interval, clock[event], told, muted)
        out = Ends(np.zeros(count, np.int8), np.zeros(count), np.zeros(count), np.zeros(count))
        if not silence.hear(rows, self._of, table.clocks, table.heard, coming, out):
            return []
        alerts: list[Alert] = []
        ends = np.flatnonzero(out.kind)
        for i in ends[np.argsort(event[ends])].tolist():
            e, last, came = int(event[i]), int(taken.before[i]), int(time[i])
            rule = self._rules.all[int(rows["rule"][slot[i]])]
            measures = float(out.after[i]), float(out.interval[i]), float(out.longest[i])
            one = Stopped(batch.streams[batch.stream[e]], batch.partitions[batch.partition[e]], last, *measures)
            if out.kind[i] == silence.FOUND:
                number = int(rows["rule"][slot[i]])
                if rule.quiet and self._rules.longest_awake(number, last, came) < one.after:
                    continue
                alerts.append(silence_alert(one, rule, self._streams.version))
            passed = max(came - last, 0) * 1e-9
            alerts.append(silence_alert(one, rule, self._streams.version, came, BACK, passed))
        table.silent[slot[ends]] = False
        return alerts

    # -- in between ----------------------------------------------------------------------------------------------------

    def stopped(self) -> list[Alert]:
        """Return the alerts of streams that have stopped by now, MAX_TOLD at most, and the ends of such alerts."""
        table = self._table
        if not (table.watching or len(table)):
            return []
        self._place()
        alerts = self._unwanted()
        away = table.due_away(MAX_TOLD)
        for at in range(0, len(away), PACK_BATCH):
            self._streams.load(away[at : at + PACK_BATCH])
        slots = table.due()
        silent = table.silent[slots]
        due = slots[~silent]
        stopped = due[self._is_wanted(due) & self._is_awake(due)]
        alerts += [self._end(slot, GONE) for slot in slots[silent][:MAX_TOLD].tolist()]
        alerts += [self._tell(slot) for slot in stopped[:MAX_TOLD].tolist()]
        if len(away) < MAX_TOLD and len(due) == len(stopped) <= MAX_TOLD:
            table.looked()
        self._streams.evict()
        return alerts

    def _place(self) -> None:
        """Find when streams were heard that have come into memory without an event."""
        unplaced = np.flatnonzero(np.isnan(self._table.heard.at[: self._states.streams.used]))
        for at in range(0, len(unplaced), PLACED_AT_ONCE):
            slots = unplaced[at : at + PLACED_AT_ONCE]
            rows = self._states.streams.rows[slots]
            heard, known = self._placed(rows), rows["admission"]["arrived"] > 0
            at_all, due, clock = self._table.heard
            at_all[slots[known]], due[slots[known]] = heard.at[known], heard.due[known]
            clock[slots[known]] = heard.clock[known]

    def _placed(self, rows: NDArray[np.void]) -> Heard:
        """Return when streams, STREAM [n], were heard."""
        clock, count = self._table.clocks_of(rows["admission"]["partition"]), len(rows)
        heard = Heard(np.full(count, np.nan), np.full(count, np.inf), np.full(count, -1, np.int32))
        silence.place(rows, self._of, self._table.clocks, clock, heard)
        return heard

    def _unwanted(self) -> list[Alert]:
        """End what nobody wants to know any more: a rule has changed, or a person has muted the stream."""
        away = list(islice((name for name in self._table.silent_away() if not self._wants(name)), PACK_BATCH))
        if away:
            self._streams.load(away)
        slots = np.flatnonzero(self._table.silent)
        return [self._end(slot, MUTED) for slot in slots[~self._is_wanted(slots)][:MAX_TOLD].tolist()]

    def _wants(self, name: str) -> bool:
        """Whether somebody wants to know of the silence of a stream that is not in memory."""
        rule = self._of[int(self._rules.numbers_of([name])[0])]
        return bool(rule["silence"] and not rule["muted"] and not self._streams.is_muted(name, self._newest()))

    def _is_wanted(self, slots: Int64) -> NDArray[np.bool_]:
        """Whether somebody wants to know of these streams' silence, [slots]."""
        of = self._of[self._states.streams.rows["rule"][slots]]
        time = self._table.clocks["time"][self._table.heard.clock[slots]]
        wanted: NDArray[np.bool_] = of["silence"] & ~of["muted"] & (self._streams.muted_until[slots] <= time)
        return wanted

    def _is_awake(self, slots: Int64) -> NDArray[np.bool_]:
        """Whether these streams, [slots], would have stopped without the quiet times of their rules as well."""
        awake, heard = np.ones(len(slots), np.bool_), self._table.heard
        rules, clocks = self._states.streams.rows["rule"][slots], heard.clock[slots]
        for number in self._rules.with_quiet_times:
            for clock in np.unique(clocks[rules == number]).tolist():
                here = (rules == number) & (clocks == clock)
                time = int(self._table.clocks["time"][clock])
                seconds = (time - self._rules.awake_since(number, time)) * 1e-9
                awake[here] = seconds >= (heard.due - heard.at)[slots[here]]
        return awake

    def _newest(self) -> int:
        return int(self._table.clocks["time"].max(initial=0))

    def _tell(self, slot: int) -> Alert:
        row = self._states.streams.rows[slot]
        one, rule = self._stopped(slot)
        row["silent"] = self._table.silent[slot] = True
        self._table.heard.due[slot] = self._table.heard.at[slot] + one.after + silence.GONE_SECONDS
        self._streams.mark_changed(np.array([slot]))
        return silence_alert(one, rule, self._streams.version)

    def _end(self, slot: int, by: str) -> Alert:
        """End the alert of a stream that goes on to send nothing: it is not told again."""
        row, table = self._states.streams.rows[slot], self._table
        one, rule = self._stopped(slot)
        number = int(table.heard.clock[slot])
        since = float(table.clocks["seconds"][number] - table.heard.at[slot]) if number >= 0 else 0.0
        passed = max(since, 0.0)
        row["silent"] = table.silent[slot] = False
        row["score"]["pauses"][silence.TOLD] = silence.GONE
        table.heard.due[slot] = np.inf
        self._streams.mark_changed(np.array([slot]))
        return silence_alert(one, rule, self._streams.version, one.last + round(passed * 1e9), by, passed)

    def _stopped(self, slot: int) -> tuple[Stopped, StreamRule]:
        row, number = self._states.streams.rows[slot], int(self._table.heard.clock[slot])
        score, rule = row["score"], int(row["rule"])
        return (
            Stopped(
                self._states.names[slot],
                self._table.partitions[number] if number >= 0 else Partition("", 0),
                int(row["admission"]["time"]),
                float(silence.stops_after(score, self._of[rule], score["interval"], score["events"])),
                float(score["interval"]),
                float(silence.longest_pause(score)),
            ),
            self._rules.all[rule],
        )

    def ids(self) -> dict[int, str]:
        """Return the ids of the alerts that fire, by slot; of streams in memory."""
        rows, names = self._states.streams.rows["admission"], self._states.names
        slots = np.flatnonzero(self._table.silent).tolist()
        return {slot: silence_id(names[slot], int(rows["time"][slot])) for slot in slots}

    # -- what people say -----------------------------------------------------------------------------------------------

    def begin_anew(self, slot: int) -> list[Alert]:
        """Return how the alert of a stream ends that is about to be forgotten."""
        return [self._end(slot, RESET)] if self._states.streams.rows["silent"][slot] else []

    def learn_false(self, slot: int, seconds: float) -> list[Alert]:
        """Take so long a pause of a stream for a usual one, and end its alert if it fires."""
        row = self._states.streams.rows[slot]
        fires = bool(row["silent"])
        ended = [self._end(slot, FALSE)] if fires else []
        pauses = row["score"]["pauses"]
        pauses[silence.TOLD] = 0
        pauses[silence.PRESENT] = max(int(pauses[silence.PRESENT]), silence.code_of(seconds))
        self._streams.mark_changed(np.array([slot]))
        return ended

    # -- after a start -------------------------------------------------------------------------------------------------

    def look_through(self, names: Sequence[str], rows: Iterable[bytes | None]) -> None:
        """Take in streams of the store that are not in memory: they may stop, or have stopped."""
        found: dict[str, NDArray[np.void]] = {}
        for name, row in zip(names, rows, strict=True):
            if row is not None and row[:8].hex() == self._states.layouts[0]:
                head = head_of(row)
                found[name] = np.frombuffer(row, STREAM, 1, head.begin + head.notes)
        if not found:
            return
        table = np.concatenate(list(found.values()))
        table["rule"] = self._rules.numbers_of(list(found))
        at, due, clock = self._placed(table)
        columns = at.tolist(), due.tolist(), clock.tolist(), table["silent"].tolist()
        for name, *values in zip(found, *columns, strict=True):
            self._table.keep(name, Away(*values))

    def wanted_of(self, names: Sequence[str]) -> list[str]:
        """Return those of some streams that are not in memory nor known, and that a rule wants to know of."""
        numbers = self._rules.numbers_of(names)
        wanted = (self._of["silence"] & ~self._of["muted"])[numbers].tolist()
        slots = self._states.slots
        return [
            name for name, want in zip(names, wanted, strict=True)
            if want and name not in slots and not self._table.is_away(name)
        ]  # fmt: skip
