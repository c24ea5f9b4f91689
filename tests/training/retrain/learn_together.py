"""What test_distributed.py runs in two processes: `torchrun --nproc-per-node 2 -m MODULE DIR`.

Each process writes what it saw, <rank>.json, and the weights it came to, <case>-<rank>.safetensors.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fleets import odd_waves, rings
from training.learn.tbptt import Sequences, TrainStep, train
from training.network.inputs import INPUT_SIZE
from training.network.model import Forecaster
from training.network.shape import Shape
from training.network.weights import to_bytes
from training.retrain import challenger
from training.retrain.distributed import SingleProcess, process_group
from training.retrain.windows import Recorded, from_rings

SHAPES = {
    "lstm": {"cell": "lstm"},
    "rnn": {"cell": "rnn", "layers": 2},
    "gru": {"cell": "gru", "attention_window": 4},
    "esn": {"cell": "esn"},
}
LANES, TIME = 7, 24  # lanes that do not divide by two


def model(name: str, seed: int = 0) -> Forecaster:
    """Return a small network; other seeds, other weights."""
    torch.manual_seed(seed)
    return Forecaster(Shape(hidden_size=6, **SHAPES[name]))


def batch(seed: int) -> Sequences:
    """Return a batch of which the lanes have known targets in unequal numbers, the last lane hardly any."""
    made = torch.Generator().manual_seed(seed)
    inputs = torch.randn(TIME, LANES, INPUT_SIZE, generator=made)
    targets = (inputs[..., :1] * 0.7 + 0.1).repeat(1, 1, 2)
    share = torch.linspace(1.0, 0.05, LANES)[:, None]
    return Sequences(inputs, targets, torch.rand(targets.shape, generator=made) < share)


def share_of(whole: Sequences, processes: SingleProcess) -> Sequences:
    return Sequences(*(tensor[:, processes.lane_slice] for tensor in whole))


def learn(name: str, processes: SingleProcess, k1: int, k2: int, seed: int = 0) -> tuple[Forecaster, list[TrainStep]]:
    """Train a few steps, plainly (sgd magnifies no rounding)."""
    network = model(name, seed)
    steps: list[TrainStep] = []
    train(
        network,
        [share_of(batch(number), processes) for number in range(4)],
        torch.optim.SGD(network.parameters(), lr=0.05),
        chunk=k1,
        backpropagate=k2,
        loss=processes.loss(network),
        clip_norm=0.5,
        on_step=steps.append,
    )
    return network, steps


def learn_with_a_spoilt_lane(processes: SingleProcess) -> tuple[int, int]:
    """Train with a batch of which one lane, the first process's, is NaN; return steps taken and skipped."""
    network = model("lstm")
    spoilt = batch(1)
    spoilt.inputs[3, 0] = math.nan
    spoilt.mask[3, 0] = True
    batches = [share_of(each, processes) for each in (batch(0), spoilt, batch(2))]
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
    run = train(network, batches, optimiser, chunk=TIME, loss=processes.loss(network))
    return run.steps, run.skipped


def recorded() -> Recorded:
    histories, _ = rings(odd_waves(64, 200))
    return from_rings(histories, np.arange(64), 32)


def fine_tuned(processes: SingleProcess, mine: Recorded | None) -> tuple[challenger.RetrainResult, list[float]]:
    """Fine-tune a small network on what the first process has recorded; return also the losses by step."""
    losses: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(challenger, "REPLAY_POOL", 32)
        patch.setattr(challenger, "REPLAY_JUDGES", 32)
        outcome = challenger.fine_tune(
            model("lstm").weights,
            mine,
            replace(challenger.RING_PLAN, steps=20),
            0,
            processes=processes,
            on_step=lambda step: losses.append(step.loss),
        )
    return outcome, losses


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    seen: dict[str, object] = {}
    with process_group("cpu") as processes:
        for name in SHAPES:
            # the others' first weights must not matter: they are given the first process's
            network, steps = learn(name, processes, 8, 12 if name == "lstm" else 8, seed=processes.rank)
            (directory / f"{name}-{processes.rank}.safetensors").write_bytes(to_bytes(network.weights))
            seen[name] = [step[:4] for step in steps]
        seen["spoilt"] = learn_with_a_spoilt_lane(processes)
        outcome, losses = fine_tuned(processes, recorded() if processes.first else None)
        seen["fine_tuned"] = losses
        seen["judged"] = (outcome.champion_loss, outcome.validation_loss, outcome.model is not None)
        seen["broadcast"] = processes.broadcast(lambda: 3.5)
    (directory / f"{processes.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
