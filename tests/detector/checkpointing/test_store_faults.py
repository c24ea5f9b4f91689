"""The store when it is killed, its log torn or its disk full: one whole checkpoint is left."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detector.checkpointing.state_directory import DATABASE
from detector.checkpointing.store import (
    SqliteStore,
)
from tests.detector.checkpointing.support import generation_of, rows

# Each line of standard input starts a saver: a fork, since importing takes longer than all that is tested
SAVERS = """
import os, sys
from connectors.batches import Partition
from connectors.kafka.changelog_format import compressed
from detector.checkpointing.store import PartitionPosition, PartitionRow, SqliteStore
PLACE = Partition("topic", 0)
names = [f"host-{i}/cpu" for i in range(400)]
def say(text):  # in one write: with PYTHONUNBUFFERED a print is several, and a kill between two tears the line
    os.write(1, f"{text}\\n".encode())
def save_for_ever():
    say(f"pid {os.getpid()}")
    store = SqliteStore(sys.argv[1])
    meta = store.meta()
    generation = 0 if meta is None else meta["generation"]
    while True:
        generation += 1
        say(f"saving {generation}")
        frame = compressed(generation.to_bytes(4, "big") + os.urandom(10_000))
        gone = [names[generation % 400]]
        rows = [PartitionRow(n, None if n in gone else frame) for n in names]
        place = {PLACE: PartitionPosition("changelog", generation, generation)}
        store.save_partitions({PLACE: rows}, place, {"generation": generation, "gone": gone})
        say(f"saved {generation}")
for line in sys.stdin:
    if not (saver := os.fork()):
        save_for_ever()
    os.waitpid(saver, 0)
    say("ended")
"""


def test_kill_9_at_any_moment_leaves_exactly_one_checkpoint(directory: Path) -> None:
    chance, within_a_save, last = random.Random(3), 0, 0
    savers = subprocess.Popen(
        [sys.executable, "-c", SAVERS, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert savers.stdin is not None
    assert savers.stdout is not None
    with savers:
        for _ in range(24):
            savers.stdin.write("start\n")
            savers.stdin.flush()
            pid = int(savers.stdout.readline().removeprefix("pid "))
            assert savers.stdout.readline().startswith("saving")
            began = time.perf_counter()
            first = savers.stdout.readline()  # so that the pause can be of as long as a save takes here
            time.sleep(chance.uniform(0, 2 * (time.perf_counter() - began)))
            os.kill(pid, signal.SIGKILL)
            reported = [line.split() for line in [first, *iter(savers.stdout.readline, "ended\n")]]
            saved = max(int(n) for verb, n in reported if verb == "saved")
            within_a_save += reported[-1][0] == "saving"

            store = SqliteStore(directory)
            generation, found = generation_of(store)
            assert saved <= generation <= saved + 1, "what save() returned from is never lost"
            assert found == {generation}, "rows and meta are of the same transaction"
            if generation:
                meta = store.meta()
                assert meta is not None
                assert store.count() == 399
                assert store.load(meta["gone"]) == [None]
            last = generation
            store.close()
    assert within_a_save >= 5, "the kills must fall into saves to prove anything"
    assert last > 10


def test_a_log_torn_by_a_power_cut_leaves_an_earlier_checkpoint_whole(directory: Path, tmp_path: Path) -> None:
    store = SqliteStore(directory)
    for generation in range(1, 6):
        store.save(rows(generation), {"generation": generation})
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)  # as a power cut finds the files: the log has not been folded into the database
    store.close()
    size = (copy / f"{DATABASE}-wal").stat().st_size
    chance, seen = random.Random(1), set()
    for cut in [size, *(chance.randrange(size) for _ in range(25))]:
        torn = tmp_path / "torn"
        shutil.copytree(copy, torn)
        os.truncate(torn / f"{DATABASE}-wal", cut)
        store = SqliteStore(torn)
        generation, found = generation_of(store)
        assert found == {generation}
        seen.add(generation)
        store.close()
        shutil.rmtree(torn)
    assert 5 in seen
    assert len(seen) > 3


FILLER = """
import resource, sys
from detector.errors import StateError
from detector.checkpointing.store import SqliteStore
store = SqliteStore(sys.argv[1])
names = [f"host-{i}/cpu" for i in range(50)]
store.save([(n, b"\\0\\0\\0\\1" * 500) for n in names], {"generation": 1})
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    store.save([(n, b"\\0\\0\\0\\2" * 50_000) for n in names], {"generation": 2})
except StateError as error:
    print(error)
print(store.meta()["generation"], {row[:4] for row in store.load(names)} == {b"\\0\\0\\0\\1"})
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.save([(n, b"\\0\\0\\0\\3" * 10) for n in names], {"generation": 3})
print(store.meta()["generation"])
store.close()
"""


def test_a_refused_write_is_an_error_and_keeps_the_former_checkpoint(directory: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("the limit on file sizes is set from outside and cannot be lifted again")
    limited = FILLER.replace("(1 << 20, 1 << 20)", "(1 << 20, resource.RLIM_INFINITY)")
    done = subprocess.run(
        [sys.executable, "-c", limited, directory, "limit"], capture_output=True, text=True, timeout=300, check=True
    )
    error, former, later = done.stdout.splitlines()
    assert str(directory) in error
    assert "the last checkpoint is intact" in error
    assert former == "1 True"
    assert later == "3"


def test_a_full_disk_is_an_error_and_keeps_the_former_checkpoint(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=6m tmpfs {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}/state full'
    probe = ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"]
    if (
        shutil.which("unshare") is None
        or subprocess.run(probe, capture_output=True, timeout=300, check=False).returncode
    ):
        pytest.skip("this system lets no user mount a small file system of his own")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, FILLER], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    error, former, later = done.stdout.splitlines()
    assert "the disk is full" in error
    assert f"{tmp_path}/state" in error
    assert former == "1 True"
    assert later == "3"
