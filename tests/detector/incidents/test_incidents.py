"""Incidents on disk: told once, whatever is replayed and killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from connectors.json_records import AlertRecord
from connectors.protocols import NotWrittenError
from detector.config.sections import IncidentsSettings
from detector.incidents import incidents as module
from detector.incidents import store
from detector.incidents.incidents import Incidents
from detector.incidents.store import INCIDENTS_FILE, IncidentsError
from tests.daemon.support import until
from tests.detector.incidents.support import Kept, alert

ROOT = Path(__file__).parents[3]
Make = Callable[..., Incidents]


@pytest.fixture
def told() -> Kept:
    return Kept()


@pytest.fixture
def make(tmp_path: Path, told: Kept) -> Iterator[Make]:
    made: list[Incidents] = []

    def build(**settings: float) -> Incidents:
        quick = {"wait_seconds": 0.0, "window_seconds": 300.0} | settings
        made.append(Incidents(tmp_path, IncidentsSettings.model_validate(quick), told))
        return made[-1]

    yield build
    for one in made:
        if not one._stop.is_set():
            one.close()


def test_a_rack_that_fails_is_told_once_and_once_when_it_is_over(make: Make, told: Kept) -> None:
    incidents = make(wait_seconds=0.5, window_seconds=1.0)
    incidents.write([alert(n, f"rack-3/host-{n}/cpu", 0.01 * n) for n in range(42)])
    until(lambda: len(told.incidents) == 1)
    (opened,) = told.incidents
    assert (opened.state, opened.streams, opened.revision) == ("open", 42, 1)
    assert opened.summary.startswith("42 streams of rack-3; worst: rack-3/host-")
    incidents.write([alert(n, f"rack-3/host-{n}/cpu", 0.01 * n, 60) for n in range(42)])
    until(lambda: len(told.incidents) == 2)
    resolved = told.incidents[-1]
    assert (resolved.id, resolved.state, resolved.revision, resolved.firing) == (opened.id, "resolved", 2, 0)
    assert incidents.open() == []
    assert incidents.recent().incidents == [resolved]


def test_who_is_told_is_whom_the_rules_of_its_alerts_name(make: Make, told: Kept) -> None:
    incidents = make(window_seconds=1.0)
    incidents.routes = {"db": ("dba",), "web": ("web", "pager"), "all": ()}
    for at, rules in enumerate((("db",), ("db", "web"), ("db", "all"), ("db", ""), ("gone",))):
        names = [f"{chr(ord('a') + at) * 3}/{k}" for k in range(len(rules))]
        incidents.write([alert(10 * at + k, names[k], 5000 * at, rule=rule) for k, rule in enumerate(rules)])
        incidents.flush()
        until(lambda n=at + 1: len({one.id for one in told.incidents}) == n)  # type: ignore[misc]
    first = {record.id: only for record, only in zip(told.incidents[::-1], told.only[::-1], strict=True)}
    assert list(reversed(first.values())) == [{"dba"}, {"dba", "web", "pager"}, None, None, None]


def test_it_is_told_at_once_that_an_incident_becomes_critical_and_not_at_once_that_it_grows(
    make: Make, told: Kept
) -> None:
    incidents = make()
    incidents.write([alert(1, "web-1/cpu")])
    until(lambda: len(told.incidents) == 1)
    incidents.write([alert(2, "web-1/memory", 1)])
    incidents.flush()
    time.sleep(0.3)
    assert len(told.incidents) == 1
    incidents.write([alert(3, "web-1/disk", 2, severity="critical", score=9.0)])
    until(lambda: len(told.incidents) == 2)
    assert [(one.state, one.severity, one.streams) for one in told.incidents] == [
        ("open", "warning", 1),
        ("open", "critical", 3),
    ]


def test_growth_is_told_together_after_a_while(make: Make, told: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPDATE_SECONDS", 0.5)
    incidents = make()
    incidents.write([alert(1, "web-1/cpu")])
    until(lambda: len(told.incidents) == 1)
    for number in range(2, 30):
        incidents.write([alert(number, f"web-1/m{number}", number / 10)])
    until(lambda: told.incidents[-1].streams == 29)
    assert len(told.incidents) <= 3


def test_alerts_that_come_again_change_nothing(make: Make, told: Kept) -> None:
    incidents = make()
    fired, ended = alert(1, "s"), alert(1, "s", 0, 60)
    incidents.write([fired])
    until(lambda: len(told.incidents) == 1)
    incidents.write([ended])
    incidents.flush()
    before = incidents.get("a1")
    incidents.close()
    again = make()
    again.write([fired, ended, fired])
    again.flush()
    assert again.get("a1") == before
    assert len(told.incidents) == 1, "it lingers, and is told when it is over"


def test_incidents_go_on_after_a_restart(make: Make, told: Kept) -> None:
    first = make()
    first.write([alert(1, "web-1/cpu")])
    until(lambda: len(told.incidents) == 1)
    first.close()
    second = make()
    second.write([alert(2, "web-1/memory", 100)])
    second.flush()
    (record,) = second.open()
    assert (record.id, [one.id for one in record.alerts]) == ("a1", ["a1", "a2"])
    second.write([alert(1, "web-1/cpu", 0, 200), alert(2, "web-1/memory", 100, 210), alert(9, "other", 100_000)])
    until(lambda: any(one.state == "resolved" for one in told.incidents))
    assert [one.id for one in second.open()] == ["a9"]


def test_the_page_finds_incidents_and_alerts(make: Make) -> None:
    incidents = make()
    incidents.write([alert(n, f"lonely-{chr(97 + n)}{chr(98 + n)}", 1000.0 * n, 1000.0 * n + 1) for n in range(10)])
    incidents.flush()
    first = incidents.recent(4)
    assert [one.id for one in first.incidents] == ["a9", "a8", "a7", "a6"]
    second = incidents.recent(100, first.next)
    assert [one.id for one in second.incidents] == [f"a{n}" for n in range(5, -1, -1)]
    assert second.next is None
    until(lambda: len(incidents.recent(100, state="resolved").incidents) == 9)
    found = incidents.alert("a3")
    assert found is not None
    assert found.incident == "a3"
    assert found.record is not None
    assert msgspec.json.decode(found.record, type=AlertRecord).id == "a3"
    assert incidents.alert("none") is None
    assert incidents.get("none") is None


def test_changes_are_announced(make: Make) -> None:
    incidents = make()
    seen: list[str] = []
    incidents.on_change(seen.extend)
    before = incidents.changes
    incidents.write([alert(1, "s")])
    incidents.flush()
    assert "a1" in seen
    assert incidents.changes > before


def test_old_incidents_are_forgotten_by_age_and_by_number(
    make: Make, told: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_INCIDENTS", 5)
    monkeypatch.setattr(module, "FORGET_SECONDS", 0.0)
    incidents = make()
    for n in range(12):
        incidents.write([alert(n, "s", 1000.0 * n, 1000.0 * n + 1)])
        incidents.flush()
    until(lambda: len(incidents.recent(100).incidents) <= 6)
    assert incidents.alert("a11") is not None
    assert incidents.alert("a0") is None


_CHILD = """
import os, signal, sys
from pathlib import Path
from detector.config.sections import IncidentsSettings
from detector.incidents.incidents import Incidents
from tests.detector.incidents.support import Kept, alert

class Dying(Kept):
    def tell(self, incidents):
        for one in incidents:
            print(one.record.id, one.record.revision, one.record.state, flush=True)
        if sys.argv[2] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
    def flush(self):
        if self.incidents or sys.argv[2] == "after" and self.told:
            os.kill(os.getpid(), signal.SIGKILL)
    told = False

class After(Dying):
    def tell(self, incidents):
        super().tell(incidents)
        self.told = True

settings = IncidentsSettings.model_validate({"wait_seconds": 0.0, "window_seconds": 0.2})
incidents = Incidents(Path(sys.argv[1]), settings, After())
incidents.write([alert(1, "web-1/cpu"), alert(2, "web-1/memory")])
incidents.write([alert(1, "web-1/cpu", 0, 5), alert(2, "web-1/memory", 0, 6)])
import time
time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_kill_9_while_it_is_told_repeats_the_same_revision(tmp_path: Path, moment: str) -> None:
    lines = []
    for _ in range(3):
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, str(tmp_path), moment],
            capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert child.returncode == -signal.SIGKILL, child.stderr
        lines += child.stdout.splitlines()
    told = Kept()
    settings = IncidentsSettings.model_validate({"wait_seconds": 0.0, "window_seconds": 0.2})
    incidents = Incidents(tmp_path, settings, told)
    until(lambda: incidents.open() == [] and told.incidents)
    incidents.close()
    revisions = {tuple(line.split()) for line in lines} | {(o.id, str(o.revision), o.state) for o in told.incidents}
    assert {one[0] for one in revisions} == {"a1"}
    numbers = [int(number) for _, number, _ in revisions]
    assert max(numbers) <= 3
    (record,) = incidents_of(tmp_path)
    assert record == ("a1", 0, 2)


def incidents_of(directory: Path) -> list[tuple[str, int, int]]:
    with sqlite3.connect(directory / INCIDENTS_FILE) as database:
        found = database.execute("SELECT id, open, members FROM incident").fetchall()
    database.close()
    return found


def test_a_damaged_file_is_put_aside_and_incidents_are_remembered_anew(
    tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / INCIDENTS_FILE).write_bytes(b"this is no database" * 100)
    incidents = make()
    assert "It was put aside as incidents.db.damaged-1" in caplog.text
    incidents.write([alert(1, "web-1/cpu")])
    incidents.flush()
    assert [one.id for one in incidents.open()] == ["a1"]
    assert (tmp_path / "incidents.db.damaged-1").read_bytes().startswith(b"this is no database")


def test_a_file_of_a_newer_version_is_refused_and_left_whole(tmp_path: Path, make: Make) -> None:
    make().close()
    with sqlite3.connect(tmp_path / INCIDENTS_FILE) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(IncidentsError, match="has version 99"):
        make()
    assert not list(tmp_path.glob("*.damaged-*"))


def scribbled(path: Path) -> None:
    """Overwrite all pages of a file but the first."""
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        assert size > 4096
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def test_pages_that_are_damaged_are_found_at_the_start_too(tmp_path: Path, make: Make) -> None:
    first = make()
    first.write([alert(n, f"web-{n}/cpu") for n in range(50)])
    first.flush()
    first.close()
    scribbled(tmp_path / INCIDENTS_FILE)
    second = make()
    second.write([alert(99, "db/cpu")])
    second.flush()
    assert [one.id for one in second.open()] == ["a99"]
    assert (tmp_path / "incidents.db.damaged-1").exists()


def test_a_file_that_breaks_under_a_running_daemon_is_put_aside_whoever_finds_it(
    tmp_path: Path, make: Make, told: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    incidents = make()
    incidents.write([alert(1, "web-1/cpu")])
    until(lambda: len(told.incidents) == 1)
    with incidents._working:  # what SQLite has cached would hide it
        incidents._store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        scribbled(tmp_path / INCIDENTS_FILE)
        incidents._store._db.execute("PRAGMA shrink_memory")
        incidents._store._db.execute("PRAGMA cache_size = 0")
    with pytest.raises(IncidentsError, match="is damaged"):
        incidents.recent()
    until((tmp_path / "incidents.db.damaged-1").exists, "it is put aside")
    until(lambda: incidents.recent().incidents == [], "there is another file")
    assert caplog.text.count("incidents are remembered anew") == 1
    incidents.write([alert(1, "web-1/cpu", 0, 60)])
    until(lambda: len(told.incidents) == 2, "the end of what was told of is told, too: its number is a higher one")
    (record,) = incidents.recent().incidents
    assert (record.id, record.firing) == ("a1", 0)
    assert record.revision > 2


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_file_that_cannot_be_written_makes_alerts_wait(make: Make, told: Kept, fault: str) -> None:
    incidents = make()
    incidents.write([alert(1, "web-1/cpu")])
    until(lambda: len(told.incidents) == 1)
    with incidents._working:
        database = incidents._store._db
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}" if fault == "full" else "PRAGMA query_only = 1")
    many = [alert(n, f"web-{n}/cpu", summary="x" * 4000) for n in range(2, 40)]
    incidents.write(many)
    with pytest.raises(NotWrittenError, match=r"disk is full" if fault == "full" else "see state.directory"):
        incidents.flush()
    until(lambda: incidents.problem.current)
    assert [one.id for one in incidents.open()] == ["a1"], "what is there can be read"
    with incidents._working:
        database.execute("PRAGMA max_page_count = 1000000" if fault == "full" else "PRAGMA query_only = 0")
    incidents.flush()
    found = incidents.get("a1")
    assert found is not None
    assert found.streams == 39


def test_a_second_daemon_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    with pytest.raises(IncidentsError, match="another longwatch runs"):
        make()
