"""Optimiser, learning rate and penalties: what the settings say is what happens to the weights."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from tests.fleets import odd_waves, rings
from training.learn.optimisers import build_optimiser, build_schedule
from training.learn.settings import Learning
from training.learn.tbptt import Sequences, TrainStep, train
from training.network.inputs import INPUT_SIZE
from training.network.model import Forecaster
from training.network.shape import Shape
from training.network.weights import load_prior
from training.retrain import challenger as retraining
from training.retrain.result import RetrainResult

TIME, LANES = 24, 5


def sequences(seed: int) -> Sequences:
    made = torch.Generator().manual_seed(seed)
    inputs = torch.randn(TIME, LANES, INPUT_SIZE, generator=made)
    targets = (inputs[..., :1].expand(-1, -1, 2) * 0.7 + 0.1).contiguous()
    return Sequences(inputs, targets, torch.ones_like(targets, dtype=torch.bool))


def forecaster() -> Forecaster:
    torch.manual_seed(0)
    return Forecaster(Shape(hidden_size=8))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def rates(learning: Learning, steps: int) -> list[float]:
    """Return the learning rate of each of `steps` steps and the one that follows."""
    optimiser = build_optimiser(learning, nn.Linear(1, 1))
    schedule = build_schedule(learning, optimiser, steps)
    found = []
    for _ in range(steps):
        found.append(float(optimiser.param_groups[0]["lr"]))
        optimiser.step()
        schedule.step()
    return [*found, float(optimiser.param_groups[0]["lr"])]


def stepped(learning: Learning, gradient: float, steps: int = 1, weight: float = 2.0) -> tuple[list[float], float]:
    """Return a weight after each step with the same gradient on weight and bias, and the bias after the last."""
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, weight)
    optimiser = build_optimiser(learning, layer)
    after = []
    for _ in range(steps):
        optimiser.zero_grad()
        layer.weight.grad, layer.bias.grad = torch.full((1, 1), gradient), torch.full((1,), gradient)
        optimiser.step()
        after.append(layer.weight.item())
    return after, layer.bias.item()


def test_the_default_optimiser_and_schedule_are_the_measured_ones() -> None:
    made = []
    for build in (
        lambda model: torch.optim.Adam(model.parameters(), lr=5e-4),
        lambda model: build_optimiser(Learning(), model),
    ):
        model = forecaster()
        optimiser = build(model)
        schedule = CosineAnnealingLR(optimiser, 60) if not made else build_schedule(Learning(), optimiser, 60)
        learning = Learning()
        train(
            model, (sequences(seed) for seed in range(20)), optimiser, chunk=8, schedule=schedule,
            clip_norm=learning.clip_norm, clip_value=learning.clip_value,
        )  # fmt: skip
        made.append(weights(model))
    assert torch.equal(*made)
    assert (Learning().clip_norm, Learning().clip_value) == (1.0, math.inf)


# --- Optimisers, by their formulas ------------------------------------------------------------------------------------


def test_sgd_momentum_adds_a_share_of_the_last_step() -> None:
    after, _ = stepped(Learning(optimiser="sgd", learning_rate=0.1, momentum=0.9), gradient=1.0, steps=3)
    assert after == pytest.approx([2 - 0.1, 2 - 0.1 - 0.19, 2 - 0.1 - 0.19 - 0.271], rel=1e-6)
    after, _ = stepped(Learning(optimiser="sgd", learning_rate=0.1, momentum=0), gradient=1.0, steps=2)
    assert after == pytest.approx([1.9, 1.8], rel=1e-6)


def test_rmsprop_divides_by_the_root_of_the_running_mean_square() -> None:
    after, _ = stepped(Learning(optimiser="rmsprop", learning_rate=0.01), gradient=3.0, steps=2)
    first = 2 - 0.01 * 3 / math.sqrt(0.01 * 9)
    assert after == pytest.approx([first, first - 0.01 * 3 / math.sqrt(0.99 * 0.09 + 0.01 * 9)], rel=1e-5)


def test_adams_first_steps_have_the_size_of_the_learning_rate() -> None:
    for gradient in (1e-3, 1.0, 1e3):
        after, _ = stepped(Learning(optimiser="adam", learning_rate=0.01), gradient, steps=2)
        assert after == pytest.approx([1.99, 1.98], rel=1e-5)


@pytest.mark.parametrize(("optimiser", "rate"), [("adam", 1e-2), ("adamw", 1e-2), ("rmsprop", 1e-3), ("sgd", 5e-2)])
def test_each_optimiser_lowers_a_forecasters_loss(optimiser: Any, rate: float) -> None:
    model = forecaster()
    learning = Learning(optimiser=optimiser, learning_rate=rate, schedule="constant")
    steps: list[TrainStep] = []
    batches = (sequences(seed) for seed in range(30))
    train(model, batches, build_optimiser(learning, model), chunk=8, on_step=steps.append)
    assert sum(step.loss for step in steps[-9:]) / 9 < sum(step.loss for step in steps[:3]) / 3 - 0.3


# --- Penalties --------------------------------------------------------------------------------------------------------


def test_weight_decay_shrinks_weight_matrices_and_no_biases() -> None:
    (after,), bias = stepped(Learning(optimiser="sgd", learning_rate=0.1, momentum=0, weight_decay=0.5), gradient=1.0)
    assert after == pytest.approx(2 - 0.1 * (1 + 0.5 * 2), rel=1e-6)
    assert bias == pytest.approx(1.9, rel=1e-6)


def test_adamw_decays_weights_directly_and_adam_through_its_scaling() -> None:
    decay = 0.1
    (apart,), bias = stepped(Learning(optimiser="adamw", learning_rate=0.01, weight_decay=decay), gradient=0.0)
    assert apart == pytest.approx(2 * (1 - 0.01 * decay), rel=1e-6)
    assert bias == 2
    (scaled,), bias = stepped(Learning(optimiser="adam", learning_rate=0.01, weight_decay=decay), gradient=0.0)
    assert scaled == pytest.approx(2 - 0.01, rel=1e-6)  # the penalty's gradient, brought to size 1 like any other
    assert bias == 2


@pytest.mark.parametrize("weight", [2.0, -2.0])
def test_l1_shrinks_weight_matrices_at_a_constant_rate_and_no_biases(weight: float) -> None:
    learning = Learning(optimiser="sgd", learning_rate=0.1, momentum=0, l1=0.3)
    after, bias = stepped(learning, gradient=0.0, steps=3, weight=weight)
    toward = math.copysign(0.03, weight)
    assert after == pytest.approx([weight - toward, weight - 2 * toward, weight - 3 * toward], rel=1e-6)
    assert bias == weight


def test_penalties_act_on_every_weight_matrix_and_on_no_bias() -> None:
    model = forecaster()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = build_optimiser(Learning(optimiser="sgd", learning_rate=0.1, momentum=0, weight_decay=0.5), model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, old in before.items() if old.ndim == 2 and old.abs().sum() > 0}
    assert not any("bias" in name for name in moved)


def test_penalties_give_smaller_weights() -> None:
    found = {}
    for name, learning in {
        "none": Learning(learning_rate=1e-2),
        "l1": Learning(learning_rate=1e-2, l1=0.02),
        "l2": Learning(learning_rate=1e-2, weight_decay=0.02),
        "apart": Learning(optimiser="adamw", learning_rate=1e-2, weight_decay=1.0),
    }.items():
        model = forecaster()
        train(model, (sequences(seed) for seed in range(20)), build_optimiser(learning, model), chunk=8)
        matrices = torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim == 2])
        found[name] = float(matrices.abs().mean())
    assert all(found[name] < 0.9 * found["none"] for name in ("l1", "l2", "apart")), found


# --- Learning rate ----------------------------------------------------------------------------------------------------


def test_a_constant_rate_is_constant() -> None:
    assert rates(Learning(schedule="constant", learning_rate=0.1), 5) == [0.1] * 6


def test_the_cosine_schedule_falls_to_zero() -> None:
    found = rates(Learning(schedule="cosine", learning_rate=0.1), 10)
    assert found == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 10)) for step in range(11)], abs=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_learning_rate_rises_linearly_during_warm_up(schedule: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rates(Learning(schedule=schedule, learning_rate=0.1, warm_up=0.4), 10)
    assert found[:5] == pytest.approx([0.025, 0.04375, 0.0625, 0.08125, 0.1], rel=1e-6)
    if schedule == "constant":
        assert found[4:] == pytest.approx([0.1] * 7)
    else:
        assert found[4:] == pytest.approx([0.05 * (1 + math.cos(math.pi * n / 6)) for n in range(7)], abs=1e-9)


def test_one_cycle_equals_the_priors_schedule() -> None:
    learning = Learning(schedule="one_cycle", learning_rate=3e-2)
    prior = torch.optim.Adam(nn.Linear(1, 1).parameters(), lr=3e-2)
    schedule = OneCycleLR(prior, 3e-2, total_steps=20)
    expected = []
    for _ in range(20):
        expected.append(prior.param_groups[0]["lr"])
        prior.step()
        schedule.step()
    assert rates(learning, 20)[:20] == expected
    assert max(expected) == expected[5] == 3e-2  # 0.3 of the way
    assert max(range(20), key=rates(learning.model_copy(update={"warm_up": 0.5}), 20).__getitem__) == 9


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "rmsprop", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_every_schedule_works_with_every_optimiser_even_for_few_steps(optimiser: Any, schedule: Any) -> None:
    for steps in (3, 4, 10):
        for momentum, warm_up in ((0.9, 0.0), (0.0, 0.1), (0.5, 0.9)):
            learning = Learning(optimiser=optimiser, schedule=schedule, momentum=momentum, warm_up=warm_up)
            assert all(0 <= rate <= learning.learning_rate * 1.0001 for rate in rates(learning, steps))


def test_one_cycle_adds_no_momentum_to_optimisers_without_it() -> None:
    for learning in (Learning(optimiser="rmsprop"), Learning(optimiser="sgd", momentum=0)):
        optimiser = build_optimiser(learning, nn.Linear(1, 1))
        build_schedule(learning.model_copy(update={"schedule": "one_cycle"}), optimiser, 10)
        assert optimiser.param_groups[0]["momentum"] == 0


# --- Ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimiser", "adagrad"),
        ("learning_rate", 0),
        ("learning_rate", math.nan),
        ("momentum", 1.0),
        ("schedule", "step"),
        ("warm_up", 1.0),
        ("weight_decay", -0.1),
        ("l1", -1e-9),
        ("clip", "none"),
        ("clip_limit", 0),
        ("update_every", -1),
        ("backpropagate", -1),
        ("sampling", 1.1),
        ("sampling_rise", "exponential"),
        ("dropout", 0.5),
    ],
)
def test_unknown_and_out_of_range_learning_options_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Learning.model_validate({name: value})


def test_learning_options_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Learning().l1 = 0.1  # type: ignore[misc]  # that is what is tested


@pytest.mark.parametrize(
    ("learning", "norm", "value"),
    [
        (Learning(clip_limit=2.0), 2.0, math.inf),
        (Learning(clip="value", clip_limit=0.1), math.inf, 0.1),
        (Learning(clip="off"), math.inf, math.inf),
    ],
)
def test_clipping_is_by_norm_by_value_or_off(learning: Learning, norm: float, value: float) -> None:
    assert (learning.clip_norm, learning.clip_value) == (norm, value)


def test_frozen_weights_are_left_alone() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(requires_grad=False)
    optimiser = build_optimiser(Learning(), layer)
    assert sum(len(group["params"]) for group in optimiser.param_groups) == 1


# --- In a retraining --------------------------------------------------------------------------------------------------


def retrained(monkeypatch: pytest.MonkeyPatch, learning: Learning) -> tuple[RetrainResult, list[TrainStep]]:
    monkeypatch.setattr(retraining, "RING_PLAN", replace(retraining.RING_PLAN, steps=12))
    monkeypatch.setattr(retraining, "REPLAY_POOL", 32)
    monkeypatch.setattr(retraining, "REPLAY_JUDGES", 32)
    steps: list[TrainStep] = []
    histories, _ = rings(odd_waves(40, 200))
    outcome = retraining.retrain(load_prior(), histories, np.arange(40), 0, learning=learning, on_step=steps.append)
    return outcome, steps


def test_a_retraining_uses_the_given_learning_options(monkeypatch: pytest.MonkeyPatch) -> None:
    _, usual = retrained(monkeypatch, Learning())
    assert len(usual) == 12
    assert usual[0].learning_rate == 5e-4
    assert usual[-1].learning_rate < 1e-4
    row = usual[0].rows  # 40 rows of each window
    _, steps = retrained(
        monkeypatch, Learning(update_every=20, schedule="constant", warm_up=0.5, clip="value", clip_limit=1e-4)
    )
    assert (len(steps), steps[0].rows) == (24, row // 2)  # on the same windows
    assert [step.learning_rate for step in steps[12:]] == pytest.approx([5e-4] * 12)
    assert steps[0].learning_rate < 1e-4
    assert all(step.clipped_norm < 0.02 < step.gradient_norm for step in steps)


@pytest.mark.parametrize(
    "settings",
    [
        {"backpropagate": 60},
        {"backpropagate": 10},
        {"sampling": 0.5},
        {"optimiser": "sgd"},
        {"weight_decay": 0.1},
        {"l1": 0.1},
        {"clip": "off"},
    ],
    ids=str,
)
def test_each_learning_option_changes_the_result(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    (_, usual), (_, other) = retrained(monkeypatch, Learning()), retrained(monkeypatch, Learning(**settings))
    assert [step.loss for step in usual] != [step.loss for step in other]
    assert all(math.isfinite(step.loss) for step in other)


def test_one_cycle_lasts_as_long_as_the_training_even_if_chunks_do_not_divide_a_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It refuses a step too many."""
    _, steps = retrained(monkeypatch, Learning(schedule="one_cycle", update_every=33))
    assert len(steps) == 18  # 33 + 33 + 14 rows of 6 windows
    assert steps[-1].learning_rate < 1e-5 < 1e-4 < max(step.learning_rate for step in steps)
