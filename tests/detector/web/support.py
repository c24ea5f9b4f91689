"""A daemon that reads what a test writes, and its API over real sockets."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.daemon.support import PATIENCE, Longwatch, until

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "../../etc/passwd",
    "a?b=c&d=e#f",
    "%2e%2e/%00",
    "=cmd|' /C calc'!A0",
    "data: x event: status",
    "größe/温度",
    "x" * 255,
]
STREAMS = [*(f"host-{number:02d}/load" for number in range(12)), *HOSTILE]
ROWS, SPIKE = 300, 290  # events of each stream, and where each is far out
STEP = 10  # s


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.headers["content-type"].startswith("application/json")
        return json.loads(self.body)


class Watched:
    """A running daemon, fed by `feed`."""

    def __init__(self, daemon: Longwatch, state: Path) -> None:
        self.daemon, self.state = daemon, state
        self.port = int(daemon.line(r"served on http://127\.0\.0\.1:(\d+)/")[1])
        self.row, self._start = 0, int(time.time()) - ROWS * STEP
        self._rng = np.random.default_rng(5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return (self.state / "api.token").read_text().strip()

    def feed(
        self,
        rows: int,
        streams: Sequence[str] = STREAMS,
        *,
        spike: int = -1,
        features: Sequence[str] = ("load", "free"),
    ) -> None:
        """Write so many events of each stream, of two features; at row `spike` the first is far out in each."""
        assert self.daemon.process.stdin is not None
        for _ in range(rows):
            time_of_row, far = self._start + self.row * STEP, 30.0 * (self.row == spike)
            for name in streams:
                numbers = (20.0 + self._rng.normal() + far, self._rng.normal())
                values = dict(zip(features, numbers, strict=True))
                record = {"stream": name, "timestamp": time_of_row, "values": values}
                self.daemon.process.stdin.write(json.dumps(record).encode() + b"\n")
            self.row += 1
        self.daemon.process.stdin.flush()

    def ask(self, path: str, method: str = "GET", body: object = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            content = None if body is None else json.dumps(body)
            typed = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, content, typed | {n.replace("_", "-"): v for n, v in headers.items()})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        answer = self.ask(f"/api/v1{path}")
        assert answer.status == 200, answer.body
        return answer.json()

    @contextmanager
    def events(self, query: str = "") -> Iterator[Iterator[tuple[str, Any]]]:
        """Yield server-sent events, by name and with their data."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", f"/api/v1/events{query}")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.getheader("content-type", "").startswith("text/event-stream")

        def read() -> Iterator[tuple[str, Any]]:
            name = ""
            while line := answer.readline():
                if found := re.match(rb"event: (\w+)\n", line):
                    name = found[1].decode()
                elif line.startswith(b"data: "):
                    yield name, json.loads(line[6:])

        yield read()
        connection.close()


@contextmanager
def watched(folder: Path, **settings: object) -> Iterator[Watched]:
    """Run a daemon that reads standard input."""
    state = folder / "state"
    chosen: Mapping[str, object] = {
        "source.type": "file",
        "source.paths": ["-"],
        "training.enabled": False,
        "state.directory": str(state),
        "state.checkpoint_interval_seconds": 0.5,
        "incidents.wait_seconds": 0,
    } | {name.replace("__", "."): value for name, value in settings.items()}
    with Longwatch(folder, chosen, stdin=subprocess.PIPE) as daemon:
        yield Watched(daemon, state)


def scored(daemon: Watched, count: int) -> None:
    """Wait until so many events are scored."""
    until(lambda: daemon.daemon.metrics()("events_scored_total") >= count, f"{count} events are scored")
