"""Which anomalies alert: the operator's rules, severity, incidents, and the budget of alerts."""

import math

import msgspec
import numpy as np
import pytest

from connectors.batches import Partition
from connectors.encode import score_records
from detector.engine.engine import Engine
from detector.scoring.incidents import REFRACTORY, AlertRules, alert_id
from detector.scoring.news import QUIET
from detector.scoring.rules import StreamRule
from detector.scoring.threshold import MIN_THRESHOLD_ONE, MIN_THRESHOLD_SEVERAL, YOUTH, threshold_of, youth
from tests.detector.engine.support import fired, noisy, rows_of, ruled, scored
from tests.streams import (
    MINUTE,
    START,
    WEEK,
    Event,
    batch_of,
    clock,
    numbered,
    run,
    seasonal,
    table,
    wide,
)
from training.network.weights import Weights


def both_ways(features: int = 1) -> list[Event]:
    """A spike upwards at row 1500 and one downwards at 1800, by 5 from about 10."""
    value = noisy(2000, features)
    value[1500, 0] += 5.0
    value[1800, 0] -= 5.0
    return wide("s", clock(2000), value)


@pytest.mark.parametrize("features", [1, 6])
@pytest.mark.parametrize(
    ("rules", "rows"),
    [
        ({}, {1500, 1800}),
        ({"direction": 1}, {1500}),
        ({"direction": -1}, {1800}),
        ({"min_deviation_absolute": 3.5}, {1500, 1800}),
        ({"min_deviation_absolute": 8.0}, set()),
        ({"min_deviation_relative": 0.25}, {1500, 1800}),
        ({"min_deviation_relative": 0.9}, set()),
        ({"min_duration_seconds": 600.0}, set()),
        ({"fixed_threshold": 60.0}, set()),
    ],
)
def test_alert_rules_decide_which_anomalies_alert(
    model: Weights, features: int, rules: dict[str, object], rows: set[int]
) -> None:
    outcome = ruled(model, both_ways(features), **rules)

    assert set(rows_of(fired(outcome))) & {1500, 1800} == rows
    if "fixed_threshold" in rules:
        assert (outcome.threshold == 60.0).all()
    least = MIN_THRESHOLD_ONE if features == 1 else MIN_THRESHOLD_SEVERAL
    assert (outcome.score[[1500, 1800]] > least).all()  # scores know nothing of rules


def test_a_lasting_anomaly_alerts_after_the_min_duration(model: Weights) -> None:
    value = noisy(2000, 6)
    value[1500:1512] += 6.0 * np.sign(np.arange(12) % 2 - 0.5)[:, None]

    late = rows_of(fired(ruled(model, wide("s", clock(2000), value), min_duration_seconds=900.0)))

    assert late == [1503]


def test_the_first_rule_that_matches_a_stream_holds_for_its_alerts(model: Weights) -> None:
    events = both_ways()
    names = ["db/cpu", "test/cpu", "up/cpu", "up/mem", "x"]
    rules = (
        StreamRule("tests", ("test/*",), muted=True),
        StreamRule("up", ("up/*",), AlertRules(direction=1, fixed_threshold=3.5), severity="critical"),
        StreamRule("late", ("up/mem", "db/*"), AlertRules(direction=-1), severity="warning"),
    )

    outcome = scored(model, [e._replace(stream=name) for e in events for name in names], by_pattern=rules)

    found = {(a.stream, a.rule, "up" if a.observed["f0"] > a.expected["f0"] else "down") for a in fired(outcome)}
    assert found == {
        ("db/cpu", "late", "down"), ("up/cpu", "up", "up"), ("up/mem", "up", "up"), ("x", "", "up"), ("x", "", "down")
    }  # fmt: skip
    severities = {(alert.rule, alert.severity) for alert in outcome.alerts if alert.rule}
    assert severities == {("up", "critical"), ("late", "warning")}
    assert {t for k, t in enumerate(outcome.threshold) if names[k % 5].startswith("up")} == {3.5}


def test_streams_are_muted_by_pattern(model: Weights) -> None:
    events = both_ways()
    named = [e._replace(stream=name) for e in events for name in ("test-1/cpu", "prod-1/cpu")]

    outcome = scored(model, named, by_pattern=(StreamRule("tests", ("test-*/*",), muted=True),))

    assert {alert.stream for alert in outcome.alerts} == {"prod-1/cpu"}
    assert outcome.score.reshape(-1, 2)[1500].min() > 3.0


def test_an_alert_has_stream_times_origin_values_and_score(model: Weights) -> None:
    value = noisy(2000, 4)
    value[1500:1503, 2] += 8.0
    events = [e._replace(partition=Partition("metrics", 3)) for e in wide("web-1", clock(2000), value)]

    outcome = scored(model, events)
    firing = next(a for a in fired(outcome) if a.offset == 1500)
    resolved = next(a for a in outcome.alerts if a.id == firing.id and a.status == "resolved")

    assert (firing.stream, firing.topic, firing.partition) == ("web-1", "metrics", 3)
    assert firing.id == alert_id("web-1", int(clock(2000)[1500]))
    assert firing.started_at == clock(2000)[1500]
    assert firing.ended_at is None
    assert firing.score == outcome.score[1500] > firing.threshold
    assert max(firing.contributions, key=lambda name: firing.contributions[name]) == "f2"
    assert sum(firing.contributions.values()) == pytest.approx(1.0)
    assert firing.observed == {f"f{k}": value[1500, k] for k in range(4)}
    assert firing.lower["f2"] < firing.expected["f2"] < firing.upper["f2"] < firing.observed["f2"]
    assert firing.expected["f2"] == pytest.approx(10.0, abs=1.6)
    assert firing.model_version == Engine(model).version

    assert resolved.ended_at is not None
    # the last news is one of the three events, and what it left in the level is told until it has been quiet
    assert clock(2000)[1500 + REFRACTORY] <= resolved.ended_at <= clock(2000)[1502 + REFRACTORY + QUIET]
    assert resolved.score == outcome.score[1500:1503].max()
    unchanged = ("stream", "started_at", "topic", "partition", "offset", "model_version")
    assert [getattr(resolved, name) for name in unchanged] == [getattr(firing, name) for name in unchanged]


def test_a_score_far_above_the_threshold_is_critical(model: Weights) -> None:
    events = both_ways()

    lenient = fired(ruled(model, events, critical_above_threshold=100.0))
    strict = fired(ruled(model, events, critical_above_threshold=0.0))

    assert {alert.severity for alert in lenient} == {"warning"}
    assert {alert.severity for alert in strict} == {"critical"}


@pytest.mark.parametrize("features", [1, 6])
def test_an_incident_of_an_hour_is_one_alert(model: Weights, features: int) -> None:
    value = noisy(2000, features)
    value[1500:1512] += 4.0
    outcome = scored(model, wide("s", clock(2000), value))

    during = [a for a in outcome.alerts if 1500 <= rows_of([a])[0] < 1512 + REFRACTORY]

    assert [alert.status for alert in during] == ["firing", "resolved"]


def test_a_repeated_anomaly_alerts_as_long_as_it_is_rare(model: Weights) -> None:
    """The same spike once a week is told every time, once in twenty events it is the stream's habit."""
    rows = 8 * 2016
    calm = noisy(rows)
    rare, often = np.arange(2016 + 100, rows, 2016), np.sort(np.random.default_rng(8).choice(rows, rows // 20))
    found = {}
    for name, spikes in {"rare": rare, "often": often}.items():
        value = calm.copy()
        value[spikes] += 3.0
        found[name] = scored(model, wide("s", clock(rows), value))

    assert found["rare"].alert[rare].all()
    late = often[often > rows // 2]
    assert (found["often"].score[late] <= found["often"].threshold[late]).all()


@pytest.mark.parametrize(("step", "rows"), [(1 * MINUTE, 30_240), (5 * MINUTE, 12_096)], ids=["1 min", "5 min"])
def test_clean_streams_of_one_feature_stay_within_the_alert_budget(model: Weights, step: int, rows: int) -> None:
    """Daily waves with noise, nothing wrong: at most twice as many alerts as asked for."""
    rng = np.random.default_rng(5)
    time = clock(rows, step)
    names = [f"s{k}" for k in range(12)]
    value = np.stack([seasonal(rng, time, noise=float(rng.choice([0.02, 0.1, 0.5]))) for _ in names], axis=1)

    outcome = run(
        Engine(model), (table(names, time[a : a + 1000], value[a : a + 1000], a * 12) for a in range(0, rows, 1000))
    )

    weeks = rows * step / WEEK * len(names)
    rate = len(fired(outcome)) / weeks
    budget = AlertRules().alerts_per_stream_per_week
    assert rate <= 2 * budget, f"{rate:.2f} alerts a stream and week, asked for at most {budget}"


def test_streams_started_together_do_not_all_alert_after_their_first_day(model: Weights) -> None:
    """From then on the hour's usual level is known; the start of that comparison must not alert."""
    rng = np.random.default_rng(6)
    time = clock(2 * 288, start=START + 37 * MINUTE)
    names = [f"s{k}" for k in range(24)]
    value = np.stack([seasonal(rng, time, noise=0.2) for _ in names], axis=1)

    alerts = fired(run(Engine(model), [table(names, time, value)]))

    day_is_over = time[0] + 288 * 5 * MINUTE
    together = [alert for alert in alerts if abs(alert.started_at - day_is_over) < 60 * MINUTE]
    assert len(together) <= 4, "one in six at most; each of them did while levels began with their first day's zero"


@pytest.mark.parametrize("features", [3, 8])
def test_clean_streams_of_several_features_stay_within_the_alert_budget(model: Weights, features: int) -> None:
    rows, streams, count = 8064, 6, 0
    for seed in range(streams):
        outcome = scored(model, wide("s", clock(rows), noisy(rows, features, seed)))
        count += len(fired(outcome))

    rate = count / (streams * rows * 5 * MINUTE / WEEK)
    budget = AlertRules().alerts_per_stream_per_week
    assert rate <= 2 * budget, f"{rate:.2f} alerts a stream and week, asked for at most {budget}"


def test_a_young_stream_speaks_if_what_it_says_is_large_and_else_is_marked_young(model: Weights) -> None:
    value = seasonal(np.random.default_rng(4), clock(500, MINUTE))
    value[[150, 450]] += 9.0
    engine = Engine(model)

    step = engine.step(batch_of(numbered(wide("s", clock(500, MINUTE), value[:, None]))))

    records = [msgspec.json.decode(body) for _, body in score_records(step.scores)]
    old_enough = threshold_of(60.0, AlertRules().alerts_per_stream_per_week, math.nan, False)
    wanted = [old_enough + YOUTH * youth(old_enough, k) for k in range(len(records))]
    assert [record["threshold"] for record in records[2:]] == pytest.approx(wanted[2:])
    above = [k for k, record in enumerate(records) if record["score"] > record["threshold"]]
    held_back = [k for k, record in enumerate(records) if record.get("held_back") == "young"]
    assert above == [150, 450]
    assert held_back == [k for k, record in enumerate(records) if old_enough < record["score"] <= wanted[k]]
    assert held_back
    missing = [record.get("missing_events", 0) for record in records]
    assert missing == [math.ceil(10**old_enough - k - 1) if k in held_back else 0 for k in range(len(records))]
    assert [alert.offset for alert in step.alerts if alert.status == "firing"] == above
