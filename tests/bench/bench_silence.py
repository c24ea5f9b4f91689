"""What watching for silence costs, side by side: events a second with and without, and one look at all streams.

.venv/bin/python -m tests.bench.bench_silence [STREAMS]
"""

from __future__ import annotations

import sys
import time

import numpy as np

from connectors.batches import EventBatch
from detector.engine.engine import Engine, EngineSettings
from detector.scoring.incidents import AlertRules

SECOND, START = 1_000_000_000, 1_790_000_000 * 1_000_000_000
BATCH, ROUNDS = 10_000, 60
LOOKED_AT = 1_000_000


def batches(streams: int, count: int) -> list[EventBatch]:
    """Return batches in which all streams take turns, one event in ten seconds each."""
    rng, names = np.random.default_rng(1), [f"s{k}" for k in range(streams)]
    found = []
    for number in range(count):
        at = np.arange(number * BATCH, (number + 1) * BATCH)
        stream = (at % streams).astype(np.int32)
        used, codes = np.unique(stream, return_inverse=True)
        when = START + (at // streams) * 10 * SECOND + (at % streams) * 10 * SECOND // streams
        some = [names[k] for k in used.tolist()]
        found.append(EventBatch.of_table(some, ["x"], codes, when, rng.standard_normal((BATCH, 1))))
    return found


def main() -> None:
    """Print the figures."""
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    events = batches(streams, ROUNDS + 4)
    engines = [Engine(settings=EngineSettings(max_streams=streams, threads=1, rules=AlertRules(silence=s)))
               for s in (False, True)]  # fmt: skip
    seconds = np.zeros((ROUNDS, 2))
    for number, batch in enumerate(events):
        for k in (0, 1) if number % 2 else (1, 0):
            began = time.process_time()
            engines[k].step(batch)
            if number >= 4:
                seconds[number - 4, k] = time.process_time() - began
    off, on = np.median(seconds, axis=0)
    ratio = np.median(seconds[:, 0] / seconds[:, 1])
    print(f"{streams:,} streams: {BATCH / off:,.0f} events/s without, {BATCH / on:,.0f} with; ratio {ratio:.3f}")
    table = engines[1].streams.silence
    table.fit(LOOKED_AT)
    table.heard.at[:], table.heard.due[:], table.heard.clock[:] = 0.0, 1e12, 0
    looks = []
    for _ in range(20):
        began = time.process_time()
        table.due()
        looks.append(time.process_time() - began)
    print(f"one look at {LOOKED_AT:,} streams: {1000 * float(np.median(looks)):.2f} ms")


if __name__ == "__main__":
    main()
