"""The budget of all streams together: what it holds back, what the record says of it, and parity between two rates."""

import math

import msgspec
import numpy as np
import pytest

from connectors.batches import HELD_BACK, EventBatch, Scores
from connectors.encode import score_records
from detector.engine.engine import Engine, EngineSettings
from detector.scoring.batch import VERDICT
from detector.scoring.claims import FORECAST
from detector.scoring.incidents import AlertRules, Case, Limits, watch
from detector.state.records import STREAM
from tests.detector.engine.restarts import Store, assert_same
from tests.detector.scoring.support import rule_of
from tests.streams import MINUTE, Event, batch_of, clock, fleet, in_batches, interleaved, numbered, run, seasonal, wide
from training.network.weights import Weights

ROWS = 3000
OUT = 2900  # the row that is out


def jumping(size: float = 12.0) -> EventBatch:
    rng = np.random.default_rng(3)
    value = 10.0 + rng.standard_normal(ROWS)
    value[OUT] += size
    return batch_of(numbered(wide("s", clock(ROWS, MINUTE), value[:, None])))


def engine_at(model: Weights, events_per_day: float, per_day: float = 10.0, **rules: float) -> Engine:
    engine = Engine(model, EngineSettings(rules=AlertRules(fleet_alerts_per_day=per_day, **rules)))
    engine.fleet_events_per_day = events_per_day
    return engine


def held_back(scores: Scores) -> list[str]:
    return [msgspec.json.decode(body).get("held_back", "") for _, body in score_records(scores)]


@pytest.fixture(scope="module")
def alone(model: Weights) -> Scores:
    """The stream by its own budget: the row that is out is an alert."""
    scores = Engine(model).step(jumping()).scores
    assert scores.alert[OUT]
    return scores


def test_the_stricter_of_the_two_budgets_is_the_threshold(model: Weights, alone: Scores) -> None:
    own = alone.threshold[OUT]
    for rate, wanted in ((1e4, own), (10.0 ** (own + 1.0), own), (10.0 ** (own + 2.5), own + 1.5)):
        found = engine_at(model, rate).step(jumping()).scores
        assert found.threshold[OUT] == pytest.approx(wanted)
    lenient = engine_at(model, 1e4).step(jumping()).scores
    assert np.array_equal(lenient.threshold, alone.threshold)
    assert np.array_equal(lenient.score, alone.score)


def test_what_only_the_fleets_budget_keeps_from_being_an_alert_is_held_back(model: Weights, alone: Scores) -> None:
    score = alone.score[OUT]
    step = engine_at(model, 10.0 ** (score + 1.1)).step(jumping())

    assert step.scores.score[OUT] == score
    assert step.scores.threshold[OUT] == pytest.approx(score + 0.1)
    assert not step.scores.alert[OUT]
    assert not step.alerts
    assert held_back(step.scores)[OUT] == "fleet"
    assert "fleet" not in held_back(alone)


def test_what_is_rarer_still_alerts(model: Weights, alone: Scores) -> None:
    step = engine_at(model, 10.0 ** (alone.score[OUT] + 0.9)).step(jumping())

    assert step.scores.alert[OUT]
    assert held_back(step.scores)[OUT] == ""


@pytest.mark.parametrize(
    ("score", "told", "reason"),
    [
        (4.5, 0.0, "fleet"),
        (5.5, 0.0, "young"),  # the fleet's threshold would let it pass
        (3.5, 0.0, ""),
        (6.5, 0.0, ""),  # an alert
        (4.5, 7.0, ""),  # the tail of a peak that was told
    ],
)
def test_news_above_the_streams_own_threshold_has_a_reason_to_be_no_alert(
    score: float, told: float, reason: str
) -> None:
    s, v = np.zeros(1, STREAM), np.zeros(1, VERDICT)
    s["score"]["told"][0, FORECAST] = told
    v["score"], v["threshold"], v["channel"] = score, 6.0, FORECAST
    watch(s[0], v[0], Case(0, score > 6.0, False, False, False, 1.0, 0.0), Limits(4.0, 5.0), rule_of())

    assert HELD_BACK[v["held_back"][0]] == reason
    assert v["alert"][0] == (score > 6.0)


def test_a_young_streams_event_is_held_back_by_what_would_hold_it_at_any_age(model: Weights) -> None:
    value = seasonal(np.random.default_rng(4), clock(500, MINUTE))
    value[150] += 0.6
    batch = batch_of(numbered(wide("s", clock(500, MINUTE), value[:, None])))
    score = Engine(model).step(batch).scores.score[150]

    assert held_back(engine_at(model, 1.0).step(batch).scores)[150] == "young"
    strict = engine_at(model, 10.0 ** (score + 1.5)).step(batch).scores
    assert held_back(strict)[150] == "fleet"


def test_a_fixed_threshold_knows_no_budget(model: Weights) -> None:
    scores = engine_at(model, 1e12, fixed_threshold=4.0).step(jumping()).scores

    assert set(scores.threshold.tolist()) == {4.0}
    assert scores.alert[OUT]


def test_between_two_rates_scores_do_not_depend_on_batches_or_restarts(model: Weights) -> None:
    events: list[Event] = interleaved(fleet(), 0)
    half = len(events) // 2
    parts = (events[:half], 3e5), (events[half:], 2e7)

    def scored(size: int, *, restart: bool) -> object:
        store = Store()
        engine = Engine(model, fetch=store.fetch)

        class Front:
            def step(self, batch: EventBatch) -> object:
                nonlocal engine
                if restart and int(batch.offset[0]) % 3 == 0:
                    store.save(engine)
                    rate, engine = engine.fleet_events_per_day, Engine(model, fetch=store.fetch)
                    engine.fleet_events_per_day = rate
                return engine.step(batch)

        def batches() -> object:
            for some, rate in parts:
                engine.fleet_events_per_day = rate
                yield from in_batches(some, size)

        return run(Front(), batches())

    wanted = scored(10_000, restart=False)
    assert math.log10(2e7 / 50.0) in wanted.threshold
    assert_same(scored(211, restart=True), wanted)
