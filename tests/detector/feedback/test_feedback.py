"""Feedback to a daemon that is driven turn by turn, killed and rolled back in between."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from detector.config.settings import load_settings
from detector.feedback.feedback import Action, Applied
from detector.feedback.journal import Entry, FeedbackError, UnavailableError, UnknownTargetError
from detector.scoring.recurrence import CALLED
from detector.service.daemon import Daemon
from detector.service.factory import build_daemon

STREAMS = "a/x", "b/x"
ROWS = 600  # events of each stream, a minute apart
SPIKES = {300: 40.0, 450: 120.0}  # where both are far out, and how far
STEP = 60
TURN = 50  # rows
MANY = TURN * len(STREAMS)


@contextmanager
def started(
    folder: Path, name: str, at_a_time: int = MANY, spikes: Mapping[int, float] = SPIKES, rows: int = ROWS
) -> Iterator[Daemon]:
    """Start a daemon on the streams' events; it stops orderly unless the block raises."""
    events = folder / "events.jsonl"
    rng = np.random.default_rng(3)
    values = rng.normal(size=(rows, len(STREAMS)))
    for row, height in spikes.items():
        values[row : row + 3] += height
    lines = (
        {"stream": stream, "timestamp": row * STEP, "value": float(values[row, k])}
        for row in range(rows)
        for k, stream in enumerate(STREAMS)
    )
    events.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    settings = {
        "source.type": "file",
        "source.paths": events,
        "source.max_poll_records": at_a_time,
        "state.directory": folder / name,
        "output.scores_file": folder / f"{name}.scores.jsonl",
        "output.alerts_file": folder / f"{name}.alerts.jsonl",
        "compute.device": "cpu",
        "training.enabled": "false",
        "http.port": 0,
    }
    daemon = build_daemon(
        load_settings(environment={}, overrides=[f"{key}={value}" for key, value in settings.items()])
    )
    try:
        daemon.startup()
        yield daemon
    finally:
        daemon.shutdown(orderly=True)


def read_until(daemon: Daemon, row: int) -> None:
    while sum(daemon.checkpointer.offsets.values()) < row * len(STREAMS):
        daemon.tick()


def finish(daemon: Daemon) -> None:
    while not daemon.source.finished():
        daemon.tick()


def said(daemon: Daemon, action: Action) -> Applied:
    future = daemon.feedback.submit(action)
    daemon.feedback.advance()
    return future.result(0)


def kinds_called(daemon: Daemon, slot: int) -> int:
    """Return how many kinds of errors of a stream were called false."""
    return int((daemon.engine.streams.states.streams.rows["score"]["recurrence"][slot]["clock"] >= CALLED).sum())


def alerts(folder: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / f"{name}.alerts.jsonl").read_text().splitlines()]


def outcome(folder: Path, name: str) -> list[bytes]:
    return [(folder / f"{name}.{kind}.jsonl").read_bytes() for kind in ("scores", "alerts")]


def first_alert(daemon: Daemon, folder: Path, name: str, stream: str) -> str:
    """Return the id of a stream's alert, once the incidents know it."""
    assert daemon.checkpointer.commit()
    return str(next(alert["id"] for alert in alerts(folder, name) if alert["stream"] == stream))


def actions(alert: str) -> list[Action]:
    return [
        Action("mute", "a/*", 400 * STEP * 10**9, "maintenance", "ann"),
        Action("false", alert, reason="a backup", author="bob"),
        Action("reset", "b/x", reason="another machine", author="ann"),
    ]


def test_streams_that_are_muted_do_not_alert_until_their_own_time_says_so(tmp_path: Path) -> None:
    with started(tmp_path, "muted") as daemon:
        assert said(daemon, Action("mute", "a/*", 400 * STEP * 10**9, "maintenance", "ann")).kind == "mute"
        assert [mute.pattern for mute in daemon.feedback.mutes()] == ["a/*"], "before any of its streams has come"
        finish(daemon)
        assert daemon.feedback.mutes() == [], "it ends by itself"
    begun = {(alert["stream"], alert["started_at"]) for alert in alerts(tmp_path, "muted")}
    assert begun == {
        ("a/x", "1970-01-01T07:30:00Z"),
        ("b/x", "1970-01-01T05:00:00Z"),
        ("b/x", "1970-01-01T07:30:00Z"),
    }


def test_a_mute_that_is_ended_holds_no_longer_and_one_survives_a_restart(tmp_path: Path) -> None:
    with started(tmp_path, "ended") as daemon:
        for stream in STREAMS:
            said(daemon, Action("mute", stream, None, "noisy", "ann"))
        said(daemon, Action("unmute", "b/x"))
        read_until(daemon, 100)
    with started(tmp_path, "ended") as daemon:
        (mute,) = daemon.feedback.mutes()
        assert (mute.pattern, mute.until, mute.reason, mute.author) == ("a/x", None, "noisy", "ann")
        finish(daemon)
    assert {alert["stream"] for alert in alerts(tmp_path, "ended")} == {"b/x"}


def test_an_alert_called_false_resolves_at_once_and_its_kind_is_told_no_more(tmp_path: Path) -> None:
    with started(tmp_path, "false", at_a_time=20) as daemon:
        read_until(daemon, 310)
        alert = first_alert(daemon, tmp_path, "false", "a/x")
        states = daemon.engine.streams.states
        slot = states.slots["a/x"]
        lane = int(states.streams.rows["first_lane"][slot])
        assert states.lanes.rows["history"]["masked"][lane].any()
        said(daemon, Action("false", alert, reason="a backup", author="bob"))
        assert kinds_called(daemon, slot) == 1
        assert states.streams.rows["lift"][slot] == 0, "nothing else is told less"
        assert not states.lanes.rows["history"]["masked"][lane].any(), "its span is learnt"
        assert slot not in states.open_alerts
        assert daemon.feedback.verdicts(alert).kind == "false"  # type: ignore[union-attr]
        said(daemon, Action("false", alert, reason="again", author="bob"))
        assert kinds_called(daemon, slot) == 1, "the same verdict twice is one"
        said(daemon, Action("right", alert, reason="it was the disk", author="eve"))
        assert kinds_called(daemon, slot) == 0, "a verdict that is changed takes back what it did"
        finish(daemon)
    resolved = [a for a in alerts(tmp_path, "false") if a["stream"] == "a/x" and a["status"] == "resolved"]
    assert resolved[0]["id"] == alert
    assert resolved[0]["resolved_by"] == "false"
    assert resolved[0]["ended_at"] == "1970-01-01T05:09:00Z", "at the newest event of its stream"


def test_what_is_as_large_as_a_false_alarm_is_held_back_and_what_is_larger_is_not(tmp_path: Path) -> None:
    """Far enough apart that each would be news."""
    with started(tmp_path, "kinds", spikes={300: 40.0, 900: 42.0, 1500: 120.0}, rows=1600) as daemon:
        read_until(daemon, 350)
        said(daemon, Action("false", first_alert(daemon, tmp_path, "kinds", "a/x"), reason="a backup", author="bob"))
        finish(daemon)
    firing = [a for a in alerts(tmp_path, "kinds") if a["status"] == "firing"]
    fired = {stream: [a["started_at"] for a in firing if a["stream"] == stream] for stream in STREAMS}
    at = {row: f"1970-01-0{1 + row // 1440}T{row // 60 % 24:02}:{row % 60:02}:00Z" for row in (300, 900, 1500)}
    assert fired["b/x"][-3:] == [at[300], at[900], at[1500]]
    assert at[900] not in fired["a/x"]
    assert at[1500] in fired["a/x"]
    scores = [json.loads(line) for line in (tmp_path / "kinds.scores.jsonl").read_text().splitlines()]
    held_back = [s["timestamp"] for s in scores if s["stream"] == "a/x" and s.get("held_back") == "false"]
    assert held_back[:1] == [at[900]]


def test_a_verdict_on_an_alert_that_is_over_lets_its_span_be_learnt(tmp_path: Path) -> None:
    with started(tmp_path, "over") as daemon:
        read_until(daemon, 400)
        alert = first_alert(daemon, tmp_path, "over", "b/x")
        states = daemon.engine.streams.states
        slot = states.slots["b/x"]
        assert slot not in states.open_alerts
        history = states.lanes.rows["history"][int(states.streams.rows["first_lane"][slot])]
        assert history["masked"].any()
        said(daemon, Action("false", alert))
        assert not history["masked"].any()


def test_a_stream_that_is_reset_begins_anew(tmp_path: Path) -> None:
    with started(tmp_path, "reset", at_a_time=20) as daemon:
        read_until(daemon, 310)
        states = daemon.engine.streams.states
        partition = states.streams.rows["admission"]["partition"][states.slots["b/x"]]
        said(daemon, Action("reset", "b/x", reason="another machine", author="ann"))
        row = states.streams.rows[states.slots["b/x"]]
        assert (row["score"]["events"], row["lanes"]) == (0, 0)
        assert row["admission"]["partition"] == partition, "so that it is saved where it was"
        finish(daemon)
    ends = [a for a in alerts(tmp_path, "reset") if a["stream"] == "b/x" and a["status"] == "resolved"]
    assert ends[0]["resolved_by"] == "reset"


def play(folder: Path, name: str, at_a_time: int = MANY) -> None:
    """Let all kinds of feedback come at one event."""
    with started(folder, name, at_a_time) as daemon:
        read_until(daemon, 350)
        for action in actions(first_alert(daemon, folder, name, "a/x")):
            said(daemon, action)
        finish(daemon)


def test_the_same_feedback_at_the_same_event_gives_the_same_scores_however_batches_are_cut(tmp_path: Path) -> None:
    play(tmp_path, "wide")
    play(tmp_path, "narrow", at_a_time=20)
    assert outcome(tmp_path, "wide") == outcome(tmp_path, "narrow")


class KilledError(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("commits", [0, 1, 2])
def test_whatever_is_killed_feedback_is_applied_once_and_at_its_event(tmp_path: Path, commits: int) -> None:
    """Copies of the state directory are what a kill would leave: before, between and after the two checkpoints."""
    play(tmp_path, "undisturbed")
    with started(tmp_path, "killed") as daemon:
        read_until(daemon, 350)
        alert = first_alert(daemon, tmp_path, "killed", "a/x")
        commit, made = daemon.checkpointer.commit, 0

        def counted() -> bool:
            nonlocal made
            if made == commits:
                raise KilledError
            made += 1
            return commit()

        daemon.checkpointer.commit = counted  # type: ignore[method-assign]
        for action in actions(alert):
            daemon.feedback.submit(action)
        if commits < 2:
            with pytest.raises(KilledError):
                daemon.feedback.advance()
        else:
            daemon.feedback.advance()
        daemon.sinks.flush()
        for what in ("scores", "alerts"):
            shutil.copy(tmp_path / f"killed.{what}.jsonl", tmp_path / f"again.{what}.jsonl")
        shutil.copytree(tmp_path / "killed", tmp_path / "again")
        daemon.checkpointer.commit = commit  # type: ignore[method-assign]
        daemon.feedback.rolled_back()
    with started(tmp_path, "again") as daemon:
        assert len(daemon.feedback.mutes()) == 1
        finish(daemon)
    assert outcome(tmp_path, "again")[0] == outcome(tmp_path, "undisturbed")[0]


def test_a_rollback_before_the_second_checkpoint_takes_feedback_back_and_it_comes_again(tmp_path: Path) -> None:
    with started(tmp_path, "back") as daemon:
        read_until(daemon, 350)
        alert = first_alert(daemon, tmp_path, "back", "a/x")
        slot = daemon.engine.streams.states.slots["a/x"]
        futures = [daemon.feedback.submit(action) for action in actions(alert)]
        commit, made = daemon.checkpointer.commit, 0

        def failing() -> bool:
            nonlocal made
            made += 1
            return made != 2 and commit()

        daemon.checkpointer.commit = failing  # type: ignore[method-assign]
        daemon.feedback.advance()
        assert not any(future.done() for future in futures)
        assert daemon.feedback.mutes() == []
        daemon.feedback.advance()
        assert [future.result(0).kind for future in futures] == ["mute", "false", "reset"]
        slot = daemon.engine.streams.states.slots["a/x"]
        learnt = kinds_called(daemon, slot)
        daemon.checkpointer.roll_back(RuntimeError("later"))
        daemon.feedback.rolled_back()
        daemon.tick()
        slot = daemon.engine.streams.states.slots["a/x"]
        assert kinds_called(daemon, slot) == learnt == 1, "once"
        assert len(daemon.feedback.mutes()) == 1


def test_a_damaged_journal_is_put_aside_and_what_comes_then_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with started(tmp_path, "damaged") as daemon:
        read_until(daemon, 100)
        for pattern in ("a/*", "c/*", "d/*"):
            said(daemon, Action("mute", pattern))
    (tmp_path / "damaged" / "feedback.db").write_bytes(b"this is no database" * 100)
    with started(tmp_path, "damaged") as daemon:
        assert "It was put aside as feedback.db.damaged-1: verdicts and mutes begin anew" in caplog.text
        assert daemon.feedback.mutes() == []
        assert said(daemon, Action("mute", "b/*")).sequence == 4, "after those that the checkpoint has"
        finish(daemon)
    with started(tmp_path, "damaged") as daemon:
        assert [mute.pattern for mute in daemon.feedback.mutes()] == ["b/*"]


def test_a_journal_that_breaks_while_it_is_used_keeps_its_mutes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with started(tmp_path, "breaks") as daemon:
        read_until(daemon, 100)
        said(daemon, Action("mute", "a/*", None, "moved", "ann"))
        journal = tmp_path / "breaks" / "feedback.db"
        database = daemon.feedback._journal._db
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        database.execute("PRAGMA cache_size = 0")
        database.execute("PRAGMA shrink_memory")
        with journal.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * (journal.stat().st_size - 4096))
        assert daemon.feedback.verdicts("some alert") is None, "whoever looks sees the rest"
        assert "is damaged" in daemon.feedback.problem.current
        read_until(daemon, 200)
        assert (tmp_path / "breaks" / "feedback.db.damaged-1").exists()
        assert daemon.feedback.problem.current == ""
        (mute,) = daemon.feedback.mutes()
        assert (mute.pattern, mute.reason, mute.author) == ("a/*", "moved", "ann")
        said(daemon, Action("unmute", "a/*"))
        finish(daemon)
    assert caplog.text.count("verdicts and mutes begin anew") == 1


@pytest.mark.parametrize("when", ["as it is asked for", "as it is applied"])
def test_a_journal_that_cannot_be_written_stops_no_scoring_and_what_was_asked_for_is_done_later(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("detector.feedback.feedback.RETRY_SECONDS", 0.0)
    with started(tmp_path, "undisturbed", 20) as daemon:
        read_until(daemon, 350)
        for action in actions(first_alert(daemon, tmp_path, "undisturbed", "a/x")):
            said(daemon, action)
        finish(daemon)
    with started(tmp_path, "full", 20) as daemon:
        read_until(daemon, 350)
        alert = first_alert(daemon, tmp_path, "full", "a/x")
        database = daemon.feedback._journal._db
        futures = [] if when == "as it is asked for" else [daemon.feedback.submit(one) for one in actions(alert)]
        database.execute("PRAGMA query_only = 1")
        if futures:
            for _ in range(30):
                daemon.feedback.advance()
            assert daemon.feedback.mutes() == []
            assert not any(future.done() for future in futures)
            assert caplog.text.count("feedback waits") == 1
            assert "rolling back" not in caplog.text
        else:
            for one in actions(alert):
                with pytest.raises(UnavailableError, match=r"feedback\.db cannot be used: .*readonly"):
                    daemon.feedback.submit(one)
        assert "readonly" in daemon.feedback.problem.current
        database.execute("PRAGMA query_only = 0")
        futures = futures or [daemon.feedback.submit(one) for one in actions(alert)]
        daemon.feedback.advance()
        assert [future.result(0).kind for future in futures] == ["mute", "false", "reset"]
        assert daemon.feedback.problem.current == ""
        finish(daemon)
    assert outcome(tmp_path, "full")[0] == outcome(tmp_path, "undisturbed")[0]


def test_a_disk_that_is_full_in_the_middle_of_what_is_applied_takes_all_of_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.feedback.feedback.RETRY_SECONDS", 0.0)
    play(tmp_path, "undisturbed")
    with started(tmp_path, "middle") as daemon:
        read_until(daemon, 350)
        futures = [daemon.feedback.submit(one) for one in actions(first_alert(daemon, tmp_path, "middle", "a/x"))]
        database, tell = daemon.feedback._journal._db, daemon.feedback._journal.try_to_write

        def full_from_here(entry: Entry) -> None:
            tell(entry)
            database.execute("PRAGMA query_only = 1")

        monkeypatch.setattr(daemon.feedback._journal, "try_to_write", full_from_here)
        daemon.feedback.advance()
        assert daemon.feedback.mutes() == [], "all goes back to the checkpoint before"
        assert not any(future.done() for future in futures)
        assert "readonly" in daemon.feedback.problem.current
        monkeypatch.undo()
        database.execute("PRAGMA query_only = 0")
        daemon.feedback._retry_at = 0.0
        daemon.feedback.advance()
        assert [future.result(0).kind for future in futures] == ["mute", "false", "reset"]
        finish(daemon)
    assert outcome(tmp_path, "middle")[0] == outcome(tmp_path, "undisturbed")[0]


def test_mutes_that_are_over_make_room_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.feedback.feedback.MAX_MUTES", 3)
    with started(tmp_path, "many") as daemon:
        read_until(daemon, 100)
        said(daemon, Action("mute", "for good"))
        for number in range(5):
            said(daemon, Action("mute", f"over-{number}", (50 + number) * STEP * 10**9))
        for number in range(2):
            said(daemon, Action("mute", f"holds-{number}", 10**18))
        holding = ["for good", "holds-0", "holds-1"]
        assert [mute.pattern for mute in daemon.feedback.mutes()] == holding
        with pytest.raises(FeedbackError, match="3 mutes are in force"):
            daemon.feedback.submit(Action("mute", "one more"))
    with started(tmp_path, "many") as daemon:
        assert [mute.pattern for mute in daemon.feedback.mutes()] == holding


@pytest.mark.parametrize(
    ("action", "error", "says"),
    [
        (Action("false", "no such"), UnknownTargetError, "there is no alert 'no such'"),
        (Action("acknowledge", "no such"), UnknownTargetError, "there is no incident 'no such'"),
        (Action("unmute", "web-*"), UnknownTargetError, "there is no mute 'web-.'"),
        (Action("mute", "  "), FeedbackError, "mute: say of what"),
        (Action("mute", "x" * 2_000), FeedbackError, "2000 characters; at most 1024"),
        (Action("mute", "a\0b"), FeedbackError, "a character that no text may have"),
        (Action("mute", "a", -5), FeedbackError, "expected an end between 1970 and 2262"),
        (Action("reset", "a/x", 5), FeedbackError, "only a mute has an end"),
        (Action("praise", "a/x"), FeedbackError, "no feedback of kind 'praise': choose one of mute"),
    ],
)
def test_what_cannot_be_is_refused_with_a_line_and_not_written_down(
    tmp_path: Path, action: Action, error: type[FeedbackError], says: str
) -> None:
    with started(tmp_path, "refused") as daemon:
        with pytest.raises(error, match=says):
            daemon.feedback.submit(action)
        assert daemon.feedback._journal.last() == 0


def test_a_stream_that_was_never_seen_cannot_be_reset_nor_begins(tmp_path: Path) -> None:
    with started(tmp_path, "unknown") as daemon:
        with pytest.raises(UnknownTargetError, match="there is no stream 'c/x' here"):
            said(daemon, Action("reset", "c/x"))
        assert "c/x" not in daemon.engine.streams.states.slots
        assert said(daemon, Action("mute", "c/*")).sequence == 2, "and the next one is done"
