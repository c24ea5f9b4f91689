"""Synthetic streams as batches of events, and what an engine makes of them. An event's offset is its name."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.batches import Alert, EventBatch, Partition
from detector.engine.engine import Engine

MINUTE, HOUR, DAY, WEEK = (seconds * 1_000_000_000 for seconds in (60, 3600, 86_400, 604_800))
START = 1_790_000_000 * 1_000_000_000  # 2026-09-21, a Monday
PARTITION = Partition("metrics", 0)

FLEET_ROWS = 850  # of each stream: beyond every warm-up, several fits of the subspace, windows that went round

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


class Event(NamedTuple):
    """One event; `offset` identifies it."""

    stream: str
    time: int  # ns
    values: dict[str, float | str]  # text is a symbol
    offset: int = 0
    partition: Partition = PARTITION


def batch_of(events: Sequence[Event]) -> EventBatch:
    """Make a batch of events, in their order."""
    partitions: dict[Partition, int] = {}
    partition = [partitions.setdefault(e.partition, len(partitions)) for e in events]
    return replace(
        EventBatch.of((e.stream, e.time, e.values) for e in events),
        partitions=list(partitions),
        partition=np.array(partition, np.int32),
        offset=np.array([e.offset for e in events], np.int64),
    )


def in_batches(events: Sequence[Event], size: int) -> Iterator[EventBatch]:
    """Cut events into batches of `size`."""
    for at in range(0, len(events), size):
        yield batch_of(events[at : at + size])


def table(names: Sequence[str], time: Int64, value: Float64, first_offset: int = 0) -> EventBatch:
    """Make a batch of streams with one feature "value" that report together: time [rows], value [rows, streams]."""
    rows, count = value.shape
    stream, offset = np.tile(np.arange(count), rows), np.arange(first_offset, first_offset + value.size)
    batch = EventBatch.of_table(names, ["value"], stream, np.repeat(time, count), value.reshape(-1, 1))
    return replace(batch, partitions=[PARTITION], offset=offset)


def wide(name: str, time: Int64, value: Float64, features: Sequence[str] | None = None) -> list[Event]:
    """Return the events of one stream: time [rows], value [rows, features], where NaN is missing."""
    names = features or [f"f{k}" for k in range(value.shape[1])]
    return [
        Event(name, t, {f: x for f, x in zip(names, row, strict=True) if not np.isnan(x)})
        for t, row in zip(time.tolist(), value.tolist(), strict=True)
    ]


def numbered(events: Iterable[Event]) -> list[Event]:
    """Number the events' offsets in their order."""
    return [event._replace(offset=number) for number, event in enumerate(events)]


def clock(rows: int, step: int = 5 * MINUTE, start: int = START) -> Int64:
    """Return `rows` times, `step` ns apart."""
    return start + step * np.arange(rows, dtype=np.int64)


def seasonal(rng: np.random.Generator, time: Int64, noise: float = 0.1) -> Float64:
    """Return a daily wave of amplitude 1 around 10 with normal noise, [rows]."""
    phase = rng.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * (time - START) / DAY + phase)
    return 10.0 + wave + noise * rng.standard_normal(len(time))


def _single(rng: np.random.Generator, name: str, **options: float) -> list[Event]:
    time = clock(FLEET_ROWS)
    value = seasonal(rng, time, **options)
    value[rng.choice(FLEET_ROWS, 6, replace=False)] += rng.choice([-8.0, 8.0], 6)
    value[600:640] += 3.0
    return wide(name, time, value[:, None])


def _many(rng: np.random.Generator, name: str, features: int) -> list[Event]:
    time = clock(FLEET_ROWS)
    common = seasonal(rng, time)
    value = common[:, None] * rng.uniform(0.5, 20.0, features) + rng.standard_normal((FLEET_ROWS, features))
    value[rng.choice(FLEET_ROWS, 5, replace=False), rng.integers(features)] += 50.0
    value[500:530, : max(features // 3, 1)] -= 15.0
    return wide(name, time, value)


def _changing(rng: np.random.Generator, name: str) -> list[Event]:
    """Features that come and go, in any order, missing now and then; a new one every hundred events."""
    time = clock(FLEET_ROWS)
    events = _many(rng, name, 12)
    shuffled = []
    for row, (event, t) in enumerate(zip(events, time.tolist(), strict=True)):
        known = list(event.values.items())[: 2 + row // 100]
        present = [pair for pair in known if rng.random() > 0.1]
        rng.shuffle(present)
        shuffled.append(Event(name, t, {str(k): float(v) for k, v in present}))
    return shuffled


def _growing(rng: np.random.Generator, name: str) -> list[Event]:
    """One feature, a second one midway, six more towards the end, each first seen in a separate event."""
    time = clock(FLEET_ROWS)
    value = seasonal(rng, time)[:, None] + 0.3 * rng.standard_normal((FLEET_ROWS, 8))
    for feature, first in enumerate((0, 403, 601, 602, 603, 604, 604, 700)):
        value[:first, feature] = np.nan
    value[450, 1] += 9.0
    value[[701, 750], 5] += 9.0
    return wide(name, time, value)


def _irregular(rng: np.random.Generator, name: str) -> list[Event]:
    """Off the grid, with a gap of a week, duplicates and late events, now and then on another partition."""
    step = rng.exponential(5 * MINUTE, FLEET_ROWS).astype(np.int64) + 1
    step[400] = WEEK
    time = clock(1)[0] + np.cumsum(step)
    time[rng.choice(np.arange(1, FLEET_ROWS), 20, replace=False)] -= 2 * MINUTE
    time[100] = time[99]
    events = wide(name, time, seasonal(rng, time)[:, None])
    return [e._replace(partition=Partition("metrics", int(k % 300 == 299))) for k, e in enumerate(events)]


def _constant(name: str) -> list[Event]:
    value = np.full((FLEET_ROWS, 1), 5.0)
    value[500:520] = 7.0
    value[700:] = 0.0
    return wide(name, clock(FLEET_ROWS), value)


def _wild(rng: np.random.Generator, name: str, features: int) -> list[Event]:
    """Magnitudes from denormal to the largest there is."""
    value = (
        rng.standard_normal((FLEET_ROWS, features))
        * 10.0 ** rng.choice([-310.0, -30.0, 0.0, 0.0, 0.0, 30.0, 307.0], FLEET_ROWS)[:, None]
    )
    return wide(name, clock(FLEET_ROWS), value)


def fleet() -> list[list[Event]]:
    """Return streams of every family and every trouble, FLEET_ROWS events each, numbered through."""
    rng = np.random.default_rng(3)
    made = [
        _single(rng, "single"),
        _single(rng, "noisy", noise=1.0),
        _constant("constant"),
        _irregular(rng, "irregular"),
        _wild(rng, "wild", 1),
        _many(rng, "two", 2),
        _many(rng, "three", 3),
        _wild(rng, "wild few", 3),
        _many(rng, "many", 22),
        _wild(rng, "wild many", 5),
        _changing(rng, "changing"),
        _growing(rng, "growing"),
    ]
    return [
        [event._replace(offset=number * FLEET_ROWS + k) for k, event in enumerate(events)]
        for number, events in enumerate(made)
    ]


def interleaved(streams: Sequence[list[Event]], seed: int) -> list[Event]:
    """Mix streams at random; each stream's own order stays."""
    turns = [k for k, events in enumerate(streams) for _ in events]
    random.Random(seed).shuffle(turns)
    rest = [iter(events) for events in streams]
    return [next(rest[k]) for k in turns]


class Outcome(NamedTuple):
    """All that an engine said, in the order of offsets."""

    offset: Int64  # [scored]
    score: Float64
    threshold: Float64
    alert: NDArray[np.bool_]
    warming: NDArray[np.bool_]
    surprise: Float64
    rank: Float64
    channel: NDArray[np.int8]
    interval: Float64
    observations: Int64  # [scored] how many each has
    expected: Float64  # [observations]
    lower: Float64
    upper: Float64
    contribution: Float64
    alerts: list[Alert]  # by stream, each stream's in their order
    duplicates: int
    late: int
    repartitioned: set[str]


def run(engine: Engine, batches: Iterable[EventBatch]) -> Outcome:
    """Step an engine through batches and gather what it says."""
    events: list[list[NDArray[np.generic]]] = []
    observations: list[list[NDArray[np.generic]]] = []
    alerts: list[Alert] = []
    duplicates = late = 0
    repartitioned: set[str] = set()
    for batch in batches:
        step = engine.step(batch)
        s = step.scores
        offset, counts = batch.offset[s.event], np.diff(s.start)
        of_events = [s.score, s.threshold, s.alert, s.warming, s.surprise, s.rank, s.channel, s.interval]
        events.append([offset, *of_events, counts])
        observations.append([np.repeat(offset, counts), s.expected, s.lower, s.upper, s.contribution])
        alerts += step.alerts
        duplicates, late = duplicates + step.duplicates, late + step.late
        repartitioned |= set(step.repartitioned)
    by_event = [np.concatenate(column) for column in zip(*events, strict=True)]
    by_observation = [np.concatenate(column) for column in zip(*observations, strict=True)]
    order, inner = np.argsort(by_event[0], kind="stable"), np.argsort(by_observation[0], kind="stable")
    columns = [column[order] for column in by_event] + [column[inner] for column in by_observation[1:]]
    alerts.sort(key=lambda alert: alert.stream)  # stable: each stream's own order stays
    return Outcome._make([*columns, alerts, duplicates, late, repartitioned])


def auc(score: Float64, positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: how likely a positive scores above a negative, ties counting half."""
    values, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    hits = int(positive.sum())
    return float((rank[positive].sum() - hits * (hits + 1) / 2) / (hits * (len(values[place]) - hits)))
