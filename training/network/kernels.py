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
from training.network.memory import part, prefetch
from training.network.products import COLUMNS, LANES, ROWS, multiply, padded
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
    """A recurrent layer's weights, and where its numbers are. A matrix's rows: the bias, then what goes in; padded."""

    kind: int
    size: int  # hidden
    width: int  # of what goes in
    gates: Float32  # [1 + inputs + hidden, gates * hidden] torch's two biases summed; of a GRU only reset and update
    candidate: Float32  # [1 + inputs, hidden] of a GRU, whose candidate's products stay apart
    recurrent: Float32  # [1 + hidden, hidden]
    leak: float  # 1 is the vanilla cell
    below_at: int  # columns: of what goes in
    state_at: int
    hidden_at: int  # of what comes out


class _Attention(NamedTuple):
    size: int  # hidden
    query: Float32  # [1 + hidden, hidden, padded], without a bias
    out: Float32  # likewise
    window: int
    state_at: int
    hidden_at: int


class _Heads(NamedTuple):
    matrix: Float32  # [1 + hidden + 2 inputs, outputs, padded]: the bias, then what goes in
    low: Float32  # [outputs, padded] limits
    high: Float32
    is_freedom: NDArray[np.bool_]  # [outputs, padded]


class Network:
    """A forecaster's weights, laid out for the kernels. `step` may run in several threads at once."""

    def __init__(self, weights: Weights) -> None:
        self.shape = shape = weights.shape
        self._layers = [_layer(weights, k) for k in range(shape.layers)]
        self._attention = None
        if shape.attention_window:
            names = ("attention.query.weight", "attention.out.weight")
            none = np.zeros(shape.hidden_size, np.float32)
            query, out = (_matrix(none, weights.arrays[name]) for name in names)
            self._attention = _Attention(
                *(shape.hidden_size, query, out, shape.attention_window),
                *(shape.state_size - shape.state_sizes[-1], self._layers[-1].hidden_at),
            )
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
        width=W.shape[1],
        gates=_matrix(b + c, W, U),
        candidate=candidate,
        recurrent=recurrent,
        leak=LEAK_RATE if esn else 1.0,
        below_at=max(k - 1, 0) * size,
        state_at=k * shape.state_sizes[0],
        hidden_at=k * size,
    )


def _matrix(bias: Float32, *weights: Float32) -> Float32:
    return padded(np.concatenate([bias[None], *(matrix.T for matrix in weights)]), COLUMNS)


def _heads(weights: Weights) -> _Heads:
    """Return one column a number of the forecast: hidden states, inputs for locations, clipped inputs for scales."""
    count, value = len(weights.shape.horizons), weights.arrays
    from_hidden, from_input = value["from_hidden.weight"], value["from_input.weight"]
    skip = np.zeros((2 * INPUT_SIZE, PARAMETERS_OF_T * count), np.float32)
    skip[:INPUT_SIZE, :count] = from_input[:count].T
    skip[INPUT_SIZE:, count : 2 * count] = from_input[count:].T
    matrix = padded(np.concatenate([value["from_hidden.bias"][None], from_hidden.T, skip]), LANES)
    low, high = np.full((2, matrix.shape[1]), np.inf, np.float32)
    low[:] *= -1
    low[count : 2 * count], high[count : 2 * count] = MIN_LOG_SCALE, MAX_LOG_SCALE
    return _Heads(matrix, low, high, np.arange(matrix.shape[1]) // count == PARAMETERS_OF_T - 1)


# --- Cells: each takes the sums that go into its gates, and changes the lane's state in place -------------------------


@compiled(inline="always", fastmath=_FAST)
def _fraction(x: Any) -> Any:
    """Return the numerator and the denominator of `tanh`: one division serves several that are multiplied."""
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
    return x * p, q


@compiled(inline="always", fastmath=_FAST)
def tanh(x: Any) -> Any:
    """Return tanh as a rational minimax fit on |x| <= 9: relative error 2e-8 before rounding; it vectorises."""
    p, q = _fraction(x)
    return p / q


@compiled(inline="always", fastmath=_FAST)
def sigmoid(x: Any) -> Any:
    """Return the logistic function."""
    return _HALF * tanh(_HALF * x) + _HALF


@compiled(inline="always", fastmath=_FAST)
def _softplus(x: Any) -> Any:
    """Return log(1 + exp(x)), to 1e-7: by tanh and the series of 2 atanh(s), s at most a third; it vectorises."""
    t = tanh(_HALF * abs(x))
    s = (_ONE - t) / (np.float32(3) + t)
    z = s * s
    series = np.float32(2 / 13)
    series = series * z + np.float32(2 / 11)
    series = series * z + np.float32(2 / 9)
    series = series * z + np.float32(2 / 7)
    series = series * z + np.float32(2 / 5)
    series = series * z + np.float32(2 / 3)
    series = series * z + np.float32(2)
    return max(x, np.float32(0)) + s * series


@compiled(fastmath=_FAST, error_model="numpy")
def _lstm(i: Float32, f: Float32, c: Float32, o: Float32, h: Float32, C: Float32) -> None:
    """Step h and C by the sums of the gates (input, forget, candidate, output); all are [hidden]."""
    for k in range(len(h)):
        a, b = _fraction(_HALF * i[k])  # its logistic function is (a + b) / 2b
        p, q = _fraction(_HALF * f[k])
        t, u = _fraction(c[k])
        bu = b * u
        C[k] = _HALF * ((p + q) * C[k] * bu + (a + b) * t * q) / (q * bu)
    for k in range(len(h)):
        p, q = _fraction(_HALF * o[k])
        t, u = _fraction(C[k])
        h[k] = _HALF * (p + q) * t / (q * u)


@compiled(fastmath=_FAST, error_model="numpy")
def _gru(r: Float32, u: Float32, c: Float32, d: Float32, h: Float32) -> None:
    """Step h by the sums of reset and update, and the candidate's of input and of state; all are [hidden]."""
    for k in range(len(h)):
        update = sigmoid(u[k])
        h[k] = (_ONE - update) * tanh(c[k] + sigmoid(r[k]) * d[k]) + update * h[k]


@compiled(fastmath=_FAST, error_model="numpy")
def _leaky(y: Float32, leak: Any, h: Float32) -> None:
    """Step h by its sums y, [hidden]: the echo state's cell, and with a leak of 1 the vanilla one."""
    for k in range(len(h)):
        h[k] = (_ONE - leak) * h[k] + leak * tanh(y[k])


@compiled
def _copy(from_: Float32, to: Float32) -> None:
    for k in range(len(to)):
        to[k] = from_[k]


# --- Layers, attention and heads --------------------------------------------------------------------------------------


@compiled(inline="always")
def _distinct(lane: Int64, j: int) -> int:
    """Return how many observations from j on may go through a tile: none needs what another of them leaves behind."""
    most = min(ROWS, len(lane) - j)
    for count in range(1, most):
        for k in range(j, j + count):
            if lane[k] == lane[j + count]:
                return count
    return most


@compiled(fastmath=_FAST, error_model="numpy")
def _run_layer(
    layer: _Layer,
    lane: Int64,  # [observations]
    below: Float32,  # [observations, ...] what goes in
    state: Float32,  # [lanes, ...]
    hidden: Float32,  # out [observations, ...]
) -> None:
    size, width, at = layer.size, layer.width, layer.state_at
    v, z = np.zeros((ROWS, width + size), np.float32), np.empty((ROWS, layer.gates.shape[1]), np.float32)
    x, y = np.empty((2, ROWS, layer.candidate.shape[1]), np.float32)
    j = 0
    while j < len(lane):
        rows = _distinct(lane, j)
        for k in range(j + ROWS, min(j + ROWS + rows, len(lane))):
            prefetch(state, lane[k])
        for p in range(rows):
            _copy(part(below, j + p, layer.below_at, width), part(v, p, 0, width))
            _copy(part(state, lane[j + p], at, size), part(v, p, width, size))
        multiply(layer.gates, v, 0, z, rows)
        if layer.kind == _GRU:
            multiply(layer.candidate, v, 0, x, rows)
            multiply(layer.recurrent, v, width, y, rows)
        for p in range(rows):
            h, first = part(state, lane[j + p], at, size), part(z, p, 0, size)
            if layer.kind == _LSTM:
                f, c, o = part(z, p, size, size), part(z, p, 2 * size, size), part(z, p, 3 * size, size)
                _lstm(first, f, c, o, h, part(state, lane[j + p], at + size, size))
            elif layer.kind == _GRU:
                _gru(first, part(z, p, size, size), part(x, p, 0, size), part(y, p, 0, size), h)
            else:
                _leaky(first, np.float32(layer.leak), h)
            _copy(h, part(hidden, j + p, layer.hidden_at, size))
        j += rows


@compiled(fastmath=_FAST, error_model="numpy")
def _attend(
    attention: _Attention,
    lane: Int64,
    state: Float32,
    hidden: Float32,  # changed in place
) -> None:
    size, query, out, window, at, hidden_at = attention
    context, q = np.empty((1, size), np.float32), np.empty((1, query.shape[1]), np.float32)
    a = np.empty(window, np.float32)
    scale = np.float32(1.0 / math.sqrt(size))
    for j in range(len(lane)):
        kept = state[lane[j], at : at + window * size + 1]
        for k in range((window - 1) * size):  # the oldest makes room
            kept[k] = kept[k + size]
        kept[(window - 1) * size : window * size] = hidden[j, hidden_at : hidden_at + size]
        count = min(int(kept[window * size]) + 1, window)
        kept[window * size] = count
        multiply(query, hidden[j : j + 1], hidden_at, q, 1)
        largest = np.float32(-np.inf)
        for k in range(window - count, window):
            a[k] = scale * _dot(q[0, :size], kept[k * size : (k + 1) * size])
            largest = max(largest, a[k])
        total = np.float32(0)
        context[:] = 0
        for k in range(window - count, window):
            e = np.exp(a[k] - largest)
            total += e
            for i in range(size):
                context[0, i] += e * kept[k * size + i]
        for i in range(size):
            context[0, i] /= total
        multiply(out, context, 0, q, 1)
        for i in range(size):
            hidden[j, hidden_at + i] += q[0, i]


@compiled(fastmath=_FASTER, error_model="numpy")
def _dot(v: Float32, w: Float32) -> Any:
    total = np.float32(0)
    for k in range(len(v)):
        total += v[k] * w[k]
    return total


@compiled(error_model="numpy")
def _read_out(
    heads: _Heads,
    hidden: Float32,  # [observations, hidden]
    inputs: Float32,  # [observations, INPUT_SIZE]
    out: Float32,  # [observations, outputs]
) -> None:
    matrix, low, high, is_freedom = heads
    size, columns, outputs = hidden.shape[1], matrix.shape[1], out.shape[1]
    limit = np.float32(SCALE_INPUT_LIMIT)
    v, z = np.zeros((ROWS, size + 2 * INPUT_SIZE), np.float32), np.zeros((ROWS, columns), np.float32)
    for j in range(0, len(inputs), ROWS):
        rows = min(ROWS, len(inputs) - j)
        for p in range(rows):
            _copy(part(hidden, j + p, 0, size), part(v, p, 0, size))
            for k in range(INPUT_SIZE):
                v[p, size + k] = inputs[j + p, k]
                v[p, size + INPUT_SIZE + k] = min(max(inputs[j + p, k], -limit), limit)
        multiply(matrix, v, 0, z, rows)
        for p in range(rows):
            for i in range(columns):  # with those that pad, which go through the same registers
                value = min(max(z[p, i], low[i]), high[i])
                freedom = np.float32(MIN_DEGREES_OF_FREEDOM) + np.float32(FREEDOM_SLOPE) * _softplus(value)
                z[p, i] = freedom if is_freedom[i] else value
            for i in range(outputs):
                out[j + p, i] = z[p, i]
