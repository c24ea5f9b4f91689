"""Scheduled sampling: the network learns to work with its own forecasts, as a free-running forecast has to.

Teacher forcing shows the network what was observed at every row. A forecast of ten steps, fed back from step to step,
shows it its own output, and it never learnt to recover from that (Bengio et al. 2015). So at a share of rows, which
rises over the training, the network sees its own forecast in place of the observed value.

The forecasts are made in a first pass with teacher forcing and mixed into the inputs of a second, which learns
(Mihaylova and Martins 2019; Duckworth et al. 2019): two passes over all rows at once, not a pass for each row.

Inputs are features of the past (`inputs.INPUTS`): the value, its change and two running averages are computed from the
mixed values by their recurrences; profiles and time do not change. A forecast is in the unit of the normaliser before
its event, a value in that after it: they differ by 1 / MEMORY of a step, which is neglected here.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from training.learn.tbptt import Loss, Sequences, TrainStep, loss_of
from training.network.inputs import FAST, INPUTS, LIMIT, SLOW
from training.network.model import Forecaster

VALUE, CHANGE, AVERAGE_FAST, AVERAGE_SLOW = map(
    INPUTS.index, ("value", "change", "average_fast", "average_slow")
)  # what a forecast takes the place of
STEEPNESS = 10.0  # of the sigmoid over a whole training: it goes from 0.7 % of the way to 99.3 %


class ScheduledSampling:
    """A loss for `tbptt.train` that shows the network its own forecasts at a share of rows, drawn for each chunk.

    `on_step` has to be called for every step: the share rises with them. With a share of 0 this is `loss` itself.
    """

    def __init__(
        self,
        most: float,
        steps: int,
        rise: Literal["linear", "sigmoid"] = "linear",
        seed: int = 0,
        loss: Loss = loss_of,
    ) -> None:
        """Let the share rise from nothing to `most`, 0 to 1, over `steps` steps.

        rise: a line, or Bengio's inverse sigmoid decay of teacher forcing, k / (k + exp(i / k)) at step i: the same
        logistic curve, here with its centre at half of the steps.
        """
        self.most, self.steps, self.rise, self.loss = most, steps, rise, loss
        self.number = 0  # of steps taken
        self._random = torch.Generator().manual_seed(seed)

    def on_step(self, step: TrainStep) -> None:
        """Set how far the training is."""
        self.number = step.number

    @property
    def probability(self) -> float:
        """That a row shows the network's own forecast, at this step."""
        gone = min(self.number / self.steps, 1.0)
        return self.most * (gone if self.rise == "linear" else 1.0 / (1.0 + math.exp(STEEPNESS * (0.5 - gone))))

    def __call__(self, model: Forecaster, part: Sequences, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a chunk with mixed inputs, and the state after it."""
        probability = self.probability
        if probability > 0:
            with torch.no_grad():
                forecast, _ = model(part.inputs, state)
            drawn = torch.rand(part.inputs.shape[:2], generator=self._random) < probability  # [time, lanes]
            own = drawn.to(part.inputs.device)
            part = part._replace(inputs=mixed(part.inputs, forecast.location[..., 0], own))
        return self.loss(model, part, state)


def mixed(inputs: Tensor, forecast: Tensor, own: Tensor) -> Tensor:
    """Return `inputs` [time, lanes, INPUT_SIZE] with forecasts in place of observed values where `own` says so.

    forecast: what each row says of the next value [time, lanes]; own: bool [time, lanes], rows whose last value is to
    be what the row before them said. The first row has none before it and stays. No row chosen: the same numbers.

    All that is made from values here is linear in them. So the difference to what was observed is carried through the
    recurrences, and rows that it does not reach are exactly as observed.
    """
    off = torch.zeros_like(forecast)  # [time, lanes] of each row's value from the observed one
    off[1:] = torch.where(own[1:], forecast[:-1].clamp(-LIMIT, LIMIT) - inputs[1:, :, VALUE], 0.0)
    result = inputs.clone()
    result[..., VALUE] += off
    result[1:, :, CHANGE] = (result[1:, :, CHANGE] + off[1:] - off[:-1]).clamp(-LIMIT, LIMIT)
    result[..., AVERAGE_FAST] += _averaged(off, FAST)
    result[..., AVERAGE_SLOW] += _averaged(off, SLOW)
    return result


def _averaged(off: Tensor, weight: float) -> Tensor:
    """Return the running average a_t = a_(t-1) + weight (off_t - a_(t-1)) of `off` [time, lanes], from a = 0."""
    ago = torch.arange(len(off), device=off.device)
    ago = ago[:, None] - ago[None, :]  # [time, time] rows from the second index to the first
    kernel = torch.where(ago >= 0, weight * (1.0 - weight) ** ago.clamp(min=0), 0.0)
    return kernel.to(off.dtype) @ off
