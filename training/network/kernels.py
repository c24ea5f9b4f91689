"""The forecaster's equations (`cells.py`, `attention.py`, `model.py`) compiled for a CPU, no framework between.

Why beside torch: a batched matrix product rounds differently for every batch size, and rounding feeds the scores'
histograms. Here a lane's arithmetic is the same sequence of operations whatever else is in the batch, so scores are
equal bit for bit however events are cut into batches; and a long sequence of one lane costs no call per event.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.network.compiled import compiled
from training.network.inputs import INPUT_SIZE
from training.network.shape import LEAK_RATE, MIN_DEGREES_OF_FREEDOM, PARAMETERS_OF_T, SCALE_INPUT_LIMIT
from training.network.weights import Weights

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

BLOCK = 512  # observations that go through all layers together: their hidden states stay in the cache
_FAST = {"contract", "nsz"}  # fused multiply-add, and no care for -0: the order of operations stays ours
_FASTER = {*_FAST, "reassoc"}  # sums in the compiler's order, which no batch changes either
_ONE, _HALF = np.float32(1), np.float32(0.5)


class Network:
    """A forecaster's weights, laid out for the kernels. `step` may run in several threads at once."""

    def __init__(self, weights: Weights) -> None:
        self.shape = weights.shape
        self._weights = _laid_out(weights)
        self._sizes = [0, *np.cumsum(self.shape.state_sizes).tolist()]
        self._hidden = self.shape.layers * self.shape.hidden_size

    def step(
        self,
        lane: Int64,  # [observations] row of `state`
        inputs: Float32,  # [observations, INPUT_SIZE]
        state: Float32,  # [lanes, state_size], changed in place
        first: int,
        last: int,
        out: Float32,  # [observations, output_size]: locations, log scales, degrees of freedom, each [horizons]
    ) -> None:
        """Step the lanes of observations first..last in their order, and write each one's forecast."""
        hidden = np.empty((min(BLOCK, last - first), self._hidden), np.float32)
        for a in range(first, last, BLOCK):
            b = min(a + BLOCK, last)
            self._step(lane[a:b], inputs[a:b], state, hidden, out[a:b])

    def _step(self, lane: Int64, inputs: Float32, state: Float32, hidden: Float32, out: Float32) -> None:
        weights, size = iter(self._weights), self.shape.hidden_size
        for k in range(self.shape.layers):
            below, at = (inputs, 0) if k == 0 else (hidden, (k - 1) * size)
            place = (lane, below, at, state, self._sizes[k], hidden, k * size)
            if self.shape.cell == "lstm":
                _run_lstm(next(weights), next(weights), *place)
            elif self.shape.cell == "gru":
                _run_gru(*(next(weights) for _ in range(6)), *place)
            else:
                leak = np.float32(LEAK_RATE if self.shape.cell == "esn" else 1.0)
                _run_leaky(next(weights), next(weights), leak, *place)
        if window := self.shape.attention_window:
            at = (self.shape.layers - 1) * size
            _attend(next(weights), next(weights), window, lane, state, self._sizes[-2], hidden, at)
        _read_out(next(weights), next(weights), hidden, inputs, out)


def _laid_out(weights: Weights) -> list[Float32]:
    """Return weights in the order and layout in which `Network._step` takes them.

    Products are of [depth, columns] matrices with what goes in on the rows; torch's two biases become their sum.
    """
    shape, value = weights.shape, weights.arrays
    laid: list[Float32] = []
    for k in range(shape.layers):
        if shape.cell == "esn":
            W, U, b = (value[f"layers.{k}.{name}"] for name in "WUb")
            laid += [np.concatenate([W.T, U.T]), b]
            continue
        W, U = value[f"layers.{k}.rnn.weight_ih_l0"], value[f"layers.{k}.rnn.weight_hh_l0"]
        b, c = value[f"layers.{k}.rnn.bias_ih_l0"], value[f"layers.{k}.rnn.bias_hh_l0"]
        if shape.cell == "gru":
            size = 2 * shape.hidden_size  # reset and update; the candidate's products stay apart
            laid += [np.concatenate([W[:size].T, U[:size].T]), b[:size] + c[:size]]
            laid += [W[size:].T, b[size:], U[size:].T, c[size:]]
        else:
            laid += [np.concatenate([W.T, U.T]), b + c]
    if shape.attention_window:
        laid += [value["attention.query.weight"].T, value["attention.out.weight"].T]
    # one row a number of the forecast: hidden states, the inputs for locations, the clipped inputs for scales
    count = len(shape.horizons)
    skip = np.zeros(
        (PARAMETERS_OF_T * count, 2 * INPUT_SIZE + _filling(value["from_hidden.weight"].shape[1])), np.float32
    )
    skip[:count, :INPUT_SIZE] = value["from_input.weight"][:count]
    skip[count : 2 * count, INPUT_SIZE : 2 * INPUT_SIZE] = value["from_input.weight"][count:]
    laid += [np.concatenate([value["from_hidden.weight"], skip], axis=1), value["from_hidden.bias"]]
    return [np.ascontiguousarray(array) for array in laid]


def _filling(hidden: int) -> int:
    """Return the zeros that make what the heads read a multiple of 8 numbers: of a vector register's."""
    return -(hidden + 2 * INPUT_SIZE) % 8


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
def _product(matrix: Float32, bias: Float32, v: Float32, z: Float32) -> None:
    """Write z = bias + v matrix, for matrix [depth, columns]."""
    depth = len(v)
    z[:] = bias
    whole = depth - depth % 4
    for k in range(0, whole, 4):  # four rows at once: a quarter of the loads and stores of z
        a, b, c, d = v[k], v[k + 1], v[k + 2], v[k + 3]
        for j in range(len(z)):
            z[j] = z[j] + a * matrix[k, j] + b * matrix[k + 1, j] + c * matrix[k + 2, j] + d * matrix[k + 3, j]
    for k in range(whole, depth):
        a = v[k]
        for j in range(len(z)):
            z[j] = z[j] + a * matrix[k, j]


@compiled(fastmath=_FAST, error_model="numpy")
def _product_of_two(matrix: Float32, bias: Float32, v: Float32, z: Float32, w: Float32, y: Float32) -> None:
    """As `_product` for v -> z and w -> y, the same bits: weights are loaded once for both."""
    depth = len(v)
    z[:] = bias
    y[:] = bias
    whole = depth - depth % 4
    for k in range(0, whole, 4):
        a, b, c, d = v[k], v[k + 1], v[k + 2], v[k + 3]
        e, f, g, h = w[k], w[k + 1], w[k + 2], w[k + 3]
        for j in range(len(z)):
            p, q, r, s = matrix[k, j], matrix[k + 1, j], matrix[k + 2, j], matrix[k + 3, j]
            z[j] = z[j] + a * p + b * q + c * r + d * s
            y[j] = y[j] + e * p + f * q + g * r + h * s
    for k in range(whole, depth):
        a, e = v[k], w[k]
        for j in range(len(z)):
            z[j] = z[j] + a * matrix[k, j]
            y[j] = y[j] + e * matrix[k, j]


@compiled(inline="always")
def _products(matrix: Float32, bias: Float32, v: Float32, z: Float32, count: int) -> None:
    """Multiply one or two vectors: v [2, depth] -> z [2, columns]."""
    if count == 1:
        _product(matrix, bias, v[0], z[0])
    else:
        _product_of_two(matrix, bias, v[0], z[0], v[1], z[1])


@compiled(inline="always")
def _together(lane: Int64, j: int) -> int:
    """Return how many observations, from j on, one load of weights can serve: 2, or 1."""
    # the second of one lane would need what the first leaves behind
    return 2 if j + 1 < len(lane) and lane[j + 1] != lane[j] else 1


@compiled(fastmath=_FAST, error_model="numpy")
def _run_lstm(
    gates: Float32,  # [inputs + hidden, 4 hidden]
    bias: Float32,  # [4 hidden]
    lane: Int64,
    below: Float32,  # [observations, ...]: what goes in is from column `below_at` on
    below_at: int,
    state: Float32,  # [lanes, ...]: the layer's own is from column `at` on
    at: int,
    hidden: Float32,  # out [observations, ...] from column `hidden_at` on
    hidden_at: int,
) -> None:
    size = len(bias) // 4
    width = len(gates) - size
    v, z = np.empty((2, width + size), np.float32), np.empty((2, 4 * size), np.float32)
    j = 0
    while j < len(lane):
        count = _together(lane, j)
        for p in range(count):
            v[p, :width] = below[j + p, below_at : below_at + width]
            v[p, width:] = state[lane[j + p], at : at + size]
        _products(gates, bias, v, z, count)
        for p in range(count):
            h = state[lane[j + p], at : at + size]
            C = state[lane[j + p], at + size : at + 2 * size]
            i, f, c, o = z[p, :size], z[p, size : 2 * size], z[p, 2 * size : 3 * size], z[p, 3 * size :]
            for k in range(size):
                i[k] = _sigmoid(i[k]) * _tanh(c[k])
            for k in range(size):
                C[k] = _sigmoid(f[k]) * C[k] + i[k]
                h[k] = _sigmoid(o[k]) * _tanh(C[k])
            hidden[j + p, hidden_at : hidden_at + size] = h
        j += count


@compiled(fastmath=_FAST, error_model="numpy")
def _run_gru(
    gates: Float32,  # [inputs + hidden, 2 hidden]: reset, update
    bias: Float32,
    candidate: Float32,  # [inputs, hidden]
    candidate_bias: Float32,
    recurrent: Float32,  # [hidden, hidden]: the candidate's
    recurrent_bias: Float32,
    lane: Int64,
    below: Float32,
    below_at: int,
    state: Float32,
    at: int,
    hidden: Float32,
    hidden_at: int,
) -> None:
    size = len(bias) // 2
    width = len(gates) - size
    v, z = np.empty((2, width + size), np.float32), np.empty((2, 2 * size), np.float32)
    x, h = np.empty((2, width), np.float32), np.empty((2, size), np.float32)
    n, m = np.empty((2, size), np.float32), np.empty((2, size), np.float32)
    j = 0
    while j < len(lane):
        count = _together(lane, j)
        for p in range(count):
            x[p] = below[j + p, below_at : below_at + width]
            h[p] = state[lane[j + p], at : at + size]
            v[p, :width], v[p, width:] = x[p], h[p]
        _products(gates, bias, v, z, count)
        _products(candidate, candidate_bias, x, n, count)
        _products(recurrent, recurrent_bias, h, m, count)
        for p in range(count):
            r, u, c, d, g = z[p, :size], z[p, size:], n[p], m[p], h[p]
            for k in range(size):
                c[k] = _tanh(c[k] + _sigmoid(r[k]) * d[k])
            for k in range(size):
                u[k] = _sigmoid(u[k])
                g[k] = (_ONE - u[k]) * c[k] + u[k] * g[k]
            state[lane[j + p], at : at + size] = g
            hidden[j + p, hidden_at : hidden_at + size] = g
        j += count


@compiled(fastmath=_FAST, error_model="numpy")
def _run_leaky(
    matrix: Float32,  # [inputs + hidden, hidden]
    bias: Float32,
    leak: Any,  # 1 is the vanilla cell
    lane: Int64,
    below: Float32,
    below_at: int,
    state: Float32,
    at: int,
    hidden: Float32,
    hidden_at: int,
) -> None:
    size = len(bias)
    width = len(matrix) - size
    v, z = np.empty((2, width + size), np.float32), np.empty((2, size), np.float32)
    j = 0
    while j < len(lane):
        count = _together(lane, j)
        for p in range(count):
            v[p, :width] = below[j + p, below_at : below_at + width]
            v[p, width:] = state[lane[j + p], at : at + size]
        _products(matrix, bias, v, z, count)
        for p in range(count):
            h, y = state[lane[j + p], at : at + size], z[p]
            for k in range(size):
                h[k] = (_ONE - leak) * h[k] + leak * _tanh(y[k])
            hidden[j + p, hidden_at : hidden_at + size] = h
        j += count


@compiled(fastmath=_FAST, error_model="numpy")
def _attend(
    query: Float32,  # [hidden, hidden]
    out: Float32,  # [hidden, hidden]
    window: int,
    lane: Int64,
    state: Float32,
    at: int,
    hidden: Float32,  # changed in place, from column `hidden_at` on
    hidden_at: int,
) -> None:
    size = len(query)
    none = np.zeros(size, np.float32)
    h, q, context = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    a = np.empty(window, np.float32)
    scale = np.float32(1.0 / math.sqrt(size))
    for j in range(len(lane)):
        kept = state[lane[j], at : at + window * size + 1]
        for k in range((window - 1) * size):  # the oldest makes room
            kept[k] = kept[k + size]
        kept[(window - 1) * size : window * size] = hidden[j, hidden_at : hidden_at + size]
        count = min(int(kept[window * size]) + 1, window)
        kept[window * size] = count
        h[:] = hidden[j, hidden_at : hidden_at + size]
        _product(query, none, h, q)
        largest = np.float32(-np.inf)
        for k in range(window - count, window):
            a[k] = scale * _dot(q, kept[k * size : (k + 1) * size])
            largest = max(largest, a[k])
        total = np.float32(0)
        context[:] = 0
        for k in range(window - count, window):
            e = np.exp(a[k] - largest)
            total += e
            for i in range(size):
                context[i] += e * kept[k * size + i]
        for i in range(size):
            context[i] /= total
        _product(out, h, context, q)
        hidden[j, hidden_at : hidden_at + size] = q


@compiled(fastmath=_FASTER, error_model="numpy")
def _dot(v: Float32, w: Float32) -> Any:
    total = np.float32(0)
    for k in range(len(v)):
        total += v[k] * w[k]
    return total


@compiled(fastmath=_FASTER, error_model="numpy")
def _three_dots(v: Float32, a: Float32, b: Float32, c: Float32) -> Any:
    of_a, of_b, of_c = np.float32(0), np.float32(0), np.float32(0)
    for k in range(len(v)):  # outputs come in threes, and v is loaded once for them
        of_a += v[k] * a[k]
        of_b += v[k] * b[k]
        of_c += v[k] * c[k]
    return of_a, of_b, of_c


@compiled(fastmath=_FAST, error_model="numpy")
def _read_out(
    heads: Float32,  # [outputs, hidden + 2 inputs, filled up]
    bias: Float32,  # [outputs]
    hidden: Float32,  # [observations, hidden]
    inputs: Float32,  # [observations, INPUT_SIZE]
    out: Float32,  # [observations, outputs]
) -> None:
    size, outputs = hidden.shape[1], len(heads)
    horizons = outputs // PARAMETERS_OF_T
    limit = np.float32(SCALE_INPUT_LIMIT)
    v = np.zeros(heads.shape[1], np.float32)
    for j in range(len(inputs)):
        v[:size] = hidden[j]
        for k in range(INPUT_SIZE):
            v[size + k] = inputs[j, k]
            v[size + INPUT_SIZE + k] = min(max(inputs[j, k], -limit), limit)
        for i in range(0, outputs, 3):
            p, q, r = _three_dots(v, heads[i], heads[i + 1], heads[i + 2])
            out[j, i], out[j, i + 1], out[j, i + 2] = bias[i] + p, bias[i + 1] + q, bias[i + 2] + r
        for i in range(horizons, 2 * horizons):
            out[j, i] = min(max(out[j, i], np.float32(-8)), np.float32(4))
        for i in range(2 * horizons, outputs):
            softplus = max(out[j, i], np.float32(0)) + np.log1p(np.exp(-abs(out[j, i])))
            out[j, i] = np.float32(MIN_DEGREES_OF_FREEDOM) + np.float32(4) * softplus
