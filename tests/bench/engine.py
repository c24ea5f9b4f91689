"""The engine against the bare LSTM that bounds it, and the compiled kernel alone, measured in turns in one run.

A ratio is the median of the rounds' own ratios: other work on the machine then slows both sides alike. CPU time, of all
threads, is given too for the same reason.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from detector.commands import bench
from detector.commands.bench import Fleet, Rates
from detector.config.settings import Settings
from detector.service.engine_setup import device_of, engine_settings
from detector.service.model_choice import first_model
from training.network.inputs import INPUT_SIZE
from training.network.kernels import Network
from training.network.weights import Weights

GOALS = {1: 0.4, 4: 0.4, 12: 0.5}  # of the bare LSTM step, by features; on one core, by CPU time


def compare(settings: Settings, *, quick: bool) -> None:
    """Print how fast each is, the engine's share of the bare LSTM's speed, and what streams take."""
    model, device = first_model(settings), device_of(settings)
    torch.set_num_threads(engine_settings(settings).threads)
    streams, rounds, steps = bench.scale(quick=quick)
    print(f"{_processor()}, torch {torch.__version__}, {bench.conditions(settings, rounds)}")
    fleets = {features: Fleet(settings, streams, features) for features in bench.FEATURES}
    lstm = f"bare torch LSTM, batch {bench.BATCH:,}"
    bare = {
        lstm: partial(bare_lstm, model, device, steps),
        "compiled kernel alone, 1 thread": partial(bare_kernel, model, steps),
    }
    results = bench.measure_in_turns(
        bare | {fleet.name: partial(fleet.turn, steps) for fleet in fleets.values()}, rounds
    )
    bench.print_rates("lane-steps, observations", results)
    for features, fleet in fleets.items():
        print_ratio(f"{fleet.name} / bare LSTM", results[fleet.name], results[lstm], GOALS[features])
    for fleet in fleets.values():
        print(fleet.stages())
        print(fleet.first_events())
    for fleet in fleets.values():
        print(fleet.memory())
        fleet.engine.close()


def bare_lstm(model: Weights, device: str, steps: int) -> Rates:
    """Step torch's own LSTM of the model's size for BATCH lanes: states carried, nothing gathered, nothing scored."""
    lstm = torch.nn.LSTM(INPUT_SIZE, model.shape.hidden_size, batch_first=True).to(device).eval()
    inputs = torch.randn(bench.BATCH, 1, INPUT_SIZE, device=device)

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    with torch.inference_mode():
        state = (torch.zeros(1, bench.BATCH, model.shape.hidden_size, device=device),) * 2
        for _ in range(3):
            _, state = lstm(inputs, state)
        wait()
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in range(steps):
            _, state = lstm(inputs, state)
        wait()
        return _rates(bench.BATCH * steps, began, cpu_began)


def bare_kernel(model: Weights, steps: int) -> Rates:
    """Step the engine's compiled kernels on one thread: cells and heads, states gathered and scattered by lane."""
    network = Network(model)
    inputs = np.random.default_rng(0).standard_normal((bench.BATCH, INPUT_SIZE)).astype(np.float32)
    state = np.zeros((bench.BATCH, model.shape.state_size), np.float32)
    out = np.empty((bench.BATCH, model.shape.output_size), np.float32)
    lane = np.arange(bench.BATCH)
    network.step(lane, inputs, state, 0, bench.BATCH, out)
    began, cpu_began = time.perf_counter(), time.process_time()
    for _ in range(steps):
        network.step(lane, inputs, state, 0, bench.BATCH, out)
    return _rates(bench.BATCH * steps, began, cpu_began)


def print_ratio(name: str, over: Sequence[Rates], under: Sequence[Rates], goal: float) -> None:
    """Print how fast one is compared with another: the median of the ratios of each round."""
    by_clock, by_cpu = zip(*((a[0] / b[0], a[1] / b[1]) for a, b in zip(over, under, strict=True)), strict=True)
    cpu, clock = (f"{median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})" for ratios in (by_cpu, by_clock))
    print(f"  {name:50} {cpu} by CPU time, {clock} by the clock; goal {goal}")


def _rates(count: int, began: float, cpu_began: float) -> Rates:
    return count / (time.perf_counter() - began), count / (time.process_time() - cpu_began)


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
