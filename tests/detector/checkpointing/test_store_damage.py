"""Stores that are damaged, of another program or of another version: one clear error, or a new copy."""

from __future__ import annotations

import logging
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from detector.checkpointing.state_directory import DATABASE, DamagedStoreError
from detector.checkpointing.store import (
    DamagedRowError,
    SqliteStore,
)
from detector.errors import StateError
from tests.detector.checkpointing.support import NAMES, generation_of, rows


def alter(directory: Path, *statements: str) -> None:
    db = sqlite3.connect(directory / DATABASE)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


def test_a_damaged_row_is_an_error_naming_its_stream_and_others_stay_readable(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save([("good", b"g" * 100), ("web-1/cpu", b"a" * 100_000)], {"n": 1})
    store.close()
    path = directory / DATABASE
    content = bytearray(path.read_bytes())
    content[content.rindex(b"a" * 1000) + 500] ^= 0x10
    path.write_bytes(content)
    store = SqliteStore(directory)
    with pytest.raises(DamagedRowError, match=r"stream 'web-1/cpu' is damaged .*100000 bytes") as reported:
        store.load(["good", "web-1/cpu"])
    assert reported.value.stream == "web-1/cpu"
    assert store.load(["good"]) == [b"g" * 100]
    store.save([("web-1/cpu", b"b")], {"n": 2})
    assert store.load(["good", "web-1/cpu"]) == [b"g" * 100, b"b"]
    store.close()


def test_a_row_found_under_another_streams_name_is_damage(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save([("a", b"row")], {})
    store.close()
    alter(directory, "UPDATE streams SET name = x'62'")
    store = SqliteStore(directory)
    with pytest.raises(DamagedRowError, match="stream 'b' is damaged"):
        store.load(["b"])
    store.close()


def test_a_row_of_a_later_layout_is_refused(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save([("a", b"row")], {})
    store.close()
    alter(directory, "UPDATE streams SET layout = 9")
    store = SqliteStore(directory)
    with pytest.raises(StateError, match="stream 'a' is stored in row layout 9"):
        store.load(["a"])
    store.close()


def test_damaged_offsets_are_refused(directory: Path) -> None:
    store = SqliteStore(directory)
    store.save([], {"offsets": {"t:0": 7}})
    store.close()
    alter(directory, "UPDATE meta SET document = replace(document, '7', '8')")
    for _ in range(2):  # and releases the directory
        with pytest.raises(DamagedStoreError, match=r"record of offsets is damaged .*: restore it from a backup"):
            SqliteStore(directory)
    with closing(SqliteStore(directory, is_cache=True)) as store:
        assert store.meta() is None


DAMAGE = ["text", "zeros", "first page", "cut", "a middle page", "the rows"]


def damaged(directory: Path, damage: str) -> bytes:
    """Make a store of many pages and damage its file; return the bytes that lie there now."""
    store = SqliteStore(directory)
    store.save(rows(1, size=20_000), {"generation": 1})
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
    with pytest.raises(StateError) as reported:  # noqa: PT012 - at open, or when the page is first read
        store = SqliteStore(directory)
        try:
            store.load(NAMES)
        finally:
            store.close()
    assert str(directory) in str(reported.value)
    assert "\n" not in str(reported.value)
    assert "restore" in str(reported.value)
    assert (directory / DATABASE).read_bytes() == hit, "left as it is, for whoever restores it"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_of_a_changelog_is_set_aside_and_rebuilt(
    directory: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    hit = damaged(directory, damage)
    late = damage == "the rows"  # found when one of them is first read: then the next start rebuilds it
    if late:
        with closing(SqliteStore(directory, is_cache=True)) as store:
            with pytest.raises(DamagedStoreError, match=r"state\.db\.damaged now, .* once longwatch is started again"):
                store.load(NAMES)
            with pytest.raises(StateError):  # a second load before the end makes it no worse
                store.load(NAMES)
    with closing(SqliteStore(directory, is_cache=True)) as store:
        assert store.meta() is None
        assert store.unassigned() == []
        store.save(rows(2), {"generation": 2})
    with closing(SqliteStore(directory, is_cache=True)) as store:
        assert generation_of(store) == (2, {2})
    assert (directory / f"{DATABASE}.damaged").read_bytes() == hit
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == (not late)
    assert all("it lies in state.db.damaged now, and its states are read from the changelog" in line for line in said)


def test_only_the_last_damaged_cache_is_kept(directory: Path) -> None:
    for damage in ("text", "cut"):
        hit = damaged(directory, damage)
        SqliteStore(directory, is_cache=True).close()
        assert (directory / f"{DATABASE}.damaged").read_bytes() == hit
    assert sorted(path.name for path in directory.iterdir()) == ["lock", "state.db", "state.db.damaged"]


def test_a_database_of_another_program_is_refused_and_unchanged(directory: Path) -> None:
    directory.mkdir()
    alter(directory, "CREATE TABLE theirs (x)")
    before = (directory / DATABASE).read_bytes()
    for copy in (False, True):
        with pytest.raises(StateError, match=r"database of another program .* set state.directory"):
            SqliteStore(directory, is_cache=copy)
    assert (directory / DATABASE).read_bytes() == before


def test_a_store_of_a_newer_version_is_refused_and_unchanged(directory: Path) -> None:
    SqliteStore(directory).close()
    alter(directory, "PRAGMA user_version = 7")
    with pytest.raises(StateError, match="format 7, this longwatch reads up to 3"):
        SqliteStore(directory)
