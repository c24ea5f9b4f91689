"""`feedback.db` in the state directory: what people have asked for, in its order, durable before anything is done."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from connectors.common.renewable import Kind, RenewableDatabase
from connectors.common.sqlite import FileError, transaction
from connectors.errors import UserError
from detector.engine.verdicts import ToldError

JOURNAL_FILE = "feedback.db"
APPLICATION_ID = 0x6C776662  # "lwfb" in the file's header
VERSION = 2
MAX_ACTIONS = 100_000  # that are remembered; the last mute of each pattern is, however old
KINDS = ("mute", "unmute", "acknowledge", "false", "right", "reset")
VERDICTS = ("false", "right")

_SCHEMA = """
CREATE TABLE action (
    sequence   INTEGER PRIMARY KEY AUTOINCREMENT, -- the order in which actions are applied
    kind       TEXT NOT NULL,
    target     TEXT NOT NULL,                     -- pattern, stream, or the id of an alert or an incident
    until      INTEGER,                           -- of a mute: event time, ns; NULL: for ever
    reason     TEXT NOT NULL,
    author     TEXT NOT NULL,
    created    REAL NOT NULL,                     -- Unix time, s
    stream     TEXT NOT NULL,                     -- of a verdict's alert, as the next
    started    INTEGER NOT NULL,                  -- ns
    ended      INTEGER,                           -- ns; NULL: it fired as the verdict was given
    channel    TEXT NOT NULL,                     -- that told it
    feature    TEXT NOT NULL,                     -- that led
    size       REAL NOT NULL,                     -- of that feature's error: observed - expected; 0: it has none
    refused    TEXT NOT NULL DEFAULT '',          -- why nothing was done; empty: it was
    lift       INTEGER                            -- what a verdict has made of the stream's lift; NULL: nothing yet
);
CREATE INDEX action_target ON action (target, kind);
"""
_COLUMNS = (
    "sequence, kind, target, until, reason, author, created, stream, started, ended, channel, feature, size, refused,"
    " lift"
)


class FeedbackError(UserError):
    """What was asked for cannot be done; one sentence says why, and what to do."""


class UnknownTargetError(FeedbackError):
    """There is no such alert, incident, stream or mute."""


class UnavailableError(FeedbackError, FileError):
    """The journal cannot be used, or the daemon stops."""


class Action(NamedTuple):
    """What a person asks for.

    `target`: a stream's name or a pattern (mute, unmute), a stream (reset), an alert's id (false, right) or an
    incident's (acknowledge). `until`: of a mute, event time, ns; None: for ever.
    """

    kind: str  # KINDS
    target: str
    until: int | None = None
    reason: str = ""
    author: str = ""


class AlertSpan(NamedTuple):
    """What a verdict is about."""

    stream: str
    started_at: int  # ns
    ended_at: int | None  # ns; None: it fires
    error: ToldError


class Entry(NamedTuple):
    """An action as the journal has it."""

    sequence: int
    kind: str
    target: str
    until: int | None
    reason: str
    author: str
    created: float  # Unix time, s
    stream: str
    started: int
    ended: int | None
    channel: str
    feature: str
    size: float
    refused: str
    lift: int | None

    @property
    def error(self) -> ToldError:
        """Return what a verdict's alert told."""
        return ToldError(self.channel, self.feature, self.size)


class Journal(RenewableDatabase):
    """The file, which this process has for itself. May be used from any thread."""

    kind = Kind(
        "journal of feedback", "verdicts and mutes begin anew", APPLICATION_ID, VERSION, _SCHEMA, UnavailableError
    )

    def __init__(self, directory: Path) -> None:
        """Open or make the file; one that is damaged is put aside. Raises FeedbackError."""
        super().__init__(directory / JOURNAL_FILE)

    def number_from(self, sequence: int) -> None:
        """Let actions that are yet to come have higher numbers: those up to it are done, though not in this file."""
        with self._lock, self._errors(), transaction(self._db) as db:
            db.execute("DELETE FROM sqlite_sequence WHERE name = 'action' AND seq < ?", (sequence,))
            if db.execute("SELECT count(*) FROM sqlite_sequence WHERE name = 'action'").fetchone() == (0,):
                db.execute("INSERT INTO sqlite_sequence VALUES ('action', ?)", (sequence,))

    def add(self, action: Action, span: AlertSpan | None) -> int:
        """Write an action down, durably; return its sequence. Raises FeedbackError where that cannot be."""
        stream, started, ended, error = span or AlertSpan("", 0, None, ToldError("", "", 0.0))
        with self._lock, self._errors(), transaction(self._db) as db:
            added = db.execute(
                "INSERT INTO action (kind, target, until, reason, author, created, stream, started, ended,"
                " channel, feature, size) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*action, time.time(), stream, started, ended, *error),
            )
            sequence = int(added.lastrowid or 0)
            db.execute(
                "DELETE FROM action WHERE sequence <= ? AND (kind NOT IN ('mute', 'unmute') OR EXISTS ("
                "SELECT 1 FROM action AS later WHERE later.target = action.target AND later.kind IN ('mute', 'unmute')"
                " AND later.sequence > action.sequence))",
                (sequence - MAX_ACTIONS,),
            )
        return sequence

    def decide(self, entry: Entry, *, refused: str = "", lift: int | None = None) -> None:
        """Note what comes of an action, before it does: done again after a crash, it comes to the same."""
        with self._lock, self._errors(), transaction(self._db) as db:
            db.execute("UPDATE action SET refused = ?, lift = ? WHERE sequence = ?", (refused, lift, entry.sequence))

    def try_to_write(self, entry: Entry) -> None:
        """Raise UnavailableError where nothing can be written at present."""
        with self._lock, self._errors(), transaction(self._db) as db:
            db.execute("UPDATE action SET refused = refused WHERE sequence = ?", (entry.sequence,))

    def after(self, sequence: int) -> list[Entry]:
        """Return what was asked for after an action, in order."""
        return self._found("sequence > ?", (sequence,))

    def mutes(self, until: int) -> list[Entry]:
        """Return the mutes and their ends up to an action, in order."""
        return self._found("sequence <= ? AND kind IN ('mute', 'unmute')", (until,))

    def said_of(self, target: str, kinds: Iterable[str], until: int) -> Entry | None:
        """Return the last action of these kinds on a target, up to a sequence, that was not refused."""
        marks = ", ".join("?" * len(kinds := tuple(kinds)))
        found = self._found(
            f"target = ? AND sequence <= ? AND refused = '' AND kind IN ({marks})", (target, until, *kinds), last=True
        )
        return found[0] if found else None

    def last(self) -> int:
        """Return the sequence of the last action, 0 where there was none."""
        with self._lock, self._errors():
            return int(self._db.execute("SELECT coalesce(max(sequence), 0) FROM action").fetchone()[0])

    def _found(self, where: str, values: Iterable[Any], *, last: bool = False) -> list[Entry]:
        order = "DESC LIMIT 1" if last else "ASC"
        query = f"SELECT {_COLUMNS} FROM action WHERE {where} ORDER BY sequence {order}"  # noqa: S608 - ours
        with self._lock, self._errors():
            return [Entry(*row) for row in self._db.execute(query, tuple(values)).fetchall()]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
