"""A bidirectional pass over history: what each event looks like from its past and from its future together.

For labelling and post-mortems only: it looks ahead, so it says nothing of how well a detector that cannot look ahead
would have done. The same forecaster runs over each lane forwards, as the engine does, and over the lane's history
backwards (Schuster and Paliwal 1997; here both directions have the same weights, for the prior has seen series of many
kinds and nobody has trained one for the other direction). So every event has two forecasts, each a Student-t; they are
mixed with weights in proportion to their precision:

    expected = w_p m_p + w_f m_f                                    location from the past, from the future
    spread^2 = w_p (s_p^2 + (m_p - expected)^2) + w_f (...)         scale of the mixture, disagreement included
    tail     = w_p P(|T_p| >= |z_p|) + w_f P(|T_f| >= |z_f|)        small only if it is odd from both sides

An event is thus odd if nothing before it and nothing after it leads there; the first event after a lasting shift is
not, for its future explains it. What the tail is worth is read off the lane's whole history: the score is -log10 of
the share of its events that are at least as odd. That looks ahead as well, and the rarest of n events has log10(n).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtr
from tqdm import tqdm

from connectors.batches import Float64, Int64, Scores, numbered
from connectors.errors import UserError
from detector.commands.score_table import PER_FEATURE, cells, feature_cells, feature_columns
from training.network.inputs import INPUTS, LIMIT, MAX_VALUE, WARM_UP_EVENTS, Observations, inputs_of
from training.network.model import Forecaster
from training.network.weights import Weights

PREFIX = "lookahead_"  # begins the name of every column that knows the future
MAX_OBSERVATIONS = 20_000_000  # held at once: 24 bytes a value as read and 32 of answers, 1.1 GB
AT_ONCE = 2_000_000  # observations under way: with inputs, frames and forecasts of both directions 250 bytes each
LANES_AT_ONCE = 256  # that torch steps together; the longest of them pads the others
ROWS_AT_ONCE = 10_000  # of the table, as text
TIME_AT_ONCE = 1024  # events of each that torch steps in one go, the state carried on: bounds its memory
INSIDE_BAND = 0.99  # share of a lane's events between lower and upper, as of the engine's band
WEEK = 604_800_000_000_000  # ns
EDGE = 1_000_000  # ns by which a mirrored time lies before its slot's end, so that slots of the day keep their events

_SIN_DAY = INPUTS.index("sin_day")
_STREAM = 1 << 32  # between the numbers of two streams' lanes: more features than there are


class SmoothError(UserError):
    """The history cannot be smoothed; the text says why and what to do."""


class Smoothed(NamedTuple):
    """What the two directions say together, in the order of the history; NaN where neither has a forecast."""

    score: Float64  # [events] -log10 of the share of the lane's events at least as odd, >= 0; of all lanes the oddest's
    expected: Float64  # [observations]
    lower: Float64
    upper: Float64


class ScoredHistory:
    """Collects scored events, as the engine hands them out, until all are there to be smoothed."""

    def __init__(self) -> None:
        self._streams: dict[str, int] = {}
        self._features: dict[str, int] = {}  # numbered as they come: as ScoreTable's columns
        self._parts: list[tuple[Int64, Int64, Float64]] = []  # lane, time and value, each [observations]
        self._counts = [np.zeros(1, np.int64)]  # [events] observations
        self._observations = 0

    def add(self, scores: Scores) -> None:
        """Add a batch. Raises SmoothError when there are too many values in all."""
        batch, rows = scores.batch, scores.observation
        self._observations += len(rows)
        if self._observations > MAX_OBSERVATIONS:
            raise SmoothError(
                f"the files hold over {MAX_OBSERVATIONS:,} values, more than --smooth keeps in memory: "
                "smooth a part of them, or go without --smooth"
            )
        count = np.diff(scores.start)
        event = np.repeat(scores.event, count)
        streams, features = numbered(batch.streams, self._streams), numbered(batch.features, self._features)
        lane = streams[batch.stream[event]] * _STREAM + features[batch.feature[rows]]
        self._parts.append((lane, batch.time[event], batch.value[rows]))
        self._counts.append(count)

    def columns(self, weights: Weights, device: str) -> tuple[list[str], Iterator[str]]:
        """Return names and rows of the columns that a pass over all of it, backwards too, adds to a ScoreTable."""
        lane, time, value = map(np.concatenate, zip(*self._parts, strict=True))
        start = np.cumsum(np.concatenate(self._counts))
        model = Forecaster.of(weights).to(device)
        with tqdm(desc="looking ahead", total=len(lane), unit=" values", unit_scale=True, disable=None) as bar:
            smoothed = smooth(model, lane, time, value, start, bar.update)
        names = feature_columns([PREFIX + kind for kind in PER_FEATURE], self._features)
        return [PREFIX + "score", *names], _rows(smoothed, start, lane % _STREAM, len(self._features))


def _rows(smoothed: Smoothed, start: Int64, feature: Int64, features: int) -> Iterator[str]:
    score, *bands = smoothed
    for first in range(0, len(score), ROWS_AT_ONCE):
        edges = start[first : first + ROWS_AT_ONCE + 1]
        here = slice(int(edges[0]), int(edges[-1]))
        table = feature_cells(edges, feature[here], [band[here] for band in bands], features)
        yield from map(cells, np.column_stack((score[first : first + ROWS_AT_ONCE], table)).tolist())


def smooth(
    model: Forecaster,
    lane: Int64,
    time: Int64,
    value: Float64,
    start: Int64,
    on_done: Callable[[int], object] = lambda _: None,
) -> Smoothed:
    """Smooth whole lanes: lane, time (ns) and value are [observations], those of event i are start[i]:start[i + 1].

    A lane is taken in the order of time, whatever the order in which its events came. What has no value, a symbol, is
    passed over.
    """
    share, expected, lower, upper = (np.full(len(lane), np.nan) for _ in range(4))
    order = np.lexsort((time, lane))  # stable
    order = order[np.isfinite(value[order])]
    value = np.clip(value, -MAX_VALUE, MAX_VALUE)
    for rows in _whole_lanes(lane, order):
        tail, expected[rows], spread = _both_ways(model, lane[rows], time[rows], value[rows])
        edges = np.flatnonzero(np.diff(lane[rows], prepend=-1, append=-1))
        for a, b in pairwise(edges.tolist()):
            one = rows[a:b]
            moves = value[one].min() < value[one].max()  # where nothing does, one is as odd as the other: not at all
            share[one] = tail_share(tail[a:b] if moves else 0.0 * tail[a:b])
            band = spread[a:b] * _quantile(np.abs(value[one] - expected[one]) / spread[a:b])
            lower[one], upper[one] = expected[one] - band, expected[one] + band
        on_done(len(rows))
    return Smoothed(_over_lanes(share, start), expected, lower, upper)


def tail_share(tail: Float64) -> Float64:
    """Return for each of a lane's tail probabilities [events] the share of them that are no larger; NaN for NaN."""
    known = np.isfinite(tail)
    no_larger = np.searchsorted(np.sort(tail), tail, side="right")  # NaN comes last
    return np.where(known, no_larger / max(int(known.sum()), 1), np.nan)


def _quantile(sizes: Float64) -> float:
    known = sizes[np.isfinite(sizes)]
    return float(np.quantile(known, INSIDE_BAND)) if len(known) else math.nan


def _over_lanes(share: Float64, start: Int64) -> Float64:
    """Return each event's score: the smallest share of its k lanes, for which there were k chances (Sidak 1967)."""
    count = np.diff(start)
    event = np.repeat(np.arange(len(count)), count)
    known = np.isfinite(share)
    least = np.full(len(count), np.inf)
    np.minimum.at(least, event[known], share[known])
    lanes = np.bincount(event[known], minlength=len(count))
    with np.errstate(divide="ignore", invalid="ignore"):  # log 0 for a share of 1, and for no lane times 0
        chance = -np.expm1(lanes * np.log1p(-np.minimum(least, 1.0)))
    return np.where(lanes > 0, np.abs(np.log10(chance)), np.nan)


def _whole_lanes(lane: Int64, order: Int64) -> Iterator[Int64]:
    """Yield `order` in parts that hold whole lanes, about AT_ONCE observations each or one lane that is longer."""
    edges = np.append(np.flatnonzero(np.diff(lane[order], prepend=-1)), len(order))
    first = 0
    for a, b in pairwise(edges.tolist()):
        if a > first and b - first > AT_ONCE:
            yield order[first:a]
            first = a
    if first < len(order):
        yield order[first:]


def _both_ways(model: Forecaster, lane: Int64, time: Int64, value: Float64) -> tuple[Float64, Float64, Float64]:
    """Return tail probability, expectation and spread of observations sorted by lane and time, each [observations]."""
    past = _one_way(model, lane, time, value, backwards=False)
    back = slice(None, None, -1)
    # Mirrored at a week's end, so that what shares a slot of the day or week still does: such is the time of profiles.
    mirrored = (int(time.max()) // WEEK + 1) * WEEK - EDGE - time[back]
    future = _one_way(model, lane[back], mirrored, value[back], backwards=True)[:, back]
    tails, locations, scales, weight = np.stack([past, future], axis=1)  # each [2, observations]
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = weight / weight.sum(axis=0)  # NaN where neither direction has a forecast
    expected = (weight * locations).sum(axis=0)
    variance = (weight * (scales**2 + (locations - expected) ** 2)).sum(axis=0)
    return (weight * tails).sum(axis=0), expected, np.sqrt(variance)


def _one_way(model: Forecaster, lane: Int64, time: Int64, value: Float64, *, backwards: bool) -> Float64:
    """Return rows tail probability, location, scale and precision, [4, observations], of one direction's forecasts.

    Times rise within a lane. Where there is no forecast yet, and while the lane's unit is young, precision is 0.
    """
    number = np.unique(lane, return_inverse=True)[1].astype(np.int64)
    inputs, frames = inputs_of(Observations(number, time, value, time))
    if backwards:
        inputs[:, _SIN_DAY] *= -1.0  # mirrored time runs backwards round the clock: with this it is the true time again
    out = _in_data_units(value, frames, _forecasts(model, number, inputs))
    first = np.flatnonzero(np.diff(number, prepend=-1))
    place = np.arange(len(lane)) - np.repeat(first, np.diff(first, append=len(lane)))
    out[:, place < WARM_UP_EVENTS] = 0.0
    return out


@torch.inference_mode()
def _forecasts(model: Forecaster, lane: Int64, inputs: NDArray[np.float32]) -> Float64:
    """Return location, log scale and freedom of the next observation, [observations, 3], in the lane's unit."""
    out = np.empty((len(lane), 3))
    first = np.flatnonzero(np.diff(lane, prepend=-1))  # lanes lie together
    length = np.diff(first, append=len(lane))
    by_length = np.argsort(length, kind="stable")
    for at in range(0, len(first), LANES_AT_ONCE):
        some = by_length[at : at + LANES_AT_ONCE]
        state = model.initial_state(len(some))
        for begin in range(0, int(length[some].max()), TIME_AT_ONCE):
            step = begin + np.arange(min(TIME_AT_ONCE, int(length[some].max()) - begin))
            here = step[:, None] < length[some]  # [time, lanes]; what is past a lane's end steps on nothing
            rows = np.where(here, first[some] + step[:, None], 0)
            part = torch.from_numpy(inputs[rows] * here[:, :, None]).to(state.device)
            forecast, state = model(part, state)
            for k, column in enumerate(forecast):
                out[rows[here], k] = column[..., 0].double().cpu().numpy()[here]
    return out


def _in_data_units(value: Float64, frames: NDArray[np.void], forecast: Float64) -> Float64:
    """Return tail probability, location, scale and precision, [4, observations]; NaN where there is no frame."""
    location, (scale, freedom) = np.clip(forecast[:, 0], -LIMIT, LIMIT), (np.exp(forecast[:, 1]), forecast[:, 2])
    mean, deviation = frames["mean"], frames["deviation"]
    unit = np.clip(np.arcsinh((value - mean) / deviation), -LIMIT, LIMIT)
    width = deviation * np.cosh(location) * scale  # to first order
    return np.stack(
        [
            2.0 * stdtr(freedom, -np.abs(unit - location) / scale),
            mean + deviation * np.sinh(location),
            width,
            # Fisher's information of a Student-t's location: finite for every freedom, where 1 / variance is not
            (freedom + 1.0) / ((freedom + 3.0) * width**2),
        ]
    )
