"""The recent window of each lane, in one ring: retraining learns from it, and new weights are warmed up with it.

A row is the network's inputs (`inputs.INPUTS`) in 16 bits: clipped at +-6, so 0.0002 apart. The target of a row is the
"value" column of a later one, because that column is the value of the event before its row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.network.compiled import compiled
from training.network.inputs import INPUT_SIZE, LIMIT

WINDOW = 128  # events: enough for a hidden state to warm up, at 3 KB a lane
SCALE = 32767.0 / LIMIT

INPUT_HISTORY = np.dtype(
    [
        ("events", np.int64),  # written so far; row e is at e % WINDOW
        ("inputs", np.int16, (WINDOW, INPUT_SIZE)),
        ("masked", np.uint8, WINDOW),  # the event was part of an incident and is not learnt
    ],
    align=True,
)


@compiled
def record(
    histories: NDArray[np.void],  # INPUT_HISTORY [lanes]
    lane: NDArray[np.int64],  # [observations]
    inputs: NDArray[np.float32],  # [observations, INPUT_SIZE]
    masked: NDArray[np.bool_],  # [observations]
    first: int,
    last: int,
) -> None:
    """Write observations first..last into their lanes' rings."""
    for j in range(first, last):
        h = histories[lane[j]]
        slot = h.events % WINDOW
        for k in range(INPUT_SIZE):
            h.inputs[slot, k] = np.int16(round(inputs[j, k] * SCALE))
        h.masked[slot] = masked[j]
        h.events += 1


def unroll(histories: NDArray[np.void]) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
    """Return the rings of some lanes in the order of time: inputs, masked and the number of rows.

    Inputs are [lanes, WINDOW, INPUT_SIZE] and masked [lanes, WINDOW]; a young lane's rows are the last, after zeros
    that are masked.
    """
    count = np.minimum(histories["events"], WINDOW)
    order = (histories["events"][:, None] + np.arange(WINDOW)) % WINDOW  # [lanes, WINDOW], oldest first
    rows = np.arange(len(histories))[:, None]
    inputs = histories["inputs"][rows, order].astype(np.float32) / np.float32(SCALE)
    masked = histories["masked"][rows, order].astype(np.bool_)
    missing = np.arange(WINDOW)[None] < WINDOW - count[:, None]
    inputs[missing] = 0.0
    return inputs, masked | missing, count
