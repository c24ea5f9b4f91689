"""SQLite files: whose they are, what a failed transaction leaves, and what errors mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from connectors.common.sqlite import ERRORS, Fault, fault_of, open_database, transaction

HEADER = (0x74657374, 1)
SCHEMA = "CREATE TABLE thing (name TEXT NOT NULL UNIQUE);"


class ForeignError(Exception):
    """Raised by `refuse`."""


def refuse(application: int, version: int) -> None:
    if (application, version) != HEADER:
        raise ForeignError


def opened(path: Path) -> sqlite3.Connection:
    return open_database(path, HEADER, SCHEMA, refuse, timeout_seconds=0.0)[0]


def names(db: sqlite3.Connection) -> list[str]:
    return [name for (name,) in db.execute("SELECT name FROM thing ORDER BY name")]


def test_another_programs_database_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as theirs:
        theirs.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(ForeignError):
        opened(path)
    assert path.read_bytes() == before


def test_a_transaction_that_raises_leaves_nothing_and_the_next_one_commits(tmp_path: Path) -> None:
    path = tmp_path / "ours.db"
    with closing(opened(path)) as db:
        with pytest.raises(sqlite3.OperationalError), transaction(db):
            db.execute("INSERT INTO thing SELECT 'a' UNION ALL SELECT abs(-9223372036854775808)")
        with pytest.raises(sqlite3.IntegrityError), transaction(db):
            db.executemany("INSERT INTO thing VALUES (?)", [("b",), ("b",)])
        with transaction(db):
            db.execute("INSERT INTO thing VALUES ('c')")
    with closing(opened(path)) as db:
        assert names(db) == ["c"]


def test_errors_are_classified_by_what_can_be_done(tmp_path: Path) -> None:
    path, noise = tmp_path / "ours.db", tmp_path / "noise.db"
    noise.write_bytes(b"no database " * 1000)
    found = {}
    with closing(opened(path)) as db, transaction(db):
        db.execute("INSERT INTO thing VALUES ('a')")
        actions: dict[Fault, Callable[[], object]] = {
            Fault.BUSY: lambda: opened(path),
            Fault.DAMAGED: lambda: opened(noise),
            Fault.OTHER: lambda: db.execute("INSERT INTO thing VALUES ('a')"),
        }
        for fault, action in actions.items():
            with pytest.raises(ERRORS) as caught:
                action()
            found[fault] = fault_of(caught.value)
    assert found == {fault: fault for fault in actions}
