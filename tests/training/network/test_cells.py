"""The cells compared with the textbook: equations, parameter counts, initial weights, and how far back they reach."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.textbook import jacobians, product_norms, step
from training.learn.gradients import state_gradients
from training.network.cells import (
    CELLS,
    LINKS,
    SPECTRAL_RADIUS,
    Cell,
    EchoStateCell,
    GruCell,
    LstmCell,
    VanillaCell,
)
from training.network.shape import cell_parameter_count

pytestmark = pytest.mark.usefixtures("float64")

TIME, BATCH, INPUTS, HIDDEN = 30, 4, 3, 16
FUSED = {"rnn": 1, "lstm": 4, "gru": 3}  # cells with trained weights, and their gates


def weights(cell: Cell) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W, U and their biases of a cell that torch runs."""
    rnn = cell.rnn
    assert isinstance(rnn, torch.nn.RNNBase)
    return rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0


def with_random_biases(name: str, inputs: int = INPUTS, hidden: int = HIDDEN) -> Cell:
    """Both biases drawn: zeros would hide one in the wrong place (the GRU's candidate has its two apart)."""
    cell = CELLS[name](inputs, hidden)
    if name in FUSED:
        for bias in weights(cell)[2:]:
            bias.data.normal_()
    return cell


@pytest.mark.parametrize("name", CELLS)
def test_a_sequence_equals_the_textbook_step_row_by_row(name: str) -> None:
    cell = with_random_biases(name)
    inputs, start = torch.randn(TIME, BATCH, INPUTS), torch.randn(BATCH, cell.state_size)
    hidden, last = cell(inputs, start)
    state, steps = start, []
    for x in inputs:
        state = step(cell, x, state)
        steps.append(state[:, :HIDDEN])
    torch.testing.assert_close(hidden, torch.stack(steps), atol=1e-12, rtol=0)
    torch.testing.assert_close(last, state, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", CELLS)
def test_a_sequence_cut_anywhere_resumes_from_its_state(name: str) -> None:
    cell = with_random_biases(name)
    inputs, start = torch.randn(TIME, BATCH, INPUTS), torch.randn(BATCH, cell.state_size)
    whole, end = cell(inputs, start)
    first, middle = cell(inputs[:7], start)
    second, cut_end = cell(inputs[7:], middle)
    torch.testing.assert_close(torch.cat([first, second]), whole, atol=1e-12, rtol=0)
    torch.testing.assert_close(cut_end, end, atol=1e-12, rtol=0)


def test_one_unit_of_each_cell_equals_hand_computed_values() -> None:
    """One input and one unit with every weight 0.5 and every bias 0, from h = 0.2, C = -0.4, at x = 1."""
    pre, h, C = 0.5 * 1 + 0.5 * 0.2, 0.2, -0.4
    s = 1 / (1 + math.exp(-pre))
    next_C = s * C + s * math.tanh(pre)
    candidate = math.tanh(0.5 + s * 0.1)
    expected = {
        "rnn": [math.tanh(pre)],
        "lstm": [s * math.tanh(next_C), next_C],
        "gru": [(1 - s) * candidate + s * h],
        "esn": [0.7 * h + 0.3 * math.tanh(pre)],
    }
    for name, made in CELLS.items():
        cell = made(1, 1)
        for tensor in cell.state_dict().values():
            tensor.fill_(0.5 if tensor.ndim == 2 else 0.0)
        found = step(cell, torch.ones(1, 1), torch.tensor([[h, C][: cell.state_size]]))
        torch.testing.assert_close(found[0], torch.tensor(expected[name]), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("name", "count"), [("rnn", 2880), ("lstm", 11520), ("gru", 8640), ("esn", 0)])
def test_cell_parameter_counts_equal_the_theorys(name: str, count: int) -> None:
    """48 units, 11 inputs: (11 + 48) 48 + 48 = 2,880 a gate; torch holds a second bias, 48 a gate."""
    trained = sum(p.numel() for p in CELLS[name](11, 48).parameters())
    assert cell_parameter_count(name, 11, 48) == count
    assert trained == count + FUSED.get(name, 0) * 48


@pytest.mark.parametrize("name", FUSED)
def test_each_gates_recurrent_matrix_starts_orthogonal(name: str) -> None:
    _, U, _, _ = weights(CELLS[name](INPUTS, HIDDEN))
    for gate in U.split(HIDDEN):
        torch.testing.assert_close(gate @ gate.T, torch.eye(HIDDEN), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", FUSED)
def test_each_gates_input_matrix_starts_uniform_within_xaviers_bound(name: str) -> None:
    """Uniform on +-sqrt(6 / (d + H)), of variance 2 / (d + H); of one gate, not of all of them as one matrix."""
    d, H = 200, 100
    W, _, _, _ = weights(CELLS[name](d, H))
    bound = math.sqrt(6 / (d + H))
    assert 0.99 * bound < float(W.detach().abs().max()) <= bound
    assert float(W.detach().var()) == pytest.approx(2 / (d + H), rel=0.05)


@pytest.mark.parametrize("name", FUSED)
def test_biases_start_at_zero_and_the_lstms_forget_gate_at_one(name: str) -> None:
    cell = CELLS[name](INPUTS, HIDDEN)
    total = (weights(cell)[2] + weights(cell)[3]).split(HIDDEN)
    for gate, bias in enumerate(total):
        assert bias.unique().tolist() == [1.0 if name == "lstm" and gate == 1 else 0.0]


def test_the_gate_that_starts_open_is_the_one_that_keeps_the_cell_state() -> None:
    """With nothing coming in, C goes down by sigmoid(1) a step and by no other gate's sigmoid(0) = 1 / 2."""
    cell = LstmCell(INPUTS, HIDDEN)
    weights(cell)[1].data.zero_()
    state = torch.cat([torch.zeros(1, HIDDEN), torch.ones(1, HIDDEN)], dim=1)
    kept = step(cell, torch.zeros(1, INPUTS), state)[:, HIDDEN:]
    torch.testing.assert_close(kept, torch.full((1, HIDDEN), 1 / (1 + math.exp(-1))), atol=1e-12, rtol=0)


@pytest.mark.parametrize("hidden", [4, 48, 120])
def test_the_reservoir_has_the_stated_spectral_radius_and_density(hidden: int) -> None:
    cell = EchoStateCell(INPUTS, hidden)
    assert float(torch.linalg.eigvals(cell.U).abs().max()) == pytest.approx(SPECTRAL_RADIUS)
    assert (cell.U != 0).sum(dim=1).tolist() == [min(LINKS, hidden)] * hidden


def test_the_reservoir_forgets_its_initial_state() -> None:
    """The echo state property: under the same inputs two states draw together; a tanh cell's of radius 1.5 do not."""
    inputs = 0.1 * torch.randn(400, 1, INPUTS)
    echo, tanh = EchoStateCell(INPUTS, 60), VanillaCell(INPUTS, 60)
    weights(tanh)[1].data.mul_(1.5)

    def apart(cell: Cell) -> float:
        ends = [cell(inputs, torch.full((1, 60), start))[1] for start in (-0.9, 0.9)]
        return float((ends[0] - ends[1]).detach().norm())

    assert apart(echo) < 1e-3
    assert apart(tanh) > 1


def test_the_reservoir_is_not_trained() -> None:
    assert list(EchoStateCell(INPUTS, HIDDEN).parameters()) == []
    assert set(EchoStateCell(INPUTS, HIDDEN).state_dict()) == {"W", "U", "b"}


def test_he_initialisation_keeps_the_signals_size_through_twenty_relu_layers() -> None:
    """He's variance, 2 / fan-in; Xavier's, half of it here, would leave a millionth of the square."""
    width = 256
    layers = [torch.nn.init.kaiming_normal_(torch.empty(width, width), nonlinearity="relu") for _ in range(20)]
    assert float(torch.stack(layers).var()) == pytest.approx(2 / width, rel=0.01)
    signal = torch.randn(64, width)
    for weight in layers:
        signal = torch.relu(signal @ weight.T)
    assert 0.2 < float(signal.square().mean()) < 5


@pytest.mark.parametrize("name", CELLS)
def test_state_gradients_equal_finite_differences_and_products_of_jacobians(name: str) -> None:
    cell = with_random_biases(name, hidden=5)
    inputs, start = torch.randn(9, 1, INPUTS), 0.5 * torch.randn(1, cell.state_size)

    def loss(hidden: Tensor) -> Tensor:
        return hidden.pow(2).sum()

    found = state_gradients(cell, inputs, start, [1, 4, 9], loss)[:, 0]  # [lags, state_size]

    eps = 1e-6
    for unit in range(cell.state_size):
        ends = []
        for sign in (1, -1):
            moved = start.clone()
            moved[0, unit] += sign * eps
            ends.append(float(loss(cell(inputs, moved)[0][-1]).detach()))
        assert float(found[2, unit]) == pytest.approx((ends[0] - ends[1]) / (2 * eps), rel=1e-5, abs=1e-8)

    each = jacobians(cell, inputs[:, 0], start[0])
    h = cell(inputs, start)[0][-1, 0]
    at_the_end = torch.cat([2 * h, torch.zeros(cell.state_size - 5)])  # dL/ds_t: the loss reads h_t alone
    product = at_the_end
    for k in range(1, 10):
        product = product @ each[-k]
        if k in (1, 4, 9):
            torch.testing.assert_close(found[[1, 4, 9].index(k)], product, atol=1e-10, rtol=1e-8)


def test_gradient_norms_are_means_over_lanes() -> None:
    cell = with_random_biases("lstm")
    inputs, start = torch.randn(TIME, BATCH, INPUTS), torch.randn(BATCH, cell.state_size)

    def loss(hidden: Tensor) -> Tensor:
        return hidden.sum()

    alone = [state_gradients(cell, inputs[:, i : i + 1], start[i : i + 1], [2, 30], loss) for i in range(BATCH)]
    together = state_gradients(cell, inputs, start, [2, 30], loss)
    torch.testing.assert_close(torch.cat(alone, dim=1), together, atol=1e-12, rtol=0)


@pytest.mark.parametrize("lag", [0, 31])
def test_an_unknown_lag_is_an_error_that_lists_the_known_ones(lag: int) -> None:
    cell = VanillaCell(INPUTS, HIDDEN)
    with pytest.raises(ValueError, match="30 steps hold lags 1 to 30"):
        state_gradients(cell, torch.zeros(TIME, 1, INPUTS), torch.zeros(1, HIDDEN), [lag], lambda h: h.sum())


@pytest.mark.parametrize("name", CELLS)
def test_a_product_of_jacobians_is_bounded_by_the_product_of_their_norms(name: str) -> None:
    cell = with_random_biases(name)
    norms, bounds = product_norms(jacobians(cell, torch.randn(TIME, INPUTS), torch.zeros(cell.state_size)))
    assert bool((norms <= bounds * (1 + 1e-9)).all())
    assert float(norms[0]) == pytest.approx(float(bounds[0]))


def test_gradients_vanish_in_the_tanh_cell_last_in_the_lstm_and_explode_with_a_large_radius() -> None:
    """Products of 50 Jacobians: orthogonal U under tanh, the same U scaled, and a forget gate that is open."""
    torch.manual_seed(3)
    inputs = torch.randn(50, INPUTS)
    tanh, lstm, gru = VanillaCell(INPUTS, HIDDEN), LstmCell(INPUTS, HIDDEN), GruCell(INPUTS, HIDDEN)
    weights(lstm)[2].data[HIDDEN : 2 * HIDDEN] = 5.0  # forget gate
    weights(gru)[2].data[HIDDEN : 2 * HIDDEN] = 5.0  # update gate
    vanished, lasting, kept = (
        float(product_norms(jacobians(cell, inputs, torch.zeros(cell.state_size)))[0][-1]) for cell in (tanh, lstm, gru)
    )
    weights(tanh)[1].data.mul_(3.0)
    exploded = float(product_norms(jacobians(tanh, 0.01 * inputs, torch.zeros(HIDDEN)))[0][-1])
    assert vanished < 1e-3
    assert lasting > 0.3
    assert kept > 0.3
    assert exploded > 1e3
