"""`history.db` in the state directory: alerts, and what their streams did around them, in chunks of columns.

What has been written of an alert is known by its events' offsets, so a replay after a crash adds nothing twice.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from connectors.common.sqlite import ERRORS, Fault, FileError, explain, open_database, transaction
from detector.history.columns import Columns, DamagedChunkError, of_bytes, to_bytes

HISTORY_FILE = "history.db"
APPLICATION_ID = 0x6C776879  # "lwhy" in the file's header
VERSION = 1
PORTION = 100  # alerts that are forgotten at once
FREE_PAGES = 2_000  # that go back to the file system at once: 8 MB

_SCHEMA = """
CREATE TABLE alert (
    number     INTEGER PRIMARY KEY,         -- rises as alerts fire
    id         TEXT NOT NULL UNIQUE,
    stream     TEXT NOT NULL,
    started_at INTEGER NOT NULL,            -- ns
    ended_at   INTEGER,                     -- ns
    done       INTEGER NOT NULL DEFAULT 0,  -- 1: nothing more is kept of it
    gaps       INTEGER NOT NULL DEFAULT 0,  -- 1: some events are missing
    events     INTEGER NOT NULL DEFAULT 0,  -- from the one that fired on
    tail       INTEGER NOT NULL DEFAULT 0,  -- of them, after its end
    last       TEXT NOT NULL,               -- JSON: offset of the last event, by topic and partition
    newest     INTEGER NOT NULL,            -- ns: time of the newest event
    written    REAL NOT NULL,               -- Unix time, s
    record     BLOB NOT NULL                -- JSON, as on the alerts topic
);
CREATE INDEX alert_open ON alert (done) WHERE done = 0;
CREATE INDEX alert_written ON alert (written);
CREATE TABLE chunk (
    alert   INTEGER NOT NULL,               -- alert.number
    number  INTEGER NOT NULL,               -- 0: what was before it fired
    columns BLOB NOT NULL,
    PRIMARY KEY (alert, number)
);
"""


class HistoryError(FileError):
    """The file cannot be used."""


class Kept(NamedTuple):
    """An alert as it is in the file."""

    id: str
    stream: str
    started_at: int  # ns
    ended_at: int | None  # ns
    done: bool
    gaps: bool
    events: int
    tail: int
    last: Mapping[str, int]  # offset by partition, as `place_of` names it
    newest: int  # ns
    written: float  # Unix time, s
    record: bytes


_KEPT = ", ".join(Kept._fields)
_NEXT = "(SELECT coalesce(max(chunk.number), 0) + 1 FROM chunk WHERE chunk.alert = alert.number)"


class Surroundings(NamedTuple):
    """An alert, and the events around it in their order, as they are in the file."""

    alert: Kept
    chunks: list[bytes]

    def decoded(self) -> tuple[list[Columns], bool]:
        """Return the events, and whether some are missing: what cannot be read is left out."""
        parts, gaps = list[Columns](), self.alert.gaps
        for chunk in self.chunks:
            try:
                parts.append(of_bytes(chunk))
            except DamagedChunkError:
                gaps = True
        return parts, gaps


class HistoryStore:
    """The file. May be used from several threads."""

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        """Open or make the file; read-only, it must be there. Raises HistoryError."""
        self.path = directory / HISTORY_FILE
        self._lock = threading.RLock()
        with self._errors():
            try:
                if read_only:
                    self._db = _opened_to_read(self.path)
                    self._refuse(*(self._pragma(name) for name in ("application_id", "user_version")))
                else:
                    self._db, _ = open_database(
                        *(self.path, (APPLICATION_ID, VERSION), _SCHEMA, self._refuse),
                        pragmas=("auto_vacuum = INCREMENTAL",), timeout_seconds=0.5,
                    )  # fmt: skip
            except OSError as error:
                raise HistoryError(
                    f"{self.path} cannot be opened: {error.strerror}; see state.directory", Fault.DENIED
                ) from error

    def _refuse(self, application_id: int, version: int) -> None:
        if (application_id, version) != (APPLICATION_ID, VERSION):
            what = f"has version {version}" if application_id == APPLICATION_ID else "is no history of longwatch"
            raise HistoryError(f"{self.path} {what}, expected version {VERSION}: move it away", Fault.DAMAGED)

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    # -- writing -------------------------------------------------------------------------------------------------------

    @contextmanager
    def changes(self) -> Iterator[None]:
        """Make what is done in a block durable together, or none of it. Raises HistoryError."""
        with self._lock, self._errors(), transaction(self._db):
            yield

    def save(self, alert: Kept) -> int:
        """Write an alert as it is, new or not; return its number."""
        row = alert._replace(last=json.dumps(alert.last))  # type: ignore[arg-type]  # as it is in the file
        marks = ", ".join("?" * len(row))
        changes = ", ".join(f"{name} = excluded.{name}" for name in Kept._fields)
        (number,) = self._db.execute(
            f"INSERT INTO alert ({_KEPT}) VALUES ({marks})"  # noqa: S608 - ours
            f" ON CONFLICT (id) DO UPDATE SET {changes} RETURNING number",
            row,
        ).fetchone()
        return int(number)

    def add(self, alert: int, number: int, columns: Columns) -> None:
        """Write a chunk of an alert's events, in the place of what it had."""
        self._db.execute("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?)", (alert, number, to_bytes(columns)))

    def forget(self, before: float, most_bytes: int) -> list[str]:
        """Delete the oldest alerts, a portion of them: those not written to since Unix time `before`, s, and too many.

        Returns their ids. `most_bytes` is what the file may have.
        """
        with self.changes():
            used = (self._pragma("page_count") - self._pragma("freelist_count")) * self._pragma("page_size")
            where, limit = ("1", PORTION) if used > most_bytes else ("written < ?", PORTION)
            if used > most_bytes:  # as many as it takes, by the mean
                count = int(self._db.execute("SELECT count(*) FROM alert").fetchone()[0])
                limit = min(PORTION, max(count * (used - most_bytes) // max(used, 1), 1))
            rows = self._db.execute(
                f"SELECT number, id FROM alert WHERE {where} ORDER BY written, number LIMIT ?",  # noqa: S608 - ours
                (limit,) if where == "1" else (before, limit),
            ).fetchall()
            self._db.executemany("DELETE FROM chunk WHERE alert = ?", [(number,) for number, _ in rows])
            self._db.executemany("DELETE FROM alert WHERE number = ?", [(number,) for number, _ in rows])
        if rows:
            with self._lock, self._errors():
                self._db.execute(f"PRAGMA incremental_vacuum({FREE_PAGES})").fetchall()
        return [name for _, name in rows]

    def close(self) -> None:
        """Close the file."""
        with self._lock, self._errors():
            self._db.close()

    # -- reading -------------------------------------------------------------------------------------------------------

    def unfinished(self, most: int) -> list[tuple[int, int, Kept]]:
        """Return the newest alerts that are still followed, each after its number and that of its next chunk."""
        rows = self._asked(
            f"SELECT number, {_NEXT}, {_KEPT} FROM alert WHERE done = 0 ORDER BY number DESC LIMIT ?",  # noqa: S608
            (most,),
        )
        return [(row[0], row[1], _kept(row[2:])) for row in rows]

    def alert(self, alert_id: str) -> Kept | None:
        """Return an alert; None: nothing is kept of it."""
        rows = self._asked(f"SELECT {_KEPT} FROM alert WHERE id = ?", (alert_id,))  # noqa: S608 - ours
        return _kept(rows[0]) if rows else None

    def alerts(self, limit: int) -> list[Kept]:
        """Return alerts, newest first."""
        rows = self._asked(f"SELECT {_KEPT} FROM alert ORDER BY started_at DESC, number DESC LIMIT ?", (limit,))  # noqa: S608
        return [_kept(row) for row in rows]

    def surroundings(self, alert_id: str) -> Surroundings | None:
        """Return what is kept of an alert; None: nothing is."""
        alert = self.alert(alert_id)
        if alert is None:
            return None
        chunks = self._asked(
            "SELECT columns FROM chunk WHERE alert = (SELECT number FROM alert WHERE id = ?) ORDER BY number",
            (alert_id,),
        )
        return Surroundings(alert, [data for (data,) in chunks])

    def _asked(self, query: str, values: Sequence[object]) -> list[Any]:
        with self._lock, self._errors():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into HistoryError."""
        try:
            yield
        except ERRORS as error:
            fault, why = explain(error, "by the running daemon, which the HTTP port asks, or by another longwatch")
            raise HistoryError(f"{self.path} {why}", fault) from error


def place_of(topic: str, partition: int) -> str:
    """Return what `Kept.last` names a partition by."""
    return f"{topic}/{partition}"


def _kept(row: Sequence[object]) -> Kept:
    alert = Kept(*row)  # type: ignore[arg-type]  # as the schema says
    try:
        last = json.loads(str(alert.last))
    except ValueError:
        last = {}
    return alert._replace(done=bool(alert.done), gaps=bool(alert.gaps), last=last)


def _opened_to_read(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise FileNotFoundError(2, "no such file: no daemon has kept alerts here", str(path))
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", 0.5, isolation_level=None, uri=True,
                           check_same_thread=False)  # fmt: skip
