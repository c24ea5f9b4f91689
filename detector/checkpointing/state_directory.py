"""The state directory: its lock, its database, and what is wrong with either, in words for a person."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import stat
import zlib
from pathlib import Path

from connectors.common.private_files import locked, open_private
from connectors.common.sqlite import ERRORS, Fault, fault_of, open_database
from detector.errors import StateError

logger = logging.getLogger(__name__)

DATABASE = "state.db"
LOCK = "lock"
ASIDE = ".damaged"  # the end of its name from then on
APPLICATION_ID = 0x6C6F6E67  # "long", in the database's header: tells our file from any other SQLite database
FORMAT_VERSION = 3  # of the tables; raised when they change
FORMER_VERSION = 2  # is brought into the present one, by UPGRADE
PAGE_BYTES = 16384  # fewest bytes written for rows of 8 to 60 KB at nearly the best speed: see the decision
CACHE_KIB = 32768  # dirty pages held before they spill into the log; more was no faster
LOG_BYTES = 1 << 28  # the log file is cut back to this after a checkpoint that was larger
PRAGMAS = (
    f"page_size = {PAGE_BYTES}",  # takes effect in a new database only
    "secure_delete = OFF",  # some builds overwrite with zeros what they delete
    f"cache_size = -{CACHE_KIB}",
    f"journal_size_limit = {LOG_BYTES}",
)

META = "SELECT crc, document FROM meta"
MOVE_AWAY = "restore it from a backup, or move it away to start afresh (every stream then starts from an empty state)"

_INCIDENTS = "CREATE INDEX streams_incident ON streams (incident, place, name) WHERE incident IS NOT NULL"
UPGRADE = (
    "ALTER TABLE streams ADD COLUMN incident INTEGER",
    _INCIDENTS,
    f"PRAGMA user_version = {FORMAT_VERSION}",
)

# A stream with an open incident says so, with its partition's hash, so that it is found without its row.
# A place is a partition whose states follow a changelog: what the rows here stand for, and how far it was read
_SCHEMA = f"""
CREATE TABLE streams (
    name BLOB PRIMARY KEY, layout INTEGER NOT NULL, crc INTEGER NOT NULL, row BLOB NOT NULL, place INTEGER,
    incident INTEGER
);
CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), crc INTEGER NOT NULL, document TEXT NOT NULL);
CREATE TABLE places (
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, partition INTEGER NOT NULL,
    identity TEXT NOT NULL, position INTEGER NOT NULL, source_offset INTEGER, member TEXT NOT NULL,
    UNIQUE (topic, partition)
);
CREATE INDEX streams_place ON streams (place);
{_INCIDENTS};
"""


class DamagedStoreError(StateError):
    """The database cannot be read, and trying again does not help."""

    def __init__(self, what: str, mend: str = MOVE_AWAY) -> None:
        """Say what is wrong and how to mend it."""
        super().__init__(f"{what}: {mend}")
        self.what = what


class UnsavedError(StateError):
    """Nothing was saved, and what was saved before is whole; trying again may work: a full disk, say."""


def lock_directory(directory: Path) -> int:
    """Create the directory, take its lock and return the lock's file descriptor; raises StateError."""
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        fd = open_private(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise StateError(f"state directory {directory}: {LOCK} is no regular file: remove it")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StateError(f"state directory {directory}: {LOCK}: {error.strerror}: remove it") from error
        raise StateError(
            f"cannot use state directory {directory}: {error.strerror}: make it a directory that user id "
            f"{os.geteuid()} may write, or set state.directory to one"
        ) from error
    if not locked(fd):
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise StateError(
            f"state directory {directory} is in use by another longwatch, process id {pid}: stop it, or give this one "
            "its own state.directory"
        )
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def open_store(directory: Path) -> sqlite3.Connection:
    """Return the directory's database, made where there is none; StateError where it is damaged, foreign or newer."""

    def refuse(application: int, version: int) -> None:
        where = f"state directory {directory}: {DATABASE}"
        if application != APPLICATION_ID:
            raise StateError(
                f"{where} is an SQLite database of another program (application id {application:#x}, expected"
                f" {APPLICATION_ID:#x}); move it away, or set state.directory to a directory of longwatch's own"
            )
        if version > FORMAT_VERSION:
            raise StateError(
                f"{where} has format {version}, this longwatch reads up to {FORMAT_VERSION}: run the newer longwatch"
                " that wrote it, or move it away to start afresh"
            )
        if version < FORMER_VERSION:
            # its rows have a layout that this version does not read, so it is left as it is: one can go back to it
            raise StateError(
                f"{where} has format {version} of a former longwatch, this one reads {FORMAT_VERSION}: run the"
                " longwatch that wrote it, or move it away (every stream then starts from an empty state)"
            )

    path = directory / DATABASE
    db: sqlite3.Connection | None = None
    try:
        db, new = open_database(path, (APPLICATION_ID, FORMAT_VERSION), _SCHEMA, refuse, pragmas=PRAGMAS)
        rows = db.execute("SELECT count(*) FROM streams").fetchone()[0]  # walks the whole index of names
        verified_meta(directory, db.execute(META).fetchone())
    except OSError as error:
        raise StateError(
            f"cannot open state directory {directory}: {Path(error.filename or path).name}: {error.strerror}: make it"
            f" a file that user id {os.geteuid()} may write"
        ) from error
    except (*ERRORS, StateError) as error:
        if db is not None:
            db.close()
        if isinstance(error, StateError):
            raise
        raise explained(directory, error, "open") from error
    logger.info("state directory %s: %s", directory, "new" if new else f"{rows} streams")
    return db


def verified_meta(directory: Path, row: tuple[int, str] | None) -> str | None:
    """Return the document of a row of META, None where there is none; DamagedStoreError where it is damaged."""
    if row is None:
        return None
    crc, document = row
    if zlib.crc32(document.encode()) != crc:
        raise DamagedStoreError(f"state directory {directory}: the record of offsets is damaged (checksum mismatch)")
    return document


def put_aside(directory: Path) -> Path:
    """Give a damaged database another name, in place of a former one; return it. Raises StateError."""
    path, aside = directory / DATABASE, directory / (DATABASE + ASIDE)
    if not path.exists():  # it has been done
        return aside
    log, log_aside = Path(f"{path}-wal"), Path(f"{aside}-wal")
    try:
        log_aside.unlink(missing_ok=True)
        if log.exists():  # before its database: a new one must not find it
            log.rename(log_aside)
        path.replace(aside)
    except OSError as error:
        raise StateError(
            f"{path} is damaged and cannot be renamed to {aside.name}: {error.strerror}: rename it"
        ) from error
    return aside


def explained(directory: Path, error: sqlite3.Error | UnicodeDecodeError, doing: str) -> StateError:
    """Return the error for a person: SQLite's own code, and what can be done about it."""
    where = f"cannot {doing} state directory {directory}"
    fault = fault_of(error)
    if fault is Fault.DAMAGED:
        return DamagedStoreError(f"{where}: {DATABASE} is damaged or not longwatch's ({error})")
    if fault is Fault.FULL:
        return UnsavedError(f"{where}: the disk is full ({error}); the last checkpoint is intact: free some space")
    if fault is Fault.DENIED:
        return StateError(f"{where}: {error}: make it and its files writable for user id {os.geteuid()}")
    if fault is Fault.BUSY:
        return StateError(f"{where}: another program has {DATABASE} open ({error}): close it")
    kind = UnsavedError if fault is Fault.IO else StateError
    return kind(
        f"{where}: {error} ({getattr(error, 'sqlite_errorname', 'no code')}); "
        "the last checkpoint is intact: check the disk, its quota and the kernel's log"
    )
