"""Truncated back-propagation through time: the one training loop, for the priors, for symbols and for retraining.

A long sequence is cut into chunks of k1 rows, with an optimiser step each. The hidden state is carried from chunk to
chunk, as it is when scoring; gradients flow back k2 rows (Williams and Peng 1990; Sutskever 2013, section 2.8.6), so
that memory and time for a step are bounded:

    k2 = k1   the cut lies between two chunks; each row is run once (the default)
    k2 > k1   the rows before a chunk are run again, from the state of that time, for the chunk's gradient to reach them
    k2 < k1   the first k1 - k2 rows of a chunk only update the state

With k1 and k2 as long as the sequence this is full back-propagation.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from training.network.model import Forecast, Learner, student_t_nll

logger = logging.getLogger(__name__)

FAR_WEIGHT = 0.3  # of the loss of a far horizon; that of the next observation, which scores use most, has 1
WORST_NLL = 20.0  # nats; beyond, a single row would dominate the batch
MAX_SKIPPED = 3  # steps in a row without a finite loss and gradient: the run is lost


class Sequences(NamedTuple):
    """What a forecaster learns from. A target whose `mask` is False is not learnt, but must be finite."""

    inputs: Tensor  # float32 [time, lanes, INPUT_SIZE]
    targets: Tensor  # float32 [time, lanes, horizons]
    mask: Tensor  # bool [time, lanes, horizons]


Batch = TypeVar("Batch", bound=tuple[Tensor, ...])  # rows of several lanes, side by side: each [time, lanes, ...]
Loss = Callable[[Any, Any, Tensor], tuple[Tensor, Tensor]]
"""(model that is trained, part of a batch, state before it) -> (loss to bring down, state after it)."""


class TrainStep(NamedTuple):
    """One optimiser step, for metrics, progress and plots."""

    number: int  # from 1
    loss: float
    gradient_norm: float  # before clipping; global L2 norm
    clipped_norm: float  # after it
    learning_rate: float  # that it was taken with
    rows: int  # learnt from so far, over all lanes


@dataclass(slots=True)
class TrainResult:
    """How a training ended. The model has the best validated weights, or the last ones without validation."""

    outcome: str = "finished"  # "finished" | "early" (no more gain) | "stopped" (by `stop`) | "diverged"
    steps: int = 0
    skipped: int = 0  # steps without a finite loss, gradient or result
    validation: float = math.inf  # best validation loss; the untrained model's counts as the first


def loss_of(model: Any, part: Sequences, state: Tensor, learnt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the loss of one chunk, over its lanes and rows, and the state after it.

    learnt: how many targets there are of each horizon, where `part` is a share of the chunk [horizons].
    """
    forecast, state = model(part.inputs, state)
    total, count = summed_nll(forecast, part, dim=(0, 1))
    return weighted_mean(total, count if learnt is None else learnt), state


def summed_nll(forecast: Forecast, part: Sequences, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the clamped NLL of the targets that are learnt, summed over `dim`, and how many they are."""
    nll = student_t_nll(forecast, part.targets).clamp(max=WORST_NLL)  # [time, lanes, horizons]
    return torch.where(part.mask, nll, 0.0).sum(dim), part.mask.sum(dim)


def weighted_mean(total: Tensor, count: Tensor) -> Tensor:
    """Return one loss from sums and counts of each horizon [..., horizons], the first being the next observation's."""
    by_horizon = total / count.clamp(min=1)
    return by_horizon[..., 0] + FAR_WEIGHT * by_horizon[..., 1:].sum(dim=-1)


def train(
    model: Learner,
    batches: Iterable[tuple[Tensor, ...]],
    optimiser: Optimizer,
    *,
    chunk: int,
    backpropagate: int | None = None,
    loss: Loss = loss_of,
    schedule: LRScheduler | None = None,
    clip_norm: float = 1.0,
    clip_value: float = math.inf,
    validate: Callable[[Any], float] | None = None,
    validate_every: int = 100,
    patience: int = 3,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[TrainStep], None] = lambda step: None,
) -> TrainResult:
    """Train `model` in place on `batches`, one optimiser step a chunk, each batch from its initial state.

    chunk: rows between two steps (k1). backpropagate: rows that a step's gradient flows back (k2); None: a chunk.
    clip_norm: limit of the gradient's global L2 norm; clip_value: of each of its elements, taken first; inf: none.
    validate: the loss to reduce, called before the first step and then every `validate_every` steps; after `patience`
    calls without a gain the run ends. stop: called before each step (such as `threading.Event.is_set`).

    A step whose loss or gradient is not finite is skipped and counted. After MAX_SKIPPED in a row, or one that still
    makes weights infinite or NaN, the run ends as "diverged" with the best validated weights, or the initial ones.
    """
    k1, k2 = chunk, chunk if backpropagate is None else backpropagate
    run = TrainResult()
    best = copy.deepcopy(model.state_dict())
    if validate is not None:
        run.validation = validate(model)
    skipped_in_row = without_gain = seen = 0
    model.train()
    for batch in batches:
        rows, lanes = batch[0].shape[:2]
        state, at = model.initial_state(lanes), 0  # [lanes, ...] the state before row `at`
        for cut, first, last in cuts(rows, k1, k2):
            if stop():
                run.outcome = "stopped"
                break
            if at < cut:  # k1 and k2 differ: bring the state to the cut
                with torch.no_grad():
                    _, state = loss(model, part(batch, at, cut), state)
                at = cut

            optimiser.zero_grad(set_to_none=True)
            after = state
            if cut < first:  # rows of former chunks, for the gradient to flow back through
                _, after = loss(model, part(batch, cut, first), after)
            value, after = loss(model, part(batch, first, last), after)
            torch.autograd.backward(value)
            norm, clipped = clip_gradient(model, clip_norm, clip_value)

            if not (torch.isfinite(value) and torch.isfinite(norm)):
                run.skipped += 1
                skipped_in_row += 1
                if skipped_in_row >= MAX_SKIPPED:
                    run.outcome = "diverged"
                break  # the carried state may hold the same NaN: continue with the next batch
            skipped_in_row = 0
            rate = float(optimiser.param_groups[0]["lr"])
            optimiser.step()
            if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
                run.skipped += 1
                run.outcome = "diverged"  # a weight that is NaN stays NaN
                break
            if schedule is not None:
                schedule.step()
            run.steps += 1
            seen += (last - first) * lanes
            on_step(TrainStep(run.steps, float(value.detach()), float(norm), float(clipped), rate, seen))
            if k2 <= k1:
                state, at = after.detach(), last  # the cut: carried on, but no gradient flows back through it

            if validate is not None and run.steps % validate_every == 0:
                model.eval()
                answer = validate(model)
                model.train()
                if answer < run.validation:
                    run.validation, best, without_gain = answer, copy.deepcopy(model.state_dict()), 0
                else:
                    without_gain += 1
                    if without_gain >= patience:
                        run.outcome = "early"
                        break
        if run.outcome != "finished":
            break
    model.eval()
    if validate is not None and run.outcome == "finished":  # for the steps since the last call
        answer = validate(model)
        if answer < run.validation:
            run.validation, best = answer, copy.deepcopy(model.state_dict())
    if validate is not None or run.outcome == "diverged":
        model.load_state_dict(best)
    if run.skipped:
        logger.warning("training skipped %d steps without a finite loss, gradient or result", run.skipped)
    return run


def part(batch: Batch, first: int, last: int) -> Batch:
    """Return rows first..last of all lanes."""
    return type(batch)(*(tensor[first:last] for tensor in batch))


def cuts(rows: int, k1: int, k2: int) -> Iterator[tuple[int, int, int]]:
    """Yield for each step: the row that its gradient flows back to, the first row of its loss, and the row after it."""
    for first in range(0, rows, k1):
        last = min(first + k1, rows)
        if k2 >= k1:
            yield max(first - (k2 - k1), 0), first, last
        else:
            yield max(first, last - k2), max(first, last - k2), last


def clip_gradient(model: nn.Module, clip_norm: float, clip_value: float) -> tuple[Tensor, Tensor]:
    """Clip the gradient by value, then by global norm (Pascanu et al. 2013); return its norm before and after."""
    learnt = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    parameters, gradients = [parameter for parameter, _ in learnt], [gradient for _, gradient in learnt]
    before = norm = torch.nn.utils.get_total_norm(gradients)
    if clip_value < math.inf:
        torch.nn.utils.clip_grad_value_(parameters, clip_value)  # in place
        norm = torch.nn.utils.get_total_norm(gradients)
    if clip_norm < math.inf:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return before, norm.clamp(max=clip_norm)
