"""What a daemon remembers of alerts: through a restart, a kill in the middle of one, and damage to its files."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.daemon.support import until
from tests.detector.web.support import ROWS, SPIKE, Watched, scored, watched

NAMES = ["host-00/load", "host-01/load"]
FILES = "history.db", "incidents.db", "feedback.db"


@contextmanager
def restarted(folder: Path, former: Watched) -> Iterator[Watched]:
    """Go on where a former daemon's input ended."""
    with watched(folder) as daemon:
        daemon.row, daemon._start, daemon._rng = former.row, former._start, former._rng
        yield daemon


def alert_of(daemon: Watched) -> str:
    """Return the first stream's alert, once what was around it is on disk."""

    def found() -> str | None:
        alerts = [one for incident in daemon.get("/incidents")["incidents"] for one in incident["alerts"]]
        return next((one["id"] for one in alerts if one["stream"] == NAMES[0]), None)

    alert: str = until(found, "there is an alert")
    saved(daemon)
    return alert


def saved(daemon: Watched) -> None:
    until(lambda: daemon.daemon.metrics()("events_unsaved") == 0, "a checkpoint covers all")


def fire(daemon: Watched, rows: int) -> str:
    """Feed so many events of each stream, with one that is far out, and return the first stream's alert."""
    daemon.feed(rows, NAMES, spike=SPIKE)
    scored(daemon, rows * len(NAMES))
    return alert_of(daemon)


def damage(path: Path) -> None:
    """Overwrite a file, and the log beside it, which would mend it."""
    path.write_bytes(b"\xa5" * 50_000)
    path.with_name(f"{path.name}-wal").unlink(missing_ok=True)


def rows_of(daemon: Watched, samples: dict[str, Any]) -> list[int]:
    return [round((at - daemon._start) / 10) for at in samples["time"]]


def test_an_alert_that_a_kill_cuts_in_two_is_whole_and_can_be_seen_a_week_later(tmp_path: Path) -> None:
    with watched(tmp_path) as daemon:
        alert = fire(daemon, SPIKE + 3)
        daemon.daemon.process.send_signal(signal.SIGKILL)
        daemon.daemon.process.wait()
    with restarted(tmp_path, daemon) as daemon:
        before = daemon.get(f"/alerts/{alert}")
        assert before["samples"]["note"] == "What follows is added as it comes."
        daemon.feed(80, NAMES)
        scored(daemon, 80 * len(NAMES))
        after = until(lambda: _complete(daemon, alert), "it is kept to its end", 60)
        saved(daemon)
        rows = rows_of(daemon, after["samples"])
        assert rows == list(range(rows[0], rows[-1] + 1)), "each event once, none is missing"
        assert rows[0] == 0
        assert rows[-1] > SPIKE + 50
        assert None not in after["samples"]["score"], "as they were scored"
        assert after["samples"]["score"][: SPIKE + 3] == before["samples"]["score"]
    with restarted(tmp_path, daemon) as daemon:
        assert daemon.get(f"/alerts/{alert}") == after, "in another life"


def _complete(daemon: Watched, alert: str) -> Any:
    found = daemon.get(f"/alerts/{alert}")
    return found if found["samples"]["complete"] else None


def test_damaged_files_of_memory_stop_no_daemon_and_are_told(tmp_path: Path) -> None:
    with watched(tmp_path) as daemon:
        fire(daemon, ROWS)
    for name in FILES:
        damage(daemon.state / name)
    with restarted(tmp_path, daemon) as daemon:
        daemon.feed(5, NAMES)
        scored(daemon, 5 * len(NAMES))
        assert daemon.get("/status")["ready"]
        for name in FILES:
            daemon.daemon.line(rf"{name} is damaged \(.*\). It was put aside as {name}.damaged-1")
            assert (daemon.state / f"{name}.damaged-1").stat().st_size == 50_000
        assert daemon.get("/incidents")["incidents"] == []
        assert daemon.get("/mutes")["mutes"] == []
        daemon.daemon.process.stdin.close()
        assert daemon.daemon.wait() == 0


def test_an_alert_whose_incident_is_lost_is_still_there_with_its_surroundings(tmp_path: Path) -> None:
    with watched(tmp_path) as daemon:
        alert = fire(daemon, ROWS)
        known = daemon.get(f"/alerts/{alert}")
    damage(daemon.state / "incidents.db")
    with restarted(tmp_path, daemon) as daemon:
        found = daemon.get(f"/alerts/{alert}")
        assert (found["alert"], found["samples"], found["incident"]) == (known["alert"], known["samples"], None)


def test_a_history_that_cannot_be_written_is_told_and_scoring_goes_on(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "history.db").mkdir()  # nothing can be opened there
    with watched(tmp_path) as daemon:
        alert = fire(daemon, ROWS)
        samples = daemon.get(f"/alerts/{alert}")["samples"]
        assert rows_of(daemon, samples)[-1] == ROWS - 1, "in memory it is there"
        until(lambda: daemon.daemon.metrics()("part_failing", part="history") == 1)
        assert daemon.get("/status")["ready"]
        daemon.daemon.line(r"history: .*history\.db cannot be .*; see state\.directory.* Scoring continues")
        (tmp_path / "state" / "history.db").rmdir()

        def mended() -> bool:
            daemon.feed(1, NAMES)  # it is tried again with a checkpoint
            return not daemon.daemon.metrics()("part_failing", part="history")

        until(mended, "it is tried again", every=0.5)
