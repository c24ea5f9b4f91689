"""What exactly-once costs: the daemon over the same topic with either guarantee, turn by turn, scores written by both.

    python -m tests.bench.bench_guarantee [events] [streams] [rounds]

Timed from the first tenth of the events to the last one scored, at the default checkpoint interval, and in CPU seconds
of the daemon, which say the same on a machine that is busy with other things.
"""

from __future__ import annotations

import sys
import tempfile
import time
import uuid
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tests.brokers import Broker, find_broker
from tests.daemon.fleet import make_fleet
from tests.daemon.records import open_producer
from tests.daemon.support import Longwatch, Samples

PARTITIONS = 4


class Run(NamedTuple):
    """One daemon's passage over the topic."""

    rate: float  # events/s
    cpu: float  # s, of the process, for 100,000 events
    checkpoint: float  # s, mean


def fill(broker: Broker, topic: str, events: int, streams: int) -> int:
    """Write a fleet's events, a stream always to the same partition; return how many."""
    fleet = make_fleet(streams, max(1, events // streams), seed=1)
    producer = open_producer(broker)
    for stream, record in fleet.records():
        producer.send(topic, record, fleet.names[stream].encode(), partition=stream % PARTITIONS)
    producer.close()
    return fleet.rows * streams


def worker_settings(broker: Broker, topic: str, scores: str, group: str, directory: str) -> dict[str, Any]:
    """Return the settings of a worker that only scores."""
    return {
        "kafka.bootstrap_servers": broker.bootstrap,
        "kafka.topics": [topic],
        "kafka.group_id": group,
        "kafka.scores_topic": scores,
        "kafka.alerts_topic": "",
        "kafka.dead_letter_topic": "",
        "state.directory": directory,
        "training.enabled": False,
    }


def run(broker: Broker, topic: str, events: int, guarantee: str) -> Run:
    """Let a new group read the topic from its beginning."""
    name = uuid.uuid4().hex[:8]
    scores = broker.create_topic(f"scores-{name}", PARTITIONS)
    with tempfile.TemporaryDirectory() as folder:
        settings = worker_settings(broker, topic, scores, f"bench-{name}", f"{folder}/state")
        with Longwatch(Path(folder), settings | {"processing.guarantee": guarantee}) as daemon:
            first = wait(daemon, events // 10)
            began, before = time.perf_counter(), first("process_cpu_seconds_total")
            done = wait(daemon, events)
            took, cpu = time.perf_counter() - began, done("process_cpu_seconds_total") - before
            scored = done("events_scored_total") - first("events_scored_total")
            reported = done("checkpoint_seconds_sum") / max(1.0, done("checkpoint_seconds_count"))
            daemon.terminate()
    return Run(scored / took, cpu / scored * 100_000, reported)


def wait(daemon: Longwatch, events: int) -> _Scrape:
    """Return the metrics once so many events have been scored."""
    return _Scrape(daemon.work_until(lambda found: found("events_scored_total") >= events, "events", 900, 120), daemon)


class _Scrape:
    """Metrics of longwatch's own, and of the process."""

    def __init__(self, samples: Samples, daemon: Longwatch) -> None:
        self._samples, self._text = samples, daemon.get("/metrics")[1]

    def __call__(self, name: str) -> float:
        if not name.startswith("process_"):
            return self._samples(name)
        return next(float(line.split()[1]) for line in self._text.splitlines() if line.startswith(name + " "))


def main() -> None:
    """Print each round, and the ratio of the medians."""
    numbers = [int(word) for word in sys.argv[1:]]
    events, streams, rounds = (*numbers, *(200_000, 500, 3)[len(numbers) :])
    broker = find_broker()
    broker.start()
    try:
        topic = broker.create_topic(f"events-{uuid.uuid4().hex[:8]}", PARTITIONS)
        events = fill(broker, topic, events, streams)
        print(f"{broker.kind} broker, {events:,} events of {streams} streams, {PARTITIONS} partitions")
        print(f"{'round':>6}{'guarantee':>16}{'events/s':>12}{'CPU s / 100,000':>18}{'checkpoint s':>14}")
        found: dict[str, list[Run]] = {"at_least_once": [], "exactly_once": []}
        for number in range(rounds):
            for guarantee, runs in found.items():
                runs.append(run(broker, topic, events, guarantee))
                rate, cpu, checkpoint = runs[-1]
                print(f"{number + 1:>6}{guarantee:>16}{rate:>12,.0f}{cpu:>18.2f}{checkpoint:>14.2f}", flush=True)
        rates = {guarantee: median(run.rate for run in runs) for guarantee, runs in found.items()}
        cpus = {guarantee: median(run.cpu for run in runs) for guarantee, runs in found.items()}
        print(
            f"exactly_once / at_least_once: {rates['exactly_once'] / rates['at_least_once']:.2f} of the events/s,"
            f" {cpus['exactly_once'] / cpus['at_least_once']:.2f} times the CPU"
        )
    finally:
        broker.close()


if __name__ == "__main__":
    main()
