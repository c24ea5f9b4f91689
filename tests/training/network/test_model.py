"""The forecaster against the textbook's equations, its compiled twin, and its files."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.textbook import forecast_step
from training.network.cells import CELLS
from training.network.enlarge import enlarge
from training.network.horizons import HORIZONS
from training.network.inputs import INPUT_SIZE
from training.network.kernels import Network
from training.network.model import Forecast, Forecaster, student_t_nll
from training.network.shape import ModelError, Shape, parameter_count
from training.network.weights import FORMAT, load_weights, to_bytes

H = len(HORIZONS)
LOCATION, LOG_SCALE, FREEDOM, OUTPUT_SIZE = 0, H, 2 * H, 3 * H  # columns of the kernel's forecasts


def forecaster(hidden_size: int = 48, seed: int = 0, cell: str = "lstm", **shape: Any) -> Forecaster:
    """Random in every weight: zeros and symmetries of a fresh one would hide a slip."""
    torch.manual_seed(seed)
    model = Forecaster(Shape(cell, hidden_size, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 2


def run_kernel(network: Network, lane: np.ndarray, inputs: np.ndarray, state: np.ndarray) -> np.ndarray:
    out = np.empty((len(lane), network.shape.output_size), np.float32)
    network.step(lane, inputs, state, 0, len(lane), out)
    return out


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_the_book(model: Forecaster, inputs: np.ndarray, state: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Step one lane through `inputs` [time, INPUT_SIZE] in float64, gate by gate; return heads [time, H] and state."""
    value = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    size = model.hidden_size
    gate = {name: slice(k * size, (k + 1) * size) for k, name in enumerate(("input", "forget", "candidate", "output"))}
    W, U = value["layers.0.rnn.weight_ih_l0"], value["layers.0.rnn.weight_hh_l0"]
    b = value["layers.0.rnn.bias_ih_l0"] + value["layers.0.rnn.bias_hh_l0"]
    h, C = state[:size].astype(np.float64), state[size:].astype(np.float64)
    heads: dict[str, list[np.ndarray]] = {"location": [], "log_scale": [], "freedom": []}
    for x in inputs.astype(np.float64):
        f = sigmoid(W[gate["forget"]] @ x + U[gate["forget"]] @ h + b[gate["forget"]])
        i = sigmoid(W[gate["input"]] @ x + U[gate["input"]] @ h + b[gate["input"]])
        candidate = np.tanh(W[gate["candidate"]] @ x + U[gate["candidate"]] @ h + b[gate["candidate"]])
        o = sigmoid(W[gate["output"]] @ x + U[gate["output"]] @ h + b[gate["output"]])
        C = f * C + i * candidate
        h = o * np.tanh(C)
        out = value["from_hidden.weight"] @ h + value["from_hidden.bias"]
        skip, clipped = value["from_input.weight"] @ x, value["from_input.weight"] @ np.clip(x, -3, 3)
        heads["location"].append(out[:H] + skip[:H])
        heads["log_scale"].append(np.clip(out[H : 2 * H] + clipped[H:], -8, 4))
        heads["freedom"].append(1.5 + 4 * np.log1p(np.exp(out[2 * H :])))
    return {name: np.array(rows) for name, rows in heads.items()}, np.concatenate([h, C])


def test_module_and_kernel_compute_the_textbook_gates() -> None:
    model, inputs = forecaster(16), drawn(40, INPUT_SIZE)
    start = drawn(2 * 16, seed=1) / 4
    expected, end = by_the_book(model, inputs, start)

    with torch.inference_mode():
        found, state = model(torch.from_numpy(inputs)[:, None], torch.from_numpy(start)[None])
    for name in expected:
        np.testing.assert_allclose(getattr(found, name)[:, 0], expected[name], atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(state[0], end, atol=2e-5)

    carried = start[None].copy()
    out = run_kernel(Network(model.weights), np.zeros(len(inputs), np.int64), inputs, carried)
    for name, first in (("location", LOCATION), ("log_scale", LOG_SCALE), ("freedom", FREEDOM)):
        np.testing.assert_allclose(out[:, first : first + H], expected[name], atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(carried[0], end, atol=2e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("hidden_size", "layers", "window"), [(1, 1, 0), (8, 2, 0), (48, 1, 16), (51, 3, 5)])
def test_the_parameter_count_equals_the_theorys(cell: str, hidden_size: int, layers: int, window: int) -> None:
    """Gates ((d + H) H + H) for the first layer, gates ((H + H) H + H) for the others."""
    model = Forecaster(Shape(cell, hidden_size, layers, attention_window=window))
    count = parameter_count(model.shape)
    gates, H = {"rnn": 1, "lstm": 4, "gru": 3, "esn": 0}[cell], hidden_size
    assert count["cells"] == gates * (((INPUT_SIZE + H) * H + H) + (layers - 1) * ((H + H) * H + H))
    assert sum(count.values()) == sum(p.numel() for p in model.parameters())


SHAPES = [(1, 0), (2, 0), (1, 5), (3, 4)]  # layers, attention window


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("layers", "window"), SHAPES)
def test_step_sequence_and_kernel_agree_for_every_shape(cell: str, layers: int, window: int) -> None:
    model = forecaster(20, cell=cell, layers=layers, attention_window=window, horizons=(1, 5, 10))
    inputs, lanes = drawn(40, 7, INPUT_SIZE), np.tile(np.arange(7), 40)
    with torch.inference_mode():
        found, end = model(torch.from_numpy(inputs), model.initial_state(7))
        state, steps = model.initial_state(7), []
        for row in torch.from_numpy(inputs):
            forecast, state = forecast_step(model, row, state)
            steps.append(torch.cat(forecast, dim=-1))
    by_sequence = torch.cat(found, dim=-1)
    torch.testing.assert_close(torch.stack(steps), by_sequence, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(state, end, atol=1e-5, rtol=1e-5)

    carried = np.zeros((7, model.shape.state_size), np.float32)
    out = run_kernel(Network(model.weights), lanes, inputs.reshape(-1, INPUT_SIZE), carried)
    np.testing.assert_allclose(out, by_sequence.reshape(-1, 9), atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(carried, end, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("layers", "window"), SHAPES)
def test_kernels_of_every_shape_do_not_depend_on_batch_cuts(cell: str, layers: int, window: int) -> None:
    network = Network(forecaster(20, cell=cell, layers=layers, attention_window=window).weights)
    size = forecaster(20, cell=cell, layers=layers, attention_window=window).shape.state_size
    lane = np.random.default_rng(3).integers(0, 6, 1400)
    inputs = drawn(1400, INPUT_SIZE)
    whole_state = np.zeros((6, size), np.float32)
    whole = run_kernel(network, lane, inputs, whole_state)

    cut_state, cuts = np.zeros((6, size), np.float32), [0, 1, 2, 9, 130, 131, 700, 1400]
    parts = [run_kernel(network, lane[a:b], inputs[a:b], cut_state) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(cut_state, whole_state)
    for alone in range(6):
        state = np.zeros((6, size), np.float32)
        np.testing.assert_array_equal(
            run_kernel(network, lane[lane == alone], inputs[lane == alone], state), whole[lane == alone]
        )


@pytest.mark.parametrize("cell", CELLS)
def test_layers_added_to_a_network_start_without_effect(cell: str) -> None:
    model = forecaster(16, cell=cell, horizons=(1, 2, 10))
    larger = Forecaster.of(enlarge(model.weights, Shape(cell, 16, 3, 0.2, 6, (1, 10))))
    inputs = torch.from_numpy(drawn(30, 4, INPUT_SIZE))
    with torch.inference_mode():
        small, _ = model(inputs, model.initial_state(4))
        large, _ = larger(inputs, larger.initial_state(4))
    for before, after in zip(small, large, strict=True):
        torch.testing.assert_close(after, before[..., [0, 2]], atol=1e-6, rtol=1e-6)

    larger.train()
    forecast, _ = larger(inputs, larger.initial_state(4))
    student_t_nll(forecast, torch.zeros(30, 4, 2)).sum().backward()
    assert larger.from_hidden.weight.grad[:, 16:].abs().max() > 0  # but can learn


@pytest.mark.parametrize(
    ("changed", "reported"),
    [
        ({"cell": "gru"}, "cell is gru, the model has lstm"),
        ({"hidden_size": 20}, "hidden_size is 20, the model has 16"),
        ({"layers": 1}, "layers is 1, the model has 2"),
        ({"attention_window": 0}, "attention_window is 0, the model has 4"),
        ({"horizons": (1, 3)}, "no forecast of horizon 3; it has 1, 10"),
        ({"horizons": (2, 3)}, "the first 1"),
    ],
)
def test_a_shape_that_would_lose_something_is_refused(changed: dict, reported: str) -> None:
    model = forecaster(16, layers=2, attention_window=4)
    with pytest.raises(ModelError, match=reported):
        enlarge(model.weights, model.shape._replace(**changed))


def test_dropout_draws_one_mask_a_sequence_and_none_outside_training() -> None:
    model = forecaster(64, layers=2, dropout=0.5)
    seen: list[torch.Tensor] = []
    model.from_hidden.register_forward_pre_hook(lambda _, given: seen.append(given[0] == 0))
    inputs = torch.from_numpy(drawn(6, 5, INPUT_SIZE))
    model.train()
    state = model.initial_state(5)
    for _ in range(2):  # two chunks of one sequence
        _, state = model(inputs, state)
    model(inputs, model.initial_state(5))
    first, second, other = seen
    assert torch.equal(first, second)
    assert (first == first[:1]).all()  # the same units at all times
    assert not torch.equal(first[:, 0], first[:, 1])  # others for each lane
    assert not torch.equal(first, other)
    assert 0.3 < first.float().mean() < 0.7
    model.eval()
    model(inputs, model.initial_state(5))
    assert not seen[-1].any()


@pytest.mark.parametrize(("time", "lanes"), [(1, 1), (1, 300), (300, 1), (7, 5), (50, 33)])
def test_the_kernel_equals_torch_for_every_batch_shape(time: int, lanes: int) -> None:
    model, inputs, start = forecaster(), drawn(time, lanes, INPUT_SIZE), drawn(lanes, 96, seed=2) / 4
    with torch.inference_mode():
        found, state = model(torch.from_numpy(inputs), torch.from_numpy(start))
    carried = start.copy()
    out = run_kernel(Network(model.weights), np.tile(np.arange(lanes), time), inputs.reshape(-1, INPUT_SIZE), carried)
    expected = torch.cat([found.location, found.log_scale, found.freedom], dim=-1).reshape(-1, OUTPUT_SIZE)
    np.testing.assert_allclose(out, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(carried, state, atol=1e-5)


def test_the_kernels_bits_do_not_depend_on_batch_cuts() -> None:
    network = Network(forecaster().weights)
    lane = np.random.default_rng(3).integers(0, 6, 400)
    inputs = drawn(400, INPUT_SIZE)
    whole_state = np.zeros((6, 96), np.float32)
    whole = run_kernel(network, lane, inputs, whole_state)

    cut_state = np.zeros((6, 96), np.float32)
    cuts = [0, 1, 2, 9, 130, 131, 400]
    parts = [run_kernel(network, lane[a:b], inputs[a:b], cut_state) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(cut_state, whole_state)

    for alone in range(6):
        state = np.zeros((6, 96), np.float32)
        np.testing.assert_array_equal(
            run_kernel(network, lane[lane == alone], inputs[lane == alone], state), whole[lane == alone]
        )


def test_extreme_inputs_give_finite_forecasts_within_limits() -> None:
    model = forecaster()
    inputs = np.full((50, INPUT_SIZE), 1e6, np.float32)
    state = np.zeros((1, 96), np.float32)
    out = run_kernel(Network(model.weights), np.zeros(50, np.int64), inputs, state)
    assert np.isfinite(out).all()
    assert (np.abs(state[:, :48]) <= 1 + 1e-6).all()
    scale = out[:, LOG_SCALE : LOG_SCALE + H]
    assert ((scale >= -8) & (scale <= 4)).all()
    assert (out[:, FREEDOM:] >= 1.5).all()


def test_nll_equals_torchs_student_t() -> None:
    torch.manual_seed(0)
    made = Forecast(torch.randn(200, H), torch.randn(200, H), 1.5 + 10 * torch.rand(200, H))
    target = 5 * torch.randn(200, H)
    expected = -torch.distributions.StudentT(made.freedom, made.location, made.log_scale.exp()).log_prob(target)
    torch.testing.assert_close(student_t_nll(made, target), expected, atol=1e-4, rtol=1e-5)


def test_nll_of_a_missing_target_is_missing() -> None:
    made = Forecast(torch.zeros(1, H), torch.zeros(1, H), torch.full((1, H), 3.0))
    nll = student_t_nll(made, torch.tensor([[1.0, torch.nan]]))
    assert torch.equal(torch.isnan(nll), torch.tensor([[False, True]]))


def test_a_model_file_round_trips_bit_for_bit(tmp_path: Path) -> None:
    model = forecaster(12)
    path = tmp_path / "model.safetensors"
    path.write_bytes(to_bytes(model.weights, {"seed": "3"}))
    again = Forecaster.of(load_weights(path))
    assert (again.hidden_size, again.cell, again.training) == (12, "lstm", False)
    assert again.weights.fingerprint() == model.weights.fingerprint()
    inputs = torch.from_numpy(drawn(9, 2, INPUT_SIZE))
    with torch.inference_mode():
        first, second = (m(inputs, m.initial_state(2)) for m in (model, again))
    assert torch.equal(first[0].location, second[0].location)
    assert torch.equal(first[1], second[1])


def test_equal_models_have_equal_files_and_other_models_other_names() -> None:
    assert to_bytes(forecaster().weights, {"b": "1", "a": "2"}) == to_bytes(forecaster().weights, {"a": "2", "b": "1"})
    assert forecaster(seed=1).weights.fingerprint() != forecaster(seed=2).weights.fingerprint()


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as refused:
        load_weights(path)
    assert str(path) in str(refused.value)
    return str(refused.value)


def test_a_missing_model_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    assert "no such model file" in refusal(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_model_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(to_bytes(forecaster().weights)[:keep])
    assert "damaged" in refusal(path)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}, {"longwatch": "{"}, {"longwatch": "[]"}):
        save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
        refusal(path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"timestamp,value\n" * 1000)
    assert "damaged" in refusal(path)


def rewritten(path: Path, **changes: object) -> Path:
    """Write a valid model file with other metadata than `to_bytes` gives it."""
    path.write_bytes(to_bytes(forecaster().weights))
    about = {"format": FORMAT, "inputs": INPUT_SIZE, "shape": forecaster().shape._asdict()}
    shape = about["shape"] | {name: value for name, value in changes.items() if name not in about}
    about |= {name: value for name, value in changes.items() if name in about} | {"shape": shape}
    save_file(load_file(path), path, metadata={"longwatch": json.dumps(about)})
    return path


def test_an_unchanged_rewritten_file_is_accepted(tmp_path: Path) -> None:
    assert load_weights(rewritten(tmp_path / "model.safetensors")).shape.hidden_size == 48


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"format": "another-1"}, "not a longwatch model"),
        ({"inputs": 10}, "10 inputs"),
        ({"hidden_size": 64}, "damaged or foreign"),
        ({"hidden_size": "many"}, "damaged or foreign"),
        ({"hidden_size": -1}, "at least 1"),
        ({"cell": "transformer"}, "transformer"),
        ({"cell": ["lstm"]}, "damaged or foreign"),
        ({"layers": 2}, "damaged or foreign"),
        ({"horizons": [1]}, "damaged or foreign"),
        ({"horizons": [10, 1]}, "rising"),
    ],
)
def test_an_incompatible_model_file_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, object], reported: str
) -> None:
    assert reported in refusal(rewritten(tmp_path / "model.safetensors", **changes))
