"""What people who look cost scoring: events a second with ten pages open, against none, in turn in one run.

    python -m tests.bench.bench_page [STREAMS] [PAGES]

The daemon reads a file as fast as it can. A page asks what its two busiest views do, both at once: it listens to
server-sent events with the points of a stream of its own, whose window it has asked for as it was opened and whose
figures it asks for every five seconds, and every two seconds it asks for the streams' list. Pages are opened once
before anything is counted, as the first one loads the web framework. Then a search among the streams is timed, by the
client's clock, while scoring goes on.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from tests.daemon.support import PATIENCE, Longwatch

ROUNDS, SECONDS, SETTLE_SECONDS = 12, 3.0, 1.0
IDLE_SHARE = 0.002  # of the CPU time while nobody looks: a thread below it serves those who look
LIST_SECONDS, STREAM_SECONDS = 2, 5  # as in detector/web/static/js/views
EVENTS = 40_000_000  # 1.7 GB
YOUNG_ROWS = 600  # events of a stream that cost less than those after them: not all is learnt and asked yet
SEARCHES = 30


def write_events(path: Path, streams: int, rows: int) -> None:
    """Write a CSV file of so many rows for each stream, ten seconds apart."""
    names = [f"rack-{n % 40:02d}/host-{n:06d}/load" for n in range(streams)]
    rng, first = np.random.default_rng(0), int(time.time()) - 10 * rows
    with path.open("w") as file:
        file.write("timestamp,stream,load\n")
        for row in range(rows):
            values = (20 + rng.standard_normal(streams)).round(3).tolist()
            time_of_row = first + 10 * row
            file.writelines(f"{time_of_row},{name},{value}\n" for name, value in zip(names, values, strict=True))


class Page(threading.Thread):
    """One person who looks."""

    def __init__(self, port: int, stream: str) -> None:
        super().__init__(daemon=True)
        self._port, self._stream, self.over = port, stream, threading.Event()
        self.events = self.answers = 0

    def run(self) -> None:
        listening = threading.Thread(target=self._listen, daemon=True)
        listening.start()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        self._ask(connection, f"stream/window?name={self._stream}&events=1000")
        second = 0
        while not self.over.wait(1.0):
            second += 1
            if second % LIST_SECONDS == 0:
                self._ask(connection, "streams?limit=50")
            if second % STREAM_SECONDS == 0:
                self._ask(connection, f"stream?name={self._stream}")
        connection.close()
        listening.join(PATIENCE)

    def _ask(self, connection: http.client.HTTPConnection, path: str) -> None:
        connection.request("GET", f"/api/v1/{path}")
        connection.getresponse().read()
        self.answers += 1

    def _listen(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        connection.request("GET", f"/api/v1/events?stream={self._stream}")
        answer = connection.getresponse()
        while not self.over.is_set() and (line := answer.readline()):
            self.events += line.startswith(b"event: ")
        connection.close()


def look(port: int, pages: int) -> None:
    """Be so many people, in a process of its own, from each line of standard input to the next; print what they saw."""
    os.nice(19)  # they would be on machines of their own
    for _ in sys.stdin:
        people = [Page(port, f"rack-{n:02d}/host-{n:06d}/load") for n in range(pages)]
        for page in people:
            page.start()
        sys.stdin.readline()
        for page in people:
            page.over.set()
        for page in people:
            page.join(PATIENCE)
        print(sum(page.events for page in people), sum(page.answers for page in people), flush=True)


class People:
    """The process of those who look; `seen`: the events and answers that they have had."""

    def __init__(self, port: int, pages: int) -> None:
        command = [sys.executable, "-m", "tests.bench.bench_page", "look", str(port), str(pages)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seen = np.zeros(2, np.int64)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Have them look."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for word in ("open", "close"):
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
            if word == "open":
                yield
        self.seen += np.fromstring(self._process.stdout.readline(), np.int64, sep=" ")

    def end(self) -> None:
        """End the process."""
        self._process.communicate("")


def cpu_time(pid: int) -> Counter[int]:
    """Return what each thread of a process has used so far, in ns."""
    used = Counter[int]()
    for path in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            used[int(path.name)] = int((path / "schedstat").read_text().split()[0])
    return used


class Rate(NamedTuple):
    by_clock: float  # events a second
    by_cpu: float  # events for each second of CPU time that the daemon used, pages and all
    seconds: float
    used: Counter[int]  # CPU time in ns, by thread


def rate(daemon: Longwatch) -> Rate:
    """Return how fast events are scored, over SECONDS."""
    time.sleep(SETTLE_SECONDS)
    before, used, began = daemon.metrics()("events_scored_total"), cpu_time(daemon.process.pid), time.monotonic()
    time.sleep(SECONDS)
    after = daemon.metrics()("events_scored_total")
    assert after < EVENTS, "the file was too short"
    seconds, spent = time.monotonic() - began, cpu_time(daemon.process.pid) - used
    return Rate((after - before) / seconds, (after - before) / spent.total() * 1e9, seconds, spent)


def told_for_pages(none: list[Rate], some: list[Rate]) -> str:
    """Return what the threads use that are idle while nobody looks: all that pages cost but their turns of the engine.

    Others who use the machine move every rate by more than that; not this.
    """
    idle, busy = (sum((one.used for one in rates), Counter[int]()) for rates in (none, some))
    own = sum(used for thread, used in busy.items() if idle[thread] < IDLE_SHARE * idle.total())
    seconds = sum(one.seconds for one in some)
    return f"{100 * own / busy.total():.2f} % of the daemon's CPU time, {own / seconds / 1e6:.1f} ms a second"


def main() -> None:
    if sys.argv[1:2] == ["look"]:
        look(int(sys.argv[2]), int(sys.argv[3]))
        return
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    pages = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "events.csv"
        write_events(events, streams, EVENTS // streams)
        settings = {
            "source.type": "file",
            "source.paths": [str(events)],
            "training.enabled": False,
            "state.directory": f"{folder}/state",
            "state.max_streams": 2 * streams,
            "state.checkpoint_interval_seconds": 60,  # one of 100,000 streams takes several seconds
        }
        with Longwatch(Path(folder), settings) as daemon:
            port = int(daemon.line(r"served on http://127\.0\.0\.1:(\d+)/")[1])
            daemon.work_until(lambda m: m("events_scored_total") > YOUNG_ROWS * streams, "no stream is young")
            people = People(port, pages)
            with people.looking():
                time.sleep(2 * LIST_SECONDS)
            found: dict[int, list[Rate]] = {0: [], pages: []}
            for turn in range(2 * ROUNDS):
                # none, ten, ten, none ...: what drifts meets both
                count = pages if turn % 4 in {1, 2} else 0
                with people.looking() if count else contextlib.nullcontext():
                    found[count].append(rate(daemon))
            people.end()
            searches = []
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            for number in range(SEARCHES):
                began = time.monotonic()
                connection.request("GET", f"/api/v1/streams?q=HOST-{number:05d}&limit=50")
                matching = json.loads(connection.getresponse().read())["total"]
                searches.append(time.monotonic() - began)
                assert matching, "it finds some"
                time.sleep(0.2)
            scored = daemon.metrics()("events_scored_total")
    print(f"{streams} streams, {ROUNDS} rounds each, medians (least, most);", end=" ")
    print(f"pages saw {people.seen[0]} events and {people.seen[1]} answers")
    by_clock = {count: [one.by_clock for one in rates] for count, rates in found.items()}
    by_cpu = {count: [one.by_cpu for one in rates] for count, rates in found.items()}
    for name, rates in (("second", by_clock), ("CPU second of the daemon", by_cpu)):
        for count, some in rates.items():
            print(f"  {count:2} pages: {median(some):,.0f} events a {name} ({min(some):,.0f}, {max(some):,.0f})")
        pairs = sorted(some / none for some, none in zip(rates[pages], rates[0], strict=True))
        print(
            f"            {median(pairs):.3f}, of those next to each other ({pairs[0]:.3f}, {pairs[-1]:.3f});", end=" "
        )
        print(f"{median(rates[pages]) / median(rates[0]):.3f} of the medians")
    while_scoring = "while scoring" if scored < EVENTS else "while nothing was scored"
    print(f"  threads that serve the pages: {told_for_pages(found[0], found[pages])}")
    print(f"  search {while_scoring}: {1e3 * median(searches):.0f} ms, at most {1e3 * max(searches):.0f}")


if __name__ == "__main__":
    main()
