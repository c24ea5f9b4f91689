"""Scheduled sampling: own forecasts take the place of what was observed, by the same recurrences, and it helps."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from tests.bench.cures import free_running
from training.learn.scheduled_sampling import AVERAGE_FAST, AVERAGE_SLOW, CHANGE, VALUE, ScheduledSampling, mixed
from training.learn.tbptt import Sequences, TrainStep, loss_of, train
from training.network.inputs import FAST, INPUT_SIZE, INPUTS, LIMIT, SLOW
from training.network.model import Forecast, Forecaster
from training.network.shape import Shape
from training.prior.synthetic import Series, tensors_of

LANES, ROWS = 48, 160
FROM_VALUES = [VALUE, CHANGE, AVERAGE_FAST, AVERAGE_SLOW]


def waves(seed: int, rows: int = ROWS, noise: float = 0.3) -> Sequences:
    """Return square waves of periods of their own under noise: the state is in the phase, not in the last value."""
    rng = np.random.default_rng(seed)
    row = np.arange(rows)
    period, phase = rng.uniform(12, 24, (LANES, 1)), rng.uniform(0, 2 * np.pi, (LANES, 1))
    value = np.sign(np.sin(2 * np.pi * row / period + phase)) + noise * rng.standard_normal((LANES, rows))
    time = np.tile(1_600_000_000_000_000_000 + row * 60_000_000_000, (LANES, 1)).astype(np.int64)
    return tensors_of(Series(time, value, np.full(LANES, "waves"), np.zeros(LANES, np.bool_)))


def forecaster(seed: int = 0, size: int = 8) -> Forecaster:
    torch.manual_seed(seed)
    return Forecaster(Shape(hidden_size=size))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


class Oracle(nn.Module):
    """Knows the values to come, and keeps the rows that it is shown."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.value, self.shown = inputs[..., VALUE], [torch.empty(0)]
        self.shown.clear()

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Forecast, Tensor]:
        self.shown.append(inputs[0])
        nexts = self.value[len(self.shown)][None, :, None].expand(-1, -1, 2)
        return Forecast(nexts, torch.zeros_like(nexts), torch.full_like(nexts, 3.0)), state


# --- Mixing -----------------------------------------------------------------------------------------------------------


def test_sampling_no_row_leaves_the_inputs_unchanged() -> None:
    inputs = waves(0).inputs
    assert torch.equal(mixed(inputs, torch.randn(ROWS, LANES), torch.zeros(ROWS, LANES, dtype=torch.bool)), inputs)


def test_sampling_correct_forecasts_changes_nothing() -> None:
    inputs = waves(0).inputs
    right = torch.cat([inputs[1:, :, VALUE], torch.zeros(1, LANES)])
    found = mixed(inputs, right, torch.ones(ROWS, LANES, dtype=torch.bool))
    torch.testing.assert_close(found, inputs, atol=1e-6, rtol=0)


def test_sampled_inputs_equal_featurising_the_sampled_values() -> None:
    inputs = waves(0).inputs
    made = torch.Generator().manual_seed(1)
    forecast, own = torch.randn(ROWS, LANES, generator=made), torch.rand(ROWS, LANES, generator=made) < 0.4
    found = mixed(inputs, forecast, own)
    row = inputs[0]
    assert torch.equal(found[0], row)  # there is no forecast of it
    for t in range(1, ROWS):
        value = torch.where(own[t], forecast[t - 1], inputs[t, :, VALUE])
        expected = inputs[t].clone()
        expected[:, VALUE] = value
        expected[:, CHANGE] = value - row[:, VALUE]
        expected[:, AVERAGE_FAST] = row[:, AVERAGE_FAST] + FAST * (value - row[:, AVERAGE_FAST])
        expected[:, AVERAGE_SLOW] = row[:, AVERAGE_SLOW] + SLOW * (value - row[:, AVERAGE_SLOW])
        torch.testing.assert_close(found[t], expected, atol=1e-5, rtol=0)
        row = expected
    for column in range(INPUT_SIZE):
        if column not in FROM_VALUES:
            assert torch.equal(found[..., column], inputs[..., column]), INPUTS[column]


def test_rows_before_the_first_sampled_one_are_exactly_as_observed() -> None:
    inputs = waves(0).inputs
    own = torch.zeros(ROWS, LANES, dtype=torch.bool)
    own[40, 3] = True
    found = mixed(inputs, torch.full((ROWS, LANES), 2.0), own)
    same = (found == inputs).all(dim=-1)
    assert same[:40].all()
    assert same[:, torch.arange(LANES) != 3].all()
    assert float(found[40, 3, VALUE]) == pytest.approx(2.0)
    assert not same[41, 3]  # the change from it


def test_sampled_inputs_stay_within_the_input_limits() -> None:
    found = mixed(waves(0).inputs, torch.full((ROWS, LANES), 1e6), torch.rand(ROWS, LANES) < 0.5)
    assert found[..., FROM_VALUES].abs().max() <= LIMIT * (1 + 1e-6)


# --- Free running -----------------------------------------------------------------------------------------------------


def test_a_correct_free_running_network_sees_the_observed_inputs() -> None:
    """Row by row what `featurise` made of the true values, but for the unit's own slow movement."""
    inputs = waves(0, rows=600).inputs[500:]
    oracle = Oracle(inputs)
    rolled = free_running(oracle, inputs, torch.zeros(LANES, 1), 30)  # type: ignore[arg-type]
    shown = torch.stack(oracle.shown)
    assert torch.equal(shown[0], inputs[0])
    torch.testing.assert_close(shown, inputs[:30], atol=0.02, rtol=0)
    assert torch.equal(rolled.location[..., 0], inputs[1:31, :, VALUE])


def test_free_running_reads_no_value_after_its_first_row() -> None:
    model, inputs = forecaster(), waves(0).inputs
    state = model.initial_state(LANES)
    spoilt = inputs.clone()
    spoilt[1:, :, FROM_VALUES] = math.nan
    for found, expected in zip(
        free_running(model, spoilt, state, 12), free_running(model, inputs, state, 12), strict=True
    ):
        assert found.shape == (12, LANES, len(model.horizons))
        assert torch.equal(found, expected)


def test_one_step_of_free_running_is_the_forecast_itself() -> None:
    model, inputs = forecaster(), waves(0).inputs
    with torch.no_grad():
        expected, _ = model(inputs[:1], model.initial_state(LANES))
    found = free_running(model, inputs, model.initial_state(LANES), 1)
    assert torch.equal(found.location, expected.location)


# --- Training ---------------------------------------------------------------------------------------------------------


def trained(most: float | None, seed: int, batches: int = 30, size: int = 16) -> Forecaster:
    """Train with sampling that rises to `most`; None: with the plain loss."""
    model = forecaster(seed, size)
    drawn = [waves(100 * (seed + 1) + number) for number in range(8)]
    steps = batches * 4
    sampling = ScheduledSampling(most or 0.0, steps, seed=seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    train(
        model, (drawn[number % 8] for number in range(batches)), optimiser, chunk=ROWS // 4,
        loss=loss_of if most is None else sampling, on_step=sampling.on_step,
        schedule=CosineAnnealingLR(optimiser, steps),
    )  # fmt: skip
    return model


def test_a_probability_of_0_is_exactly_teacher_forcing() -> None:
    assert torch.equal(weights(trained(0.0, 0, batches=4)), weights(trained(None, 0, batches=4)))
    assert not torch.equal(weights(trained(0.5, 0, batches=4)), weights(trained(None, 0, batches=4)))


def error_of(model: Forecaster, test: Sequences, steps: int) -> float:
    """Return the mean absolute error of the last of `steps` forecasts rolled on from each other."""
    found = []
    with torch.no_grad():
        for at in range(80, 145, 4):
            _, state = model(test.inputs[:at], model.initial_state(LANES))
            rolled = free_running(model, test.inputs[at:], state, steps)
            found.append((rolled.location[-1, :, 0] - test.inputs[at + steps, :, VALUE]).abs().mean())
    return float(torch.stack(found).mean())


def test_scheduled_sampling_lowers_the_error_of_ten_free_running_steps() -> None:
    test = waves(9999)
    pairs = [(trained(0.5, seed), trained(0.0, seed)) for seed in range(3)]
    ten, one = (median(error_of(s, test, steps) / error_of(f, test, steps) for s, f in pairs) for steps in (10, 1))
    assert ten < 0.95
    assert one < 1.1  # at no great cost for the next observation


@pytest.mark.parametrize("rise", ["linear", "sigmoid"])
def test_the_sampled_share_rises_from_zero_to_its_target(rise: str) -> None:
    sampling = ScheduledSampling(0.4, 100, rise)  # type: ignore[arg-type]
    shares = []
    for number in range(131):
        sampling.on_step(TrainStep(number, 0.0, 0.0, 0.0, 0.0, 0))
        shares.append(sampling.probability)
    assert shares[0] < 0.004
    assert shares[50] == pytest.approx(0.2)
    assert shares[100] == pytest.approx(0.4, rel=0.01)
    assert max(shares) <= 0.4
    assert all(b >= a for a, b in pairwise(shares))
    assert shares[25] == pytest.approx(0.1 if rise == "linear" else 0.4 / (1 + math.exp(2.5)))


def test_the_number_of_sampled_rows_matches_the_share() -> None:
    shown: list[Tensor] = []

    def watched(model: Forecaster, part: Sequences, state: Tensor) -> tuple[Tensor, Tensor]:
        shown.append(part.inputs)
        return loss_of(model, part, state)

    model, batch = forecaster(), waves(0)
    sampling = ScheduledSampling(0.3, 1, loss=watched)
    sampling.on_step(TrainStep(1, 0.0, 0.0, 0.0, 0.0, 0))
    sampling(model, batch, model.initial_state(LANES))
    changed = (shown[0][1:, :, VALUE] != batch.inputs[1:, :, VALUE]).float().mean()
    assert float(changed) == pytest.approx(0.3, abs=0.02)
