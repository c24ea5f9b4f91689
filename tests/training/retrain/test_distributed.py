"""Two processes, started by torchrun as a user would, come to what one process comes to."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.retrain import learn_together as together
from training.network.model import Forecaster
from training.network.weights import load_weights
from training.retrain.distributed import SingleProcess, process_group

CHECKOUT = Path(__file__).resolve().parents[3]
DEADLINE = 800  # seconds; 15 on two idle cores
# The two add the same numbers in another order. What that leaves, 1e-7 of a gradient, some tens of steps magnify.
SAME = {"rel": 1e-5, "abs": 1e-6}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes saw, by rank, and the folder with their weights."""
    directory = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.training.retrain.learn_together", str(directory)],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return directory, [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", together.SHAPES)
def test_two_processes_train_like_one(both: tuple[Path, list[dict[str, Any]]], name: str) -> None:
    """Whatever the cell, though their lanes hold different numbers of targets."""
    directory, seen = both
    alone, steps = together.learn(name, SingleProcess(), 8, 12 if name == "lstm" else 8)
    assert len(steps) == 12
    for rank in range(2):
        for one, two in zip(steps, seen[rank][name], strict=True):
            assert list(one[:4]) == pytest.approx(two, **SAME)
        found = Forecaster.of(load_weights(directory / f"{name}-{rank}.safetensors")).state_dict()
        for part, value in alone.state_dict().items():
            torch.testing.assert_close(found[part], value, rtol=1e-5, atol=1e-6, msg=f"{name}: {part}")


def test_losses_are_averaged_over_targets_not_over_processes() -> None:
    """Or the test above shows nothing: the shares' own losses do not average to the loss of all lanes."""
    whole = together.batch(0)
    network = together.model("lstm")
    loss = SingleProcess().loss(network)
    shares = [together.Sequences(*(tensor[:, rank::2] for tensor in whole)) for rank in range(2)]
    parts = [float(loss(network, part, network.initial_state(part.inputs.shape[1]))[0].detach()) for part in shares]
    assert abs(sum(parts) / 2 - float(loss(network, whole, network.initial_state(together.LANES))[0].detach())) > 1e-3


def test_a_loss_that_is_not_finite_in_one_process_is_skipped_by_both(both: tuple[Path, list[dict[str, Any]]]) -> None:
    for seen in both[1]:
        assert seen["spoilt"] == [2, 1]


def test_fine_tuning_gives_the_same_losses_and_only_the_first_process_validates(
    both: tuple[Path, list[dict[str, Any]]],
) -> None:
    outcome, losses = together.fine_tuned(SingleProcess(), together.recorded())
    assert len(losses) == 20
    first, second = both[1]
    assert first["fine_tuned"] == pytest.approx(losses, rel=1e-4)  # Adam's steps are as long where gradients are tiny
    assert second["fine_tuned"] == pytest.approx(first["fine_tuned"], rel=1e-6)
    assert first["judged"][:2] == pytest.approx([outcome.champion_loss, outcome.validation_loss], rel=1e-4)
    assert all(math.isnan(loss) for loss in second["judged"][:2])
    assert second["judged"][2] is False


def test_the_first_processs_answer_is_broadcast(both: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [seen["broadcast"] for seen in both[1]] == [3.5, 3.5]


def test_without_torchrun_the_world_has_one_process() -> None:
    with process_group("cpu") as processes:
        assert type(processes) is SingleProcess
        assert (processes.rank, processes.size, processes.first) == (0, 1, True)
        assert processes.broadcast(lambda: 2.0) == 2.0
        assert list(range(5))[processes.lane_slice] == list(range(5))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices: nccl takes one a process")
def test_two_gpus_train_like_one_process(tmp_path: Path) -> None:
    program = (
        "import sys, json, torch\n"
        "from tests.training.retrain import learn_together as t\n"
        "with t.process_group('cuda') as p:\n"
        "    outcome, losses = t.fine_tuned(p, t.recorded() if p.first else None)\n"
        "if p.first: open(sys.argv[1], 'w').write(json.dumps(losses))\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
         str(tmp_path / "losses.json")],
        cwd=CHECKOUT, env={"PYTHONPATH": str(CHECKOUT)}, timeout=DEADLINE, check=True,
    )  # fmt: skip
    _, losses = together.fine_tuned(SingleProcess(), together.recorded())
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(losses, rel=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_one_process_trains_the_same_on_a_gpu() -> None:
    _, losses = together.fine_tuned(SingleProcess(), together.recorded())
    _, on_gpu = together.fine_tuned(SingleProcess("cuda"), together.recorded())
    assert on_gpu == pytest.approx(losses, rel=1e-2)  # cuDNN multiplies in TF32
