"""Checkpoints and point reads of the state store, and LMDB if installed: python -m tests.bench.bench_store.

Rows are what Engine.drain gives for streams of one feature: 31 KB, some half of it zeros.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import zlib
from pathlib import Path
from statistics import median

import numpy as np

from connectors.batches import EventBatch
from detector.checkpointing.store import SqliteStore
from detector.engine.engine import Engine
from training.network.weights import load_prior

SAVES = 5
ALTERNATIVES = {"lmdb, sync": {}, "lmdb, no metasync": {"metasync": False}, "lmdb, writemap": {"writemap": True}}


def rows_of_an_engine(streams=100, events=1_000):
    """Return the rows of streams that have seen so many events, as the engine saves them."""
    engine = Engine(load_prior())
    stream = np.tile(np.arange(streams, dtype=np.int32), events)
    number = np.repeat(np.arange(events), streams)
    value = np.sin(number / 20) * 10 + np.random.default_rng(0).normal(size=number.size)
    nanoseconds = 1_763_600_000_000_000_000 + number * 60_000_000_000
    engine.step(
        EventBatch.of_table([f"s{i}" for i in range(streams)], ["value"], stream, nanoseconds, value.reshape(-1, 1))
    )
    rows = [row for _, row in engine.streams.drain()]
    engine.close()
    return rows


class Lmdb:
    """The alternative that the decision weighs."""

    def __init__(self, directory, **options):
        import lmdb

        self.db = lmdb.open(str(directory), map_size=1 << 37, **options)

    def save(self, changed, deleted, meta):
        with self.db.begin(write=True) as transaction:
            for name, row in changed:
                transaction.put(name.encode(), zlib.crc32(row).to_bytes(4, "big") + row)

    def load(self, names):
        with self.db.begin() as transaction:
            return [transaction.get(name.encode())[4:] for name in names]

    def close(self):
        self.db.close()


def megabytes_written(directory):
    """Return what the block device below the directory was asked to write since boot; 0 where it is unknown."""
    device = Path(directory).stat().st_dev
    number = f"{device >> 8} {device & 0xFF}"
    for line in Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if " ".join(fields[:2]) == number:
            return int(fields[9]) * 512 / 1e6
    return 0.0


def measure(label, store, directory, rows, existing, changed):
    name = "host-{:06d}/cpu/user".format
    for first in range(0, existing, 10_000):
        part = range(first, min(existing, first + 10_000))
        store.save(((name(i), rows[i % len(rows)]) for i in part), {})
    rng = np.random.default_rng(1)
    seconds, written = [], []
    for save in range(1, SAVES + 1):
        chosen = rng.choice(existing, changed, replace=False).tolist()
        before, began = megabytes_written(directory), time.perf_counter()
        store.save(((name(i), rows[(i + save) % len(rows)]) for i in chosen), {"save": save})
        seconds.append(time.perf_counter() - began)
        written.append(megabytes_written(directory) - before)
    wanted = [name(i) for i in rng.choice(existing, 10_000, replace=existing < 10_000).tolist()]
    began = time.perf_counter()
    store.load(wanted)
    reading = time.perf_counter() - began
    on_disk = sum(path.stat().st_blocks * 512 for path in Path(directory).iterdir()) / 1e6
    size = changed * sum(map(len, rows)) / len(rows) / 1e6
    print(
        f"{label:18} {existing:8,} {changed:7,} {median(seconds):9.3f} {size / median(seconds):8,.0f} "
        f"{median(written) / size:9.2f} {10_000 / reading:9,.0f} {on_disk / (size / changed * existing):8.2f}",
        flush=True,
    )


def main(sizes=((10_000, 1_000), (10_000, 10_000), (100_000, 1_000), (100_000, 10_000))):
    rows = rows_of_an_engine()
    size = sum(map(len, rows)) / len(rows)
    zeros = np.mean([np.mean(np.frombuffer(row, np.uint32, len(row) // 4) == 0) for row in rows])
    began = time.perf_counter()
    deflated = sum(len(zlib.compress(row, 1)) for row in rows)
    rate = size * len(rows) / (time.perf_counter() - began) / 1e6
    print(f"rows of {size:,.0f} bytes, {zeros:.0%} of their words zero; ", end="")
    print(f"zlib-1 makes them {deflated / size / len(rows):.0%} of that at {rate:.0f} MB/s")
    head = ("store", "rows", "changed", "seconds", "MB/s", "written x", "reads/s", "disk x")
    print("{:18} {:>8} {:>7} {:>9} {:>8} {:>9} {:>9} {:>8}".format(*head))
    for existing, changed in sizes:
        for label, options in {"sqlite (shipped)": None, **ALTERNATIVES}.items():
            directory = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
            try:
                store = SqliteStore(directory) if options is None else Lmdb(directory, **options)
                measure(label, store, directory, rows, existing, changed)
                store.close()
            except ModuleNotFoundError:
                print(f"{label:18} not installed")
            finally:
                shutil.rmtree(directory)


if __name__ == "__main__":
    main()
