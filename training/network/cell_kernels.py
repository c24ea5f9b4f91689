"""The recurrent cells' equations (`cells.py`) after the products of weights, compiled for a CPU.

Each takes the sums that go into its gates and changes the lane's state in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.network.compiled import compiled

Float32 = NDArray[np.float32]

FAST = {"contract", "nsz"}  # fused multiply-add, and no care for -0: the order of operations stays ours
_ONE, _HALF = np.float32(1), np.float32(0.5)


@compiled(inline="always", fastmath=FAST)
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


@compiled(inline="always", fastmath=FAST)
def sigmoid(x: Any) -> Any:
    """Return the logistic function."""
    return _HALF * tanh(_HALF * x) + _HALF


@compiled(inline="always", fastmath=FAST)
def lstm(gates: Float32, h: Float32, C: Float32) -> None:
    """Step h and C [hidden]; gates [4 hidden]: input, forget, candidate, output; overwritten."""
    size = len(h)
    i, f, c, o = gates[:size], gates[size : 2 * size], gates[2 * size : 3 * size], gates[3 * size :]
    for k in range(size):
        i[k] = sigmoid(i[k]) * tanh(c[k])
    for k in range(size):
        C[k] = sigmoid(f[k]) * C[k] + i[k]
        h[k] = sigmoid(o[k]) * tanh(C[k])


@compiled(inline="always", fastmath=FAST)
def gru(gates: Float32, c: Float32, d: Float32, h: Float32) -> None:
    """Step h [hidden]; gates [2 hidden]: reset, update; c and d: the candidate's sums of input and of state."""
    size = len(h)
    r, u = gates[:size], gates[size:]
    for k in range(size):
        c[k] = tanh(c[k] + sigmoid(r[k]) * d[k])
    for k in range(size):
        u[k] = sigmoid(u[k])
        h[k] = (_ONE - u[k]) * c[k] + u[k] * h[k]


@compiled(inline="always", fastmath=FAST)
def leaky(y: Float32, leak: Any, h: Float32) -> None:
    """Step h [hidden] by its sums y [hidden]: the echo state's cell, and with a leak of 1 the vanilla one."""
    for k in range(len(h)):
        h[k] = (_ONE - leak) * h[k] + leak * tanh(y[k])
