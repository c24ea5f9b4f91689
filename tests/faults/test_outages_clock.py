"""The wall clock jumps by hours while the daemon works: a preloaded library gives the process another time.

Every wait, deadline and age in longwatch is taken from the monotonic clock; the wall clock is only shown, signed and
written down. Events carry their own times.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from connectors.notify.dispatcher import Dispatcher
from connectors.notify.settings import ReceiverSettings
from tests.brokers import CHECKOUT, Broker
from tests.daemon.fleet import make_fleet
from tests.daemon.records import by_place, difference
from tests.daemon.support import PATIENCE, Longwatch, until
from tests.faults.support import Stream, Topics, Undisturbed, alert, assert_once, scored_events

FLEET = make_fleet(streams=8, rows=300, seed=3)
EVENTS = 8 * 300
HOUR = 3600.0

# The wall clock, in C's three ways to ask for it, plus the seconds that stand in the file $CLOCK_OFFSET names
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) {
    char text[32] = {0};
    const char *path = getenv("CLOCK_OFFSET");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return 0;
    if (read(fd, text, sizeof text - 1) < 0) text[0] = 0;
    close(fd);
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *found) {
    int result = syscall(SYS_clock_gettime, clock, found);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) found->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *found) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found) *found = now.tv_sec;
    return now.tv_sec;
}
"""

Jump = Callable[[float], None]


@pytest.fixture
def clock(tmp_path: Path) -> tuple[dict[str, str], Jump]:
    """Return the environment of a process whose wall clock can be set, and what sets it: hours from the real time."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the library with that tells another time")
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    (tmp_path / "clock.c").write_text(SHIM)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(tmp_path / "clock.c"), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)

    def jump(hours: float) -> None:
        fresh = tmp_path / "offset.new"
        fresh.write_text(f"{round(hours * HOUR)}\n")
        fresh.rename(offset)

    jump(0.0)
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}, jump


@pytest.mark.kafka
@pytest.mark.parametrize("guarantee", ["exactly_once", pytest.param("at_least_once", marks=pytest.mark.faults)])
def test_clock_jumps_of_hours_change_no_score(
    apache: Broker, tmp_path: Path, clock: tuple[dict[str, str], Jump], guarantee: str
) -> None:
    """Five hours ahead is more than brokers allow (`message.timestamp.after.max.ms`, an hour): they refuse records."""
    environ, jump = clock
    topics = Topics(apache, tmp_path, uuid.uuid4().hex[:8])
    with Stream(topics, FLEET) as stream:
        settings = topics.settings("a", processing__guarantee=guarantee)
        with Longwatch(tmp_path, settings, environ=environ) as worker:
            for share, hours in ((0.2, 0.0), (0.4, -5.0), (0.6, 0.7), (0.8, 5.0), (1.0, 0.0)):
                jump(hours)
                stream.until(EVENTS * share)
                until(lambda wanted=EVENTS * share: scored_events(topics) >= wanted, f"{hours:+} h", every=0.2)
                assert worker.get("/livez")[0] == worker.get("/readyz")[0] == 200
            assert worker.terminate()[0] == 0
    assert worker.log.count("Kafka refuses this machine's time") == 1
    assert worker.log.count("The clock was corrected: records are written with a time again") == 1
    found = topics.scored()
    if guarantee == "at_least_once":  # what came since the last checkpoint may be written again, equally
        reported = by_place(found)
        assert not any(difference(record, records[0]) for records in reported.values() for record in records)
        found = [records[0] for records in reported.values()]
    assert_once(found, Undisturbed(tmp_path, FLEET).scores(topics))


WAITING = """
import os, sys, time
from pathlib import Path
from connectors.notify.dispatcher import Dispatcher
from connectors.notify.receivers import Forgetful
from connectors.notify.settings import ReceiverSettings
from connectors.batches import Alert
Forgetful.retry_cap_seconds = 0.1
seen = []
settings = ReceiverSettings.model_validate(
    {"url": "http://127.0.0.1:9/", "tell": "alerts", "allowed_hosts": ["127.0.0.1"], "retry_base_seconds": 0.05,
     "max_age_seconds": 7200}
)
alert = Alert("id", "a", "firing", "critical", 1, None, 6.5, 4.0, {}, {}, {}, {}, {}, "v1", "t", 2, 17)
sink = Dispatcher({"hook": settings}, Path(sys.argv[1]), on_delivery=lambda name, outcome: seen.append(outcome))
sink.write([alert])
for hours in (10, -10, 0):
    Path(os.environ["CLOCK_OFFSET"]).write_text(f"{hours * 3600}")
    before, deadline = len(seen), time.monotonic() + 200
    while len(seen) < before + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
sink.close()
print(*sorted(set(seen)))
"""


def test_a_clock_change_does_not_make_waiting_alerts_too_old(
    tmp_path: Path, clock: tuple[dict[str, str], Jump]
) -> None:
    environ = {**os.environ, **clock[0]}
    command = [sys.executable, "-c", WAITING, str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "retried\n", done.stderr


def test_retry_after_dates_are_read_by_the_receivers_own_clock(tmp_path: Path) -> None:
    """It asks for a date that is hours away by our clock, and a second by its own."""
    asked: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(time.monotonic())
            self.send_response_only(429 if len(asked) == 1 else 204)
            theirs = time.time() + 9 * HOUR
            self.send_header("Date", formatdate(theirs, usegmt=True))
            self.send_header("Retry-After", formatdate(theirs + 1, usegmt=True))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        settings = ReceiverSettings.model_validate(
            {"url": url, "tell": "alerts", "allowed_hosts": ["127.0.0.1"], "retry_base_seconds": 0.05}
        )
        sink = Dispatcher({"hook": settings}, tmp_path)
        sink.write([alert(1)])
        until(lambda: len(asked) == 2, "it is tried again")
        sink.close()
        server.shutdown()
    assert asked[1] - asked[0] > 0.9
