"""The webhook's receiver down, hanging, slow, answering 500 and 429: scoring continues, every alert arrives, in order.

The long form takes ten minutes. What each answer means is tested in
tests/connectors/notify.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.daemon.fleet import STEP, make_fleet
from tests.daemon.records import read_lines
from tests.daemon.support import PATIENCE, Longwatch
from tests.faults.limits import resident
from tests.faults.support import webhook_ids
from tests.ports import own_port

MIB = 1 << 20
# longwatch that retries after so many seconds at the latest, where half an hour would be long for a test
IMPATIENT = """
import sys
from connectors.notify.receivers import Forgetful
from detector.cli import main
Forgetful.retry_cap_seconds = float(sys.argv.pop(1))
main()
"""
MOODS = "down", "hanging", "500", "slow", "429"


class Receiver:
    """An HTTP server of changing moods on one port; what it has taken, by id, in the order of coming."""

    def __init__(self) -> None:
        self.mood, self.taken = "well", list[str]()
        self.met: dict[str, int] = defaultdict(int)  # requests, by mood
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                mood = receiver.mood
                receiver.met[mood] += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                if mood == "hanging":
                    time.sleep(2.0)  # longer than the daemon waits
                    return
                if mood == "slow":
                    time.sleep(0.3)
                self.send_response(int(mood) if mood.isdigit() else 204)
                if mood == "429":
                    self.send_header("Retry-After", "1")
                self.end_headers()
                if not mood.isdigit():
                    receiver.taken.append(self.headers["webhook-id"])

            def log_message(self, *_: object) -> None:
                pass

        self._handler = Handler
        self._port = own_port()  # nobody else's while it is down
        self._server = self._serve()
        self.url = f"http://127.0.0.1:{self._port}/"

    def _serve(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def turn(self, mood: str) -> None:
        if mood == "down":
            self.close()
        elif self.mood == "down":
            self._server = self._serve()
        self.mood = mood

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize("seconds", [0.6, pytest.param(120.0, marks=[pytest.mark.faults, pytest.mark.timeout(900)])])
def test_a_failing_receiver_delays_no_scoring_and_misses_no_alert(tmp_path: Path, seconds: float) -> None:
    long = seconds > 10
    fleet = make_fleet(streams=8, rows=20_000 if long else 6_000, seed=3)  # far more than is ever read
    events = tmp_path / "events.jsonl"
    events.write_bytes(b"\n".join(record for _, record in fleet.records()))
    receiver = Receiver()
    settings = {
        "source.type": "file",
        "source.paths": [str(events)],
        "source.speed": (20 if long else 80) * STEP,
        "state.directory": str(tmp_path / "state"),
        "state.checkpoint_interval_seconds": 0.5,
        "training.enabled": False,
        "alerting.threshold": 1.5,  # many alerts
        "output.alerts_file": str(tmp_path / "alerts.jsonl"),
        "receivers.hook.url": receiver.url,
        "receivers.hook.tell": "alerts",
        "receivers.hook.allowed_hosts": ["127.0.0.1"],
        "receivers.hook.timeout_seconds": 0.5,
        "receivers.hook.retry_base_seconds": 0.2,
    }
    pending, longest = 0.0, 0.0
    with Longwatch(tmp_path, settings, program=("-c", IMPATIENT, "5.0" if long else "0.2", "run")) as daemon:
        daemon.work_until(lambda found: found.sum("alerts_total") >= 3, "the first alerts have fired")
        before = resident(daemon.process.pid)
        for mood in MOODS:
            receiver.turn(mood)
            ends, moves, scored, moved = time.monotonic() + seconds, 0, 0.0, time.monotonic()
            # its turn lasts until it has been met ("down" is met by nobody), and scoring has continued meanwhile
            while (now := time.monotonic()) < ends or moves < 5 or not (mood == "down" or receiver.met[mood]):
                assert now < ends + PATIENCE, f"{mood}: scored {scored:.0f}, met {receiver.met[mood]} times"
                samples = daemon.metrics()
                pending = max(pending, samples("outbox_pending", receiver="hook"))
                if (done := samples("events_scored_total")) > scored:
                    longest = max(longest, time.monotonic() - moved)
                    scored, moved, moves = done, time.monotonic(), moves + 1
                time.sleep(0.05)
        receiver.turn("well")
        grown = resident(daemon.process.pid) - before
        daemon.work_until(lambda found: found.sum("alerts_total") > 12, "enough alerts have fired")
        assert daemon.terminate()[0] == 0
    # what was not delivered by then is sent by the next start
    with Longwatch(tmp_path, settings | {"source.paths": ["-"]}, stdin=subprocess.PIPE) as daemon:
        daemon.work_until(lambda found: found("outbox_pending", receiver="hook") == 0, "all is delivered")
        assert daemon.terminate()[0] == 0
    receiver.close()
    reported = [f"{alert['id']}-{alert['status']}" for alert in read_lines(tmp_path / "alerts.jsonl")]
    assert set(receiver.taken) == webhook_ids(read_lines(tmp_path / "alerts.jsonl"))
    assert len(reported) > 15
    first = list(dict.fromkeys(receiver.taken))
    for stream in fleet.names:
        assert [i for i in first if i.startswith(stream)] == [i for i in reported if i.startswith(stream)], (
            "in their order"
        )
    assert all(receiver.met[mood] for mood in MOODS if mood != "down")
    size = sum(path.stat().st_size for path in (tmp_path / "state").glob("outbox*"))
    print(
        f"\n  {seconds:.0f} s of each trouble: {len(reported)} alerts, at most {pending:.0f} waiting, "
        f"{len(receiver.taken) - len(reported)} sent twice, longest pause of scoring {longest:.2f} s, "
        f"memory {grown / 1e6:+.0f} MB, outbox {size / 1e6:.1f} MB"
    )
    assert grown < 200 * MIB
    assert size < 64 * MIB
