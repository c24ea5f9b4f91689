"""`longwatch bench` and the ingest benchmark. Their figures are not judged here: a busy machine would fail."""

from __future__ import annotations

import re

import pytest
from kafka import KafkaAdminClient

from detector.commands import bench
from detector.config.settings import Settings
from tests.bench.ingest import measure
from tests.brokers import Broker

NUMBER = r"\s+[\d,.]+\s"


def assert_every_row_of_the_engine_is_there(text: str) -> None:
    for row in (
        "bare torch LSTM, batch 2,000",
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


def test_engine_and_bare_network_are_both_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "BATCH", 2_000)
    monkeypatch.setattr(bench, "PAST", 250)
    bench.run_bench(Settings.model_validate({"compute": {"threads": 1, "device": "cpu"}}), quick=True)
    assert_every_row_of_the_engine_is_there(capsys.readouterr().out)


@pytest.mark.kafka
def test_the_kafka_benchmark_measures_and_cleans_up(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    measure(Settings(), broker.bootstrap, quick=True)

    reported = capsys.readouterr().out
    for row in ("bare kafka-python poll loop", "daemon, broker to alert", "daemon / bare poll loop"):
        assert re.search(rf"^  {row}{NUMBER}", reported, re.MULTILINE), f"{row!r} is missing from\n{reported}"
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    assert not [topic for topic in admin.list_topics() if topic.startswith("longwatch-bench-")]
    admin.close()
