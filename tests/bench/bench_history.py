"""What remembering costs scoring: micro-batches with alerts' surroundings recorded, against none, in turn in one run.

    python -m tests.bench.bench_history [STREAMS]

One engine scores them all. Of each pair of turns one is also recorded, as the daemon does it: the ring takes every
event, what fires is followed, and at the end of the turn all is written to the disk. First nothing fires, then a stream
jumps from time to time: what an alert costs is what is more, for each.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from detector.commands.bench import BATCH, Fleet, conditions
from detector.config.sections import HistorySettings
from detector.config.settings import Settings, load_settings
from detector.history.history import History

ROUNDS, BATCHES = 16, 64  # pairs of turns, and micro-batches of a turn: what is scored at most between two checkpoints
JUMPS = 0, 1, 8  # streams that jump in a turn
JUMP = 500.0  # deviations


class RecordedFleet(Fleet):
    """A fleet of one feature."""

    def __init__(self, settings: Settings, streams: int, directory: Path) -> None:
        super().__init__(settings, streams, 1)
        self.history = History(directory, HistorySettings())
        self.history.restore({})
        self.alerts = 0

    def costs(self, jumps: int, *, recorded: bool) -> tuple[float, float]:
        """Return the seconds that a turn takes, by the clock and of CPU time, in which so many streams jump."""
        batches = [self._next_batch() for _ in range(BATCHES)]
        for number in range(jumps):
            batches[number * BATCHES // jumps].value[number] += JUMP
        began, cpu_began = time.perf_counter(), time.process_time()
        for batch in batches:
            step = self.engine.step(batch)
            if recorded:
                alerts = step.alerts if jumps else []  # some fire by chance
                self.alerts += sum(alert.status == "firing" for alert in alerts)
                self.history.write(alerts)
                self.history.step(batch, step, self.engine)
        if recorded:
            self.history.flush()
        return time.perf_counter() - began, time.process_time() - cpu_began


def main() -> None:
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    settings = load_settings(environment={}, overrides=["compute.device=cpu"])
    print(f"{streams} streams, {ROUNDS * BATCHES * BATCH:,} events each way; {conditions(settings, ROUNDS)}")
    with tempfile.TemporaryDirectory() as folder:
        fleet = RecordedFleet(settings, streams, Path(folder))
        for jumps in JUMPS:
            fleet.alerts = 0
            pairs = np.empty((ROUNDS, 2, 2))  # [round, (without, with), (clock, CPU)] s
            for number in range(ROUNDS):
                for recorded in (False, True) if number % 2 else (True, False):  # what drifts meets both
                    pairs[number, int(recorded)] = fleet.costs(jumps, recorded=recorded)
            events = ROUNDS * BATCHES * BATCH / max(fleet.alerts, 1)
            print(f"  {fleet.alerts} alerts, one in {events:,.0f} events:" if fleet.alerts else "  no alert:", end=" ")
            for at, name in enumerate(("by the clock", "by CPU time")):
                low, middle, high = np.quantile(pairs[:, 1, at] / pairs[:, 0, at] - 1, (0.25, 0.5, 0.75))
                print(f"{middle:+.1%} {name} (quartiles {low:+.1%}, {high:+.1%})", end="; ")
            more = pairs[:, 1, 1].sum() - pairs[:, 0, 1].sum()
            print(f"{1e6 * more / (ROUNDS * BATCHES):,.0f} us a micro-batch")
        fleet.history.close()
        fleet.engine.close()


if __name__ == "__main__":
    main()
