"""The forecaster's equations (`model.py`) compiled for a CPU: one lane's events after another, no framework between.

Why beside torch: a batched matrix product rounds differently for every batch size, and rounding feeds the scores'
histograms. Here a lane's arithmetic is the same sequence of operations whatever else is in the batch, so scores are
equal bit for bit however events are cut into batches; and a long sequence of one lane costs no call per event.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.compiled import compiled
from training.inputs import INPUT_SIZE
from training.model import HORIZONS, LEAST_FREEDOM, PARAMETERS_OF_T, SCALE_INPUT_LIMIT, Forecaster

Float32 = NDArray[np.float32]
OUTPUT_SIZE = PARAMETERS_OF_T * len(HORIZONS)
# columns of the outputs: location, log scale, degrees of freedom, each [horizons]
LOCATION, LOG_SCALE, FREEDOM = 0, len(HORIZONS), 2 * len(HORIZONS)

_HORIZONS = len(HORIZONS)
_FAST = {"contract", "nsz"}  # fused multiply-add, and no care for -0: the order of operations stays ours
_ONE, _HALF = np.float32(1), np.float32(0.5)


class Weights(NamedTuple):
    """A Forecaster's weights, laid out for the kernel."""

    gates: Float32  # [INPUT_SIZE + hidden, 4 hidden]: rows of W then U, columns in torch's order i, f, c, o
    bias: Float32  # [4 hidden]
    heads: Float32  # [hidden, OUTPUT_SIZE]
    head_bias: Float32  # [OUTPUT_SIZE]
    skip: Float32  # [INPUT_SIZE, 2 horizons]


def weights_of(model: Forecaster) -> Weights:
    """Copy a module's weights out of torch; the two bias vectors become their sum."""
    value = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    gates = np.concatenate([value["rnn.weight_ih_l0"].T, value["rnn.weight_hh_l0"].T])
    return Weights(
        np.ascontiguousarray(gates, np.float32),
        (value["rnn.bias_ih_l0"] + value["rnn.bias_hh_l0"]).astype(np.float32),
        np.ascontiguousarray(value["from_hidden.weight"].T, np.float32),
        value["from_hidden.bias"].astype(np.float32),
        np.ascontiguousarray(value["from_input.weight"].T, np.float32),
    )


@compiled(inline="always", fastmath=_FAST)
def _tanh(x: Any) -> Any:
    """Return tanh as a rational minimax fit on |x| <= 9: relative error 2e-8 before rounding; it vectorises."""
    x = min(max(x, np.float32(-9)), np.float32(9))
    z = x * x
    p = np.float32(1.335467411e-08)
    p = p * z + np.float32(2.0609095608632e-05)
    p = p * z + np.float32(3.4955891250293e-03)
    p = p * z + np.float32(1.3381026542903e-01)
    p = p * z + np.float32(0.99999997945498)
    q = np.float32(7.776564686646e-07)
    q = q * z + np.float32(3.2856363150623e-04)
    q = q * z + np.float32(2.5876986193106e-02)
    q = q * z + np.float32(4.6714342137711e-01)
    q = q * z + _ONE
    return x * p / q


@compiled(inline="always", fastmath=_FAST)
def _sigmoid(x: Any) -> Any:
    return _HALF * _tanh(_HALF * x) + _HALF


@compiled(fastmath=_FAST, error_model="numpy")
def _gates_of_one(gates: Float32, bias: Float32, v: Float32, z: Float32) -> None:
    """Write the gates before activation, z [4 hidden], of one lane's inputs and hidden state, v [INPUT_SIZE + hidden]."""
    depth = len(v)
    z[:] = bias
    whole = depth - depth % 4
    for k in range(0, whole, 4):  # four rows at once: a quarter of the loads and stores of z
        a, b, c, d = v[k], v[k + 1], v[k + 2], v[k + 3]
        for j in range(len(z)):
            z[j] = z[j] + a * gates[k, j] + b * gates[k + 1, j] + c * gates[k + 2, j] + d * gates[k + 3, j]
    for k in range(whole, depth):
        a = v[k]
        for j in range(len(z)):
            z[j] = z[j] + a * gates[k, j]


@compiled(fastmath=_FAST, error_model="numpy")
def _gates_of_two(gates: Float32, bias: Float32, v: Float32, z: Float32, w: Float32, y: Float32) -> None:
    """As `_gates_of_one` for two lanes, v -> z and w -> y, the same bits: weights are loaded once for both."""
    depth = len(v)
    z[:] = bias
    y[:] = bias
    whole = depth - depth % 4
    for k in range(0, whole, 4):
        a, b, c, d = v[k], v[k + 1], v[k + 2], v[k + 3]
        e, f, g, h = w[k], w[k + 1], w[k + 2], w[k + 3]
        for j in range(len(z)):
            p, q, r, s = gates[k, j], gates[k + 1, j], gates[k + 2, j], gates[k + 3, j]
            z[j] = z[j] + a * p + b * q + c * r + d * s
            y[j] = y[j] + e * p + f * q + g * r + h * s
    for k in range(whole, depth):
        a, e = v[k], w[k]
        for j in range(len(z)):
            z[j] = z[j] + a * gates[k, j]
            y[j] = y[j] + e * gates[k, j]


@compiled(fastmath=_FAST, error_model="numpy")
def _carry_on(z: Float32, state: Float32) -> None:
    """Carry a lane's state [2 hidden] on by its gates z [4 hidden], which are used up."""
    size = len(state) // 2
    hidden, cell = state[:size], state[size:]
    i, f, c, o = z[:size], z[size : 2 * size], z[2 * size : 3 * size], z[3 * size :]
    for j in range(size):
        i[j] = _sigmoid(i[j]) * _tanh(c[j])
    for j in range(size):
        cell[j] = _sigmoid(f[j]) * cell[j] + i[j]
        hidden[j] = _sigmoid(o[j]) * _tanh(cell[j])


@compiled(fastmath=_FAST, error_model="numpy")
def lstm_step(
    gates: Float32,
    bias: Float32,
    x: Float32,  # [INPUT_SIZE]
    state: Float32,  # [2 hidden], changed in place
    z: Float32,  # scratch [4 hidden]
    v: Float32,  # scratch [INPUT_SIZE + hidden]
) -> None:
    """Step one lane by one event."""
    v[:INPUT_SIZE] = x
    v[INPUT_SIZE:] = state[: len(bias) // 4]
    _gates_of_one(gates, bias, v, z)
    _carry_on(z, state)


@compiled(inline="always", fastmath=_FAST)
def _log_scale(raw: Any) -> Any:
    return min(max(raw, np.float32(-8)), np.float32(4))


@compiled(inline="always", fastmath=_FAST)
def _freedom(raw: Any) -> Any:
    softplus = max(raw, np.float32(0)) + np.log1p(np.exp(-abs(raw)))
    return np.float32(LEAST_FREEDOM) + np.float32(4) * softplus


@compiled(fastmath=_FAST, error_model="numpy")
def _read_out(heads: Float32, head_bias: Float32, skip: Float32, x: Float32, state: Float32, out: Float32) -> None:
    """Write what the heads say [OUTPUT_SIZE] of a state that has been stepped by inputs x."""
    # scalars, for an array would be loaded and stored at every turn
    near, far, near_scale, far_scale, near_freedom, far_freedom = head_bias
    for k in range(len(heads)):
        h = state[k]
        near += h * heads[k, 0]
        far += h * heads[k, 1]
        near_scale += h * heads[k, 2]
        far_scale += h * heads[k, 3]
        near_freedom += h * heads[k, 4]
        far_freedom += h * heads[k, 5]
    limit = np.float32(SCALE_INPUT_LIMIT)
    for k in range(INPUT_SIZE):
        a, b = x[k], min(max(x[k], -limit), limit)
        near += a * skip[k, 0]
        far += a * skip[k, 1]
        near_scale += b * skip[k, 2]
        far_scale += b * skip[k, 3]
    out[LOCATION], out[LOCATION + 1] = near, far
    out[LOG_SCALE], out[LOG_SCALE + 1] = _log_scale(near_scale), _log_scale(far_scale)
    out[FREEDOM], out[FREEDOM + 1] = _freedom(near_freedom), _freedom(far_freedom)


@compiled(fastmath=_FAST, error_model="numpy")
def forecast(
    gates: Float32,
    bias: Float32,
    heads: Float32,
    head_bias: Float32,
    skip: Float32,
    lane: NDArray[np.int64],  # [observations] row of `state`
    inputs: Float32,  # [observations, INPUT_SIZE]
    state: Float32,  # [lanes, 2 hidden], changed in place
    first: int,
    last: int,
    out: Float32,  # [observations, OUTPUT_SIZE]
) -> None:
    """Step the lanes of observations first..last in their order, and write each one's forecast."""
    z, y = np.empty(len(bias), np.float32), np.empty(len(bias), np.float32)
    v, w = np.empty(len(gates), np.float32), np.empty(len(gates), np.float32)
    size = len(bias) // 4
    j = first
    while j < last:
        one = state[lane[j]]
        v[:INPUT_SIZE] = inputs[j]
        v[INPUT_SIZE:] = one[:size]
        if j + 1 == last or lane[j + 1] == lane[j]:  # the second would need what the first leaves behind
            _gates_of_one(gates, bias, v, z)
            _carry_on(z, one)
            _read_out(heads, head_bias, skip, inputs[j], one, out[j])
            j += 1
            continue
        other = state[lane[j + 1]]
        w[:INPUT_SIZE] = inputs[j + 1]
        w[INPUT_SIZE:] = other[:size]
        _gates_of_two(gates, bias, v, z, w, y)
        _carry_on(z, one)
        _carry_on(y, other)
        _read_out(heads, head_bias, skip, inputs[j], one, out[j])
        _read_out(heads, head_bias, skip, inputs[j + 1], other, out[j + 1])
        j += 2
