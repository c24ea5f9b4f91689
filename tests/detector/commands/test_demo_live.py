"""The demo that watches this very host, as its user runs it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.ports import own_port

SECONDS = 300


@pytest.fixture
def live():
    pytest.importorskip("psutil", reason="psutil is not installed")
    command = [sys.executable, "-m", "detector", "demo", "--live", "--set", f"http.port={own_port()}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.usefixtures("nothing_is_ignored")
def test_this_host_is_watched_until_ctrl_c(live):
    address = next(found[1] for line in live.stdout if (found := re.search(r"(http://\S+)/", line)))
    deadline, scored = time.monotonic() + SECONDS, 0.0
    while scored < 6 and live.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
        metrics = urllib.request.urlopen(f"{address}/metrics", timeout=SECONDS).read().decode()
        scored = float(re.search(r"^longwatch_events_scored_total (\S+)", metrics, re.MULTILINE)[1])
    rejected = re.findall(r"^longwatch_events_rejected_total\{.*\} (\S+)", metrics, re.MULTILINE)
    live.send_signal(signal.SIGINT)
    _, errors = live.communicate(timeout=SECONDS)
    assert live.returncode in {0, 130}
    assert scored >= 6
    assert set(map(float, rejected)) == {0.0}
    assert "Traceback" not in errors
