"""The files that the daemon makes and reads: private, written by one process, and known again by their beginning."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import sqlite3
import stat
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.batches import Rejected
from connectors.files.lines import FileError
from connectors.files.sinks import FileAlertSink, FileDeadLetterSink, FileScoreSink
from connectors.notify.outbox import Outbox, OutboxError
from detector.checkpointing.store import SqliteStore
from detector.config.settings import load_settings
from detector.errors import StateError
from detector.service.factory import build_daemon

EVENTS = 300


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def lines(count: int, first: int = 0, name: str = "a") -> str:
    events = ({"stream": name, "timestamp": 1_700_000_000 + i, "value": i % 7} for i in range(first, first + count))
    return "".join(json.dumps(event) + "\n" for event in events)


class Work:
    """A folder with a source, and runs of the daemon over it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        self.source, self.scores = folder / "events.jsonl", folder / "scores.jsonl"

    def run(self, **more: str) -> int:
        """Run to the source's end; return how many scores there are by then."""
        names = {
            "source.type": "file", "source.paths": json.dumps([str(self.source)]), "state.directory": self.state,
            "output.scores_file": self.scores, "http.port": 0, "compute.device": "cpu", **more,
        }  # fmt: skip
        build_daemon(load_settings(None, {}, [f"{name}={value}" for name, value in names.items()])).run()
        return self.scores.read_bytes().count(b"\n")

    def attempt(self) -> str:
        """Run as `run` does, on a copy of the state; return the one line with which it is refused."""
        copy = Work(self.folder / f"copy-{time.monotonic_ns()}")
        shutil.copytree(self.state, copy.state)
        copy.source = self.source
        with pytest.raises(FileError) as reported:
            copy.run()
        assert "\n" not in str(reported.value)
        return str(reported.value)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


# -- a source that is another one by now -------------------------------------------------------------------------------


def test_resume_refuses_a_replaced_file_and_accepts_one_that_grew(work: Work) -> None:
    work.source.write_text(lines(EVENTS))
    assert work.run() == EVENTS
    with work.source.open("a") as file:
        file.write(lines(EVENTS, EVENTS))
    assert work.run() == 2 * EVENTS

    grown = work.source.read_text()
    replacements = {
        "a longer one": lines(4 * EVENTS, 5 * EVENTS),
        "a shorter one": lines(10, 5 * EVENTS),
        "the same, after something else": lines(1, 0, "b") + grown,
        "empty": "",
    }
    for what, text in replacements.items():
        work.source.write_text(text)  # in place: the inode stays
        assert "events.jsonl: does not begin as it did when 600 records" in work.attempt(), what
    work.source.rename(work.folder / "events.jsonl.1")  # rotated
    work.source.write_text(lines(4 * EVENTS, 5 * EVENTS))
    assert "it was replaced" in work.attempt()

    work.source.write_text(grown + lines(1, 2 * EVENTS))
    assert work.run() == 2 * EVENTS + 1, "what was refused has changed nothing"


def test_a_store_without_a_recorded_file_start_resumes_and_records_it(work: Work) -> None:
    work.source.write_text(lines(EVENTS))
    work.run()
    with sqlite3.connect(work.state / "state.db") as db:
        document = json.loads(db.execute("SELECT document FROM meta").fetchone()[0])
        document.pop("beginnings", None)
        document["sinks"] = {str(work.scores): work.scores.stat().st_size}
        text = json.dumps(document, sort_keys=True)
        db.execute("UPDATE meta SET document = ?, crc = ?", (text, zlib.crc32(text.encode())))
    db.close()
    with work.source.open("a") as file:
        file.write(lines(5, EVENTS))
    assert work.run() == EVENTS + 5
    work.source.write_text(lines(4 * EVENTS, 5 * EVENTS))
    assert "does not begin as it did" in work.attempt()


def test_a_gzipped_file_is_identified_by_its_compressed_bytes(work: Work) -> None:
    work.source = work.folder / "events.jsonl.gz"
    work.source.write_bytes(gzip.compress(lines(EVENTS).encode()))
    assert work.run() == EVENTS
    with work.source.open("ab") as file:  # members may follow each other
        file.write(gzip.compress(lines(EVENTS, EVENTS).encode()))
    assert work.run() == 2 * EVENTS
    work.source.write_bytes(gzip.compress(lines(4 * EVENTS, 5 * EVENTS).encode()))
    assert "does not begin as it did" in work.attempt()


def test_a_pipe_is_always_read_from_its_beginning(work: Work) -> None:
    import threading

    work.source = work.folder / "pipe"
    os.mkfifo(work.source)
    for first in (0, EVENTS):
        feed = threading.Thread(target=work.source.write_text, args=(lines(EVENTS, first),))
        feed.start()
        assert work.run() == first + EVENTS
        feed.join()


# -- a result that is another one by now -------------------------------------------------------------------------------


def rejected(*numbers: int) -> list[Rejected]:
    return [Rejected("t", 0, number, "not_json", "x", b"x") for number in numbers]


def test_restore_does_not_truncate_a_file_written_by_another_program(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "dead.jsonl"
    sink = FileDeadLetterSink(path)
    sink.write(rejected(1))
    sink.flush()
    position = json.loads(json.dumps(sink.position()))  # as a store keeps it
    sink.close()
    path.rename(tmp_path / "dead.jsonl.1")
    theirs = "a line of somebody else's\n" * 1000
    path.write_text(theirs)
    sink = FileDeadLetterSink(path)
    with caplog.at_level(logging.WARNING):
        sink.restore(position)
    sink.write(rejected(2))
    sink.close()
    assert path.read_text().startswith(theirs)
    assert path.read_text().count("\n") == 1001
    assert "has been replaced by another file" in caplog.text


def test_a_result_file_emptied_while_open_is_not_padded_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    sink = FileDeadLetterSink(path)
    sink.write(rejected(1, 2))
    sink.flush()
    position = sink.position()
    sink.write(rejected(3))
    sink.flush()
    os.truncate(path, 0)  # as logrotate's copytruncate does
    sink.restore(position)
    sink.write(rejected(4))
    sink.close()
    assert [json.loads(line)["offset"] for line in path.read_text().splitlines()] == [4]


# -- one writer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sink", "setting"),
    [
        (FileScoreSink, "output.scores_file"),
        (FileAlertSink, "output.alerts_file"),
        (FileDeadLetterSink, "output.dead_letter_file"),
    ],
)
def test_a_result_file_has_one_writer(sink: type, setting: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    first = sink(path)
    other = tmp_path / "other-name.jsonl"
    os.link(path, other)
    for name in (path, other):
        with pytest.raises(FileError, match=rf"^{setting} {name}: is written by another longwatch") as reported:
            sink(name)
        assert "\n" not in str(reported.value)
    first.close()
    sink(path).close()


def test_a_second_worker_on_the_same_result_file_is_refused_and_changes_nothing(work: Work, tmp_path: Path) -> None:
    work.source.write_text(lines(EVENTS))
    work.run()
    before = work.scores.read_bytes()
    first = FileScoreSink(work.scores)
    second = Work(tmp_path / "second")
    second.folder.mkdir()
    second.source.write_text(lines(EVENTS))
    second.scores = work.scores
    with pytest.raises(FileError, match=r"output\.scores_file .*: is written by another longwatch"):
        second.run()
    assert work.scores.read_bytes() == before
    first.close()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_result_file_that_cannot_be_truncated_is_a_one_line_error(make, tmp_path: Path) -> None:
    path = tmp_path / "odd"
    make(path)
    with pytest.raises(FileError, match=rf"^output\.scores_file {path}: ") as reported:
        FileScoreSink(path)
    assert "\n" not in str(reported.value)


# -- for nobody else ---------------------------------------------------------------------------------------------------


def test_files_the_daemon_writes_are_readable_by_their_owner_only(work: Work) -> None:
    work.state.mkdir(mode=0o755)
    work.source.write_text(lines(EVENTS) + "no event\n")
    more = {
        "output.alerts_file": str(work.folder / "alerts.jsonl"),
        "output.dead_letter_file": str(work.folder / "dead.jsonl"),
        "receivers.hook.url": "http://127.0.0.1:9/",
        "receivers.hook.tell": "alerts",
        "receivers.hook.allowed_hosts": "127.0.0.1",
    }
    work.run(**more)
    made = [path for path in work.folder.rglob("*") if path.is_file() and path != work.source]
    assert {"state.db", "lock", "outbox.sqlite3", "scores.jsonl", "alerts.jsonl", "dead.jsonl"} <= {
        p.name for p in made
    }
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in made} == {p.name: "0o600" for p in made}


def test_world_readable_files_of_an_earlier_version_are_made_private(tmp_path: Path) -> None:
    SqliteStore(tmp_path).close()
    database = tmp_path / "state.db"
    database.chmod(0o644)
    store = SqliteStore(tmp_path)
    store.save([("a", b"row")], {"version": 1})
    assert [oct(stat.S_IMODE(path.stat().st_mode)) for path in tmp_path.glob("state.db*")] == ["0o600"] * 2
    store.close()


@pytest.mark.parametrize("name", ["lock", "state.db", "state.db-wal", "state.db-journal"])
def test_a_symbolic_link_in_the_state_directory_is_not_followed(name: str, tmp_path: Path) -> None:
    state, victim = tmp_path / "state", tmp_path / "victim"
    state.mkdir()
    victim.write_text("precious")
    (state / name).symlink_to(victim)
    with pytest.raises(StateError, match=f"{name}: it is a symbolic link") as reported:
        SqliteStore(state)
    assert "\n" not in str(reported.value)
    assert victim.read_text() == "precious"
    (state / name).unlink()
    SqliteStore(state).close()


def test_a_dangling_symbolic_link_creates_no_file_at_its_target(tmp_path: Path) -> None:
    state, outside = tmp_path / "state", tmp_path / "outside"
    state.mkdir()
    (state / "state.db").symlink_to(outside)
    with pytest.raises(StateError):
        SqliteStore(state)
    (state / "outbox.db").symlink_to(outside)
    with pytest.raises(OutboxError, match="it is a symbolic link"):
        Outbox(state / "outbox.db")
    results = tmp_path / "scores.jsonl"
    results.symlink_to(outside)
    with pytest.raises(FileError, match="it is a symbolic link"):
        FileScoreSink(results)
    assert not outside.exists()


def test_a_lock_path_that_is_not_a_file_is_a_one_line_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(StateError, match="lock is no regular file: remove it"):
        SqliteStore(tmp_path)
