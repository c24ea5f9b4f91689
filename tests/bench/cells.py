"""The cells side by side: the demo's incidents, likelihood, speed and bytes: python -m tests.bench.cells [--quick].

Each cell runs `longwatch demo` end to end with its shipped prior; nothing else differs. Speeds are of engines measured
turn by turn in one process. NAB's own scores of a cell: python -m tests.bench.quality nab --cell gru --peers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from importlib import resources
from pathlib import Path
from statistics import median

from connectors.files.labels import load_labels
from detector.commands.bench import BATCH, Fleet, measure_in_turns, scale
from detector.commands.demo import DATA
from detector.commands.demo_report import match_incidents, read_series
from detector.config.settings import load_settings
from training.network.cells import CELLS

STREAMS = 5_000


def demo(cell: str, folder: Path) -> tuple[int, int, int]:
    """Run the demo; return incidents found, incidents labelled and false alarms."""
    command = [sys.executable, "-m", "detector", "demo", "--set", f"model.cell={cell}", "--output", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=1800)
    series = read_series(folder / "scores.jsonl", folder / "alerts.jsonl", load_labels(DATA / "labels.json"))
    judged = [match_incidents(one) for one in series]
    return (
        sum(one.found for one in judged),
        sum(len(one.incidents) for one in judged),
        sum(len(one.false_alarms) for one in judged),
    )


def main() -> None:
    """Run the demo with each cell, then measure their engines in turns, and print one table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cells", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns: speeds are rough")
    quick = parser.parse_args().quick
    found = {}
    for cell in CELLS:
        with tempfile.TemporaryDirectory() as folder:
            found[cell] = demo(cell, Path(folder))
            print(f"{cell}: demo done", file=sys.stderr)
    fleets = {}
    for cell in CELLS:
        overrides = [f"model.cell={cell}", "compute.device=cpu"]
        fleets[cell] = Fleet(load_settings(environment={}, overrides=overrides), STREAMS, 1)
    _, rounds, _ = scale(quick=quick)
    rates = measure_in_turns({cell: partial(fleets[cell].turn, 16) for cell in CELLS}, rounds)

    heads = "cell", "incidents found", "false alarms", "held-back NLL, next / tenth", "events/s", "to lstm"
    print(f"| {' | '.join((*heads, 'bytes a stream', 'its file'))} |\n{'|---' * (len(heads) + 2)}|")
    for cell in CELLS:
        hits, labelled, false = found[cell]
        prior = resources.files("training") / "priors"
        figures = json.loads((prior / f"{cell}.json").read_text(encoding="utf-8"))["figures"]
        ratio = median(a / b for (a, _), (b, _) in zip(rates[cell], rates["lstm"], strict=True))
        rate = median(rate for rate, _ in rates[cell])
        size = len((prior / f"{cell}.safetensors").read_bytes())
        bytes_ = fleets[cell].engine.streams.nbytes / STREAMS
        print(
            f"| {cell} | {hits} of {labelled} | {false} | {figures['nll_1']:.3f} / {figures['nll_10']:.3f} "
            f"| {rate:,.0f} | {ratio:.2f} | {bytes_:,.0f} | {size / 1000:.1f} KB |"
        )
    print(f"\nSpeeds: engines of {STREAMS:,} streams of one feature, batches of {BATCH:,}, in turns.")


if __name__ == "__main__":
    main()
