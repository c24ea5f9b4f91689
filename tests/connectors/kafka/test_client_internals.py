"""A kafka-python with other internals costs speed and a warning, never a record."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kafka
import pytest
from kafka import KafkaProducer

from connectors.kafka.client_internals import has
from tests.brokers import Broker

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[3]
COUNT = 250  # more than two polls of max_poll_records
# every private name of the client that this package uses: instances' parts, classes, methods
PRIVATE = (
    *("_append", "_fetcher", "_subscription", "_sender", "_buffer", "PartitionRecords", "KafkaNetClient"),
    *("_paused_partition_records", "KafkaProtocol", "get_sasl_mechanism", "_isolation_level", "_subscriptions"),
)


def renamed_client(folder: Path, names: tuple[str, ...]) -> Path:
    """Copy the installed kafka-python, with private names called differently throughout: a release that moved them."""
    package = shutil.copytree(
        Path(kafka.__file__).parent, folder / "kafka", ignore=shutil.ignore_patterns("__pycache__")
    )
    pattern = re.compile(rf"\b({'|'.join(names)})\b")
    for path in package.rglob("*.py"):
        text = path.read_text()
        if (changed := pattern.sub(r"\1_of_another_release", text)) != text:
            path.write_text(changed)
    return folder


def run(client: Path, broker: Broker, topic: str, *further: str) -> dict[str, Any]:
    ran = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("other_client.py")),
            broker.bootstrap,
            topic,
            str(COUNT),
            *further,
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(client), str(ROOT)])},
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    assert Path(found["client"]).is_relative_to(client)
    return found


def filled(broker: Broker, topic: Callable[..., str]) -> str:
    name = topic()
    broker.create_topic(f"{name}-out", 1)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=5, compression_type="gzip")
    for n in range(COUNT):
        producer.send(name, b"%d" % n, key=b"k")
    producer.close(timeout=240)
    return name


def test_the_installed_client_has_every_internal_part_we_use() -> None:
    parts = ("records", "paused_fetch", "position", "sender", "probe", "client")
    assert all(has(part) for part in parts)


@pytest.mark.parametrize(
    "names",
    [PRIVATE, ("_append",), ("_isolation_level",), ("_buffer",)],
    ids=["all", "fetcher", "isolation", "records"],
)
def test_a_client_with_other_internals_is_read_through_its_public_interface(
    apache: Broker, topic: Callable[..., str], tmp_path: Path, names: tuple[str, ...]
) -> None:
    found = run(renamed_client(tmp_path, names), apache, filled(apache, topic))
    assert found["read"] == found["history"] == list(range(COUNT))
    (warning,) = found["reported"]
    assert "records are parsed one by one" in warning
    assert "kafka-python<3.1" in warning


def test_a_changelog_can_be_read_through_the_public_interface(
    apache: Broker, topic: Callable[..., str], tmp_path: Path
) -> None:
    found = run(renamed_client(tmp_path, PRIVATE), apache, filled(apache, topic), "changelog")
    assert found["followed"] == list(range(10))
    assert found["position"] == 10
    assert len([line for line in found["reported"] if "internals" in line]) == 1
