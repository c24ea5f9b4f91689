"""What the compiled scans over a batch take, by column.

Events lie sorted by stream, the events of one stream in their order, and the observations of event i are rows
`start[i]:start[i+1]`. A scan may run on a stretch of events first..last that holds whole streams, so that stretches can
run in several threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.scoring.units import STATISTICS

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
Records = NDArray[np.void]

MEASURED = np.dtype(  # one row an observation
    [
        ("expected", np.float64),
        ("lower", np.float64),
        ("upper", np.float64),
        ("error", np.float64),
        ("surprise", np.float64),
        ("contribution", np.float64),  # share in the channel that speaks
        ("known", np.bool_),  # a number of a lane that had a forecast
        ("clocks", np.float64, 3),  # level from the usual of this hour, one before, one after, in units; NaN: not known
        ("levelled", np.bool_),  # the usual of its hour is known well enough
        ("symbol", np.float64),  # a symbol's claim: log10 of the events between such
        ("tail", np.float64),  # -log10 of the two-sided probability that the network gave to such an error
        ("least", np.float64),  # smallest unit of an error
        ("smoothed_error", np.float64),
        ("far_error", np.float64),
        ("usual", np.float64),  # level of this hour; NaN: not known yet
        ("coupled", np.float64),  # what the other features let expect; written where there are any
        ("sizes", np.float64, len(STATISTICS)),  # of the lane's statistics; NaN: not known
        ("units", np.float64, len(STATISTICS)),  # the same in units
        ("slow_units", np.float64),  # of all, by their slow memory: for the rank
        ("still", np.float64),  # claims of channels that need no units
        ("novel", np.float64),
        ("nearest", np.float64),  # value met before, and how many events ago, about
        ("nearest_age", np.float64),
        ("nearest_within", np.float64),  # how far beyond `nearest` it may have lain
    ],
    align=True,
)

VERDICT = np.dtype(  # one row an event
    [
        ("score", np.float64),
        ("threshold", np.float64),
        ("surprise", np.float64),
        ("rank", np.float64),
        ("warming", np.bool_),
        ("channel", np.int8),  # that claims most; -1: none
        ("lead", np.int64),  # observation that contributes most; -1: none
        ("alert", np.bool_),
        ("held_back", np.int8),  # index into HELD_BACK: what keeps it from being one, news as it is
        ("missing", np.int64),  # events that a stream too young still lacks, where that holds it back; 0 else
        ("lapses", np.bool_),  # an incident had ended before it, in the stream's silence
        ("accepted", np.bool_),  # where an incident resolves: the new level was taken as normal
        ("change", np.int8),  # what becomes of the incident: see incidents.py
        # what the channel's own sentence is made of, where an alert fires or peaks: see explain.py
        ("observed", np.float64),
        ("expected", np.float64),
        ("lower", np.float64),
        ("upper", np.float64),
        ("seconds", np.float64),
        ("usual_seconds", np.float64),
    ],
    align=True,
)


class Tables(NamedTuple):
    """What is remembered of streams and of their lanes."""

    streams: Records  # STREAM, by slot
    lanes: Records  # lane table


class Ids(NamedTuple):
    """What the names of an EventBatch are to the engine; its own order."""

    slot: Int64  # [events] of the stream
    partition: Int64  # [events] hash
    feature: Int64  # [observations] number; a feature of numbers and one of symbols are two, whatever their names
    symbol: Int64  # [observations] hash; 0: a number


class SortedBatch(NamedTuple):
    """A batch's admitted events, sorted by stream, and where they came from."""

    event: Int64  # [events] index into the batch
    slot: Int64  # [events]
    time: Int64  # [events] ns
    interval: Float64  # [events] running mean time between events, as of each; seconds
    lapse: Int64  # [events] when its stream had fallen silent before it came, ns; 0: it had not
    start: Int64  # [events + 1]
    observation: Int64  # [observations] index into the batch
    lane: Int64  # [observations]
    value: Float64  # [observations] of a symbol its surprise, once that is known
    symbol: Int64  # [observations] hash; 0: a number
    local: Int64  # [events] time by the streams' clock, ns
    muted: NDArray[np.bool_]  # [events] its stream is not to alert at its time


class Numbers(NamedTuple):
    """The observations of a SortedBatch that are numbers."""

    start: Int64  # [events + 1]
    at: Int64  # [numbers] row among all observations
    lane: Int64  # [numbers], as are the others
    time: Int64
    value: Float64
    local: Int64


class Symbols(NamedTuple):
    """The observations of a SortedBatch that are symbols."""

    start: Int64  # [events + 1]
    at: Int64  # [symbols] row among all observations
    row: Int64  # [symbols] in the table of categorical lanes
    symbol: Int64  # [symbols] hash


class Forecasts(NamedTuple):
    """What the network said of each number before it came."""

    horizons: Int64
    frames: Records  # FRAME [numbers]
    outputs: NDArray[np.float32]  # [numbers, 3 horizons]: locations, log scales, degrees of freedom


class Verdicts(NamedTuple):
    """What the scans write."""

    measured: Records  # MEASURED [observations]
    verdicts: Records  # VERDICT [events]
    masked: NDArray[np.bool_]  # [observations] part of an incident: not to be learnt by the network
