"""Categorical lanes: what is remembered of each, how surprising a symbol was, and how rare such a surprise is.

Good at a symbol never seen in a settled stream, at transitions that do not occur, and at rare symbols in a burst. It
says nothing of a symbol that stays away, nor of one that comes at a wrong time of day.

Three channels, each with the return period of its declustered peaks, share one budget: the surprise of the event; the
running mean of its tail (-log of the probability of this symbol or any no likelier, by the network or by the long
count, whichever is less: about 1 on average, whatever the source), for bursts; and the surprise of new symbols alone,
since a stream that is often surprised by what it knows may still never meet anything new.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from detector.scoring.batch import Symbols
from detector.scoring.symbol_periods import RETURN, return_period
from detector.scoring.units import Record
from training.network.compiled import compiled
from training.symbols.counts import LANE_SYMBOLS
from training.symbols.kernels import Weights
from training.symbols.weights import kernel_weights, shipped_arrays

MIN_SURPRISE = 0.7  # nats: a coin's toss is never an event
MIN_MEAN_TAIL = 1.0  # nats: what it is on average
SMOOTHING = 0.1  # of the mean tail: a burst is some ten events

SYMBOL_ROW = np.dtype(
    [
        ("lane", LANE_SYMBOLS),
        ("surprise", RETURN),
        ("mean_tail", RETURN),
        ("new", RETURN),
        ("smoothed", np.float64),
    ],
    align=True,
)


@functools.cache
def network() -> Weights:
    """Return the shipped network's weights, laid out for the kernels; read when the first symbol comes."""
    return kernel_weights(shipped_arrays())


def vocabulary(row: np.void) -> list[int]:
    """Return the hashes that a lane, SYMBOL_ROW, knows, in the order of their places."""
    lane = row["lane"]
    places: list[int] = lane["symbol"][1 : int(lane["used"]) + 1].tolist()
    return places


@compiled
def measure_symbols(
    rows: Record,  # SYMBOL_ROW
    symbols: Symbols,
    predictions: Record,  # PREDICTION [symbols]
    first: int,
    last: int,
    measured: Record,  # out MEASURED [observations]
    value: NDArray[np.float64],  # out [observations] the surprise: what of a symbol is a number
) -> None:
    """Scan symbols first..last: how surprising each was, and in `symbol` how rare that is."""
    row, place = symbols.row, symbols.at
    for j in range(first, last):
        at = place[j]
        r, f, out = rows[row[j]], predictions[j], measured[at]
        r.smoothed += SMOOTHING * (f.tail - r.smoothed)
        period = return_period(r.surprise, f.surprise if f.surprise > MIN_SURPRISE else 0.0)
        period = max(period, return_period(r.mean_tail, r.smoothed if r.smoothed > MIN_MEAN_TAIL else 0.0))
        period = max(period, return_period(r.new, f.surprise if f.is_new else 0.0))
        out.expected = out.lower = out.upper = math.nan
        out.known = out.levelled = False
        out.contribution = 0.0
        out.error = out.surprise = value[at] = f.surprise
        out.symbol = period
