"""What many streams take: python -m tests.bench.bench_memory [--streams 1000000] [--features 1] [--events 3] [--save].

An engine with that many streams, a few events each, one a minute; resident memory by part, and bytes of a row by part.
With --save a checkpoint of all of them into a store in a temporary folder, and the most that was resident until then.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from connectors.batches import EventBatch
from detector.checkpointing.store import SqliteStore
from detector.engine.engine import Engine, EngineSettings
from detector.state.records import STREAM, lane_row
from detector.state.tables import PAGE
from training.network.horizons import HORIZONS
from training.network.weights import load_prior

BATCH = 10_000  # events
MINUTE = 60_000_000_000
START = 1_763_600_000_000_000_000
GB = 1e9


def resident() -> int:
    """Return the process's resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def batches(streams: int, features: int, events: int) -> Iterator[EventBatch]:
    """Yield each stream's events, a minute apart: noise. Only the names of a batch's own streams are in it."""
    rng = np.random.default_rng(0)
    for event in range(events):
        for first in range(0, streams, BATCH):
            count = min(BATCH, streams - first)
            time_ns = np.full(count, START + event * MINUTE)
            streams = [f"stream {i}" for i in range(first, first + count)]
            names, value = [f"feature {k}" for k in range(features)], rng.standard_normal((count, features))
            yield EventBatch.of_table(streams, names, np.arange(count), time_ns, value)


def parts_of(record: np.dtype[Any], deep: tuple[str, ...] = ()) -> str:
    """Return bytes by field; of fields named in `deep` by their own fields."""
    words = []
    for name in record.names or ():
        field = record[name]
        within = f" ({parts_of(field, deep)})" if name in deep else ""
        words.append(f"{name} {field.itemsize}{within}")
    return ", ".join(words)


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=1)
    parser.add_argument("--events", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    lane = lane_row(HORIZONS)
    print(f"stream {STREAM.itemsize} bytes: {parts_of(STREAM, ('admission', 'score'))}")
    print(f"lane {lane.itemsize} bytes: {parts_of(lane, ('input', 'score', 'novel', 'history'))}")

    engine = Engine(load_prior(), EngineSettings(max_streams=options.streams))
    for batch in batches(1, options.features, 2):  # what is compiled or loaded once
        engine.step(batch)
    before, began = resident(), time.process_time()
    for batch in batches(options.streams, options.features, options.events):
        engine.step(batch)
    states, after = engine.streams.states, resident()
    tables = {"streams' rows": states.streams.nbytes, "lanes' rows": states.lanes.nbytes}
    tables["hidden and cell states"] = states.recurrent.row_bytes * states.lanes.used
    print(f"{options.streams:,} streams of {options.features}, {options.events} events each:", end=" ")
    print(f"{time.process_time() - began:.0f} s of CPU time")
    print(f"  {'before the first stream':28} {before / GB:6.2f} GB")
    for name, size in tables.items():
        print(f"  {name:28} {size / GB:6.2f} GB, {size / options.streams:,.0f} bytes a stream")
    rest = after - before - sum(tables.values())
    print(f"  {'names and other objects':28} {rest / GB:6.2f} GB, {rest / options.streams:,.0f} bytes a stream")
    print(f"  {'resident':28} {after / GB:6.2f} GB; states by their own account {engine.streams.nbytes / GB:.2f} GB")
    if options.save:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            store = SqliteStore(Path(folder))
            with engine.streams.draining() as rows:
                store.save(rows, {"offsets": []})
            seconds, size = time.perf_counter() - began, sum(path.stat().st_size for path in Path(folder).iterdir())
            store.close()
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"  a checkpoint of all: {seconds:.0f} s, {size / options.streams:,.0f} bytes a stream on disk,", end=" ")
        print(f"at most {most / GB:.2f} GB resident")
    engine.close()


if __name__ == "__main__":
    main()
