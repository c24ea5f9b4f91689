"""How the shipped priors are trained: Adam, its rate along one cycle, and a bar that shows how far it is."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from training.learn.tbptt import Batch, Learner, Loss, TrainStep, loss_of, train


def train_one_cycle(
    model: Learner,
    batches: Iterable[Batch],
    name: str,
    *,
    steps: int,
    chunk: int,
    peak_rate: float,
    loss: Loss = loss_of,
) -> None:
    """Train `model` in place for so many steps, on chunks of so many rows; exit where that diverges."""
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(learnt, lr=peak_rate)
    schedule = OneCycleLR(optimiser, peak_rate, total_steps=steps)
    with tqdm(total=steps, desc=name, unit="step", disable=None) as progress:

        def on_step(step: TrainStep) -> None:
            progress.update()
            if step.number % 100 == 0:
                progress.set_postfix(loss=f"{step.loss:.3f}")

        run = train(model, batches, optimiser, schedule=schedule, chunk=chunk, loss=loss, on_step=on_step)
    if run.outcome == "diverged":
        raise SystemExit(f"training of {name} diverged after {run.steps} steps: try another seed")
