"""One model for all streams against each its own: NAB, likelihood of held-back synthetic series, speed and bytes.

Run as: python -m tests.bench.bench_scope [nab] [likelihood] [speed]

NAB as tests.bench.quality has it, both scopes by the product's defaults, but with all streams in one file, a row of
each in turn: many streams then learn together, and no score depends on how events are cut into batches.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detector.engine import Engine, EngineSettings
from tests.bench.data import DataMissing, NabSeries, data_folder, nab_series
from tests.bench.quality import DEADLINE_SECONDS, judge_nab, read_scores
from tests.streams import clock, table
from training.model import Forecaster
from training.online import CHUNK, RATE
from training.prior import HELD_BACK_SERIES, ROWS, SCORED_FROM, held_back_series, load_prior

SCOPES = ("shared", "stream")
FLEETS = (1, 10, 100)  # streams
BATCH = 3200  # events
TURNS = 5


def write_interleaved(path: Path, series: Sequence[NabSeries]) -> None:
    """Write all streams as one CSV, a row of each in turn."""
    stream = np.concatenate([np.full(len(one.times), k) for k, one in enumerate(series)])
    row = np.concatenate([np.arange(len(one.times)) for one in series])
    seconds = np.concatenate([one.times // 1_000_000_000 for one in series])
    value = np.concatenate([one.values[:, 0] for one in series])
    with path.open("w", encoding="utf-8") as file:
        file.write("timestamp,stream,f0\n")
        for i in np.lexsort((stream, row)).tolist():
            file.write(f"{seconds[i]},{series[stream[i]].stream},{value[i]:.17g}\n")


def nab(folder: Path) -> None:
    """Print NAB's figures of both scopes."""
    series = nab_series(data_folder("nab"))
    events = folder / "nab.csv"
    write_interleaved(events, series)
    rows = sum(len(one.times) for one in series)
    program = Path(sys.executable).with_name("longwatch")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGWATCH_")}
    print(f"NAB: {len(series)} streams, {rows:,} rows; standard, low FP, low FN")
    for scope in SCOPES:
        output = folder / f"{scope}.scores.csv"
        began = time.monotonic()
        command = [program, "backtest", events, "--output", output, "--set", f"model.scope={scope}"]
        quiet = {"stdin": subprocess.DEVNULL, "capture_output": True}
        subprocess.run(command, cwd=folder, env=environment, check=True, timeout=DEADLINE_SECONDS, **quiet)
        seconds = time.monotonic() - began
        for name, figures in judge_nab(series, read_scores(output)):
            told = " ".join(f"{figure.score:8.2f}" for figure in figures)
            print(f"  {scope:8}{name:32}{told}  threshold {figures[0].threshold:.4g}; {seconds:,.0f} s", flush=True)


def likelihood(model: Forecaster) -> None:
    """Print what the next observation's surprise is, in nats, on series that no prior was trained on."""
    for kinds in ("ordinary", "all"):
        series = held_back_series(kinds)
        names = [f"s{k}" for k in range(HELD_BACK_SERIES)]
        print(f"held-back synthetic series, {kinds}: mean NLL of the next observation, nats, by hundreds of rows")
        found = {}
        for scope in SCOPES:
            engine = Engine(model, EngineSettings(own_weights=scope == "stream"))
            surprise = []
            time_ns = clock(ROWS)  # regular, so that streams can report together
            for first in range(0, ROWS, 8):
                batch = table(names, time_ns[first : first + 8], series.value.T[first : first + 8], first * len(names))
                surprise.append(engine.step(batch).scores.surprise.reshape(-1, len(names)))
            found[scope] = np.concatenate(surprise)[SCORED_FROM:]  # [rows, series]
            means = [found[scope][at : at + 230].mean() for at in range(0, ROWS - SCORED_FROM, 230)]
            told = " ".join(f"{mean:7.3f}" for mean in means)
            print(f"  {scope:8} all rows {found[scope].mean():7.4f}; fifths {told}", flush=True)
        gain = (found["shared"] - found["stream"]).mean(axis=0)
        print(f"  gain of own weights: mean {gain.mean():.4f}, median series {np.median(gain):.4f},", end=" ")
        print(f"better in {(gain > 0).mean():.0%} of series; tenths {np.round(np.quantile(gain, [0.1, 0.9]), 3)}")


def speed(model: Forecaster) -> None:
    """Print events/s of one thread's CPU time, the scopes in turns, and bytes."""
    rng = np.random.default_rng(0)
    print(f"speed: batches of {BATCH:,} events, events/s of CPU time, best of {TURNS}; a step every {CHUNK} events")
    for streams in FLEETS:
        names = [f"s{k}" for k in range(streams)]
        rows = BATCH // streams
        time_ns = clock(rows * (TURNS + 1))
        value = np.sin(np.arange(len(time_ns)) / 20)[:, None] + 0.1 * rng.standard_normal((len(time_ns), streams))
        engines = {scope: Engine(model, EngineSettings(own_weights=scope == "stream")) for scope in SCOPES}
        best = dict.fromkeys(SCOPES, 0.0)
        for turn in range(TURNS + 1):  # the first warms up
            part = slice(turn * rows, (turn + 1) * rows)
            for scope, engine in engines.items():
                batch = table(names, time_ns[part], value[part], turn * BATCH)
                began = time.process_time()
                engine.step(batch)
                if turn:
                    best[scope] = max(best[scope], len(batch) / (time.process_time() - began))
        saved = {scope: len(next(engine.drain())[1]) for scope, engine in engines.items()}
        own = engines["stream"]._own
        assert own
        ratio = best["stream"] / best["shared"]
        print(
            f"  {streams:4} streams: shared {best['shared']:,.0f}, own {best['stream']:,.0f}: ratio {ratio:.3f};",
            end="",
        )
        print(f" saved row {saved['shared']:,} and {saved['stream']:,} bytes; in memory + {own.bytes_a_stream:,}")


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_scope", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=("nab", "likelihood", "speed", "all"), default="all")
    parts = parser.parse_args().parts
    model = load_prior()
    print(f"chunk {CHUNK}, Adam at {RATE}")
    if "all" in parts or "speed" in parts:
        speed(model)
    if "all" in parts or "likelihood" in parts:
        likelihood(model)
    if "all" in parts or "nab" in parts:
        with tempfile.TemporaryDirectory() as folder:
            try:
                nab(Path(folder))
            except DataMissing as missing:
                print(f"NAB: left out: {missing}")


if __name__ == "__main__":
    main()
