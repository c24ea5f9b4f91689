"""Each alert's surroundings: what its stream did before, and what follows until it has ended and a little longer.

A sink of alerts that is also given each batch's scores. It never stops scoring: where the disk takes nothing, it keeps
what it can hold, and then drops it, counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from connectors.batches import SILENT, Alert, EventBatch
from connectors.common.background import OngoingProblem
from connectors.encode import alert_record
from detector.config.sections import HistorySettings
from detector.engine.engine import Engine, Step
from detector.errors import StateError
from detector.history.columns import Columns, StreamWindow, counts_of, joined
from detector.history.file import HistoryFile
from detector.history.follow import MAX_EVENTS, TAIL, Follow
from detector.history.notes import window_of
from detector.history.replay import StreamCopy
from detector.history.ring import Ring, hashes_of
from detector.history.store import HistoryError, HistoryStore, Kept, Surroundings, place_of

logger = logging.getLogger(__name__)

Int64 = NDArray[np.int64]

MAX_FOLLOWED = 1_000  # alerts at once
MAX_PENDING = 500_000  # observations that wait in memory for the disk: 30 MB
CHUNK = 256  # events of a chunk
REPLAYED = 100  # alerts of one turn whose older events are looked up ...
REPLAYED_LANES = 64  # ... and features that their streams may have: 0.1 s
FORGET_SECONDS = 60.0  # between two looks for what is too old
DAY = 86_400.0
OF_ANOTHER = "Not kept here: what a stream did around an alert stays with the worker that recorded it."


class History:
    """The recorder. `step`, and what a sink has, are for the daemon's thread; what reads is for any."""

    def __init__(
        self,
        directory: Path,
        settings: HistorySettings,
        *,
        changelog: bool = False,
        on_dropped: Callable[[int], object] = lambda alerts: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep `history.db` in `directory`, which is made with the first alert or read at `restore`.

        changelog: states follow partitions to other workers, which alerts' surroundings do not. `on_dropped` is called
        with the number of alerts of which something is not kept.
        """
        self._settings, self._on_dropped, self._clock = settings, on_dropped, clock
        self._changelog = changelog
        self.ring = Ring()
        self._collected = self.ring.place()  # where it was as the follows had all that is in it
        self._lock = threading.Lock()  # for a moment: what is below
        self._follows: dict[str, Follow] = {}  # by the alert's id
        self._alerts: list[Alert] = []  # written, and not looked at yet
        self._forget_at = 0.0  # monotonic, s
        self.file = HistoryFile(directory, self._begin_anew)

    @property
    def problem(self) -> OngoingProblem:
        """What keeps surroundings from the disk."""
        return self.file.problem

    @property
    def enabled(self) -> bool:
        """Whether anything is kept on disk."""
        return self._settings.max_bytes > 0

    # -- the daemon's thread -------------------------------------------------------------------------------------------

    def write(self, alerts: Sequence[Alert]) -> None:
        """Take alerts; a batch's before its `step`."""
        if self.enabled:
            self._alerts += [alert for alert in alerts if alert.channel != SILENT]  # nothing surrounds silence

    def step(self, batch: EventBatch, step: Step, engine: Engine) -> None:
        """Take a batch's scores, whose alerts have been written. Raises nothing."""
        try:
            self._step(batch, step, engine)
        except Exception:  # whatever fails here, scoring goes on
            logger.exception("history failed unexpectedly")
            self._give_up()

    def _step(self, batch: EventBatch, step: Step, engine: Engine) -> None:
        scores, streams = step.scores, hashes_of(batch.streams)
        with self._lock:
            if not self.ring.has_room(scores, self._collected):
                self._collect(self._follows.values())
                self._collected = self.ring.place()
            since = self.ring.written
            first = self.ring.append(scores, streams)
            if not self._alerts and not self._follows:
                return
            fired = self._take_alerts(since, engine)
            by_stream = defaultdict[int, list[Follow]](list)
            for follow in self._follows.values():
                by_stream[hash(follow.stream)].append(follow)
            codes = np.flatnonzero(np.isin(streams, np.fromiter(by_stream, np.int64, len(by_stream))))
            if len(codes):
                wanted = np.zeros(len(streams), np.bool_)
                wanted[codes] = True
                rows = np.flatnonzero(wanted[batch.stream[scores.event]])
                rows = rows[first + rows >= since]
                stream = batch.stream[scores.event[rows]]
                places = [place_of(*partition) for partition in batch.partitions]
                for code in codes.tolist():
                    mine = rows[stream == code]
                    partition = batch.partition[scores.event[mine]]
                    for follow in by_stream[int(streams[code])]:
                        self._extend(follow, first + mine, partition, places)
            self._add_older(fired, engine)
            self._bound()

    def _take_alerts(self, since: int, engine: Engine) -> list[Follow]:
        """Begin to follow what fires, and note what has ended; return what has begun."""
        alerts, self._alerts = self._alerts, []
        firing = [a for a in alerts if a.status == "firing" and a.id not in self._follows and not self.file.has(a.id)]
        left_out = firing[MAX_FOLLOWED - len(self._follows) :] if len(self._follows) < MAX_FOLLOWED else firing
        if left_out:
            self._drop(len(left_out), "too many alerts at once are followed")
        begun = firing[: len(firing) - len(left_out)]
        streams = [hash(alert.stream) for alert in begun]
        most = self._settings.events_before
        # enough to find the event itself among what came in the same batch
        found = dict(zip(streams, self.ring.find(streams, self.ring.written), strict=True)) if begun else {}
        fired = []
        for alert, stream in zip(begun, streams, strict=True):
            numbers = found[stream]
            at = np.flatnonzero(
                (self.ring.event("offset", numbers) == alert.offset)
                & (self.ring.event("time", numbers) == alert.started_at)
            )
            end = int(at[-1]) if len(at) else int(np.searchsorted(numbers, since))
            follow = Follow(
                *(alert.id, alert.stream, alert.started_at, alert_record(alert)[1]),
                last={place_of(alert.topic, alert.partition): alert.offset - 1},
                newest=alert.started_at - 1,
            )
            follow.before = self.ring.columns(numbers[max(end - most, 0) : end])
            self._follows[alert.id] = follow
            fired.append(follow)
        self._note_ends(alerts)
        return fired

    def _note_ends(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            if alert.status == "resolved" and (ended := self._follows.get(alert.id)) is not None:
                ended.record, ended.ended_at, ended.changed = alert_record(alert)[1], alert.ended_at, True

    def _extend(self, follow: Follow, numbers: Int64, partition: NDArray[np.int32], places: Sequence[str]) -> None:
        """Take the events of a stream that the alert does not have yet, up to the end of its tail."""
        if follow.done:
            return
        offset, time = self.ring.event("offset", numbers), self.ring.event("time", numbers)
        last = np.array([follow.last.get(place, -1) for place in places])
        # what comes again is older in both; what is read from a pipe begins at offset 0 in each life
        kept = (offset > last[partition]) | (time > follow.newest)
        if follow.ended_at is not None:
            after = kept & (time > follow.ended_at)
            kept &= ~after | (follow.tail + np.cumsum(after) <= TAIL)
            follow.tail += int((kept & after).sum())
        chosen = np.flatnonzero(kept)[: MAX_EVENTS - follow.events]
        if not len(chosen):
            return
        follow.in_ring.append(numbers[chosen])
        follow.events += len(chosen)
        follow.changed = True
        follow.newest = max(follow.newest, int(time[chosen].max()))
        for code in np.unique(partition[chosen]).tolist():
            follow.last[places[code]] = int(offset[chosen][partition[chosen] == code].max())
        follow.gaps |= follow.events >= MAX_EVENTS and follow.ended_at is None

    def _collect(self, follows: Iterable[Follow]) -> None:
        """Take what is in the ring only, many events at once: for each micro-batch's few that would cost ten times."""
        for follow in follows:
            if follow.in_ring:
                follow.parts.append(joined([self.ring.columns(np.concatenate(follow.in_ring))]))
                follow.in_ring.clear()

    def _add_older(self, fired: Sequence[Follow], engine: Engine) -> None:
        """Add what the ring does not have of the events before: what the stream's own windows have."""
        for follow in fired[:REPLAYED]:
            stream, before = follow.stream, follow.before
            if before is None or len(before) >= self._settings.events_before:
                continue
            self._collect([follow])
            newer = joined([before, *follow.parts])
            with suppress(StateError):  # a row that cannot be read is told where it is scored
                row = engine.pack(stream)
                slot = engine.streams.states.slots.get(stream)
                if row is None or slot is None:
                    continue
                if int(engine.streams.states.streams.rows["lanes"][slot]) > REPLAYED_LANES:
                    continue
                older = StreamCopy(stream, row, engine.weights, engine.settings.timezone).older(
                    counts_of(newer), self._settings.events_before - len(before)
                )
                follow.before = joined([older, before])

    def _bound(self) -> None:
        """Drop what waits for a disk that takes nothing, once that is too much."""
        waiting = [f for f in self._follows.values() if f.parts or f.before is not None]
        held = sum(p.observations for f in waiting for p in (*f.parts, *((f.before,) if f.before is not None else ())))
        if held <= MAX_PENDING:
            return
        self._drop(len(waiting), self.problem.current or "too much of them waits for the next checkpoint")
        for follow in waiting:
            follow.parts.clear()
            follow.in_ring.clear()
            follow.before, follow.gaps, follow.changed = None, True, True

    def _begin_anew(self) -> None:
        """Note that the file is a new one."""
        for follow in self._follows.values():
            follow.number, follow.chunk, follow.held, follow.gaps, follow.changed = 0, 1, [], True, True

    def _give_up(self) -> None:
        """Drop what is in memory: something that nobody has thought of fails with it."""
        self._drop(len(self._follows), "what follows is left out")
        with self._lock:
            self._alerts, self._follows = [], {}

    def _drop(self, alerts: int, why: str) -> None:
        self._on_dropped(alerts)
        logger.warning("history: of %d alerts not all surroundings are kept: %s", alerts, why)

    def flush(self) -> None:
        """Write what has come to the disk. Raises nothing: what cannot be written now is kept while there is room."""
        try:
            self._flush()
        except Exception:  # likewise
            logger.exception("history failed unexpectedly as it was written")
            self._give_up()

    def _flush(self) -> None:
        if self._alerts:  # of streams that have fallen silent, which no batch follows
            with self._lock:
                self._note_ends(self._alerts)
                self._alerts = []
        changed = [follow for follow in self._follows.values() if follow.changed]
        now = time.monotonic()
        if not changed and now < self._forget_at:
            return
        store = self.file.opened() if self.enabled else None
        if store is None:
            return
        try:
            if changed:
                self._save(store, changed)
            if now >= self._forget_at:
                oldest = self._clock() - self._settings.days * DAY
                gone = store.forget(oldest, self._settings.max_bytes)
                with self._lock:
                    for alert_id in gone:
                        self._follows.pop(alert_id, None)
                self._forget_at = now if gone else now + FORGET_SECONDS  # there may be more
        except HistoryError as error:
            self.file.fail(error)
            return
        self.file.mend()

    def _save(self, store: HistoryStore, changed: Sequence[Follow]) -> None:
        written = list[tuple[Follow, int, int, list[Columns]]]()
        with self._lock:  # who reads sees what is on disk, or in memory, not both
            self._collect(changed)
            with store.changes():
                for follow in changed:
                    kept = Kept(
                        id=follow.alert_id, stream=follow.stream, started_at=follow.started_at,
                        ended_at=follow.ended_at, done=follow.done, gaps=follow.gaps, events=follow.events,
                        tail=follow.tail, last=follow.last, newest=follow.newest,
                        written=self._clock(), record=follow.record,
                    )  # fmt: skip
                    number, chunk, held = store.save(kept), follow.chunk, follow.held
                    if follow.before is not None:
                        store.add(number, 0, joined([follow.before]))
                    if follow.parts:
                        rest = joined([*held, *follow.parts])
                        while len(rest) >= CHUNK:
                            store.add(number, chunk, joined([rest.rows(0, CHUNK)]))
                            chunk, rest = chunk + 1, rest.rows(CHUNK, len(rest))
                        held = [joined([rest])] if len(rest) else []
                        if held:
                            store.add(number, chunk, held[0])
                    written.append((follow, number, chunk, held))
            for follow, number, chunk, held in written:
                follow.number, follow.chunk, follow.held = number, chunk, held
                follow.parts, follow.before, follow.changed = [], None, False
                if follow.done:
                    del self._follows[follow.alert_id]

    @property
    def full(self) -> bool:
        """Never: what a full disk does not take is dropped."""
        return False

    def position(self) -> dict[str, int]:
        """Return how far the ring is: what is written again to the file after a crash is known by its offsets."""
        return {"history": self.ring.written}

    def restore(self, position: Mapping[str, int]) -> None:
        """Go on as the file has it, and the ring had it: what came since will come again."""
        self.ring.take_back(position.get("history", self.ring.written))
        with self._lock:
            self._alerts = []
            self._follows = {}
            store = self.file.opened() if self.enabled and self.file.is_there else None
            if store is None:
                return
            try:
                for number, chunk, kept in store.unfinished(MAX_FOLLOWED):
                    self._follows[kept.id] = Follow(
                        *(kept.id, kept.stream, kept.started_at, kept.record, dict(kept.last), kept.newest),
                        number=number, chunk=chunk, ended_at=kept.ended_at, events=kept.events, tail=kept.tail,
                        gaps=kept.gaps, changed=False,
                    )  # fmt: skip
            except HistoryError as error:
                self.file.fail(error)

    def close(self) -> None:
        """Write what has come, and close the file."""
        self.flush()
        self.file.close()

    # -- reading -------------------------------------------------------------------------------------------------------

    def samples(self, alert_id: str) -> StreamWindow | None:
        """Return what an alert's stream did around it; None: nothing is kept of it.

        Where the file cannot be read there is what memory has, and the note says why.
        """
        with self._lock:
            follow = self._follows.get(alert_id)
            self._collect([] if follow is None else [follow])
            parts = [] if follow is None or follow.before is None else [follow.before]
            waiting = [] if follow is None else list(follow.parts)
            stored, problem = self._stored(alert_id)
        if problem and (follow is None or follow.number):
            stream, columns = "" if follow is None else follow.stream, joined([*parts, *waiting])
            return StreamWindow(stream, columns, complete=False, note=f"{problem}.")
        if stored is None and follow is None:
            return StreamWindow("", joined([]), complete=False, note=OF_ANOTHER) if self._changelog else None
        gaps, done, stream = False, True, stored.alert.stream if stored is not None else ""
        if stored is not None:
            found, gaps = stored.decoded()
            parts += found
        if follow is not None:
            gaps, done, stream = gaps or follow.gaps, follow.done, follow.stream
        return window_of(stream, joined([*parts, *waiting]), gaps=gaps, done=done, changelog=self._changelog)

    def record(self, alert_id: str) -> bytes | None:
        """Return an alert's record, JSON as on the alerts topic; None: it is not known, or cannot be read."""
        with self._lock:
            if (follow := self._follows.get(alert_id)) is not None:
                return follow.record
            stored, _ = self._stored(alert_id)
        return None if stored is None else stored.alert.record

    def _stored(self, alert_id: str) -> tuple[Surroundings | None, str]:
        """Return what the file has of an alert, and why it cannot be asked."""
        if self.file.store is None:
            return None, self.problem.current
        try:
            return self.file.store.surroundings(alert_id), ""
        except HistoryError as error:
            return None, str(error)
