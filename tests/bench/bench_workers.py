"""More workers, more throughput: one group's workers over the same topic, exactly once, one thread each.

    python -m tests.bench.bench_workers [events] [streams] [workers]

Timed from when every worker has scored something to when 95 % of the events are. All workers and the broker share this
machine: beyond its cores more workers bring nothing here.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

from tests.bench.bench_guarantee import PARTITIONS, fill, worker_settings
from tests.brokers import Broker, find_broker
from tests.daemon.support import Longwatch, until

SHARE = 0.95


def run(broker: Broker, topic: str, events: int, count: int) -> float:
    """Return the events/s of so many workers of a new group together."""
    name = uuid.uuid4().hex[:8]
    scores = broker.create_topic(f"scores-{name}", PARTITIONS)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workers = [
            stack.enter_context(
                Longwatch(
                    Path(folder),
                    worker_settings(broker, topic, scores, f"bench-{name}", f"{folder}/state-{number}")
                    | {"compute.threads": 1, "processing.guarantee": "exactly_once"},
                )
            )
            for number in range(count)
        ]

        def scored() -> list[float]:
            return [worker.metrics()("events_scored_total") for worker in workers]

        until(lambda: all(scored()), "every worker scores", seconds=120, every=0.2)
        began, before = time.perf_counter(), sum(scored())
        until(lambda: sum(scored()) >= SHARE * events, "the events are scored", seconds=600, every=0.2)
        return (sum(scored()) - before) / (time.perf_counter() - began)


def main() -> None:
    """Print a line for each number of workers."""
    numbers = [int(word) for word in sys.argv[1:]]
    events, streams, most = (*numbers, *(400_000, 400, 2)[len(numbers) :])
    broker = find_broker()
    broker.start()
    try:
        topic = broker.create_topic(f"events-{uuid.uuid4().hex[:8]}", PARTITIONS)
        events = fill(broker, topic, events, streams)
        cores = len(os.sched_getaffinity(0))
        print(f"{broker.kind} broker on the same {cores} cores, {events:,} events of {streams} streams")
        for count in range(1, most + 1):
            print(f"{count} workers: {run(broker, topic, events, count):,.0f} events/s", flush=True)
    finally:
        broker.close()


if __name__ == "__main__":
    main()
