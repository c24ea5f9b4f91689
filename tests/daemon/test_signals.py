"""Signals: at every moment of the start, as the first process of a container, and those that stop nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import CHECKOUT
from tests.daemon.fleet import START, STEP
from tests.daemon.records import read_lines
from tests.daemon.support import PATIENCE, Longwatch

# A command that is sent a signal at a moment which an audit event names: the import of a module, a connection
AT_A_MOMENT = """
import os, sys
moment, number = sys.argv[1].split("=", 1), int(sys.argv[2])
sent = []
def hear(event, args):
    if not sent and event == moment[0] and str(args[0]).endswith(moment[1]):
        sent.append(event)
        os.kill(os.getpid(), number)
from detector.cli import main
sys.addaudithook(hear)
main(sys.argv[3:])
"""
MOMENTS = [
    "import=detector.config.settings",
    "import=numba",
    "import=detector.service.daemon",
    "sqlite3.connect=state.db",
]

pytestmark = pytest.mark.usefixtures("nothing_is_ignored")


@pytest.fixture(scope="module")
def first_process() -> list[str]:
    """What runs a command as the first process of a PID namespace."""
    unshare = shutil.which("unshare")
    for more in ([], ["--user", "--map-root-user"]):
        command = [unshare or "unshare", *more, "--pid", "--fork", "--kill-child"]
        if (
            unshare
            and subprocess.run([*command, "true"], capture_output=True, timeout=240, check=False).returncode == 0
        ):
            return command
    pytest.skip("no PID namespace can be had here: unshare --pid is missing or not allowed")


def settings_of(folder: Path) -> list[str]:
    values = {
        "source.type": "file",
        "source.paths": '["-"]',  # standard input, which does not end
        "state.directory": str(folder / "state"),
        "http.port": "0",
        "compute.device": "cpu",
    }
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def ends(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Return how it ended, with its standard input open all the while."""
    read, write = os.pipe()
    try:
        return subprocess.run(
            command, cwd=CHECKOUT, stdin=read, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_of_the_start_ends_it_cleanly(tmp_path: Path, moment: str) -> None:
    number = signal.SIGINT if "numba" in moment else signal.SIGTERM
    done = ends([sys.executable, "-c", AT_A_MOMENT, moment, str(int(number)), "run", *settings_of(tmp_path)])
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "running on" not in done.stderr


@pytest.mark.parametrize("moment", MOMENTS[1:3])
def test_signals_reach_a_daemon_that_is_pid_1(tmp_path: Path, first_process: list[str], moment: str) -> None:
    """The system keeps from such a process every signal that it does not handle."""
    program = [sys.executable, "-c", AT_A_MOMENT, moment, str(int(signal.SIGTERM)), "run", *settings_of(tmp_path)]
    done = ends([*first_process, *program])
    assert done.returncode == 0, done.stderr[-2000:]
    assert "stopped while starting" in done.stderr


def test_other_commands_end_on_a_signal_as_pid_1(tmp_path: Path, first_process: list[str]) -> None:
    reported = [MOMENTS[1], str(int(signal.SIGTERM)), "backtest", "-", "--output", str(tmp_path / "scores.csv")]
    done = ends([*first_process, sys.executable, "-c", AT_A_MOMENT, *reported])
    assert done.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


TWICE = """
import os, signal
from detector.service.signals import Signals
Signals(lambda: print("the end", flush=True)).take()
for _ in range(2):
    os.kill(os.getpid(), signal.SIGTERM)
print("it goes on", flush=True)
"""


def test_a_second_signal_ends_pid_1_at_once(first_process: list[str]) -> None:
    done = ends([*first_process, sys.executable, "-c", TWICE])
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout == "the end\n"


EACH = """
import os, signal, sys
from detector.service.signals import ENDING, NOTED, Signals
signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # as after nohup
signal.signal(signal.SIGPROF, lambda *_: print("profiled"))
heard = []
for number in sorted(ENDING - {signal.SIGPROF}):
    signals = Signals(lambda: heard.append(number))
    signals.take()
    os.kill(os.getpid(), number)
    signals.give_back()
assert heard == sorted(ENDING - {signal.SIGPROF}), heard
signals = Signals(lambda: heard.clear())
signals.take()
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPROF, signal.SIGPIPE, signal.SIGXFSZ):
    os.kill(os.getpid(), number)
assert heard
print(*signals.noted())
signals.give_back()
assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_each_signal_stops_or_is_logged_and_ignored_ones_stay_ignored() -> None:
    done = ends([sys.executable, "-c", EACH])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["profiled", "SIGHUP SIGUSR1"]
    assert done.stderr == ""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Longwatch]:
    settings = {
        "source.type": "file",
        "source.paths": ["-"],
        "state.directory": str(tmp_path / "state"),
        "state.checkpoint_interval_seconds": 3600,
        "output.scores_file": str(tmp_path / "scores.jsonl"),
    }
    with Longwatch(tmp_path, settings, stdin=subprocess.PIPE) as daemon:
        yield daemon
        assert daemon.process.stdin
        daemon.process.stdin.close()


def test_sigusr_is_ignored_and_a_cpu_limit_ends_the_daemon_cleanly(daemon: Longwatch, tmp_path: Path) -> None:
    assert daemon.process.stdin
    daemon.line("running on")
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        daemon.process.send_signal(number)
        daemon.line(f"{number.name} is ignored")
    for row in range(40):
        event = {"stream": "s", "timestamp": START + row * STEP, "values": {"x": row % 7}}
        daemon.process.stdin.write(json.dumps(event).encode() + b"\n")
    daemon.process.stdin.flush()
    daemon.work_until(lambda found: found("events_scored_total") == 40, "all are scored")

    status, _ = daemon.terminate(signal.SIGALRM)

    assert status == 0
    assert "stopped in" in daemon.log
    assert len(read_lines(tmp_path / "scores.jsonl")) == 40
    again = Longwatch(tmp_path, daemon.settings, stdin=subprocess.DEVNULL)
    with again:
        again.line("1 streams, resumed")  # the checkpoint was made
        assert again.wait() == 0
