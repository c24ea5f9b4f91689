"""Each alert's surroundings: what is kept, that a crash neither loses nor doubles it, that it never stops scoring."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.config.sections import HistorySettings
from detector.engine.engine import Engine
from detector.history import file as file_module
from detector.history import history as module
from detector.history.history import MAX_FOLLOWED, TAIL, History
from detector.history.store import HistoryError, HistoryStore
from tests.detector.history.support import FIRED, LASTED, ROWS, Recorded, events_of, rows, small_engine, values_of
from tests.streams import MINUTE, START, Event, in_batches, interleaved, run


def document(recorded: Recorded, which: int = 0, history: History | None = None) -> dict[str, Any]:
    found = (history or recorded.history).samples(recorded.fired[which])
    assert found is not None
    return found.document()


def test_an_alert_keeps_what_was_before_all_that_follows_and_a_tail(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of())
    fired, resolved = recorded.alerts
    found = document(recorded)
    ended = round((resolved.ended_at - START) / MINUTE)
    assert rows(found) == list(range(FIRED - 300, ended + TAIL + 1))
    assert found["complete"]
    assert found["note"] == ""
    x = found["by_feature"]["x"]
    assert x["observed"] == values_of()[FIRED - 300 : ended + TAIL + 1].tolist()
    at = rows(found).index(FIRED)
    assert found["score"][at] == pytest.approx(fired.score, rel=1e-6)
    assert found["alert"][at]
    assert not any(found["alert"][:at])
    assert found["channel"][at] == fired.channel
    assert x["expected"][at] == pytest.approx(fired.expected["x"], abs=2)
    assert x["lower"][at] <= x["expected"][at] <= x["upper"][at] < x["observed"][at]
    assert found["models"] == [{"time": found["time"][0], "version": fired.model_version}]


@pytest.mark.parametrize("size", [1, 7, 1500])
def test_what_is_kept_does_not_depend_on_how_batches_are_cut(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = Recorded(tmp_path / "a"), Recorded(tmp_path / "b")
    one.feed(events_of(), 100)
    other.feed(events_of(), size)
    assert document(one) == document(other)


def test_an_alert_can_be_seen_before_it_is_on_disk(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of(rows=FIRED + 3), flushed=False)
    found = document(recorded)
    assert rows(found)[-1] == FIRED + 2
    assert not found["complete"]
    assert "as it comes" in found["note"]
    assert not (tmp_path / "history.db").exists()


def test_an_unknown_alert_has_no_surroundings(tmp_path: Path) -> None:
    assert Recorded(tmp_path).history.samples("none") is None


def test_a_replay_after_a_kill_loses_and_doubles_nothing(tmp_path: Path) -> None:
    (tmp_path / "undisturbed").mkdir()
    undisturbed = Recorded(tmp_path / "undisturbed")
    undisturbed.feed(events_of())
    expected = document(undisturbed)
    for killed_at in range(FIRED - 50, FIRED + 100, 25):
        directory = tmp_path / str(killed_at)
        directory.mkdir()
        first = Recorded(directory)
        first.feed(events_of()[: killed_at - 20], 10)
        row = first.engine.pack("a/b")  # the last checkpoint's
        first.feed(events_of()[killed_at - 20 : killed_at], 10)  # written, and no checkpoint covers it
        if first.history.file.store is not None:
            first.history.file.store.close()  # a kill: nothing else is written
        second = Recorded(directory)
        second.engine.unpack("a/b", row)
        second.feed(events_of()[killed_at - 20 :], 33)
        second.alerts = first.alerts + second.alerts
        found = document(second)
        if killed_at > FIRED:
            assert found == expected, "what was written stays, with its scores"
            continue
        at, wanted = rows(found).index(FIRED), rows(expected).index(FIRED)
        assert rows(found) == list(range(FIRED - at, rows(expected)[-1] + 1))
        for name in ("score", "alert", "channel"):
            assert found[name][at:] == expected[name][wanted:]


def test_a_rollback_in_the_process_loses_and_doubles_nothing(tmp_path: Path) -> None:
    (tmp_path / "undisturbed").mkdir()
    undisturbed, recorded = Recorded(tmp_path / "undisturbed"), Recorded(tmp_path)
    undisturbed.feed(events_of())
    recorded.feed(events_of()[: FIRED - 3], 10)
    row, position = recorded.engine.pack("a/b"), recorded.history.position()
    recorded.feed(events_of()[FIRED - 3 : FIRED + 20], 10, flushed=False)
    recorded.history.restore(position)
    recorded.engine.unpack("a/b", row)
    recorded.feed(events_of()[FIRED - 3 :], 10)
    assert document(recorded) == document(undisturbed)
    numbers = recorded.history.ring.find([hash("a/b")], 10_000)[0]
    assert len(numbers) == ROWS, "the ring has each event once"


def test_follows_go_on_after_a_restart_in_the_tail(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of()[: FIRED + LASTED + 20], 10)
    recorded.history.close()
    row = recorded.engine.pack("a/b")
    recorded.history, recorded.engine = recorded.opened(), Engine()
    recorded.engine.unpack("a/b", row)
    recorded.feed(events_of()[FIRED + LASTED + 20 :], 10)
    ended = round((recorded.alerts[-1].ended_at - START) / MINUTE)
    found = document(recorded)
    assert rows(found) == list(range(FIRED - 300, ended + TAIL + 1))
    assert found["complete"]


def test_a_silent_end_is_kept_without_a_batch(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of(rows=FIRED + 5))
    alerts, _ = recorded.engine.resolve_silent({"a/b": 1e9})
    recorded.history.write(alerts)
    recorded.history.flush()
    recorded.history.close()
    store = HistoryStore(tmp_path, read_only=True)
    (kept,) = store.alerts(10)
    store.close()
    assert kept.ended_at == alerts[0].ended_at
    assert b'"resolved"' in kept.record


def test_features_symbols_and_streams_are_kept_apart(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    mixed = [
        event._replace(values={**event.values, "state": "ok" if i % 7 else "busy"})
        for i, event in enumerate(events_of("m", features=("x", "y")))
    ]
    quiet = events_of("quiet", fired=0, lasted=0)
    recorded.feed([e._replace(offset=k) for k, e in enumerate(interleaved([mixed, quiet], 3))])
    (index,) = (
        i for i, name in enumerate(recorded.fired) if "m" in {a.stream for a in recorded.alerts if a.id == name}
    )
    found = document(recorded, index)
    assert found["stream"] == "m"
    assert sorted(found["features"]) == ["state", "x", "y"]
    at = rows(found).index(FIRED - 1)
    assert found["by_feature"]["state"]["observed"][at] == ("ok" if (FIRED - 1) % 7 else "busy")
    assert found["by_feature"]["state"]["expected"][at] in {"ok", "busy"}
    assert found["by_feature"]["y"]["observed"][at] == values_of(seed=2)[FIRED - 1]
    shares = [found["by_feature"][f]["contribution"][at + 1] for f in ("state", "x", "y")]
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_what_the_ring_does_not_have_comes_from_the_streams_own_window(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of()[: FIRED - 20])
    row = recorded.engine.pack("a/b")
    recorded.history.close()
    recorded.history, recorded.engine = recorded.opened(), Engine()
    recorded.engine.unpack("a/b", row)
    recorded.feed(events_of()[FIRED - 20 :], 10)
    found = document(recorded)
    before = rows(found).index(FIRED - 20)
    assert before > 90, "a window has 128 events"
    assert found["score"][:before] == [None] * before
    assert None not in found["score"][before:]
    assert "scores are not known" in found["note"]
    expected = values_of()[FIRED - 20 - before : FIRED - 20]
    assert found["by_feature"]["x"]["observed"][:before] == pytest.approx(expected.tolist(), abs=0.01)
    assert None not in found["by_feature"]["x"]["expected"]
    assert rows(found) == list(range(rows(found)[0], rows(found)[-1] + 1)), "times are restored to the minute"


def test_an_evicted_stream_is_still_followed(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, engine=small_engine(1))
    streams = [events_of("a", rows=900, fired=700), events_of("b", rows=900, fired=0, lasted=0)]
    recorded.feed([e._replace(offset=k) for k, e in enumerate(interleaved(streams, 1))], 20)
    stream = {alert.id: alert.stream for alert in recorded.alerts}
    index = next(i for i, name in enumerate(recorded.fired) if stream[name] == "a")
    found = document(recorded, index)
    assert found["complete"]
    assert found["by_feature"]["x"]["observed"] == values_of(900, fired=700)[rows(found)].tolist()


def test_nothing_is_kept_where_no_bytes_are_allowed(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, HistorySettings(max_bytes=0))
    recorded.feed(events_of())
    recorded.history.close()
    assert recorded.fired
    assert recorded.history.samples(recorded.fired[0]) is None
    assert not list(tmp_path.iterdir())


def many_alerts(recorded: Recorded, monkeypatch: pytest.MonkeyPatch, streams: int) -> None:
    monkeypatch.setattr(module, "FORGET_SECONDS", 0.0)
    for number in range(streams):
        recorded.clock += 86_400
        recorded.feed(events_of(f"s{number}", rows=900, fired=700))
        recorded.history.flush()


def test_what_is_old_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(tmp_path, HistorySettings(days=2.5))
    many_alerts(recorded, monkeypatch, 6)
    kept = [alert_id for alert_id in recorded.fired if recorded.history.samples(alert_id)]
    assert kept == recorded.fired[-3:]


def test_alerts_of_events_of_long_ago_are_kept_as_long_as_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(tmp_path, HistorySettings(days=2.5), clock=START * 1e-9 + 20 * 365 * 86_400)
    many_alerts(recorded, monkeypatch, 4)
    kept = [alert_id for alert_id in recorded.fired if recorded.history.samples(alert_id)]
    assert kept == recorded.fired[-3:], "by when they were recorded: a replay of old data is kept"


def test_the_file_stays_within_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 100_000
    recorded = Recorded(tmp_path, HistorySettings(max_bytes=most))
    many_alerts(recorded, monkeypatch, 30)
    kept = [alert_id for alert_id in recorded.fired if recorded.history.samples(alert_id)]
    assert 2 <= len(kept) < 30
    assert kept == recorded.fired[-len(kept) :], "the oldest are forgotten first"
    recorded.history.close()
    assert (tmp_path / "history.db").stat().st_size <= 2 * most


def test_a_damaged_file_is_put_aside_and_scoring_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "history.db").write_bytes(b"no database" * 1000)
    with caplog.at_level(logging.ERROR):
        recorded = Recorded(tmp_path)
        recorded.feed(events_of())
    assert "put aside as history.db.damaged-1" in caplog.text
    assert (tmp_path / "history.db.damaged-1").exists()
    assert document(recorded)["complete"]


def test_a_file_that_breaks_while_it_is_used_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of("a", rows=900, fired=700))
    recorded.history.close()
    path = tmp_path / "history.db"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(np.random.default_rng(0).bytes(size - 4096))
    recorded.history = recorded.opened()
    with caplog.at_level(logging.ERROR):
        recorded.feed(events_of("b", rows=900, fired=700))
    assert "is damaged" in caplog.text
    found = recorded.history.samples(recorded.fired[-1])
    assert found is not None
    assert len(found.columns) > 300


def test_a_newer_file_is_left_whole(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of(rows=FIRED + 1))
    recorded.history.close()
    with closing(sqlite3.connect(tmp_path / "history.db")) as db, db:
        db.execute("PRAGMA user_version = 99")
    again = Recorded(tmp_path)
    again.feed(events_of(rows=FIRED + 1))
    with closing(sqlite3.connect(tmp_path / "history.db.damaged-1")) as db:
        assert db.execute("SELECT count(*) FROM alert").fetchone() == (1,)


def test_a_chunk_that_is_damaged_is_left_out_and_told(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of())
    recorded.history.close()
    with closing(sqlite3.connect(tmp_path / "history.db")) as db, db:
        db.execute("UPDATE chunk SET columns = x'00' WHERE number = 0")
    recorded.history = recorded.opened()
    recorded.history.file.opened()
    found = document(recorded)
    assert rows(found)[0] == FIRED
    assert not found["complete"]
    assert "missing" in found["note"]


def test_a_file_that_breaks_under_a_running_daemon_leaves_what_memory_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of(rows=FIRED + 5))
    database = recorded.history.file.store._db
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    database.execute("PRAGMA cache_size = 0")
    database.execute("PRAGMA shrink_memory")
    path = tmp_path / "history.db"
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    found = document(recorded)
    assert not found["complete"]
    assert "is damaged" in found["note"], "reading says what is wrong"
    with caplog.at_level(logging.ERROR):
        recorded.feed(events_of()[FIRED + 5 :])
    assert caplog.text.count("put aside as history.db.damaged-1; alerts are remembered anew") == 1
    found = document(recorded)
    assert rows(found)[-1] > FIRED + 50, "what follows is kept in the new file"
    assert "missing" in found["note"]


def test_a_file_that_cannot_be_opened_is_told_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_module, "RETRY_SECONDS", 0.0)
    with closing(sqlite3.connect(tmp_path / "history.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with caplog.at_level(logging.ERROR):
            recorded = Recorded(tmp_path)
            recorded.feed(events_of(rows=FIRED + 5))
        assert caplog.text.count("is in use") == 1
        assert "is in use" in recorded.history.problem.current
        assert rows(document(recorded))[-1] == FIRED + 4, "it is in memory"
        assert "is in use" in recorded.history.samples("another").note
        other.execute("COMMIT")
    recorded.feed(events_of()[FIRED + 5 :])
    assert recorded.history.problem.current == ""
    assert document(recorded)["complete"]


def test_what_nobody_has_thought_of_stops_no_scoring(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of(rows=FIRED + 5))
    monkeypatch.setattr(module, "joined", lambda parts: 1 / 0)
    recorded.feed(events_of()[FIRED + 5 : FIRED + 10], 1)
    monkeypatch.undo()
    assert "history failed unexpectedly" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert recorded.dropped == 1
    recorded.feed(events_of("other", rows=900, fired=700))
    assert document(recorded, -1)["complete"]


def test_a_disk_that_takes_nothing_stops_no_scoring_and_what_fits_is_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of()[: FIRED + 1])
    assert recorded.history.file.store is not None
    full = recorded.history.file.store._db
    pages = full.execute("PRAGMA page_count").fetchone()[0]
    full.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to have a full disk
    with caplog.at_level(logging.ERROR):
        recorded.feed(events_of("other", rows=900, fired=700))
    assert caplog.text.count("the disk is full") == 1
    assert not recorded.history.full
    assert recorded.history.samples(recorded.fired[1]) is not None, "it is in memory"
    full.execute("PRAGMA max_page_count = 1000000")
    recorded.feed(events_of()[FIRED + 1 :])
    recorded.history.close()
    store = HistoryStore(tmp_path, read_only=True)
    assert len(store.alerts(10)) == 2
    store.close()
    assert not recorded.dropped


def test_more_than_memory_holds_is_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 100)
    recorded = Recorded(tmp_path)
    recorded.feed(events_of(), flushed=False)
    assert recorded.dropped
    recorded.history.flush()
    found = document(recorded)
    assert not found["complete"]
    assert "missing" in found["note"]


def test_too_many_alerts_at_once_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FOLLOWED", 2)
    recorded = Recorded(tmp_path)
    streams = [events_of(f"s{k}", rows=900, fired=700) for k in range(4)]
    recorded.feed([e for row in zip(*streams, strict=True) for e in row])
    kept = [alert_id for alert_id in recorded.fired if recorded.history.samples(alert_id)]
    assert len(recorded.fired) == 4
    assert recorded.dropped == 4 - len(kept) > 0
    assert MAX_FOLLOWED > 2


def test_an_alert_that_lasts_is_kept_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 5)
    recorded = Recorded(tmp_path)
    recorded.feed(events_of(rows=FIRED + 10))
    found = document(recorded)
    assert rows(found)[-1] == FIRED + 4
    assert not found["complete"]


def test_a_model_swap_within_is_told(tmp_path: Path, other_model: Any) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of()[: FIRED - 100])
    recorded.engine.use(other_model)
    recorded.feed(events_of()[FIRED - 100 :])
    found = document(recorded)
    assert len(found["models"]) == 2
    assert found["models"][1] == {
        "time": (START + (FIRED - 100) * MINUTE) * 1e-9,
        "version": other_model.fingerprint(),
    }


def test_with_a_changelog_the_note_says_where_it_is(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.history = History(tmp_path, HistorySettings(), changelog=True)
    recorded.feed(events_of())
    assert "worker that recorded it" in document(recorded)["note"]
    assert "stays with the worker that recorded it" in recorded.history.samples("of another").note


def test_a_file_in_use_is_told_in_a_line(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of())
    with pytest.raises(HistoryError, match=r"history\.db is in use: by the running daemon"):
        HistoryStore(tmp_path, read_only=True).alerts(1)
    with pytest.raises(HistoryError, match="no such file"):
        HistoryStore(tmp_path / "elsewhere", read_only=True)


def test_recording_changes_no_score(tmp_path: Path) -> None:
    events: list[Event] = events_of()
    alone, recorded = Engine(), Recorded(tmp_path)
    recorded.feed(events)
    outcome = run(alone, in_batches(events, 100))
    assert [alert.id for alert in outcome.alerts] == [alert.id for alert in recorded.alerts]
    assert alone.pack("a/b") == recorded.engine.pack("a/b")
