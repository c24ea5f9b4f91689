"""A durable queue of messages in SQLite: it survives crashes, and takes each message only once.

Streams keep their order: a message waits until the earlier ones of its stream are done, except for those marked as
out of order because they alone cannot be delivered.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from connectors.common.sqlite import ERRORS, Fault, fault_of, open_database, transaction
from connectors.errors import UserError
from connectors.protocols import NotWrittenError

APPLICATION_ID = 0x6C776F62  # "lwob" in the file's header: distinguishes an outbox from other SQLite files
VERSION = 1

# Years of alerts at the fleet's budget, hours of the worst storm. At some KB each they take 0.3 GB of disk, and 2 GB at
# the very most (MAX_BODY_BYTES each).
MAX_PENDING = 100_000

# Done messages stay as bare ids, so that an alert replayed after a crash is recognised. A replay reaches back to the
# last checkpoint, seconds ago; so this many are ample, and 15 MB.
DONE_KEPT = 100_000

_SCHEMA = """
CREATE TABLE message (
    sequence INTEGER PRIMARY KEY,
    id       TEXT NOT NULL UNIQUE,
    stream   TEXT NOT NULL,
    body     BLOB,                         -- NULL once done
    created  REAL NOT NULL,                -- Unix time, s
    attempts INTEGER NOT NULL DEFAULT 0,   -- failed ones since the outbox was opened
    due      REAL NOT NULL DEFAULT 0,      -- monotonic clock, s: means nothing after a restart, and is reset there
    aside    INTEGER NOT NULL DEFAULT 0,   -- 1: no longer holds back its stream
    outcome  TEXT                          -- NULL while pending, then delivered | dropped
);
CREATE INDEX message_pending ON message (attempts, sequence) WHERE outcome IS NULL;
CREATE INDEX message_holding ON message (stream, sequence) WHERE outcome IS NULL AND aside = 0;
"""


class OutboxError(UserError):
    """The outbox cannot be opened, read or written; the text says which file, why, and what to do."""


class OutboxFullError(OutboxError, NotWrittenError):
    """The outbox cannot be written at present; nothing of what was to be written is in it."""


class NewMessage(NamedTuple):
    """A message to be added."""

    id: str
    stream: str
    body: bytes


class Message(NamedTuple):
    """A message that waits to be delivered."""

    sequence: int
    id: str
    body: bytes
    created: float  # Unix time, s
    attempts: int  # failed ones so far


class Outbox:
    """The queue in one SQLite file, which it holds for itself. May be used from several threads."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises OutboxError when it is damaged, foreign, in use, or cannot be written."""
        self.path = path
        self.pending = 0  # messages that wait
        self._lock = threading.Lock()
        header = (APPLICATION_ID, VERSION)
        try:
            with self._errors():
                # private: alerts may hold confidential data; alone: a second daemon on this file would send all twice
                self._db, _ = open_database(path, header, _SCHEMA, self._refuse, timeout_seconds=1.0)
                try:
                    self._prepare()
                except BaseException:
                    self._db.close()
                    raise
        except OSError as error:
            raise OutboxError(f"the outbox {path} cannot be made: {error.strerror}; see state.directory") from error

    def _refuse(self, application_id: int, version: int) -> None:
        if application_id != APPLICATION_ID:
            raise OutboxError(f"{self.path} is an SQLite file, but no outbox: move it away, or set state.directory")
        if version != VERSION:
            raise OutboxError(
                f"the outbox {self.path} has version {version}, this longwatch knows {VERSION}: run the longwatch that "
                f"wrote it until longwatch_outbox_pending is 0, then move the file away"
            )

    def _prepare(self) -> None:
        (check,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if check != "ok":
            raise OutboxError(f"the outbox {self.path} {self._damaged(' '.join(check.split()))}")
        with transaction(self._db):  # also takes the lock
            self._db.execute("UPDATE message SET attempts = 0, due = 0, aside = 0 WHERE outcome IS NULL")
            (self.pending,) = self._db.execute("SELECT count(*) FROM message WHERE outcome IS NULL").fetchone()

    def add(self, messages: Sequence[NewMessage], created: float) -> list[str]:
        """Add messages for good; those whose id is known, pending or done, are left out.

        `created` is a Unix time in s. Returns the ids of the oldest pending messages that had to be dropped, since
        more than MAX_PENDING wait.
        """
        with self._lock, self._errors():
            with transaction(self._db):
                added = self._db.executemany(
                    "INSERT OR IGNORE INTO message (id, stream, body, created) VALUES (?, ?, ?, ?)",
                    [(message.id, message.stream, message.body, created) for message in messages],
                ).rowcount
                excess = max(self.pending + added - MAX_PENDING, 0)
                oldest = self._db.execute(
                    "SELECT sequence, id FROM message WHERE outcome IS NULL ORDER BY sequence LIMIT ?", (excess,)
                ).fetchall()
                self._record_outcomes([(sequence, "dropped") for sequence, _ in oldest])
            self.pending += added - len(oldest)
        return [message_id for _, message_id in oldest]

    def next(self, now: float, limit: int) -> list[Message]:
        """Return messages to try at `now` (monotonic, s): the least tried first, then the oldest.

        They must be tried in this order, up to the first that fails: each stream's are in the stream's order.
        """
        with self._lock, self._errors():
            rows = self._db.execute(
                """
                SELECT sequence, id, body, created, attempts FROM message AS candidate
                WHERE outcome IS NULL AND due <= ? AND NOT EXISTS (
                    SELECT 1 FROM message AS earlier
                    WHERE earlier.outcome IS NULL AND earlier.aside = 0
                      AND earlier.stream = candidate.stream AND earlier.sequence < candidate.sequence
                      AND (earlier.due > ? OR earlier.attempts > candidate.attempts))
                ORDER BY attempts, sequence LIMIT ?
                """,
                (now, now, limit),
            ).fetchall()
        return [Message(*row) for row in rows]

    def next_due(self, now: float) -> float:
        """Return when the next message that waits for its retry is due (monotonic, s); infinite if none does."""
        with self._lock, self._errors():
            (due,) = self._db.execute(
                "SELECT min(due) FROM message WHERE outcome IS NULL AND due > ?", (now,)
            ).fetchone()
        return math.inf if due is None else float(due)

    def finish(self, outcomes: Sequence[tuple[int, str]]) -> None:
        """Record final outcomes, `delivered` or `dropped`, by the messages' sequence numbers."""
        with self._lock, self._errors():
            with transaction(self._db):
                finished = self._record_outcomes(outcomes)
                self._db.execute(
                    "DELETE FROM message"
                    " WHERE outcome IS NOT NULL AND sequence <= (SELECT max(sequence) FROM message) - ?",
                    (DONE_KEPT,),
                )
            self.pending -= finished

    def retry(self, sequence: int, due: float, *, out_of_order: bool) -> None:
        """Count a failed attempt, set the next time (monotonic, s); `out_of_order`: no longer hold its stream back."""
        with self._lock, self._errors():
            self._db.execute(
                "UPDATE message SET attempts = attempts + 1, due = ?, aside = max(aside, ?) WHERE sequence = ?",
                (due, int(out_of_order), sequence),
            )

    def retry_now(self, attempts: int) -> None:
        """Make every pending message that has failed at most `attempts` times due now."""
        with self._lock, self._errors():
            self._db.execute("UPDATE message SET due = 0 WHERE outcome IS NULL AND attempts <= ?", (attempts,))

    def close(self) -> None:
        """Close the file."""
        with self._lock, self._errors():
            self._db.close()

    def _record_outcomes(self, outcomes: Sequence[tuple[int, str]]) -> int:
        """Write outcomes, and return how many messages were still pending."""
        return self._db.executemany(
            "UPDATE message SET outcome = ?, body = NULL WHERE sequence = ? AND outcome IS NULL",
            [(outcome, sequence) for sequence, outcome in outcomes],
        ).rowcount

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into OutboxError."""
        try:
            yield
        except ERRORS as error:
            fault, found = fault_of(error), " ".join(str(error).split())  # in one line
            kind = OutboxFullError if fault in (Fault.FULL, Fault.IO) else OutboxError
            why = f"cannot be used: {found}; see state.directory and its permissions"
            if fault is Fault.BUSY:
                why = "is in use: another longwatch runs with this state.directory; stop it first"
            elif fault is Fault.DAMAGED:
                why = self._damaged(found)
            elif fault is Fault.FULL:
                why = "cannot be written: the disk is full; make room in state.directory"
            raise kind(f"the outbox {self.path} {why}") from error

    def _damaged(self, found: str) -> str:
        return (
            f"is damaged ({found}): move it away together with {self.path.name}-wal and start again; alerts in it that"
            " were not yet delivered will not reach the webhook"
        )
