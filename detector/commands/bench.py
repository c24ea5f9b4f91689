"""`longwatch bench`: how much the engine scores on this machine with these settings, and what a stream costs.

`make bench` compares that with the bare LSTM that bounds it, and with ingest from a broker.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from connectors.batches import EventBatch
from detector.config.settings import Settings
from detector.engine.engine import Engine
from detector.service.engine_setup import device_of, engine_settings
from detector.service.model_choice import first_model

BATCH = 10_000  # events of a micro-batch
TEMPLATES = 200  # streams that see a past; all others begin as copies of them
PAST = 600  # events before the clock starts: the warm-up of a stream of many features is 210
FEATURES = 1, 4, 12
AGES = 64  # templates are not all of one age: what the engine does every 16 or 32 events must not fall together
MINUTE = 60_000_000_000
START = 1_763_600_000_000_000_000

Rates = tuple[float, float]  # done a second of the clock, and a second of CPU time of all threads


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Measure, and print all figures."""
    streams, rounds, batches = scale(quick=options.quick)
    print(conditions(settings, rounds))
    fleets = [Fleet(settings, streams, features) for features in FEATURES]
    turns = {fleet.name: partial(fleet.turn, batches) for fleet in fleets}
    print_rates("observations", measure_in_turns(turns, rounds))
    for fleet in fleets:
        print(fleet.stages())
        print(fleet.first_events())
    for fleet in fleets:
        print(fleet.memory())
        fleet.engine.close()


def scale(*, quick: bool) -> tuple[int, int, int]:
    """Return how many streams, rounds, and micro-batches a round to measure with."""
    return (1_000, 3, 8) if quick else (10_000, 5, 32)


def conditions(settings: Settings, rounds: int) -> str:
    """Return what the figures depend on, besides the processor."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    threads, device = engine_settings(settings).threads, device_of(settings)
    return f"{cores} cores, load {load:.1f}; {threads} threads, device {device}; {rounds} rounds"


class Fleet:
    """An engine that knows `streams` streams of so many features, all past their warm-up."""

    def __init__(self, settings: Settings, streams: int, features: int) -> None:
        of = f"{features} feature" + "s" * (features > 1)
        self.name = f"engine, {streams:,} streams of {of}"
        self._features = [f"feature {k}" for k in range(features)]
        self._streams = [f"stream {i}" for i in range(streams)]
        self._rng = np.random.default_rng(0)
        self._step = PAST
        self._stages: dict[str, float] = {}  # CPU seconds
        self._observations, self._at = 0, 0.0
        model, device = first_model(settings), device_of(settings)
        engine = partial(Engine, model, engine_settings(settings), device, on_stage=self._ends)
        self._new_engine = engine
        rows = self._pasts(engine())
        self._row_bytes = np.mean([len(row) for row in rows])
        self.engine = engine(fetch=lambda names: [rows[int(name.split()[1]) % TEMPLATES] for name in names])
        for _ in range(2):  # the first loads the streams
            self.engine.step(self._next_batch())
        self._stages.clear()

    def turn(self, batches: int) -> Rates:
        """Score so many micro-batches, each of BATCH events in random order; return observations a second."""
        seconds = cpu_seconds = 0.0
        for _ in range(batches):
            batch = self._next_batch()
            began, cpu_began = time.perf_counter(), time.process_time()
            self._at = cpu_began
            self.engine.step(batch)
            seconds += time.perf_counter() - began
            cpu_seconds += time.process_time() - cpu_began
        observations = batches * BATCH * len(self._features)
        self._observations += observations
        return observations / seconds, observations / cpu_seconds

    def _ends(self, stage: str) -> None:
        now = time.process_time()
        self._stages[stage] = self._stages.get(stage, 0.0) + now - self._at
        self._at = now

    def stages(self) -> str:
        """Return a line that says what an observation cost in each stage of the turns so far, in ns of CPU time."""
        costs = (f"{name} {1e9 * seconds / self._observations:,.0f}" for name, seconds in self._stages.items())
        return f"  {self.name:38} ns an observation: {', '.join(costs)}"

    def first_events(self) -> str:
        """Return a line that says what the first event of each stream costs a new engine, and what the next ones do."""
        engine, costs = self._new_engine(), []
        for step in range(10):
            batch = self._batch(self._streams, np.arange(len(self._streams)), np.full(len(self._streams), step))
            began = time.process_time()
            engine.step(batch)
            costs.append(1000 * (time.process_time() - began))
        engine.close()
        return (
            f"  {self.name:38} ms of CPU time for the first event of each: {costs[0]:.0f}, then {median(costs[1:]):.0f}"
        )

    def memory(self) -> str:
        """Return a line that says what a stream takes in memory and when saved."""
        stream = self.engine.streams.nbytes / len(self._streams)
        return f"  {self.name:38} {stream:>11,.0f} bytes a stream, {self._row_bytes:,.0f} when saved"

    def _pasts(self, engine: Engine) -> list[bytes]:
        """Return the saved rows of TEMPLATES streams that have seen PAST - AGES to PAST events."""
        step, stream = np.divmod(np.arange(PAST * TEMPLATES), TEMPLATES)
        for part in np.array_split(np.flatnonzero(step >= stream % AGES), PAST * TEMPLATES // BATCH):
            engine.step(self._batch(self._streams[:TEMPLATES], stream[part], step[part]))
        rows = [row for _, row in engine.streams.drain()]
        engine.close()
        return rows

    def _next_batch(self) -> EventBatch:
        rows = BATCH // len(self._streams)
        stream = np.concatenate([self._rng.permutation(len(self._streams)) for _ in range(rows)])
        step = np.repeat(np.arange(self._step, self._step + rows), len(self._streams))
        self._step += rows
        return self._batch(self._streams, stream, step)

    def _batch(self, names: list[str], stream: NDArray[np.int64], step: NDArray[np.int64]) -> EventBatch:
        """Return one event a stream and step (a minute each): a wave of the stream's own phase, and noise."""
        wave = 10.0 * np.sin(step / 20.0 + stream)
        values = wave[:, None] + self._rng.standard_normal((len(stream), len(self._features)))
        return EventBatch.of_table(names, self._features, stream, START + MINUTE * step, values)


def measure_in_turns(turns: Mapping[str, Callable[[], Rates]], rounds: int) -> dict[str, list[Rates]]:
    """Return each one's rates by name, one a round; in turns, so that other work on the machine slows all alike."""
    results: dict[str, list[Rates]] = {name: [] for name in turns}
    with tqdm(total=rounds * len(turns), leave=False, disable=None) as bar:
        for _ in range(rounds):
            for name, turn in turns.items():
                bar.set_description(name)
                results[name].append(turn())
                bar.update()
    return results


def print_rates(unit: str, results: Mapping[str, Sequence[Rates]]) -> None:
    """Print how much of a unit each does in a second of the clock and of CPU time."""
    print(f"  {unit:38} {'a second':>11}  {'(least, most)':24} {'a CPU second':>12}")
    for name, rates in results.items():
        by_clock, by_cpu = zip(*rates, strict=True)
        spread = f"({min(by_clock):,.0f}, {max(by_clock):,.0f})"
        print(f"  {name:38} {median(by_clock):>11,.0f}  {spread:24} {median(by_cpu):>12,.0f}")
