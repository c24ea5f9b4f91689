"""What docs/theory.md claims, measured: python -m tests.bench.theory [PART ...].

Prints a table for each part; without a part named, all (`make bench-theory`). On one core, from fixed seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter

import torch
from torch import Generator, Tensor

from tests.bench.cures import measured
from tests.bench.make_priors import metrics
from tests.bench.tasks import (
    CHANCE,
    VARIANCE,
    Reader,
    Task,
    TaskResult,
    adding_task,
    chrono,
    echo_task,
    learn,
    learn_by_ridge,
    recurrent_radius,
    remember,
)
from tests.textbook import jacobians, product_norms
from training.learn.gradients import state_gradients
from training.learn.optimisers import build_optimiser
from training.learn.readout import fit_locations, only_heads
from training.learn.settings import Learning
from training.learn.tbptt import Sequences, train
from training.network.cells import CELLS, Cell
from training.network.horizons import SHIPPED_HORIZONS
from training.network.inputs import INPUT_SIZE
from training.network.model import Forecaster
from training.network.shape import Shape
from training.network.weights import load_prior

LAGS = (10, 50, 200)
TRAINED = ("rnn", "lstm", "gru")
TRIES = ((1, 0.01), (0, 0.003))  # seed and Adam's learning rate: two tries for each cell, the second if the first fails
RESERVOIR = 200  # units of the echo state network: untrained ones are cheap


Kind = tuple[str, str, Callable[[int], float] | None]
"""A row's name, its cell, and what bias opens its gate, by the lag; None: the one that it starts with."""

AS_THEY_START: list[Kind] = [("rnn", "rnn", None), ("lstm (forget bias 1)", "lstm", None), ("gru", "gru", None)]
WITH_OTHER_BIASES: list[Kind] = [
    ("lstm, forget bias ln(lag - 1), input bias the opposite", "lstm", chrono),
    ("gru, update bias ln(lag - 1)", "gru", chrono),
]


def as_it_starts(model: Reader) -> None:
    """Leave the initial weights as they are."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


def outcome(done: TaskResult) -> str:
    """Return the error and, where the task was learnt by steps, after how many."""
    if not done.learnt:
        return f"{done.error:.4f}"
    return f"**{done.error:.4f}** ({done.run.steps} steps)" if done.run.steps else f"**{done.error:.4f}**"


def in_two_tries(cell: str, task: Task, steps: int, prepare: Callable[[Reader], None] = as_it_starts) -> TaskResult:
    """Learn with one seed and learning rate and, where that fails, with another; return the better one."""
    done = []
    for seed, rate in TRIES:
        done.append(learn(cell, task, steps, seed=seed, learning=Learning(learning_rate=rate), prepare=prepare))
        if done[-1].learnt:
            break
    return min(done, key=lambda one: one.error)


def by_lag(tasks: dict[int, Task], steps: int, kinds: Sequence[Kind]) -> None:
    """Print what each kind of cell makes of a task at each lag; a reservoir's readout is fitted in closed form."""

    def rows() -> Iterator[list[str]]:
        for name, cell, bias in kinds:
            done = [
                in_two_tries(cell, task, steps, as_it_starts if bias is None else remember(bias(lag)))
                for lag, task in tasks.items()
            ]
            yield [name, *map(outcome, done)]
        ridge = [learn_by_ridge(task, 4000, hidden_size=RESERVOIR) for task in tasks.values()]
        yield [f"esn, {RESERVOIR} units, ridge regression on 4,000 sequences", *map(outcome, ridge)]

    table(["cell", *(f"lag {lag}" for lag in tasks)], rows())


def part_adding() -> None:
    """Adding problem."""
    print(f"Mean squared error after at most 3,000 steps of 32 sequences; guessing: {VARIANCE:.4f}; learnt: below 0.01")
    by_lag({lag: adding_task(lag) for lag in LAGS}, 3000, AS_THEY_START)


def part_echo() -> None:
    """Delayed echo."""
    print(f"Share wrong after at most 1,000 steps of 32 sequences; guessing: {CHANCE}; learnt: below 0.05")
    by_lag({lag: echo_task(lag) for lag in LAGS}, 1000, [*AS_THEY_START, *WITH_OTHER_BIASES])


def part_truncation() -> None:
    """Truncation shorter than the lag: the delayed echo, k1 the whole sequence, k2 as said."""
    rate = Learning(learning_rate=0.01)
    print(f"Share wrong after at most 1,000 steps, lag 10, sequences of 24 rows; guessing: {CHANCE}")
    lengths = (5, 10, 11, 12, 24)
    rows = (
        [
            cell,
            *(outcome(learn(cell, echo_task(10, rows=24), 1000, learning=rate, backpropagate=k2)) for k2 in lengths),
        ]
        for cell in TRAINED
    )
    table(["cell", *(f"k2 = {k2}" for k2 in lengths)], rows)
    print("\nThe same at lag 50, sequences of 64 rows, biases ln(49)")
    lengths = (25, 50, 51, 52, 64)
    task, start = echo_task(50, rows=64), remember(chrono(50))
    rows = (
        [
            cell,
            *(outcome(learn(cell, task, 1000, learning=rate, backpropagate=k2, prepare=start)) for k2 in lengths),
        ]
        for cell in ("lstm", "gru")
    )
    table(["cell", *(f"k2 = {k2}" for k2 in lengths)], rows)


def part_clipping() -> None:
    """Clipping: the tanh cell, adding problem at lag 10, SGD with momentum 0.9 and learning rate 0.1."""
    print(f"1,000 steps of 32 sequences; guessing: {VARIANCE:.4f}")
    rows = []
    for seed in (0, 1, 2):
        row = [str(seed)]
        for clip, limit in (("norm", 0.3), ("value", 0.05), ("off", 1.0)):
            learning = Learning.model_validate(
                {"optimiser": "sgd", "learning_rate": 0.1, "momentum": 0.9, "clip": clip, "clip_limit": limit}
            )
            done = learn("rnn", adding_task(10), 1000, seed=seed, learning=learning)
            row.append(f"{done.run.outcome} at step {done.run.steps}, {done.error:.4f}")
        rows.append(row)
    table(["seed", "by norm, 0.3", "by value, 0.05", "off"], rows)


def summed_square(outputs: Tensor) -> Tensor:
    """Return a loss of the last step that reads every unit alike: sum of h^2 / 2."""
    return outputs[-1].square().sum() / 2


def reach(cell: Cell, inputs: Tensor, lags: Sequence[int]) -> list[str]:
    """Return |dL_t/ds_(t-k)| for each lag, as text."""
    state = torch.zeros(inputs.shape[1], cell.state_size)
    norms = state_gradients(cell, inputs, state, lags, summed_square).norm(dim=-1).mean(dim=-1)  # [lags]
    return [f"{norm:.1e}" for norm in norms]


def part_gradients() -> None:
    """How far back a gradient reaches: |dL_t/ds_(t-k)|, mean over 32 sequences."""
    lags: tuple[int, ...] = (1, 10, 50, 100, 200)
    inputs = torch.randn(200, 32, 3, generator=Generator().manual_seed(0))
    rows = []
    for name, change in (
        ("rnn, as it starts (radius 1)", None),
        ("rnn, radius 0.5", recurrent_radius(0.5)),
        ("rnn, radius 1.5", recurrent_radius(1.5)),
        ("rnn, radius 3", recurrent_radius(3.0)),
        ("lstm, forget bias 0", remember(0.0)),
        ("lstm, forget bias 1 (as it starts)", None),
        ("lstm, forget bias 5, input bias -5", remember(5.0)),
        ("gru, update bias 0 (as it starts)", None),
        ("gru, update bias 5", remember(5.0)),
        ("esn", None),
    ):
        torch.manual_seed(0)
        reader = Reader(name.split(",")[0].split(" ")[0], 3, 32, 1)
        if change is not None:
            change(reader)
        rows.append([name, *reach(reader.cell, inputs, lags)])
    table(["cell, 32 units, untrained, noise of deviation 1 in", *(f"k = {lag}" for lag in lags)], rows)

    print("\nSpectral norm of J_t ... J_(t-k+1), and its bound, the product of their norms; one sequence")
    rows = []
    lags = (1, 10, 50, 100)
    for cell in CELLS:
        torch.manual_seed(0)
        layer = CELLS[cell](3, 32)
        norms, bounds = product_norms(jacobians(layer, inputs[:100, 0], torch.zeros(layer.state_size)))
        rows.append([cell, *(f"{float(norms[k - 1]):.1e} <= {float(bounds[k - 1]):.1e}" for k in lags)])
    table(["cell", *(f"k = {lag}" for lag in lags)], rows)

    print("\nThe same after learning (adding problem, lag 50, at most 1,500 steps), on its own sequences of 100 rows")
    rows = []
    lags = (1, 10, 25, 50, 90)
    task = adding_task(50)
    drawn = task.draw(32, Generator().manual_seed(5)).inputs
    for cell in TRAINED:
        done = learn(cell, task, 1500, learning=Learning(learning_rate=0.01), seed=1)
        before = learn(cell, task, 0, seed=1)
        rows.append([f"{cell} before", f"{before.error:.4f}", *reach(before.model.cell, drawn, lags)])
        rows.append([f"{cell} after", f"{done.error:.4f}", *reach(done.model.cell, drawn, lags)])
    table(["cell", "error", *(f"k = {lag}" for lag in lags)], rows)


def values(lag: int, rows: int, lanes: int, seed: int) -> Sequences:
    """Return uniform values, one a row; the target of each row is the value `lag` rows before it."""
    inputs = torch.zeros(rows, lanes, INPUT_SIZE)
    inputs[..., 0] = 2 * torch.rand(rows, lanes, generator=Generator().manual_seed(seed)) - 1
    targets = inputs[..., :1].roll(lag, dims=0)
    mask = torch.ones_like(targets, dtype=torch.bool)
    mask[: max(lag, 100)] = False  # the reservoir has yet to forget its zero state
    return Sequences(inputs, targets, mask)


def location_loss(model: Forecaster, part: Sequences, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squared error of the locations: what ridge regression brings down, without its penalty."""
    forecast, state = model(part.inputs, state)
    return (forecast.location - part.targets)[part.mask].square().mean(), state


def explained(model: Forecaster, batch: Sequences) -> float:
    """Return the share of the targets' variance that the locations explain."""
    with torch.no_grad():
        forecast, _ = model(batch.inputs, model.initial_state(batch.inputs.shape[1]))
    asked = batch.targets[batch.mask]
    return 1 - float((forecast.location[batch.mask] - asked).square().mean() / asked.var())


def part_reservoir() -> None:
    """Echo state network: every row asks for the value k rows ago; the product's own two ways to a readout."""
    steps = 300
    print(f"Share of variance explained on held-back rows; {RESERVOIR} units, 3,200 rows to learn from")
    rows = []
    for lag in (1, 5, 10, 20):
        torch.manual_seed(0)
        model = Forecaster(Shape("esn", RESERVOIR, horizons=(1,)))
        drawn, held_back = values(lag, 300, 16, seed=1), values(lag, 300, 16, seed=2)
        by_gradient = only_heads(model, (1,))
        began = perf_counter()
        fit_locations(model, [drawn], penalty=1e-8)
        fitted = perf_counter()
        learning = Learning(learning_rate=0.01)
        optimiser = build_optimiser(learning, by_gradient)
        train(by_gradient, [drawn] * steps, optimiser, chunk=len(drawn.inputs), loss=location_loss)
        learnt = perf_counter()
        rows.append([
            lag,
            f"{explained(model, held_back):.3f} ({fitted - began:.2f} s)",
            f"{explained(by_gradient, held_back):.3f} ({learnt - fitted:.1f} s)",
        ])  # fmt: skip
    table(["k", "ridge regression", f"gradient (Adam, {steps} steps)"], rows)


def part_cures() -> None:
    """Regularisation, layers, attention and scheduled sampling: 240 steps on 8 synthetic series of 400 events."""
    print("Mean over 2 seeds; NLL in nats an event of the series learnt from and of 100 others; lower is better")
    head = [
        "",
        "learnt from, next",
        "others, next",
        "others, tenth",
        "sum of sizes of weights",
        "error, 10 steps rolled on",
    ]
    table(head, measured((0, 1)))


def part_horizons() -> None:
    """Likelihood by horizon of the shipped priors on held-back synthetic series."""
    print("NLL in nats, mean over series; lower is better")
    rows = []
    for cell in CELLS:
        found = metrics(load_prior(cell, SHIPPED_HORIZONS))
        rows.append([cell, *(f"{found[f'nll_{horizon}']:.2f}" for horizon in SHIPPED_HORIZONS)])
    table(["cell", *(f"{horizon} ahead" for horizon in SHIPPED_HORIZONS)], rows)


PARTS: dict[str, Callable[[], None]] = {
    "gradients": part_gradients,
    "clipping": part_clipping,
    "truncation": part_truncation,
    "reservoir": part_reservoir,
    "cures": part_cures,
    "horizons": part_horizons,
    "echo": part_echo,
    "adding": part_adding,
}


def main(asked: Sequence[str]) -> int:
    """Measure the parts that are asked for, or all; return the exit status."""
    unknown = [name for name in asked if name not in PARTS]
    if unknown:
        print(f"no part {', '.join(unknown)}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    for name in asked or PARTS:
        began = perf_counter()
        print(f"\n## {name}: {PARTS[name].__doc__}\n", flush=True)
        PARTS[name]()
        print(f"\n{perf_counter() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
