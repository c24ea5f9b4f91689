"""The store: what was saved is found again, whole and by partition."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.batches import Partition
from connectors.kafka.changelog_format import compressed
from detector.checkpointing.state_directory import DATABASE
from detector.checkpointing.store import (
    MAX_ROW_BYTES,
    PartitionPosition,
    PartitionRow,
    SqliteStore,
)
from detector.errors import StateError
from tests.detector.checkpointing.support import generation_of, rows


def test_saved_rows_are_loaded_after_a_restart(directory: Path) -> None:
    store = SqliteStore(directory)
    assert store.meta() is None
    assert store.count() == 0
    store.save([("b", b"\x00row b"), ("a", b""), ("ä/\ud800", b"odd")], {"offsets": {"t:0": 7}})
    store.close()
    store.close()
    store = SqliteStore(directory)
    assert store.load(["a", "missing", "b", "ä/\ud800", "b"]) == [b"", None, b"\x00row b", b"odd", b"\x00row b"]
    assert store.unassigned() == ["a", "b", "ä/\ud800"]
    assert store.meta() == {"offsets": {"t:0": 7}}
    store.close()


def test_a_save_changes_only_the_given_rows(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save([("a", b"1"), ("b", b"1"), ("c", b"1")], {"n": 1})
    store.save([("b", b"two")], {"n": 2})
    assert store.load(["a", "b", "c"]) == [b"1", b"two", b"1"]
    assert store.count() == 3
    store.save([], {"n": 3})
    assert store.load(["a", "b", "c"]) == [b"1", b"two", b"1"]
    assert store.meta() == {"n": 3}
    store.close()


def test_long_names_and_large_rows_are_stored(directory: Path) -> None:
    store = SqliteStore(directory)
    long, row = "n" * 1024, random.Random(0).randbytes(5_000_000)
    store.save([(long, row), (long + "x", b"other")], {})
    assert store.load([long, long + "x"]) == [row, b"other"]
    store.close()


def test_a_too_large_row_is_refused_by_name_and_nothing_is_stored(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save(rows(1), {"generation": 1})
    with pytest.raises(StateError, match=f"stream 'giant' has {MAX_ROW_BYTES + 1} bytes"):
        store.save([*rows(2), ("giant", bytes(MAX_ROW_BYTES + 1))], {"generation": 2})
    assert generation_of(store) == (1, {1})
    store.close()


def test_a_failed_save_keeps_the_former_checkpoint(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save(rows(1), {"generation": 1})

    def broken() -> Iterator[tuple[str, bytes]]:
        yield from rows(2)[:20]
        raise RuntimeError("the engine failed")

    with pytest.raises(RuntimeError, match="the engine failed"):
        store.save(broken(), {"generation": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(rows(2), {"generation": float("nan")})
    assert generation_of(store) == (1, {1})
    store.save(rows(3), {"generation": 3})
    assert generation_of(store) == (3, {3})
    store.close()


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


def test_an_unusable_state_directory_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateError, match=r"cannot use state directory .*/file.*set state.directory"):
            SqliteStore(place)


def test_opening_logs_the_number_of_streams(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        store = SqliteStore(directory)
        store.save(rows(1), {})
        store.close()
        SqliteStore(directory).close()
    assert [r.getMessage() for r in caplog.records] == [
        f"state directory {directory}: {t}" for t in ("new", "50 streams")
    ]


def test_a_save_writes_only_the_changed_rows(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save(((f"stream-{i}", bytes(8192)) for i in range(10_000)), {})
    log = directory / f"{DATABASE}-wal"
    store.close()
    store = SqliteStore(directory)
    store.save(((f"stream-{i}", b"1" * 8192) for i in range(0, 10_000, 1000)), {})
    assert log.stat().st_size < 10 * 60_000  # ten rows and their pages, of 82 MB
    store.close()


HERE, THERE = Partition("metrics", 0), Partition("metrics", 1)


def placed(**rows: bytes | None) -> list[PartitionRow]:
    return [PartitionRow(name, None if row is None else compressed(row)) for name, row in rows.items()]


def test_rows_and_their_position_are_saved_together(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    place = PartitionPosition("topic-id", 17, 9, "longwatch-g-a")
    store.save_partitions({HERE: placed(a=b"1", b=b"2")}, {HERE: place}, {"offsets": []})
    store.close()
    store = SqliteStore(tmp_path)
    assert store.positions() == {HERE: place}
    assert store.load(["a", "b"]) == [b"1", b"2"]
    assert store.meta() == {"offsets": []}
    assert store.row_count(HERE) == 2
    store.close()


def test_rows_of_partitions_not_assigned_are_not_loaded(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.save_partitions({HERE: placed(a=b"1")}, {HERE: PartitionPosition("t", 1, 1)})
    store.save_partitions({THERE: placed(b=b"2")}, {THERE: PartitionPosition("t", 1, 1)})
    store.restrict_to([THERE])
    assert store.load(["a", "b"]) == [None, b"2"]
    store.restrict_to([HERE, THERE])
    assert store.load(["a", "b"]) == [b"1", b"2"]
    store.close()


def test_a_stream_that_moved_is_removed_only_from_its_former_partition(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.save_partitions({HERE: placed(a=b"1")}, {HERE: PartitionPosition("t", 1, 1)})
    store.save_partitions({THERE: placed(a=b"2")}, {THERE: PartitionPosition("t", 1, 1)})
    store.save_partitions({HERE: placed(a=None)}, {HERE: PartitionPosition("t", 2, 1)})
    assert store.load(["a"]) == [b"2"]
    store.clear(THERE)
    assert store.load(["a"]) == [None]
    store.close()


def test_standby_rows_do_not_replace_assigned_ones(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.restrict_to([HERE])
    store.save_partitions({HERE: placed(a=b"mine")}, {HERE: PartitionPosition("t", 1, 1)})
    store.save_partitions({THERE: placed(a=b"theirs", b=b"theirs")}, {THERE: PartitionPosition("t", 1, 1)})
    assert store.load(["a"]) == [b"mine"]
    store.restrict_to(None)
    assert store.load(["b"]) == [b"theirs"]
    store.close()


def test_rows_saved_without_a_changelog_belong_to_no_partition(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.save_partitions({HERE: placed(a=b"1", b=b"2")}, {HERE: PartitionPosition("t", 1, 1)})
    store.clear(None)
    assert store.load(["a", "b"]) == [b"1", b"2"]
    assert store.unassigned() == ["a", "b"]
    store.save_partitions({HERE: placed(b=b"3")}, {HERE: PartitionPosition("t", 1, 1)})
    assert store.unassigned() == ["a"]
    store.close()
