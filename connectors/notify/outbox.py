"""A durable queue of messages in SQLite: it survives crashes, and takes each message only once.

Each receiver has a queue of its own, in which streams, or incidents, keep their order: a message waits until the
earlier ones of its stream are done, except for those marked as out of order because they alone cannot be delivered.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from connectors.common.sqlite import ERRORS, Fault, explain, open_database, transaction
from connectors.errors import UserError
from connectors.protocols import NotWrittenError

APPLICATION_ID = 0x6C776F62  # "lwob" in the file's header: distinguishes an outbox from other SQLite files
VERSION = 2

# Of each receiver: years of alerts at the fleet's budget, hours of the worst storm. At some KB each they take 0.3 GB of
# disk, and 2 GB at the very most (MAX_BODY_BYTES each).
MAX_PENDING = 100_000

# Done messages stay as bare ids, so that what is replayed after a crash is recognised. A replay reaches back to the
# last checkpoint, seconds ago; so this many are ample, and 15 MB.
DONE_KEPT = 100_000

MAX_REMEMBERED = 1_000  # incidents of which a receiver knows something

ALERT, INCIDENT = "alert", "incident"  # what a message's body is: a whole request's, or an incident's record
FORMER = ""  # the receiver of messages that were written when there was but one

_MESSAGES = """
CREATE TABLE message (
    sequence INTEGER PRIMARY KEY,
    receiver TEXT NOT NULL,
    id       TEXT NOT NULL,
    kind     TEXT NOT NULL,
    stream   TEXT NOT NULL,                -- what keeps its order: of alerts the stream, else the incident
    body     BLOB,                         -- NULL once done
    created  REAL NOT NULL,                -- Unix time, s
    attempts INTEGER NOT NULL DEFAULT 0,   -- failed ones since the outbox was opened
    due      REAL NOT NULL DEFAULT 0,      -- monotonic clock, s: means nothing after a restart, and is reset there
    aside    INTEGER NOT NULL DEFAULT 0,   -- 1: no longer holds back its stream
    outcome  TEXT,                         -- NULL while pending, then delivered | dropped
    UNIQUE (receiver, id)
);
CREATE INDEX message_pending ON message (receiver, attempts, sequence) WHERE outcome IS NULL;
CREATE INDEX message_holding ON message (receiver, stream, sequence) WHERE outcome IS NULL AND aside = 0;
CREATE TABLE memory (                      -- what receivers remember of incidents
    receiver TEXT NOT NULL,
    incident TEXT NOT NULL,
    value    BLOB NOT NULL,
    until    REAL NOT NULL,                -- Unix time, s
    PRIMARY KEY (receiver, incident)
);
"""
_UPGRADE = f"""
BEGIN IMMEDIATE;
DROP INDEX message_pending;
DROP INDEX message_holding;
ALTER TABLE message RENAME TO former;
{_MESSAGES}
INSERT INTO message (sequence, receiver, id, kind, stream, body, created, outcome)
    SELECT sequence, '{FORMER}', id, '{ALERT}', stream, body, created, outcome FROM former;
DROP TABLE former;
PRAGMA user_version = {VERSION};
COMMIT;
"""  # noqa: S608 - ours


class OutboxError(UserError):
    """The outbox cannot be opened, read or written; the text says which file, why, and what to do."""


class OutboxFullError(OutboxError, NotWrittenError):
    """The outbox cannot be written at present; nothing of what was to be written is in it."""


class NewMessage(NamedTuple):
    """A message to be added."""

    receiver: str
    id: str
    stream: str
    body: bytes
    kind: str = ALERT


class Message(NamedTuple):
    """A message that waits to be delivered."""

    sequence: int
    id: str
    kind: str  # ALERT | INCIDENT
    stream: str
    body: bytes
    created: float  # Unix time, s
    attempts: int  # failed ones so far


class Outbox:
    """The queue in one SQLite file, which it holds for itself. May be used from several threads."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises OutboxError when it is damaged, foreign, in use, or cannot be written."""
        self.path = path
        self._pending: dict[str, int] = {}  # messages that wait, by receiver
        self._lock = threading.Lock()
        header = (APPLICATION_ID, VERSION)
        try:
            with self._errors():
                # private: alerts may hold confidential data; alone: a second daemon on this file would send all twice
                self._db, _ = open_database(path, header, _MESSAGES, self._refuse, timeout_seconds=1.0)
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
        if version not in {1, VERSION}:
            raise OutboxError(
                f"the outbox {self.path} has version {version}, this longwatch knows {VERSION}: run the longwatch that "
                f"wrote it until longwatch_outbox_pending is 0, then move the file away"
            )

    def _prepare(self) -> None:
        (check,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if check != "ok":
            raise OutboxError(f"the outbox {self.path} {self._damaged(check)}")
        if self._db.execute("PRAGMA user_version").fetchone() == (1,):
            self._db.executescript(_UPGRADE)
        with self._counted():  # also takes the lock
            self._db.execute("UPDATE message SET attempts = 0, due = 0, aside = 0 WHERE outcome IS NULL")

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Commit what is done in a block, and count what waits then: a full disk may refuse the commit."""
        with transaction(self._db):
            yield
        counted = "SELECT receiver, count(*) FROM message WHERE outcome IS NULL GROUP BY receiver"
        self._pending = dict(self._db.execute(counted).fetchall())

    def pending(self, receiver: str | None = None) -> int:
        """Return how many messages wait for a receiver, or for all."""
        return self._pending.get(receiver, 0) if receiver is not None else sum(self._pending.values())

    def adopt(self, receivers: Collection[str], heir: str | None, before: float) -> dict[str, int]:
        """Give what was written when there was one receiver to `heir`, and drop what waits for others since `before`.

        `before` is a Unix time, s. Returns how many were dropped, by a receiver that is not among `receivers`.
        """
        with self._lock, self._errors(), self._counted():
            if heir is not None:
                self._db.execute("UPDATE OR IGNORE message SET receiver = ? WHERE receiver = ?", (heir, FORMER))
            rows = self._db.execute(
                "SELECT receiver, sequence FROM message WHERE outcome IS NULL AND created < ?", (before,)
            ).fetchall()
            old = [(receiver, sequence) for receiver, sequence in rows if receiver not in receivers]
            self._record_outcomes([(sequence, "dropped") for _, sequence in old])
        return dict(Counter(receiver for receiver, _ in old))

    def add(self, messages: Sequence[NewMessage], created: float) -> list[tuple[str, str]]:
        """Add messages for good; those whose id its receiver knows, pending or done, are left out.

        `created` is a Unix time in s. Returns receiver and id of the oldest pending messages that had to be dropped,
        since more than MAX_PENDING wait for their receiver.
        """
        dropped: list[tuple[str, str]] = []
        with self._lock, self._errors(), self._counted():
            for receiver in dict.fromkeys(message.receiver for message in messages):
                added = self._db.executemany(
                    "INSERT OR IGNORE INTO message (receiver, id, kind, stream, body, created)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    [(m.receiver, m.id, m.kind, m.stream, m.body, created)
                     for m in messages if m.receiver == receiver],
                ).rowcount  # fmt: skip
                excess = max(self.pending(receiver) + added - MAX_PENDING, 0)
                oldest = self._db.execute(
                    "SELECT sequence, id FROM message WHERE outcome IS NULL AND receiver = ? ORDER BY sequence LIMIT ?",
                    (receiver, excess),
                ).fetchall()
                self._record_outcomes([(sequence, "dropped") for sequence, _ in oldest])
                dropped += [(receiver, message_id) for _, message_id in oldest]
        return dropped

    def next(self, receiver: str, now: float, limit: int) -> list[Message]:
        """Return messages to try at `now` (monotonic, s): the least tried first, then the oldest.

        They must be tried in this order, up to the first that fails: each stream's are in the stream's order.
        """
        with self._lock, self._errors():
            rows = self._db.execute(
                """
                SELECT sequence, id, kind, stream, body, created, attempts FROM message AS candidate
                WHERE outcome IS NULL AND receiver = ? AND due <= ? AND NOT EXISTS (
                    SELECT 1 FROM message AS earlier
                    WHERE earlier.outcome IS NULL AND earlier.aside = 0 AND earlier.receiver = candidate.receiver
                      AND earlier.stream = candidate.stream AND earlier.sequence < candidate.sequence
                      AND (earlier.due > ? OR earlier.attempts > candidate.attempts))
                ORDER BY attempts, sequence LIMIT ?
                """,
                (receiver, now, now, limit),
            ).fetchall()
        return [Message(*row) for row in rows]

    def next_due(self, receiver: str, now: float) -> float:
        """Return when the next message that waits for its retry is due (monotonic, s); infinite if none does."""
        with self._lock, self._errors():
            (due,) = self._db.execute(
                "SELECT min(due) FROM message WHERE outcome IS NULL AND receiver = ? AND due > ?", (receiver, now)
            ).fetchone()
        return math.inf if due is None else float(due)

    def finish(self, outcomes: Sequence[tuple[int, str]]) -> None:
        """Record final outcomes, `delivered` or `dropped`, by the messages' sequence numbers."""
        with self._lock, self._errors(), self._counted():
            self._record_outcomes(outcomes)
            self._db.execute(
                "DELETE FROM message WHERE outcome IS NOT NULL AND sequence <= (SELECT max(sequence) FROM message) - ?",
                (DONE_KEPT,),
            )

    def retry(self, sequence: int, due: float, *, out_of_order: bool) -> None:
        """Count a failed attempt, set the next time (monotonic, s); `out_of_order`: no longer hold its stream back."""
        with self._lock, self._errors():
            self._db.execute(
                "UPDATE message SET attempts = attempts + 1, due = ?, aside = max(aside, ?) WHERE sequence = ?",
                (due, int(out_of_order), sequence),
            )

    def retry_now(self, receiver: str, attempts: int) -> None:
        """Make every pending message of a receiver that has failed at most `attempts` times due now."""
        with self._lock, self._errors():
            self._db.execute(
                "UPDATE message SET due = 0 WHERE outcome IS NULL AND receiver = ? AND attempts <= ?",
                (receiver, attempts),
            )

    def knows(self, receiver: str, ids: Sequence[str]) -> bool:
        """Whether a receiver was told, or is to be told, one of these messages; the oldest are forgotten."""
        with self._lock, self._errors():
            marks = ", ".join("?" * len(ids))
            found = self._db.execute(
                f"SELECT 1 FROM message WHERE receiver = ? AND id IN ({marks}) LIMIT 1",  # noqa: S608 - marks only
                (receiver, *ids),
            ).fetchone()
        return found is not None

    def renew(self, receiver: str) -> None:
        """Make every pending message of a receiver due now, as if it had never been tried."""
        with self._lock, self._errors():
            self._db.execute(
                "UPDATE message SET attempts = 0, due = 0, aside = 0 WHERE outcome IS NULL AND receiver = ?",
                (receiver,),
            )

    def remember(self, receiver: str, incident: str, value: bytes, until: float) -> None:
        """Keep what a receiver has to know of an incident until Unix time `until`, s."""
        with self._lock, self._errors():
            self._db.execute("INSERT OR REPLACE INTO memory VALUES (?, ?, ?, ?)", (receiver, incident, value, until))

    def recall(self, receiver: str, now: float) -> dict[str, bytes]:
        """Return what a receiver knows, by incident; what is over at Unix time `now`, s, is forgotten."""
        with self._lock, self._errors():
            self._db.execute("DELETE FROM memory WHERE until < ?", (now,))
            rows = self._db.execute(
                "SELECT incident, value FROM memory WHERE receiver = ? ORDER BY incident LIMIT ?",
                (receiver, MAX_REMEMBERED),
            ).fetchall()
        return dict(rows)

    def close(self) -> None:
        """Close the file."""
        with self._lock, self._errors():
            self._db.close()

    def _record_outcomes(self, outcomes: Sequence[tuple[int, str]]) -> None:
        """Write the outcomes of messages that are pending."""
        self._db.executemany(
            "UPDATE message SET outcome = ?, body = NULL WHERE sequence = ? AND outcome IS NULL",
            [(outcome, sequence) for sequence, outcome in outcomes],
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into OutboxError."""
        try:
            yield
        except ERRORS as error:
            fault, why = explain(error)
            kind = OutboxFullError if fault in (Fault.FULL, Fault.IO) else OutboxError
            if fault is Fault.DAMAGED:
                why = self._damaged(str(error))
            raise kind(f"the outbox {self.path} {why}") from error

    def _damaged(self, found: str) -> str:
        return (
            f"is damaged ({' '.join(found.split())}): move it away together with {self.path.name}-wal and start again;"
            " alerts in it that were not yet delivered will not reach their receivers"
        )
