"""What a stream's row says of its recent past and of what comes next: its windows replayed by the network.

A row is what `StreamStates.pack` gives: whoever looks at a copy cannot change what is scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.engine.local_time import local_time
from detector.engine.stages import WARM_UP_PASSES
from detector.history.columns import COLUMNS, EVENT, NOT_KNOWN, Columns, no_events
from detector.scoring.channels.forecast import in_data_unit, network_band
from detector.state.lane_network import lanes_on
from detector.state.names import SYMBOLIC
from detector.state.stream_states import StreamStates
from training.network.compiled import compiled
from training.network.history import WINDOW, unroll
from training.network.inputs import (
    FRAME,
    INPUT_SIZE,
    INPUTS,
    LASTING_OUTLIERS,
    MAX_INCREMENT,
    MEMORY,
    VALUE,
    WARM_UP_EVENTS,
    Observations,
    deviation_of,
    featurise,
)
from training.network.kernels import Network
from training.network.weights import Weights

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

GAP = INPUTS.index("gap")
NS = 1_000_000_000


class Band(NamedTuple):
    """What is expected at some horizons, and the ends of the network's own 99 % band; in the data's unit."""

    horizons: list[int]  # events ahead
    expected: list[float]
    lower: list[float]
    upper: list[float]


class HiddenStates(NamedTuple):
    """A lane's hidden state after each event of its window, of the last layer."""

    time: Int64  # [events] ns; but for the last an estimate, by the gaps
    values: NDArray[np.float32]  # [events, units]


class _Window(NamedTuple):
    """A lane's recent events, oldest first."""

    time: Int64  # [events] ns
    observed: Float64  # [events]
    frames: NDArray[np.void]  # FRAME [events]: the unit of each one's forecast
    inputs: NDArray[np.float32]  # [events, INPUT_SIZE]


class StreamCopy:
    """A stream as its row has it, apart from the engine; for one thread."""

    def __init__(self, name: str, row: bytes, weights: Weights, timezone: str = "UTC") -> None:
        """Read a row with the weights that score now. Raises StateError for one of another layout or damaged."""
        shape = weights.shape
        self._states = StreamStates(lanes_on(weights, "cpu"), shape.state_size, shape.horizons)
        slot = self._states.unpack(name, row, 1, weights.fingerprint())
        stream = self._states.streams.rows[slot]
        self._first, self._timezone, self._shape = int(stream["first_lane"]), timezone, shape
        self._network = Network(weights)
        self.last_event = int(stream["admission"]["time"])  # ns
        # numeric ones, by name
        self._lanes = {
            feature: self._first + i
            for i, feature in enumerate(self._states.features_of(slot))
            if not feature.startswith(SYMBOLIC)
        }

    @property
    def features(self) -> list[str]:
        """Names of the features that are numbers."""
        return list(self._lanes)

    def older(self, newer: Mapping[str, int], most: int) -> Columns:
        """Return the last events, `most` at most, before each feature's newest `newer` of them.

        Observed values are restored through the normaliser, to a ten-thousandth of a deviation; what was expected is
        what the present weights say over the window; times follow from the gaps, to a few percent of each. Scores are
        not known.
        """
        lanes = [(feature, self._window(lane)) for feature, lane in self._lanes.items()]
        kept = [(feature, w, len(w.time) - newer.get(feature, 0)) for feature, w in lanes]
        kept = [one for one in kept if one[2] > 0]
        if not kept:
            return no_events()
        rows = [count for _, _, count in kept]
        expected, lower, upper = zip(*(self._replayed(feature, w) for feature, w, _ in kept), strict=True)

        def column(parts: Sequence[NDArray[np.float64]]) -> Float64:
            return np.concatenate([part[:n] for part, n in zip(parts, rows, strict=True)])

        # what came together has the same gaps, and so the same time to the millisecond
        exact = np.concatenate([w.time[:n] for _, w, n in kept])
        time, event = np.unique(np.round(exact * 1e-6).astype(np.int64), return_inverse=True)
        order = np.argsort(event, kind="stable")
        start = np.searchsorted(event[order], np.arange(len(time) + 1))
        values = {name: np.zeros(len(time), dtype) for name, dtype in EVENT.items()}
        values["time"], values["channel"][:], values["model"][:] = exact[order[start[:-1]]], NOT_KNOWN, NOT_KNOWN
        values["score"][:] = values["threshold"][:] = np.nan
        for name, found in {
            "feature": np.repeat(np.arange(len(kept)), rows),
            "symbol": np.full(len(order), NOT_KNOWN),
            "expected_symbol": np.full(len(order), NOT_KNOWN),
            "observed": column([w.observed for _, w, _ in kept]),
            "expected": column(expected),
            "lower": column(lower),
            "upper": column(upper),
            "contribution": np.full(len(order), np.nan),
        }.items():
            values[name] = found[order].astype(COLUMNS[name])
        columns = Columns([feature for feature, _, _ in kept], [], [], start, values)
        return columns.rows(max(len(columns) - most, 0), len(columns))

    def forecast(self) -> dict[str, Band]:
        """Return what is expected next of each feature that is a number, if events go on as they came."""
        found: dict[str, Band] = {}
        for feature, lane in self._lanes.items():
            record = self._states.lanes.rows[lane : lane + 1]
            normaliser = record["input"].copy()
            time = normaliser["time"] + np.round(normaliser["interval"] * NS).astype(np.int64)
            one = Observations(np.zeros(1, np.int64), time, normaliser["mean"], local_time(time, self._timezone))
            inputs, frames = np.empty((1, INPUT_SIZE), np.float32), np.empty(1, FRAME)
            featurise(normaliser, one, 0, 1, inputs, frames)
            if math.isnan(frames["mean"][0]):
                continue
            state = self._states.recurrent.read(np.array([lane]))
            if int(record["model"][0]) != 1:  # its hidden state belongs to former weights
                state = self._warmed_up(self._window(lane).inputs)
            output = np.empty((1, self._shape.output_size), np.float32)
            self._network.step(np.zeros(1, np.int64), inputs, state, 0, 1, output)
            count = len(self._shape.horizons)
            by_horizon = np.ascontiguousarray(output.reshape(3, count).T)  # location, log scale, freedom
            spans = _spans(np.repeat(frames, count), by_horizon, record["score"]["forecast"])
            found[feature] = Band(list(self._shape.horizons), *(column.tolist() for column in spans))
        return found

    def hidden(self, feature: str) -> HiddenStates:
        """Return the hidden states over a feature's window, by replaying it. Raises KeyError for no such number."""
        window = self._window(self._lanes[feature])
        state = self._warmed_up(window.inputs)
        at = (self._shape.layers - 1) * self._shape.state_sizes[0]
        values = np.empty((len(window.inputs), self._shape.hidden_size), np.float32)
        unused, lane = np.empty((1, self._shape.output_size), np.float32), np.zeros(1, np.int64)
        for row in range(len(values)):
            self._network.step(lane, window.inputs[row : row + 1], state, 0, 1, unused)
            values[row] = state[0, at : at + self._shape.hidden_size]
        return HiddenStates(window.time, values)

    def _window(self, lane: int) -> _Window:
        record = self._states.lanes.rows[lane : lane + 1]
        inputs, _, counts = unroll(record["history"])
        rows = inputs[0, WINDOW - int(counts[0]) :]
        time, observed, frames = np.empty(len(rows), np.int64), np.empty(len(rows)), np.empty(len(rows), FRAME)
        _restore(record["input"], rows, time, observed, frames)
        return _Window(time, observed, frames, rows)

    def _warmed_up(self, inputs: NDArray[np.float32], passes: int = WARM_UP_PASSES) -> NDArray[np.float32]:
        """Return the state [1, state_size] after so many passes over a window, from nothing."""
        state = np.zeros((1, self._shape.state_size), np.float32)
        unused, lane = np.empty((len(inputs), self._shape.output_size), np.float32), np.zeros(len(inputs), np.int64)
        for _ in range(passes):
            self._network.step(lane, inputs, state, 0, len(inputs), unused)
        return state

    def _replayed(self, feature: str, window: _Window) -> tuple[Float64, Float64, Float64]:
        """Return what the network expects of each event of a window, and the ends of its band."""
        state = self._warmed_up(window.inputs, WARM_UP_PASSES - 1)
        count = len(window.inputs)
        outputs = np.empty((count, self._shape.output_size), np.float32)
        self._network.step(np.zeros(count, np.int64), window.inputs, state, 0, count, outputs)
        first = np.ascontiguousarray(outputs[:, :: len(self._shape.horizons)])  # of the next event
        lane = self._lanes[feature]
        return _spans(window.frames, first, self._states.lanes.rows[lane : lane + 1]["score"]["forecast"])


def _spans(
    frames: NDArray[np.void], said: NDArray[np.float32], seen: NDArray[np.void]
) -> tuple[Float64, Float64, Float64]:
    """Return expected values and the ends of their bands, in the data's unit; within the range `seen` by the lane.

    frames: FRAME [rows]; said [rows, 3]: location, log scale, degrees of freedom; seen: forecast_state [1].
    """
    spans = np.empty((3, len(frames)))
    low = float(min(seen["low"][0], seen["former_low"][0]))
    high = float(max(seen["high"][0], seen["former_high"][0]))
    _fill_spans(frames, said, low, high, spans)
    return spans[0], spans[1], spans[2]


@compiled
def _fill_spans(frames: NDArray[np.void], said: NDArray[np.float32], low: float, high: float, out: Float64) -> None:
    for t in range(len(frames)):
        frame = frames[t]
        if math.isnan(frame.mean):
            out[:, t] = math.nan
            continue
        out[0, t] = in_data_unit(said[t, 0], frame.mean, frame.deviation, low, high)
        out[1, t], out[2, t] = network_band(frame, said[t], out[0, t])


@compiled
def _restore(
    normalisers: NDArray[np.void],  # NORMALISER [1], after the last event
    inputs: NDArray[np.float32],  # [rows, INPUT_SIZE]
    time: Int64,  # out [rows] ns
    observed: Float64,  # out [rows]
    frames: NDArray[np.void],  # out FRAME [rows]
) -> None:
    """Go back from the last event, undoing the running normaliser and the gaps one by one.

    Not restored exactly: values beyond the unit's limit, and what lies before a long run of outliers.
    """
    r = normalisers[0]
    mean, variance, outliers = r.mean, r.variance, r.outliers
    at, unit, number = r.time, float(r.value), r.events
    for t in range(len(inputs) - 1, -1, -1):
        time[t] = at
        observed[t] = mean + deviation_of(mean, variance) * math.sinh(unit)
        if number <= 1:
            frames[t].mean = frames[t].deviation = math.nan
            continue
        weight = max(1.0 / number, 1.0 / MEMORY)
        increment = (observed[t] - mean) / (1.0 - weight)
        before = variance / (1.0 - weight) - weight * increment * increment
        furthest = MAX_INCREMENT * 2.0 ** min(max(outliers - LASTING_OUTLIERS, 0), 200)
        if number > WARM_UP_EVENTS and (before <= 0.0 or abs(increment) > furthest * math.sqrt(before)):
            before = variance / ((1.0 - weight) * (1.0 + weight * furthest * furthest))  # it was clipped
            increment = math.copysign(furthest * math.sqrt(before), increment)
        mean, variance, outliers = mean - weight * increment, max(before, 0.0), max(outliers - 1, 0)
        frames[t].mean, frames[t].deviation = mean, deviation_of(mean, variance)
        at -= round(r.interval * math.exp(inputs[t, GAP]) * 1e9)
        unit, number = float(inputs[t, VALUE]), number - 1
