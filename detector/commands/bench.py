"""`longwatch bench`: engine and network against the bare LSTM that bounds them, measured in turns in one run.

What is compared is measured in turns (A B A B ...), and a ratio is the median of the rounds' own ratios: other work on
the machine then slows both sides alike. CPU time, of all threads, is given too for the same reason.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from connectors.batches import EventBatch, Partition
from detector.config.settings import Settings
from detector.engine.engine import Engine, EngineSettings
from detector.service.engine_setup import device_of, engine_settings
from detector.service.model_choice import first_model
from training.network.inputs import INPUT_SIZE
from training.network.kernels import Network
from training.network.weights import Weights

BATCH = 10_000  # events of a micro-batch, lanes of a bare step
ROUNDS, QUICK_ROUNDS = 5, 3
STREAMS, QUICK_STREAMS = 10_000, 1_000
TEMPLATES = 200  # streams that see a past; all others begin as copies of them
PAST = 600  # events before the clock starts: the warm-up of a stream of many features is 210
AGES = 64  # templates are not all of one age: what the engine does every 16 or 32 events must not fall together
SECOND = 1_000_000_000
START = 1_763_600_000 * SECOND

ENGINE_GOAL = 0.2  # of the bare LSTM step


@dataclass(frozen=True, slots=True)
class Timing:
    """How much was done in one turn, and in what time."""

    count: int
    seconds: float
    cpu_seconds: float  # of all threads

    @property
    def rate(self) -> float:
        """Per second of the clock."""
        return self.count / self.seconds

    @property
    def cpu_rate(self) -> float:
        """Per second of CPU time."""
        return self.count / max(self.cpu_seconds, 1e-9)


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to measure: `turn` does a stretch of its work and times it."""

    name: str
    unit: str
    turn: Callable[[], Timing]


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Measure, and print all figures."""
    run_bench(settings, quick=options.quick)


def run_bench(settings: Settings, *, quick: bool) -> None:
    """Print all figures."""
    chosen, model, device = engine_settings(settings), first_model(settings), device_of(settings)
    torch.set_num_threads(chosen.threads)
    streams, rounds = (QUICK_STREAMS, QUICK_ROUNDS) if quick else (STREAMS, ROUNDS)
    print(_conditions(chosen.threads, device, rounds, quick=quick))

    fleets = [Fleet(model, chosen, device, streams, features) for features in (1, 4)]
    steps = 8 if quick else 32
    contenders = [
        Contender(f"bare torch LSTM, batch {BATCH:,}", "lane-steps", lambda: bare_lstm(model, device, steps)),
        Contender("compiled kernel alone, 1 thread", "lane-steps", lambda: bare_kernel(model, steps)),
        *(Contender(fleet.name, "observations", partial(fleet.turn, steps)) for fleet in fleets),
    ]
    results = measure_in_turns(contenders, rounds)
    print_rates(contenders, results)
    for fleet, timings in zip(fleets, results[2:], strict=True):
        print_ratio(f"{fleet.name} / bare LSTM", timings, results[0], ENGINE_GOAL)

    print("\nmemory, bytes")
    for fleet in fleets:
        stream, row = fleet.stream_bytes()
        print(
            f"  {_features(fleet.features):12} {stream:>9,.0f} a stream, {stream / fleet.features:>7,.0f} a lane;"
            f" saved as a row of {row:,.0f}"
        )
        fleet.close()


class Fleet:
    """An engine that knows `streams` streams of so many features, all past their warm-up."""

    def __init__(self, model: Weights, settings: EngineSettings, device: str, streams: int, features: int) -> None:
        self.name = f"engine, {streams:,} streams of {_features(features)}"
        self.features = features
        self._streams = streams
        self._rng = np.random.default_rng(0)
        self._names = [f"stream {i}" for i in range(streams)]
        self._step = PAST
        rows = self._pasts(model, settings, device)
        self._row_bytes = float(np.mean([len(row) for row in rows]))

        def fetch(names: Sequence[str]) -> list[bytes | None]:
            return [rows[int(name.split()[1]) % TEMPLATES] for name in names]

        self._engine = Engine(model, settings, device, fetch)
        for _ in range(2):  # the first loads the streams
            self._engine.step(self._next_batch())

    def turn(self, batches: int) -> Timing:
        """Score so many micro-batches, each of BATCH events in random order."""
        seconds = cpu_seconds = 0.0
        for _ in range(batches):
            batch = self._next_batch()
            began, cpu_began = time.perf_counter(), time.process_time()
            self._engine.step(batch)
            seconds += time.perf_counter() - began
            cpu_seconds += time.process_time() - cpu_began
        return Timing(batches * BATCH * self.features, seconds, cpu_seconds)

    def stream_bytes(self) -> tuple[float, float]:
        """Return the bytes that a stream takes in memory, and those of its saved row."""
        return self._engine.streams.nbytes / self._streams, self._row_bytes

    def close(self) -> None:
        """End the engine's threads and free its tables."""
        self._engine.close()
        del self._engine

    def _pasts(self, model: Weights, settings: EngineSettings, device: str) -> list[bytes]:
        """Return the saved rows of TEMPLATES streams that have seen PAST - AGES to PAST events."""
        engine = Engine(model, settings, device)
        names = [f"template {i}" for i in range(TEMPLATES)]
        for first in range(0, PAST, BATCH // TEMPLATES):
            last = min(first + BATCH // TEMPLATES, PAST)
            stream = np.tile(np.arange(TEMPLATES), last - first)
            step = np.repeat(np.arange(first, last), TEMPLATES)
            old_enough = step >= stream % AGES
            engine.step(self._batch(names, stream[old_enough], step[old_enough]))
        rows = [row for _, row in engine.streams.drain()]
        engine.close()
        return rows

    def _next_batch(self) -> EventBatch:
        rows = BATCH // self._streams
        stream = np.concatenate([self._rng.permutation(self._streams) for _ in range(rows)])
        step = np.repeat(np.arange(self._step, self._step + rows), self._streams)
        self._step += rows
        return self._batch(self._names, stream, step)

    def _batch(self, names: list[str], stream: NDArray[np.int64], step: NDArray[np.int64]) -> EventBatch:
        """Return one event a stream and step (a minute each): a wave of the stream's own phase, and noise."""
        events, features = len(stream), self.features
        wave = 10.0 * np.sin(step / 20.0 + stream)
        time_ns = START + 60 * SECOND * step
        return EventBatch(
            streams=names,
            features=[f"feature {k}" for k in range(features)],
            partitions=[Partition("bench", 0)],
            stream=stream.astype(np.int32),
            time=time_ns,
            received=time_ns,
            partition=np.zeros(events, np.int32),
            offset=np.arange(events),
            start=features * np.arange(events + 1),
            feature=np.tile(np.arange(features, dtype=np.int32), events),
            value=(wave[:, None] + self._rng.standard_normal((events, features))).ravel(),
        )


def bare_lstm(model: Weights, device: str, steps: int) -> Timing:
    """Step torch's own LSTM of the model's size for BATCH lanes: states carried, nothing gathered, nothing scored."""
    lstm = torch.nn.LSTM(INPUT_SIZE, model.shape.hidden_size, batch_first=True).to(device).eval()
    inputs = torch.randn(BATCH, 1, INPUT_SIZE, device=device)

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    with torch.inference_mode():
        state = (torch.zeros(1, BATCH, model.shape.hidden_size, device=device),) * 2
        for _ in range(3):
            _, state = lstm(inputs, state)
        wait()
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in range(steps):
            _, state = lstm(inputs, state)
        wait()
        return Timing(BATCH * steps, time.perf_counter() - began, time.process_time() - cpu_began)


def bare_kernel(model: Weights, steps: int) -> Timing:
    """Step the engine's compiled kernels on one thread: cells and heads, states gathered and scattered by lane."""
    network = Network(model)
    inputs = np.random.default_rng(0).standard_normal((BATCH, INPUT_SIZE)).astype(np.float32)
    state = np.zeros((BATCH, model.shape.state_size), np.float32)
    out = np.empty((BATCH, model.shape.output_size), np.float32)
    lane = np.arange(BATCH)
    network.step(lane, inputs, state, 0, BATCH, out)
    began, cpu_began = time.perf_counter(), time.process_time()
    for _ in range(steps):
        network.step(lane, inputs, state, 0, BATCH, out)
    return Timing(BATCH * steps, time.perf_counter() - began, time.process_time() - cpu_began)


def measure_in_turns(contenders: Sequence[Contender], rounds: int) -> list[list[Timing]]:
    """Return each contender's timings, one a round."""
    results: list[list[Timing]] = [[] for _ in contenders]
    with tqdm(total=rounds * len(contenders), leave=False, disable=None) as bar:
        for _ in range(rounds):
            for contender, timings in zip(contenders, results, strict=True):
                bar.set_description(contender.name)
                timings.append(contender.turn())
                bar.update()
    return results


def print_rates(contenders: Sequence[Contender], results: Sequence[Sequence[Timing]]) -> None:
    """Print how much each does in a second of the clock and of CPU time."""
    print(f"  {'':38} {'a second':>11}  {'(least, most)':24} {'a CPU second':>12}")
    for contender, timings in zip(contenders, results, strict=True):
        rates = [timing.rate for timing in timings]
        spread = f"({min(rates):,.0f}, {max(rates):,.0f})"
        cpu = median(timing.cpu_rate for timing in timings)
        print(f"  {contender.name:38} {median(rates):>11,.0f}  {spread:24} {cpu:>12,.0f}  {contender.unit}")


def print_ratio(name: str, over: Sequence[Timing], under: Sequence[Timing], goal: float) -> None:
    """Print how fast one is compared with another: the median of the ratios of each round."""
    ratios = [a.rate / b.rate for a, b in zip(over, under, strict=True)]
    cpu = median(a.cpu_rate / b.cpu_rate for a, b in zip(over, under, strict=True))
    spread = f"({min(ratios):.2f}, {max(ratios):.2f})"
    print(f"  {name:50} {median(ratios):.2f} {spread:14} by CPU time {cpu:.2f}; goal {goal}")


def _conditions(threads: int, device: str, rounds: int, *, quick: bool) -> str:
    cores = len(os.sched_getaffinity(0))
    scale = "quick: figures are rough" if quick else f"{rounds} rounds"
    return (
        f"{_processor()}, {cores} cores, load {os.getloadavg()[0]:.1f}; {threads} threads, device {device},"
        f" torch {torch.__version__}; {scale}"
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _features(count: int) -> str:
    return f"{count} feature" + "s" * (count > 1)
