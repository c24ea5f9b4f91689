"""`longwatch bench` and the benchmarks beside it. Their figures are not judged here: a busy machine would fail."""

from __future__ import annotations

import re

import pytest
from kafka import KafkaAdminClient

from detector.cli import main
from detector.commands import bench
from detector.config.settings import Settings
from detector.state.stream_states import LANE_OVERHEAD, STREAM_OVERHEAD
from tests.bench.engine import compare
from tests.bench.ingest import measure
from tests.brokers import Broker

NUMBER = r"\s+[\d,.]+\s"
FLEETS = tuple(f"engine, 1,000 streams of {of}" for of in ("1 feature", "4 features", "12 features"))
STAGES = r"ns an observation: admit [\d,]+, features [\d,]+, forecast [\d,]+, score [\d,]+, results [\d,]+"


@pytest.fixture
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BATCH", 2_000)
    monkeypatch.setattr(bench, "PAST", 250)


def assert_rows(text: str, *rows: str) -> None:
    for row in rows:
        assert re.search(rf"^  {row}{NUMBER}", text, re.MULTILINE), f"{row!r} is missing from\n{text}"


def assert_costs_are_there(text: str) -> None:
    for fleet in FLEETS:
        assert re.search(rf"^  {fleet} +{STAGES}$", text, re.MULTILINE), text
        assert re.search(
            rf"^  {fleet} +ms of CPU time for the first event of each: \d+, then \d+$", text, re.MULTILINE
        ), text


def assert_memory_is_there(text: str) -> None:
    for fleet, lanes in zip(FLEETS, bench.FEATURES, strict=True):
        line = re.search(rf"^  {fleet} +([\d,]+) bytes a stream, ([\d,]+) when saved$", text, re.MULTILINE)
        assert line, text
        in_memory, saved = (int(figure.replace(",", "")) for figure in line.groups())
        rows = in_memory - STREAM_OVERHEAD - lanes * LANE_OVERHEAD  # without what Python keeps of each
        assert 0.9 * rows < saved < 1.1 * in_memory, "every stream that was saved had a past"


@pytest.mark.usefixtures("little_work")
def test_the_command_measures_engines_of_one_feature_and_of_many(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "--quick", "--set", "compute.threads=1", "--set", "compute.device=cpu"])
    reported = capsys.readouterr().out
    assert re.match(r"\d+ cores, load [\d.]+; 1 threads, device cpu; 3 rounds\n", reported)
    assert_rows(reported, *FLEETS)
    assert_costs_are_there(reported)
    assert_memory_is_there(reported)


@pytest.mark.usefixtures("little_work")
def test_engine_and_bare_network_are_both_measured(capsys: pytest.CaptureFixture[str]) -> None:
    compare(Settings.model_validate({"compute": {"threads": 1, "device": "cpu"}}), quick=True)
    reported = capsys.readouterr().out
    assert_rows(reported, "bare torch LSTM, batch 2,000", "compiled kernel alone, 1 thread", *FLEETS)
    assert_rows(reported, *(f"{fleet} / bare LSTM" for fleet in FLEETS))
    assert_costs_are_there(reported)
    assert_memory_is_there(reported)


@pytest.mark.kafka
def test_the_kafka_benchmark_measures_and_cleans_up(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    measure(Settings(), broker.bootstrap, quick=True)

    reported = capsys.readouterr().out
    assert_rows(reported, "bare kafka-python poll loop", "daemon, broker to alert", "daemon / bare poll loop")
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    assert not [topic for topic in admin.list_topics() if topic.startswith("longwatch-bench-")]
    admin.close()
