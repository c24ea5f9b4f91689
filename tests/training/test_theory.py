"""The textbook's claims in short: what each cell learns at which lag, truncation, clipping; and docs/theory.md itself.

The long forms with all figures: `python -m tests.bench.theory`.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Generator

from tests.bench.tasks import (
    CHANCE,
    SYMBOLS,
    VARIANCE,
    adding,
    adding_task,
    chrono,
    echo,
    echo_task,
    learn,
    learn_by_ridge,
    remember,
)
from training.learn.settings import Learning
from training.network.model import Forecaster
from training.network.shape import Shape, cell_parameter_count

ROOT = Path(__file__).parents[2]
THEORY = ROOT / "docs" / "theory.md"


def test_the_tasks_have_the_stated_targets() -> None:
    sums = adding(50, 300, Generator().manual_seed(0))
    values, marked = sums.inputs[..., 0], sums.inputs[..., 1]
    assert marked[:50].sum(dim=0).tolist() == marked[50:].sum(dim=0).tolist() == [1.0] * 300
    torch.testing.assert_close((values * marked).sum(dim=0), sums.targets[-1, :, 0])
    assert float((sums.targets[-1] - 1).square().mean()) == pytest.approx(VARIANCE, rel=0.2)
    assert sums.mask.sum(dim=0).tolist() == [[1]] * 300

    symbols = echo(50, 300, Generator().manual_seed(0), rows=64)
    shown, marked = symbols.inputs[..., :SYMBOLS], symbols.inputs[..., SYMBOLS]
    assert torch.equal(shown.sum(dim=-1), torch.ones(64, 300))
    assert marked.sum(dim=0).tolist() == marked[-1 - 50].tolist() == [1.0] * 300
    torch.testing.assert_close(shown[-1 - 50].argmax(dim=-1).float(), symbols.targets[-1, :, 0])


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_at_lag_10_every_cell_learns_the_echo(cell: str) -> None:
    assert learn(cell, echo_task(10), 800, learning=Learning(learning_rate=0.01)).learnt


def test_at_lag_50_cells_with_open_gates_learn_the_echo_long_before_the_tanh_cell() -> None:
    """The same rate and sequences for all. One tanh cell in eight is lucky with its first weights: most are not."""
    rate = Learning(learning_rate=0.01)
    gated = [learn(cell, echo_task(50), 400, learning=rate, prepare=remember(chrono(50)), judge_every=50)
             for cell in ("lstm", "gru")]  # fmt: skip
    assert all(one.learnt for one in gated)
    steps = max(one.run.steps for one in gated)
    assert median(learn("rnn", echo_task(50), steps, learning=rate, seed=seed).error for seed in range(5)) > CHANCE / 2


def test_at_lag_200_the_lstm_with_open_gate_learns_the_echo_and_the_tanh_cell_does_not() -> None:
    rate = Learning(learning_rate=0.003)
    lstm = learn("lstm", echo_task(200), 900, learning=rate, prepare=remember(chrono(200)), judge_every=50)
    assert lstm.learnt
    assert learn("rnn", echo_task(200), lstm.run.steps, learning=rate).error > CHANCE / 2


def test_at_lag_50_the_lstm_and_the_gru_learn_to_add_and_the_tanh_cell_does_not() -> None:
    """Gates as they start, biases 1 and 0. Who only knows the later value has an error of 1 / 12."""
    rate = Learning(learning_rate=0.02)
    gated = [learn(cell, adding_task(50), 2000, learning=rate, judge_every=50) for cell in ("lstm", "gru")]
    assert all(one.learnt for one in gated)
    steps = max(one.run.steps for one in gated)
    assert learn("rnn", adding_task(50), steps, learning=rate).error > 0.08


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_truncation_one_row_shorter_than_the_lag_fails_and_one_row_more_learns(cell: str) -> None:
    """Lag 10: the gradient must reach 11 rows, the symbol's and the answer's own included."""
    task, learning = echo_task(10, rows=24), Learning(learning_rate=0.01)
    assert learn(cell, task, 800, learning=learning, backpropagate=11).learnt
    assert learn(cell, task, 800, learning=learning, backpropagate=10).error > 0.4


def test_truncation_shorter_than_the_lag_leaves_the_markers_weights_unchanged() -> None:
    def reading(backpropagate: int) -> tuple[torch.Tensor, torch.Tensor]:
        task = echo_task(10, rows=24)
        found = []
        for steps in (0, 20):
            model = learn("lstm", task, steps, backpropagate=backpropagate, judge_every=20).model
            found.append(model.cell.get_parameter("rnn.weight_ih_l0")[:, SYMBOLS].detach())
        return found[0], found[1]

    before, after = reading(10)
    assert torch.equal(before, after)
    before, after = reading(11)
    assert not torch.equal(before, after)


def test_a_run_diverges_without_clipping_and_learns_with_it() -> None:
    """The tanh cell adds two values six rows back, by SGD with momentum at a rate of 0.1."""
    ends = {}
    for clip, limit in (("norm", 0.3), ("off", 1.0)):
        learning = Learning.model_validate(
            {"optimiser": "sgd", "learning_rate": 0.1, "momentum": 0.9, "clip": clip, "clip_limit": limit}
        )
        ends[clip] = learn("rnn", adding_task(6), 1000, learning=learning)
    assert ends["norm"].run.outcome != "diverged"
    assert ends["norm"].run.skipped == 0
    assert ends["norm"].error < VARIANCE / 2
    assert ends["off"].run.outcome == "diverged"


def test_ridge_regression_fits_a_reservoirs_readout_better_than_gradient_descent() -> None:
    """Read out in closed form and by 100 steps of Adam, ten rows back."""
    ridge = learn_by_ridge(echo_task(10), 3200, hidden_size=100)
    gradient = learn("esn", echo_task(10), 100, hidden_size=100, learning=Learning(learning_rate=0.01))
    assert ridge.error < gradient.error < CHANCE + 0.1
    assert ridge.error < CHANCE / 2


# --- docs/theory.md ---------------------------------------------------------------------------------------------------


def test_the_theorys_parameter_counts_are_the_forecasters() -> None:
    text = THEORY.read_text(encoding="utf-8").replace("{,}", ",")

    def numbers(**shape: int) -> int:
        return sum(p.numel() for p in Forecaster(Shape("lstm", 48, **shape)).parameters())

    for reported, counted in {
        "= 12,050$ numbers": numbers(),
        "= 18,816$ and": numbers(layers=2) - numbers() - 288,
        "= 4,608$": numbers(attention_window=16) - numbers(),
    }.items():
        assert reported in text
        assert int(re.sub(r"\D", "", reported)) == counted
    for cell, gates in {"rnn": 1, "gru": 3, "lstm": 4}.items():
        assert f"| {cell} | {gates} | {cell_parameter_count(cell, 11, 48):,} | {48 * gates} |" in text


LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
NAMED = re.compile(r"`([\w/.-]+\.py)`(?: `([\w.]+)`)?")  # [`file.py` `Class.method`](../file.py)


@cache
def names_of(path: Path) -> frozenset[str]:
    """Return the functions, classes, methods, fields and constants that a Python file defines."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    collect(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(prefix + name.id for target in targets for name in ast.walk(target)
                             if isinstance(name, ast.Name))  # fmt: skip

    collect(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


def test_every_file_function_and_test_that_the_theory_names_exists() -> None:
    text = THEORY.read_text(encoding="utf-8")
    named = 0
    for label, target in LINK.findall(text):
        if target.startswith(("http://", "https://", "#")):
            continue
        path = (THEORY.parent / target.partition("#")[0]).resolve()
        assert path.exists(), f"docs/theory.md links to {target}, which does not exist"
        match = NAMED.fullmatch(label)
        if path.suffix == ".py":
            assert match, f"[{label}]({target}): expected [`path/file.py` `name`](../path/file.py)"
            assert (ROOT / match[1]).resolve() == path, f"[{label}]({target}): names one file and links to another"
            if match[2]:
                assert match[2] in names_of(path), f"docs/theory.md: {match[1]} has no {match[2]}"
                named += 1
    assert named > 40
    bare = NAMED.findall(LINK.sub("", text))
    assert bare == [], f"docs/theory.md names files without a link: {bare}"


def test_every_command_that_the_theory_names_exists() -> None:
    text = THEORY.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([\w-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"docs/theory.md: there is no `make {target}`"
    modules = re.findall(r"python -m (tests[\w.]+|training[\w.]+)(?: ([a-z ]+))?", text)
    assert modules
    parts = names_of(ROOT / "tests" / "bench" / "theory.py")
    for module, asked in modules:
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), f"docs/theory.md: there is no {module}"
        for part in asked.split() if module == "tests.bench.theory" else ():
            assert f"part_{part}" in parts, f"docs/theory.md: the benchmark has no part {part}"
