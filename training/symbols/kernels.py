"""The network of categorical lanes, compiled for a CPU: one event after another.

A lane's arithmetic is the same sequence of operations whatever else is in a batch, as in `network/kernels.py`.
`network.py` has the equations, `counts.py` what a lane has counted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.network.compiled import compiled
from training.network.kernels import sigmoid, tanh
from training.symbols.counts import (
    EXPERTS,
    HIDDEN,
    NEW,
    RECENT,
    SIZE,
    STATISTICS,
    LaneRow,
    count,
    expert_log_probs,
    rarity,
    slot_of,
    update_expert_record,
)

Float32 = NDArray[np.float32]
MIN_PROBABILITY = 1e-12

PREDICTION = np.dtype(  # what was foreseen of an event: one row an observation
    [
        ("surprise", np.float64),  # -log p of what came, nats
        ("tail", np.float64),  # -log P(what came or anything no likelier): the network's or by long count, nats
        ("top", np.int64),  # hash of the likeliest symbol; 0: the lane knows none
        ("top_p", np.float64),
        ("p", np.float64),  # of what came
        ("is_new", np.bool_),  # it had no slot
    ]
)


class Weights(NamedTuple):
    """The network's weights, laid out for the kernels."""

    network: int  # names these weights
    inputs: Float32  # [SIZE, 4 hidden] an embedding's product with W, and the bias: what a slot adds to the gates
    is_new: Float32  # [4 hidden]
    recurrent: Float32  # [hidden, 4 hidden] columns i, f, c, o
    mix: Float32  # [hidden + STATISTICS, EXPERTS + 1]: weights of the experts, and slot 0's logit
    mix_bias: Float32  # [EXPERTS + 1]
    out: Float32  # [hidden, SIZE] what the hidden state says of each slot


@compiled(fastmath={"contract"}, error_model="numpy")
def step(w: Weights, r: LaneRow, slot: int, is_new: bool, z: Float32) -> None:
    """Step a lane's network by an event; z is scratch [4 hidden]."""
    for j in range(4 * HIDDEN):
        z[j] = w.inputs[slot, j]
    if is_new:
        for j in range(4 * HIDDEN):
            z[j] += w.is_new[j]
    for k in range(HIDDEN):
        a = r.hidden[k]
        for j in range(4 * HIDDEN):
            z[j] += a * w.recurrent[k, j]
    for j in range(HIDDEN):  # not the forecaster's: the compiler fuses other products there, and last bits differ
        i, f = sigmoid(z[j]), sigmoid(z[HIDDEN + j])
        c, o = tanh(z[2 * HIDDEN + j]), sigmoid(z[3 * HIDDEN + j])
        r.cell[j] = f * r.cell[j] + i * c
        r.hidden[j] = o * tanh(r.cell[j])


@compiled(fastmath={"contract"}, error_model="numpy")
def distribution(w: Weights, r: LaneRow, x: Float32, statistics: Float32, mix: Float32, p: Float32) -> None:
    """Write the probabilities p [SIZE] of the next event's slot, 0 to `used`; x, statistics and mix are scratch."""
    expert_log_probs(r, x, statistics)
    for e in range(EXPERTS + 1):
        mix[e] = w.mix_bias[e]
    for k in range(HIDDEN):
        for e in range(EXPERTS + 1):
            mix[e] += r.hidden[k] * w.mix[k, e]
    for k in range(STATISTICS):
        for e in range(EXPERTS + 1):
            mix[e] += statistics[k] * w.mix[HIDDEN + k, e]
    last = r.used + 1
    for k in range(last):
        p[k] = 0.0
    for k in range(HIDDEN):
        a = r.hidden[k]
        for slot in range(last):
            p[slot] += a * w.out[k, slot]
    for e in range(EXPERTS):
        g = np.float32(2.0) * sigmoid(mix[e])
        for slot in range(last):
            p[slot] += g * x[e, slot]
    p[0] += mix[EXPERTS]
    largest = p[0]
    for slot in range(last):
        largest = max(largest, p[slot])
    total = np.float32(0.0)
    for slot in range(last):
        p[slot] = math.exp(p[slot] - largest)
        total += p[slot]
    for slot in range(last):
        p[slot] /= total


@compiled
def warm_up(w: Weights, r: LaneRow) -> None:
    """Give a lane a hidden state of these weights: step through its last events again."""
    z = np.empty(4 * HIDDEN, np.float32)
    for k in range(HIDDEN):
        r.hidden[k] = r.cell[k] = 0.0
    for event in range(max(r.events - RECENT, 0), r.events):
        recent = r.recent[event % RECENT]
        step(w, r, recent % NEW, recent >= NEW, z)
    r.network = w.network


@compiled
def predict(
    lanes: LaneRow,  # LANE_SYMBOLS
    w: Weights,
    row: NDArray[np.int64],  # [observations] of `lanes`; -1: a number, skipped
    symbol: NDArray[np.int64],  # [observations] hash, not 0
    first: int,
    last: int,
    out: LaneRow,  # PREDICTION [observations]
) -> None:
    """Scan observations first..last: what was foreseen of each, and then learn it."""
    x, statistics = np.empty((EXPERTS, SIZE), np.float32), np.empty(STATISTICS, np.float32)
    mix, p, z = np.empty(EXPERTS + 1, np.float32), np.empty(SIZE, np.float32), np.empty(4 * HIDDEN, np.float32)
    for j in range(first, last):
        if row[j] < 0:
            continue
        r, o = lanes[row[j]], out[j]
        if r.network != w.network:
            warm_up(w, r)
        found = slot_of(r, symbol[j])
        distribution(w, r, x, statistics, mix, p)
        o.top, o.top_p, tail = 0, 0.0, 0.0
        for slot in range(r.used + 1):
            if p[slot] <= p[found]:
                tail += p[slot]
            if slot > 0 and p[slot] > o.top_p:
                o.top, o.top_p = r.symbol[slot], p[slot]
        o.p, o.is_new = p[found], found == 0
        o.surprise = -math.log(max(p[found], np.float32(MIN_PROBABILITY)))
        o.tail = max(-math.log(min(max(tail, MIN_PROBABILITY), 1.0)), rarity(r, found))
        update_expert_record(r, x, found)
        step(w, r, count(r, symbol[j], found), found == 0, z)
