"""A batch as the engine's stages want it: its events sorted by stream, each observation with its lane.

What a batch's names and offsets say ends here; from here on everything is rows and numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.batches import EventBatch
from detector.engine.local_time import local_time
from detector.scoring.admission import AHEAD, Taken
from detector.scoring.batch import Ids, Numbers, SortedBatch, Symbols
from detector.scoring.units import Record
from detector.state.names import identify_observations
from detector.state.stream_states import StreamStates
from training.network.compiled import compiled
from training.network.inputs import MAX_VALUE
from training.network.memory import prefetch, unowned

Int64 = NDArray[np.int64]

MAX_LANES = 1024  # features of one stream; more are dropped and counted


class Pass(NamedTuple):
    """What goes through the stages at once: a sorted batch, and its observations by kind."""

    batch: SortedBatch
    numbers: Numbers
    symbols: Symbols


def sorted_pass(
    states: StreamStates, batch: EventBatch, ids: Ids, taken: Taken, muted_until: Int64, model: int, timezone: str
) -> Pass:
    """Return the admitted events sorted by stream, each observation with its lane; lanes are added for what is new.

    What a stream shows beyond MAX_LANES is left out. `muted_until` [slots], ns, says which streams may alert when;
    `model` is the number of the weights that new lanes belong to; `timezone` names the zone whose clock streams follow.
    """
    slot = ids.slot[taken.event]
    counts = (batch.start[1:] - batch.start[:-1])[taken.event]
    start = np.concatenate(([0], np.cumsum(counts)))
    observation = np.repeat(batch.start[taken.event] - start[:-1], counts) + np.arange(start[-1])
    feature = ids.feature[observation]
    lane = np.empty(len(observation), np.int64)
    if find_lanes(states.streams.rows, states.lanes.rows, slot, start, feature, lane):
        states.add_lanes(*_new_features(states, slot, counts, feature, lane), model)
        if find_lanes(states.streams.rows, states.lanes.rows, slot, start, feature, lane):
            known = lane >= 0
            start = _starts(start, known)
            observation, lane = observation[known], lane[known]
    time = batch.time[taken.event]
    sorted_batch = SortedBatch(
        event=taken.event,
        slot=slot,
        time=time,
        interval=taken.interval,
        lapse=taken.lapse,
        start=start,
        observation=observation,
        lane=lane,
        value=np.clip(batch.value[observation], -MAX_VALUE, MAX_VALUE),  # what is squared must stay finite
        symbol=ids.symbol[observation],
        local=local_time(time, timezone),
        muted=time < muted_until[slot],
    )
    return Pass(sorted_batch, *_split_kinds(sorted_batch, states.lanes.rows["symbols"]))


def _split_kinds(batch: SortedBatch, symbol_rows: Int64) -> tuple[Numbers, Symbols]:
    """Return a batch's numbers and its symbols; `symbol_rows` [lanes]: rows of categorical lanes, plus 1."""
    counts = batch.start[1:] - batch.start[:-1]
    time = np.repeat(batch.time, counts)
    local = time if batch.local is batch.time else np.repeat(batch.local, counts)
    if not batch.symbol.any():  # nearly always: nothing is copied
        nothing = np.zeros(0, np.int64)
        numbers = Numbers(batch.start, np.arange(len(time)), batch.lane, time, batch.value, local)
        return numbers, Symbols(nothing, nothing, nothing, nothing)
    is_number = batch.symbol == 0
    at, symbols = np.flatnonzero(is_number), np.flatnonzero(~is_number)
    rows = symbol_rows[batch.lane[symbols]] - 1
    return (
        Numbers(_starts(batch.start, is_number), at, batch.lane[at], time[at], batch.value[at], local[at]),
        Symbols(_starts(batch.start, ~is_number), symbols, rows, batch.symbol[symbols]),
    )


def _starts(start: Int64, kept: NDArray[np.bool_]) -> Int64:
    """Return where the observations of each event begin among those that are kept."""
    starts: Int64 = np.concatenate(([0], np.cumsum(kept)))[start]
    return starts


def _new_features(states: StreamStates, slot: Int64, counts: Int64, feature: Int64, lane: Int64) -> tuple[Int64, Int64]:
    """Return the features that have no lane and may have one: slots and features, in the order in which they appear."""
    missing = lane < 0
    slots, features = np.repeat(slot, counts)[missing], feature[missing]
    first = _first_of_each(slots, features, states)
    slots, features = slots[first], features[first]
    nth = np.arange(len(slots)) - np.searchsorted(slots, slots)  # of its stream's; events are sorted by stream
    fits = states.streams.rows["lanes"][slots] + nth < MAX_LANES
    return slots[fits], features[fits]


def _first_of_each(slots: Int64, features: Int64, states: StreamStates) -> Int64:
    """Return where each feature of each stream appears first, ascending."""
    pairs = slots * len(states.features.names) + features
    return np.sort(np.unique(pairs, return_index=True)[1])


def events_within_lanes(states: StreamStates, batch: EventBatch, slots: Int64, events: slice, most: int) -> int:
    """Return how many of some events, from the first on, show at most so many features new to their streams.

    `slots` are those of the batch's streams, by code.
    """
    rows = slice(int(batch.start[events.start]), int(batch.start[events.stop]))
    start, slot = batch.start[events.start : events.stop + 1] - rows.start, slots[batch.stream[events]]
    feature, _ = identify_observations(states.features, states.symbol_names, batch, rows)
    lane = np.empty(len(feature), np.int64)
    find_lanes(states.streams.rows, states.lanes.rows, slot, start, feature, lane)
    missing = np.flatnonzero(lane < 0)
    event = np.repeat(np.arange(len(slot)), np.diff(start))[missing]
    shown = _first_of_each(slot[event], feature[missing], states)
    return len(slot) if len(shown) <= most else max(int(event[shown[most]]), 1)


@compiled
def shown(stream: NDArray[np.int32], begin: int, end: int, first: Int64) -> Int64:
    """Return the codes of the streams of events begin..end in the order in which they appear.

    `first` [streams], -1 before, has then the event that shows each first.
    """
    codes, count = np.empty(end - begin, np.int64), 0
    for i in range(begin, end):
        if first[stream[i]] < 0:
            first[stream[i]] = i
            codes[count] = stream[i]
            count += 1
    return codes[:count]


@compiled
def find_lanes(
    streams: Record,
    lanes: Record,
    slot: Int64,  # [events]
    start: Int64,  # [events + 1]
    feature: Int64,  # [observations] number of the feature
    lane: Int64,  # out [observations] -1 where the stream has no such lane
) -> int:
    """Look lanes up; return how many are missing."""
    streams, lanes, missing = unowned(streams), unowned(lanes), 0
    names, ahead = lanes.feature, 2 * AHEAD
    for i in range(len(slot)):
        if i + ahead < len(slot):
            prefetch(streams.first_lane, slot[i + ahead])
            prefetch(names, max(streams[slot[i + AHEAD]].first_lane, 0))
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
                lane[j] = -1
            else:
                guess = found + 1
                lane[j] = s.first_lane + found
    return missing
