"""Where state survives: a row of bytes for each stream, saved together with the offsets that it belongs to.

One checkpoint is one transaction, so rows and offsets never tell different stories, whatever ends the process. The
store is an SQLite database, `state.db`; docs/decisions/003-state-store.md has the figures and the reasons.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from connectors.batches import Partition
from connectors.common.sqlite import ERRORS, transaction
from connectors.kafka.changelog_format import restored
from detector.checkpointing.state_directory import (
    FORMAT_VERSION,
    META,
    UPGRADE,
    DamagedStoreError,
    explained,
    lock_directory,
    open_store,
    put_aside,
    verified_meta,
)
from detector.errors import BusyError, StateError
from detector.observability.metrics import Metrics
from detector.state.former import incident_of

logger = logging.getLogger(__name__)

GLANCE_SECONDS = 0.05
PLAIN, ZSTD = 1, 2  # of every row: the row itself, or the frame that the changelog has
MAX_ROW_BYTES = 1 << 28  # rows are tens of KB; SQLite itself ends at 10^9 bytes

_SAVE_ROW = (
    "INSERT INTO streams (name, layout, crc, row, place, incident) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (name) DO UPDATE SET layout = excluded.layout, crc = excluded.crc, row = excluded.row, "
    "place = excluded.place, incident = excluded.incident"
)
_STREAMS_OF = "FROM streams WHERE place = (SELECT id FROM places WHERE topic = ? AND partition = ?)"
_SAVE_META = "INSERT OR REPLACE INTO meta (id, crc, document) VALUES (1, ?, ?)"
_SAVE_POSITION = (
    "INSERT INTO places (topic, partition, identity, position, source_offset, member) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (topic, partition) DO UPDATE SET identity = excluded.identity, position = excluded.position, "
    "source_offset = excluded.source_offset, member = excluded.member"
)


class DamagedRowError(StateError):
    """One stream's row is damaged; every other row can still be read."""

    def __init__(self, stream: str, text: str) -> None:
        """Keep the stream's name, so that the caller can let this one stream start afresh."""
        super().__init__(text)
        self.stream = stream


class PartitionPosition(NamedTuple):
    """What the rows of a partition stand for."""

    identity: str  # of the changelog topic that they were last in step with
    position: int  # there: the offset of the next record to take
    source_offset: int | None  # of the next event; None: the rows are on their way and stand for nothing yet
    member: str = ""  # transactional id of who wrote last


class PartitionRow(NamedTuple):
    """A row that belongs to a partition: a zstd frame, None where the stream is not there any more."""

    stream: str
    frame: bytes | None
    incident: int | None = None  # as from rows.incident_of


class SqliteStore:
    """Rows in a local directory, created when missing. One process at a time; its threads may share it.

    Raises StateError when the directory cannot be used, is in use by another process, or holds a database that is
    damaged, foreign or of a newer longwatch.

    With `is_cache`, where a changelog has all of it, a damaged database is no loss: it is put aside, and an empty one
    takes its place.
    Where that shows only later, it is put aside for the next start, and a DamagedStoreError ends this one.
    """

    def __init__(self, directory: str | Path, *, is_cache: bool = False) -> None:
        """Lock the directory, open its database and check that it is ours and readable."""
        self.directory, self._is_cache = Path(directory), is_cache
        self._mutex = threading.Lock()
        self._lock_fd = lock_directory(self.directory)
        self._restricted: set[Partition] | None = None
        self._ids: dict[Partition, int] = {}  # of places
        try:
            try:
                self._db = open_store(self.directory)
            except DamagedStoreError as error:
                if not is_cache:
                    raise
                logger.error("%s", self._set_aside(error, "are read"))  # noqa: TRY400 - one line tells it
                self._db = open_store(self.directory)
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _set_aside(self, error: DamagedStoreError, read: str) -> DamagedStoreError:
        lies = put_aside(self.directory)
        return DamagedStoreError(error.what, f"it lies in {lies.name} now, and its states {read} from the changelog")

    def _explained(self, error: sqlite3.Error | UnicodeDecodeError, doing: str) -> StateError:
        explained_error = explained(self.directory, error, doing)
        if self._is_cache and isinstance(explained_error, DamagedStoreError):
            return self._set_aside(explained_error, "will be read, once longwatch is started again,")
        return explained_error

    def save(self, changed: Iterable[tuple[str, bytes]], meta: Mapping[str, Any]) -> None:
        """Store rows and the meta document in one transaction; durable when it returns."""
        about = _meta_values(meta)
        with self._mutex, self._explaining("save to"), transaction(self._db) as db:
            db.executemany(_SAVE_ROW, _checked_rows(changed, self.directory))
            db.execute(_SAVE_META, about)

    @contextmanager
    def _explaining(self, doing: str) -> Iterator[None]:
        try:
            yield
        except ERRORS as error:
            raise self._explained(error, doing) from error

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
                        "SELECT layout, crc, row, place FROM streams WHERE name = ?", (key,)
                    ).fetchone()
                except ERRORS as error:
                    raise self._explained(error, f"read stream {name!r} from") from error
                if found is not None and self._restricted is not None and found[3] not in self._restricted_ids():
                    found = None  # another worker's by now: what is here may be long out of date
                rows.append(None if found is None else self._verified(name, key, *found[:3]))
        return rows

    def _verified(self, name: str, key: bytes, layout: int, crc: int, row: bytes) -> bytes:
        if layout not in {PLAIN, ZSTD}:
            raise StateError(
                f"state directory {self.directory}: stream {name!r} is stored in row layout {layout}, this longwatch "
                f"reads {PLAIN} and {ZSTD}: run the longwatch that wrote it, or move the directory away to start afresh"
            )
        if zlib.crc32(row, zlib.crc32(key)) != crc:
            raise DamagedRowError(
                name,
                f"state directory {self.directory}: the row of stream {name!r} is damaged (checksum mismatch over "
                f"{len(row)} bytes); see to the disk",
            )
        return restored(row) if layout == ZSTD else row

    def meta(self) -> dict[str, Any] | None:
        """Return the last saved meta document, None before the first save."""
        found = self._asked(META)
        document = verified_meta(self.directory, found[0] if found else None)
        return None if document is None else json.loads(document)

    # -- states that follow a changelog -------------------------------------------------------------------------------

    def restrict_to(self, partitions: Iterable[Partition] | None) -> None:
        """Let `load` find the rows of these partitions only; None: every row."""
        with self._mutex:
            self._restricted = None if partitions is None else set(partitions)

    def save_partitions(
        self,
        rows: Mapping[Partition, Sequence[PartitionRow]],
        positions: Mapping[Partition, PartitionPosition],
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Store rows by partition and what they stand for, in one transaction; durable when it returns.

        A stream that already has a row in another partition which is served keeps that one, unless the rows are of a
        served partition themselves.
        """
        about = None if meta is None else _meta_values(meta)
        with self._mutex, self._explaining("save to"), transaction(self._db) as db:
            for partition, place in positions.items():
                db.execute(_SAVE_POSITION, (*partition, *place))
            for partition, changed in rows.items():
                number = self._id(partition)
                others = self._restricted_ids() - {number} if partition not in (self._restricted or ()) else set()
                # numbers of our own making
                keep = f" WHERE place IS NULL OR place NOT IN ({', '.join(map(str, others))})" if others else ""
                db.executemany(_SAVE_ROW + keep, _partition_rows(changed, number))
                gone = ((_encode(stream), number) for stream, frame, _ in changed if frame is None)
                db.executemany("DELETE FROM streams WHERE name = ? AND place = ?", gone)
            if about is not None:
                db.execute(_SAVE_META, about)

    def positions(self) -> dict[Partition, PartitionPosition]:
        """Return what the rows of each partition stand for."""
        found = self._asked("SELECT topic, partition, identity, position, source_offset, member FROM places")
        return {Partition(topic, number): PartitionPosition(*rest) for topic, number, *rest in found}

    def clear(self, partition: Partition | None) -> None:
        """Remove a partition's rows, to rebuild them; None: forget how rows belong to partitions, keep them all."""
        with self._mutex, self._explaining("save to"), transaction(self._db) as db:
            if partition is None:
                db.execute("DELETE FROM places")  # their numbers are never given again
                self._ids.clear()
            else:
                db.execute("DELETE FROM streams WHERE place = ?", (self._id(partition),))
                db.execute("DELETE FROM places WHERE topic = ? AND partition = ?", partition)
                self._ids.pop(partition, None)

    def row_count(self, partition: Partition) -> int:
        """Return how many rows a partition has."""
        return int(self._asked(f"SELECT count(*) {_STREAMS_OF}", partition)[0][0])

    def partition_of(self, stream: str) -> Partition | None:
        """Return the partition that a stream's row belongs to, None where it belongs to none or there is no row."""
        query = "SELECT topic, partition FROM places WHERE id = (SELECT place FROM streams WHERE name = ?)"
        found = self._asked(query, (_encode(stream),))
        return Partition(*found[0]) if found else None

    def unassigned(self) -> list[str]:
        """Return the streams whose rows belong to no partition: of a time without a changelog."""
        free = "SELECT name FROM streams WHERE place IS NULL OR place NOT IN (SELECT id FROM places) ORDER BY name"
        return [_decode(key) for (key,) in self._asked(free)]

    def streams_of(self, partition: Partition) -> list[str]:
        """Return the streams whose rows belong to a partition."""
        return [_decode(key) for (key,) in self._asked(f"SELECT name {_STREAMS_OF} ORDER BY name", partition)]

    def open_incidents(self, partition: Partition | None = None) -> dict[str, int]:
        """Return the streams with an open incident, of one partition or of all, with their partitions' hashes."""
        query = "SELECT name, incident FROM streams WHERE incident IS NOT NULL"
        if partition is not None:
            query += " AND place = (SELECT id FROM places WHERE topic = ? AND partition = ?)"
        return {_decode(key): incident for key, incident in self._asked(query, partition or ())}

    def names_after(self, name: str, limit: int) -> list[str]:
        """Return the names of streams after one, in order; at most `limit`."""
        query = "SELECT name FROM streams WHERE name > ? ORDER BY name LIMIT ?"
        return [_decode(key) for (key,) in self._asked(query, (_encode(name), limit))]

    def upgrade(self) -> None:
        """Bring a database of the former format into the present one, in one transaction: find open incidents."""
        with self._mutex:
            if self._db.execute("PRAGMA user_version").fetchone()[0] == FORMAT_VERSION:
                return
            began, found = time.monotonic(), []
            with self._explaining("read"):
                for key, layout, row in self._db.execute("SELECT name, layout, row FROM streams"):
                    with suppress(ValueError):  # a damaged row is seen when its stream comes
                        if (incident := incident_of(restored(row) if layout == ZSTD else row)) is not None:
                            found.append((incident, key))
            with self._explaining("save to"), transaction(self._db) as db:
                for statement in UPGRADE:
                    db.execute(statement)
                db.executemany("UPDATE streams SET incident = ? WHERE name = ?", found)
        logger.info(
            "state directory %s: brought to format %d in %.1f s",
            *(self.directory, FORMAT_VERSION, time.monotonic() - began),
        )

    def _asked(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        with self._mutex, self._explaining("read"):
            return self._db.execute(query, values).fetchall()

    def _id(self, partition: Partition) -> int:
        """Return the number of a place, -1 where it is unknown; the mutex is held."""
        number = self._ids.get(partition)
        if number is None:
            found = self._db.execute("SELECT id FROM places WHERE topic = ? AND partition = ?", partition).fetchone()
            if found is None:
                return -1
            number = self._ids[partition] = int(found[0])
        return number

    def _restricted_ids(self) -> set[int]:
        return {self._id(partition) for partition in self._restricted or ()}

    # -- for those who look on -----------------------------------------------------------------------------------------

    def names_beginning(self, start: str, limit: int) -> list[str]:
        """Return the names of streams that begin so, in order; at most `limit`. BusyError while rows are written."""
        key, after = _encode(start), _encode(start) + b"\xff"  # which no name has
        query = "SELECT name FROM streams WHERE name >= ? AND name < ? ORDER BY name LIMIT ?"
        return [_decode(name) for (name,) in self._glanced(query, (key, after, limit))]

    def count_now(self) -> int:
        """Return the number of rows. BusyError while rows are written."""
        return int(self._glanced("SELECT count(*) FROM streams")[0][0])

    def _glanced(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        """Ask, but do not wait for a checkpoint to be written: that may take seconds."""
        if not self._mutex.acquire(timeout=GLANCE_SECONDS):
            raise BusyError(f"state directory {self.directory}: a checkpoint is being written: ask again")
        try:
            with self._explaining("read"):
                return self._db.execute(query, values).fetchall()
        finally:
            self._mutex.release()

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._asked("SELECT count(*) FROM streams")[0][0])

    def close(self) -> None:
        """Release the directory. Closing twice does no harm."""
        with self._mutex:
            if self._lock_fd < 0:
                return
            self._db.close()
            os.close(self._lock_fd)
            self._lock_fd = -1


class StoredRows:
    """Rows of the store for the engine: a damaged one resets its stream, or is read again from the changelog."""

    def __init__(self, store: SqliteStore, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics
        self.backfilling: set[Partition] = set()  # whose rows the changelog does not have yet

    def load(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """Yield streams' rows one by one: of a batch that brings many back not all may fit into memory at once.

        Raises DamagedRowError where rolling back brings the row from the changelog.
        """
        for name in names:
            try:
                yield from self._store.load([name])
            except DamagedRowError as error:
                if self._discard_local_copy(name):
                    raise
                logger.error("state of stream %r was reset: %s", name, error)  # noqa: TRY400 - one line tells it
                self._metrics.streams_begun_anew["damaged"].inc()
                yield None

    def _discard_local_copy(self, stream: str) -> bool:
        """Drop the local copy of the partition that a damaged row is of; False where the changelog does not have it."""
        partition = self._store.partition_of(stream)
        if partition is None or partition in self.backfilling:
            return False
        logger.error(
            "%s/%d: the local copy of its states is damaged at stream %r; it is rebuilt from the changelog",
            *(*partition, stream),
        )
        self._store.clear(partition)
        return True


def _encode(name: str) -> bytes:
    # JSON may carry a lone surrogate (\ud800) into a name; it must be found again, not refused here
    return name.encode("utf-8", "surrogatepass")


def _decode(key: bytes) -> str:
    return key.decode("utf-8", "surrogatepass")


def _meta_values(meta: Mapping[str, Any]) -> tuple[int, str]:
    """Return a meta document as it is stored: checksum and JSON."""
    document = json.dumps(meta, sort_keys=True, allow_nan=False)
    return zlib.crc32(document.encode()), document


def _checked_rows(
    changed: Iterable[tuple[str, bytes]], directory: Path
) -> Iterator[tuple[bytes, int, int, bytes, None, int | None]]:
    for name, row in changed:
        if len(row) > MAX_ROW_BYTES:
            raise StateError(
                f"cannot save to state directory {directory}: the row of stream {name!r} has {len(row)} bytes, "
                f"at most {MAX_ROW_BYTES} are expected; nothing of this checkpoint was stored"
            )
        key = _encode(name)
        yield key, PLAIN, zlib.crc32(row, zlib.crc32(key)), row, None, incident_of(row)


def _partition_rows(
    rows: Iterable[PartitionRow], place: int
) -> Iterator[tuple[bytes, int, int, bytes, int, int | None]]:
    for stream, frame, incident in rows:
        if frame is not None:
            key = _encode(stream)
            yield key, ZSTD, zlib.crc32(frame, zlib.crc32(key)), frame, place, incident
