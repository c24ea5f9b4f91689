"""The engine's loops over a batch, compiled: which lane is whose, and each event's verdict.

A batch comes sorted by stream, the events of one stream in their order. Every scan may run on a stretch of events
first..last that holds whole streams, so stretches can run in several threads.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from detector.scoring.calibration import Record
from detector.scoring.incidents import end_incident, threshold_of, watch
from detector.scoring.judge import judge_many, judge_single
from detector.scoring.symbols import judge_symbol
from training.network.compiled import compiled

Int64 = NDArray[np.int64]


@compiled
def find_lanes(
    streams: Record,
    lanes: Record,
    slot: Int64,  # [events]
    start: Int64,  # [events + 1]
    feature: Int64,  # [observations] number of the feature
    lane: Int64,  # out [observations] -1 where the stream has no such lane
    many_row: Int64,  # out [observations] -1 for a stream of one feature
) -> int:
    """Look lanes up; return how many are missing."""
    missing = 0
    for i in range(len(slot)):
        s = streams[slot[i]]
        guess = 0  # features mostly come in the same order
        for j in range(start[i], start[i + 1]):
            found = -1
            for k in range(s.lanes):
                candidate = (guess + k) % s.lanes
                if lanes[s.first_lane + candidate].feature == feature[j]:
                    found = candidate
                    break
            if found < 0:
                missing += 1
                lane[j] = many_row[j] = -1
            else:
                guess = found + 1
                lane[j] = s.first_lane + found
                many_row[j] = s.first_many + found if s.first_many >= 0 else -1
    return missing


@compiled
def judge(
    streams: Record,
    single: Record,
    many: Record,
    matrices: NDArray[np.float32],
    slot: Int64,  # [events]
    time: Int64,  # [events]
    interval: NDArray[np.float64],  # [events] as of each event
    start: Int64,  # [events + 1]
    lane: Int64,  # [observations]
    many_row: Int64,  # [observations]
    value: NDArray[np.float64],  # [observations]
    measured: Record,  # MEASURED [observations]
    rules: tuple[float, float, int, float, float, float, bool],  # as in engine.Engine
    first: int,
    last: int,
    verdicts: Record,  # out VERDICT [events]
    masked: NDArray[np.bool_],  # out [observations] part of an incident: not to be learnt by the network
    lapse: Int64,  # [events] when its stream had fallen silent before it came; 0: it had not
) -> None:
    """Judge events first..last, and carry their streams' incidents on."""
    per_week, fixed, direction, min_absolute, min_relative, min_duration, repeats = rules
    for i in range(first, last):
        s, v = streams[slot[i]], verdicts[i]
        a, b = start[i], start[i + 1]
        v.score = v.surprise = 0.0
        v.warming, v.lead = True, -1
        v.threshold = threshold_of(s, interval[i], per_week, fixed)
        if b > a:
            if s.single >= 0:
                v.score, v.surprise, v.warming = judge_single(
                    s, single[s.single], value[a], time[i], measured[a], repeats
                )
            elif s.first_many < 0:
                v.score, v.surprise, v.warming = judge_symbol(s, measured[a])
            else:
                room = matrices[:0]
                if s.matrix >= 0:
                    room = matrices[s.matrix : s.matrix + 2 * s.capacity * s.capacity]
                v.score, v.surprise, v.warming = judge_many(
                    s, many, room, lane[a:b] - s.first_lane, many_row[a:b], value[a:b], measured[a:b]
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
            deviation, expected = math.inf if direction >= 0 else -math.inf, 0.0
        v.lapses = lapse[i] != 0 and s.incident.open
        if v.lapses:
            end_incident(s)
        watch(
            s,
            v,
            time[i],
            deviation,
            expected,
            not math.isnan(fixed),
            direction,
            min_absolute,
            min_relative,
            min_duration,
        )
        for j in range(a, b):
            masked[j] = s.incident.open
