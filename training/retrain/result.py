"""Which lanes a retraining learns from, and its result: without torch, which takes seconds to import."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.network.history import VALUE_STEP, WINDOW
from training.network.registry import ModelCard
from training.network.weights import Weights

MAX_LANES = 4096  # drawn from a larger fleet: a sample shows what lanes have in common
MIN_STREAMS = 32  # half of them judge; what fewer agree on may not last (6 streams of ASD: 0.17 nats better on
# held-back time, 0.05 to 0.1 worse on the 100 events after it)
MIN_MOVEMENT = 0.05  # deviations: a lane that moves less has an unbounded likelihood and teaches nothing


@dataclass(frozen=True, slots=True)
class RetrainResult:
    """The result of a retraining. Losses are in nats, as `tbptt.loss_of` computes them; NaN if it ended earlier."""

    outcome: Literal["promoted", "rejected", "failed", "skipped"]
    reason: str  # for a log line
    model: Weights | None = None  # the challenger, only when promoted
    training_loss: float = math.nan  # mean of the last steps, synthetic windows included
    validation_loss: float = math.nan  # the challenger's, by the held-back windows that judge
    champion_loss: float = math.nan  # the champion's, by the same
    replay_loss: float = math.nan  # the challenger's on synthetic series
    gradient_norm: float = 0.0  # of the last step, before clipping
    steps: int = 0
    rows: int = 0  # that could be learnt from
    parent: str = ""  # version of the champion
    seed: int = 0
    seconds: float = 0.0  # set by the caller, who has the clock
    curve: tuple[float, ...] = ()  # likewise: the training's losses in their order, thinned

    @property
    def losses(self) -> dict[str, float]:
        """Return the finite losses by split."""
        both = {"training": self.training_loss, "validation": self.validation_loss}
        return {split: loss for split, loss in both.items() if math.isfinite(loss)}

    def model_card(self, trained_at: float) -> ModelCard:
        """Return what the registry keeps beside the model; trained_at is a Unix time in s."""
        figures = {
            "training_loss": self.training_loss,
            "validation_loss": self.validation_loss,
            "champion_loss": self.champion_loss,
            "replay_loss": self.replay_loss,
        }
        return ModelCard(parent=self.parent, trained_at=trained_at, seed=self.seed, rows=self.rows, figures=figures)


def eligible_lanes(
    histories: NDArray[np.void], stream: NDArray[np.int64], seed: int
) -> NDArray[np.int64] | RetrainResult:
    """Return the lanes to learn from, or the outcome "skipped" where their streams are too few.

    histories: INPUT_HISTORY [lanes]; stream: a number for the stream each belongs to [lanes].
    """
    full = np.flatnonzero(histories["events"] >= WINDOW)
    if len(full) > MAX_LANES:
        full = np.sort(np.random.default_rng(seed).choice(full, MAX_LANES, replace=False))
    moving = full[histories["rows"]["value"][full].std(axis=1) > MIN_MOVEMENT / VALUE_STEP]
    streams = len(np.unique(stream[moving]))
    if streams < MIN_STREAMS:
        reason = f"only {streams} streams have {WINDOW} events of a feature that moves, {MIN_STREAMS} are needed"
        return RetrainResult("skipped", reason)
    return moving
