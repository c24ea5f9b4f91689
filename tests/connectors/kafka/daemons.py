"""A daemon in this process that reads a real broker."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kafka import KafkaConsumer, KafkaProducer

from detector.config.settings import load_settings
from detector.service.daemon import Daemon
from detector.service.factory import build_daemon
from tests.brokers import Broker


@contextmanager
def running(broker: Broker, folder: Path, **more: str) -> Iterator[Daemon]:
    """Run a daemon in this process."""
    overrides = {
        "kafka.bootstrap_servers": broker.bootstrap,
        "kafka.auto_offset_reset": "latest",
        "kafka.dead_letter_topic": "",
        "kafka.alerts_topic": "",
        "state.directory": str(folder),
        "training.enabled": "false",
        "http.port": "0",
        **more,
    }
    daemon = build_daemon(
        load_settings(environment={}, overrides=[f"{name}={value}" for name, value in overrides.items()])
    )
    thread = threading.Thread(target=daemon.run)
    thread.start()
    try:
        yield daemon
    finally:
        daemon.stop()
        thread.join()


def write(broker: Broker, topic: str, partition: int, values: list[bytes]) -> None:
    """Write values to one partition, once it is there, in a transaction."""
    deadline = time.monotonic() + 240
    ends = KafkaConsumer(bootstrap_servers=broker.bootstrap)
    while partition not in (ends.partitions_for_topic(topic) or ()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=f"writer-{uuid.uuid4().hex}")
    producer.init_transactions()
    producer.begin_transaction()
    for value in values:
        producer.send(topic, value, b"k", partition=partition)
    producer.commit_transaction()
    producer.close()
    ends.close()
