"""What is logged now and then: rejected records, and what was done."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from connectors.batches import Rejected
from connectors.common.background import OngoingProblem
from connectors.common.throttle import LogThrottle
from detector.config.settings import load_settings
from detector.observability.counted_lines import RejectionLog, RunSummary
from detector.service.factory import build_daemon


class Clock:
    """Seconds, as they are set."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_throttled_line_is_logged_at_once_and_then_at_intervals_with_a_count() -> None:
    clock = Clock()
    throttle = LogThrottle(60.0, clock)
    assert throttle.due(0) == 0
    assert throttle.due(3) == 3
    assert [throttle.due() for _ in range(5)] == [0] * 5
    clock.now += 59.0
    assert throttle.due() == 0
    clock.now += 1.0
    assert throttle.due(0) == 6
    assert throttle.due() == 0


def rejected(reason: str, count: int, offset: int = 0) -> list[Rejected]:
    return [Rejected("metrics", 3, offset + at, reason, f"problem {offset + at}", b"") for at in range(count)]


def test_rejected_records_are_logged_by_reason_with_an_example_and_where_they_go(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    settings = load_settings(None, {}, ["output.dead_letter_file=/tmp/rejected.jsonl"])
    log = RejectionLog(settings, clock)
    log.log(rejected("not_json", 2) + rejected("no_stream", 1, offset=7), read=90)
    for _ in range(10):
        log.log(rejected("not_json", 100, offset=1_000), read=90)
    assert [entry.getMessage() for entry in caplog.records] == [
        "2 records were rejected (not_json), the last: metrics/3, offset 1: problem 1; "
        "they are kept in the topic longwatch-rejected and /tmp/rejected.jsonl",
        "1 records were rejected (no_stream), the last: metrics/3, offset 7: problem 7; "
        "they are kept in the topic longwatch-rejected and /tmp/rejected.jsonl",
    ]
    clock.now += 60.0
    log.log(rejected("not_json", 1), read=90)
    assert caplog.records[-1].getMessage().startswith("1001 records were rejected (not_json), the last: ")
    assert {entry.levelno for entry in caplog.records} == {logging.WARNING}
    assert log.nothing_read == ""


def test_when_every_record_is_rejected_the_log_level_rises_until_one_is_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = RejectionLog(load_settings(None, {}, []), Clock())
    for at in range(29):
        log.log(rejected("no_timestamp", 1, offset=at), read=0)
    assert log.nothing_read == ""
    for at in range(29, 600):
        log.log(rejected("no_timestamp", 1, offset=at), read=0)
    assert log.nothing_read == "none of the last 600 records could be read (the last: no_timestamp)"
    (loud,) = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
    assert loud.getMessage().endswith("check the settings in [decode], and what writes the records")
    log.log([], read=0)
    assert log.nothing_read
    log.log(rejected("no_timestamp", 5), read=1)
    assert log.nothing_read == ""
    assert caplog.records[-1].getMessage() == "records can be read again, after 600 rejected ones"


def test_a_summary_is_logged_hourly_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    summary = RunSummary(clock)
    summary.count(scored=100, late=1)
    summary.count(rejected=3)
    summary.log_hourly(streams=7, lag=2)
    assert not caplog.records
    clock.now += 3_600.0
    summary.log_hourly(streams=7, lag=2)
    summary.log_hourly(streams=7, lag=2)
    clock.now += 3_600.0
    summary.log_hourly(streams=8, lag=0)
    summary.count(scored=10, duplicate=2, alerts=1)
    summary.log_total()
    assert [entry.getMessage() for entry in caplog.records] == [
        "in the last hour: 100 scored, 3 rejected, 1 late, 0 duplicate, 0 alerts; 7 streams in memory, "
        "2 records behind",
        "in the last hour: 0 scored, 0 rejected, 0 late, 0 duplicate, 0 alerts; 8 streams in memory, 0 records behind",
        "in 7200 s: 110 scored, 3 rejected, 1 late, 2 duplicate, 1 alerts",
    ]


def test_readiness_reports_rejected_records_while_retraining_fails(tmp_path: Path) -> None:
    settings = {
        "source.type": "file",
        "source.paths": '["-"]',
        "state.directory": tmp_path / "state",
        "output.alerts_file": tmp_path / "alerts.jsonl",
        "http.port": 0,
        "compute.device": "cpu",
    }
    daemon = build_daemon(load_settings(overrides=[f"{name}={value}" for name, value in settings.items()]))
    try:
        assert daemon.ready() == (True, "scoring")
        clock = Clock()
        problem = daemon.promotion.problem = OngoingProblem(math.inf, clock)
        problem.report("retraining fails: no torch")
        clock.now += 100.0
        assert daemon.ready() == (True, "scoring; retraining fails: no torch (for 100 s)")
        daemon.reporter.rejected(rejected("no_value", 600), read=0)
        reported = (
            "none of the last 600 records could be read (the last: no_value); retraining fails: no torch (for 100 s)"
        )
        assert daemon.ready() == (True, reported)
    finally:
        daemon.shutdown(orderly=False)
