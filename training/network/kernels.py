"""The forecaster's equations (`cells.py`, `model.py`) compiled for a CPU, no framework between.

Why not torch: a batched matrix product rounds differently for every batch size, and rounding feeds the scores'
histograms. Here a lane's arithmetic is the same sequence of operations whatever else is in the batch, so scores are
equal bit for bit however events are cut into batches; and a long sequence of one lane costs no call per event.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.network.compiled import compiled
from training.network.inputs import INPUT_SIZE
from training.network.shape import (
    FREEDOM_SLOPE,
    LEAK_RATE,
    MAX_LOG_SCALE,
    MIN_DEGREES_OF_FREEDOM,
    MIN_LOG_SCALE,
    PARAMETERS_OF_T,
    SCALE_INPUT_LIMIT,
)
from training.network.weights import Weights

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

BLOCK = 512  # observations that go through all layers together: their hidden states stay in the cache
_FAST = {"contract", "nsz"}  # fused multiply-add, and no care for -0: the order of operations stays ours
_FASTER = {*_FAST, "reassoc"}  # sums in the compiler's order, which no batch changes either
_ONE, _HALF = np.float32(1), np.float32(0.5)
_LSTM, _GRU, _LEAKY = range(3)
_KINDS = {"lstm": _LSTM, "gru": _GRU, "rnn": _LEAKY, "esn": _LEAKY}


class _Layer(NamedTuple):
    """A recurrent layer's weights, and where its numbers are. A matrix's rows: the bias, then what goes in."""

    kind: int
    size: int  # hidden
    gates: Float32  # [1 + inputs + hidden, gates * hidden] torch's two biases summed; of a GRU only reset and update
    candidate: Float32  # [1 + inputs, hidden] of a GRU, whose candidate's products stay apart
    recurrent: Float32  # [1 + hidden, hidden]
    leak: float  # 1 is the vanilla cell
    below_at: int  # columns: of what goes in
    state_at: int
    hidden_at: int  # of what comes out


class _Attention(NamedTuple):
    query: Float32  # [hidden, hidden]
    out: Float32  # [hidden, hidden]
    window: int
    state_at: int
    hidden_at: int


class _Heads(NamedTuple):
    weights: Float32  # [outputs, hidden + 2 inputs, filled up]
    bias: Float32  # [outputs]


class Network:
    """A forecaster's weights, laid out for the kernels. `step` may run in several threads at once."""

    def __init__(self, weights: Weights) -> None:
        self.shape = shape = weights.shape
        self._layers = [_layer(weights, k) for k in range(shape.layers)]
        self._attention = None
        if shape.attention_window:
            names = ("attention.query.weight", "attention.out.weight")
            query, out = (np.ascontiguousarray(weights.arrays[name].T) for name in names)
            at = shape.state_size - shape.state_sizes[-1]
            self._attention = _Attention(query, out, shape.attention_window, at, self._layers[-1].hidden_at)
        self._heads = _heads(weights)

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
        hidden = np.empty((min(BLOCK, last - first), self.shape.layers * self.shape.hidden_size), np.float32)
        for a in range(first, last, BLOCK):
            b = min(a + BLOCK, last)
            below = inputs[a:b]
            for layer in self._layers:
                _run_layer(layer, lane[a:b], below, state, hidden)
                below = hidden
            if self._attention is not None:
                _attend(self._attention, lane[a:b], state, hidden)
            _read_out(self._heads, hidden, inputs[a:b], out[a:b])


def _layer(weights: Weights, k: int) -> _Layer:
    shape, value = weights.shape, weights.arrays
    size, esn = shape.hidden_size, shape.cell == "esn"
    names = ("W", "U", "b") if esn else ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0")
    W, U, b, *second = (value[f"layers.{k}.{name}"] for name in names)
    c = second[0] if second else np.zeros_like(b)
    candidate = recurrent = np.zeros((0, 0), np.float32)
    if shape.cell == "gru":
        candidate, recurrent = _matrix(b[2 * size :], W[2 * size :]), _matrix(c[2 * size :], U[2 * size :])
        W, U, b, c = (array[: 2 * size] for array in (W, U, b, c))
    return _Layer(
        kind=_KINDS[shape.cell],
        size=size,
        gates=_matrix(b + c, W, U),
        candidate=candidate,
        recurrent=recurrent,
        leak=LEAK_RATE if esn else 1.0,
        below_at=max(k - 1, 0) * size,
        state_at=k * shape.state_sizes[0],
        hidden_at=k * size,
    )


def _matrix(bias: Float32, *weights: Float32) -> Float32:
    return np.ascontiguousarray(np.concatenate([bias[None], *(matrix.T for matrix in weights)]))


def _heads(weights: Weights) -> _Heads:
    """Return one row a number of the forecast: hidden states, inputs for locations, clipped inputs for scales."""
    count, value = len(weights.shape.horizons), weights.arrays
    from_hidden, from_input = value["from_hidden.weight"], value["from_input.weight"]
    filling = -(from_hidden.shape[1] + 2 * INPUT_SIZE) % 8  # a multiple of a vector register's numbers
    skip = np.zeros((PARAMETERS_OF_T * count, 2 * INPUT_SIZE + filling), np.float32)
    skip[:count, :INPUT_SIZE] = from_input[:count]
    skip[count : 2 * count, INPUT_SIZE : 2 * INPUT_SIZE] = from_input[count:]
    return _Heads(np.concatenate([from_hidden, skip], axis=1), value["from_hidden.bias"])


# --- Cells: each takes the sums that go into its gates, and changes the lane's state in place -------------------------


@compiled(inline="always", fastmath=_FAST)
def tanh(x: Any) -> Any:
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
def sigmoid(x: Any) -> Any:
    """Return the logistic function."""
    return _HALF * tanh(_HALF * x) + _HALF


@compiled(inline="always", fastmath=_FAST)
def _lstm(gates: Float32, h: Float32, C: Float32) -> None:
    """Step h and C [hidden]; gates [4 hidden]: input, forget, candidate, output; overwritten."""
    size = len(h)
    i, f, c, o = gates[:size], gates[size : 2 * size], gates[2 * size : 3 * size], gates[3 * size :]
    for k in range(size):
        i[k] = sigmoid(i[k]) * tanh(c[k])
    for k in range(size):
        C[k] = sigmoid(f[k]) * C[k] + i[k]
        h[k] = sigmoid(o[k]) * tanh(C[k])


@compiled(inline="always", fastmath=_FAST)
def _gru(gates: Float32, c: Float32, d: Float32, h: Float32) -> None:
    """Step h [hidden]; gates [2 hidden]: reset, update; c and d: the candidate's sums of input and of state."""
    size = len(h)
    r, u = gates[:size], gates[size:]
    for k in range(size):
        c[k] = tanh(c[k] + sigmoid(r[k]) * d[k])
    for k in range(size):
        u[k] = sigmoid(u[k])
        h[k] = (_ONE - u[k]) * c[k] + u[k] * h[k]


@compiled(inline="always", fastmath=_FAST)
def _leaky(y: Float32, leak: Any, h: Float32) -> None:
    """Step h [hidden] by its sums y [hidden]: the echo state's cell, and with a leak of 1 the vanilla one."""
    for k in range(len(h)):
        h[k] = (_ONE - leak) * h[k] + leak * tanh(y[k])


# --- Layers, attention and heads --------------------------------------------------------------------------------------


@compiled(inline="always", fastmath=_FAST, error_model="numpy")
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


@compiled(inline="always", fastmath=_FAST, error_model="numpy")
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
def _products(weights: Float32, v: Float32, at: int, z: Float32, count: int) -> None:
    """Multiply one or two vectors: v [2, depth] from column `at` on -> z [2, columns]; weights: a layer's."""
    bias, matrix = weights[0], weights[1:]
    end = at + len(matrix)
    if count == 1:
        _product(matrix, bias, v[0, at:end], z[0])
    else:
        _product_of_two(matrix, bias, v[0, at:end], z[0], v[1, at:end], z[1])


@compiled(fastmath=_FAST, error_model="numpy")
def _run_layer(
    layer: _Layer,
    lane: Int64,  # [observations]
    below: Float32,  # [observations, ...] what goes in
    state: Float32,  # [lanes, ...]
    hidden: Float32,  # out [observations, ...]
) -> None:
    size, width = layer.size, len(layer.gates) - 1 - layer.size
    v, z = np.empty((2, width + size), np.float32), np.empty((2, layer.gates.shape[1]), np.float32)
    c, d = np.empty((2, size), np.float32), np.empty((2, size), np.float32)
    j = 0
    while j < len(lane):
        # one load of weights serves two observations; the second of one lane would need what the first leaves behind
        count = 2 if j + 1 < len(lane) and lane[j + 1] != lane[j] else 1
        for p in range(count):
            v[p, :width] = below[j + p, layer.below_at : layer.below_at + width]
            v[p, width:] = state[lane[j + p], layer.state_at : layer.state_at + size]
        _products(layer.gates, v, 0, z, count)
        if layer.kind == _GRU:
            _products(layer.candidate, v, 0, c, count)
            _products(layer.recurrent, v, width, d, count)
        for p in range(count):
            h = state[lane[j + p], layer.state_at : layer.state_at + size]
            if layer.kind == _LSTM:
                _lstm(z[p], h, state[lane[j + p], layer.state_at + size : layer.state_at + 2 * size])
            elif layer.kind == _GRU:
                _gru(z[p], c[p], d[p], h)
            else:
                _leaky(z[p], np.float32(layer.leak), h)
            hidden[j + p, layer.hidden_at : layer.hidden_at + size] = h
        j += count


@compiled(fastmath=_FAST, error_model="numpy")
def _attend(
    attention: _Attention,
    lane: Int64,
    state: Float32,
    hidden: Float32,  # changed in place
) -> None:
    query, out, window, at, hidden_at = attention
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
    heads: _Heads,
    hidden: Float32,  # [observations, hidden]
    inputs: Float32,  # [observations, INPUT_SIZE]
    out: Float32,  # [observations, outputs]
) -> None:
    weights, bias = heads
    size, outputs = hidden.shape[1], len(weights)
    horizons = outputs // PARAMETERS_OF_T
    limit = np.float32(SCALE_INPUT_LIMIT)
    v = np.zeros(weights.shape[1], np.float32)
    for j in range(len(inputs)):
        v[:size] = hidden[j]
        for k in range(INPUT_SIZE):
            v[size + k] = inputs[j, k]
            v[size + INPUT_SIZE + k] = min(max(inputs[j, k], -limit), limit)
        for i in range(0, outputs, 3):
            p, q, r = _three_dots(v, weights[i], weights[i + 1], weights[i + 2])
            out[j, i], out[j, i + 1], out[j, i + 2] = bias[i] + p, bias[i + 1] + q, bias[i + 2] + r
        for i in range(horizons, 2 * horizons):
            out[j, i] = min(max(out[j, i], np.float32(MIN_LOG_SCALE)), np.float32(MAX_LOG_SCALE))
        for i in range(2 * horizons, outputs):
            softplus = max(out[j, i], np.float32(0)) + np.log1p(np.exp(-abs(out[j, i])))
            out[j, i] = np.float32(MIN_DEGREES_OF_FREEDOM) + np.float32(FREEDOM_SLOPE) * softplus
