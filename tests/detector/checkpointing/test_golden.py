"""State that another version has written: resumed without a difference, or refused in one line and kept.

tests/golden/ holds what longwatch has left behind, a folder for each change; `make_golden` there says how it is made.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from connectors.kafka.changelog_format import Assembler, ChangelogError, restored
from detector.checkpointing.state_directory import DATABASE
from detector.checkpointing.store import SqliteStore
from detector.config.settings import load_settings
from detector.errors import StateError
from detector.scoring.claims import NOVEL_WARM_UP_EVENTS, WARM_UP_EVENTS
from detector.service.daemon import Daemon
from detector.service.factory import build_daemon
from detector.state.former import TAKEN_OVER
from tests.daemon.records import TOLERANCE
from tests.golden.make_golden import CUT, GONE, NAMES, SOURCE, START, STEP, alarmed, events, settings

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
# What this version writes; what it takes over: rows of another score, and such in another format of the store; what it
# refuses
PRESENT, FORMER, OLDER, OLD = (GOLDEN / f"format-{number}" for number in (4, 3, 2, 1))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events.jsonl").write_bytes(events())
    return tmp_path


def unpack(golden: Path, work: Path, name: str = "state.db.zst") -> bytes:
    """Put a golden store where a daemon finds it, and return its bytes."""
    (work / "state").mkdir()
    data = zstandard.decompress((golden / name).read_bytes())
    (work / "state" / DATABASE).write_bytes(data)
    return data


def open_daemon(work: Path, **more: str) -> Daemon:
    return build_daemon(load_settings(overrides=settings(work, **more)))


def assert_as_before(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Check that records say what they said on another machine, which rounds otherwise.

    Where a rounded value falls into the next cell of a novelty memory, a score may differ by more.
    """
    differences = []
    for record, expected in zip(found, wanted, strict=True):
        assert (record["stream"], record["timestamp"]) == (expected["stream"], expected["timestamp"])
        assert record["score"] == pytest.approx(expected["score"], abs=0.1 if expected["score"] < 3.0 else 1e-3), record
        differences.append(abs(record["score"] - expected["score"]))
        if abs(expected["score"] - record["threshold"]) > max(differences[-1], 1e-6):
            assert record["alert"] == expected["alert"], record
    assert sorted(differences)[round(0.95 * len(differences))] < TOLERANCE


def scored(work: Path, scores: str = "scores.jsonl", **more: str) -> list[dict[str, Any]]:
    """Let a daemon read on to the end of the events; return what it wrote."""
    open_daemon(work, output__scores_file=str(work / scores), **more).run()
    return [msgspec.json.decode(line) for line in (work / scores).read_bytes().splitlines()]


def golden_scores() -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in (PRESENT / "scores.jsonl").read_bytes().splitlines()]


def test_resuming_the_golden_state_gives_its_versions_scores(work: Path) -> None:
    """Fails with a change of what rows hold: then FORMAT_VERSION, or the rows' layout, must tell the two apart."""
    unpack(PRESENT, work)
    found, wanted = scored(work), golden_scores()
    assert len(found) == len(wanted) == len(events().splitlines()) - CUT * len(NAMES)
    assert max(record["score"] for record in wanted) > 3.0
    assert_as_before(found, wanted)


@pytest.mark.parametrize("golden", [FORMER, OLDER], ids=["former", "older"])
def test_a_former_state_is_taken_over_but_for_its_score(
    work: Path, golden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Forecasts and symbols go on as if there had been no change of version; the score is that of a young stream."""
    unpack(golden, work)
    found = scored(work)
    assert caplog.text.count(TAKEN_OVER) == 1
    assert scored(work, "again.jsonl") == []
    assert caplog.text.count(TAKEN_OVER) == 1, "the next start has nothing to say"

    wanted = scored(work, "whole.jsonl", state__directory=str(work / "from-the-start"))[CUT * len(NAMES) :]
    assert [record["stream"] for record in found] == [record["stream"] for record in wanted]
    for record, expected in zip(found, wanted, strict=True):
        assert record["surprise"] == pytest.approx(expected["surprise"], abs=0.01), record
        for name in ("observed_probability", "expected_probability"):
            assert record.get(name) == (pytest.approx(expected[name], rel=1e-3) if name in expected else None), record
    for record, expected in zip(found[:2], wanted[:2], strict=True):  # later ones are clipped to the range seen since
        assert record["expected"] == pytest.approx(expected["expected"], rel=1e-3)
    for stream in NAMES:
        ours = [record for record in found if record["stream"] == stream]
        assert [record.get("warming", False) for record in ours] == [k < WARM_UP_EVENTS for k in range(len(ours))]
        assert not any(record["score"] for record in ours[: NOVEL_WARM_UP_EVENTS + 1])
        assert not any(record["alert"] for record in ours)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("golden", [PRESENT, OLDER], ids=["present", "older"])
def test_an_open_incident_of_the_golden_state_ends_without_its_stream(work: Path, golden: Path, damaged: bool) -> None:
    unpack(golden, work, "incident.db.zst")
    if damaged:
        with contextlib.closing(sqlite3.connect(work / "state" / DATABASE)) as db, db:
            db.execute("UPDATE streams SET row = zeroblob(length(row))")
    others = ({"stream": "other", "timestamp": START + (CUT + row) * STEP, "value": row % 7} for row in range(200))
    more = b"".join(msgspec.json.encode(event) + b"\n" for event in others)
    (work / "events.jsonl").write_bytes(alarmed() + more)
    daemon = open_daemon(work, output__alerts_file=str(work / "alerts.jsonl"), alerting__threshold="4")
    daemon.run()
    reported = [msgspec.json.decode(line) for line in (work / "alerts.jsonl").read_bytes().splitlines()]
    of_gone = [(alert["status"], alert["resolved_by"]) for alert in reported if alert["stream"] == GONE]
    assert of_gone == ([] if damaged else [("resolved", "silence")])
    assert daemon.metrics.registry.get_sample_value("longwatch_alerts_firing") == 0


def test_a_stream_with_a_damaged_row_is_reset_and_the_others_resume(
    work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unpack(PRESENT, work)
    with contextlib.closing(sqlite3.connect(work / "state" / DATABASE)) as db, db:
        hit = "UPDATE streams SET row = zeroblob(length(row)) WHERE name = ?"
        assert db.execute(hit, [NAMES[0].encode()]).rowcount == 1
    daemon = open_daemon(work, output__scores_file=str(work / "scores.jsonl"))
    daemon.run()
    found = [msgspec.json.decode(line) for line in (work / "scores.jsonl").read_bytes().splitlines()]
    wanted = golden_scores()
    assert wanted[0]["stream"] == found[0]["stream"] == NAMES[0]
    assert wanted[0]["score"] > 0
    assert found[0]["warming"]
    others = [[record for record in records if record["stream"] != NAMES[0]] for records in (found, wanted)]
    assert_as_before(*others)
    assert f"the row of stream {NAMES[0]!r} is damaged" in caplog.text
    assert daemon.metrics.registry.get_sample_value("longwatch_streams_begun_anew_total", {"reason": "damaged"}) == 1


@pytest.mark.parametrize("golden", [PRESENT, FORMER, OLDER], ids=["present", "former", "older"])
def test_golden_changelog_records_give_the_golden_rows(work: Path, golden: Path) -> None:
    unpack(golden, work)
    store = SqliteStore(work / "state")
    assembler = Assembler("changelog", SOURCE)
    records = msgspec.msgpack.decode((golden / "changelog.msgpack").read_bytes())
    entries = [entry for at, (key, value) in enumerate(records) if (entry := assembler.take(at, key, value))]
    *states, last = entries
    assert sorted(entry.stream for entry in states) == sorted(NAMES)
    for entry in states:
        assert (entry.offset, restored(entry.row)) == (CUT, store.load([entry.stream])[0])
    assert last.mark is not None
    assert (last.mark.group, last.mark.member, last.mark.streams) == ("group", "longwatch-group-golden", len(NAMES))
    store.close()


def test_a_store_of_a_former_format_is_refused_and_unchanged(work: Path) -> None:
    before = unpack(OLD, work)
    with pytest.raises(StateError, match="has format 1 of a former longwatch, this one reads 3: run the longwatch"):
        open_daemon(work)
    assert (work / "state" / DATABASE).read_bytes() == before


def test_rows_of_another_layout_are_refused_before_any_event_is_read(work: Path) -> None:
    """What a version with other rows sees of ours, and we of its: model.horizons changes the rows, too."""
    before = unpack(PRESENT, work)
    reported = (
        r"written by longwatch 0\.1\.0 in layout [0-9a-f]{16}, this one \(.*\) reads [0-9a-f]{16}: go back to that"
    )
    with pytest.raises(StateError, match=reported):
        open_daemon(work, model__horizons="[1]")
    assert (work / "state" / DATABASE).read_bytes() == before


def test_records_of_a_later_layout_are_an_error_with_advice() -> None:
    records = msgspec.msgpack.decode((PRESENT / "changelog.msgpack").read_bytes())
    key, value = records[0]
    with pytest.raises(ChangelogError, match=r"offset 7 has version 2, this longwatch reads 1: run .* or set kafka"):
        Assembler("changelog", SOURCE).take(7, key, value[:4] + b"\x02" + value[5:])
