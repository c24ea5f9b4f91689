"""Everything at once, for as long as is asked: `python -m tests.faults.soak 30` (minutes).

Two workers with exactly-once, changelog and webhooks, each retraining every minute, are killed, stopped, halted and
started again while a producer writes in transactions, some of which it aborts. At the end each committed event has one
score, what was aborted has none, each alert came once, the webhook got the same, and scores are an undisturbed
engine's wherever only the network that ships has seen the stream.
"""

from __future__ import annotations

import logging
import math
import random
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.brokers import Broker, find_broker
from tests.daemon.fleet import Fleet, make_fleet
from tests.daemon.receiver import Receiver
from tests.daemon.records import TOLERANCE
from tests.daemon.support import until
from tests.faults.support import PARTITIONS, Topics, Undisturbed, committed, webhook_ids
from tests.faults.workers import Workers
from tests.kernels import compile_kernels

STREAMS = 80  # of which a worker has half: a retraining wants 32
EVENTS_PER_SECOND = 200
TRANSACTION_SECONDS = 0.7
ABORTED = 0.15  # of the producer's transactions
PAUSES = (2.0, 20.0, 60.0, 120.0)  # s between two deeds: some workers live to retrain, some do not live to score
DEEDS = ("kill", "kill", "kill of both", "stop", "sleep")
LONG_MINUTES = 10.0  # after which there must be alerts to lose, and retrained networks in use
PATIENCE = 600.0  # s, for the last events
TRAINING = {"training__enabled": True, "training__interval_seconds": 60, "training__budget_seconds": 10}


class Score(msgspec.Struct):
    """What of a score is looked at."""

    stream: str
    timestamp: str
    score: float
    model_version: str
    partition: int
    offset: int


class Producing(threading.Thread):
    """Writes a fleet row by row at a steady rate, in transactions; `sent` are the places of what was committed."""

    def __init__(self, topics: Topics, fleet: Fleet, seed: int) -> None:
        super().__init__(daemon=True)
        self._topics, self._fleet, self._rng = topics, fleet, random.Random(seed)
        self._stop_asked = threading.Event()
        self.sent: set[tuple[int, int]] = set()  # partition, offset
        self.rows = self.transactions = self.aborted = 0
        self.failure: BaseException | None = None

    def stop(self) -> None:
        """End after the transaction under way."""
        self._stop_asked.set()
        self.join(PATIENCE)
        if self.failure is not None:
            raise self.failure

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 - `stop` raises it
            self.failure = error

    def _run(self) -> None:
        producer = KafkaProducer(
            bootstrap_servers=self._topics.broker.bootstrap,
            acks="all",
            transactional_id=f"producer-{uuid.uuid4().hex}",
        )
        producer.init_transactions()
        step = max(1, round(TRANSACTION_SECONDS * EVENTS_PER_SECOND / STREAMS))
        due = time.monotonic()
        while self.rows < self._fleet.rows and not self._stop_asked.is_set():
            rows = range(self.rows, min(self.rows + step, self._fleet.rows))
            if self._rng.random() < ABORTED:
                self._write(producer, rows, "aborted-")
                producer.abort_transaction()
                self.aborted += 1
            sent = self._write(producer, rows, "")
            producer.commit_transaction()
            self.sent.update(sent)
            self.transactions += 1
            self.rows = rows.stop
            due += step * STREAMS / EVENTS_PER_SECOND
            time.sleep(max(0.0, due - time.monotonic()))
        producer.close(timeout=10)

    def _write(self, producer: KafkaProducer, rows: range, prefix: str) -> list[tuple[int, int]]:
        producer.begin_transaction()
        futures = []
        for row in rows:
            for stream, name in enumerate(self._fleet.names):
                record = self._fleet.record(row, stream).replace(b'"host-', b'"' + prefix.encode() + b"host-", 1)
                key = (prefix + name).encode()
                futures.append(producer.send(self._topics.events, record, key, partition=stream % PARTITIONS))
        producer.flush()
        return [(future.get(timeout=60).partition, future.get().offset) for future in futures]


def lag(topics: Topics) -> int:
    """Return how far the group's committed offsets are from the end of what can be read."""
    places = [TopicPartition(topics.events, number) for number in range(PARTITIONS)]
    consumer = KafkaConsumer(
        bootstrap_servers=topics.broker.bootstrap, group_id=f"group-{topics.name}", isolation_level="read_committed"
    )
    try:
        ends = consumer.end_offsets(places)
        return sum(ends[place] - (consumer.committed(place) or 0) for place in places)
    finally:
        consumer.close(autocommit=False)


def disturb(workers: Workers, seconds: float, rng: random.Random) -> Counter[str]:
    """Do to the workers what happens to workers, for so long."""
    deeds: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, rng.choice(PAUSES)))
        deed, name = rng.choice(DEEDS), rng.choice(sorted(workers.running))
        if deed.startswith("kill"):
            for victim in [name] if deed == "kill" else sorted(workers.running):
                workers.kill(victim)
        elif deed == "stop":
            workers.leave(name)
            time.sleep(rng.uniform(0.0, 5.0))
            workers.start(name)
        else:
            workers.sleep(name)
        deeds[deed] += 1
    return deeds


def compared(found: list[Score], undisturbed: Undisturbed, topics: Topics) -> tuple[int, float]:
    """Return how many scores the shipped network alone has a part in, and how far at most from an undisturbed run's."""
    wanted = {(record["stream"], record["timestamp"]): record for record in undisturbed.scores(topics)}
    other: set[str] = set()  # streams that a retrained network has seen
    count, most = 0, 0.0
    for score in sorted(found, key=lambda score: score.timestamp):
        record = wanted[score.stream, score.timestamp]
        if score.stream in other or score.model_version != record["model_version"]:
            other.add(score.stream)
            continue
        count, most = count + 1, max(most, abs(score.score - record["score"]))
    return count, most


def soak(minutes: float, folder: Path, broker: Broker, seed: int = 23) -> str:
    """Run it, and return the figures; raises AssertionError for anything that is not as it should be."""
    rng = random.Random(seed)
    fleet = make_fleet(STREAMS, max(600, math.ceil(minutes * 60 * EVENTS_PER_SECOND / STREAMS)), seed)
    began = time.monotonic()
    with Receiver() as receiver:
        topics = Topics(broker, folder, uuid.uuid4().hex[:8], receiver)
        producing = Producing(topics, fleet, seed)
        with Workers(topics, **TRAINING) as workers:
            for name in "ac":  # the second is no static member: each of its stops is a rebalance
                workers.start(name)
            producing.start()
            deeds = disturb(workers, 60 * minutes, rng)
            producing.stop()
            until(lambda: ended(workers) or lag(topics) == 0, "all is committed", seconds=PATIENCE, every=1.0)
            alerts = topics.alerted()
            until(lambda: webhook_ids(alerts) <= set(receiver.ids), "every alert is delivered", seconds=PATIENCE)
            workers.stop()
        delivered, refused = list(receiver.ids), list(receiver.refused)
    took = time.monotonic() - began
    found = [msgspec.json.decode(record.value, type=Score) for record in committed(broker, topics.scores, 2)]
    alerts = topics.alerted()
    places = Counter((score.partition, score.offset) for score in found)
    twice = [place for place, times in places.items() if times > 1]
    missing, foreign = producing.sent - places.keys(), places.keys() - producing.sent
    reported = Counter(f"{alert['id']}-{alert['status']}" for alert in alerts)
    count, most = compared(found, Undisturbed(folder, cut(fleet, producing.rows)), topics)
    networks = len({score.model_version for score in found})
    figures = "; ".join(
        [
            f"{minutes:g} minutes ({took / 60:.1f} with the rest)",
            ", ".join(f"{times} times {deed}" for deed, times in sorted(deeds.items())),
            f"{producing.transactions} transactions and {producing.aborted} that were aborted",
            f"{len(producing.sent):,} events, {len(found):,} scores",
            f"{len(missing)} missing, {len(twice)} twice, {len(foreign)} of no committed event",
            f"{networks} networks; {count:,} scores of the shipped one, {most:.1e} at most from an undisturbed run's",
            f"{len(reported)} alerts, {sum(reported.values()) - len(reported)} written again",
            f"{len(set(delivered))} webhooks, {len(delivered) - len(set(delivered))} again under the same id",
        ]
    )
    assert not missing, figures
    assert not twice, figures
    assert not foreign, figures
    assert len(found) == len(producing.sent), figures
    assert reported or minutes < LONG_MINUTES, "there must be alerts to lose"
    assert set(reported.values()) <= {1}, figures
    assert set(delivered) == reported.keys(), figures
    assert not refused, figures
    assert count, "there must be scores to compare"
    assert networks > 1 or minutes < LONG_MINUTES, "there must be a retrained network in use"
    assert most <= TOLERANCE, figures
    return figures


def ended(workers: Workers) -> bool:
    """Fail where a worker has ended by itself; else False."""
    for name, worker in workers.running.items():
        if worker.process.poll() is not None:
            worker.fail(f"worker {name} ended by itself with {worker.process.returncode}")
    return False


def cut(fleet: Fleet, rows: int) -> Fleet:
    """Return a fleet's first rows."""
    return Fleet(fleet.names, *(column[:rows] for column in fleet[1:]))


def main() -> None:
    """Run it on the broker that the tests use."""
    logging.basicConfig(level=logging.CRITICAL)
    compile_kernels("lstm")
    broker = find_broker()
    try:
        broker.start()
        with tempfile.TemporaryDirectory() as folder:
            print(soak(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0, Path(folder), broker))
    finally:
        broker.close()


if __name__ == "__main__":
    main()
