"""How streams with known problems fare at the shipped settings: the engine as the daemon runs it."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from connectors.batches import Partition
from detector.engine.batch_layout import MAX_LANES
from detector.engine.engine import Engine, EngineSettings
from detector.scoring.claims import NOVEL_WARM_UP_EVENTS, WARM_UP_EVENTS
from tests.detector.engine.support import fired, noisy, rows_of, scored
from tests.streams import (
    DAY,
    MINUTE,
    WEEK,
    Event,
    batch_of,
    clock,
    in_batches,
    numbered,
    run,
    seasonal,
    wide,
)
from training.network.weights import Weights


@pytest.mark.parametrize("features", [1, 3, 8])
def test_a_young_stream_is_warming_up_and_scores_zero(model: Weights, features: int) -> None:
    engine = Engine(model)
    events = numbered(wide("s", clock(400), noisy(400, features)))

    early = run(engine, in_batches(events[:WARM_UP_EVENTS], 7))
    assert early.warming.all()
    assert not early.score[: NOVEL_WARM_UP_EVENTS + 1].any()
    assert engine.streams.census().warming == 1

    late = run(engine, in_batches(events[WARM_UP_EVENTS:], 50))
    assert not late.warming.any()
    assert late.score.any()
    assert engine.streams.census().warming == 0


def test_forecasts_begin_with_the_second_event(model: Weights) -> None:
    value = noisy(5)
    outcome = scored(model, wide("s", clock(5), value))

    assert math.isnan(outcome.expected[0])
    assert (np.abs(outcome.expected[1:] - value[1:, 0]) > 1e-3).all()  # none knows its own event
    assert np.isfinite(outcome.expected[1:]).all()
    assert (outcome.lower[1:] <= outcome.expected[1:]).all()
    assert (outcome.upper[1:] >= outcome.expected[1:]).all()


@pytest.mark.parametrize("appears", [[800], range(800, 1500, 144)], ids=["once", "now and then"])
def test_a_feature_that_appears_midway_restarts_nothing(model: Weights, appears: Sequence[int]) -> None:
    value = np.column_stack([noisy(1500), np.full(1500, np.nan)])
    value[1300, 0] += 6.0
    alone = scored(model, wide("s", clock(1500), value[:, :1]))
    value[appears, 1] = 3.0

    outcome = scored(model, wide("s", clock(1500), value))

    assert (outcome.warming == alone.warming).all()
    lone = outcome.observations == 1
    np.testing.assert_array_equal(outcome.score[:800], alone.score[:800])
    assert outcome.score[1300] > outcome.threshold[1300]
    of_first = np.cumsum(outcome.observations) - outcome.observations  # the first feature's place in each event
    np.testing.assert_array_equal(outcome.expected[of_first], alone.expected)
    assert (np.abs(outcome.score - alone.score)[lone] < 0.5).all()
    assert len(fired(outcome)) == len(fired(alone))


@pytest.mark.parametrize("features", [1, 3, 6])
@pytest.mark.parametrize("level", [0.0, 5.0, -1e4])
def test_a_constant_stream_alerts_only_at_a_change(model: Weights, features: int, level: float) -> None:
    value = np.full((3000, features), level)
    value[1000:, :] += 3.0
    value[2000:, :] -= 12.0  # larger than what its units remember: one like the first is not rare any more

    outcome = scored(model, wide("s", clock(3000), value))

    assert outcome.score[:1000].max() < 0.5
    assert [row // 2 * 2 for row in rows_of(fired(outcome))] == [1000, 2000]  # a second event may have to confirm
    for after in (1000, 2000):
        assert outcome.score[after] > outcome.threshold[after]
        calm = outcome.score[after + 300 : after + 1000]
        assert (calm <= outcome.threshold[after]).mean() > 0.98
    assert [alert.status for alert in outcome.alerts] == ["firing", "resolved"] * 2


def test_a_tiny_change_of_a_constant_stream_alerts(model: Weights) -> None:
    value = np.full((800, 1), 5.0)
    value[600:] = 5.001

    assert rows_of(fired(scored(model, wide("s", clock(800), value)))) == [600]


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


def test_irregular_timestamps_detect_as_well_as_regular_ones(model: Weights) -> None:
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
def test_a_gap_of_a_week_is_no_anomaly_and_detection_continues(model: Weights, features: int) -> None:
    time = clock(3000)
    time[2000:] += WEEK
    rng = np.random.default_rng(2)
    value = np.stack([seasonal(rng, time) for _ in range(features)], axis=1)
    value[2100, 0] += 4.0

    outcome = scored(model, wide("s", time, value))

    assert (outcome.score[2000:2050] < 4.0).all()
    assert outcome.score[2100] > outcome.threshold[2100]
    assert outcome.threshold[2050] == pytest.approx(outcome.threshold[1999], abs=0.05)  # the gap is not its rhythm


def test_a_stream_that_moves_between_partitions_is_reported_by_name(model: Weights) -> None:
    engine = Engine(model)
    one, two = Partition("metrics", 0), Partition("metrics", 1)
    steady = [Event("steady", t, {"x": 1.0}, partition=two) for t in range(1, 10)]
    split = [Event("split", t, {"x": 1.0}, partition=one if t % 3 else two) for t in range(1, 10)]

    assert engine.step(batch_of(numbered(steady + split))).repartitioned == ["split"]
    assert engine.step(batch_of([Event("steady", 20, {"x": 1.0}, partition=two)])).repartitioned == []
    assert engine.step(batch_of([Event("steady", 21, {"x": 1.0}, partition=one)])).repartitioned == ["steady"]


def test_scores_do_not_depend_on_feature_order(model: Weights) -> None:
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


def test_features_above_the_limit_are_dropped_and_counted(model: Weights) -> None:
    engine = Engine(model)
    crowd = {f"f{k}": float(k) for k in range(MAX_LANES + 5)}

    steps = [engine.step(batch_of([Event("s", t, crowd)])) for t in range(1, 4)]

    assert [step.features_dropped for step in steps] == [5, 5, 5]
    assert engine.streams.census().lanes == MAX_LANES
    assert np.diff(steps[-1].scores.start).tolist() == [MAX_LANES]
    assert (steps[-1].scores.observation < MAX_LANES).all()
    alone = engine.step(batch_of([Event("s", 9, {"another": 1.0})]))
    assert alone.features_dropped == 1
    assert len(alone.scores) == 1


def test_an_empty_batch_and_an_event_without_values_are_accepted(model: Weights) -> None:
    engine = Engine(model)

    assert len(engine.step(batch_of([])).scores) == 0
    step = engine.step(batch_of([Event("s", 1, {}), Event("s", 2, {"x": 1.0}), Event("s", 3, {})]))
    assert step.scores.score.tolist() == [0.0, 0.0, 0.0]
    assert np.diff(step.scores.start).tolist() == [0, 1, 0]


def test_above_max_streams_the_longest_idle_streams_are_evicted(model: Weights) -> None:
    engine = Engine(model, EngineSettings(max_streams=3))
    engine.step(batch_of([Event(name, t, {"x": 1.0}) for t, name in enumerate("abc", 1)]))
    engine.step(batch_of([Event("a", 10, {"x": 1.0})]))

    step = engine.step(batch_of([Event("d", 11, {"x": 1.0}), Event("e", 12, {"x": 1.0})]))

    assert step.evicted == 2
    assert set(engine.streams.states.slots) == {"a", "d", "e"}
    assert len(engine.streams.spill) == 2
    assert {name for name, _ in engine.streams.drain()} == set("abcde")
    assert len(engine.streams.spill) == 0
    assert list(engine.streams.drain()) == []


def test_drain_yields_only_changed_streams(model: Weights) -> None:
    engine = Engine(model)
    engine.step(batch_of([Event(name, 1, {"x": 1.0}) for name in "abc"]))
    assert {name for name, _ in engine.streams.drain()} == set("abc")

    engine.step(batch_of([Event("b", 2, {"x": 1.0})]))

    assert {name for name, _ in engine.streams.drain()} == {"b"}


def test_a_name_that_no_event_has_changes_no_stream(model: Weights) -> None:
    engine = Engine(model)
    engine.step(batch_of([Event(name, 1, {"x": 1.0}) for name in "abc"]))
    list(engine.streams.drain())
    batch = batch_of([Event("b", 2, {"x": 1.0})])

    engine.step(replace(batch, streams=[*batch.streams, "d"]))

    assert {name for name, _ in engine.streams.drain()} == {"b"}


def test_these_tests_use_the_shipped_defaults() -> None:
    """What these tests prove they prove of the defaults."""
    assert EngineSettings().rules.alerts_per_stream_per_week == 3.0
    assert EngineSettings().keep_late is EngineSettings().keep_duplicates is False
    assert DAY == 86_400 * 1_000_000_000
