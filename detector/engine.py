"""The pure heart: `Engine.step(EventBatch) -> Step`. No clock, no network, no file.

Its first law is parity: cut the same events into batches in any way, in any interleaving of streams, restore from
`drain` anywhere, and the scores are the same. So every stage is a scan over the batch with its own carried state, and
nothing upstream depends on anything downstream: inputs know nothing of scores, the cell nothing of thresholds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from connectors.records import Alert, EventBatch, Partition, Scores
from detector.alerts import FIRES, NONE, PEAKS, RESOLVES, AlertRules
from detector.own_weights import OwnLanes
from detector.passage import Judged, Sorted, alert_at, joined, scores_of, turns
from detector.recurrent import lanes_on
from detector.scans import DUPLICATE, LATE, admit, find_lanes, judge
from detector.scoring import MEASURED, NOVELTY_WARMUP, RETURN_WARMUP, VERDICT, measure
from detector.states import StreamStates, partition_of
from detector.symbols import SYMBOLIC, measure_symbols, network
from training.history import WINDOW, record, unrolled
from training.inputs import FRAME, INPUT_SIZE, LARGEST, featurise
from training.kernels import output_size
from training.model import Forecaster, fingerprint
from training.symbol_kernels import FORESEEN, foresee

Int64 = NDArray[np.int64]

THREAD_EVENTS = 512  # a thread is worth its start for so many events
PRIMING_PASSES = 3  # over the window: one leaves the first 30 events after a swap 0.04 to 0.08 nats worse
PRIMED_AT_ONCE = 4096  # lanes whose windows are unrolled together: 23 MB
MOST_LANES = 1024  # features of one stream; more are dropped and counted


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What of the settings the engine must know."""

    max_streams: int = 100_000
    threads: int = 1
    keep_late: bool = False
    keep_duplicates: bool = False
    mute: tuple[str, ...] = ()  # name patterns
    rules: AlertRules = field(default_factory=AlertRules)
    own_weights: bool = False  # each stream's, learning online


@dataclass(slots=True)
class Step:
    """What one micro-batch brought."""

    scores: Scores
    alerts: list[Alert]
    duplicates: int
    late: int
    features_dropped: int
    evicted: int
    left_out: int  # steps of streams' own weights, for want of a finite loss, gradient or result
    moved: list[str]  # streams seen on another partition than before


class Engine:
    """Scores events of any streams, one network for all or each its own, a state for every feature of every stream.

    `fetch` brings back the states that were drained for streams not in memory (None: never seen). `on_stage` hears
    the name of each stage as it ends, for whoever holds a clock.
    """

    def __init__(
        self,
        model: Forecaster,
        settings: EngineSettings | None = None,
        device: str = "cpu",
        fetch: Callable[[Sequence[str]], list[bytes | None]] | None = None,
        on_stage: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.version = fingerprint(model)
        self._own = OwnLanes(model, device, self.settings.max_streams) if self.settings.own_weights else None
        if self._own:
            self.version += "-own"  # what every stream began with
        self._lanes = self._own or lanes_on(model, torch.device(device))
        self._model_number = 1
        self._horizons = np.array(model.horizons, np.int64)
        self._output_size = output_size(len(model.horizons))
        row_size = self._own.row_size if self._own else model.state_size
        self.states = StreamStates(self._lanes, row_size, model.horizons, self._own)
        self._fetch = fetch or (lambda names: [None] * len(names))
        self._on_stage = on_stage or (lambda _: None)
        self._changed: set[int] = set()
        self._parked: dict[str, bytes] = {}  # evicted since the last drain
        self._pool = ThreadPoolExecutor(self.settings.threads) if self.settings.threads > 1 else None
        r = self.settings.rules
        self._rules = (
            r.alerts_per_stream_per_week,
            r.fixed_threshold,
            r.direction,
            r.least_deviation_absolute,
            r.least_deviation_relative,
            r.least_duration_seconds,
            r.flag_repeats,
        )

    # -- the way through ---------------------------------------------------------------------------------------------

    def step(self, batch: EventBatch) -> Step:
        """Score a batch: every event against what its stream's past let expect, then learn it."""
        slots = self._slots(batch.streams)
        kept, interval, fate, moved = self._admit(batch, slots)
        if self._own:
            judged = self._learning(self._own, batch, slots, kept, interval)
        else:
            judged = self._through(batch, slots, kept, interval)
        scores = scores_of(batch, judged, self.version, self.states.symbol_names)
        alerts = self._alerts(batch, judged)
        self._changed.update(slots.tolist())
        evicted = self._evict()
        self.states.symbol_names.sweep(self.states.symbols.rows)
        self._on_stage("score")
        return Step(
            scores=scores,
            alerts=alerts,
            duplicates=int((fate == DUPLICATE).sum()),
            late=int((fate == LATE).sum()),
            features_dropped=judged.features_dropped,
            evicted=evicted,
            left_out=self._own.take_left_out() if self._own else 0,
            moved=moved,
        )

    def _learning(
        self, own: OwnLanes, batch: EventBatch, slots: Int64, event: Int64, interval: NDArray[np.float64]
    ) -> Judged:
        """Take events through in segments; between two of them the streams that are due learn."""
        parts = []
        for part in own.segments(slots[batch.stream[event]]):
            parts.append(self._through(batch, slots, event[part], interval[part]))
            self._on_stage("score")
            own.learn(slots[batch.stream[event[part]]], self.states.streams.rows, self.states.lanes.rows)
            self._on_stage("forecast")
        return joined(parts)

    def _through(self, batch: EventBatch, slots: Int64, event: Int64, interval: NDArray[np.float64]) -> Judged:
        """Take events, sorted by stream, through all stages; in several passes where streams gain features midway."""
        work, dropped, turn = self._sort(batch, slots, event, interval)
        if turn is not None:
            parts = [turn == k for k in range(int(turn.max()) + 1)]
            return joined([self._through(batch, slots, event[part], interval[part]) for part in parts])
        numbers = work.numbers()
        inputs, frames = self._inputs(numbers)
        self._on_stage("features")
        outputs = self._forecast(numbers, inputs)
        if self._own:
            self._own.keep(numbers, frames)
        foreseen = self._foresee(work)
        self._on_stage("forecast")
        return Judged(work, *self._judge(work, numbers, inputs, frames, outputs, foreseen), foreseen, dropped)

    def _slots(self, names: list[str]) -> Int64:
        known = self.states.slots
        slots = np.array([known.get(name, -1) for name in names], np.int64)
        absent = np.flatnonzero(slots < 0)
        if len(absent):
            wanted = [names[i] for i in absent]
            stored = [self._parked.pop(name, None) for name in wanted]
            unknown = [k for k, row in enumerate(stored) if row is None]
            for k, row in zip(unknown, self._fetch([wanted[k] for k in unknown]), strict=True):
                stored[k] = row
            for i, name, row in zip(absent, wanted, stored, strict=True):
                slots[i] = self._bring(name, row)
        return slots

    def _bring(self, name: str, row: bytes | None) -> int:
        if row is None:
            slot = self.states.add(name)
        else:
            slot = self.states.unpack(name, row, self._model_number, self.version)
            if slot in self.states.notes:
                self.states.notes[slot] = msgspec.convert(self.states.notes[slot], Alert)
        muted = any(fnmatchcase(name, pattern) for pattern in self.settings.mute)
        self.states.streams.rows[slot]["muted"] = muted
        return slot

    def _admit(self, batch: EventBatch, slots: Int64) -> tuple[Int64, NDArray[np.float64], NDArray[np.int8], list[str]]:
        """Return which events are to be scored, sorted by stream, and their streams' intervals by then.

        After these each event's fate, in any order, and who changed partition.
        """
        slot = slots[batch.stream]
        order = np.argsort(slot, kind="stable")
        hashes = np.array([partition_hash(*p) for p in batch.partitions], np.int64)
        fate, keep = np.empty(len(order), np.int8), np.empty(len(order), np.bool_)
        moved, interval = np.empty(len(order), np.bool_), np.empty(len(order), np.float64)
        admit(
            self.states.streams.rows,
            slot[order],
            batch.time[order],
            hashes[batch.partition[order]],
            self.settings.keep_duplicates,
            self.settings.keep_late,
            fate,
            keep,
            moved,
            interval,
        )
        names = {batch.streams[i] for i in batch.stream[order[moved]].tolist()}
        return order[keep], interval[keep], fate, sorted(names)

    def _sort(
        self, batch: EventBatch, slots: Int64, event: Int64, interval: NDArray[np.float64]
    ) -> tuple[Sorted, int, Int64 | None]:
        """Lay the admitted events' observations out by stream and find their lanes, adding what is new.

        Where the third thing returned is not None nothing was added: the events must go through in passes, and it
        numbers each one's. A stream that gains a feature is judged in another way from that event on, no sooner.
        """
        slot = slots[batch.stream[event]]
        counts = (batch.start[1:] - batch.start[:-1])[event]
        start = np.concatenate(([0], np.cumsum(counts)))
        observation = np.repeat(batch.start[event] - start[:-1], counts) + np.arange(start[-1])
        feature, symbol = self._named(batch, observation)
        found = lane, many_row = np.empty(len(observation), np.int64), np.empty(len(observation), np.int64)
        dropped, turn = 0, None
        if self._find(slot, start, feature, found):
            new = self._new_features(slot, counts, feature, lane)
            turn = turns(slot, new)
            if turn is None:
                for s, features in new.items():
                    self.states.add_lanes(s, list(features), self._model_number)
                if self._find(slot, start, feature, found):  # features past the limit
                    here = lane >= 0
                    dropped = int((~here).sum())
                    start = np.concatenate(([0], np.cumsum(here)))[start]
                    observation, feature = observation[here], feature[here]
                    lane, many_row = lane[here], many_row[here]
                    symbol = symbol[here] if len(symbol) else symbol
        value = np.clip(batch.value[observation], -LARGEST, LARGEST)  # what is squared must stay finite
        time = batch.time[event]
        return Sorted(event, slot, time, interval, start, observation, lane, many_row, value, symbol), dropped, turn

    def _named(self, batch: EventBatch, observation: Int64) -> tuple[Int64, Int64]:
        """Return the numbers of the observations' features, and the hashes of their symbols (none where none is one).

        A feature of numbers and one of symbols are two, whatever their names.
        """
        states, code = self.states, batch.feature[observation]
        numbers = np.array([states.feature_id(name) for name in batch.features], np.int64)
        feature = numbers[code] if len(numbers) else np.zeros(0, np.int64)
        if not batch.symbols:
            return feature, np.zeros(0, np.int64)
        hashes = np.array([*map(states.symbol_names.hash_of, batch.symbols), 0], np.int64)  # the last for -1
        symbol = hashes[batch.symbol[observation]]
        for which in np.unique(code[symbol != 0]).tolist():
            feature[(symbol != 0) & (code == which)] = states.feature_id(SYMBOLIC + batch.features[which])
        return feature, symbol

    def _find(self, slot: Int64, start: Int64, feature: Int64, found: tuple[Int64, Int64]) -> int:
        return int(find_lanes(self.states.streams.rows, self.states.lanes.rows, slot, start, feature, *found))

    def _new_features(self, slot: Int64, counts: Int64, feature: Int64, lane: Int64) -> dict[int, dict[int, int]]:
        """Return each slot's features that have no lane and may have one, with the event that shows them first."""
        missing = lane < 0
        events = np.repeat(np.arange(len(slot)), counts)[missing]
        new: dict[int, dict[int, int]] = {}
        for s, f, i in zip(slot[events].tolist(), feature[missing].tolist(), events.tolist(), strict=True):
            new.setdefault(s, {}).setdefault(f, i)
        for s, features in new.items():
            room = MOST_LANES - int(self.states.streams.rows["lanes"][s])
            new[s] = dict(list(features.items())[: max(room, 0)])
        return {s: features for s, features in new.items() if features}

    def _inputs(self, work: Sorted) -> tuple[NDArray[np.float32], NDArray[np.void]]:
        count = len(work.lane)
        inputs, frames = np.empty((count, INPUT_SIZE), np.float32), np.empty(count, FRAME)
        time = np.repeat(work.time, np.diff(work.start))
        normalisers = self.states.lanes.rows["input"]
        self._in_threads(
            work, lambda _a, _b, a, b: featurise(normalisers, work.lane, time, work.value, a, b, inputs, frames)
        )
        return inputs, frames

    def _forecast(self, work: Sorted, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._own:
            self._own.assign(work.lane, np.repeat(work.slot, np.diff(work.start)))
        self._prime(work.lane)
        outputs = np.empty((len(work.lane), self._output_size), np.float32)
        if self._lanes.concurrent:
            self._in_threads(work, lambda _a, _b, a, b: self._lanes.step(work.lane, inputs, a, b, outputs))
        else:
            self._lanes.step(work.lane, inputs, 0, len(work.lane), outputs)
        return outputs

    def _foresee(self, work: Sorted) -> NDArray[np.void]:
        """Step the categorical lanes; FORESEEN [observations], or nothing where all are numbers."""
        foreseen = np.zeros(len(work.symbol), FORESEEN)
        if len(work.symbol):
            weights, lanes, row = network(), self.states.symbols.rows["lane"], self._symbol_rows(work)
            self._in_threads(work, lambda _a, _b, a, b: foresee(lanes, weights, row, work.symbol, a, b, foreseen))
        return foreseen

    def _symbol_rows(self, work: Sorted) -> Int64:
        """Return the observations' rows in the table of categorical lanes, -1 for a number."""
        rows: Int64 = self.states.lanes.rows["symbols"][work.lane] - 1
        return rows

    def _prime(self, lane: Int64) -> None:
        """Give lanes whose hidden state belongs to former weights one of the present: replay their recent window."""
        stale = np.unique(lane[self.states.lanes.rows["model"][lane] != self._model_number])
        for at in range(0, len(stale), PRIMED_AT_ONCE):
            lanes = stale[at : at + PRIMED_AT_ONCE]
            window, _, counts = unrolled(self.states.lanes.rows["history"][lanes])
            self._lanes.write(lanes, np.zeros((len(lanes), self.states.state_size), np.float32))
            rows = np.arange(WINDOW)[None] >= WINDOW - counts[:, None]  # [lanes, WINDOW]
            replayed, recent = np.repeat(lanes, counts), np.ascontiguousarray(window[rows])
            forgotten = np.empty((len(replayed), self._output_size), np.float32)
            for _ in range(PRIMING_PASSES):
                self._lanes.step(replayed, recent, 0, len(replayed), forgotten)
            self.states.lanes.rows["model"][lanes] = self._model_number

    def _judge(
        self,
        work: Sorted,
        numbers: Sorted,  # of work
        inputs: NDArray[np.float32],  # of numbers, as are frames and outputs
        frames: NDArray[np.void],
        outputs: NDArray[np.float32],
        foreseen: NDArray[np.void],
    ) -> tuple[NDArray[np.void], NDArray[np.void]]:
        states, count = self.states, len(work.lane)
        measured, verdicts = np.empty(count, MEASURED), np.empty(len(work.event), VERDICT)
        masked = np.empty(count, np.bool_)
        masked_numbers = np.empty(len(numbers.lane), np.bool_) if numbers is not work else masked
        lanes, many = states.lanes.rows, states.many.rows
        mixed = len(work.symbol) > 0
        of_numbers = np.empty(len(numbers.lane), MEASURED) if mixed else measured
        place = np.flatnonzero(work.symbol == 0)  # of each number among the observations
        symbol_row = self._symbol_rows(work) if mixed else place

        def scan(a: int, b: int, c: int, d: int) -> None:
            e, f = int(numbers.start[a]), int(numbers.start[b])
            measure(
                self._horizons, lanes["score"], many, numbers.lane, numbers.many_row, numbers.value, frames,
                outputs, e, f, of_numbers,
            )  # fmt: skip
            if mixed:
                measured[place[e:f]] = of_numbers[e:f]
                measure_symbols(states.symbols.rows, symbol_row, foreseen, c, d, measured, work.value)
            judge(
                states.streams.rows, states.single.rows, many, states.matrices.rows, work.slot, work.time,
                work.interval, work.start, work.lane, work.many_row, work.value, measured, self._rules, a, b,
                verdicts, masked,
            )  # fmt: skip
            if mixed:
                masked_numbers[e:f] = masked[place[e:f]]
            record(lanes["history"], numbers.lane, inputs, masked_numbers, e, f)

        self._in_threads(work, scan)
        return measured, verdicts

    def _in_threads(self, work: Sorted, scan: Callable[[int, int, int, int], None]) -> None:
        """Call scan(first event, last event, first observation, last observation) on stretches of whole streams."""
        events = len(work.slot)
        if self._pool is None or events < 2 * THREAD_EVENTS:
            scan(0, events, 0, len(work.lane))
            return
        edges = [0]
        for k in range(1, self.settings.threads):
            at = int(np.searchsorted(work.slot, work.slot[events * k // self.settings.threads]))
            edges.append(max(at, edges[-1]))
        edges.append(events)
        list(self._pool.map(lambda a, b: scan(a, b, int(work.start[a]), int(work.start[b])), edges[:-1], edges[1:]))

    # -- what comes out ----------------------------------------------------------------------------------------------

    def _alerts(self, batch: EventBatch, judged: Judged) -> list[Alert]:
        """Carry open incidents' alerts on; return those that fire or resolve."""
        work, verdicts = judged.work, judged.verdicts
        changed = np.flatnonzero(verdicts["change"] != NONE)
        told: list[tuple[int, Alert]] = []
        for i in changed[np.argsort(work.event[changed])].tolist():
            slot, change = int(work.slot[i]), verdicts["change"][i]
            if change == RESOLVES:
                alert = replace(self.states.notes.pop(slot), status="resolved", ended_at=int(work.time[i]))
            else:
                above = self.settings.rules.critical_above_threshold
                alert = alert_at(batch, judged, i, self.version, above, self.states.symbol_names)
                if change == PEAKS:
                    first = self.states.notes[slot]
                    alert = replace(
                        alert, id=first.id, started_at=first.started_at,
                        topic=first.topic, partition=first.partition, offset=first.offset,
                    )  # fmt: skip
                self.states.notes[slot] = alert
            if change in {FIRES, RESOLVES}:
                told.append((int(work.event[i]), alert))
        return [alert for _, alert in told]

    # -- memory ------------------------------------------------------------------------------------------------------

    def _evict(self) -> int:
        """Let the longest idle streams go once there are more than `max_streams`; what changed waits for `drain`."""
        excess = len(self.states.slots) - self.settings.max_streams
        if excess <= 0:
            return 0
        slots = np.fromiter(self.states.slots.values(), np.int64, len(self.states.slots))
        idle = slots[np.lexsort((slots, self.states.streams.rows["time"][slots]))][:excess]
        unsaved = np.array([slot for slot in idle.tolist() if slot in self._changed], np.int64)
        self._parked.update(self.states.pack(unsaved, self._model_number, self.version))
        for slot in idle.tolist():
            self._changed.discard(slot)
            self.states.remove(slot)
        return excess

    def drain(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and state of every stream that changed since the last drain; they then count as saved."""
        changed, self._changed = np.array(sorted(self._changed), np.int64), set()
        parked, self._parked = self._parked, {}
        yield from parked.items()
        yield from self.states.pack(changed, self._model_number, self.version)

    def forget(self, names: Iterable[str]) -> None:
        """Drop what is remembered of these streams, saved or not: their next events bring back what was saved."""
        for name in names:
            self._parked.pop(name, None)
            slot = self.states.slots.get(name, -1)
            if slot >= 0:
                self._changed.discard(slot)
                self.states.remove(slot)

    def roll_back(self) -> None:
        """Forget all streams that have changed since the last drain."""
        self.forget([*self._parked, *(self.states.names[slot] for slot in self._changed)])

    def streams_on(self, partition: Partition) -> list[str]:
        """Return the streams, drained or not, that were last seen on a partition."""
        mark, names = partition_hash(*partition), self.states.names
        slots = np.fromiter(self.states.slots.values(), np.int64, len(self.states.slots))
        here = slots[self.states.streams.rows["partition"][slots] == mark]
        return [
            *(names[slot] for slot in here),
            *(name for name, row in self._parked.items() if partition_of(row) == mark),
        ]

    @property
    def unsaved(self) -> int:
        """Streams that changed since the last drain and wait outside the tables: bounded by draining often enough."""
        return len(self._parked)

    def use(self, model: Forecaster) -> None:
        """Score with other weights from the next event on; each lane is primed as its next event comes.

        Raises ValueError where each stream has its own.
        """
        self._lanes.use(model)
        self.version = fingerprint(model)
        self._model_number += 1

    def histories(self, most: int, seed: int) -> tuple[NDArray[np.void], Int64]:
        """Return copies of recent windows, HISTORY [lanes], and which stream each lane is of, [lanes].

        Full windows only, and of a larger fleet `most` lanes, drawn at random.
        """
        slots = np.fromiter(self.states.slots.values(), np.int64, len(self.states.slots))
        streams = self.states.streams.rows[slots]
        counts = streams["lanes"].astype(np.int64)
        ends = np.cumsum(counts)
        lanes = np.repeat(streams["first_lane"] - (ends - counts), counts) + np.arange(counts.sum())
        histories = self.states.lanes.rows["history"]
        stream = np.repeat(slots, counts)
        full = np.flatnonzero(histories["events"][lanes] >= WINDOW)
        if len(full) > most:
            full = np.sort(np.random.default_rng(seed).choice(full, most, replace=False))
        return histories[lanes[full]], stream[full]

    def warming(self) -> int:
        """Return how many streams in memory are too young to be judged."""
        slots = np.fromiter(self.states.slots.values(), np.int64, len(self.states.slots))
        streams = self.states.streams.rows[slots]
        single = streams["single"] >= 0
        return int(np.where(single, streams["events"] < NOVELTY_WARMUP, streams["events"] < RETURN_WARMUP).sum())

    def lane_count(self) -> int:
        """Return the number of lanes in memory."""
        slots = np.fromiter(self.states.slots.values(), np.int64, len(self.states.slots))
        return int(self.states.streams.rows["lanes"][slots].sum())

    @property
    def nbytes(self) -> int:
        """Bytes that states take."""
        return self.states.nbytes

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._pool.shutdown()


def partition_hash(topic: str, partition: int) -> int:
    """Return what a stream's row keeps of the partition it was last seen on."""
    digest = hashlib.blake2b(f"{topic}\0{partition}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) | 1  # never 0, which means "none yet"
