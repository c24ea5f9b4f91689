"""What the command line asks of a running daemon, and what it shows where none runs."""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from detector.commands.mutes import end_of
from detector.commands.shown import window_lines
from detector.commands.text_chart import ALERT, BAND, OBSERVED, chart
from detector.errors import UsageError
from tests.brokers import CHECKOUT, make_certificate
from tests.daemon.support import Longwatch, until
from tests.detector.web.support import ROWS, SPIKE, STREAMS, Watched, scored, watched


def longwatch(daemon: Watched, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = ["--set", f"http.port={daemon.port}", "--set", f"state.directory={daemon.state}"]
    command = [sys.executable, "-m", "detector", *arguments, *places]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=False)


def done(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stderr
    return process.stdout


def failed(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 1, process.stdout
    assert process.stderr.count("\n") == 1
    return process.stderr


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
        assert "is no id" in wrong.stderr

    listed = longwatch(daemon, "alerts", "list")
    assert listed.returncode == 0, listed.stderr
    assert alert["id"] in listed.stdout
    assert "on disk" in listed.stderr
    shown = longwatch(daemon, "alerts", "show", alert["id"])
    assert shown.returncode == 0, shown.stderr
    assert alert["summary"] in shown.stdout
    assert OBSERVED in shown.stdout
    assert longwatch(daemon, "streams", "list").stderr.startswith("longwatch: no daemon listens at http://127.0.0.1:")


def test_people_answer_alerts_and_mute_streams(tmp_path: Path) -> None:
    with watched(tmp_path) as daemon:
        daemon.feed(ROWS, STREAMS[:2], spike=SPIKE)
        scored(daemon, ROWS * 2)
        until(lambda: daemon.get("/incidents")["incidents"], "there is an incident")
        incident = daemon.get("/incidents")["incidents"][0]["id"]
        first, other = (one["id"] for one in daemon.get(f"/incidents/{incident}")["alerts"])
        alert = first if first != incident else other

        said = done(longwatch(daemon, "alerts", "acknowledge", alert, "--author", "ann", "--reason", "mine"))
        assert said == f"incident {incident} is acknowledged\n"
        assert daemon.get(f"/incidents/{incident}")["acknowledged"]["by"] == "ann"
        assert "called false" in done(longwatch(daemon, "alerts", "false", alert))
        right = json.loads(done(longwatch(daemon, "alerts", "right", incident, "--json")))
        assert (right["kind"], right["target"]) == ("right", incident)
        listed = done(longwatch(daemon, "alerts", "list")).splitlines()
        assert listed[1].startswith(f"incident {incident}, ")
        assert any(line.startswith(alert) and "ended, called false, taken by ann" in line for line in listed)

        assert "No mute" in done(longwatch(daemon, "mutes", "list"))
        hostile = "web\x1b[2J*"
        muted = done(longwatch(daemon, "mutes", "add", hostile, "--for", "2h", "--reason", "load test"))
        assert r"web\x1b[2J* alerts no more until 2" in muted
        assert "load test" in done(longwatch(daemon, "mutes", "list"))
        over = longwatch(daemon, "mutes", "add", "x", "--until", "2020-01-01T00:00Z")
        assert (over.returncode, "is over already" in over.stderr) == (1, True)
        done(longwatch(daemon, "mutes", "add", "host-*"))
        made = json.loads(done(longwatch(daemon, "mutes", "list", "--json")))["mutes"]
        assert [(one["pattern"], one["until"]) for one in made][1:] == [("host-*", None)]
        done(longwatch(daemon, "mutes", "remove", str(made[0]["id"])))
        done(longwatch(daemon, "mutes", "remove", "host-*", "--author", "bea", "--reason", "it is over"))
        assert daemon.get("/mutes")["mutes"] == []
        assert "unmute 'host-*' by bea: it is over" in daemon.daemon.log
        assert "no mute 'host-*'" in failed(longwatch(daemon, "mutes", "remove", "host-*"))

        assert "begins anew" in done(longwatch(daemon, "streams", "reset", STREAMS[0]))
        assert "there is no stream 'nobody'" in failed(longwatch(daemon, "streams", "reset", "nobody"))
        assert "there is no record of alert 'abc'" in failed(longwatch(daemon, "alerts", "acknowledge", "abc"))
        wrong = tmp_path / "token"
        wrong.write_text("of another daemon")
        refused = failed(longwatch(daemon, "streams", "reset", STREAMS[0], "--token-file", str(wrong)))
        assert f"the token of {wrong} is not that of the daemon at http://127.0.0.1:" in refused


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with the openssl command")
def test_a_daemon_with_password_and_tls_is_asked_by_its_own_token(tmp_path: Path) -> None:
    key, certificate, state = tmp_path / "key.pem", tmp_path / "certificate.pem", tmp_path / "state"
    make_certificate(key, certificate)
    settings: dict[str, object] = {
        "source.type": "file",
        "source.paths": ["-"],
        "training.enabled": False,
        "http.username": "ann",
        "http.password": "a password that is long",
        "http.ssl_certfile": str(certificate),
        "http.ssl_keyfile": str(key),
        "state.directory": str(state),
    }
    with Longwatch(tmp_path, settings, stdin=subprocess.PIPE) as daemon:
        port = int(daemon.line(r"served on https://127\.0\.0\.1:(\d+)/")[1])
        tls = ["--set", f"http.ssl_certfile={certificate}", "--set", f"http.ssl_keyfile={key}"]
        command = [sys.executable, "-m", "detector", "mutes", "list", "--set", f"http.port={port}", *tls]

        def asked(*more: str) -> subprocess.CompletedProcess[str]:
            words = [*command, *more]
            return subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=False)

        assert done(asked("--set", f"state.directory={state}")) == "No mute is in force.\n"
        elsewhere = tmp_path / "elsewhere"
        refused = failed(asked("--set", f"state.directory={elsewhere}"))
        assert f"{elsewhere / 'api.token'} cannot be read: No such file" in refused
        (tmp_path / "token").write_bytes((state / "api.token").read_bytes())
        given = asked("--set", f"state.directory={elsewhere}", "--token-file", str(tmp_path / "token"))
        assert done(given) == "No mute is in force.\n"


def test_what_is_no_longwatch_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

        with ThreadPoolExecutor(1) as pool:
            pool.submit(answer)
            command = [sys.executable, "-m", "detector", "streams", "list", "--set", f"http.port={port}"]
            done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=False)
    assert f"http://127.0.0.1:{port}/ is no longwatch of this version" in failed(done)


@pytest.mark.parametrize(
    ("until", "lasting", "end"),
    [
        (None, None, None),
        (None, "30m", "2026-03-01T12:30:00Z"),
        (None, "2w", "2026-03-15T12:00:00Z"),
        ("2026-12-24T18:00+02:00", None, "2026-12-24T16:00:00Z"),
        ("2026-12-24T18:00Z", None, "2026-12-24T18:00:00Z"),
    ],
)
def test_a_mutes_end_is_a_time_or_so_long_from_now(until: str | None, lasting: str | None, end: str | None) -> None:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert end_of(argparse.Namespace(until=until, lasting=lasting), now) == end


@pytest.mark.parametrize("lasting", ["", "2", "h", "-1h", "1.5h", "0m", "99999999w", "2 h", "٢h"])
def test_what_is_no_duration_is_refused(lasting: str) -> None:
    with pytest.raises(UsageError, match="such as 30m, 2h, 7d"):
        end_of(argparse.Namespace(until=None, lasting=lasting), datetime.now(UTC))


@pytest.mark.parametrize("until", ["", "tomorrow", "18:00", "2026-13-01"])
def test_what_is_no_time_is_refused(until: str) -> None:
    with pytest.raises(UsageError, match=r"--until .*: expected a time such as"):
        end_of(argparse.Namespace(until=until, lasting=None), datetime.now(UTC))


def test_port_zero_cannot_be_asked(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "detector", "streams", "list", "--set", "http.port=0"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert "http.port" in done.stderr


def window(**columns: list[float | None]) -> dict[str, object]:
    observed = columns["observed"]
    unknown: list[float | None] = [None] * len(observed)
    of = {"observed": observed, "lower": columns.get("lower", unknown), "upper": columns.get("upper", unknown)}
    time = [60.0 * at for at in range(len(observed))]
    return {"time": time, "alert": [v == 9 for v in observed], "by_feature": {"x": of}}


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


def test_a_young_streams_wide_bands_leave_a_chart_its_height() -> None:
    wide, narrow = [-900.0, *[-1.0] * 39], [900.0, *[1.0] * 39]
    lines = chart(window(observed=[0.0] * 39 + [3.0], lower=wide, upper=narrow), "x", width=60)
    assert lines[0].split()[0] == "3"
    assert lines[0].endswith(OBSERVED)
    assert lines[0].count(BAND) == 1, "the wide one goes on to the edge"
    assert lines[-1].split()[0] == "UTC"
    assert lines[-1].endswith("1970-01-01 00:00:00  1970-01-01 00:39:00")


def test_of_words_the_last_changes_are_shown() -> None:
    of = {"observed": ["idle", "idle", None, "busy", "idle"], "expected": [None, "idle", "idle", "idle", "idle"]}
    unknown = [None] * 5
    columns = of | {"lower": unknown, "upper": unknown}
    lines = window_lines(
        {"time": [0, 60, 120, 180, 240], "features": ["state"], "alert": [False] * 5, "note": "",
         "by_feature": {"state": columns}}, "state"
    )  # fmt: skip
    assert [line.split() for line in lines[2:]] == [
        ["1970-01-01", "00:00:00", "idle"],
        ["1970-01-01", "00:03:00", "idle", "busy"],
        ["1970-01-01", "00:04:00", "idle", "idle"],
    ]
