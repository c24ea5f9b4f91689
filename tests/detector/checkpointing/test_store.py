from __future__ import annotations

import logging
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from connectors.batches import Partition
from connectors.kafka.changelog_format import compressed
from detector.checkpointing.sqlite import DATABASE, DamagedStoreError
from detector.checkpointing.store import (
    MAX_ROW_BYTES,
    DamagedRowError,
    Place,
    Placed,
    SqliteStore,
)
from detector.errors import StateError

NAMES = [f"host-{i}/cpu" for i in range(50)]


def rows(generation: int, size: int = 2000) -> list[tuple[str, bytes]]:
    return [(name, generation.to_bytes(4, "big") * (size // 4)) for name in NAMES]


def generation_of(store: SqliteStore) -> tuple[int, set[int]]:
    """Return the generation of the meta document, and those of all rows."""
    meta = store.meta()
    found = {int.from_bytes(row[:4], "big") for row in store.load(store.names()) if row}
    return (0 if meta is None else meta["generation"]), found or {0}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_what_was_saved_is_found_again_after_a_restart(directory: Path) -> None:
    store = SqliteStore(directory)
    assert store.meta() is None
    assert store.count() == 0
    store.save([("b", b"\x00row b"), ("a", b""), ("ä/\ud800", b"odd")], [], {"offsets": {"t:0": 7}})
    store.close()
    store.close()
    store = SqliteStore(directory)
    assert store.load(["a", "missing", "b", "ä/\ud800", "b"]) == [b"", None, b"\x00row b", b"odd", b"\x00row b"]
    assert store.names() == ["a", "b", "ä/\ud800"]
    assert store.meta() == {"offsets": {"t:0": 7}}
    store.close()


def test_a_save_changes_only_what_it_is_given(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save([("a", b"1"), ("b", b"1"), ("c", b"1")], [], {"n": 1})
    store.save([("b", b"two")], ["c", "never seen"], {"n": 2})
    assert store.load(["a", "b", "c"]) == [b"1", b"two", None]
    assert store.count() == 2
    store.save([], [], {"n": 3})
    assert store.load(["a", "b", "c"]) == [b"1", b"two", None]
    assert store.meta() == {"n": 3}
    store.close()


def test_names_of_a_kilobyte_and_rows_of_megabytes_are_kept(directory: Path) -> None:
    store = SqliteStore(directory)
    long, row = "n" * 1024, random.Random(0).randbytes(5_000_000)
    store.save([(long, row), (long + "x", b"other")], [], {})
    assert store.load([long, long + "x"]) == [row, b"other"]
    store.close()


def test_a_row_over_the_limit_is_refused_by_its_name_and_nothing_is_stored(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save(rows(1), [], {"generation": 1})
    with pytest.raises(StateError, match=f"stream 'giant' has {MAX_ROW_BYTES + 1} bytes"):
        store.save([*rows(2), ("giant", bytes(MAX_ROW_BYTES + 1))], [], {"generation": 2})
    assert generation_of(store) == (1, {1})
    store.close()


def test_a_save_that_fails_half_way_leaves_the_former_checkpoint(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save(rows(1), [], {"generation": 1})

    def broken() -> Iterator[tuple[str, bytes]]:
        yield from rows(2)[:20]
        raise RuntimeError("the engine failed")

    with pytest.raises(RuntimeError, match="the engine failed"):
        store.save(broken(), [], {"generation": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(rows(2), [], {"generation": float("nan")})
    assert generation_of(store) == (1, {1})
    store.save(rows(3), [], {"generation": 3})
    assert generation_of(store) == (3, {3})
    store.close()


# -- killed, torn, full ------------------------------------------------------------------------------------------------

SAVER = """
import sys
from detector.checkpointing.store import SqliteStore
store = SqliteStore(sys.argv[1])
meta = store.meta()
generation = 0 if meta is None else meta["generation"]
names = [f"host-{i}/cpu" for i in range(400)]
while True:
    generation += 1
    print("saving", generation, flush=True)
    row = generation.to_bytes(4, "big") * 2500
    gone = [names[generation % 400]]
    store.save(((n, row) for n in names if n not in gone), gone, {"generation": generation, "gone": gone})
    print("saved", generation, flush=True)
"""


def test_kill_9_at_any_moment_leaves_exactly_one_checkpoint(directory: Path) -> None:
    chance, within_a_save, last = random.Random(3), 0, 0
    for _ in range(24):
        child = subprocess.Popen([sys.executable, "-c", SAVER, directory], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline().startswith("saving")
        began = time.perf_counter()
        first = child.stdout.readline()  # so that the pause can be of as long as a save takes here
        time.sleep(chance.uniform(0, 2 * (time.perf_counter() - began)))
        child.send_signal(signal.SIGKILL)
        with child.stdout as said:
            told = [line.split() for line in [first, *said] if line.endswith("\n")]
        child.wait()
        saved = max(int(n) for verb, n in told if verb == "saved")
        within_a_save += told[-1][0] == "saving"

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
        store.save(rows(generation), [], {"generation": generation})
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
store.save([(n, b"\\0\\0\\0\\1" * 500) for n in names], [], {"generation": 1})
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    store.save([(n, b"\\0\\0\\0\\2" * 50_000) for n in names], [], {"generation": 2})
except StateError as error:
    print(error)
print(store.meta()["generation"], {row[:4] for row in store.load(names)} == {b"\\0\\0\\0\\1"})
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.save([(n, b"\\0\\0\\0\\3" * 10) for n in names], [], {"generation": 3})
print(store.meta()["generation"])
store.close()
"""


def test_a_write_that_the_system_refuses_is_told_and_the_former_checkpoint_stays(directory: Path) -> None:
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


def test_a_full_disk_is_told_and_the_former_checkpoint_stays(tmp_path: Path) -> None:
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


# -- damaged, foreign, taken -------------------------------------------------------------------------------------------


def alter(directory: Path, *statements: str) -> None:
    db = sqlite3.connect(directory / DATABASE)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


def test_a_damaged_row_is_told_by_its_stream_and_the_others_stay_readable(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save([("good", b"g" * 100), ("web-1/cpu", b"a" * 100_000)], [], {"n": 1})
    store.close()
    path = directory / DATABASE
    content = bytearray(path.read_bytes())
    content[content.rindex(b"a" * 1000) + 500] ^= 0x10
    path.write_bytes(content)
    store = SqliteStore(directory)
    with pytest.raises(DamagedRowError, match=r"stream 'web-1/cpu' is damaged .*100000 bytes") as told:
        store.load(["good", "web-1/cpu"])
    assert told.value.stream == "web-1/cpu"
    assert store.load(["good"]) == [b"g" * 100]
    store.save([("web-1/cpu", b"b")], [], {"n": 2})
    assert store.load(["good", "web-1/cpu"]) == [b"g" * 100, b"b"]
    store.close()


def test_a_row_found_under_another_streams_name_is_damage(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save([("a", b"row")], [], {})
    store.close()
    alter(directory, "UPDATE streams SET name = x'62'")
    store = SqliteStore(directory)
    with pytest.raises(DamagedRowError, match="stream 'b' is damaged"):
        store.load(["b"])
    store.close()


def test_a_row_of_a_later_layout_is_refused(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save([("a", b"row")], [], {})
    store.close()
    alter(directory, "UPDATE streams SET layout = 9")
    store = SqliteStore(directory)
    with pytest.raises(StateError, match="stream 'a' is stored in row layout 9"):
        store.load(["a"])
    store.close()


def test_a_damaged_record_of_offsets_is_refused(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save([], [], {"offsets": {"t:0": 7}})
    store.close()
    alter(directory, "UPDATE meta SET document = replace(document, '7', '8')")
    for _ in range(2):  # and lets go of the directory
        with pytest.raises(DamagedStoreError, match=r"record of offsets is damaged .*: restore it from a backup"):
            SqliteStore(directory)
    with closing(SqliteStore(directory, copy=True)) as store:
        assert store.meta() is None


DAMAGE = ["text", "zeros", "first page", "cut", "a middle page", "the rows"]


def damaged(directory: Path, damage: str) -> bytes:
    """Make a store of many pages and damage its file; return the bytes that lie there now."""
    store = SqliteStore(directory)
    store.save(rows(1, size=20_000), [], {"generation": 1})
    store.close()
    path = directory / DATABASE
    content = path.read_bytes()
    noise = random.Random(2).randbytes(16384)
    hit = {
        "text": b"this is not a database\n" * 1000,
        "zeros": bytes(len(content)),
        "first page": noise + content[16384:],
        "cut": content[: len(content) // 2],
        "a middle page": content[: 16384 * 3] + noise + content[16384 * 4 :],
        "the rows": content[: 16384 * 8] + noise * (len(content) // 16384 - 8),
    }[damage]
    path.write_bytes(hit)
    return hit


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_database_is_one_clear_error_and_never_a_crash(directory: Path, damage: str) -> None:
    hit = damaged(directory, damage)
    with pytest.raises(StateError) as told:  # noqa: PT012 - at open, or when the page is first read
        store = SqliteStore(directory)
        try:
            store.load(NAMES)
        finally:
            store.close()
    assert str(directory) in str(told.value)
    assert "\n" not in str(told.value)
    assert "restore" in str(told.value)
    assert (directory / DATABASE).read_bytes() == hit, "left as it is, for whoever restores it"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_of_a_changelog_is_put_aside_and_begun_anew(
    directory: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    hit = damaged(directory, damage)
    late = damage == "the rows"  # found when one of them is first read: then the next start begins anew
    if late:
        with closing(SqliteStore(directory, copy=True)) as store:
            with pytest.raises(DamagedStoreError, match=r"state\.db\.damaged now, .* once longwatch is started again"):
                store.load(NAMES)
            with pytest.raises(StateError):  # whoever asks again before the end makes it no worse
                store.load(NAMES)
    with closing(SqliteStore(directory, copy=True)) as store:
        assert store.meta() is None
        assert store.names() == []
        store.save(rows(2), [], {"generation": 2})
    with closing(SqliteStore(directory, copy=True)) as store:
        assert generation_of(store) == (2, {2})
    assert (directory / f"{DATABASE}.damaged").read_bytes() == hit
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == (not late)
    assert all("it lies in state.db.damaged now, and its states are read from the changelog" in line for line in said)


def test_one_damaged_copy_is_kept_the_last_one(directory: Path) -> None:
    for damage in ("text", "cut"):
        hit = damaged(directory, damage)
        SqliteStore(directory, copy=True).close()
        assert (directory / f"{DATABASE}.damaged").read_bytes() == hit
    assert sorted(path.name for path in directory.iterdir()) == ["lock", "state.db", "state.db.damaged"]


def test_another_programs_database_is_refused_and_left_alone(directory: Path) -> None:
    directory.mkdir()
    alter(directory, "CREATE TABLE theirs (x)")
    before = (directory / DATABASE).read_bytes()
    for copy in (False, True):
        with pytest.raises(StateError, match=r"database of another program .* set state.directory"):
            SqliteStore(directory, copy=copy)
    assert (directory / DATABASE).read_bytes() == before


def test_a_newer_longwatchs_store_is_refused_and_left_alone(directory: Path) -> None:
    SqliteStore(directory).close()
    alter(directory, "PRAGMA user_version = 7")
    with pytest.raises(StateError, match="format 7, this longwatch reads up to 3"):
        SqliteStore(directory)


def test_a_second_daemon_is_refused_with_the_first_ones_pid(directory: Path) -> None:
    hold = "import sys, time; from detector.checkpointing.store import SqliteStore as S; s = S(sys.argv[1])"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{hold}; print(1, flush=True); time.sleep(60)", directory],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "1\n"
        with pytest.raises(StateError, match=f"in use by another longwatch, process id {child.pid}:"):
            SqliteStore(directory)
    finally:
        child.kill()
        child.communicate(timeout=300)
    SqliteStore(directory).close()  # a killed daemon leaves no lock behind


def test_a_place_that_cannot_be_a_directory_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateError, match=r"cannot use state directory .*/file.*set state.directory"):
            SqliteStore(place)


def test_opening_tells_how_many_streams_are_there(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        store = SqliteStore(directory)
        store.save(rows(1), [], {})
        store.close()
        SqliteStore(directory).close()
    assert [r.getMessage() for r in caplog.records] == [
        f"state directory {directory}: {t}" for t in ("new", "50 streams")
    ]


def test_a_save_costs_what_changed_not_what_exists(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save(((f"stream-{i}", bytes(8192)) for i in range(10_000)), [], {})
    log = directory / f"{DATABASE}-wal"
    store.close()
    store = SqliteStore(directory)
    store.save(((f"stream-{i}", b"1" * 8192) for i in range(0, 10_000, 1000)), [], {})
    assert log.stat().st_size < 10 * 60_000  # ten rows and their pages, of 82 MB
    store.close()


# -- rows that belong to partitions ------------------------------------------------------------------------------------

HERE, THERE = Partition("metrics", 0), Partition("metrics", 1)


def placed(**rows: bytes | None) -> list[Placed]:
    return [Placed(name, None if row is None else compressed(row)) for name, row in rows.items()]


def test_rows_and_what_they_stand_for_are_saved_together(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    place = Place("topic-id", 17, 9, "longwatch-g-a")
    store.save_placed({HERE: placed(a=b"1", b=b"2")}, {HERE: place}, {"offsets": []})
    store.close()
    store = SqliteStore(tmp_path)
    assert store.places() == {HERE: place}
    assert store.load(["a", "b"]) == [b"1", b"2"]
    assert store.meta() == {"offsets": []}
    assert store.held(HERE) == 2
    store.close()


def test_rows_of_partitions_that_are_not_ours_are_not_found(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.save_placed({HERE: placed(a=b"1")}, {HERE: Place("t", 1, 1)})
    store.save_placed({THERE: placed(b=b"2")}, {THERE: Place("t", 1, 1)})
    store.serve([THERE])
    assert store.load(["a", "b"]) == [None, b"2"]
    store.serve([HERE, THERE])
    assert store.load(["a", "b"]) == [b"1", b"2"]
    store.close()


def test_a_stream_that_went_elsewhere_is_removed_only_from_where_it_was(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.save_placed({HERE: placed(a=b"1")}, {HERE: Place("t", 1, 1)})
    store.save_placed({THERE: placed(a=b"2")}, {THERE: Place("t", 1, 1)})
    store.save_placed({HERE: placed(a=None)}, {HERE: Place("t", 2, 1)})
    assert store.load(["a"]) == [b"2"]
    store.clear(THERE)
    assert store.load(["a"]) == [None]
    store.close()


def test_what_is_followed_does_not_replace_what_is_served(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.serve([HERE])
    store.save_placed({HERE: placed(a=b"mine")}, {HERE: Place("t", 1, 1)})
    store.save_placed({THERE: placed(a=b"theirs", b=b"theirs")}, {THERE: Place("t", 1, 1)})
    assert store.load(["a"]) == [b"mine"]
    store.serve(None)
    assert store.load(["b"]) == [b"theirs"]
    store.close()


def test_after_a_time_without_a_changelog_rows_belong_to_no_partition(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.save_placed({HERE: placed(a=b"1", b=b"2")}, {HERE: Place("t", 1, 1)})
    store.clear(None)
    assert store.load(["a", "b"]) == [b"1", b"2"]
    assert store.unplaced() == ["a", "b"]
    store.save_placed({HERE: placed(b=b"3")}, {HERE: Place("t", 1, 1)})
    assert store.unplaced() == ["a"]
    store.close()
