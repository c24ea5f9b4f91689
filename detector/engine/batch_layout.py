"""A batch as the engine's stages want it: its events sorted by stream, each observation with its lane.

What a batch's names and offsets say ends here; from here on everything is rows and numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from connectors.batches import EventBatch
from detector.engine.results import SortedBatch, pass_numbers
from detector.scoring.admission import Admitted, Taken, admitted
from detector.scoring.scan import find_lanes
from detector.state.feature_names import SYMBOLIC
from detector.state.stream_cache import partition_hash
from detector.state.stream_states import StreamStates
from training.network.inputs import MAX_VALUE

Int64 = NDArray[np.int64]

MAX_LANES = 1024  # features of one stream; more are dropped and counted


def admit_events(states: StreamStates, batch: EventBatch, slots: Int64, *, duplicates: bool, late: bool) -> Admitted:
    """Let a batch in: `admission.admitted`, with what of names the streams' records keep as numbers."""
    hashes = np.array([partition_hash(*p) for p in batch.partitions], np.int64)
    symbols = np.array([states.symbol_names.hash_of(name) for name in batch.symbols], np.int64)
    rows = states.streams.rows["admission"]
    return admitted(rows, batch, slots, hashes, symbols, duplicates=duplicates, late=late)


def layout_observations(
    states: StreamStates, batch: EventBatch, slots: Int64, taken: Taken, model: int
) -> tuple[SortedBatch, int, Int64 | None]:
    """Lay the admitted events' observations out by stream and find their lanes, adding what is new.

    Where the third thing returned is not None nothing was added: the events must go through in passes, and it
    numbers each one's. A stream that gains a feature is judged in another way from that event on, no sooner.
    """
    event = taken.event
    slot = slots[batch.stream[event]]
    counts = (batch.start[1:] - batch.start[:-1])[event]
    start = np.concatenate(([0], np.cumsum(counts)))
    observation = np.repeat(batch.start[event] - start[:-1], counts) + np.arange(start[-1])
    feature, symbol = _named(states, batch, observation)
    found = lane, many_row = np.empty(len(observation), np.int64), np.empty(len(observation), np.int64)
    dropped, turn = 0, None
    if _find(states, slot, start, feature, found):
        new = _new_features(states, slot, counts, feature, lane)
        turn = pass_numbers(slot, new)
        if turn is None:
            for s, features in new.items():
                states.add_lanes(s, list(features), model)
            if _find(states, slot, start, feature, found):  # features past the limit
                here = lane >= 0
                dropped = int((~here).sum())
                start = np.concatenate(([0], np.cumsum(here)))[start]
                observation, feature = observation[here], feature[here]
                lane, many_row = lane[here], many_row[here]
                symbol = symbol[here] if len(symbol) else symbol
    value = np.clip(batch.value[observation], -MAX_VALUE, MAX_VALUE)  # what is squared must stay finite
    time = batch.time[event]
    return (
        SortedBatch(event, slot, time, taken.interval, taken.lapse, start, observation, lane, many_row, value, symbol),
        dropped,
        turn,
    )


def events_within_lanes(states: StreamStates, batch: EventBatch, slots: Int64, at: int, end: int, most: int) -> int:
    """Return how many events from `at` on show at most so many features that their streams do not have yet."""
    rows = slice(int(batch.start[at]), int(batch.start[end]))
    start, slot = batch.start[at : end + 1] - rows.start, slots[batch.stream[at:end]]
    feature, _ = _named(states, batch, np.arange(rows.start, rows.stop))
    found = lane, _ = np.empty(len(feature), np.int64), np.empty(len(feature), np.int64)
    _find(states, slot, start, feature, found)
    missing = np.flatnonzero(lane < 0)
    event = np.repeat(np.arange(len(slot)), np.diff(start))[missing]
    pairs = slot[event] * len(states.features.names) + feature[missing]
    shown = np.sort(np.unique(pairs, return_index=True)[1])  # each where it first stands
    return len(slot) if len(shown) <= most else max(int(event[shown[most]]), 1)


def _named(states: StreamStates, batch: EventBatch, observation: Int64) -> tuple[Int64, Int64]:
    """Return the numbers of the observations' features, and the hashes of their symbols (none where none is one).

    A feature of numbers and one of symbols are two, whatever their names.
    """
    code = batch.feature[observation]
    numbers = np.array([states.features.id_of(name) for name in batch.features], np.int64)
    feature = numbers[code] if len(numbers) else np.zeros(0, np.int64)
    if not batch.symbols:
        return feature, np.zeros(0, np.int64)
    hashes = np.array([*map(states.symbol_names.hash_of, batch.symbols), 0], np.int64)  # the last for -1
    symbol = hashes[batch.symbol[observation]]
    for which in np.unique(code[symbol != 0]).tolist():
        feature[(symbol != 0) & (code == which)] = states.features.id_of(SYMBOLIC + batch.features[which])
    return feature, symbol


def _new_features(
    states: StreamStates, slot: Int64, counts: Int64, feature: Int64, lane: Int64
) -> dict[int, dict[int, int]]:
    """Return each slot's features that have no lane and may have one, with the event that shows them first."""
    missing = lane < 0
    events = np.repeat(np.arange(len(slot)), counts)[missing]
    new: dict[int, dict[int, int]] = {}
    for s, f, i in zip(slot[events].tolist(), feature[missing].tolist(), events.tolist(), strict=True):
        new.setdefault(s, {}).setdefault(f, i)
    for s, features in new.items():
        room = MAX_LANES - int(states.streams.rows["lanes"][s])
        new[s] = dict(list(features.items())[: max(room, 0)])
    return {s: features for s, features in new.items() if features}


def _find(states: StreamStates, slot: Int64, start: Int64, feature: Int64, found: tuple[Int64, Int64]) -> int:
    return int(find_lanes(states.streams.rows, states.lanes.rows, slot, start, feature, *found))
