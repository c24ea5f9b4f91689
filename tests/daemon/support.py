"""The daemon as a process of its own, and the world around it. Every wait has a deadline.

`Longwatch.work_until` is the one that matters most: it fails not only late, but as soon as the daemon is alive and
scores nothing although there is something to score.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from tests.brokers import CHECKOUT, Broker

PATIENCE = 240.0  # s, of any wait: a start takes 3 s on an idle machine, and minutes on one with much else to do
STALLED = 120.0  # s without a score while there are events to score: alive, but not processing
TOLERANCE = 1e-5  # of scores and what goes with them, on one machine
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()

START = 1_700_000_000 // 86_400 * 86_400  # Unix s, a midnight: long ago by any machine's clock
STEP = 60  # s between two events of a stream

RUN = ("-m", "detector.cli", "run")
# The settings' shortest interval between two retrainings is a minute, which is long for a test.
RUN_RETRAINING = (
    "-c",
    """
import sys
from detector.service.daemon import Daemon
from detector.config.settings import load_settings
from detector.observability.log_format import set_up_logging
settings = load_settings(overrides=[word for word in sys.argv[1:] if word != "--set"])
training = settings.training.model_copy(update={"interval_seconds": 3.0})
set_up_logging("info", "text")
Daemon(settings.model_copy(update={"training": training})).run()
""",
)


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE, every: float = 0.02) -> Any:
    """Return what `condition` returns once it is true; fail after so long. It is asked again `every` so many s."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        time.sleep(every)
    return found


# -- the daemon --------------------------------------------------------------------------------------------------------


class Samples:
    """What /metrics said once, parsed by Prometheus' own client."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """Return the value of longwatch_<name> with exactly these labels; KeyError where there is none."""
        return self._samples[f"longwatch_{name}", frozenset(labels.items())]

    def sum(self, name: str) -> float:
        """Return the sum over all labels of longwatch_<name>."""
        return sum(value for (found, _), value in self._samples.items() if found == f"longwatch_{name}")

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the values of longwatch_<name> by one label's value."""
        wanted = f"longwatch_{name}"
        return {dict(labels)[label]: value for (found, labels), value in self._samples.items() if found == wanted}


class EndedError(Exception):
    """The daemon's process has ended."""


class Longwatch:
    """`longwatch run` in a process of its own; settings by name, {"kafka.topics": ["metrics"]}.

    Use as a context: what still runs at the end is killed.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        program: Sequence[str] = RUN,
        environ: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.log_path = folder / f"longwatch-{time.monotonic_ns()}.log"
        self.settings = {"http.port": 0, "compute.device": "cpu", **settings}
        texts = {n: value if isinstance(value, str) else json.dumps(value) for n, value in self.settings.items()}
        own = {name: value for name, value in os.environ.items() if not name.startswith(("LONGWATCH_", "NOTIFY_"))}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    *program,
                    *(part for name, text in texts.items() for part in ("--set", f"{name}={text}")),
                ],
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=CHECKOUT,
                env={**own, **(environ or {})},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()

    @property
    def log(self) -> str:
        """All that it has said."""
        return self.log_path.read_text(errors="replace")

    def fail(self, what: str) -> None:
        """Fail the test, with the end of the log."""
        pytest.fail(f"{what}\nThe daemon's log ends:\n" + "\n".join(self.log.splitlines()[-30:]))

    def line(self, pattern: str, seconds: float = PATIENCE) -> re.Match[str]:
        """Wait for a line of the log in which `pattern` is found."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.log, re.MULTILINE)):
            if self.process.poll() is not None and not re.search(pattern, self.log, re.MULTILINE):
                self.fail(f"it ended with {self.process.returncode} and never said {pattern!r}")
            if time.monotonic() > deadline:
                self.fail(f"it did not say {pattern!r} within {seconds:.0f} s")
            time.sleep(0.02)
        return found

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a page; EndedError where the process has ended."""
        port = int(self.line(r"served on http://127\.0\.0\.1:(\d+)/")[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            if self.stops():
                raise EndedError from None
            raise
        finally:
            connection.close()

    @contextlib.contextmanager
    def halted(self) -> Iterator[None]:
        """Let it not get on while the block runs: what comes in its middle cannot come too late then."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stops(self, seconds: float = 5.0) -> bool:
        """Whether the process ends by itself within so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode is not None

    def metrics(self) -> Samples:
        """Scrape."""
        return Samples(self.get("/metrics")[1])

    def work_until(
        self, condition: Callable[[Samples], Any], what: str, seconds: float = PATIENCE, stalled: float = STALLED
    ) -> Samples:
        """Scrape until a condition holds and return what was scraped; EndedError where the process ends before.

        Fails after `seconds`, and as soon as nothing has been read, scored or refused for `stalled` seconds.
        """
        deadline = time.monotonic() + seconds
        moved_at, before = time.monotonic(), -1.0
        while True:
            samples = self.metrics()
            if condition(samples):
                return samples
            now = time.monotonic()
            done = samples("events_scored_total") + samples.sum("events_rejected_total")
            if done != before:
                moved_at, before = now, done
            if now - moved_at > stalled:
                self.fail(f"alive, but not processing: {done:.0f} events done, none in {stalled:.0f} s; wanted: {what}")
            if now > deadline:
                self.fail(f"not within {seconds:.0f} s: {what} ({done:.0f} events done)")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def terminate(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal and return the exit status and how long it took, in s."""
        began = time.monotonic()
        self.process.send_signal(number)
        return self.wait(), time.monotonic() - began

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return the exit status once it has ended by itself."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.fail(f"it did not end within {seconds:.0f} s")
            raise


# -- a receiver of webhooks --------------------------------------------------------------------------------------------


class Delivery(NamedTuple):
    """A message that came with a good signature."""

    id: str
    body: bytes

    @property
    def alert(self) -> dict[str, Any]:
        """The alert's record."""
        found: dict[str, Any] = json.loads(self.body)["data"]
        return found


class Receiver:
    """An HTTP server that takes what is signed as Standard Webhooks ask, by its own reading of that text."""

    def __init__(self) -> None:
        self.taken: list[Delivery] = []
        self.refused: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:  # the sender was killed meanwhile
                    return
                problem = _problem(dict(self.headers), body)
                if problem:
                    receiver.refused.append(problem)
                else:
                    receiver.taken.append(Delivery(self.headers["webhook-id"], body))
                self.send_response(401 if problem else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/alerts"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def ids(self) -> list[str]:
        """The ids in the order of their coming, repeats included."""
        return [delivery.id for delivery in list(self.taken)]


def _problem(headers: Mapping[str, str], body: bytes) -> str:
    """Return what a receiver would refuse a message for, "" for nothing."""
    headers = {name.lower(): value for name, value in headers.items()}
    message_id, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not message_id or not stamp.isdigit() or abs(time.time() - int(stamp)) > 300:
        return f"id {message_id!r}, timestamp {stamp!r}"
    digest = hmac.new(KEY, message_id.encode() + b"." + stamp.encode() + b"." + body, hashlib.sha256).digest()
    signatures = headers.get("webhook-signature", "").split()
    if not any(hmac.compare_digest(found, "v1," + base64.b64encode(digest).decode()) for found in signatures):
        return f"{message_id}: no signature fits, of {len(signatures)}"
    return ""


# -- streams -----------------------------------------------------------------------------------------------------------

SPIKES = 0.4, 0.65  # where they are, as shares of the rows: by then every stream has been judged for a while
SHIFT_AT, SHIFT_ROWS = 0.75, 60  # where the level shifts, as a share of the rows, and for how long
ONSET = 2  # rows of a shift that are a surprise: after them the network expects the new level


class Fleet(NamedTuple):
    """Streams that report once a step, all at the same times; some with anomalies."""

    names: list[str]
    values: NDArray[np.float64]  # [rows, streams, features] NaN: the stream has fewer features
    spike: NDArray[np.bool_]  # [rows, streams] one event that is far out
    onset: NDArray[np.bool_]  # [rows, streams] first events of a new level
    after: NDArray[np.bool_]  # [rows, streams] in the wake of either: neither normal nor injected

    @property
    def rows(self) -> int:
        """Events of each stream."""
        return len(self.values)

    def record(self, row: int, stream: int) -> bytes:
        """Return an event as it stands on the topic or in the file."""
        value = {f"f{k}": x for k, x in enumerate(self.values[row, stream].tolist()) if not math.isnan(x)}
        return msgspec.json.encode({"stream": self.names[stream], "timestamp": START + row * STEP, "values": value})

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yield (stream's number, record), row by row."""
        for row in range(self.rows):
            for stream in range(len(self.names)):
                yield stream, self.record(row, stream)


def make_fleet(streams: int, rows: int, seed: int) -> Fleet:
    """Make streams of waves with noise: the last fifth of them has three features, every second one has anomalies."""
    rng = np.random.default_rng(seed)
    time_of_day = np.arange(rows)[:, None, None] * STEP
    period = rng.choice([1_800.0, 3_600.0, 7_200.0], (1, streams, 1))
    wave = np.sin(2 * np.pi * (time_of_day / period + rng.uniform(0, 1, (1, streams, 3))))
    values = 20.0 + 2.0 * wave + 0.3 * rng.standard_normal((rows, streams, 3))
    values[:, : streams - streams // 5, 1:] = np.nan
    spike, onset, after = (np.zeros((rows, streams), np.bool_) for _ in range(3))
    shift = round(SHIFT_AT * rows)
    for stream in range(0, streams, 2):
        for row in rng.choice(np.arange(*(round(share * rows) for share in SPIKES)), 4, replace=False).tolist():
            values[row, stream, :2] += rng.choice([-8.0, 8.0])
            spike[row, stream] = True
            after[row : row + 30, stream] = True
        values[shift : shift + SHIFT_ROWS, stream] += 6.0
        onset[shift : shift + ONSET, stream] = True
        after[shift : shift + 2 * SHIFT_ROWS, stream] = True
    return Fleet([f"host-{stream:02d}/load" for stream in range(streams)], values, spike, onset, after)


# -- topics and files --------------------------------------------------------------------------------------------------


def open_producer(broker: Broker) -> KafkaProducer:
    """Return a producer that loses nothing."""
    return KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all", linger_ms=5, batch_size=65_536)


def read_topic(
    broker: Broker, topic: str, partitions: int = 1, isolation: str = "read_uncommitted"
) -> list[ConsumerRecord]:
    """Return all records that a topic holds now, and that a reader with this isolation level sees."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap,
        enable_auto_commit=False,
        isolation_level=isolation,
        max_poll_records=5_000,
    )
    try:
        wanted = [TopicPartition(topic, partition) for partition in range(partitions)]
        consumer.assign(wanted)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(wanted)
        records: list[ConsumerRecord] = []
        deadline = time.monotonic() + PATIENCE
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            assert time.monotonic() < deadline, f"{topic}: {len(records)} records read of {ends}"
            for batch in consumer.poll(500).values():
                records += batch
        return records
    finally:
        consumer.close()


Place = tuple[str, int, int]  # topic or file, partition, offset
Record = dict[str, Any]


def read_lines(path: Path) -> list[Record]:
    """Return the records of a JSON-lines file."""
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def place_of(record: Record) -> Place:
    """Return where the event of a score or an alert stood."""
    return record["topic"], record["partition"], record["offset"]


def by_place(records: Sequence[Record]) -> dict[Place, list[Record]]:
    """Return score records by their event's place."""
    found: dict[Place, list[Record]] = {}
    for record in records:
        found.setdefault(place_of(record), []).append(record)
    return found


def difference(one: Any, other: Any, where: str = "") -> str:
    """Return where two records differ by more than TOLERANCE, "" where nowhere."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next((found for name in one if (found := difference(one[name], other[name], f"{where}.{name}"))), "")
    if isinstance(one, float) and isinstance(other, float):
        same = abs(one - other) <= TOLERANCE * max(1.0, abs(one), abs(other))
    else:
        same = type(one) is type(other) and one == other
    return "" if same else f"{where}: {one!r}, expected {other!r}"


def alerts_by_id(records: Sequence[Record]) -> dict[str, Record]:
    """Return alerts by id and status; fails where one id tells two stories."""
    found: dict[str, Record] = {}
    for record in records:
        name = f"{record['id']}-{record['status']}"
        assert not difference(record, found.setdefault(name, record)), f"{name} was told in two ways"
    return found
