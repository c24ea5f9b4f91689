"""What an alert says: the channel that spoke with its own numbers, none of which belies it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict

import msgspec
import numpy as np
import pytest

from connectors.batches import CHANNELS, Alert
from connectors.encode import score_records
from connectors.words import return_periods
from detector.engine.engine import Engine, EngineSettings, Step
from detector.engine.results import EVIDENCE, evidence_of
from detector.scoring.batch import VERDICT
from detector.scoring.incidents import AlertRules
from tests.streams import MINUTE, Event, batch_of, clock, numbered, seasonal, wide
from training.network.weights import Weights

ROWS = 14 * 288
COLUMNS = "observed", "expected", "lower", "upper", "seconds", "usual_seconds"
NAMES = {  # of the evidence, by channel: what may stand there
    "forecast": {"observed", "expected", "lower", "upper"},
    "level": {"level", "usual", "lower", "upper"},
    "still": {"seconds", "usual_longest_seconds"},
    "coupling": {"observed", "expected"},
    "novel": {"observed", "nearest", "nearest_seconds_ago", "expected"},
    "symbol": {"observed_probability", "expected_probability"},
}


def troubled() -> list[Event]:
    """Streams that each find trouble of another kind in their last days."""
    rng = np.random.default_rng(11)
    time = clock(ROWS)
    spike, stuck, night, wild = (seasonal(rng, time) for _ in range(4))
    spike[3800] += 5.0
    stuck = np.round(stuck, 2)
    stuck[::7] = stuck[1::7]  # repeats now and then
    stuck[3700:] = stuck[3700]
    night[3600:] += 0.8
    wild[3500] = 65_535.0
    common = seasonal(rng, time)
    several = common[:, None] * np.array([1.0, 3.0, 0.5, 7.0]) + 0.05 * rng.standard_normal((ROWS, 4))
    several[3600:3700, 1] = several[3600:3700, 1][::-1] + 1.5
    words = [Event("words", t, {"code": "new" if k == 3900 else f"E{k % 3}"}) for k, t in enumerate(time.tolist())]
    single = {"spike": spike, "stuck": stuck, "night": night, "wild": wild}
    events = [event for name, value in single.items() for event in wide(name, time, value[:, None])]
    return numbered([*events, *wide("several", time, several), *words])


@pytest.fixture(scope="module")
def step(model: Weights) -> Step:
    return Engine(model, EngineSettings(rules=AlertRules(alerts_per_stream_per_week=10.0))).step(batch_of(troubled()))


def firing(step: Step) -> list[Alert]:
    return [alert for alert in step.alerts if alert.status == "firing"]


def test_each_trouble_is_told_by_its_own_channel(step: Step) -> None:
    said = defaultdict(set)
    for alert in firing(step):
        said[alert.stream].add(alert.channel)
    assert "forecast" in said["spike"]
    assert "still" in said["stuck"]
    assert said["words"] == {"symbol"}
    assert "novel" in set().union(*said.values())


def test_no_alert_stands_inside_the_band_it_prints(step: Step) -> None:
    banded = 0
    for alert in firing(step):
        if alert.channel == "symbol":
            assert alert.feature not in alert.lower
            continue
        lower, upper, observed = alert.lower[alert.feature], alert.upper[alert.feature], alert.observed[alert.feature]
        if not math.isnan(lower):
            assert alert.channel == "forecast"
            assert not lower <= float(observed) <= upper
            banded += 1
        if "[" in alert.summary:
            found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", alert.summary.rpartition(": ")[2])
            shown = [float(text.replace(",", "")) for text in found]
            assert not shown[-2] <= shown[0] <= shown[-1]
        value = alert.evidence.get("level", alert.evidence.get("observed", math.nan))
        assert not alert.evidence.get("lower", math.inf) <= value <= alert.evidence.get("upper", -math.inf)
    assert banded > 0


def test_the_evidence_is_the_channels_and_leads_by_the_largest_share(step: Step) -> None:
    for alert in firing(step):
        assert alert.evidence.keys() <= NAMES[alert.channel]
        assert not any(map(math.isnan, alert.evidence.values()))
        assert sum(alert.contributions.values()) == pytest.approx(1.0)
        assert alert.contributions[alert.feature] == max(alert.contributions.values())
        if alert.channel == "forecast":
            assert alert.expected[alert.feature] == alert.evidence["expected"]
            assert alert.observed[alert.feature] == alert.evidence["observed"]


def test_a_value_that_is_new_was_not_met_before(step: Step) -> None:
    values: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for event in troubled():
        values[event.stream] += [(event.time, value) for value in event.values.values() if isinstance(value, float)]
    told = [alert for alert in firing(step) if "nearest" in alert.evidence]
    assert told
    for alert in told:
        before = [value for time, value in values[alert.stream] if time < alert.started_at]
        assert alert.evidence["observed"] not in before


def test_an_alert_says_of_its_event_what_the_scores_say(step: Step) -> None:
    records = {record["offset"]: record for record in (msgspec.json.decode(r) for _, r in score_records(step.scores))}
    for alert in firing(step):
        record = records[alert.offset]
        names = "score", "threshold", "rank", "channel", "return_period"
        assert [getattr(alert, name) for name in names] == [record[name] for name in names]


def test_every_event_has_a_rank_and_no_two_of_a_stream_the_same(step: Step) -> None:
    scores = step.scores
    assert np.isfinite(scores.rank).all()
    assert (scores.rank >= 0).all()
    assert (scores.channel[scores.score == 0] == -1).all()
    assert ((scores.channel >= 0) == (scores.score > 0)).all()
    for name in ("spike", "night", "several"):
        mine = (scores.batch.stream[scores.event] == scores.batch.streams.index(name)) & ~scores.warming
        assert len(np.unique(scores.rank[mine])) == mine.sum()


def test_an_incident_ends_with_the_reason(step: Step) -> None:
    ends = defaultdict(set)
    for alert in step.alerts:
        if alert.status == "resolved":
            ends[alert.stream, alert.channel].add(alert.resolved_by)
    assert ends["spike", "forecast"] == {"back"}
    assert set().union(*ends.values()) == {"back", "accepted"}


def verdict_of(**values: float) -> np.void:
    verdict = np.zeros(1, VERDICT)[0]
    for name in COLUMNS:
        verdict[name] = values.get(name, math.nan)
    return verdict


def test_a_value_met_before_whose_error_is_new_is_told_by_its_distance_from_the_forecast() -> None:
    by_value, by_error = verdict_of(observed=3.0, expected=2.0, seconds=60.0), verdict_of(observed=3.0, expected=7.0)
    assert evidence_of("novel", by_value) == {"observed": 3.0, "nearest": 2.0, "nearest_seconds_ago": 60.0}
    assert evidence_of("novel", by_error) == {"observed": 3.0, "expected": 7.0}


def test_every_channel_has_a_kind_of_evidence() -> None:
    assert {*EVIDENCE, "symbol"} == set(CHANNELS) == set(NAMES)


def test_an_open_alert_stored_before_alerts_had_channels_is_read(step: Step) -> None:
    new = {"channel", "feature", "rank", "return_period", "summary", "evidence"}
    former = {name: value for name, value in dataclasses.asdict(firing(step)[0]).items() if name not in new}
    alert = msgspec.msgpack.decode(msgspec.msgpack.encode(former), type=Alert)
    assert (alert.id, alert.channel, alert.summary, alert.evidence) == (former["id"], "", "", {})


def test_a_return_period_in_an_alert_is_that_of_its_score(step: Step) -> None:
    for alert in firing(step):
        if alert.started_at > clock(1)[0] + 100 * 5 * MINUTE:
            assert alert.return_period == return_periods(np.array([alert.score]), np.array([300.0]))[0]
