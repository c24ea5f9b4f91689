"""Which streams there are and how anomalous each is now: read from the tables in one pass, shared by all who ask."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from fnmatch import translate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.checkpointing.store import SqliteStore
from detector.engine.engine import Engine
from detector.errors import BusyError
from detector.scoring.claims import WARM_UP_EVENTS
from detector.state.names import SYMBOLIC

FRESH_SECONDS = 1.0  # for so long what was read is shown again ...
SHARE = 0.02  # ... and for longer where reading takes long: at most this share of the time goes into it
LOOK_SECONDS = 2.0  # to wait for the engine ...
SHORT_LOOK_SECONDS = 0.05  # ... while what was read is not old: a checkpoint may take a second
OLD_SECONDS = 10.0
COUNT_SECONDS = 60.0  # between two counts of the streams on disk
MAX_OFFSET = 10_000_000
MAX_STORED = 20_000  # streams on disk that a search goes through
MAX_SHARED = 100  # pages that are made once for all who look
MAX_STREAM_SCORES = 200  # streams that a metric names

Int64 = NDArray[np.int64]
Looking = Callable[[float], AbstractContextManager[None]]


class StreamRow(NamedTuple):
    """One stream, as it is now. Of one that is on disk only its name is known: the rest is None."""

    name: str
    score: float | None  # of its last event; None: it has had none since the start
    threshold: float | None
    rank: float | None
    last_event_at: int | None  # ns
    interval_seconds: float | None  # usual, between two events; None: not known yet
    events: int | None
    warming: bool | None
    firing: str | None  # the alert's id
    muted: bool | None
    rule: str  # name of the rule that holds for it; "": none
    features: int | None


class StreamPage(NamedTuple):
    """Some of the streams that were asked for."""

    streams: tuple[StreamRow, ...]
    total: int  # of all that were asked for, as far as they are known
    note: str  # for a person: what is not among them


class _Table:
    """What was read at one moment; columns are [streams]."""

    def __init__(self, engine: Engine) -> None:
        """Read the engine, which nobody changes meanwhile."""
        states = engine.streams.states
        self.names = list(states.slots)
        slot = np.fromiter(states.slots.values(), np.int64, len(self.names))
        rows = states.streams.rows
        admission, score = rows["admission"], rows["score"]
        self.slot = slot
        self.time, self.interval = admission["time"][slot], admission["interval"][slot]
        self.events, self.rank = admission["arrived"][slot], score["rank"][slot]
        self.warming = score["events"][slot] <= WARM_UP_EVENTS
        self.latest = engine.latest.of(slot, score["time"][slot])
        self.open, self.muted = rows["incident"]["open"][slot] | rows["silent"][slot], rows["muted"][slot]
        self.rule, self.lanes = rows["rule"][slot], rows["lanes"][slot]
        self.rules = engine.rules.all
        self.alerts = {**engine.silence.ids(), **{slot: alert.id for slot, alert in states.open_alerts.items()}}
        self.has_evicted = engine.streams.has_evicted
        self._folded: list[str] | None = None
        self._order: dict[str, Int64] = {}
        self._rows: dict[tuple[str, int, int], tuple[StreamRow, ...]] = {}

    def order(self, sort: str) -> Int64:
        """Return all rows in an order: "name", or "anomalous", what fires and what is least usual first."""
        if (known := self._order.get(sort)) is None:
            if sort == "name":
                known = np.array(sorted(range(len(self.names)), key=self.names.__getitem__), np.int64)
            else:
                known = np.lexsort((self.slot, -np.nan_to_num(self.rank), ~self.open))
            self._order[sort] = known
        return known

    def place(self, name: str, slot: int) -> int | None:
        """Return the row of a stream; None where it is not here."""
        found = np.flatnonzero(self.slot == slot)
        return int(found[0]) if len(found) and self.names[int(found[0])] == name else None

    def matching(self, text: str) -> NDArray[np.bool_]:
        """Return which names contain a text, whatever its case."""
        if self._folded is None:
            self._folded = [name.casefold() for name in self.names]
        wanted = text.casefold()
        return np.fromiter((wanted in name for name in self._folded), np.bool_, len(self._folded))

    def first(self, sort: str, offset: int, limit: int) -> tuple[StreamRow, ...]:
        """Return some of all streams, made once for all who look at the same ones."""
        key = (sort, offset, limit)
        if (known := self._rows.get(key)) is None:
            known = self.rows(self.order(sort)[offset : offset + limit].tolist())
            if len(self._rows) < MAX_SHARED:
                self._rows[key] = known
        return known

    def rows(self, chosen: Sequence[int]) -> tuple[StreamRow, ...]:
        return tuple(self._row(i) for i in chosen)

    def _row(self, i: int) -> StreamRow:
        latest, interval, rule = self.latest[i], float(self.interval[i]), self.rules[self.rule[i]]
        return StreamRow(
            name=self.names[i],
            score=known(latest["score"]),
            threshold=known(latest["threshold"]),
            rank=known(self.rank[i]),
            last_event_at=int(self.time[i]) or None,
            interval_seconds=interval if interval > 0.0 else None,
            events=int(self.events[i]),
            warming=bool(self.warming[i]),
            firing=self.alerts.get(int(self.slot[i])),
            muted=bool(self.muted[i]) or rule.muted,
            rule=rule.name,
            features=int(self.lanes[i]),
        )


class Streams:
    """The streams, for any thread."""

    def __init__(self, engine: Engine, store: SqliteStore, looking: Looking, *, follows_changelog: bool) -> None:
        """Read by `looking`, which has the engine for a moment. `follows_changelog`: others' rows are in the store."""
        self._engine, self._store, self._looking = engine, store, looking
        self._follows_changelog = follows_changelog
        self._reading, self._counting = threading.Lock(), threading.Lock()
        self._table: _Table | None = None
        self._read_at = self._stale_at = self._count_at = 0.0  # monotonic, s
        self._stored = 0
        self._chosen: tuple[Sequence[str], list[int]] | None = None

    def page(self, text: str, sort: str, offset: int, limit: int) -> StreamPage:
        """Return streams whose names contain a text, "": all; sort: "anomalous" or "name".

        Streams on disk come last, where too few in memory match: those whose names begin with the text.
        Raises BusyError.
        """
        table = self._read()
        note = self._note(table)
        if not text:
            return StreamPage(table.first(sort, offset, limit), len(table.names), note)
        order = table.order(sort)
        order = order[table.matching(text)[order]]
        found, total = table.rows(order[offset : offset + limit].tolist()), len(order)
        if not self._follows_changelog and len(found) < limit and offset + limit + total < MAX_STORED:
            try:
                # one more than is shown, and those in memory that begin so may be among them
                names = self._store.names_beginning(text, offset + limit + total + 1)
            except BusyError:
                return StreamPage(found, total, f"{note} Those on disk are not shown while a checkpoint is written.")
            held = {table.names[i] for i in order.tolist()}
            stored = [name for name in names if name not in held]
            at = max(offset - total, 0)
            found += tuple(_on_disk(name) for name in stored[at : at + limit - len(found)])
            total += len(stored)
        return StreamPage(found, total, note)

    def one(self, name: str) -> tuple[StreamRow, list[str]] | None:
        """Return a stream and its features; None for one that nobody knows. Raises BusyError."""
        with self._looking(LOOK_SECONDS):
            states = self._engine.streams.states
            slot = states.slots.get(name)
            features = states.features_of(slot) if slot is not None else []
            features = [feature.removeprefix(SYMBOLIC) for feature in features]
        if slot is not None:
            table = self._read(holding=(name, slot))
            if (place := table.place(name, slot)) is not None:
                return table.rows([place])[0], features
        return (_on_disk(name), []) if self._is_stored(name) else None

    def exists(self, name: str) -> bool:
        """Whether there is such a stream, in memory or on disk. Raises BusyError only where it is not in memory."""
        return name in self._engine.streams.states.slots or self._is_stored(name)

    def _is_stored(self, name: str) -> bool:
        return not self._follows_changelog and name in self._store.names_beginning(name, 1)

    def scores(self, chosen: Callable[[Sequence[str]], list[int]]) -> list[tuple[str, float]]:
        """Return names and last scores of the streams that `chosen` picks from all names, of those that have one."""
        try:
            table = self._read()
        except BusyError:
            return []
        if self._chosen is None or self._chosen[0] != table.names:
            self._chosen = table.names, chosen(table.names)
        picked = self._chosen[1]
        scores = table.latest["score"][picked].tolist() if picked else []
        return [(table.names[i], score) for i, score in zip(picked, scores, strict=True) if not math.isnan(score)]

    def _read(self, holding: tuple[str, int] | None = None) -> _Table:
        """Return what there is, read lately; read anew where a stream is missing from it."""
        with self._reading:
            now = time.monotonic()
            table = self._table
            holds = table is not None and (holding is None or table.place(*holding) is not None)
            if table is not None and holds and now < self._stale_at:
                return table
            recent = holds and now < self._read_at + OLD_SECONDS
            try:
                with self._looking(SHORT_LOOK_SECONDS if recent else LOOK_SECONDS):
                    began = time.monotonic()
                    self._table = _Table(self._engine)
            except BusyError:
                if table is None:
                    raise
                return table  # of a moment ago: better than nothing
            self._read_at = time.monotonic()
            self._stale_at = self._read_at + max(FRESH_SECONDS, (self._read_at - began) / SHARE)
            return self._table

    def _note(self, table: _Table) -> str:
        if self._follows_changelog:
            return "The streams of this worker's partitions that are in memory."
        with self._counting:
            if (now := time.monotonic()) >= self._count_at:
                with suppress(BusyError):  # what was counted before will do
                    self._stored, self._count_at = self._store.count_now(), now + COUNT_SECONDS
            others = self._stored - len(table.names)
        if others <= 0:
            return ""
        return (
            f"{len(table.names):,} streams are in memory. About {others:,} more are on disk, as they have been idle"
            " since the start or for longest: search by the beginning of a name finds them."
        )


def stream_scores(streams: Streams, patterns: Sequence[str]) -> Callable[[], list[tuple[tuple[str], float]]]:
    """Return what gives a metric labels and values: of streams that match a pattern, by name MAX_STREAM_SCORES."""
    pattern = re.compile("|".join(map(translate, patterns)))

    def pick(names: Sequence[str]) -> list[int]:
        matching = sorted((name, i) for i, name in enumerate(names) if pattern.match(name))
        return [i for _, i in matching[:MAX_STREAM_SCORES]]

    return lambda: [((name,), score) for name, score in streams.scores(pick)]


def known(number: float) -> float | None:
    """Return a number, None for one that is not finite."""
    value = float(number)
    return value if np.isfinite(value) else None


def _on_disk(name: str) -> StreamRow:
    nothing = dict.fromkeys(StreamRow._fields) | {"name": name, "rule": ""}
    return StreamRow(**nothing)  # type: ignore[arg-type]  # None but for these two
