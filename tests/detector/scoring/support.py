"""Drives `judge` on arrays, without the engine: streams of numbers, and what the shipped network forecasts of them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.scoring.batch import MEASURED, VERDICT, Forecasts, Numbers, SortedBatch, Tables, Verdicts
from detector.scoring.claims import CHANNELS
from detector.scoring.incidents import AlertRules
from detector.scoring.judge import judge
from detector.scoring.rules import StreamRules
from detector.state.records import STREAM, lane_row
from training.network.inputs import FRAME, INPUT_SIZE, MAX_VALUE, Observations, carried_interval, featurise
from training.network.kernels import Network
from training.network.weights import load_prior

SECOND, MINUTE, HOUR, DAY = (seconds * 1_000_000_000 for seconds in (1, 60, 3600, 86_400))
MIDNIGHT = 20_717 * DAY  # 2026-09-21, a Monday
RULES = AlertRules()
ROWS = 10 * 288  # ten days of five minutes
AT = 8 * 288 + 150  # where something happens


@functools.cache
def network() -> tuple[Network, NDArray[np.int64], np.dtype[np.void]]:
    """Return the shipped network, its horizons, and the record of a lane that fits them."""
    weights = load_prior()
    horizons = np.array(weights.shape.horizons, np.int64)
    return Network(weights), horizons, lane_row(weights.shape.horizons)


class Judged(NamedTuple):
    """What `judge` said of one stream's events."""

    verdict: NDArray[np.void]  # VERDICT [events]
    measured: NDArray[np.void]  # MEASURED [observations]
    event: NDArray[np.int64]  # [observations]
    feature: NDArray[np.int64]  # [observations]
    masked: NDArray[np.bool_]  # [observations]

    @property
    def alerts(self) -> list[int]:
        """Return the events that fired an alert or topped its peak."""
        return np.flatnonzero(self.verdict["alert"]).tolist()

    def channels(self) -> list[tuple[int, str]]:
        """Return each alert's event and channel."""
        return [(k, CHANNELS[self.verdict["channel"][k]]) for k in self.alerts]


class Streams:
    """Streams with their state between batches; each has so many features, all of them numbers."""

    def __init__(self, *features: int, rules: AlertRules = RULES) -> None:
        self.rules = StreamRules(rules).table()
        self.network, self.horizons, lane = network()
        self.streams = np.zeros(len(features), STREAM)
        self.streams["lanes"] = features
        self.streams["first_lane"] = np.cumsum([0, *features[:-1]])
        self.lanes = np.zeros(sum(features), lane)
        self.hidden = np.zeros((sum(features), self.network.shape.state_size), np.float32)
        self.seen, self.time, self.interval = ([0] * len(features) for _ in range(3))

    def step(self, *parts: tuple[NDArray[np.int64], NDArray[np.float64]]) -> list[Judged]:
        """Judge a batch: of each stream its times [events] and values [events, features], NaN where one is missing."""
        slot = np.repeat(np.arange(len(parts)), [len(time) for time, _ in parts])
        time = np.concatenate([time for time, _ in parts]).astype(np.int64)
        present = [~np.isnan(value) for _, value in parts]
        counts = np.concatenate([p.sum(axis=1) for p in present])
        start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        first_lane = self.streams["first_lane"]
        lane = np.concatenate([first_lane[k] + np.nonzero(p)[1] for k, p in enumerate(present)]).astype(np.int64)
        value = np.concatenate([value[p] for (_, value), p in zip(parts, present, strict=True)])
        value = np.clip(value, -MAX_VALUE, MAX_VALUE)  # as the engine does
        times, at = np.repeat(time, counts), np.arange(len(lane))

        inputs, frames = np.empty((len(lane), INPUT_SIZE), np.float32), np.empty(len(lane), FRAME)
        featurise(self.lanes["input"], Observations(lane, times, value, times), 0, len(lane), inputs, frames)
        outputs = np.empty((len(lane), self.network.shape.output_size), np.float32)
        self.network.step(lane, inputs, self.hidden, 0, len(lane), outputs)

        events, none = np.arange(len(time)), np.zeros(len(lane), np.int64)
        interval = np.array([self._interval(k, t) for k, t in zip(slot.tolist(), time.tolist(), strict=True)])
        batch = SortedBatch(events, slot, time, interval, 0 * time, start, at, lane, value, none, time, 0 * time > 0)
        numbers = Numbers(start, at, lane, times, value, times)
        out = Verdicts(np.zeros(len(lane), MEASURED), np.zeros(len(time), VERDICT), np.zeros(len(lane), np.bool_))
        forecasts = Forecasts(self.horizons, frames, outputs)
        judge(Tables(self.streams, self.lanes), batch, numbers, forecasts, self.rules, (0, len(time)), out)

        event = np.repeat(events, counts)
        result = []
        for k in range(len(parts)):
            mine, of = slot == k, slot[event] == k
            first = int(np.argmax(mine)) if mine.any() else 0
            feature = lane[of] - first_lane[k]
            result.append(Judged(out.verdicts[mine], out.measured[of], event[of] - first, feature, out.masked[of]))
        return result

    def _interval(self, k: int, time: int) -> float:
        """Return a stream's running mean time between events once one has come, as admission has it."""
        if self.seen[k]:
            self.interval[k] = carried_interval(self.interval[k], self.seen[k], (time - self.time[k]) * 1e-9)
        self.seen[k], self.time[k] = self.seen[k] + 1, time
        return float(self.interval[k])


def judged(
    value: NDArray[np.float64],
    *,
    step: int = 5 * MINUTE,
    time: NDArray[np.int64] | None = None,
    rules: AlertRules = RULES,
) -> Judged:
    """Judge one stream from its first event: value [events] or [events, features]."""
    value = value.reshape(len(value), -1)
    time = clocked(len(value), step) if time is None else time
    return Streams(value.shape[1], rules=rules).step((time, value))[0]


def rule_of(rules: AlertRules = RULES) -> np.void:
    """Return the RULE of a stream that none matches."""
    return StreamRules(rules).table().of[0]


def clocked(rows: int, step: int = 5 * MINUTE) -> NDArray[np.int64]:
    """Return `rows` times, `step` ns apart, from a midnight on."""
    return MIDNIGHT + step * np.arange(rows, dtype=np.int64)


def daily(rng: np.random.Generator, time: NDArray[np.int64], noise: float = 1.0) -> NDArray[np.float64]:
    """Return a daily wave of amplitude 10 around 100 with normal noise, [events]."""
    return 100.0 + 10.0 * np.sin(2 * np.pi * time / DAY) + noise * rng.standard_normal(len(time))


def calm(seed: int = 1, rows: int = ROWS, noise: float = 1.0) -> NDArray[np.float64]:
    """Return a daily wave with noise: [rows]."""
    return daily(np.random.default_rng(seed), clocked(rows), noise)


def several(seed: int = 1, features: int = 4, rows: int = ROWS) -> NDArray[np.float64]:
    """Return features that share a daily wave, each in its unit: [rows, features]."""
    rng = np.random.default_rng(seed)
    common = daily(rng, clocked(rows), 0.5) - 100.0
    return 50.0 + (common[:, None] + rng.standard_normal((rows, features))) * rng.uniform(0.5, 20.0, features)


def assert_same(one: NDArray[np.void], two: NDArray[np.void]) -> None:
    """Assert that two structured arrays are equal bit for bit, field by field: what lies between fields is nothing."""
    for name in one.dtype.names or ():
        if one[name].dtype.names:
            assert_same(one[name], two[name])
        else:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)
