"""Where state survives: a row of bytes for each stream, saved together with the offsets that it stands for.

One checkpoint is one transaction, so rows and offsets never tell different stories, whatever ends the process. The
store is an SQLite database, `state.db`; docs/decisions/003-state-store.md has the figures and the reasons.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from connectors.changelog_records import restored
from connectors.records import Partition
from detector.errors import StateError

__all__ = ["DATABASE", "MAX_ROW_BYTES", "DamagedRowError", "SqliteStore", "StateError", "StateStore", "UnsavedError"]

logger = logging.getLogger(__name__)

DATABASE = "state.db"
LOCK = "lock"
ERRORS = (sqlite3.Error, UnicodeDecodeError)  # the second where a damaged file makes SQLite say what is no UTF-8
APPLICATION_ID = 0x6C6F6E67  # "long", in the database's header: tells our file from any other SQLite database
FORMAT_VERSION = 2  # of the tables; raised when they change
PLAIN, ZSTD = 1, 2  # stands beside every row: the row itself, or the frame that the changelog has
MAX_ROW_BYTES = 1 << 28  # rows are tens of KB; SQLite itself ends at 10^9 bytes
PAGE_BYTES = 16384  # fewest bytes written for rows of 8 to 60 KB at nearly the best speed: see the decision
CACHE_KIB = 32768  # dirty pages held before they spill into the log; more was no faster
LOG_BYTES = 1 << 28  # the log file is cut back to this after a checkpoint that was larger

MOVE_AWAY = "restore it from a backup, or move it away to start afresh (every stream then learns anew)"

# A place is a partition whose states follow a changelog: what the rows here stand for, and how far it was read
_PLACES = """
CREATE TABLE places (
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, partition INTEGER NOT NULL,
    identity TEXT NOT NULL, position INTEGER NOT NULL, source_offset INTEGER, member TEXT NOT NULL,
    UNIQUE (topic, partition)
);
CREATE INDEX streams_place ON streams (place);
"""
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE streams (
    name BLOB PRIMARY KEY, layout INTEGER NOT NULL, crc INTEGER NOT NULL, row BLOB NOT NULL, place INTEGER
);
CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), crc INTEGER NOT NULL, document TEXT NOT NULL);
{_PLACES}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT_VERSION};
COMMIT;
"""
_SAVE_ROW = (
    "INSERT INTO streams (name, layout, crc, row, place) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (name) DO UPDATE SET layout = excluded.layout, crc = excluded.crc, row = excluded.row, "
    "place = excluded.place"
)
_SAVE_PLACE = (
    "INSERT INTO places (topic, partition, identity, position, source_offset, member) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (topic, partition) DO UPDATE SET identity = excluded.identity, position = excluded.position, "
    "source_offset = excluded.source_offset, member = excluded.member"
)


class UnsavedError(StateError):
    """Nothing was saved, and what was saved before is whole; trying again may work: a full disk, say."""


class DamagedRowError(StateError):
    """One stream's row is damaged; every other row can still be read."""

    def __init__(self, stream: str, text: str) -> None:
        """Keep the stream's name, so that the caller can let this one stream start afresh."""
        super().__init__(text)
        self.stream = stream


class Place(NamedTuple):
    """What the rows of a partition stand for."""

    identity: str  # of the changelog topic that they were last in step with
    position: int  # there: the offset of the next record to take
    source_offset: int | None  # of the next event; None: the rows are on their way and stand for nothing yet
    member: str = ""  # transactional id of who wrote last


class Placed(NamedTuple):
    """A row that belongs to a partition: a zstd frame, None where the stream is not there any more."""

    stream: str
    frame: bytes | None


class StateStore(Protocol):
    """What the daemon asks of a place where state survives."""

    def save(self, changed: Iterable[tuple[str, bytes]], deleted: Iterable[str], meta: Mapping[str, Any]) -> None:
        """Store rows, deletions and the meta document in one transaction; durable when it returns.

        Costs what changed, not what exists. Raises StateError, and then holds what it held before.
        """

    def load(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the rows of these streams in order, None for a stream without one; raises StateError."""

    def meta(self) -> dict[str, Any] | None:
        """Return the last saved meta document, None before the first save."""

    def names(self) -> list[str]:
        """Return the name of every stream that has a row, in the order of their UTF-8 bytes."""

    def count(self) -> int:
        """Return the number of rows."""

    def close(self) -> None:
        """Let go of the directory. Closing twice does no harm."""


class SqliteStore:
    """StateStore in a local directory, created when missing. One process at a time; its threads may share it.

    Raises StateError when the directory cannot be used, is in use by another process, or holds a database that is
    damaged, foreign or of a newer longwatch.
    """

    def __init__(self, directory: str | Path) -> None:
        """Lock the directory, open its database and check that it is ours and readable."""
        self.directory = Path(directory)
        self._mutex = threading.Lock()
        self._lock_fd = _lock(self.directory)
        self._served: set[Partition] | None = None
        self._ids: dict[Partition, int] = {}  # of places
        try:
            self._db = self._open()
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _open(self) -> sqlite3.Connection:
        path = self.directory / DATABASE
        db: sqlite3.Connection | None = None
        try:
            db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # Alone with the file by our own lock: no shared-memory file, and no reader can hold the log's reuse back.
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # takes effect in a new database only
            application, version = (db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("application_id", "user_version"))
            new = application == 0 and db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
            if not new and application != APPLICATION_ID:
                raise StateError(
                    f"state directory {self.directory}: {DATABASE} is an SQLite database of another program "
                    f"(application id {application:#x}, expected {APPLICATION_ID:#x}); "
                    "move it away, or set state.directory to a directory of longwatch's own"
                )
            if version > FORMAT_VERSION:
                raise StateError(
                    f"state directory {self.directory}: {DATABASE} has format {version}, this longwatch reads up "
                    f"to {FORMAT_VERSION}: run the newer longwatch that wrote it, or move it away to start afresh"
                )
            if not new and version < FORMAT_VERSION:
                # its rows have a layout that this version does not read, so it is left as it is: one can go back to it
                raise StateError(
                    f"state directory {self.directory}: {DATABASE} has format {version} of a former longwatch, this one"
                    f" reads {FORMAT_VERSION}: run the longwatch that wrote it, or move it away to start afresh (every"
                    " stream then learns anew)"
                )
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # each commit reaches the disk before it returns
            db.execute("PRAGMA secure_delete = OFF")  # some builds overwrite with zeros what they delete
            db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
            if new:
                db.executescript(_SCHEMA)
            rows = db.execute("SELECT count(*) FROM streams").fetchone()[0]  # walks the whole index of names
            db.execute("SELECT document FROM meta").fetchone()
        except ERRORS as error:
            if db is not None:
                db.close()
            raise self._explained(error, "open") from error
        except StateError:
            if db is not None:
                db.close()
            raise
        logger.info("state directory %s: %s", self.directory, "new" if new else f"{rows} streams")
        return db

    def save(self, changed: Iterable[tuple[str, bytes]], deleted: Iterable[str], meta: Mapping[str, Any]) -> None:
        """Store rows, deletions and the meta document in one transaction; durable when it returns."""
        document = json.dumps(meta, sort_keys=True, allow_nan=False)
        with self._mutex, self._transaction() as db:
            db.executemany(_SAVE_ROW, _checked_rows(changed, self.directory))
            db.executemany("DELETE FROM streams WHERE name = ?", ((_encode(name),) for name in deleted))
            db.execute(
                "INSERT OR REPLACE INTO meta (id, crc, document) VALUES (1, ?, ?)",
                (zlib.crc32(document.encode()), document),
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except BaseException as error:
            try:
                if self._db.in_transaction:  # SQLite has ended it itself after some errors, a full disk among them
                    self._db.execute("ROLLBACK")
            except ERRORS:
                logger.exception("state directory %s: the rollback failed too", self.directory)
            if isinstance(error, ERRORS):
                raise self._explained(error, "save to") from error
            raise

    def load(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the rows of these streams in order, None for a stream without one.

        Raises DamagedRowError for a row whose bytes are not those that were saved, StateError otherwise.
        """
        rows: list[bytes | None] = []
        with self._mutex:
            for name in names:
                key = _encode(name)
                try:
                    found = self._db.execute(
                        "SELECT rowid, layout, crc, row, place FROM streams WHERE name = ?", (key,)
                    ).fetchone()
                except ERRORS as error:
                    raise self._explained(error, f"read stream {name!r} from") from error
                if found is not None and self._served is not None and found[4] not in self._served_ids():
                    found = None  # another worker's by now: what is here may be long out of date
                rows.append(None if found is None else self._verified(name, key, *found[:4]))
        return rows

    def _verified(self, name: str, key: bytes, rowid: int, layout: int, crc: int, row: bytes) -> bytes:
        if layout not in {PLAIN, ZSTD}:
            raise StateError(
                f"state directory {self.directory}: stream {name!r} is stored in row layout {layout}, this longwatch "
                f"reads {PLAIN} and {ZSTD}: run the longwatch that wrote it, or move the directory away to start afresh"
            )
        if zlib.crc32(row, zlib.crc32(key)) != crc:
            forget = f"DELETE FROM streams WHERE rowid = {rowid}"  # noqa: S608 - text for a person, never run
            raise DamagedRowError(
                name,
                f"state directory {self.directory}: the row of stream {name!r} is damaged (checksum mismatch over "
                f"{len(row)} bytes): restore the directory from a backup, or let this one stream learn anew with "
                f"sqlite3 {self.directory / DATABASE} '{forget}'",
            )
        return restored(row) if layout == ZSTD else row

    def meta(self) -> dict[str, Any] | None:
        """Return the last saved meta document, None before the first save."""
        with self._mutex:
            try:
                found = self._db.execute("SELECT crc, document FROM meta").fetchone()
            except ERRORS as error:
                raise self._explained(error, "read") from error
        if found is None:
            return None
        crc, document = found
        if zlib.crc32(document.encode()) != crc:
            raise StateError(
                f"state directory {self.directory}: the record of offsets is damaged (checksum mismatch): {MOVE_AWAY}"
            )
        result: dict[str, Any] = json.loads(document)
        return result

    # -- states that follow a changelog -------------------------------------------------------------------------------

    def serve(self, partitions: Iterable[Partition] | None) -> None:
        """Let `load` find the rows of these partitions only; None: every row."""
        with self._mutex:
            self._served = None if partitions is None else set(partitions)

    def save_placed(
        self,
        rows: Mapping[Partition, Sequence[Placed]],
        places: Mapping[Partition, Place],
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Store rows by partition and what they stand for, in one transaction; durable when it returns.

        A stream that already has a row in another partition which is served keeps that one, unless the rows are of a
        served partition themselves.
        """
        document = None if meta is None else json.dumps(meta, sort_keys=True, allow_nan=False)
        with self._mutex, self._transaction() as db:
            for partition, place in places.items():
                db.execute(_SAVE_PLACE, (*partition, *place))
            for partition, changed in rows.items():
                number = self._id(partition)
                others = self._served_ids() - {number} if partition not in (self._served or ()) else set()
                # numbers of our own making
                keep = f" WHERE place IS NULL OR place NOT IN ({', '.join(map(str, others))})" if others else ""
                db.executemany(_SAVE_ROW + keep, _placed_rows(changed, number))
                gone = ((_encode(stream), number) for stream, frame in changed if frame is None)
                db.executemany("DELETE FROM streams WHERE name = ? AND place = ?", gone)
            if document is not None:
                db.execute(
                    "INSERT OR REPLACE INTO meta (id, crc, document) VALUES (1, ?, ?)",
                    (zlib.crc32(document.encode()), document),
                )

    def places(self) -> dict[Partition, Place]:
        """Return what the rows of each partition stand for."""
        found = self._asked("SELECT topic, partition, identity, position, source_offset, member FROM places")
        return {Partition(topic, number): Place(*rest) for topic, number, *rest in found}

    def clear(self, partition: Partition | None) -> None:
        """Remove a partition's rows, to build them anew; None: forget how rows belong to partitions, keep them all."""
        with self._mutex, self._transaction() as db:
            if partition is None:
                db.execute("DELETE FROM places")  # their numbers are never given again
                self._ids.clear()
            else:
                db.execute("DELETE FROM streams WHERE place = ?", (self._id(partition),))
                db.execute("DELETE FROM places WHERE topic = ? AND partition = ?", partition)
                self._ids.pop(partition, None)

    def held(self, partition: Partition) -> int:
        """Return how many rows a partition has."""
        with self._mutex:
            number = self._id(partition)
        return int(self._asked("SELECT count(*) FROM streams WHERE place = ?", (number,))[0][0])

    def unplaced(self) -> list[str]:
        """Return the streams whose rows belong to no partition: of a time without a changelog."""
        return [key.decode("utf-8", "surrogatepass") for (key,) in self._asked(
            "SELECT name FROM streams WHERE place IS NULL OR place NOT IN (SELECT id FROM places) ORDER BY name"
        )]  # fmt: skip

    def streams_of(self, partition: Partition) -> list[str]:
        """Return the streams whose rows belong to a partition."""
        with self._mutex:
            number = self._id(partition)
        found = self._asked("SELECT name FROM streams WHERE place = ? ORDER BY name", (number,))
        return [key.decode("utf-8", "surrogatepass") for (key,) in found]

    def _asked(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        with self._mutex:
            try:
                return self._db.execute(query, values).fetchall()
            except ERRORS as error:
                raise self._explained(error, "read") from error

    def _id(self, partition: Partition) -> int:
        """Return the number of a place, -1 where it is unknown; the mutex is held."""
        number = self._ids.get(partition)
        if number is None:
            found = self._db.execute("SELECT id FROM places WHERE topic = ? AND partition = ?", partition).fetchone()
            if found is None:
                return -1
            number = self._ids[partition] = int(found[0])
        return number

    def _served_ids(self) -> set[int]:
        return {self._id(partition) for partition in self._served or ()}

    def names(self) -> list[str]:
        """Return the name of every stream that has a row, in the order of their UTF-8 bytes."""
        with self._mutex:
            try:
                found = self._db.execute("SELECT name FROM streams ORDER BY name").fetchall()
            except ERRORS as error:
                raise self._explained(error, "read") from error
        return [key.decode("utf-8", "surrogatepass") for (key,) in found]

    def count(self) -> int:
        """Return the number of rows."""
        with self._mutex:
            try:
                rows: int = self._db.execute("SELECT count(*) FROM streams").fetchone()[0]
            except ERRORS as error:
                raise self._explained(error, "read") from error
        return rows

    def close(self) -> None:
        """Let go of the directory. Closing twice does no harm."""
        with self._mutex:
            if self._lock_fd < 0:
                return
            self._db.close()
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _explained(self, error: sqlite3.Error | UnicodeDecodeError, doing: str) -> StateError:
        """Return the error for a person: SQLite's own code, and what can be done about it."""
        code = getattr(error, "sqlite_errorcode", None)
        primary = None if code is None else code & 0xFF
        damaged = "no such " in str(error) or isinstance(error, UnicodeDecodeError)
        where = f"cannot {doing} state directory {self.directory}"
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or damaged:
            return StateError(f"{where}: {DATABASE} is damaged or not longwatch's ({error}): {MOVE_AWAY}")
        if primary == sqlite3.SQLITE_FULL:
            return UnsavedError(f"{where}: the disk is full ({error}); the last checkpoint is intact: free some space")
        if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return StateError(f"{where}: {error}: make it and its files writable for user id {os.geteuid()}")
        if primary == sqlite3.SQLITE_BUSY:
            return StateError(f"{where}: another program has {DATABASE} open ({error}): close it")
        kind = UnsavedError if primary == sqlite3.SQLITE_IOERR else StateError
        return kind(
            f"{where}: {error} ({getattr(error, 'sqlite_errorname', 'no code')}); "
            "the last checkpoint is intact: check the disk, its quota and the kernel's log"
        )


def _encode(name: str) -> bytes:
    # JSON may carry a lone surrogate (\ud800) into a name; it must be found again, not refused here
    return name.encode("utf-8", "surrogatepass")


def _checked_rows(
    changed: Iterable[tuple[str, bytes]], directory: Path
) -> Iterator[tuple[bytes, int, int, bytes, None]]:
    for name, row in changed:
        if len(row) > MAX_ROW_BYTES:
            raise StateError(
                f"cannot save to state directory {directory}: the row of stream {name!r} has {len(row)} bytes, "
                f"at most {MAX_ROW_BYTES} are expected; nothing of this checkpoint was stored"
            )
        key = _encode(name)
        yield key, PLAIN, zlib.crc32(row, zlib.crc32(key)), row, None


def _placed_rows(rows: Iterable[Placed], place: int) -> Iterator[tuple[bytes, int, int, bytes, int]]:
    for stream, frame in rows:
        if frame is not None:
            key = _encode(stream)
            yield key, ZSTD, zlib.crc32(frame, zlib.crc32(key)), frame, place


def _lock(directory: Path) -> int:
    """Create the directory, take its lock and return the lock's file descriptor; raises StateError."""
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StateError(
            f"cannot use state directory {directory}: {error.strerror}: make it a directory that user id "
            f"{os.geteuid()} may write, or set state.directory to one"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise StateError(
            f"state directory {directory} is in use by another longwatch, process id {pid}: stop it, or give this one "
            "its own state.directory"
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
