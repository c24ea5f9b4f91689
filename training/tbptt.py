"""Truncated back-propagation through time: the one loop by which the forecaster learns, for the prior and afterwards.

A long sequence is cut into chunks. Hidden and cell state are carried from chunk to chunk, so that the network lives
with its past as it does when it scores; gradients stop at each cut (k1 = k2 = chunk; Williams and Peng 1990), so that
memory and time for a step are bounded. With a chunk as long as the sequence this is full back-propagation.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from training.model import HORIZONS, Forecaster, student_t_nll

logger = logging.getLogger(__name__)

HORIZON_WEIGHTS = (1.0, 0.3)  # of the loss of each horizon: the next observation is what is scored first
WORST_NLL = 20.0  # nats; beyond, a single row would steer the whole batch
MOST_SKIPPED = 3  # steps in a row without a finite loss and gradient: the run is lost

assert len(HORIZON_WEIGHTS) == len(HORIZONS)  # noqa: S101 (a slip here would be silent)


class Sequences(NamedTuple):
    """Rows of several lanes, side by side. A target whose `mask` is False is not learnt, but must be finite."""

    inputs: Tensor  # float32 [time, lanes, INPUT_SIZE]
    targets: Tensor  # float32 [time, lanes, horizons]
    mask: Tensor  # bool [time, lanes, horizons]


class Step(NamedTuple):
    """One optimiser step, for metrics and progress."""

    number: int  # from 1
    loss: float
    gradient_norm: float  # before clipping


@dataclass(slots=True)
class Run:
    """How a training went. The model holds the best validated weights, or the last ones without validation."""

    outcome: str = "finished"  # "finished" | "early" (no more gain) | "stopped" (asked to) | "diverged"
    steps: int = 0
    skipped: int = 0  # steps without a finite loss and gradient
    validation: float = math.inf  # best validation loss; the untrained model's counts as the first


def loss_of(model: Forecaster, part: Sequences, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of one chunk, each horizon's mean clamped NLL over its learnt targets, and the state after it."""
    forecast, state = model(part.inputs, state)
    nll = student_t_nll(forecast, part.targets).clamp(max=WORST_NLL)  # [time, lanes, horizons]
    learnt = part.mask.sum(dim=(0, 1)).clamp(min=1)  # [horizons]
    by_horizon = torch.where(part.mask, nll, 0.0).sum(dim=(0, 1)) / learnt
    return (by_horizon * by_horizon.new_tensor(HORIZON_WEIGHTS)).sum(), state


def train(
    model: Forecaster,
    batches: Iterable[Sequences],
    optimiser: Optimizer,
    *,
    chunk: int,
    schedule: LRScheduler | None = None,
    clip_norm: float = 1.0,
    validate: Callable[[Forecaster], float] | None = None,
    validate_every: int = 100,
    patience: int = 3,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Run:
    """Train `model` in place on `batches`, one optimiser step a chunk, each batch from a zero state.

    chunk: rows between two cuts. clip_norm: limit of the gradient's global L2 norm.
    validate: loss to bring down, asked before the first step and then every `validate_every` steps; after `patience`
    answers without a gain the run ends. stop: asked before each step (`threading.Event.is_set`, say).

    A step whose loss or gradient is not finite is left out and counted; after three in a row the run ends as
    "diverged" with the best validated weights, or those from before the run.
    """
    run = Run()
    best = copy.deepcopy(model.state_dict())
    if validate is not None:
        run.validation = validate(model)
    skipped_in_row = without_gain = 0
    model.train()
    for batch in batches:
        state = model.initial_state(batch.inputs.shape[1])  # [lanes, 2 hidden]
        for first in range(0, len(batch.inputs), chunk):
            if stop():
                run.outcome = "stopped"
                break
            part = Sequences(*(tensor[first : first + chunk] for tensor in batch))

            optimiser.zero_grad(set_to_none=True)
            loss, state = loss_of(model, part, state)
            state = state.detach()  # the cut: carried on, but no gradient flows back through it
            torch.autograd.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)

            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                run.skipped += 1
                skipped_in_row += 1
                if skipped_in_row >= MOST_SKIPPED:
                    run.outcome = "diverged"
                break  # the carried state may hold the same NaN: on with the next batch
            skipped_in_row = 0
            optimiser.step()
            if schedule is not None:
                schedule.step()
            run.steps += 1
            on_step(Step(run.steps, float(loss.detach()), float(norm)))

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
    if validate is not None and run.outcome == "finished":  # the steps since it was last asked
        answer = validate(model)
        if answer < run.validation:
            run.validation, best = answer, copy.deepcopy(model.state_dict())
    if validate is not None or run.outcome == "diverged":
        model.load_state_dict(best)
    if run.skipped:
        logger.warning("training left out %d steps without a finite loss or gradient", run.skipped)
    return run
