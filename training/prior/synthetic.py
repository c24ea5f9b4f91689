"""Synthetic series of many kinds: all that the priors are trained on. They have seen no benchmark and no customer.

A series is a sum of seasons, levels, waves and walks with noise and spikes on top, in a share of them turned into
counts, exponentials, floors or grids, and in a share changed permanently at one row. Besides these `ORDINARY` kinds
there are `EXTRA` ones that are common in monitoring: constants, mostly-zero series, counters. A share of all is
sampled irregularly.

Everything is computed for all series at once, in columns. Units do not matter (the normaliser removes them); shapes
do. What it cannot teach: holidays, and how the features of one stream depend on each other.

`tensors_of` makes of them what a forecaster learns from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from training.learn.tbptt import Sequences
from training.network.horizons import HORIZONS
from training.network.inputs import INPUT_SIZE, Observations, inputs_of, targets

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Random = np.random.Generator

DAY, WEEK = 86_400.0, 604_800.0
STEPS = (60.0, 300.0, 300.0, 300.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)  # seconds; mostly five minutes
FIRST_START, LAST_START = 1_420_070_400, 1_735_689_600  # 2015-01-01, 2025-01-01 UTC
IRREGULAR = 0.18  # share of series with jitter, missing rows, gaps or random arrivals
EXTRA = {"constant": 0.02, "nearly_constant": 0.03, "sparse": 0.05, "counter": 0.05}  # shares, if `extra` asks for them
ORDINARY = "ordinary"
ROWS = 1200  # of a series that the priors learn from
WARM_UP = 5  # rows: with fewer, the normaliser knows nothing of the series


class Series(NamedTuple):
    """Series of equal length, one a row."""

    time: Int64  # [series, rows] ns since 1970-01-01 UTC, rising along a row
    value: Float64  # [series, rows] finite
    kind: NDArray[np.str_]  # [series] "ordinary" or a name of EXTRA
    irregular: Bool  # [series]


def make_series(
    rng: Random, count: int, rows: int, irregular: float = IRREGULAR, extra: dict[str, float] | None = None
) -> Series:
    """Draw `count` series of `rows` rows; the same generator state gives the same series.

    irregular: share with an uneven clock; extra: shares of the extra kinds (`EXTRA`), by default none.
    """
    shares = extra or {}
    names = np.array([*shares, ORDINARY])
    kind = rng.choice(names, count, p=[*shares.values(), 1.0 - sum(shares.values())])
    uneven = _some(rng, count, irregular)
    step = rng.choice(STEPS, count)  # [series] seconds
    elapsed = _clock(rng, step, uneven, rows)  # [series, rows] seconds
    start = rng.integers(FIRST_START, LAST_START, count)  # [series] seconds
    clock = start[:, None] + elapsed
    value = _ordinary(rng, clock, elapsed / step[:, None])
    for name, make in (
        ("constant", _constant),
        ("nearly_constant", _nearly_constant),
        ("sparse", _sparse),
        ("counter", _counter),
    ):
        chosen = kind == name
        if chosen.any():
            value[chosen] = make(rng, value[chosen])
    time = start[:, None] * 1_000_000_000 + np.rint(elapsed * 1e9).astype(np.int64)
    return Series(time, value, kind, uneven)


def tensors_of(series: Series, horizons: Sequence[int] = HORIZONS) -> Sequences:
    """Make inputs and targets of each series as one lane: Sequences [rows, series, ...]."""
    count, rows = series.value.shape
    lane = np.repeat(np.arange(count), rows)
    time = series.time.ravel()
    inputs, frames = inputs_of(Observations(lane, time, series.value.ravel(), time))
    frames = frames.reshape(count, rows)
    target = np.empty((len(horizons), count, rows), np.float32)
    for h, horizon in enumerate(horizons):
        for i in range(count):
            targets(series.value[i], frames[i], horizon, target[h, i])
    by_row = torch.from_numpy(np.ascontiguousarray(target.transpose(2, 1, 0)))  # [rows, series, horizons]
    mask = torch.isfinite(by_row)
    mask[:WARM_UP] = False
    by_lane = inputs.reshape(count, rows, INPUT_SIZE).transpose(1, 0, 2)
    return Sequences(torch.from_numpy(np.ascontiguousarray(by_lane)), torch.nan_to_num(by_row), mask)


def replay_set(rng: np.random.Generator, count: int, length: int, horizons: Sequence[int] = HORIZONS) -> Sequences:
    """Draw `count` windows of `length` rows at random places of fresh synthetic series, to mix into a retraining.

    A network that learns a fleet forgets what the fleet does not show; a share of these in each batch prevents that.
    """
    rows = max(ROWS, length)
    whole = tensors_of(make_series(rng, count, rows), horizons)
    first = torch.from_numpy(rng.integers(0, rows - length + 1, count))
    row = first[None, :] + torch.arange(length)[:, None]  # [length, count]
    lane = torch.arange(count)[None, :]
    return Sequences(*(tensor[row, lane] for tensor in whole))


# --- Draws and small helpers ------------------------------------------------------------------------------------------


def _some(rng: Random, count: int, share: float) -> Bool:
    return rng.random(count) < share


def _log_uniform(rng: Random, low: float, high: float, count: int) -> Float64:
    return np.exp(rng.uniform(np.log(low), np.log(high), count))


def _size(rng: Random, count: int) -> Float64:
    """Draw the amplitude of a part: around 1, seldom beyond 3."""
    return np.exp(0.5 * rng.standard_normal(count))


def _unit(x: Float64) -> Float64:
    """Bring each row to mean 0 and deviation 1 (a flat row stays flat)."""
    x = x - x.mean(axis=1, keepdims=True)
    deviation: Float64 = np.maximum(x.std(axis=1, keepdims=True), 1e-9)
    return x / deviation


def _recur(keep: Float64, pushes: Float64) -> Float64:
    """Run y_t = keep y_(t-1) + push_t along each row, from 0."""
    pushes = np.ascontiguousarray(pushes.T)  # [rows, series]: a step is one contiguous operation
    for t in range(1, len(pushes)):
        pushes[t] += keep * pushes[t - 1]
    return np.ascontiguousarray(pushes.T)


def _hold(switch: Bool, levels: Float64) -> Float64:
    """Keep the level of the last row at which `switch` was set (the first row's before that)."""
    rows = np.where(switch, np.arange(switch.shape[1]), 0)
    return np.take_along_axis(levels, np.maximum.accumulate(rows, axis=1), axis=1)


# --- When rows come ---------------------------------------------------------------------------------------------------


def _clock(rng: Random, step: Float64, uneven: Bool, rows: int) -> Float64:
    """Return seconds since the start, [series, rows]; exactly regular but for the `uneven` series."""
    intervals = np.repeat(step[:, None], rows, axis=1)
    intervals[:, 0] = 0.0
    count = int(uneven.sum())
    if count == 0:
        return np.cumsum(intervals, axis=1)
    wild = intervals[uneven]
    arrivals = _some(rng, count, 0.2)  # events, not samples: exponential intervals
    wild[arrivals] *= rng.exponential(1.0, (int(arrivals.sum()), rows))
    missing = _some(rng, count, 0.4)
    rate = _log_uniform(rng, 0.005, 0.3, int(missing.sum()))
    wild[missing] *= rng.geometric(1.0 - rate[:, None], (len(rate), rows))
    gaps = _some(rng, count, 0.4) & (rows > 1)
    for number in range(3):  # one to three gaps of an hour to a week
        chosen = np.flatnonzero(gaps & (rng.random(count) < 1.0 / (1 + number)))
        wild[chosen, rng.integers(1, max(rows, 2), len(chosen))] += _log_uniform(rng, 3600.0, WEEK, len(chosen))
    jitter = ~(arrivals | missing | gaps) | _some(rng, count, 0.4)
    late = rng.uniform(0.0, 1.0, (count, rows)) * rng.uniform(0.01, 0.9, (count, 1)) * step[uneven][:, None]
    intervals[uneven] = wild
    elapsed = np.cumsum(intervals, axis=1)
    elapsed[uneven] = np.where(jitter[:, None], np.sort(elapsed[uneven] + late, axis=1), elapsed[uneven])
    return elapsed


# --- The ordinary kinds -----------------------------------------------------------------------------------------------


def _ordinary(rng: Random, clock: Float64, position: Float64) -> Float64:
    """Sum parts, each present with its own probability, then noise, spikes, a lasting change and a transform.

    clock: seconds since 1970 [series, rows]; position: time since the start in steps [series, rows].
    """
    count, rows = clock.shape
    value = np.zeros((count, rows))
    parts: tuple[tuple[float, Callable[[Random, Float64, Float64], Float64]], ...] = (
        (0.5, _days),
        (0.4, _season),
        (0.3, _levels),
        (0.2, _sawtooth),
        (0.2, _square),
        (0.35, _autoregression),
        (0.15, _walk),
    )
    for share, part in parts:
        chosen = _some(rng, count, share)
        made = _unit(part(rng, clock[chosen], position[chosen]))
        value[chosen] += made * _size(rng, len(made))[:, None]
    value += _noise(rng, count, rows)
    spiky = _some(rng, count, 0.3)
    value[spiky] += _spikes(rng, int(spiky.sum()), rows)
    _change_for_good(rng, value)
    _transform(rng, value)
    return value


def _fourier(rng: Random, phase: Float64, most: int, fade: Float64) -> Float64:
    """Sum 1..most harmonics of `phase` (in turns) with random amplitudes that fade as k^-fade."""
    count = len(phase)
    harmonics = rng.integers(1, most + 1, count)
    total = np.zeros_like(phase)
    for k in range(1, most + 1):
        amplitude = rng.standard_normal(count) / k**fade * (harmonics >= k)
        shift = rng.random(count)
        has = harmonics >= k
        turns = 2.0 * np.pi * (k * phase[has] + shift[has, None])
        total[has] += amplitude[has, None] * np.sin(turns)
    return total


def _days(rng: Random, clock: Float64, position: Float64) -> Float64:
    count = len(clock)
    wave = _unit(_fourier(rng, clock / DAY, 8, rng.uniform(0.5, 1.5, count)))
    weekend = np.floor(clock / DAY + 3.0) % 7 >= 5  # 1970-01-01 was a Thursday
    quiet = np.where(_some(rng, count, 0.4), rng.uniform(0.2, 0.8, count), 1.0)
    low = wave.min(axis=1, keepdims=True)
    return np.where(weekend, low + (wave - low) * quiet[:, None], wave)


def _season(rng: Random, clock: Float64, position: Float64) -> Float64:
    count = len(position)
    period = _log_uniform(rng, 6.0, 300.0, count)
    return _fourier(rng, position / period[:, None], 6, rng.uniform(0.5, 1.5, count))


def _autoregression(rng: Random, clock: Float64, position: Float64) -> Float64:
    return _recur(rng.uniform(0.5, 0.999, len(clock)), rng.standard_normal(clock.shape))


def _walk(rng: Random, clock: Float64, position: Float64) -> Float64:
    return np.cumsum(rng.standard_normal(clock.shape), axis=1)


def _levels(rng: Random, clock: Float64, position: Float64) -> Float64:
    count, rows = clock.shape
    rate = _log_uniform(rng, 0.002, 0.1, count)
    choices = rng.standard_normal((count, 4))
    levels = rng.integers(2, 5, (count, 1))
    pick = np.floor(rng.random((count, rows)) * levels).astype(np.int64)
    return _hold(rng.random((count, rows)) < rate[:, None], np.take_along_axis(choices, pick, axis=1))


def _sawtooth(rng: Random, clock: Float64, position: Float64) -> Float64:
    count = len(position)
    phase = position / rng.uniform(10.0, 200.0, (count, 1)) + rng.random((count, 1))
    return np.where(_some(rng, count, 0.5)[:, None], phase % 1.0, -(phase % 1.0))


def _square(rng: Random, clock: Float64, position: Float64) -> Float64:
    count = len(position)
    phase = position / rng.uniform(6.0, 150.0, (count, 1)) + rng.random((count, 1))
    return ((phase % 1.0) < rng.uniform(0.05, 0.95, (count, 1))).astype(np.float64)


def _noise(rng: Random, count: int, rows: int) -> Float64:
    noise = rng.standard_normal((count, rows))
    kind = rng.integers(0, 4, count)
    noise[kind == 1] = rng.standard_t(3.0, (int((kind == 1).sum()), rows))
    noise[kind == 2] = rng.exponential(1.0, (int((kind == 2).sum()), rows)) - 1.0
    n = int((kind == 3).sum())
    volatility = _recur(rng.uniform(0.95, 0.999, n), rng.standard_normal((n, rows)))
    noise[kind == 3] *= np.exp(_unit(volatility) * rng.uniform(0.2, 1.0, (n, 1)))
    return noise * _log_uniform(rng, 0.01, 1.0, count)[:, None]


def _spikes(rng: Random, count: int, rows: int) -> Float64:
    rate = _log_uniform(rng, 0.003, 0.1, count)
    sign = np.where(_some(rng, count, 0.85), 1.0, -1.0)
    height = np.exp(rng.standard_normal((count, rows)) * 0.7) * (sign * _size(rng, count) * 2.0)[:, None]
    keep = np.where(_some(rng, count, 0.5), rng.uniform(0.3, 0.95, count), 0.0)
    return _recur(keep, np.where(rng.random((count, rows)) < rate[:, None], height, 0.0))


def _change_for_good(rng: Random, value: Float64) -> None:
    """In a quarter of the series, change scale and level from one row on."""
    count, rows = value.shape
    chosen = _some(rng, count, 0.25)
    since = rng.integers(rows // 10, rows, count)
    scale = _size(rng, count)[:, None]
    shift = rng.normal(0.0, 2.0, (count, 1))
    after = chosen[:, None] & (np.arange(rows) >= since[:, None])
    value[:] = np.where(after, value * scale + shift, value)


def _transform(rng: Random, value: Float64) -> None:
    """Turn shares of the series into Poisson counts, exponentials, floored or coarsely rounded ones."""
    count = len(value)
    kind = rng.choice(5, count, p=(0.15, 0.10, 0.07, 0.08, 0.60))
    counts, exponentials, floored, rounded = (kind == k for k in range(4))
    if counts.any():
        level = rng.uniform(-1.0, 5.0, (int(counts.sum()), 1))
        rates = np.exp(np.clip(_unit(value[counts]) * rng.uniform(0.2, 1.0, level.shape) + level, -10.0, 12.0))
        value[counts] = rng.poisson(rates)
    if exponentials.any():
        spread = rng.uniform(0.3, 1.2, (int(exponentials.sum()), 1))
        value[exponentials] = np.exp(np.clip(_unit(value[exponentials]) * spread, -12.0, 12.0))
    if floored.any():
        some = value[floored]
        share = rng.uniform(0.1, 0.8, (len(some), 1))
        least = np.take_along_axis(np.sort(some, axis=1), (share * some.shape[1]).astype(np.int64), axis=1)
        value[floored] = np.maximum(some, least)
    if rounded.any():
        grid = value[rounded].std(axis=1, keepdims=True) * _log_uniform(rng, 0.05, 1.0, int(rounded.sum()))[:, None]
        value[rounded] = np.rint(value[rounded] / np.maximum(grid, 1e-9)) * grid


# --- The extra kinds: each is made from ordinary series of the same rows ----------------------------------------------


def _constant(rng: Random, base: Float64) -> Float64:
    """Repeat one value, for half of them another one after some row."""
    count, rows = base.shape
    level = rng.integers(0, 100, (count, 2)).astype(np.float64)
    changed = (np.arange(rows) >= rng.integers(1, 2 * rows, (count, 1))).astype(np.int64)
    return np.take_along_axis(level, changed, axis=1)


def _nearly_constant(rng: Random, base: Float64) -> Float64:
    """Make a level that is left now and then for one or a few rows, or that steps between near values."""
    count, rows = base.shape
    rate = _log_uniform(rng, 0.002, 0.05, count)
    away = rng.random((count, rows)) < rate[:, None]
    steps = rng.integers(-3, 4, (count, rows)).astype(np.float64)
    returns = np.where(away, steps, 0.0)
    stays = _hold(away, steps)
    return 100.0 + np.where(_some(rng, count, 0.5)[:, None], returns, stays)


def _sparse(rng: Random, base: Float64) -> Float64:
    """Leave zero in seldom rows or bursts, whose height follows the ordinary series."""
    count, rows = base.shape
    begin, end = _log_uniform(rng, 0.003, 0.1, count), rng.uniform(0.1, 1.0, count)
    draw = rng.random((count, rows))
    active = np.zeros((count, rows), np.bool_)
    for t in range(1, rows):
        active[:, t] = np.where(active[:, t - 1], draw[:, t] >= end, draw[:, t] < begin)
    height = np.exp(np.clip(_unit(base), -3.0, 3.0) * rng.uniform(0.1, 1.0, (count, 1)))
    height = np.where(_some(rng, count, 0.5)[:, None], np.ceil(height * 3.0), height)
    return np.where(active, height, 0.0)


def _counter(rng: Random, base: Float64) -> Float64:
    """Sum up a rate that is never negative, back to zero at resets."""
    count, rows = base.shape
    rate = np.maximum(_unit(base) + rng.uniform(-0.5, 4.0, (count, 1)), 0.0)
    total = np.cumsum(rate, axis=1)
    reset = (
        rng.random((count, rows))
        < np.where(_some(rng, count, 0.7), _log_uniform(rng, 0.001, 0.03, count), 0.0)[:, None]
    )
    before = total - rate
    return total - np.where(np.maximum.accumulate(reset, axis=1), _hold(reset, before), 0.0)
