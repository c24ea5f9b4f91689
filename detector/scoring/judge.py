"""One event's way from forecasts to a verdict: a compiled scan over a batch, sorted by stream.

Each observation is measured by its lane (`lane.py`, `channels/`), each event by its stream: claims, news, incident.
The constants were measured on public benchmarks and made series, and are the same for every stream; docs/scoring.md
says what each part brought.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from connectors.batches import CHANNELS
from detector.scoring.batch import Forecasts, Numbers, SortedBatch, Tables, Verdicts
from detector.scoring.called_false import was_called_false
from detector.scoring.channels.coupling import measure_coupling
from detector.scoring.channels.forecast import largest_error, network_band
from detector.scoring.channels.level import excuse_changed_clock
from detector.scoring.channels.novel import FAR_AWAY
from detector.scoring.claims import (
    COUPLING,
    FORECAST,
    LEVEL,
    NOVEL,
    PRICES,
    SEVERAL,
    WARM_UP_EVENTS,
    WIDTH_WEIGHT,
    claim,
    severity_of,
    together,
)
from detector.scoring.explain import explain
from detector.scoring.incidents import (
    FIRES,
    FREE,
    NONE,
    PEAKS,
    REFRACTORY,
    RENEWS,
    RESOLVES,
    YOUNG,
    Case,
    Limits,
    end_incident,
    is_active,
    watch,
)
from detector.scoring.lane import Arrival, measure_lane
from detector.scoring.news import newest
from detector.scoring.recurrence import LARGE, OFTEN, TOGETHER, TOLD, WAYS, Bounds, recurring
from detector.scoring.resolution import begin_change, ends, follow, is_back, lasts
from detector.scoring.rules import RuleTable
from detector.scoring.threshold import LIFT_STEP, YOUTH, fleet_threshold, threshold_of, youth
from detector.scoring.units import LEVEL as LEVELS
from detector.scoring.units import Record
from training.network.compiled import compiled
from training.network.memory import prefetch, unowned

GAP_INTERVALS, GAP_WARM_UP_EVENTS = 5.0, 20  # a pause of so many usual intervals is a gap, once they are known
AHEAD = 4  # observations whose lanes are on their way to the cache


@compiled
def judge(
    tables: Tables,
    batch: SortedBatch,
    numbers: Numbers,
    forecasts: Forecasts,
    rules: RuleTable,
    span: tuple[int, int],
    out: Verdicts,
) -> None:
    """Judge the events of `span`, first to last, and carry their streams' incidents on. Symbols have been measured."""
    batch, numbers, forecasts, of_rule = unowned(batch), unowned(numbers), unowned(forecasts), unowned(rules.of)
    (streams, lanes), out = unowned(tables), unowned(out)
    start, slot, times, lane, value = batch.start, batch.slot, batch.time, batch.lane, batch.value
    measured, verdicts, masked = out.measured, out.verdicts, out.masked
    of_fleet = fleet_threshold(rules.fleet_events_per_day, rules.fleet_alerts_per_day)
    claims, leads = np.zeros(len(CHANNELS)), np.zeros(len(CHANNELS), np.int64)
    stream_scores, incidents = streams.score, streams.incident
    scores, asked, end = lanes.score, start[span[0]], start[span[1]]
    for i in range(*span):
        while asked < min(start[i + 1] + AHEAD, end):
            prefetch(scores, lane[asked])
            asked += 1
        if i + AHEAD < span[1]:
            prefetch(stream_scores, slot[i + AHEAD])
            prefetch(incidents, slot[i + AHEAD])
        s, v = streams[slot[i]], verdicts[i]
        rule = of_rule[s.rule]
        weekly, fixed = rule.alerts_per_stream_per_week, rule.fixed_threshold
        fleet = of_fleet if math.isnan(fixed) else 0.0
        q, incident, begun = s.score, s.incident, s.incident.begun
        a, b, time, local, interval = start[i], start[i + 1], times[i], batch.local[i], batch.interval[i]
        gap = q.events > GAP_WARM_UP_EVENTS and (time - q.time) * 1e-9 > GAP_INTERVALS * q.interval
        q.time, q.interval, s.muted = time, interval, batch.muted[i]
        v.score = v.surprise = v.rank = 0.0
        v.warming, v.lead, v.channel = True, -1, -1
        silent = batch.lapse[i] != 0
        v.lapses = silent and incident.open
        if silent:  # what comes after is news, whether or not an incident was still open
            q.told[:] = 0.0
        if v.lapses:
            end_incident(s)
        if b == a:
            v.threshold = max(threshold_of(interval, weekly, fixed, False) + LIFT_STEP * s.lift, fleet)
            v.alert, v.held_back, v.missing, v.accepted, v.change = False, FREE, 0, False, NONE
            continue
        q.width = b - a if q.events == 0 else q.width + WIDTH_WEIGHT * (b - a - q.width)
        several = q.width >= SEVERAL
        _measure(s, lanes, numbers, forecasts, i, gap, measured)
        limit = claim(q, measured[a:b], several, gap, claims, leads)
        budget = threshold_of(interval, weekly, fixed, several)  # what is large, and comes often, goes by it alone
        own = budget + LIFT_STEP * s.lift
        v.threshold, young, more = own, own, 0.0
        if math.isnan(fixed):
            lacks = youth(own, q.events)
            young = own + YOUTH * lacks
            v.threshold = max(young, fleet)
            more = min((1.0 - YOUTH) * lacks, max(FAR_AWAY - v.threshold, 0.0))  # no age knows of larger news
        if max(claims[FORECAST], claims[LEVEL], claims[NOVEL]) >= budget - LARGE:
            bounds = Bounds(budget, young + TOLD)
            _no_rarer_than_before(s, measured[a:b], lane[a:b], several, claims, leads, bounds)
        v.score, channel, above = newest(q, claims, v.threshold, is_active(incident), more)
        q.events += 1
        v.rank, v.channel, v.warming = q.rank, channel, q.events <= WARM_UP_EVENTS
        for j in range(a, b):
            v.surprise += measured[j].surprise / (b - a)
        deviation = expected = 0.0
        if channel >= 0:
            v.lead = a + leads[channel]
            m = measured[v.lead]
            deviation, expected = m.error, m.expected
            total = 0.0
            for j in range(a, b):
                measured[j].contribution = severity_of(measured[j], channel, limit)
                total += measured[j].contribution
            if total <= 0.0:  # the network's word alone
                m.contribution = total = 1.0
            for j in range(a, b):
                measured[j].contribution /= total
            if not m.known:  # a symbol: neither above nor below, nor by how much
                deviation, expected = math.inf if rule.direction >= 0 else -math.inf, 0.0
        false = (
            not several
            and channel >= 0
            and v.score > v.threshold
            and was_called_false(q.recurrence, lane[v.lead] - s.first_lane, measured[v.lead].error, channel)
        )
        led = lanes[s.first_lane + max(begun.lead, 0)].score
        waits = goes_on = False
        if incident.open and incident.calm >= REFRACTORY - 1:
            waits = lasts(begun, q.told, led, local)
            if channel >= 0 and lane[v.lead] - s.first_lane == begun.lead:
                goes_on = ends(begun, v, led, value[v.lead], time, local)
        case = Case(
            time=time, above=above, several=several, lasts=waits, ends=goes_on, deviation=deviation, expected=expected,
            false=false,
        )  # fmt: skip
        watch(s, v, case, Limits(own, fleet), rule)
        v.missing = math.ceil(10.0**own - q.events) if v.held_back == YOUNG else 0
        v.accepted = v.change in (RESOLVES, RENEWS) and begun.lead >= 0 and not is_back(begun, q.told, led.level, local)
        if v.change in (FIRES, PEAKS, RENEWS):
            band = math.nan, math.nan
            for k in range(numbers.start[i], numbers.start[i + 1]):
                if numbers.at[k] == v.lead:
                    band = network_band(forecasts.frames[k], forecasts.outputs[k], measured[v.lead].expected)
            leading = lanes[lane[v.lead]].score
            explain(v, measured[v.lead], leading, value[v.lead], time, interval, band)
            if v.change != PEAKS:
                begun.lead = lane[v.lead] - s.first_lane
                begin_change(begun, v, measured[v.lead], leading.level, local)
        for j in range(a, b):
            masked[j] = incident.open
            if incident.open and lane[j] - s.first_lane == begun.lead:
                follow(begun, value[j])


@compiled
def _no_rarer_than_before(
    s: Record,  # STREAM
    measured: Record,  # of the event's observations, as are the lanes
    lane: NDArray[np.int64],
    several: bool,
    claims: NDArray[np.float64],
    leads: NDArray[np.int64],
    bounds: Bounds,
) -> None:
    """Lower large claims by an error, or by the level, to how often such came.

    Where that is neither by the clock nor more often than a stream may tell: to the floor at least. The size of an
    error is in the data's own unit, over several features in units.
    """
    own, floor = bounds
    for c in (FORECAST, LEVEL, NOVEL):
        if claims[c] < own - LARGE or leads[c] < 0:
            continue
        m = measured[leads[c]]
        if c == NOVEL and (several or not math.isnan(m.nearest)):  # the value is new, and not the error
            continue
        size = m.sizes[LEVELS] if c == LEVEL else m.error if c == NOVEL else largest_error(m)[1]
        way = 2 if c == LEVEL else int(size > 0.0)
        if several:  # in what all features share another one leads each time
            size, place = together(measured, c), TOGETHER
        else:
            size, place = abs(size), lane[leads[c]] - s.first_lane
        if size > 0.0:
            period, habit = recurring(s.score.recurrence, WAYS * place + way, size, s.score.time, s.score.interval)
            # a level passes through many sizes on its way to its own, and of several features one may be another
            often = not several and c != LEVEL and period < own - OFTEN
            least = -math.inf if habit or often else floor
            most = max(period - PRICES[c], least)
            if several and c == FORECAST and claims[c] > most:  # nor does what the others leave of it make it rarer
                claims[COUPLING] = min(claims[COUPLING], most)
            claims[c] = min(claims[c], most)


@compiled(inline="always")  # a call would count the owners of a dozen arrays, an event
def _measure(s: Record, lanes: Record, numbers: Numbers, forecasts: Forecasts, i: int, gap: bool, out: Record) -> None:
    """Measure the numbers of event `i`."""
    n, end = numbers.start[i], numbers.start[i + 1]
    for k in range(n, end):
        m = out[numbers.at[k]]
        m.known = not math.isnan(forecasts.frames[k].mean)
        m.levelled = False
        m.symbol = m.slow_units = m.still = m.novel = m.surprise = m.contribution = m.error = m.tail = 0.0
        m.expected = m.lower = m.upper = m.usual = m.coupled = math.nan
        m.sizes[:] = math.nan
        m.units[:] = 0.0
    if end > n + 1:
        rows = numbers.lane[n:end], numbers.value[n:end], numbers.at[n:end]
        measure_coupling(lanes, rows[0], s.first_lane, rows[1], s.score.events, out, rows[2])
    for k in range(n, end):
        m = out[numbers.at[k]]
        if m.known:
            r = lanes[numbers.lane[k]].score
            frame, output = forecasts.frames[k], forecasts.outputs[k]
            arrival = Arrival(numbers.time[k], numbers.local[k], numbers.value[k], gap)
            measure_lane(r, arrival, frame, output, forecasts.horizons, m)
    excuse_changed_clock(out, numbers.at[n:end])
