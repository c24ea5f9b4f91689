"""Events a second from a broker: the daemon as it runs, and kafka-python's bare poll loop over the same topic.

Each turn is a separate process, so that neither carries the other's memory and threads. It gets its task as JSON on
standard input (settings with their secrets never stand in a command line) and prints its timing as JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError
from pydantic import SecretStr

from connectors.batches import Scores
from connectors.http_server.settings import HttpSettings
from connectors.kafka.client_options import client_options
from connectors.kafka.connect import probe, quieten_client
from connectors.kafka.errors import KafkaConnectorError
from connectors.kafka.polling import consumer_options
from detector.config.sections import OutputSettings
from detector.config.settings import Settings

PARTITIONS = 4
STREAMS = 1_000
EVENTS, QUICK_EVENTS = 1_000_000, 60_000  # a million: the daemon is at work for longer than a checkpoint interval
WARM_SHARE = 0.2  # read before the clock starts: processes start, code loads, streams get past their warm-up
TURN_SECONDS = 300.0  # a turn that takes longer fails
POLL_MS = 500
ROUNDS, QUICK_ROUNDS = 3, 1  # processes start in each
GOAL = 0.7  # of the bare poll loop
START = 1_763_600_000
STEP_SECONDS = 60


def measure(settings: Settings, bootstrap: str, *, quick: bool) -> None:
    """Print daemon and bare loop compared, on topics that are made on the broker and removed."""
    from detector.commands.bench import measure_in_turns, print_rates  # a turn's process stays free of the engine
    from tests.bench.engine import print_ratio

    with Ingest(settings, bootstrap, quick=quick) as ingest:
        print(f"from the broker at {bootstrap}: {ingest.what}")
        bare, daemon = "bare kafka-python poll loop", "daemon, broker to alert"
        turns = {bare: lambda: ingest.turn("poll"), daemon: lambda: ingest.turn("daemon")}
        results = measure_in_turns(turns, QUICK_ROUNDS if quick else ROUNDS)
    print_rates("events", results)
    print_ratio("daemon / bare poll loop", results[daemon], results[bare], GOAL)


class Ingest:
    """Topics on a broker, filled once, for as many turns as are wanted; leaving removes them.

    Raises KafkaConnectorError where the broker cannot be used.
    """

    def __init__(self, settings: Settings, bootstrap: str, *, quick: bool) -> None:
        self._events = QUICK_EVENTS if quick else EVENTS
        self._mark = f"longwatch-bench-{uuid.uuid4().hex[:8]}"
        self._topics = [self._mark, f"{self._mark}-alerts", f"{self._mark}-rejected"]
        names = dict(zip(("alerts_topic", "dead_letter_topic"), self._topics[1:], strict=True))
        kafka = {"bootstrap_servers": bootstrap, "topics": [self._mark], "topic_pattern": "", "scores_topic": ""}
        self._kafka = settings.kafka.model_copy(update=kafka | names)
        self._settings = settings.model_copy(
            update={
                "kafka": self._kafka,
                "source": settings.source.model_copy(update={"type": "kafka"}),
                "http": HttpSettings(port=0),  # the password and the certificate that may be set are for a daemon
                # what is set there is for real alerts
                "receivers": {},
                "output": OutputSettings.model_validate({}),
            }
        )
        self._groups: list[str] = []
        size = len(next(_events(1))[1])
        self.what = f"{self._events:,} events of {size} bytes, {STREAMS:,} streams on {PARTITIONS} partitions"
        quieten_client()
        if reason := probe(self._kafka):
            raise KafkaConnectorError(reason)

    def __enter__(self) -> Self:
        self._admin = KafkaAdminClient(**client_options(self._kafka))
        try:
            self._admin.create_topics([NewTopic(topic, PARTITIONS, 1) for topic in self._topics])
            self._fill()
        except BaseException as error:
            self.__exit__()
            if isinstance(error, KafkaError):
                raise KafkaConnectorError(f"{self._kafka.bootstrap_servers}: {error}") from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._admin.delete_topics(self._topics)
            with contextlib.suppress(KafkaError):  # not every broker lets groups be deleted; they expire by themselves
                self._admin.delete_groups(self._groups)
        finally:
            self._admin.close()

    def turn(self, way: str) -> tuple[float, float]:
        """Read the topic once, "poll" or "daemon"; return events a second and a CPU second without the warm share."""
        with tempfile.TemporaryDirectory(prefix="longwatch-bench-") as folder:
            state = self._settings.state.model_copy(update={"directory": Path(folder)})
            self._groups.append(f"{self._mark}-{len(self._groups)}")
            kafka = self._kafka.model_copy(update={"group_id": self._groups[-1]})
            settings = self._settings.model_copy(update={"state": state, "kafka": kafka})
            task = {"way": way, "events": self._events, "settings": settings.model_dump()}
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "tests.bench.ingest"],
                    input=json.dumps(task, default=_revealed),
                    capture_output=True,
                    text=True,
                    timeout=TURN_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise KafkaConnectorError(f"the {way} turn was not over within {TURN_SECONDS:.0f} s") from None
        if done.returncode:
            raise KafkaConnectorError(f"the {way} turn ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        count, seconds, cpu_seconds = json.loads(done.stdout.splitlines()[-1])
        return count / seconds, count / cpu_seconds

    def _fill(self) -> None:
        producer = KafkaProducer(**client_options(self._kafka), linger_ms=20, batch_size=64 * 1024)
        try:
            for stream, value in _events(self._events):
                producer.send(self._mark, value, key=f"host-{stream:04}/cpu".encode(), partition=stream % PARTITIONS)
            producer.flush(TURN_SECONDS)
        finally:
            producer.close()


def _events(count: int) -> Iterator[tuple[int, bytes]]:
    """Yield stream and JSON of so many events: a wave with some ripple; one in five thousand is an outlier."""
    for number in range(count):
        step, stream = divmod(number, STREAMS)
        value = 50 + 10 * math.sin(step / 20 + stream) + math.sin(number * number)
        if number % 4_999 == 4_998:
            value += 60
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(START + step * STEP_SECONDS))
        yield (
            stream,
            f'{{"stream": "host-{stream:04}/cpu", "timestamp": "{at}", "values": {{"usage": {value:.4f}}},'
            ' "unit": "percent", "region": "eu-central-1", "role": "web"}'.encode(),
        )


class Stopwatch:
    """Times a stretch of a loop that counts: from the first `warm` events to `total` of them."""

    def __init__(self, total: int) -> None:
        self._warm, self._total = round(total * WARM_SHARE), total
        self._seen = self._began_at = 0
        self._began = self._cpu_began = 0.0
        self.timing: tuple[int, float, float] | None = None

    def count(self, events: int) -> bool:
        """Note that so many more events are done; return whether all are."""
        self._seen += events
        now, cpu = time.perf_counter(), time.process_time()
        if not self._began and self._seen >= self._warm:
            self._began, self._cpu_began, self._began_at = now, cpu, self._seen
        elif self._seen >= self._total and self.timing is None:
            self.timing = (self._seen - self._began_at, now - self._began, cpu - self._cpu_began)
        return self.timing is not None


class _Tally:
    """A score sink that only counts: what the daemon emits."""

    full = False

    def __init__(self, watch: Stopwatch) -> None:
        self.daemon: Any = None
        self._watch = watch

    def write(self, scores: Scores) -> None:
        """Count a batch; stop the daemon after the last."""
        if self._watch.timing is None and self._watch.count(len(scores.batch)):
            self.daemon.stop()

    def flush(self) -> None:
        """Nothing is kept."""

    def position(self) -> dict[str, int]:
        """Nothing is written."""
        return {}

    def restore(self, position: Mapping[str, int]) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """Nothing is held."""


def _daemon(settings: Settings, watch: Stopwatch) -> None:
    from connectors.sink_group import SinkGroup
    from detector.service.factory import build_daemon  # the bare loop's process stays free of torch

    tally = _Tally(watch)
    tally.daemon = build_daemon(settings, SinkGroup([tally], [], []))
    tally.daemon.run()


def _poll(settings: Settings, watch: Stopwatch) -> None:
    kafka = settings.kafka
    consumer = KafkaConsumer(*kafka.topics, **consumer_options(kafka) | {"auto_offset_reset": "earliest"})
    done = False
    while not done:
        done = watch.count(sum(len(records) for records in consumer.poll(POLL_MS).values()))
    consumer.close()


def _revealed(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def main() -> None:
    """Do the turn that standard input asks for."""
    logging.basicConfig(level=logging.WARNING)
    quieten_client()
    task = json.load(sys.stdin)
    settings, watch = Settings.model_validate(task["settings"]), Stopwatch(task["events"])
    {"poll": _poll, "daemon": _daemon}[task["way"]](settings, watch)
    print(json.dumps(watch.timing))


if __name__ == "__main__":
    main()
