"""The outbox: an SQLite file that keeps the order of each stream's messages."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest

from connectors.notify.dispatcher import OUTBOX_FILE
from connectors.notify.outbox import NewMessage, Outbox, OutboxError
from tests.connectors.notify.support import Counts, MakeSink, Receiver
from tests.daemon.support import until


def test_opening_a_damaged_outbox_fails_with_advice(make_sink: MakeSink, tmp_path: Path) -> None:
    file = tmp_path / OUTBOX_FILE
    outbox = Outbox(file)
    outbox.add([NewMessage("r", str(number), "s", os.urandom(3000)) for number in range(100)], 0.0)
    outbox.close()
    content = bytearray(file.read_bytes())
    content[8192:12288] = os.urandom(4096)
    file.write_bytes(content)
    with pytest.raises(OutboxError, match=f"{file} is damaged .*: move it away together with .*-wal"):
        make_sink(1)
    file.write_bytes(b"this is no database" * 100)
    with pytest.raises(OutboxError, match="is damaged"):
        make_sink(1)


def test_another_programs_database_is_refused_as_outbox(make_sink: MakeSink, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / OUTBOX_FILE) as other:
        other.execute("CREATE TABLE precious (x)")
    other.close()
    with pytest.raises(OutboxError, match="is an SQLite file, but no outbox"):
        make_sink(1)


def test_an_outbox_of_an_unknown_version_is_refused(make_sink: MakeSink, tmp_path: Path) -> None:
    Outbox(tmp_path / OUTBOX_FILE).close()
    with sqlite3.connect(tmp_path / OUTBOX_FILE) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(OutboxError, match="has version 99, this longwatch knows 2"):
        make_sink(1)


def test_a_second_daemon_on_the_same_outbox_is_refused(make_sink: MakeSink) -> None:
    make_sink(1)
    with pytest.raises(OutboxError, match="another longwatch runs with this state"):
        make_sink(1)


def test_a_missing_outbox_directory_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match=r"cannot be made: No such file or directory; see state\.directory"):
        Outbox(tmp_path / "missing" / "outbox.sqlite3")


def test_a_failed_message_delays_only_its_own_stream(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.sqlite3")

    def ids(now: float, limit: int = 100) -> list[str]:
        return [message.id for message in outbox.next("r", now, limit)]

    outbox.add([NewMessage("r", f"{stream}{number}", stream, b"body") for number in range(3) for stream in "ab"], 0.0)
    assert ids(0.0) == ["a0", "b0", "a1", "b1", "a2", "b2"]
    first = outbox.next("r", 0.0, 1)[0].sequence
    outbox.retry(first, 5.0, out_of_order=False)
    assert ids(0.0, 2) == ["b0", "b1"]
    assert ids(5.0) == ["b0", "b1", "b2", "a0"]  # a1 only once a0 is through
    outbox.retry(first, 9.0, out_of_order=True)
    assert ids(5.0) == ["b0", "a1", "b1", "a2", "b2"]
    assert ids(9.0) == ["b0", "a1", "b1", "a2", "b2", "a0"]
    outbox.close()


def test_finding_the_next_message_does_not_slow_down_with_a_streams_backlog(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.sqlite3")
    added, steps, found = 0, 0, list[int]()

    def step() -> None:
        nonlocal steps
        steps += 1

    outbox._db.set_progress_handler(step, 100)
    for waiting in (1_000, 20_000):
        outbox.add([NewMessage("r", str(number), "s", b"body") for number in range(added, waiting)], 0.0)
        added, steps = waiting, 0
        outbox.next("r", 0.0, 100)
        found.append(steps)
    assert found[1] <= 2 * found[0] + 10
    outbox.close()


def test_finished_messages_keep_only_their_id_and_are_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.notify.outbox.DONE_KEPT", 5)
    outbox = Outbox(tmp_path / "o.sqlite3")
    for number in range(20):
        outbox.add([NewMessage("r", f"m{number}", "s", b"body")], 0.0)
        (message,) = outbox.next("r", 0.0, 100)
        outbox.finish([(message.sequence, "delivered")])
    outbox.close()
    with sqlite3.connect(tmp_path / "o.sqlite3") as database:
        rows = database.execute("SELECT id, body FROM message ORDER BY sequence").fetchall()
    database.close()
    assert rows == [(f"m{number}", None) for number in range(15, 20)]


FORMER = """
CREATE TABLE message (
    sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, stream TEXT NOT NULL, body BLOB, created REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0, aside INTEGER NOT NULL DEFAULT 0, outcome TEXT
);
CREATE INDEX message_pending ON message (attempts, sequence) WHERE outcome IS NULL;
CREATE INDEX message_holding ON message (stream, sequence) WHERE outcome IS NULL AND aside = 0;
PRAGMA application_id = 1819766626;
PRAGMA user_version = 1;
"""


def test_what_waits_in_an_outbox_of_one_receiver_goes_to_the_first_webhook_once(
    make_sink: MakeSink, receiver: Receiver, counts: Counts, tmp_path: Path
) -> None:
    now = time.time()
    rows = [(1, "a-1-firing", "s", None, now, "delivered"), (2, "a-2-firing", "s", b'{"a": 2}', now, None)]
    with sqlite3.connect(tmp_path / OUTBOX_FILE) as former:
        former.executescript(FORMER)
        former.executemany(
            "INSERT INTO message (sequence, id, stream, body, created, outcome) VALUES (?, ?, ?, ?, ?, ?)", rows
        )
    former.close()
    make_sink(receiver.port)
    until(lambda: counts.outcomes["delivered"] == 1 and counts.pending == 0)
    assert [(headers["webhook-id"], body) for _, headers, body in receiver.requests] == [("a-2-firing", b'{"a": 2}')]
