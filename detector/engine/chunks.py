"""How much of a batch the engine takes at once: what that loads into memory is bounded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from connectors.batches import EventBatch
from detector.engine.batch_layout import find_lanes
from detector.scoring.symbols import SYMBOL_ROW
from detector.state.names import identify_observations
from detector.state.stream_cache import PORTION, StreamCache
from detector.state.stream_states import StreamStates

Int64 = NDArray[np.int64]

MAX_OBSERVATIONS = 200_000  # go through at once: inputs, forecasts and verdicts of each take some 300 bytes


def chunk_end(streams: StreamCache, batch: EventBatch, at: int) -> int:
    """Return where the chunk that begins at an event must end, and load the states of its streams."""
    states, start = streams.states, batch.start
    end = int(np.searchsorted(start, start[at] + MAX_OBSERVATIONS, "right")) - 1 if len(batch) else 0
    end = min(max(end, at + 1), len(batch))
    if not streams.memory_bytes:
        return end
    room = PORTION * streams.memory_bytes
    codes, first = np.unique(batch.stream[at:end], return_index=True)
    order = np.argsort(first)
    names = [batch.streams[code] for code in codes[order].tolist()]
    slots = streams.load(names, states.nbytes + round(room))
    if len(slots) < len(names):
        end = at + int(first[order[len(slots)]])
    lane_bytes = states.lane_bytes + SYMBOL_ROW.itemsize * (len(batch.symbols) > 0)
    if (start[end] - start[at]) * lane_bytes <= room:
        return end
    slot = np.full(len(batch.streams), -1)
    slot[codes[order[: len(slots)]]] = slots
    return at + _events_within_lanes(states, batch, slot, slice(at, end), max(int(room / lane_bytes), 1))


def _events_within_lanes(states: StreamStates, batch: EventBatch, slots: Int64, events: slice, most: int) -> int:
    """Return how many of some events, from the first on, show at most so many features new to their streams."""
    rows = slice(int(batch.start[events.start]), int(batch.start[events.stop]))
    start, slot = batch.start[events.start : events.stop + 1] - rows.start, slots[batch.stream[events]]
    feature, _ = identify_observations(states.features, states.symbol_names, batch, rows)
    lane, many_row = np.empty((2, len(feature)), np.int64)
    find_lanes(states.streams.rows, states.lanes.rows, slot, start, feature, lane, many_row)
    missing = np.flatnonzero(lane < 0)
    event = np.repeat(np.arange(len(slot)), np.diff(start))[missing]
    pairs = slot[event] * len(states.features.names) + feature[missing]
    shown = np.sort(np.unique(pairs, return_index=True)[1])  # each where it first appears
    return len(slot) if len(shown) <= most else max(int(event[shown[most]]), 1)
