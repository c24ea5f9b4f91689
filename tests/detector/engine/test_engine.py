"""How streams with known problems fare at the shipped settings: the engine as the daemon runs it."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest

from connectors.batches import Alert, Partition
from connectors.encode import score_records
from detector.engine.batch_layout import MAX_LANES
from detector.engine.engine import Engine, EngineSettings
from detector.scoring.incidents import MIN_THRESHOLD_MANY, REFRACTORY_MANY, REFRACTORY_SINGLE, AlertRules, alert_id
from detector.scoring.judge import NOVELTY_WARMUP, RETURN_WARMUP
from tests.streams import (
    DAY,
    MINUTE,
    START,
    WEEK,
    Event,
    Outcome,
    batch_of,
    clock,
    in_batches,
    numbered,
    run,
    seasonal,
    table,
    wide,
)
from training.network.weights import Weights, load_prior


@pytest.fixture(scope="module")
def model() -> Weights:
    return load_prior()


def scored(model: Weights, events: list[Event], **settings: object) -> Outcome:
    return run(Engine(model, EngineSettings(**settings)), in_batches(numbered(events), 1000))


def ruled(model: Weights, events: list[Event], **rules: object) -> Outcome:
    return scored(model, events, rules=AlertRules(**rules))


def fired(outcome: Outcome) -> list[Alert]:
    return [alert for alert in outcome.alerts if alert.status == "firing"]


def rows_of(alerts: list[Alert]) -> list[int]:
    """Rows at which alerts began, of a stream with an event every five minutes."""
    return [(alert.started_at - int(clock(1)[0])) // (5 * MINUTE) for alert in alerts]


def noisy(rows: int, features: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([seasonal(rng, clock(rows)) for _ in range(features)], axis=1)


# --- Young streams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("features", "warmup"), [(1, NOVELTY_WARMUP), (3, RETURN_WARMUP), (8, RETURN_WARMUP)])
def test_a_young_stream_says_that_it_is_and_scores_nothing(model: Weights, features: int, warmup: int) -> None:
    engine = Engine(model)
    events = numbered(wide("s", clock(400), noisy(400, features)))

    early = run(engine, in_batches(events[: warmup - 2], 50))
    assert early.warming.all()
    assert not early.score.any()
    assert engine.warming() == 1

    late = run(engine, in_batches(events[warmup - 2 :], 50))
    assert not late.warming[3:].any()
    assert late.score.any()
    assert engine.warming() == 0


def test_a_forecast_is_there_from_the_second_event(model: Weights) -> None:
    outcome = scored(model, wide("s", clock(5), noisy(5)))

    assert math.isnan(outcome.expected[0])
    assert np.isfinite(outcome.expected[1:]).all()
    assert (outcome.lower[1:] <= outcome.expected[1:]).all()
    assert (outcome.upper[1:] >= outcome.expected[1:]).all()


# --- Constant streams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 3, 6])
@pytest.mark.parametrize("level", [0.0, 5.0, -1e4])
def test_a_constant_stream_is_silent_alarms_at_a_change_and_falls_silent_again(
    model: Weights, features: int, level: float
) -> None:
    value = np.full((3000, features), level)
    value[1000:, :] += 3.0
    value[2000:, :] -= 4.0

    outcome = scored(model, wide("s", clock(3000), value))

    assert outcome.score[:1000].max() < 0.5
    assert [row // 2 * 2 for row in rows_of(fired(outcome))] == [1000, 2000]  # a second event may have to confirm
    for after in (1000, 2000):
        assert outcome.score[after] > outcome.threshold[after]
        calm = outcome.score[after + 300 : after + 1000]
        assert (calm <= outcome.threshold[after]).mean() > 0.98
    assert [alert.status for alert in outcome.alerts] == ["firing", "resolved"] * 2


def test_a_tiny_change_of_a_constant_stream_is_a_change(model: Weights) -> None:
    value = np.full((800, 1), 5.0)
    value[600:] = 5.001

    assert rows_of(fired(scored(model, wide("s", clock(800), value)))) == [600]


# --- Times ------------------------------------------------------------------------------------------------------------


def test_late_and_duplicate_events_are_counted_and_dropped_or_scored_by_setting(model: Weights) -> None:
    events = wide("s", clock(100), noisy(100))
    troubled = [*events[:60], events[59], events[30], events[59], *events[60:]]

    dropped = scored(model, troubled)
    kept = scored(model, troubled, keep_late=True, keep_duplicates=True)
    one_kind = scored(model, troubled, keep_late=True)

    assert (dropped.duplicates, dropped.late, len(dropped.score)) == (2, 1, 100)
    assert (kept.duplicates, kept.late, len(kept.score)) == (2, 1, 103)
    assert (one_kind.duplicates, one_kind.late, len(one_kind.score)) == (2, 1, 101)
    clean = scored(model, events)
    np.testing.assert_array_equal(dropped.score, clean.score)
    np.testing.assert_array_equal(dropped.expected, clean.expected)


def test_timestamps_off_the_grid_are_as_good_as_on_it(model: Weights) -> None:
    rng = np.random.default_rng(1)
    rows = 3000
    jittered = clock(rows) + rng.integers(-100, 100, rows) * 1_000_000_000
    random = clock(1)[0] + np.cumsum(rng.exponential(5 * MINUTE, rows).astype(np.int64) + 1)
    for time in (jittered, random):
        value = seasonal(rng, time)
        value[2500] += 3.0

        outcome = scored(model, wide("s", time, value[:, None]))

        assert outcome.score[2500] > outcome.threshold[2500]
        assert len(fired(outcome)) <= 10  # in ten days; a budget of 7 a week


@pytest.mark.parametrize("features", [1, 6])
def test_a_gap_of_a_week_is_no_anomaly_and_blinds_nobody(model: Weights, features: int) -> None:
    time = clock(3000)
    time[2000:] += WEEK
    rng = np.random.default_rng(2)
    value = np.stack([seasonal(rng, time) for _ in range(features)], axis=1)
    value[2100, 0] += 4.0

    outcome = scored(model, wide("s", time, value))

    assert (outcome.score[2000:2050] < 4.0).all()
    assert outcome.score[2100] > outcome.threshold[2100]
    assert outcome.threshold[2050] == pytest.approx(outcome.threshold[1999], abs=0.05)  # the gap is not its rhythm


def test_a_stream_on_two_partitions_is_told_by_name(model: Weights) -> None:
    engine = Engine(model)
    one, two = Partition("metrics", 0), Partition("metrics", 1)
    steady = [Event("steady", t, {"x": 1.0}, partition=two) for t in range(1, 10)]
    split = [Event("split", t, {"x": 1.0}, partition=one if t % 3 else two) for t in range(1, 10)]

    assert engine.step(batch_of(numbered(steady + split))).repartitioned == ["split"]
    assert engine.step(batch_of([Event("steady", 20, {"x": 1.0}, partition=two)])).repartitioned == []
    assert engine.step(batch_of([Event("steady", 21, {"x": 1.0}, partition=one)])).repartitioned == ["steady"]


# --- Features ---------------------------------------------------------------------------------------------------------


def test_the_order_of_features_says_nothing(model: Weights) -> None:
    events = wide("s", clock(600), noisy(600, 5))
    turned = [e._replace(values=dict(reversed(e.values.items()))) if k % 2 else e for k, e in enumerate(events)]

    one, two = scored(model, events), scored(model, turned)

    np.testing.assert_allclose(two.score, one.score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("features", [2, 6])
def test_missing_values_are_missing_not_zero(model: Weights, features: int) -> None:
    value = noisy(3000, features) + 100
    rng = np.random.default_rng(3)
    holes = rng.random(value.shape) < 0.2
    holes[:, 0] = False
    value[holes] = np.nan
    value[2500, 0] += 4.0

    outcome = scored(model, wide("s", clock(3000), value))

    assert outcome.observations.tolist() == (~np.isnan(value)).sum(axis=1).tolist()
    assert np.nanmin(outcome.expected) > 90
    assert outcome.score[2500] > outcome.threshold[2500]
    assert len(fired(outcome)) <= 8


def test_features_past_the_limit_are_dropped_and_counted_and_the_rest_scored(model: Weights) -> None:
    engine = Engine(model)
    crowd = {f"f{k}": float(k) for k in range(MAX_LANES + 5)}

    steps = [engine.step(batch_of([Event("s", t, crowd)])) for t in range(1, 4)]

    assert [step.features_dropped for step in steps] == [5, 5, 5]
    assert engine.lane_count() == MAX_LANES
    assert np.diff(steps[-1].scores.start).tolist() == [MAX_LANES]
    assert (steps[-1].scores.observation < MAX_LANES).all()
    alone = engine.step(batch_of([Event("s", 9, {"another": 1.0})]))
    assert alone.features_dropped == 1
    assert len(alone.scores) == 1


def test_an_empty_batch_and_an_event_without_values_do_no_harm(model: Weights) -> None:
    engine = Engine(model)

    assert len(engine.step(batch_of([])).scores) == 0
    step = engine.step(batch_of([Event("s", 1, {}), Event("s", 2, {"x": 1.0}), Event("s", 3, {})]))
    assert step.scores.score.tolist() == [0.0, 0.0, 0.0]
    assert np.diff(step.scores.start).tolist() == [0, 1, 0]


# --- What an operator asks for ----------------------------------------------------------------------------------------


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
        ({"fixed_threshold": 9.0}, set()),
    ],
)
def test_rules_say_what_may_alert(model: Weights, features: int, rules: dict[str, object], rows: set[int]) -> None:
    outcome = ruled(model, both_ways(features), **rules)

    assert set(rows_of(fired(outcome))) & {1500, 1800} == rows
    if "fixed_threshold" in rules:
        assert (outcome.threshold == 9.0).all()
    assert (outcome.score[[1500, 1800]] > MIN_THRESHOLD_MANY).all()  # scores know nothing of rules


def test_an_anomaly_that_lasts_alerts_after_the_min_duration(model: Weights) -> None:
    value = noisy(2000, 6)
    value[1500:1512] += 6.0 * np.sign(np.arange(12) % 2 - 0.5)[:, None]

    late = rows_of(fired(ruled(model, wide("s", clock(2000), value), min_duration_seconds=900.0)))

    assert late == [1503]


def test_streams_are_muted_by_pattern(model: Weights) -> None:
    events = both_ways()
    named = [e._replace(stream=name) for e in events for name in ("test-1/cpu", "prod-1/cpu")]

    outcome = scored(model, named, muted_streams=("test-*/*",))

    assert {alert.stream for alert in outcome.alerts} == {"prod-1/cpu"}
    assert outcome.score.reshape(-1, 2)[1500].min() > 3.0


def test_an_alert_tells_what_when_where_and_how_unlikely(model: Weights) -> None:
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
    assert resolved.ended_at >= clock(2000)[1503 + REFRACTORY_MANY - 1]
    assert resolved.score == outcome.score[1500:1503].max()
    unchanged = ("stream", "started_at", "topic", "partition", "offset", "model_version")
    assert [getattr(resolved, name) for name in unchanged] == [getattr(firing, name) for name in unchanged]


def test_what_is_far_above_the_threshold_is_critical(model: Weights) -> None:
    events = both_ways()

    lenient = fired(ruled(model, events, critical_above_threshold=100.0))
    strict = fired(ruled(model, events, critical_above_threshold=0.0))

    assert {alert.severity for alert in lenient} == {"warning"}
    assert {alert.severity for alert in strict} == {"critical"}


@pytest.mark.parametrize(("features", "refractory"), [(1, REFRACTORY_SINGLE), (6, REFRACTORY_MANY)])
def test_an_incident_of_an_hour_is_one_alert(model: Weights, features: int, refractory: int) -> None:
    value = noisy(2000, features)
    value[1500:1512] += 4.0
    outcome = scored(model, wide("s", clock(2000), value))

    during = [a for a in outcome.alerts if 1500 <= rows_of([a])[0] < 1512 + refractory]

    assert [alert.status for alert in during] == ["firing", "resolved"]


def test_flagged_repeats_are_told_longer_than_learnt_ones(model: Weights) -> None:
    """The same spike every day for a month: news at first, then the stream's habit, unless each is to be told."""
    rows = 40 * 288
    value = noisy(rows)
    spikes = np.arange(10 * 288 + 100, rows, 288)
    value[spikes] += 3.0
    events = wide("s", clock(rows), value)

    learnt, flagged = ruled(model, events), ruled(model, events, flag_repeats=True)

    told = (learnt.score[spikes] > 3.0).sum(), (flagged.score[spikes] > 3.0).sum()
    assert told[0] >= 1
    assert told[1] >= told[0]
    assert flagged.score[spikes].mean() > learnt.score[spikes].mean() + 0.1


# --- Budget -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "rows"), [(1 * MINUTE, 30_240), (5 * MINUTE, 12_096)], ids=["1 min", "5 min"])
def test_clean_streams_of_one_feature_keep_to_the_budget(model: Weights, step: int, rows: int) -> None:
    """Daily waves with noise, nothing wrong: about as many alerts as asked for at most (measured: 1.4 to 6.8)."""
    rng = np.random.default_rng(5)
    time = clock(rows, step)
    names = [f"s{k}" for k in range(12)]
    value = np.stack([seasonal(rng, time, noise=float(rng.choice([0.02, 0.1, 0.5]))) for _ in names], axis=1)

    outcome = run(
        Engine(model), (table(names, time[a : a + 1000], value[a : a + 1000], a * 12) for a in range(0, rows, 1000))
    )

    weeks = rows * step / WEEK * len(names)
    rate = len(fired(outcome)) / weeks
    assert rate <= 10.0, f"{rate:.2f} alerts a stream and week, asked for at most 7"


def test_streams_that_began_together_do_not_all_alert_when_their_first_day_is_over(model: Weights) -> None:
    """What the hour's usual level is, is known from then on; that a level begins to be judged is no news."""
    rng = np.random.default_rng(6)
    time = clock(2 * 288, start=START + 37 * MINUTE)
    names = [f"s{k}" for k in range(24)]
    value = np.stack([seasonal(rng, time, noise=0.2) for _ in names], axis=1)

    alerts = fired(run(Engine(model), [table(names, time, value)]))

    day_is_over = time[0] + 288 * 5 * MINUTE
    together = [alert for alert in alerts if abs(alert.started_at - day_is_over) < 60 * MINUTE]
    assert len(together) <= 4, "one in six at most; each of them did while levels began with their first day's zero"


@pytest.mark.parametrize("features", [3, 8])
def test_clean_streams_of_more_features_keep_to_the_budget(model: Weights, features: int) -> None:
    rows, streams, count = 8064, 6, 0
    for seed in range(streams):
        outcome = scored(model, wide("s", clock(rows), noisy(rows, features, seed)))
        count += len(fired(outcome))

    rate = count / (streams * rows * 5 * MINUTE / WEEK)
    assert rate <= 10.0, f"{rate:.2f} alerts a stream and week, asked for at most 7"


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_no_more_streams_stay_than_are_allowed_and_the_longest_idle_go(model: Weights) -> None:
    engine = Engine(model, EngineSettings(max_streams=3))
    engine.step(batch_of([Event(name, t, {"x": 1.0}) for t, name in enumerate("abc", 1)]))
    engine.step(batch_of([Event("a", 10, {"x": 1.0})]))

    step = engine.step(batch_of([Event("d", 11, {"x": 1.0}), Event("e", 12, {"x": 1.0})]))

    assert step.evicted == 2
    assert set(engine.states.slots) == {"a", "d", "e"}
    assert engine.pending_count == 2
    assert {name for name, _ in engine.drain()} == set("abcde")
    assert engine.pending_count == 0
    assert list(engine.drain()) == []


def test_only_what_changed_is_drained(model: Weights) -> None:
    engine = Engine(model)
    engine.step(batch_of([Event(name, 1, {"x": 1.0}) for name in "abc"]))
    assert {name for name, _ in engine.drain()} == set("abc")

    engine.step(batch_of([Event("b", 2, {"x": 1.0})]))

    assert {name for name, _ in engine.drain()} == {"b"}


def test_settings_are_those_that_ship() -> None:
    """What these tests prove they prove of the defaults."""
    assert dataclasses.asdict(EngineSettings())["rules"]["alerts_per_stream_per_week"] == 7.0
    assert EngineSettings().rules.flag_repeats is False
    assert EngineSettings().keep_late is EngineSettings().keep_duplicates is False
    assert DAY == 86_400 * 1_000_000_000


def test_a_score_above_the_threshold_of_a_stream_too_young_to_alert_says_so(model: Weights) -> None:
    value = seasonal(np.random.default_rng(4), clock(500, MINUTE))
    value[[150, 450]] += 9.0  # at one event a minute and the default budget a stream alerts from the 360th on
    engine = Engine(model)

    step = engine.step(batch_of(numbered(wide("s", clock(500, MINUTE), value[:, None]))))

    records = [msgspec.json.decode(body) for _, body in score_records(step.scores)]
    above = [k for k, record in enumerate(records) if record["score"] > record["threshold"]]
    assert {150, 450} <= set(above)
    assert [k for k, record in enumerate(records) if record.get("held_back") == "young"] == [
        k for k in above if k < 360
    ]
    assert [alert.offset for alert in step.alerts if alert.status == "firing"] == [k for k in above if k >= 360][:1]
