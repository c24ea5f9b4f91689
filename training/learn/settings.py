"""How a network learns: optimiser, learning rate, penalties, clipping, truncation, sampling.

The defaults are what retraining was measured with, and learns by; `longwatch train --learning` takes others.
`optimisers.py` makes of them what learns. Without torch, so that settings load at once.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Learning(BaseModel):
    """What a training may vary; lengths that go with the data are in `retrain.challenger.WindowPlan`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    optimiser: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    """How a gradient becomes a step. adamw applies weight decay apart from the gradient's scaling."""
    learning_rate: float = Field(default=5e-4, gt=0, le=10)
    """Highest learning rate; sgd needs about 100 times more."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """For sgd: share of the last step that is added to the next one; 0: none."""
    schedule: Literal["constant", "cosine", "one_cycle"] = "cosine"
    """The learning rate after the warm-up: constant, or falling to zero (cosine, one_cycle)."""
    warm_up: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from zero; for one_cycle, 0 means 0.3."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """L2 penalty on weight matrices, not on biases."""
    l1: float = Field(default=0.0, ge=0, le=1)
    """L1 penalty on weight matrices, not on biases."""
    clip: Literal["norm", "value", "off"] = "norm"
    """What is limited against exploding gradients: their global L2 norm, each element, or nothing."""
    clip_limit: float = Field(default=1.0, gt=0, le=1_000_000_000)
    """The limit for `clip`."""
    update_every: int = Field(default=0, ge=0, le=100_000)
    """Rows between two optimiser steps (k1 of truncated BPTT); 0: 128, in retraining 40."""
    backpropagate: int = Field(default=0, ge=0, le=100_000)
    """Rows that a gradient flows back (k2 of truncated BPTT); 0: as many as between two steps."""
    sampling: float = Field(default=0.0, ge=0, le=1)
    """Scheduled sampling: share of rows, at the end of training, that show the network its own forecast instead of what
    was observed."""
    sampling_rise: Literal["linear", "sigmoid"] = "linear"
    """How that share rises from zero over the training."""

    @property
    def clip_norm(self) -> float:
        """The gradient's largest global L2 norm, for `tbptt.train`; inf: any."""
        return self.clip_limit if self.clip == "norm" else math.inf

    @property
    def clip_value(self) -> float:
        """The largest element of the gradient, for `tbptt.train`; inf: any."""
        return self.clip_limit if self.clip == "value" else math.inf
