"""The training loop: its gradients, its cuts, and what it does when something is wrong."""

import itertools
import math
from collections.abc import Callable, Collection, Iterator

import pytest
import torch
from torch import Tensor

from training.learn.tbptt import FAR_WEIGHT, MAX_SKIPPED, WORST_NLL, Loss, Sequences, TrainStep, cuts, loss_of, train
from training.network.horizons import HORIZONS
from training.network.inputs import INPUT_SIZE
from training.network.model import Forecaster, student_t_nll
from training.network.shape import Shape

TIME, LANES = 24, 5


def sequences(seed: int = 0, time: int = TIME, scale: float = 1.0) -> Sequences:
    made = torch.Generator().manual_seed(seed)
    inputs = scale * torch.randn(time, LANES, INPUT_SIZE, generator=made)
    targets = inputs[..., :1].expand(-1, -1, len(HORIZONS)) * 0.7 + 0.1
    return Sequences(inputs, targets.contiguous(), torch.rand(targets.shape, generator=made) > 0.2)


def forecaster(seed: int = 0) -> Forecaster:
    torch.manual_seed(seed)
    return Forecaster(Shape(hidden_size=8))


class Keep(torch.optim.SGD):
    """Takes steps of size zero and keeps the gradients that it was given."""

    def __init__(self, model: Forecaster) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.model = model
        self.seen: list[dict[str, Tensor]] = []

    def step(self, closure: Callable[[], float] | None = None) -> None:
        self.seen.append({name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None})


def adam(model: Forecaster, rate: float = 1e-2) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=rate)


def weights(model: Forecaster) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def test_a_chunk_of_the_whole_length_gives_full_bptt_gradients() -> None:
    model, batch = forecaster(), sequences()
    kept = Keep(model)
    train(model, [batch], kept, chunk=TIME, clip_norm=math.inf)

    model.zero_grad()
    state, total = model.initial_state(LANES), torch.zeros(len(HORIZONS))
    for t in range(TIME):  # one step at a time, nothing detached: back-propagation through all of time
        forecast, state = model(batch.inputs[t : t + 1], state)
        nll = student_t_nll(forecast, batch.targets[t : t + 1]).clamp(max=WORST_NLL)
        total = total + (nll * batch.mask[t : t + 1]).sum(dim=(0, 1))
    (total / batch.mask.sum(dim=(0, 1)) * torch.tensor([1.0, FAR_WEIGHT])).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(kept.seen[0][name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_the_state_is_carried_over_a_cut_and_gradients_are_not() -> None:
    model, batch = forecaster(), sequences()
    kept = Keep(model)
    train(model, [batch], kept, chunk=TIME // 2, clip_norm=math.inf)
    assert len(kept.seen) == 2

    first, second = (Sequences(*(tensor[part] for tensor in batch)) for part in (slice(0, 12), slice(12, None)))
    _, state = loss_of(model, first, model.initial_state(LANES))
    model.zero_grad()
    loss_of(model, second, state.detach())[0].backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(kept.seen[1][name], parameter.grad, atol=1e-6, rtol=1e-4)

    model.zero_grad()
    loss_of(model, second, state)[0].backward()  # not cut: this must differ, or the test above shows nothing
    assert any(
        parameter.grad is not None and not torch.allclose(kept.seen[1][name], parameter.grad, atol=1e-6, rtol=1e-4)
        for name, parameter in model.named_parameters()
    )


def test_masked_targets_change_nothing() -> None:
    model, batch = forecaster(), sequences()
    spoilt = batch._replace(targets=torch.where(batch.mask, batch.targets, 5.0))
    assert loss_of(model, batch, model.initial_state(LANES))[0] == loss_of(model, spoilt, model.initial_state(LANES))[0]


def test_a_batch_without_any_target_is_no_error() -> None:
    model, batch = forecaster(), sequences()
    nothing = batch._replace(mask=torch.zeros_like(batch.mask))
    run = train(model, [nothing], adam(model), chunk=8)
    assert (run.steps, run.skipped) == (3, 0)
    assert torch.isfinite(weights(model)).all()


def test_one_extreme_target_moves_the_loss_by_at_most_its_clamp() -> None:
    model, batch = forecaster(), sequences()
    wild = batch.targets.clone()
    wild[0, 0] = 1e6
    batch = batch._replace(mask=torch.ones_like(batch.mask))
    before, _ = loss_of(model, batch, model.initial_state(LANES))
    after, _ = loss_of(model, batch._replace(targets=wild), model.initial_state(LANES))
    assert after - before <= (WORST_NLL + 10) * (1 + FAR_WEIGHT) / (TIME * LANES)


def test_training_lowers_the_loss_and_reports_each_step() -> None:
    model = forecaster()
    steps: list[TrainStep] = []
    run = train(model, (sequences(seed) for seed in range(30)), adam(model), chunk=8, on_step=steps.append)
    assert run.outcome == "finished"
    assert [step.number for step in steps] == list(range(1, 91))
    assert steps[-1].loss < steps[0].loss - 0.3
    assert all(step.gradient_norm > 0 for step in steps)
    assert all(step.clipped_norm == min(step.gradient_norm, 1.0) for step in steps)
    assert {step.learning_rate for step in steps} == {1e-2}
    assert [step.rows for step in steps] == [8 * LANES * number for number in range(1, 91)]


def test_the_gradient_is_clipped_by_its_global_norm() -> None:
    model = forecaster()
    kept = Keep(model)
    steps: list[TrainStep] = []
    train(model, [sequences()], kept, chunk=TIME, clip_norm=0.01, on_step=steps.append)
    norm = torch.cat([gradient.flatten() for gradient in kept.seen[0].values()]).norm()
    assert steps[0].gradient_norm > 0.1
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_the_gradient_is_clipped_by_value() -> None:
    model = forecaster()
    plain, kept = Keep(model), Keep(model)
    train(model, [sequences()], plain, chunk=TIME, clip_norm=math.inf)
    steps: list[TrainStep] = []
    train(model, [sequences()], kept, chunk=TIME, clip_norm=math.inf, clip_value=0.003, on_step=steps.append)
    changed = 0
    for name, gradient in plain.seen[0].items():
        assert torch.equal(kept.seen[0][name], gradient.clamp(-0.003, 0.003))
        changed += int((gradient.abs() > 0.003).sum())
    assert changed > 10
    before, after = (torch.cat([g.flatten() for g in seen.seen[0].values()]).norm() for seen in (plain, kept))
    assert steps[0].gradient_norm == pytest.approx(float(before), rel=1e-5)
    assert steps[0].clipped_norm == pytest.approx(float(after), rel=1e-5)


def test_without_clipping_the_gradient_is_unchanged() -> None:
    model = forecaster()
    kept = Keep(model)
    train(model, [sequences()], kept, chunk=TIME, clip_norm=math.inf)
    model.zero_grad()
    loss_of(model, sequences(), model.initial_state(LANES))[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(kept.seen[0][name], parameter.grad)


def test_each_step_has_the_expected_chunk_boundaries() -> None:
    assert list(cuts(7, 3, 3)) == [(0, 0, 3), (3, 3, 6), (6, 6, 7)]
    assert list(cuts(7, 2, 5)) == [(0, 0, 2), (0, 2, 4), (1, 4, 6), (3, 6, 7)]
    assert list(cuts(7, 3, 1)) == [(2, 2, 3), (5, 5, 6), (6, 6, 7)]
    assert list(cuts(7, 100, 100)) == [(0, 0, 7)]


def test_rows_outside_the_truncation_run_without_gradients() -> None:
    """Memory and time of a step are bounded by k2: autograd sees that many rows and no more."""
    model, seen = forecaster(), []

    def loss(model: Forecaster, part: Sequences, state: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((torch.is_grad_enabled(), len(part.inputs)))
        return loss_of(model, part, state)

    train(model, [sequences()], adam(model), chunk=12, backpropagate=4, loss=loss)
    assert seen == [(False, 8), (True, 4), (False, 8), (True, 4)]
    seen.clear()
    train(model, [sequences()], adam(model), chunk=8, backpropagate=10, loss=loss)
    assert seen == [(True, 8), (False, 6), (True, 2), (True, 8), (False, 8), (True, 2), (True, 8)]
    seen.clear()
    train(model, [sequences()], adam(model), chunk=12, loss=loss)
    assert seen == [(True, 12), (True, 12)]  # by default each row is run once


def nan_batch() -> Sequences:
    batch = sequences()
    batch.inputs[3] = math.nan
    batch.mask[3] = True
    return batch


def test_a_step_with_nan_is_skipped_and_counted_and_training_continues() -> None:
    model = forecaster()
    run = train(model, [sequences(1), nan_batch(), sequences(2)], adam(model), chunk=TIME)
    assert (run.outcome, run.steps, run.skipped) == ("finished", 2, 1)
    twin = forecaster()
    train(twin, [sequences(1), sequences(2)], adam(twin), chunk=TIME)
    assert torch.equal(weights(model), weights(twin))


def test_three_nan_steps_in_a_row_end_the_run_with_the_former_weights() -> None:
    model = forecaster()
    before = weights(model)
    batches = [sequences(1), *[nan_batch() for _ in range(MAX_SKIPPED)], sequences(2)]
    run = train(model, batches, adam(model), chunk=TIME)
    assert (run.outcome, run.steps, run.skipped) == ("diverged", 1, MAX_SKIPPED)
    assert torch.equal(weights(model), before)


def spoilt(how: Callable[[Forecaster, Tensor], Tensor], steps: Collection[int]) -> Loss:
    """Return the usual loss, but at the calls of these numbers (from 0) with something added to it."""
    calls = itertools.count()

    def loss(model: Forecaster, part: Sequences, state: Tensor) -> tuple[Tensor, Tensor]:
        value, state = loss_of(model, part, state)
        return (how(model, value) if next(calls) in steps else value), state

    return loss


def nan_loss_only(_: Forecaster, value: Tensor) -> Tensor:
    return value + math.nan  # a constant: the gradient stays as it is


def infinite_loss_only(_: Forecaster, value: Tensor) -> Tensor:
    return value + math.inf


def infinite_gradient_only(model: Forecaster, value: Tensor) -> Tensor:
    weight = next(model.parameters()).flatten()[0]
    return value + torch.sqrt(weight - weight.detach())  # 0, and its slope infinite


@pytest.mark.parametrize("clip_value", [math.inf, 1.0])
@pytest.mark.parametrize("how", [nan_loss_only, infinite_loss_only, infinite_gradient_only])
def test_a_loss_or_a_gradient_alone_that_is_not_finite_is_enough_to_skip_a_step(
    how: Callable[[Forecaster, Tensor], Tensor], clip_value: float
) -> None:
    model, twin = forecaster(), forecaster()
    batches = [sequences(seed) for seed in range(4)]
    run = train(model, batches, adam(model), chunk=TIME, loss=spoilt(how, {1}), clip_value=clip_value)
    assert (run.outcome, run.steps, run.skipped) == ("finished", 3, 1)
    train(twin, [batches[0], *batches[2:]], adam(twin), chunk=TIME, clip_value=clip_value)
    assert torch.equal(weights(model), weights(twin))


@pytest.mark.parametrize("how", [nan_loss_only, infinite_loss_only, infinite_gradient_only])
def test_three_non_finite_steps_in_a_row_end_the_run_and_twice_two_do_not(
    how: Callable[[Forecaster, Tensor], Tensor],
) -> None:
    model = forecaster()
    before = weights(model)
    batches = [sequences(seed) for seed in range(6)]
    run = train(model, batches, adam(model), chunk=TIME, loss=spoilt(how, {1, 2, 3}))
    assert (run.outcome, run.steps, run.skipped) == ("diverged", 1, 3)
    assert torch.equal(weights(model), before)
    run = train(model, batches, adam(model), chunk=TIME, loss=spoilt(how, {0, 1, 3, 4}))
    assert (run.outcome, run.steps, run.skipped) == ("finished", 2, 4)
    assert not torch.equal(weights(model), before)


def test_a_run_that_diverges_keeps_the_best_validated_weights() -> None:
    model, seen = forecaster(), []
    answers = iter([3.0, 1.0, 2.0])

    def validate(candidate: Forecaster) -> float:
        seen.append(weights(candidate))
        return next(answers)

    batches = [sequences(seed) for seed in range(5)]
    loss = spoilt(nan_loss_only, {2, 3, 4})
    run = train(model, batches, adam(model), chunk=TIME, loss=loss, validate=validate, validate_every=1)
    assert (run.outcome, run.steps, run.validation) == ("diverged", 2, 1.0)
    assert torch.equal(weights(model), seen[1])


def test_a_step_that_makes_weights_nan_ends_the_run_even_as_the_last() -> None:
    model = forecaster()
    before = weights(model)
    too_far = torch.optim.SGD(model.parameters(), lr=math.inf)  # and a gradient that is finite
    steps: list[TrainStep] = []
    run = train(model, [sequences()], too_far, chunk=TIME, on_step=steps.append)
    assert (run.outcome, run.steps, run.skipped, steps) == ("diverged", 0, 1, [])
    assert torch.equal(weights(model), before)


def test_any_module_with_an_initial_state_can_be_trained() -> None:
    """One weight on the running sum, which is carried over the cuts, must become a half."""

    class Summed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def initial_state(self, batch: int) -> Tensor:
            return torch.zeros(batch)

    def loss(model: Summed, part: Sequences, state: Tensor) -> tuple[Tensor, Tensor]:
        sums = state + part.inputs[..., 0].cumsum(dim=0)
        return (model.weight * sums - part.targets[..., 0]).square().mean(), sums[-1]

    model = Summed()
    inputs = sequences().inputs
    targets = 0.5 * inputs.cumsum(dim=0)
    batch = Sequences(inputs, targets, torch.ones_like(targets, dtype=torch.bool))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
    run = train(model, [batch] * 40, optimiser, chunk=6, backpropagate=9, loss=loss)
    assert run.steps == 160
    assert float(model.weight.detach()) == pytest.approx(0.5, abs=1e-3)


def test_early_stopping_keeps_the_best_weights() -> None:
    model = forecaster()
    answers = iter([3.0, 2.0, 1.0, 1.5, 1.2, 9.9])
    seen: list[Tensor] = []

    def validate(candidate: Forecaster) -> float:
        seen.append(weights(candidate))
        return next(answers)

    run = train(
        model,
        (sequences(seed) for seed in range(50)),
        adam(model),
        chunk=TIME,
        validate=validate,
        validate_every=2,
        patience=2,
    )
    assert (run.outcome, run.steps, run.validation) == ("early", 8, 1.0)
    assert torch.equal(weights(model), seen[2])


def test_a_training_that_never_improves_leaves_the_model_unchanged() -> None:
    model = forecaster()
    before = weights(model)
    worse = iter(float(n) for n in range(100))
    run = train(
        model, [sequences()] * 9, adam(model), chunk=TIME, validate=lambda _: next(worse), validate_every=1, patience=3
    )
    assert (run.outcome, run.steps, run.validation) == ("early", 3, 0.0)
    assert torch.equal(weights(model), before)


def test_the_last_steps_are_validated_too() -> None:
    model = forecaster()
    answers = iter([3.0, 1.0])
    run = train(model, [sequences()], adam(model), chunk=8, validate=lambda _: next(answers), validate_every=100)
    assert (run.outcome, run.steps, run.validation) == ("finished", 3, 1.0)


def test_training_stops_on_request_even_between_chunks() -> None:
    model = forecaster()
    steps: list[TrainStep] = []

    def endless() -> Iterator[Sequences]:
        while True:
            yield sequences()

    run = train(model, endless(), adam(model), chunk=8, stop=lambda: len(steps) >= 4, on_step=steps.append)
    assert (run.outcome, run.steps) == ("stopped", 4)


def test_the_schedule_advances_once_a_step() -> None:
    model = forecaster()
    optimiser = adam(model, 1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5**step)
    train(model, [sequences()], optimiser, chunk=8, schedule=schedule)
    assert optimiser.param_groups[0]["lr"] == 0.125


def test_the_same_seed_and_data_give_the_same_weights_bit_for_bit() -> None:
    made = []
    for _ in range(2):
        model = forecaster(4)
        train(model, (sequences(seed) for seed in range(5)), adam(model), chunk=8)
        made.append(weights(model))
    assert torch.equal(*made)
