"""Gradients of the training loop equal those derived by other means: unrolled autograd, textbook sums, by hand.

All in float64, so that equal means equal but for the order of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import textbook
from training.learn.tbptt import Sequences, loss_of, part, train
from training.network.cells import Cell, LstmCell, VanillaCell
from training.network.inputs import INPUT_SIZE
from training.network.model import Forecaster
from training.network.shape import Shape

pytestmark = pytest.mark.usefixtures("float64")

TIME, LANES = 11, 3
CLOSE = {"atol": 1e-13, "rtol": 1e-10}


class Network(nn.Module):
    """A cell and one weight for each hidden unit: y_t = v . h_t."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell
        self.v = nn.Parameter(torch.randn(cell.hidden_size))

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.cell.state_size)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden, state = self.cell(inputs, state)
        return hidden @ self.v, state


def squared(model: Network, part: Sequences, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum_t (y_t - d_t)^2 / 2."""
    y, state = model(part.inputs, state)
    return 0.5 * (y - part.targets[..., 0]).square().sum(), state


def sequences(time: int, lanes: int, inputs: int) -> Sequences:
    targets = torch.randn(time, lanes, 1)
    return Sequences(torch.randn(time, lanes, inputs), targets, torch.ones_like(targets, dtype=torch.bool))


class Keep(torch.optim.SGD):
    """Takes steps of size zero and keeps the gradients that it was given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.model = model
        self.seen: list[dict[str, Tensor]] = []

    def step(self, closure: Callable[[], float] | None = None) -> None:
        self.seen.append({name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None})


def gradients(model: Network, batch: Sequences, k1: int, k2: int | None = None) -> list[dict[str, Tensor]]:
    """Return the gradient of each step that the loop takes."""
    kept = Keep(model)
    train(model, [batch], kept, chunk=k1, backpropagate=k2, loss=squared, clip_norm=math.inf)
    return kept.seen


def unrolled(model: Network, batch: Sequences, cut: int, rows: range) -> dict[str, Tensor]:
    """Return the gradient of the loss of `rows`, by autograd through single steps, the state detached before `cut`."""
    model.zero_grad()
    state, total = model.initial_state(batch.inputs.shape[1]), torch.zeros(())
    for t in range(rows.stop):
        if t == cut:
            state = state.detach()
        state = textbook.step(model.cell, batch.inputs[t], state)
        if t in rows:
            y = state[:, : model.cell.hidden_size] @ model.v
            total = total + 0.5 * (y - batch.targets[t, :, 0]).square().sum()
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_with_k1_and_k2_of_the_sequences_length_the_gradient_is_full_bptt(cell: str) -> None:
    model = Forecaster(Shape(cell, hidden_size=5))
    batch = sequences(TIME, LANES, INPUT_SIZE)
    batch = batch._replace(targets=batch.targets.expand(-1, -1, 2), mask=batch.mask.expand(-1, -1, 2))
    kept = Keep(model)
    train(model, [batch], kept, chunk=TIME, backpropagate=TIME, clip_norm=math.inf)

    model.zero_grad()
    state, total = model.initial_state(LANES), torch.zeros(())
    for t in range(TIME):  # one step at a time, nothing detached
        value, state = loss_of(model, part(batch, t, t + 1), state)
        total = total + value / TIME
    total.backward()
    assert len(kept.seen) == 1
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(kept.seen[0][name], parameter.grad, **CLOSE)


@pytest.mark.parametrize(
    ("k1", "k2", "steps"),
    [  # steps: (row before which the state is detached, rows of the loss), 11 rows
        (4, 4, [(0, range(4)), (4, range(4, 8)), (8, range(8, 11))]),
        (2, 5, [(max(t - 3, 0), range(t, min(t + 2, 11))) for t in (0, 2, 4, 6, 8, 10)]),
        (3, 4, [(0, range(3)), (2, range(3, 6)), (5, range(6, 9)), (8, range(9, 11))]),
        (1, 11, [(0, range(t, t + 1)) for t in range(11)]),
        (4, 11, [(0, range(4)), (0, range(4, 8)), (1, range(8, 11))]),
        (4, 1, [(3, range(3, 4)), (7, range(7, 8)), (10, range(10, 11))]),
        (5, 3, [(2, range(2, 5)), (7, range(7, 10)), (10, range(10, 11))]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cell", [VanillaCell, LstmCell])
def test_every_k1_rows_gradients_flow_back_k2_rows(
    cell: type[Cell], k1: int, k2: int, steps: list[tuple[int, range]]
) -> None:
    model, batch = Network(cell(2, 4)), sequences(TIME, LANES, 2)
    found = gradients(model, batch, k1, k2)
    assert len(found) == len(steps)
    for gradient, (cut, rows) in zip(found, steps, strict=True):
        for name, expected in unrolled(model, batch, cut, rows).items():
            torch.testing.assert_close(gradient[name], expected, **CLOSE)


def test_the_truncation_length_changes_the_gradient() -> None:
    model, batch = Network(VanillaCell(2, 4)), sequences(TIME, LANES, 2)
    last = [gradients(model, batch, 2, k2)[-1]["cell.rnn.weight_hh_l0"] for k2 in (2, 3, 5, TIME)]
    for shorter, longer in pairwise(last):
        assert (shorter - longer).abs().max() > 1e-6


def test_the_state_is_carried_on_for_any_k1_and_k2() -> None:
    """The last loss is that of the uncut forward pass: only gradients are cut, the past is not."""
    model, batch = Network(LstmCell(2, 4)), sequences(TIME, LANES, 2)
    with torch.no_grad():
        y, _ = model(batch.inputs, model.initial_state(LANES))
    for k1, k2 in ((1, 1), (1, 4), (1, 7), (5, 1), (10, 4)):
        losses: list[float] = []
        train(
            model, [batch], Keep(model), chunk=k1, backpropagate=k2, loss=squared,
            on_step=lambda step, losses=losses: losses.append(step.loss),
        )  # fmt: skip
        assert losses[-1] == pytest.approx(float(0.5 * (y[-1] - batch.targets[-1, :, 0]).square().sum()), rel=1e-12)


# --- The textbook's formulas ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k1", "k2"), [(TIME, TIME), (4, 4), (3, 5)])
def test_the_recurrent_gradient_is_the_sum_over_time_of_products_of_jacobians(k1: int, k2: int) -> None:
    """dL_t/dU = sum_k dL_t/dh_t (prod_(j=k+1..t) dh_j/dh_(j-1)) d+h_k/dU, with dh_j/dh_(j-1) = diag(1 - h_j^2) U."""
    model, batch = Network(VanillaCell(2, 3)), sequences(TIME, 1, 2)
    found = gradients(model, batch, k1, k2)

    W, U, b, c = (parameter.detach().numpy() for parameter in model.cell.rnn.parameters())
    v, x, d = model.v.detach().numpy(), batch.inputs[:, 0].numpy(), batch.targets[:, 0, 0].numpy()
    h = [np.zeros(3)]  # h[t + 1] is that of row t
    for t in range(TIME):
        h.append(np.tanh(W @ x[t] + U @ h[-1] + b + c))
    jacobian = [np.diag(1 - h[t + 1] ** 2) @ U for t in range(TIME)]

    for step, first in enumerate(range(0, TIME, k1)):
        cut = max(first - (k2 - k1), 0)
        dU = np.zeros((3, 3))
        for t in range(first, min(first + k1, TIME)):
            for k in range(cut, t + 1):
                row = (v @ h[t + 1] - d[t]) * v  # dL_t/dh_t
                for j in range(t, k, -1):
                    row = row @ jacobian[j]
                dU += np.outer(row * (1 - h[k + 1] ** 2), h[k])  # d+h_k/dU: U moves h_k through h_(k-1) alone
        np.testing.assert_allclose(found[step]["cell.rnn.weight_hh_l0"].numpy(), dU, atol=1e-13, rtol=1e-10)


def test_the_gradients_of_one_tanh_unit_equal_hand_derived_ones() -> None:
    """h_t = tanh(w x_t + u h_(t-1) + b), y_t = v h_t, L = sum (y_t - d_t)^2 / 2, second chunk of three rows.

    dL/dh_5 = v e_5; dL/dh_t = v e_t + u (1 - h_(t+1)^2) dL/dh_(t+1); with s_t = (1 - h_t^2) dL/dh_t:
    dL/dw = sum s_t x_t, dL/du = sum s_t h_(t-1), dL/db = sum s_t, dL/dv = sum e_t h_t.
    """
    model, batch = Network(VanillaCell(1, 1)), sequences(6, 1, 1)
    found = gradients(model, batch, 3)[1]

    w, u, b, c = (float(parameter.detach()) for parameter in model.cell.rnn.parameters())
    v, x, d = float(model.v.detach()), batch.inputs[:, 0, 0].tolist(), batch.targets[:, 0, 0].tolist()
    h = [0.0]
    for x_t in x:
        h.append(math.tanh(w * x_t + u * h[-1] + b + c))
    h2, h3, h4, h5 = h[3:]
    e3, e4, e5 = v * h3 - d[3], v * h4 - d[4], v * h5 - d[5]
    s5 = (1 - h5**2) * v * e5
    s4 = (1 - h4**2) * (v * e4 + u * s5)
    s3 = (1 - h3**2) * (v * e3 + u * s4)
    by_hand = {
        "cell.rnn.weight_ih_l0": s3 * x[3] + s4 * x[4] + s5 * x[5],
        "cell.rnn.weight_hh_l0": s3 * h2 + s4 * h3 + s5 * h4,  # h2 is carried over the cut, and moved no further
        "cell.rnn.bias_ih_l0": s3 + s4 + s5,
        "cell.rnn.bias_hh_l0": s3 + s4 + s5,
        "v": e3 * h3 + e4 * h4 + e5 * h5,
    }
    for name, expected in by_hand.items():
        assert float(found[name]) == pytest.approx(expected, rel=1e-12)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_gradients_of_one_lstm_unit_equal_hand_derived_ones() -> None:
    """Error flows back through h and through C, which the forget gate alone weakens: dC_t/dC_(t-1) = f_t."""
    model, batch = Network(LstmCell(1, 1)), sequences(6, 1, 1)
    model.cell.rnn.weight_hh_l0.data.uniform_(-1, 1)
    found = gradients(model, batch, 3)[1]

    w, u, b, c = (
        parameter.detach().flatten().numpy() for parameter in model.cell.rnn.parameters()
    )  # gates i, f, C~, o
    v, x, d = float(model.v.detach()), batch.inputs[:, 0, 0].tolist(), batch.targets[:, 0, 0].tolist()
    h, C = [0.0], [0.0]
    gates: list[tuple[float, float, float, float]] = []
    for x_t in x:
        z = w * x_t + u * h[-1] + b + c
        i, f, new, o = sigmoid(z[0]), sigmoid(z[1]), math.tanh(z[2]), sigmoid(z[3])
        C.append(f * C[-1] + i * new)
        h.append(o * math.tanh(C[-1]))
        gates.append((i, f, new, o))

    dw, du, db, dv = np.zeros(4), np.zeros(4), np.zeros(4), 0.0
    from_h = from_C = 0.0  # what the row after this one hands back
    for t in (5, 4, 3):
        i, f, new, o = gates[t]
        error = v * h[t + 1] - d[t]
        dh = v * error + from_h
        squashed = math.tanh(C[t + 1])
        dC = dh * o * (1 - squashed**2) + from_C
        dz = np.array(
            [dC * new * i * (1 - i), dC * C[t] * f * (1 - f), dC * i * (1 - new**2), dh * squashed * o * (1 - o)]
        )
        dw, du, db, dv = dw + dz * x[t], du + dz * h[t], db + dz, dv + error * h[t + 1]
        from_h, from_C = float(dz @ u), dC * f
    by_hand = {
        "cell.rnn.weight_ih_l0": dw,
        "cell.rnn.weight_hh_l0": du,
        "cell.rnn.bias_ih_l0": db,
        "cell.rnn.bias_hh_l0": db,
        "v": dv,
    }
    for name, expected in by_hand.items():
        np.testing.assert_allclose(found[name].numpy().squeeze(), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("cell", [VanillaCell, LstmCell])
def test_the_gradients_of_a_chunk_equal_finite_differences(cell: type[Cell]) -> None:
    """Central differences of the second chunk's loss, the state that it begins with held as it is."""
    model, batch = Network(cell(1, 1)), sequences(6, 1, 1)
    found = gradients(model, batch, 3)[1]
    with torch.no_grad():
        _, state = squared(model, part(batch, 0, 3), model.initial_state(1))
        for name, parameter in model.named_parameters():
            flat = parameter.view(-1)
            for i in range(len(flat)):
                around = []
                for shift in (1e-6, -2e-6):
                    flat[i] += shift
                    around.append(float(squared(model, part(batch, 3, 6), state)[0]))
                flat[i] += 1e-6
                slope = (around[0] - around[1]) / 2e-6
                assert float(found[name].view(-1)[i]) == pytest.approx(slope, rel=1e-6, abs=1e-8)
