"""Each event's verdict, and its stream's incident carried on: one compiled scan over a batch."""

from __future__ import annotations

import math

from detector.scoring.batch import SortedBatch, Tables, Verdicts
from detector.scoring.incidents import AlertRules, end_incident, watch
from detector.scoring.judge import judge_many, judge_single
from detector.scoring.symbols import judge_symbol
from detector.scoring.threshold import threshold_of
from training.network.compiled import compiled


@compiled
def judge(tables: Tables, batch: SortedBatch, rules: AlertRules, first: int, last: int, out: Verdicts) -> None:
    """Judge events first..last of what was measured, and carry their streams' incidents on."""
    # columns once, outside the loop: in it each would count references
    streams, many, start = tables.streams, tables.many, batch.start
    lane, many_row, value = batch.lane, batch.many_row, batch.value
    measured, verdicts, masked = out.measured, out.verdicts, out.masked
    for i in range(first, last):
        s, v = streams[batch.slot[i]], verdicts[i]
        a, b = start[i], start[i + 1]
        v.score = v.surprise = 0.0
        v.warming, v.lead = True, -1
        v.threshold = threshold_of(s, batch.interval[i], rules.alerts_per_stream_per_week, rules.fixed_threshold)
        if b > a:
            if s.single >= 0:
                v.score, v.surprise, v.warming = judge_single(
                    s, tables.single[s.single], value[a], batch.time[i], measured[a], rules.flag_repeats
                )
            elif s.first_many < 0:
                v.score, v.surprise, v.warming = judge_symbol(s, measured[a])
            else:
                places = lane[a:b] - s.first_lane
                matrix = tables.matrices[:0]
                if s.matrix >= 0:
                    matrix = tables.matrices[s.matrix : s.matrix + 2 * s.capacity * s.capacity]
                v.score, v.surprise, v.warming = judge_many(
                    s, many, matrix, places, many_row[a:b], value[a:b], measured[a:b]
                )
            s.events += 1
        total, largest = 0.0, 0.0
        for j in range(a, b):
            total += measured[j].contribution
            if measured[j].contribution > largest:
                largest, v.lead = measured[j].contribution, j
        if total > 0.0:
            for j in range(a, b):
                measured[j].contribution /= total
        deviation, expected = 0.0, 0.0
        if v.lead >= 0:
            deviation, expected = measured[v.lead].error, measured[v.lead].expected
        if math.isnan(expected):  # a symbol: neither above nor below, nor by how much
            deviation, expected = math.inf if rules.direction >= 0 else -math.inf, 0.0
        v.lapses = batch.lapse[i] != 0 and s.incident.open
        if v.lapses:
            end_incident(s)
        watch(s, v, batch.time[i], deviation, expected, rules)
        for j in range(a, b):
            masked[j] = s.incident.open
