"""`incidents.db` in the state directory: incidents, their alerts, and what of it people have been told.

An alert's id is in one incident for good, so alerts that come again after a crash change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from connectors.common.renewable import Kind, RenewableDatabase
from connectors.common.sqlite import Fault, FileError, transaction
from connectors.encode import rfc3339_of
from connectors.json_records import IncidentAlert, IncidentRecord
from connectors.protocols import NotWrittenError
from detector.incidents.grouping import Incident, Member

INCIDENTS_FILE = "incidents.db"
APPLICATION_ID = 0x6C776963  # "lwic" in the file's header
VERSION = 1

# Of incidents that are over. At 2 KB an alert they take 0.5 GB at the very most; a fleet's budget of 50 alerts a day
# fills a month's 3 MB.
MAX_INCIDENTS = 20_000
MAX_ALERTS = 200_000
MAX_RECORDS = 1_000  # alerts of one incident whose whole record is kept

_SCHEMA = """
CREATE TABLE incident (
    sequence       INTEGER PRIMARY KEY,        -- rises as incidents begin
    id             TEXT NOT NULL UNIQUE,
    open           INTEGER NOT NULL DEFAULT 1,
    stream         TEXT NOT NULL,              -- of its first alert, as the next
    first_severity TEXT NOT NULL,
    severity       TEXT NOT NULL,
    started_at     INTEGER NOT NULL,           -- ns, as the next
    ended_at       INTEGER NOT NULL,           -- of the alerts that have resolved, the last; 0: none has
    score          REAL NOT NULL,
    summary        TEXT NOT NULL,
    streams        INTEGER NOT NULL,
    members        INTEGER NOT NULL,
    firing         INTEGER NOT NULL,
    changed        REAL NOT NULL,              -- Unix time, s
    revision       INTEGER NOT NULL DEFAULT 0, -- of what has been told, 0: nothing has
    telling        INTEGER NOT NULL DEFAULT 0, -- 1: that may not have reached the outbox
    untold         INTEGER NOT NULL DEFAULT 1  -- 1: it has changed since
);
CREATE INDEX incident_open ON incident (open) WHERE open = 1;
CREATE INDEX incident_telling ON incident (telling) WHERE telling = 1;
CREATE TABLE alert (
    id         TEXT PRIMARY KEY,
    incident   INTEGER NOT NULL,               -- sequence
    stream     TEXT NOT NULL,
    status     TEXT NOT NULL,
    severity   TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at   INTEGER,
    score      REAL NOT NULL,
    channel    TEXT NOT NULL,
    summary    TEXT NOT NULL,
    record     BLOB                            -- JSON, as on the alerts topic; NULL beyond MAX_RECORDS
);
CREATE INDEX alert_incident ON alert (incident, score);
"""
_MEMBER = "id, stream, status, severity, started_at, ended_at, score, channel, summary"
_TOPIC = "coalesce(json_extract(CAST(record AS TEXT), '$.topic'), '')"
_INCIDENT = (
    "sequence, id, open, severity, first_severity, summary, stream, started_at, ended_at, score, streams, members,"
    " firing, revision"
)


class IncidentsError(FileError, NotWrittenError):
    """The file cannot be opened, read or written at present: nothing of what was to be written is in it."""


class Page(NamedTuple):
    """Some incidents, newest first, and the cursor that the next page begins at; None: there are no more."""

    incidents: list[IncidentRecord]
    next: str | None


class FoundAlert(NamedTuple):
    """An alert's record, JSON as on the alerts topic (None: the incident had too many to keep it), and its incident."""

    record: bytes | None
    incident: str
    stream: str
    started_at: int  # ns
    ended_at: int | None  # ns; None: it fires


class IncidentStore(RenewableDatabase):
    """The file, which this process has for itself. May be used from several threads."""

    kind = Kind("file of incidents", "incidents are remembered anew", APPLICATION_ID, VERSION, _SCHEMA, IncidentsError)

    def __init__(self, directory: Path, on_damaged: Callable[[FileError], object] = lambda why: None) -> None:
        """Open or make the file; one that is damaged is put aside. Raises IncidentsError.

        `on_damaged` is called, from any thread, where damage shows only later: then `begin_anew` with what it is told.
        """
        self._on_damaged: Callable[[FileError], object] = lambda why: None
        super().__init__(directory / INCIDENTS_FILE)
        self._on_damaged = on_damaged

    # -- writing -------------------------------------------------------------------------------------------------------

    @contextmanager
    def changes(self) -> Iterator[None]:
        """Make what is done in a block durable together, or none of it. Raises IncidentsError."""
        with self._lock, self._errors(), transaction(self._db):
            yield

    def status(self, alert_id: str) -> tuple[str, str] | None:
        """Return an alert's status and its incident, None for one that is new."""
        found: tuple[str, str] | None = self._db.execute(
            "SELECT alert.status, incident.id FROM alert JOIN incident ON incident.sequence = alert.incident"
            " WHERE alert.id = ?",
            (alert_id,),
        ).fetchone()
        return found

    def save(self, incident: Incident, now: float, *, is_open: bool = True) -> None:
        """Write an incident as it is, new or not; `now` is a Unix time, s."""
        columns = {
            "id": incident.id,
            "open": int(is_open),
            "stream": incident.stream,
            "first_severity": incident.first_severity,
            "severity": incident.severity,
            "started_at": incident.started_at,
            "ended_at": incident.ended_at,
            "score": incident.score,
            "summary": incident.summary(),
            "streams": len(incident.streams),
            "members": incident.members,
            "firing": incident.firing,
            "changed": now,
            "untold": 1,
        }
        self._db.execute(
            f"INSERT INTO incident ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - ours
            f" ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in columns)}",
            tuple(columns.values()),
        )

    def add(self, incident: Incident, member: Member, record: bytes) -> None:
        """Write a new alert of an incident that has been saved."""
        kept = record if incident.members <= MAX_RECORDS else None
        self._db.execute(
            f"INSERT INTO alert ({_MEMBER}, record, incident)"  # noqa: S608 - ours
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT sequence FROM incident WHERE id = ?))",
            (*member[:-1], kept, incident.id),  # the topic is in the record
        )

    def update(self, member: Member, record: bytes) -> None:
        """Write an alert that has changed."""
        self._db.execute(
            "UPDATE alert SET status = ?, severity = ?, ended_at = ?, score = ?, channel = ?, summary = ?,"
            " record = iif(record IS NULL, NULL, ?) WHERE id = ?",
            (*(member.status, member.severity, member.ended_at, member.score), *(member.channel, member.summary),
             record, member.id),
        )  # fmt: skip

    def continue_from(self, incident_id: str, revision: int) -> None:
        """Let what is told of an incident be numbered from there on."""
        self._db.execute("UPDATE incident SET revision = ? WHERE id = ?", (revision, incident_id))

    def tell(self, ids: Sequence[str]) -> None:
        """Note that these incidents' present states are being told, each the next revision."""
        self._db.executemany(
            "UPDATE incident SET revision = revision + 1, telling = 1, untold = 0 WHERE id = ?",
            [(one,) for one in ids],
        )

    def told(self, ids: Sequence[str]) -> None:
        """Note that what was being told is in the outbox."""
        with self.changes():
            self._db.executemany("UPDATE incident SET telling = 0 WHERE id = ?", [(one,) for one in ids])

    def forget(self, before: float) -> None:
        """Delete incidents that are over and have not changed since Unix time `before`, s, and those too many."""
        (alerts,) = self._db.execute("SELECT count(*) FROM alert").fetchone()
        gone = "open = 0 AND telling = 0 AND untold = 0 AND (changed < ? OR sequence <= ?)"
        newest = self._db.execute("SELECT coalesce(max(sequence), 0) FROM incident").fetchone()[0]
        oldest = newest - MAX_INCIDENTS
        if alerts > MAX_ALERTS:  # the newest that hold so many
            total = 0
            rows = self._db.execute("SELECT sequence, members FROM incident ORDER BY sequence DESC")
            for sequence, members in rows:
                total += members
                if total > MAX_ALERTS:
                    oldest = max(oldest, sequence)
                    break
        self._db.execute(
            f"DELETE FROM alert WHERE incident IN (SELECT sequence FROM incident WHERE {gone})",  # noqa: S608 - ours
            (before, oldest),
        )
        self._db.execute(f"DELETE FROM incident WHERE {gone}", (before, oldest))  # noqa: S608 - ours

    def close(self) -> None:
        """Close the file."""
        with self._lock, self._errors():
            self._db.close()

    # -- reading -------------------------------------------------------------------------------------------------------

    def open_members(self) -> list[tuple[float, list[Member]]]:
        """Return the alerts of each open incident, first to last, with the Unix time of its last change, s."""
        with self._lock, self._errors():
            incidents = self._db.execute(
                "SELECT sequence, changed FROM incident WHERE open = 1 ORDER BY sequence"
            ).fetchall()
            return [
                (changed, [Member(*row) for row in self._db.execute(
                    f"SELECT {_MEMBER}, {_TOPIC} FROM alert WHERE incident = ? ORDER BY rowid", (sequence,))])  # noqa: S608
                for sequence, changed in incidents
            ]  # fmt: skip

    def untold(self) -> tuple[list[str], list[str], set[str]]:
        """Return the incidents whose last telling may not have reached the outbox, those changed since, all told."""
        with self._lock, self._errors():
            rows = self._db.execute(
                "SELECT id, telling, untold, revision FROM incident WHERE telling = 1 OR untold = 1 OR open = 1"
            ).fetchall()
        telling, untold = [row[0] for row in rows if row[1]], [row[0] for row in rows if row[2]]
        return telling, untold, {row[0] for row in rows if row[3]}

    def records(
        self, where: str, values: Iterable[object], limit: int, alerts: int
    ) -> list[tuple[int, IncidentRecord]]:
        """Return incidents, newest first, with their sequence numbers and so many of their alerts, the worst."""
        with self._lock, self._errors():
            rows = self._db.execute(
                f"SELECT {_INCIDENT} FROM incident WHERE {where} ORDER BY sequence DESC LIMIT ?",  # noqa: S608 - ours
                (*values, limit),
            ).fetchall()
            return [(row[0], self._record(row, alerts)) for row in rows]

    def streams(self, incident_id: str) -> list[str]:
        """Return the names of an incident's streams."""
        with self._lock, self._errors():
            rows = self._db.execute(
                "SELECT DISTINCT stream FROM alert WHERE incident = (SELECT sequence FROM incident WHERE id = ?)",
                (incident_id,),
            ).fetchall()
        return [name for (name,) in rows]

    def rules(self, incident_id: str) -> set[str]:
        """Return the names of the rules of an incident's alerts whose record is kept; "": one had none."""
        with self._lock, self._errors():
            rows = self._db.execute(
                "SELECT DISTINCT coalesce(json_extract(CAST(record AS TEXT), '$.rule'), '') FROM alert"
                " WHERE incident = (SELECT sequence FROM incident WHERE id = ?) AND record IS NOT NULL",
                (incident_id,),
            ).fetchall()
        return {name for (name,) in rows}

    def alert(self, alert_id: str) -> FoundAlert | None:
        """Return an alert, None if there is none of that id."""
        with self._lock, self._errors():
            row = self._db.execute(
                "SELECT record, (SELECT id FROM incident WHERE sequence = incident), stream, started_at, ended_at"
                " FROM alert WHERE id = ?",
                (alert_id,),
            ).fetchone()
        return None if row is None else FoundAlert(*row)

    def _record(self, row: Sequence[object], alerts: int) -> IncidentRecord:
        sequence, name, is_open, severity, first, summary, stream, started, ended, score, streams, members, *rest = row
        firing, revision = rest
        found = self._db.execute(
            f"SELECT {_MEMBER} FROM alert WHERE incident = ?"  # noqa: S608 - ours
            " ORDER BY score DESC, started_at LIMIT ?",
            (sequence, alerts),
        ).fetchall()
        shown = [incident_alert(Member(*one)) for one in found]
        columns = {
            "id": name, "state": "open" if is_open else "resolved", "severity": severity, "first_severity": first,
            "summary": summary, "stream": stream, "score": score, "streams": streams, "firing": firing,
            "revision": revision,
        }  # fmt: skip
        return IncidentRecord(
            **columns,  # type: ignore[arg-type]  # as the schema says
            started_at=rfc3339_of(int(started)),  # type: ignore[call-overload]  # likewise, as below
            ended_at=None if is_open else rfc3339_of(int(ended) or int(started)),  # type: ignore[call-overload]
            alerts=shown,
            alerts_left_out=int(members) - len(shown),  # type: ignore[call-overload]
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into IncidentsError, and tell of damage."""
        try:
            with super()._errors():
                yield
        except IncidentsError as error:
            if error.fault is Fault.DAMAGED:
                self._on_damaged(error)
            raise


def incident_alert(member: Member) -> IncidentAlert:
    """Return an alert as an incident's record has it."""
    return IncidentAlert(
        id=member.id,
        stream=member.stream,
        status="firing" if member.status == "firing" else "resolved",
        severity="critical" if member.severity == "critical" else "warning",
        started_at=rfc3339_of(member.started_at),
        ended_at=None if member.ended_at is None else rfc3339_of(member.ended_at),
        score=member.score,
        channel=member.channel,
        summary=member.summary,
    )
