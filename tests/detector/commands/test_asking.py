"""What the command line asks of a running daemon, and what it shows where none runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from detector.commands.text_chart import ALERT, BAND, OBSERVED, chart
from tests.brokers import CHECKOUT
from tests.daemon.support import until
from tests.detector.web.support import ROWS, SPIKE, STREAMS, Watched, scored, watched


def longwatch(daemon: Watched, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = ["--set", f"http.port={daemon.port}", "--set", f"state.directory={daemon.state}"]
    command = [sys.executable, "-m", "detector", *arguments, *places]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=False)


def test_alerts_and_streams_are_shown_by_the_daemon_and_alerts_from_the_disk_without_it(tmp_path: Path) -> None:
    with watched(tmp_path) as daemon:
        daemon.feed(ROWS, spike=SPIKE)
        scored(daemon, ROWS * len(STREAMS))
        until(lambda: daemon.get("/incidents")["incidents"], "there is an incident")
        alert = daemon.get("/incidents")["incidents"][0]["alerts"][0]
        until(lambda: daemon.get(f"/alerts/{alert['id']}")["samples"], "its surroundings are kept")

        listed = longwatch(daemon, "alerts", "list")
        assert listed.returncode == 0, listed.stderr
        assert alert["id"] in listed.stdout
        picture = tmp_path / "alert.png"
        shown = longwatch(daemon, "alerts", "show", alert["id"], "--plot", str(picture))
        assert shown.returncode == 0, shown.stderr
        for part in (alert["summary"], "evidence: ", "incident: ", OBSERVED, BAND, ALERT):
            assert part in shown.stdout
        assert picture.read_bytes().startswith(b"\x89PNG")

        streams = longwatch(daemon, "streams", "list", "--search", "host-00", "--sort", "name")
        assert streams.stdout.splitlines()[1].endswith("host-00/load")
        one = longwatch(daemon, "streams", "show", "host-00/load", "--feature", "load")
        assert one.returncode == 0, one.stderr
        assert OBSERVED in one.stdout
        assert "free" in one.stdout

        unknown = longwatch(daemon, "streams", "show", "nobody")
        assert unknown.returncode == 1
        assert "nobody" in unknown.stderr
        wrong = longwatch(daemon, "alerts", "show", "../status")
        assert wrong.returncode == 2
        assert "no alert's id" in wrong.stderr

    listed = longwatch(daemon, "alerts", "list")
    assert listed.returncode == 0, listed.stderr
    assert alert["id"] in listed.stdout
    assert "on disk" in listed.stderr
    shown = longwatch(daemon, "alerts", "show", alert["id"])
    assert shown.returncode == 0, shown.stderr
    assert alert["summary"] in shown.stdout
    assert OBSERVED in shown.stdout
    assert longwatch(daemon, "streams", "list").stderr.startswith("longwatch: no daemon listens at http://127.0.0.1:")


def test_port_zero_cannot_be_asked(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "detector", "streams", "list", "--set", "http.port=0"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert "http.port" in done.stderr


def window(**columns: list[float | None]) -> dict[str, object]:
    observed = columns["observed"]
    unknown: list[float | None] = [None] * len(observed)
    of = {"observed": observed, "lower": columns.get("lower", unknown), "upper": columns.get("upper", unknown)}
    return {"alert": [v == 9 for v in observed], "by_feature": {"x": of}}


def test_a_chart_shows_values_band_and_alert_at_their_heights() -> None:
    lines = chart(window(observed=[0, 0, 9, 0], lower=[-1, -1, -1, -1], upper=[1, 1, 1, 1]), "x", width=40, height=11)
    drawn = [line.partition("│ ")[2] for line in lines]
    assert drawn[0] == f"  {OBSERVED}"
    assert drawn[9] == f"{OBSERVED}{OBSERVED}{BAND}{OBSERVED}"
    assert drawn[10] == BAND * 4
    assert drawn[11] == f"  {ALERT}"
    assert lines[0].split()[0] == "9"
    assert lines[10].split()[0] == "-1"


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0], [None, 5.0], [float(i) for i in range(1000)]])
def test_a_chart_fits_its_width(values: list[float | None]) -> None:
    lines = chart(window(observed=values), "x", width=50)
    assert any(OBSERVED in line for line in lines)
    assert max(map(len, lines)) <= 50


def test_nothing_is_drawn_of_what_is_no_number() -> None:
    assert chart(window(observed=[None, None]), "x", width=50) == []
