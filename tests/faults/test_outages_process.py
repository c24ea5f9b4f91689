"""What the system does to the process itself: a signal in the middle of a line of the log, and no more memory."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.brokers import CHECKOUT
from tests.daemon.fleet import STEP, make_fleet
from tests.daemon.records import difference, read_lines
from tests.daemon.support import PATIENCE, Longwatch
from tests.faults.limits import IN_CGROUP, cgroup
from tests.faults.support import Undisturbed

__all__ = ["cgroup"]  # a fixture

MIB = 1 << 20
SIGNALS = 60

# A daemon's own handler and log, on a main thread that does nothing but log: each signal falls into a line
CHATTY = """
import sys
import math
from detector.service.factory import build_daemon
from detector.config.settings import load_settings
from detector.observability.log_format import set_up_logging
import logging
settings = load_settings(environment={}, overrides=sys.argv[2:])
set_up_logging("info", "text")
daemon = build_daemon(settings)
logger = logging.getLogger("detector.chatty")
print("begun", flush=True)
for turn in range(int(sys.argv[1])):
    daemon.broker_wait._shutdown_deadline = math.inf
    daemon.signals.take()
    print("ready", flush=True)
    number = 0
    while not daemon.broker_wait.shutting_down:
        logger.info("turn %d line %d %s", turn, number, "x" * 300)
        number += 1
    print("stopping", flush=True)
daemon.shutdown(orderly=True)
"""


@pytest.mark.usefixtures("nothing_is_ignored")
def test_a_signal_while_logging_stops_the_daemon_cleanly(tmp_path: Path) -> None:
    """The log goes to a pipe that is nearly always full, so that most signals come while a line is being written."""
    settings = ["source.type=file", 'source.paths=["-"]', f"state.directory={tmp_path}", "http.port=0"]
    command = [sys.executable, "-c", CHATTY, str(SIGNALS), *settings]
    with subprocess.Popen(
        command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        log = process.stderr.fileno()
        fcntl.fcntl(log, fcntl.F_SETPIPE_SZ, 4096)
        said: list[bytes] = []

        def read_slowly() -> None:
            while data := os.read(log, 1500):
                said.append(data)
                time.sleep(0.0005)

        reader = threading.Thread(target=read_slowly, daemon=True)
        reader.start()
        rng = random.Random(1)
        assert process.stdout.readline() == b"begun\n"
        for turn in range(SIGNALS):
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.001, 0.01))
            process.send_signal(rng.choice([signal.SIGTERM, signal.SIGINT]))
            assert process.stdout.readline() == b"stopping\n", f"signal {turn}: {b''.join(said)[-2000:]!r}"
        assert process.wait(PATIENCE) == 0
        reader.join(PATIENCE)
    lines = b"".join(said).decode().splitlines()
    assert not [line for line in lines if "Error" in line or "Traceback" in line]
    chatter = [line for line in lines if " chatty" in line or "turn " in line]
    assert all(line.endswith("x" * 300) for line in chatter), "each line is whole"
    assert len(chatter) > SIGNALS


@pytest.mark.faults
def test_a_daemon_killed_for_memory_loses_nothing(tmp_path: Path, cgroup: Path) -> None:
    """A neighbour in the same cgroup takes all memory, and the kernel's choice falls on the daemon."""
    fleet = make_fleet(streams=8, rows=500, seed=3)
    events, scores = tmp_path / "events.jsonl", tmp_path / "scores.jsonl"
    events.write_bytes(b"\n".join(record for _, record in fleet.records()))
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (cgroup / name).exists():
            (cgroup / name).write_text(str(1_500 * MIB))
    settings = {
        "source.type": "file",
        "source.paths": [str(events)],
        "source.speed": fleet.rows * STEP / 20.0,  # 20 s
        "state.directory": str(tmp_path / "state"),
        "state.checkpoint_interval_seconds": 0.3,
        "training.enabled": False,
        "output.scores_file": str(scores),
    }
    with Longwatch(tmp_path, settings, program=("-c", IN_CGROUP, str(cgroup))) as daemon:
        daemon.work_until(lambda found: found("events_scored_total") > 500, "it is at work")
        Path(f"/proc/{daemon.process.pid}/oom_score_adj").write_text("1000")
        hog = (
            "import sys, time; open(sys.argv[1] + '/cgroup.procs', 'w').write('0'); kept = []\n"
            "while True: kept.append(bytearray(b'x') * (4 << 20)); time.sleep(0.005)"
        )
        with subprocess.Popen([sys.executable, "-c", hog, str(cgroup)]) as neighbour:
            try:
                assert daemon.wait() == -signal.SIGKILL
            finally:
                neighbour.kill()
    with Longwatch(tmp_path, settings | {"source.speed": 0}) as daemon:
        assert daemon.wait() == 0
    Undisturbed(tmp_path, fleet)
    expected = read_lines(tmp_path / "undisturbed-scores.jsonl")
    found = read_lines(scores)
    assert [record["offset"] for record in found] == list(range(len(expected))), "each once, in their order"
    for record, other in zip(found, expected, strict=True):
        assert not (reported := difference(record, other | {"topic": record["topic"]})), reported
