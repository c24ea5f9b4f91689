"""The log's lines: their times, and an alert's fields."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Iterator

import pytest

from connectors.batches import Alert
from detector.observability.alert_text import describe, log_alert
from detector.observability.log_format import JsonLines, TextLines

ALERT = Alert(
    id="a/1",
    stream="web",
    status="firing",
    severity="critical",
    started_at=1_414_890_000 * 10**9,
    ended_at=None,
    score=5.5,
    threshold=4.5,
    observed={"cpu": 0.9, "code": "E42"},
    expected={"cpu": 0.4, "code": None},
    lower={"cpu": 0.3},
    upper={"cpu": float("nan")},
    contributions={"cpu": 0.7, "code": 0.3},
    model_version="prior-1",
    topic="metrics",
    partition=0,
    offset=7,
    observed_probability={"code": 0.1},
    expected_probability={"code": 0.5},
    channel="forecast",
    feature="cpu",
    rank=7.5,
    return_period="once in 11 days",
    summary="cpu: observed 0.9, expected 0.4 [0.3 .. 0.5]",
    evidence={"observed": 0.9, "expected": 0.4, "lower": 0.3, "upper": 0.5},
)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose local time is not UTC."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def record(message: str, created: float) -> logging.LogRecord:
    made = logging.LogRecord("detector", logging.INFO, __file__, 1, message, (), None)
    made.created = created
    made.msecs = created % 1 * 1000
    return made


@pytest.mark.usefixtures("elsewhere")
def test_log_times_are_marked_utc_in_both_formats() -> None:
    made = record("hello", 1_414_890_000.25)
    assert TextLines().format(made) == "2014-11-02 01:00:00.250Z INFO    hello"
    assert json.loads(JsonLines().format(made))["time"] == "2014-11-02T01:00:00.250Z"


@pytest.mark.usefixtures("elsewhere")
def test_times_within_an_alert_state_their_zone() -> None:
    assert "web at 2014-11-02 01:00:00Z: cpu: observed 0.9" in describe(ALERT)
    assert describe(ended("back")).endswith("at 2014-11-02 01:01:00Z, alerting since 2014-11-02 01:00:00Z")


def ended(by: str) -> Alert:
    return dataclasses.replace(ALERT, status="resolved", ended_at=ALERT.started_at + 60 * 10**9, resolved_by=by)


def test_an_alert_is_one_line_with_what_was_found_and_who_else_has_a_part_in_it() -> None:
    assert describe(ALERT) == (
        "critical alert: web at 2014-11-02 01:00:00Z: cpu: observed 0.9, expected 0.4 [0.3 .. 0.5]; also code (30%);"
        " once in 11 days"
    )
    shares = {"cpu": 0.5, "a": 0.02, "b": 0.12, "c": 0.2, "d": 0.16}
    assert "; also c (20%), d (16%);" in describe(dataclasses.replace(ALERT, contributions=shares))


def test_the_end_of_an_incident_says_what_ended_it() -> None:
    assert "web: back to normal at" in describe(ended("back"))
    assert "web: the new level was taken as normal at" in describe(ended("accepted"))
    assert "web: silent for too long at" in describe(ended("silence"))
    assert "web: back to normal at" in describe(ended("calm")), "of a version before these words"


def logged(alert: Alert, caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    log_alert(logging.getLogger("detector"), alert)
    found: dict[str, object] = json.loads(JsonLines().format(caplog.records[-1]))
    return found


def test_the_json_log_line_of_an_alert_has_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    line = logged(ALERT, caplog)
    assert line["message"] == describe(ALERT)
    assert (line["stream"], line["id"], line["status"], line["severity"]) == ("web", "a/1", "firing", "critical")
    assert (line["score"], line["threshold"], line["started_at"]) == (5.5, 4.5, "2014-11-02T01:00:00Z")
    assert (line["observed"], line["expected"]) == ({"cpu": 0.9, "code": "E42"}, {"cpu": 0.4, "code": None})
    assert line["upper"] == {"cpu": None}
    assert (line["channel"], line["feature"], line["return_period"]) == ("forecast", "cpu", "once in 11 days")
    assert (line["summary"], line["evidence"]) == (ALERT.summary, ALERT.evidence)
    assert "features_left_out" not in line


def test_the_json_log_line_of_a_wide_alert_has_its_leading_features(caplog: pytest.LogCaptureFixture) -> None:
    values = {f"f{number}": float(number) for number in range(1_000)}
    wide = dataclasses.replace(
        ALERT, observed=values, expected=values, lower=values, upper=values, contributions=values
    )
    line = logged(wide, caplog)
    assert line["features_left_out"] == 980
    assert line["evidence"] == ALERT.evidence
    assert line["observed"] == {f"f{number}": float(number) for number in range(999, 979, -1)}
