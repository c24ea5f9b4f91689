"""`longwatch bench` as its user runs it. Its figures are not judged here: a busy machine would fail."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from kafka import KafkaAdminClient

from tests.brokers import Broker

NUMBER = r"\s+[\d,.]+\s"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "detector.cli", "bench", "--quick", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def assert_every_row_of_the_engine_is_there(text: str) -> None:
    for row in (
        "bare torch LSTM, batch 10,000",
        "compiled kernel alone, 1 thread",
        "engine, 1,000 streams of 1 feature",
        "engine, 1,000 streams of 4 features",
        "engine, 1,000 streams of 1 feature / bare LSTM",
        "engine, 1,000 streams of 4 features / bare LSTM",
    ):
        assert re.search(rf"^  {row}{NUMBER}", text, re.MULTILINE), f"{row!r} is missing from\n{text}"
    for features in ("1 feature", "4 features"):
        assert re.search(
            rf"^  {features} +[\d,]+ a stream, +[\d,]+ a lane; saved as a row of [\d,]+$", text, re.MULTILINE
        )


def test_without_a_broker_the_engine_is_measured_and_the_way_to_the_rest_is_told() -> None:
    done = bench()

    assert done.returncode == 0, done.stderr
    assert_every_row_of_the_engine_is_there(done.stdout)
    assert "--kafka HOST:PORT" in done.stdout.splitlines()[-1]


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_with_a_broker_the_way_from_it_is_measured_and_nothing_is_left_on_it(broker: Broker) -> None:
    done = bench("--kafka", broker.bootstrap)

    assert done.returncode == 0, done.stderr
    assert_every_row_of_the_engine_is_there(done.stdout)
    for row in ("bare kafka-python poll loop", "daemon, broker to alert", "daemon / bare poll loop"):
        assert re.search(rf"^  {row}{NUMBER}", done.stdout, re.MULTILINE), f"{row!r} is missing from\n{done.stdout}"
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    assert not [topic for topic in admin.list_topics() if topic.startswith("longwatch-bench-")]
    admin.close()


def test_a_broker_that_is_not_there_is_told_in_a_line() -> None:
    done = bench("--kafka", "127.0.0.1:9")

    assert done.returncode == 1
    assert "--kafka 127.0.0.1:9: " in done.stderr.splitlines()[-1]
    assert "Connection refused" in done.stderr
