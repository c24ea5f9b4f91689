"""From options to torch: the optimiser with its penalties, and the schedule of the learning rate.

And what the shipped networks are trained with: Adam, its rate along one cycle.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from training.learn.settings import Learning
from training.learn.tbptt import Loss, loss_of, train
from training.network.model import Learner

ONE_CYCLE_RISE = 0.3  # share of the steps up to the peak (Smith and Topin 2019), if warm_up is 0


def build_optimiser(learning: Learning, model: nn.Module) -> Optimizer:
    """Return an optimiser of the parameters that require a gradient.

    Penalties act on weight matrices after the gradient was clipped, as torch's own weight decay does: L2 as
    weight_decay / 2 * sum of squares, adamw's apart from the gradient, L1 as l1 * sum of sizes, by its subgradient.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in named if _is_matrix(name, parameter)]
    others = [parameter for name, parameter in named if not _is_matrix(name, parameter)]
    groups = [{"params": matrices, "weight_decay": learning.weight_decay}, {"params": others, "weight_decay": 0.0}]
    made: Optimizer
    match learning.optimiser:
        case "adam":
            made = torch.optim.Adam(groups, lr=learning.learning_rate)
        case "adamw":
            made = torch.optim.AdamW(groups, lr=learning.learning_rate)
        case "rmsprop":
            made = torch.optim.RMSprop(groups, lr=learning.learning_rate)
        case "sgd":
            made = torch.optim.SGD(groups, lr=learning.learning_rate, momentum=learning.momentum)

    def add_l1(*_: Any) -> None:
        for matrix in matrices:
            if matrix.grad is not None:
                matrix.grad.add_(torch.sign(matrix.detach()), alpha=learning.l1)

    if learning.l1 > 0:
        made.register_step_pre_hook(add_l1)
    return made


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and "bias" not in name.rpartition(".")[2]


def build_schedule(learning: Learning, optimiser: Optimizer, steps: int) -> LRScheduler:
    """Return the schedule of the learning rate over `steps` steps, 3 or more, for `tbptt.train` to advance."""
    if learning.schedule == "one_cycle":
        cycled = learning.optimiser in ("adam", "adamw") or (learning.optimiser == "sgd" and learning.momentum > 0)
        return OneCycleLR(
            optimiser,
            learning.learning_rate,
            total_steps=steps,
            pct_start=max(learning.warm_up or ONE_CYCLE_RISE, 2 / steps),  # torch divides by the rise less one step
            cycle_momentum=cycled,  # torch refuses to cycle a momentum that the optimiser has not
        )
    rise = round(learning.warm_up * steps)
    onwards: LRScheduler
    if learning.schedule == "cosine":
        onwards = CosineAnnealingLR(optimiser, max(steps - rise, 1))
    else:
        onwards = ConstantLR(optimiser, factor=1.0)
    if not rise:
        return onwards
    return SequentialLR(optimiser, [LinearLR(optimiser, 1.0 / rise, total_iters=rise), onwards], milestones=[rise])


def train_one_cycle(
    model: Learner,
    batches: Iterable[tuple[Tensor, ...]],
    *,
    steps: int,
    chunk: int,
    peak_rate: float,
    loss: Loss = loss_of,
) -> None:
    """Train `model` in place for so many steps, on chunks of so many rows; exit where that diverges."""
    optimiser = torch.optim.Adam(model.parameters(), lr=peak_rate)
    schedule = OneCycleLR(optimiser, peak_rate, total_steps=steps)
    run = train(model, batches, optimiser, schedule=schedule, chunk=chunk, loss=loss)
    if run.outcome == "diverged":
        raise SystemExit(f"the training diverged after {run.steps} steps: try another seed")
