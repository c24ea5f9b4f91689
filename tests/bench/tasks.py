"""Tasks that need a memory, a small network for them, and one way of learning them with the project's own loop.

Adding problem (Hochreiter and Schmidhuber 1997): each row is a value from 0 to 1 and a marker; two rows are marked, and
after the last row the sum of their values is asked for. Who always says 1, the mean, is off by 1/6 on average squared.

Delayed echo: each row is a symbol, one of them is marked; when the sequence ends it is to be said which that was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from training.learn.optimisers import build_optimiser
from training.learn.settings import Learning
from training.learn.tbptt import Loss, Sequences, TrainResult, train
from training.network.cells import CELLS, Cell, GruCell, LstmCell, VanillaCell

VARIANCE = 1 / 6  # of the sum of two uniform values: the adding problem's error without a memory
SYMBOLS = 4
CHANCE = 1 - 1 / SYMBOLS  # the echo's share of wrong answers without a memory
HELD_BACK = 400  # sequences that a network is judged by


def adding(lag: int, batch: int, made: Generator) -> Sequences:
    """Return sequences of 2 `lag` rows: one value is marked in the first half, at least `lag` rows back, one after."""
    time, lanes = 2 * lag, torch.arange(batch)
    values = torch.rand(time, batch, generator=made)
    marked = torch.zeros(time, batch)
    marked[torch.randint(0, lag, (batch,), generator=made), lanes] = 1
    marked[torch.randint(lag, time, (batch,), generator=made), lanes] = 1
    return _asked_at_the_end(torch.stack([values, marked], dim=-1), (values * marked).sum(dim=0))


def echo(lag: int, batch: int, made: Generator, rows: int = 0) -> Sequences:
    """Return sequences of `rows` rows (at least `lag` + 1) of symbols; the one `lag` rows before the last is marked."""
    time = max(rows, lag + 1)
    symbols = torch.randint(0, SYMBOLS, (time, batch), generator=made)
    asked = time - 1 - lag
    marked = torch.zeros(time, batch, 1)
    marked[asked] = 1
    return _asked_at_the_end(torch.cat([functional.one_hot(symbols, SYMBOLS), marked], dim=-1), symbols[asked].float())


def _asked_at_the_end(inputs: Tensor, answers: Tensor) -> Sequences:
    targets = torch.zeros(*inputs.shape[:2], 1)
    targets[-1, :, 0] = answers
    mask = torch.zeros_like(targets, dtype=torch.bool)
    mask[-1] = True
    return Sequences(inputs, targets, mask)


class Reader(nn.Module):
    """One layer of `training.network.cells` and a linear readout of its hidden state."""

    def __init__(self, cell: str, inputs: int, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.cell = CELLS[cell](inputs, hidden_size)
        self.readout = nn.Linear(hidden_size, outputs)
        nn.init.xavier_uniform_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.cell.state_size)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden, state = self.cell(inputs, state)
        return self.readout(hidden), state


def squared(model: Reader, part: Sequences, state: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error of the answers that are asked for in `part`; a part without any has the loss 0."""
    said, state = model(part.inputs, state)
    asked = part.mask[..., 0]
    error = said[asked][:, 0] - part.targets[asked][:, 0]
    return error.square().sum() / max(len(error), 1), state


def entropy(model: Reader, part: Sequences, state: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the symbols that are asked for in `part`; a part without any has the loss 0."""
    said, state = model(part.inputs, state)
    asked = part.mask[..., 0]
    answers = part.targets[asked][:, 0].long()
    return functional.cross_entropy(said[asked], answers, reduction="sum") / max(len(answers), 1), state


@torch.no_grad()
def mean_square(model: Reader, batch: Sequences) -> float:
    """Mean squared error of the answers."""
    said, _ = model(batch.inputs, model.initial_state(batch.inputs.shape[1]))
    return float((said[-1, :, 0] - batch.targets[-1, :, 0]).square().mean())


@torch.no_grad()
def share_wrong(model: Reader, batch: Sequences) -> float:
    """Share of the symbols that are not the most likely ones by the model."""
    said, _ = model(batch.inputs, model.initial_state(batch.inputs.shape[1]))
    return float((said[-1].argmax(dim=-1) != batch.targets[-1, :, 0]).float().mean())


@dataclass(frozen=True)
class Task:
    """What is to be learnt, and when it counts as learnt."""

    draw: Callable[[int, Generator], Sequences]  # (how many sequences, generator)
    inputs: int
    outputs: int
    loss: Loss
    error: Callable[[Reader, Sequences], float]
    learnt: float  # an error below is as good as none
    guess: float  # the error of who guesses


def adding_task(lag: int) -> Task:
    """Return the adding problem at this lag."""

    def draw(batch: int, made: Generator) -> Sequences:
        return adding(lag, batch, made)

    return Task(draw, 2, 1, squared, mean_square, learnt=0.01, guess=VARIANCE)


def echo_task(lag: int, rows: int = 0) -> Task:
    """Return the delayed echo at this lag."""

    def draw(batch: int, made: Generator) -> Sequences:
        return echo(lag, batch, made, rows)

    return Task(draw, SYMBOLS + 1, SYMBOLS, entropy, share_wrong, learnt=0.05, guess=CHANCE)


@dataclass(frozen=True)
class TaskResult:
    """How a network did."""

    run: TrainResult
    error: float  # on held-back sequences, by the best weights seen
    learnt: bool
    seconds: float
    model: Reader


def learn(
    cell: str,
    task: Task,
    steps: int,
    *,
    learning: Learning | None = None,
    seed: int = 0,
    hidden_size: int = 32,
    batch: int = 32,
    backpropagate: int | None = None,
    prepare: Callable[[Reader], None] = lambda model: None,
    judge_every: int = 100,
) -> TaskResult:
    """Learn a task in at most `steps` steps of `batch` sequences each, one step a sequence; end when it is learnt.

    backpropagate: k2, rows that the gradient flows back; None: the whole sequence. prepare: changes initial weights.
    """
    learning = learning or Learning(learning_rate=0.005)
    torch.manual_seed(seed)
    made = Generator().manual_seed(seed)
    held_back = task.draw(HELD_BACK, Generator().manual_seed(1_000_000))
    model = Reader(cell, task.inputs, hidden_size, task.outputs)
    prepare(model)
    judged: list[float] = []

    def judge(model: Reader) -> float:
        judged.append(task.error(model, held_back))
        return judged[-1]

    began = perf_counter()
    run = train(
        model,
        (task.draw(batch, made) for _ in range(steps)),
        build_optimiser(learning, model),
        chunk=len(held_back.inputs),
        backpropagate=backpropagate,
        loss=task.loss,
        clip_norm=learning.clip_norm,
        clip_value=learning.clip_value,
        validate=judge,
        validate_every=judge_every,
        patience=steps,  # a plateau may last long before the answer is found
        stop=lambda: judged[-1] < task.learnt,
    )
    return TaskResult(run, run.validation, run.validation < task.learnt, perf_counter() - began, model)


def learn_by_ridge(task: Task, sequences: int, *, hidden_size: int, penalty: float = 1e-6, seed: int = 0) -> TaskResult:
    """Fit the readout of a reservoir in closed form: w = (F'F + n penalty I)^-1 F'y, F being hidden states and 1."""
    torch.manual_seed(seed)
    model = Reader("esn", task.inputs, hidden_size, task.outputs)
    batch = task.draw(sequences, Generator().manual_seed(seed))
    began = perf_counter()
    with torch.no_grad():
        hidden, _ = model.cell(batch.inputs, model.initial_state(sequences))
        features = torch.cat([hidden[-1], torch.ones(sequences, 1)], dim=1).double()  # [sequences, hidden_size + 1]
        answers = batch.targets[-1].double()
        if task.outputs > 1:
            answers = functional.one_hot(answers[:, 0].long(), task.outputs).double()
        ridge = penalty * sequences * torch.eye(features.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(features.T @ features + ridge, features.T @ answers).float()
        model.readout.weight.copy_(weights[:-1].T)
        model.readout.bias.copy_(weights[-1])
    error = task.error(model, task.draw(HELD_BACK, Generator().manual_seed(1_000_000)))
    return TaskResult(TrainResult(), error, error < task.learnt, perf_counter() - began, model)


def remember(bias: float) -> Callable[[Reader], None]:
    """Return what opens the gate by which a cell keeps its state: sigmoid(bias) of it stays at each step at first.

    ln(lag - 1) keeps 1 / e over `lag` steps (Tallec and Ollivier 2018); the LSTM's input gate is closed as far.
    """

    def prepare(model: Reader) -> None:
        cell: Cell = model.cell
        assert isinstance(cell, LstmCell | GruCell)
        size, biases = cell.hidden_size, cell.rnn.get_parameter("bias_ih_l0").data
        biases[size : 2 * size] = bias  # the LSTM's forget gate, the GRU's update gate
        if isinstance(cell, LstmCell):
            biases[:size] = -bias

    return prepare


def recurrent_radius(radius: float) -> Callable[[Reader], None]:
    """Return what scales the tanh cell's orthogonal recurrent matrix, whose eigenvalues all lie on this radius then."""

    def prepare(model: Reader) -> None:
        cell: Cell = model.cell
        assert isinstance(cell, VanillaCell)
        cell.rnn.get_parameter("weight_hh_l0").data.mul_(radius)

    return prepare


def chrono(lag: int) -> float:
    """Return the bias that keeps 1 / e of the state over `lag` steps."""
    return math.log(lag - 1)
