"""A sorted batch through all stages: features, forecasts, errors, verdicts.

Every stage is a scan over the batch with its own carried state, and nothing upstream depends on anything downstream:
inputs know nothing of scores, the network nothing of thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.engine.batch_layout import Pass
from detector.scoring.batch import MEASURED, VERDICT, Forecasts, SortedBatch, Symbols, Tables, Verdicts
from detector.scoring.judge import judge
from detector.scoring.rules import RuleTable
from detector.scoring.symbols import measure_symbols, network
from detector.state.stream_states import StreamStates
from training.network.history import WINDOW, record, unroll
from training.network.inputs import FRAME, INPUT_SIZE, Observations, featurise
from training.network.shape import Shape
from training.symbols.kernels import PREDICTION, predict

Int64 = NDArray[np.int64]

THREAD_EVENTS = 512  # a thread is worth its start for so many events
WARM_UP_PASSES = 3  # over the window: one leaves the first 30 events after a swap 0.04 to 0.08 nats worse
WARM_UP_LANES = 4096  # lanes whose windows are unrolled together: 23 MB


class ScoredBatch(NamedTuple):
    """What the stages made of a sorted batch."""

    batch: SortedBatch
    measured: NDArray[np.void]  # MEASURED [observations]
    verdicts: NDArray[np.void]  # VERDICT [events]
    predictions: NDArray[np.void]  # PREDICTION [symbols]


class Stages:
    """The stages' order. `on_stage` is called with the name of each as it ends."""

    def __init__(
        self,
        states: StreamStates,
        shape: Shape,
        rules: RuleTable,
        threads: int,
        on_stage: Callable[[str], None] | None,
    ) -> None:
        self._states, self.rules = states, rules
        self.on_stage = on_stage or (lambda _: None)
        self._horizons, self._output_size = np.array(shape.horizons, np.int64), shape.output_size
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def run(self, one: Pass, model: int) -> ScoredBatch:
        """Score a batch and learn it; `model` is the number of the network's weights."""
        batch, numbers, symbols = one
        states, lanes = self._states, self._states.lanes.rows
        count = len(numbers.at)
        inputs, frames = np.empty((count, INPUT_SIZE), np.float32), np.empty(count, FRAME)
        outputs, predictions = np.empty((count, self._output_size), np.float32), np.zeros(len(symbols.at), PREDICTION)
        events, observations = len(batch.event), len(batch.lane)
        out = Verdicts(np.empty(observations, MEASURED), np.empty(events, VERDICT), np.empty(observations, np.bool_))
        values = Observations(numbers.lane, numbers.time, numbers.value, numbers.local)
        forecasts = Forecasts(self._horizons, frames, outputs)
        tables = Tables(states.streams.rows, lanes)

        def features(first: int, last: int) -> None:
            a, b = int(numbers.start[first]), int(numbers.start[last])
            featurise(lanes["input"], values, a, b, inputs, frames)

        def forecast(first: int, last: int) -> None:
            states.recurrent.step(numbers.lane, inputs, int(numbers.start[first]), int(numbers.start[last]), outputs)

        def score(first: int, last: int) -> None:
            a, b = int(numbers.start[first]), int(numbers.start[last])
            if len(symbols.at):
                span = int(symbols.start[first]), int(symbols.start[last])
                measure_symbols(states.symbols.rows, symbols, predictions, *span, out.measured, batch.value)
            judge(tables, batch, numbers, forecasts, self.rules, (first, last), out)
            record(lanes["history"], numbers.lane[a:b], inputs[a:b], out.masked[numbers.at[a:b]], 0, b - a)

        self._parallel(batch.slot, features)
        self.on_stage("features")
        self._warm_up(numbers.lane, model)
        self._parallel(batch.slot, forecast, concurrent=states.recurrent.concurrent)
        self._predict_symbols(batch.slot, symbols, predictions)
        self.on_stage("forecast")
        self._parallel(batch.slot, score)
        self.on_stage("score")
        return ScoredBatch(batch, out.measured, out.verdicts, predictions)

    def _warm_up(self, lane: Int64, model: int) -> None:
        """Give lanes whose hidden state belongs to former weights one of the present: replay their recent window."""
        rows, recurrent = self._states.lanes.rows, self._states.recurrent
        stale = np.unique(lane[rows["model"][lane] != model])
        for at in range(0, len(stale), WARM_UP_LANES):
            lanes = stale[at : at + WARM_UP_LANES]
            window, _, counts = unroll(rows["history"][lanes])
            recurrent.write(lanes, np.zeros((len(lanes), self._states.state_size), np.float32))
            kept = np.arange(WINDOW)[None] >= WINDOW - counts[:, None]  # [lanes, WINDOW]
            replayed, recent = np.repeat(lanes, counts), np.ascontiguousarray(window[kept])
            unused = np.empty((len(replayed), self._output_size), np.float32)
            for _ in range(WARM_UP_PASSES):
                recurrent.step(replayed, recent, 0, len(replayed), unused)
            rows["model"][lanes] = model

    def _predict_symbols(self, slot: Int64, symbols: Symbols, out: NDArray[np.void]) -> None:
        """Step the categorical lanes."""
        if not len(symbols.at):
            return
        weights, lanes = network(), self._states.symbols.rows["lane"]

        def scan(first: int, last: int) -> None:
            span = int(symbols.start[first]), int(symbols.start[last])
            predict(lanes, weights, symbols.row, symbols.symbol, *span, out)

        self._parallel(slot, scan)

    def _parallel(self, slot: Int64, scan: Callable[[int, int], None], *, concurrent: bool = True) -> None:
        """Call scan(first event, last event) on stretches of whole streams; on all at once where not `concurrent`."""
        events = len(slot)
        if self._pool is None or events < 2 * THREAD_EVENTS or not concurrent:
            scan(0, events)
            return
        edges = [0]
        for k in range(1, self._threads):
            edges.append(max(int(np.searchsorted(slot, slot[events * k // self._threads])), edges[-1]))
        edges.append(events)
        scans = [self._pool.submit(scan, a, b) for a, b in pairwise(edges)]
        wait(scans)  # all of them: where one raises, none may still change what is restored
        for done in scans:
            done.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._pool.shutdown()
