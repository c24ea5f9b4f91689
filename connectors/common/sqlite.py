"""SQLite files that this process has exclusively, durable at each commit; and what their errors mean."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path

from connectors.common.private_files import make_database_private
from connectors.errors import UserError

logger = logging.getLogger(__name__)

ERRORS = (sqlite3.Error, UnicodeDecodeError)  # the second if a damaged file makes SQLite quote invalid UTF-8
IN_USE = "another longwatch runs with this state.directory; stop it first"


class Fault(Enum):
    """What is wrong."""

    DAMAGED = auto()  # retrying does not help
    FULL = auto()  # the disk
    IO = auto()  # the disk fails; retrying may help
    DENIED = auto()
    BUSY = auto()  # another process has the file
    OTHER = auto()


_FAULTS = {
    sqlite3.SQLITE_CORRUPT: Fault.DAMAGED,
    sqlite3.SQLITE_NOTADB: Fault.DAMAGED,
    sqlite3.SQLITE_FULL: Fault.FULL,
    sqlite3.SQLITE_IOERR: Fault.IO,
    sqlite3.SQLITE_READONLY: Fault.DENIED,
    sqlite3.SQLITE_CANTOPEN: Fault.DENIED,
    sqlite3.SQLITE_PERM: Fault.DENIED,
    sqlite3.SQLITE_BUSY: Fault.BUSY,
    sqlite3.SQLITE_LOCKED: Fault.BUSY,
}


class FileError(UserError):
    """A file cannot be used at present, or at all; the text says which, why, and what to do.

    `fault` says to a program what is wrong.
    """

    def __init__(self, text: str, fault: Fault = Fault.OTHER) -> None:
        super().__init__(text)
        self.fault = fault


def fault_of(error: sqlite3.Error | UnicodeDecodeError) -> Fault:
    """Return what an error means."""
    if isinstance(error, UnicodeDecodeError) or "no such " in str(error):
        return Fault.DAMAGED
    code = getattr(error, "sqlite_errorcode", None)
    return Fault.OTHER if code is None else _FAULTS.get(code & 0xFF, Fault.OTHER)


def explain(error: sqlite3.Error | UnicodeDecodeError, in_use: str = IN_USE) -> tuple[Fault, str]:
    """Return what an error means, and in words what is wrong with the file and what to do, to follow its path."""
    fault, found = fault_of(error), " ".join(str(error).split())  # in one line
    words = {
        Fault.BUSY: f"is in use: {in_use}",
        Fault.DAMAGED: f"is damaged ({found})",
        Fault.FULL: "cannot be written: the disk is full; make room in state.directory",
    }
    return fault, words.get(fault, f"cannot be used: {found}; see state.directory and its permissions")


def open_database(
    path: Path,
    header: tuple[int, int],
    schema: str,
    refuse: Callable[[int, int], None],
    *,
    pragmas: Iterable[str] = (),
    timeout_seconds: float = 5.0,
) -> tuple[sqlite3.Connection, bool]:
    """Return the database at `path`, created with `schema` if there is none, and whether it is new.

    `header` is the application id, which identifies our file, and the version of its tables;
    `refuse(application id, version)` raises if the file has others. Raises OSError, and ERRORS.
    """
    make_database_private(path)
    db = sqlite3.connect(path, timeout_seconds, isolation_level=None, check_same_thread=False)
    try:
        # Alone with the file, before the log is entered: no shared-memory file, and no reader can hold back its reuse
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        for pragma in pragmas:
            db.execute(f"PRAGMA {pragma}")
        application, version = (db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("application_id", "user_version"))
        new = application == 0 and db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
        if not new:
            refuse(application, version)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # each commit reaches the disk before it returns
        if new:
            made = "PRAGMA application_id = {}; PRAGMA user_version = {};".format(*header)
            db.executescript(f"BEGIN IMMEDIATE; {schema} {made} COMMIT;")
    except BaseException:
        db.close()
        raise
    return db, new


def put_aside(path: Path) -> Path | None:
    """Rename a damaged file, and what belongs to it, to a name that is free; None: that cannot be done."""
    try:
        number = next(n for n in range(1, 1_000) if not path.with_name(f"{path.name}.damaged-{n}").exists())
        aside = path.with_name(f"{path.name}.damaged-{number}")
        path.rename(aside)
        for end in ("-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError):
                path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
    except (OSError, StopIteration):
        return None
    return aside


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Commit what is done in a block, or roll it back where the block or the commit raises."""
    try:
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")
    except BaseException:
        try:
            if db.in_transaction:  # SQLite has ended it itself after some errors, a full disk among them
                db.execute("ROLLBACK")
        except ERRORS:
            logger.exception("the rollback failed too")
        raise
