"""What a command costs before it does anything: CPU time, the clock's, and memory, of checkouts side by side.

    python -m tests.bench.bench_start [CHECKOUT ...]

The daemon reads 500 events of a file and ends. One round is not counted: files come into the cache, kernels are
compiled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.brokers import CHECKOUT

ROUNDS = 5
STREAMS, ROWS = 5, 100


class Cost(NamedTuple):
    cpu_seconds: float  # of all threads
    seconds: float
    megabytes: float  # resident, at most


def cost(arguments: list[str], checkout: Path) -> Cost:
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "detector", *arguments],
        cwd=checkout,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"longwatch {' '.join(arguments)} in {checkout} ended with wait status {status}")
    return Cost(used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss / 1024)


def main() -> None:
    checkouts = [Path(path) for path in sys.argv[1:]] or [Path(CHECKOUT)]
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "events.jsonl"
        records = (
            {"stream": f"s{n}", "timestamp": 1_700_000_000 + 60 * row, "values": {"x": row % 7}}
            for row in range(ROWS)
            for n in range(STREAMS)
        )
        events.write_text("".join(json.dumps(record) + "\n" for record in records))

        def run(number: int) -> list[str]:
            settings = {
                "source.type": "file",
                "source.paths": events,
                "state.directory": f"{folder}/state-{number}",
                "http.port": 0,
                "compute.device": "cpu",
            }
            return ["run", *(part for name, value in settings.items() for part in ("--set", f"{name}={value}"))]

        commands = {"--help": lambda _: ["--help"], "config": lambda _: ["config"], "run": run}
        print("| command | checkout | CPU s: median (least, most) | s | MB |\n|---|---|---|---|---|")
        for name, command in commands.items():
            costs: list[list[Cost]] = [[] for _ in checkouts]
            for turn in range(ROUNDS + 1):
                for place, checkout in enumerate(checkouts):
                    found = cost(command(len(checkouts) * turn + place), checkout)
                    if turn:
                        costs[place].append(found)
            for checkout, found_here in zip(checkouts, costs, strict=True):
                cpu, seconds, megabytes = zip(*found_here, strict=True)
                spread = f"{median(cpu):.2f} ({min(cpu):.2f}, {max(cpu):.2f})"
                print(f"| {name} | {checkout.name} | {spread} | {median(seconds):.2f} | {median(megabytes):.0f} |")


if __name__ == "__main__":
    main()
