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
def lstm_step(
    gates: Float32,
    bias: Float32,
    x: Float32,  # [INPUT_SIZE]
    state: Float32,  # [2 hidden], changed in place
    z: Float32,  # scratch [4 hidden]
    v: Float32,  # scratch [INPUT_SIZE + hidden]
) -> None:
    """Step one lane by one event."""
    size = len(bias) // 4
    depth = gates.shape[0]
    v[:INPUT_SIZE] = x
    v[INPUT_SIZE:] = state[:size]
    z[:] = bias
    whole = depth - depth % 4
    for k in range(0, whole, 4):  # four rows at once: a quarter of the loads and stores of z
        a, b, c, d = v[k], v[k + 1], v[k + 2], v[k + 3]
        for j in range(4 * size):
            z[j] = z[j] + a * gates[k, j] + b * gates[k + 1, j] + c * gates[k + 2, j] + d * gates[k + 3, j]
    for k in range(whole, depth):
        a = v[k]
        for j in range(4 * size):
            z[j] = z[j] + a * gates[k, j]
    for j in range(2 * size):
        z[j] = _sigmoid(z[j])
    for j in range(2 * size, 3 * size):
        z[j] = _tanh(z[j])
    for j in range(3 * size, 4 * size):
        z[j] = _sigmoid(z[j])
    for j in range(size):
        state[size + j] = z[size + j] * state[size + j] + z[j] * z[2 * size + j]
    for j in range(size):
        state[j] = z[3 * size + j] * _tanh(state[size + j])


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
    size = len(bias) // 4
    z = np.empty(4 * size, np.float32)
    v = np.empty(INPUT_SIZE + size, np.float32)
    o = np.empty(OUTPUT_SIZE, np.float32)
    limit = np.float32(SCALE_INPUT_LIMIT)
    for j in range(first, last):
        x, s = inputs[j], state[lane[j]]
        lstm_step(gates, bias, x, s, z, v)
        o[:] = head_bias
        for k in range(size):
            for i in range(OUTPUT_SIZE):
                o[i] += s[k] * heads[k, i]
        for k in range(INPUT_SIZE):
            for i in range(_HORIZONS):
                o[LOCATION + i] += x[k] * skip[k, i]
                o[LOG_SCALE + i] += min(max(x[k], -limit), limit) * skip[k, _HORIZONS + i]
        for i in range(_HORIZONS):
            o[LOG_SCALE + i] = min(max(o[LOG_SCALE + i], np.float32(-8)), np.float32(4))
            raw = o[FREEDOM + i]
            softplus = max(raw, np.float32(0)) + np.log1p(np.exp(-abs(raw)))
            o[FREEDOM + i] = np.float32(LEAST_FREEDOM) + np.float32(4) * softplus
        out[j] = o
