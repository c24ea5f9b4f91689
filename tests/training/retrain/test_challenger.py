"""Retraining: exact targets out of rings, a judge that cannot be fooled by noise, incidents or what comes later."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.fleets import minutes, noise, odd_waves, rings
from training.learn.settings import Learning
from training.learn.tbptt import Sequences
from training.network.history import WINDOW
from training.network.horizons import HORIZONS
from training.network.inputs import targets
from training.network.model import Forecaster
from training.network.weights import load_prior
from training.prior.synthetic import Series, make_series, replay_set, tensors_of
from training.retrain import challenger as retraining
from training.retrain.challenger import HELD_BACK, REPLAY_MARGIN, RING_PLAN, retrain
from training.retrain.result import MIN_MOVEMENT, MIN_STREAMS, RetrainResult
from training.retrain.windows import Recorded, from_rings, window_losses

ROWS = 300
LANES = 200
STREAM = np.arange(LANES)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a retraining take a second: enough for what is plain to see."""
    monkeypatch.setattr(retraining, "RING_PLAN", replace(RING_PLAN, steps=40))
    monkeypatch.setattr(retraining, "REPLAY_POOL", 32)
    monkeypatch.setattr(retraining, "REPLAY_JUDGES", 32)


def held_back(recorded: Recorded) -> Sequences:
    first, _ = recorded.held_back_windows(WINDOW, RING_PLAN.settle)
    return recorded.part(first, WINDOW, held_back=True, warm_up=RING_PLAN.settle)


def judged_loss(model: Forecaster, value: np.ndarray, masked: np.ndarray | None = None) -> float:
    histories, _ = rings(value, masked)
    windows = held_back(from_rings(histories, np.arange(len(value)), HELD_BACK))
    return float(window_losses(model, windows, RING_PLAN.settle, RING_PLAN.passes).mean())


def replay_of(value: np.ndarray) -> Sequences:
    """Return lanes [lanes, rows] from their first row to their last."""
    return tensors_of(Series(minutes(*value.shape), value, np.full(len(value), "odd"), np.zeros(len(value), np.bool_)))


# --- Targets and windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [150, 400, 2500])
def test_targets_from_a_ring_buffer_equal_those_of_the_series(rows: int) -> None:
    series = make_series(np.random.default_rng(rows), 200, rows, extra={})
    histories, frames = rings(series.value, time=series.time)
    recorded = from_rings(histories, np.arange(200), HELD_BACK)
    known = recorded.known.reshape(200, WINDOW, -1)
    column = recorded.inputs.reshape(200, WINDOW, -1)[..., 0]
    for h, horizon in enumerate(HORIZONS):
        truth = np.empty((200, rows), np.float32)
        for lane in range(200):
            targets(series.value[lane], frames[lane], horizon, truth[lane])
        truth = truth[:, -WINDOW:]
        here = known[..., h]
        assert not here[:, WINDOW - horizon :].any()  # the last event's value stands in no row
        assert here[:, :-horizon].mean() > 0.85
        error = np.abs(recorded.targets.reshape(200, WINDOW, -1)[..., h] - truth)[here]
        # beyond: lanes that were off their scale when the ring began
        assert np.quantile(error, 0.995) < 0.02
        assert np.median(error) < 2e-4
        unrestored = np.abs(column[:, horizon:] - truth[:, :-horizon])[here[:, :-horizon]]
        assert np.mean(unrestored) > 3 * error.mean()


def test_events_and_forecasts_within_an_incident_are_not_learnt() -> None:
    masked = np.zeros((1, ROWS), np.bool_)
    masked[0, ROWS - WINDOW + 50 : ROWS - WINDOW + 55] = True
    histories, _ = rings(noise(1, ROWS), masked)
    known = from_rings(histories, np.zeros(1, np.int64), HELD_BACK).known
    assert np.flatnonzero(~known[: WINDOW - 10, 0]).tolist() == list(range(50, 55))
    assert np.flatnonzero(~known[: WINDOW - 10, 1]).tolist() == [*range(41, 46), *range(50, 55)]


def test_training_windows_exclude_held_out_time() -> None:
    value = noise(3, ROWS)
    other = value.copy()
    other[:, ROWS - HELD_BACK :] = 100 * noise(3, HELD_BACK, seed=1)
    first, second = (from_rings(rings(v)[0], np.arange(3), HELD_BACK) for v in (value, other))
    last = first.held - RING_PLAN.window  # the latest place
    drawn = first.draw(np.random.default_rng(0), 500, RING_PLAN.window)
    assert (np.unique(drawn % WINDOW) == np.arange(WINDOW - HELD_BACK - RING_PLAN.window + 1)).all()
    assert drawn.max() == last.max()
    for start in (last, drawn):
        a, b = (r.part(start, RING_PLAN.window, held_back=False, warm_up=RING_PLAN.warm_up) for r in (first, second))
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.mask, b.mask)
        assert torch.equal(a.targets[a.mask], b.targets[b.mask])
        assert not a.mask[: RING_PLAN.warm_up].any()
        assert a.mask[RING_PLAN.warm_up :, :, 0].all()


def test_validation_states_warm_up_on_earlier_rows_of_the_same_lane() -> None:
    recorded = from_rings(rings(noise(3, ROWS))[0], np.arange(3), HELD_BACK)
    recorded = recorded._replace(start=np.array([0, 200, 384]), held=np.array([160, 360]), stream=np.arange(2))
    first = np.array([0, 100, 150, 200, 330])
    assert recorded.stretch(first, 96).tolist() == [0, 4, 54, 200, 234]
    assert recorded.stretch(np.array([190]), 160).tolist() == [0]


def test_validation_windows_score_each_held_out_row_once() -> None:
    start, held = np.array([0, 700, 1000, 1100]), np.array([560, 940, 1040])
    size = len(HORIZONS)
    recorded = Recorded(
        np.zeros((1100, 11), np.float32),
        np.repeat(np.arange(1100, dtype=np.float32)[:, None], size, axis=1),
        np.ones((1100, size), np.bool_),
        start,
        held,
        np.array([4, 4, 5]),
    )
    first, group = recorded.held_back_windows(160, 128)
    windows = recorded.part(first, 160, held_back=True, warm_up=128)
    judged = windows.targets[..., 0][windows.mask[..., 0]].long()
    assert sorted(judged.tolist()) == [*range(560, 700), *range(940, 1000)]  # the third lane is too short
    assert group[5:].tolist() == group[:2].tolist()  # the same stream at the same time
    assert len(set(group.tolist())) == 5


# --- Outcomes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def promoted() -> RetrainResult:
    return retrain(load_prior(), rings(odd_waves(LANES, ROWS))[0], STREAM, 0)


def test_a_fleet_unlike_the_priors_training_data_is_learnt(promoted: RetrainResult) -> None:
    assert promoted.outcome == "promoted", promoted.reason
    assert promoted.model is not None
    assert promoted.validation_loss < promoted.champion_loss - 0.15
    assert promoted.steps == RING_PLAN.steps
    assert 0 < promoted.gradient_norm < 100
    assert set(promoted.losses) == {"training", "validation"}
    about = promoted.model_card(trained_at=7.0)
    assert (about.parent, about.trained_at, about.rows) == (load_prior().fingerprint(), 7.0, LANES * 96)
    strangers = odd_waves(50, ROWS, seed=9)
    assert (
        judged_loss(Forecaster.of(promoted.model), strangers)
        < judged_loss(Forecaster.of(load_prior()), strangers) - 0.15
    )


def test_the_gain_lasts_beyond_the_training_windows(promoted: RetrainResult) -> None:
    """A lane that has run for long has a state that no short window shows from nothing."""
    assert promoted.model is not None
    value = odd_waves(20, 2200, seed=4)
    whole = replay_of(value)
    late = whole._replace(mask=whole.mask & (torch.arange(2200) >= 1500)[:, None, None])
    before, after = (window_losses(Forecaster.of(model), late, 1, 0).mean() for model in (load_prior(), promoted.model))
    assert after < before - 0.15


def test_fine_tuning_does_not_forget_the_prior(promoted: RetrainResult) -> None:
    assert promoted.model is not None
    replay = replay_set(np.random.default_rng(99), 300, WINDOW)
    moving = replay.inputs[..., 0].std(dim=0).numpy() > MIN_MOVEMENT
    before, after = (
        window_losses(Forecaster.of(model), replay, 64, 5)[moving].mean() for model in (load_prior(), promoted.model)
    )
    assert after < before + 2 * REPLAY_MARGIN


@pytest.mark.usefixtures("quick")
def test_a_challenger_that_forgets_the_prior_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retraining, "REPLAY", 0.0)
    learning = Learning(learning_rate=5e-3)
    monkeypatch.setattr(retraining, "SHARES", (1.0,))
    outcome = retrain(load_prior(), rings(odd_waves(LANES, ROWS))[0], STREAM, 0, learning=learning)
    assert outcome.validation_loss < outcome.champion_loss - 0.5
    assert (outcome.outcome, outcome.model) == ("rejected", None)
    assert "on synthetic series" in outcome.reason


@pytest.mark.usefixtures("quick")
def test_noise_teaches_nothing_and_is_rejected() -> None:
    champion = load_prior()
    before = champion.fingerprint()
    outcome = retrain(champion, rings(noise(LANES, ROWS))[0], STREAM, 0)
    assert (outcome.outcome, outcome.model) == ("rejected", None), outcome.reason
    assert champion.fingerprint() == before
    assert math.isfinite(outcome.validation_loss)


def test_a_fleet_too_young_too_constant_or_of_one_stream_is_skipped() -> None:
    young = rings(noise(LANES, WINDOW - 1))[0]
    still = rings(np.ones((LANES, ROWS)))[0]
    one = rings(noise(LANES, ROWS))[0]
    few = one[: MIN_STREAMS - 1]
    incident = rings(noise(LANES, ROWS), np.ones((LANES, ROWS), np.bool_))[0]
    one_stream = np.zeros(LANES, np.int64)
    for histories, stream in (
        (young, STREAM),
        (still, STREAM),
        (one, one_stream),
        (few, STREAM),
        (incident, STREAM),
    ):
        outcome = retrain(load_prior(), histories, stream[: len(histories)], 0)
        assert (outcome.outcome, outcome.model, outcome.losses) == ("skipped", None, {})
        assert "needed" in outcome.reason
    assert retrain(load_prior(), one[:0], STREAM[:0], 0).outcome == "skipped"


@pytest.fixture
def whatever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any challenger through, to look at what it has learnt."""
    monkeypatch.setattr(retraining, "MIN_GAIN", -math.inf)
    monkeypatch.setattr(retraining, "STANDARD_ERRORS", -math.inf)
    monkeypatch.setattr(retraining, "REPLAY_MARGIN", math.inf)


@pytest.mark.usefixtures("quick", "whatever_comes")
def test_incidents_are_not_learnt() -> None:
    """All before held-back time is an incident, or is not: only then is there a gain."""
    value, masked = odd_waves(LANES, ROWS), np.zeros((LANES, ROWS), np.bool_)
    masked[:, : ROWS - HELD_BACK] = True
    reported, untold = (
        retrain(load_prior(), rings(value, mask)[0], STREAM, 0) for mask in (masked, np.zeros_like(masked))
    )
    assert reported.rows == 0
    assert untold.validation_loss < untold.champion_loss - 0.1
    assert reported.validation_loss > reported.champion_loss - 0.02


@pytest.mark.usefixtures("quick", "whatever_comes")
def test_an_incidents_values_do_not_change_a_bit_of_the_challenger() -> None:
    masked = np.zeros((LANES, ROWS), np.bool_)
    masked[:, ROWS - WINDOW + 20 : ROWS - 60] = masked[:, ROWS - 10 :] = True
    recorded, untold = (from_rings(rings(noise(LANES, ROWS), mask)[0], STREAM, HELD_BACK) for mask in (masked, ~masked))
    found = []
    for known in (recorded.known, untold.known):
        poisoned = recorded._replace(known=known, targets=np.where(recorded.known, recorded.targets, np.float32(6.0)))
        for variant in (recorded._replace(known=known), poisoned):
            outcome = retraining.fine_tune(load_prior(), variant, retraining.RING_PLAN, 0)
            assert outcome.model is not None
            found.append((outcome.model.fingerprint(), outcome.validation_loss))
    assert found[0] == found[1]
    assert found[2][0] != found[3][0]
    assert found[2][1] != found[3][1]


@pytest.mark.usefixtures("quick", "whatever_comes")
def test_the_same_seed_gives_the_same_challenger_bit_for_bit() -> None:
    histories = rings(odd_waves(LANES, ROWS))[0]
    first, again, other = (retrain(load_prior(), histories, STREAM, seed).model for seed in (1, 1, 2))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


@pytest.mark.usefixtures("quick")
def test_the_budget_ends_training_and_the_result_is_validated() -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 7

    outcome = retrain(load_prior(), rings(odd_waves(LANES, ROWS))[0], STREAM, 0, stop=stop)
    assert outcome.steps == 7
    assert outcome.outcome in ("promoted", "rejected")
    assert math.isfinite(outcome.validation_loss)


def test_an_exception_of_the_stop_callback_propagates() -> None:
    def stop() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrain(load_prior(), rings(odd_waves(LANES, ROWS))[0], STREAM, 0, stop=stop)


def test_a_champion_that_cannot_be_trained_is_reported_as_a_failure() -> None:
    champion = Forecaster.of(load_prior())
    champion.from_hidden.bias.data[:] = math.nan
    outcome = retrain(champion.weights, rings(odd_waves(LANES, ROWS))[0], STREAM, 0)
    assert (outcome.outcome, outcome.model, outcome.losses) == ("failed", None, {})
    assert "diverged" in outcome.reason


@pytest.mark.usefixtures("quick")
def test_a_large_fleet_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.retrain.result.MAX_LANES", 100)
    outcome = retrain(load_prior(), rings(odd_waves(LANES, ROWS))[0], STREAM, 0)
    assert outcome.rows == 100 * (WINDOW - HELD_BACK)
