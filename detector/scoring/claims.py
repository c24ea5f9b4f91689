"""An event's severity by channel, and what each channel claims of it: log10 of a return period, less its price.

A channel's severity sums over the stream's features, or takes the worst of them. Its claim is the return period of such
peaks less the price -log10 of its share of the alarm budget, so that all channels together keep to the budget of one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from connectors.batches import CHANNELS
from detector.scoring.recurrence import RECURRENCE
from detector.scoring.return_period import PERIOD, begin, memory_of, return_period
from detector.scoring.units import COUPLING as COUPLED
from detector.scoring.units import ERROR, FAR, SMOOTHED, Record, hard
from detector.scoring.units import LEVEL as LEVELLED
from training.network.compiled import compiled

# a new channel: its name in `connectors.batches`, its price here, its severity below
FORECAST, LEVEL, STILL, COUPLING, NOVEL, SYMBOL = range(len(CHANNELS))
PRICES = np.array([0.1, 1.1, 1.4, 1.5, 0.0, 0.3])
NETWORK_PRICE = 0.65  # of the network's own word, the second witness of a stream of one feature
WITNESS = 0.5  # its weight beside the errors in the data's unit
SEVERAL = 1.5  # features of a usual event from which on a stream counts as one of several
SEVERAL_PRICE = 1.5  # what novelty costs a stream of several features besides

WARM_UP_EVENTS = 60  # of a stream before severities mean something
NOVEL_WARM_UP_EVENTS, LEVEL_WARM_UP_EVENTS = 50, 200
SUM_WARM_UP_EVENTS = 20  # of a sum over several features: from units alone nobody knows how they go together
CALM_SEVERITY = 0.1  # added, so that the logarithm of nothing is something
SEVERE = 10.0  # severity that adds nothing to the return period; beyond, each decade adds two
SEVERITY_GAIN = 2.0
COUPLING_WEIGHT = 0.6  # of what the others leave unexplained in the forecast's severity
CROWD = 3  # where more features are there, one alone may exceed the second by LONE at most: a lone jump in an
LONE = 6.0  # otherwise constant feature is the typical false alarm
WIDTH_WEIGHT = 0.02  # of the newest event in how many features an event of the stream has
RANK_WEIGHT = 0.3
FAR_OUT, STRETCH = 3.5, 1.1  # beyond such a claim errors are rarer than their tail says, so many times more decades

# where a channel that learns its return period has it in `periods`, and last the network's own word
PERIODS = np.array([0, 1, -1, 2, -1, -1])
NETWORK = 3
STREAM_SCORE = np.dtype(
    [
        ("time", np.int64),  # of the last event, ns
        ("interval", np.float64),  # usual, as of then, seconds
        ("events", np.int64),  # judged
        ("rank", np.float64),
        ("width", np.float32),  # features of a usual event
        ("periods", PERIOD, NETWORK + 1),
        ("told", np.float32, len(CHANNELS)),  # score of the peak that was told; 0: none
        ("quiet", np.uint8, len(CHANNELS)),  # events below the threshold since
        ("recurrence", RECURRENCE),
        ("pauses", np.uint8, 4),  # what silence.py knows of its rhythm
    ],
    align=True,
)


@compiled
def severity_of(m: Record, channel: int, limit: float) -> float:
    """Return how large an observation is to a channel; squares, where the channel sums over features.

    Symbols are nothing to the channels of numbers, whose fields are not written for them, and the other way round.
    """
    if m.known == (channel == SYMBOL):
        return 0.0
    if channel == FORECAST:
        units = min(max(m.units[ERROR], m.units[SMOOTHED], m.units[FAR]), limit)
        return units * units + (COUPLING_WEIGHT * m.units[COUPLED]) ** 2
    if channel == LEVEL:
        return m.units[LEVELLED] ** 2
    if channel == STILL:
        return m.still
    if channel == COUPLING:
        return m.units[COUPLED] ** 2
    if channel == NOVEL:
        return m.novel
    return m.symbol


@compiled
def together(measured: Record, channel: int) -> float:
    """Return how large an event is to forecast or level over all features, in units that no logarithm softens."""
    total = 0.0
    for k in range(len(measured)):
        m = measured[k]
        if m.known:
            units = m.units[LEVELLED] if channel == LEVEL else max(m.units[ERROR], m.units[SMOOTHED], m.units[FAR])
            total += hard(units) ** 2
    return math.sqrt(total)


@compiled
def claim(
    s: Record, measured: Record, several: bool, gap: bool, claims: NDArray[np.float64], leads: NDArray[np.int64]
) -> float:
    """Write each channel's claim and the observation that leads it, -1 for none; return the limit on a lone feature.

    `s` is STREAM_SCORE, `measured` MEASURED of the event's observations.
    """
    count = len(measured)
    present = 0
    first = second = square = 0.0
    levelled = False
    for k in range(count):
        m = measured[k]
        if not m.known:
            square += m.symbol * m.symbol
            continue
        present += 1
        units = max(m.units[ERROR], m.units[SMOOTHED], m.units[FAR])
        if units > first:
            first, second = units, first
        elif units > second:
            second = units
        square += m.slow_units * m.slow_units
        levelled = levelled or m.levelled
    limit = second + LONE if present > CROWD else math.inf
    if not gap:
        s.rank += RANK_WEIGHT * (math.sqrt(square) - s.rank)

    warming, memory = s.events <= WARM_UP_EVENTS, memory_of(s.interval)
    log_present = math.log10(max(present, 1))
    for c in range(len(CHANNELS)):
        total = worst = 0.0
        leads[c] = -1
        for k in range(count):
            if (c == SYMBOL) == measured[k].known:
                continue
            value = severity_of(measured[k], c, limit)
            total += value
            if value > worst or leads[c] < 0:
                worst, leads[c] = value, k
        period = 0.0
        if c == STILL:
            period = worst - log_present if worst > 0.0 and not gap else 0.0
        elif c == NOVEL:
            if worst > 0.0 and s.events > NOVEL_WARM_UP_EVENTS:
                period = worst - log_present - (SEVERAL_PRICE if several else 0.0)
        elif c == SYMBOL:
            period = worst if not warming else 0.0
        elif present == 0 or gap or warming or (c == LEVEL and not levelled) or (c == COUPLING and not several):
            pass
        else:
            q = s.periods[PERIODS[c]]
            period = _period(q, math.sqrt(total), memory)
            least = LEVEL_WARM_UP_EVENTS if c == LEVEL else SUM_WARM_UP_EVENTS if several else 0
            if q.events < least:
                period = 0.0
            elif c == FORECAST:
                period += max(SEVERITY_GAIN * math.log10(math.sqrt(total) / SEVERE + 1e-12), 0.0)
        claims[c] = period - PRICES[c]
    if present > 0 and not gap and not warming:
        q, tail = s.periods[NETWORK], 0.0
        for k in range(count):
            if measured[k].known:
                tail = max(tail, measured[k].tail)
        if q.events == 0:
            begin(q, 1.7, 0.4343, 0.01)
        own = return_period(q, tail, memory) - NETWORK_PRICE
        if not several:
            claims[FORECAST] += WITNESS * (own - claims[FORECAST])
    claims[FORECAST] += STRETCH * max(claims[FORECAST] - FAR_OUT, 0.0)
    return limit


@compiled
def _period(q: Record, severity: float, memory: float) -> float:
    if q.events == 0:
        begin(q, 0.0, 0.25, 0.005)
    return return_period(q, math.log(severity + CALM_SEVERITY), memory)
