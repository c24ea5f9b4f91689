"""Feed the demonstration: events of five streams with a rhythm, and a fault in one of them now and then."""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from itertools import count

from kafka import KafkaProducer

STREAMS = 5
# A "day" of ten minutes: short enough that an onlooker sees several, 600 events long at one event a second.
PERIOD_SECONDS = 600
# One fault about every 15 minutes, lasting half a minute: rare beside what is normal, as faults are.
FAULT_EVERY_SECONDS = 900
FAULT_SECONDS = 30


def events(begin: float, seed: int = 0) -> Iterator[list[dict[str, object]]]:
    """Yield, for each second from `begin` (Unix time) on, one event of every stream; it never waits.

    `cpu` is in percent, `latency` in ms; it follows `cpu` until a fault lifts it alone.
    """
    rng = random.Random(seed)
    for second in count():
        faulty = second // FAULT_EVERY_SECONDS % STREAMS
        fault = second % FAULT_EVERY_SECONDS >= FAULT_EVERY_SECONDS - FAULT_SECONDS
        batch: list[dict[str, object]] = []
        for i in range(STREAMS):
            phase = 2 * math.pi * (second / PERIOD_SECONDS + i / STREAMS)
            cpu = 45 + 25 * math.sin(phase) + rng.gauss(0, 2)
            latency = 20 + 0.5 * cpu + rng.gauss(0, 1) + (40 if fault and i == faulty else 0)
            batch.append(
                {
                    "stream": f"web-{i}",
                    "timestamp": round(begin + second, 3),
                    "values": {"cpu": round(cpu, 2), "latency": round(latency, 2)},
                }
            )
        yield batch


def main() -> None:
    """Send one event of every stream a second until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap-servers", default="127.0.0.1:9092")
    parser.add_argument("--topic", default="metrics")
    parser.add_argument("--seconds", type=int, default=0, help="stop after so many; 0: never")
    arguments = parser.parse_args()
    producer = KafkaProducer(bootstrap_servers=arguments.bootstrap_servers)
    try:
        begin = time.time()
        for second, batch in enumerate(events(begin), start=1):
            for event in batch:
                # Keyed by stream: all of a stream's events must be on one partition.
                producer.send(arguments.topic, key=str(event["stream"]).encode(), value=json.dumps(event).encode())
            if second == arguments.seconds:
                break
            time.sleep(max(0.0, begin + second - time.time()))
    except KeyboardInterrupt:
        pass
    finally:
        producer.close(timeout=10)


if __name__ == "__main__":
    main()
