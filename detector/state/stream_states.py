"""What is remembered of every stream and lane: tables with a row for each, and who holds which row.

`StreamStates` is a cache in front of whatever keeps the rows for good: a stream's whole state leaves as one `bytes`
(`pack`) and comes back from it (`unpack`). The row of a stream is its STREAM record; its lanes lie together in the
lane tables, so that one stream's work touches one stretch of memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import starmap
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from connectors.batches import EventBatch
from detector.errors import StateError
from detector.scoring.batch import Ids
from detector.scoring.symbols import SYMBOL_ROW, vocabulary
from detector.state.former import LAYOUTS, converted, head_of, is_former
from detector.state.lane_network import RecurrentLanes
from detector.state.names import SYMBOLIC, FeatureNames, SymbolNames, identify_observations, partition_hash
from detector.state.records import FORMER, HEADER, NOTES, PRESENT, STREAM, lane_row, layout_of
from detector.state.tables import PAGE, SIZES, Table, block_size
from training.network.horizons import HORIZONS

Int64 = NDArray[np.int64]

# What Python keeps besides a row: entries of dicts and lists, an open incident's part in an alert
STREAM_OVERHEAD = 500  # bytes a stream, without its name
LANE_OVERHEAD = 500  # bytes a lane


class StreamStates:
    """Rows of streams and lanes, by slot."""

    def __init__(self, recurrent: RecurrentLanes, state_size: int, horizons: Sequence[int] = HORIZONS) -> None:
        self.names: list[str] = []  # by slot; "" where the slot is free
        self.slots: dict[str, int] = {}
        self._names_bytes = 0  # of streams
        self.features = FeatureNames()
        self.streams = Table(STREAM)
        self._lane = lane_row(horizons)
        self._layout = layout_of(STREAM, self._lane, SYMBOL_ROW)
        former = LAYOUTS if tuple(horizons) == HORIZONS else ()
        self.layouts = self._layout.hex(), *former  # of rows that `unpack` takes, first that of `pack`
        self.lanes = Table(self._lane)
        self.symbols = Table(SYMBOL_ROW)
        self.symbol_names = SymbolNames()
        self.recurrent = recurrent  # rows as in `lanes`
        self._lane_bytes = self._lane.itemsize + recurrent.row_bytes + LANE_OVERHEAD
        # that one more number of a stream of several takes, at most, while its block is moved
        self.lane_bytes = 2 * self._lane_bytes
        self.state_size = state_size
        recurrent.resize(len(self.lanes.rows))
        self.open_alerts: dict[int, Any] = {}  # by slot: what few streams have (an open incident's alert)

    def identify(self, batch: EventBatch, slots: NDArray[np.int64]) -> Ids:
        """Return what a batch's names are here; `slots` are those of its streams, by code."""
        # once there are many, names that no lane has are dropped
        self.symbol_names.sweep(self.symbols.rows)
        self.features.sweep(self.lanes.rows["feature"][: self.lanes.used])
        observations = identify_observations(self.features, self.symbol_names, batch, slice(None))
        hashes = np.array([*starmap(partition_hash, batch.partitions)], np.int64)
        return Ids(slots[batch.stream], hashes[batch.partition], *observations)

    def add(self, names: Sequence[str]) -> Int64:
        """Give streams that are not here a slot each, with no lanes yet."""
        slots = self.streams.allocate_blocks(1, len(names))
        self.names += [""] * (self.streams.used - len(self.names))
        for slot, name in zip(slots.tolist(), names, strict=True):
            self.names[slot] = name
            self.slots[name] = slot
        self._names_bytes += sum(map(sys.getsizeof, names))
        self.streams.rows["first_lane"][slots] = -1
        return slots

    def remove(self, slot: int) -> None:
        """Forget a stream and free its rows."""
        stream = self.streams.rows[slot]
        capacity, symbol_rows = int(stream["capacity"]), self._symbol_rows(slot)
        if capacity:
            self._free_lanes(int(stream["first_lane"]), capacity)
        for row in symbol_rows.tolist():
            self.symbols.release(row, 1)
        self._names_bytes -= sys.getsizeof(self.names[slot])
        del self.slots[self.names[slot]]
        self.names[slot] = ""
        self.open_alerts.pop(slot, None)
        self.streams.release(slot, 1)

    def _free_lanes(self, first: int, capacity: int) -> None:
        self.lanes.release(first, capacity)
        self.recurrent.release(first, capacity)

    def _allocate_lanes(self, capacity: int, blocks: int = 1) -> Int64:
        """Return where so many blocks of lanes begin."""
        before, used = len(self.lanes.rows), self.lanes.used
        firsts = self.lanes.allocate_blocks(capacity, blocks)
        if len(self.lanes.rows) != before:
            self.recurrent.resize(len(self.lanes.rows))
        self.recurrent.populate(used, self.lanes.used - used)
        return firsts

    def features_of(self, slot: int) -> list[str]:
        """Return the names of a stream's features, in the order of its lanes."""
        stream = self.streams.rows[slot]
        first = int(stream["first_lane"])
        return [self.features.names[i] for i in self.lanes.rows["feature"][first : first + int(stream["lanes"])]]

    def _symbol_rows(self, slot: int) -> NDArray[np.int64]:
        """Return the rows of a stream's categorical lanes, in the order of its lanes."""
        stream = self.streams.rows[slot]
        first = int(stream["first_lane"])
        rows: NDArray[np.int64] = self.lanes.rows["symbols"][first : first + int(stream["lanes"])]
        return rows[rows > 0] - 1

    def add_lanes(self, slot: Int64, feature: Int64, model: int) -> None:
        """Give streams lanes for features they have not shown before, moving blocks that must grow.

        `slot` [new] is sorted, `feature` [new] in the order in which a stream shows them.
        """
        slots, begins, counts = np.unique(slot, return_index=True, return_counts=True)
        streams = self.streams.rows
        had = streams["lanes"][slots].astype(np.int64)
        has = had + counts
        sizes = np.array(SIZES)[np.searchsorted(SIZES, has)]
        for size in np.unique(sizes[has > streams["capacity"][slots]]).tolist():
            self._move(slots[(sizes == size) & (has > streams["capacity"][slots])], size)
        lane = np.repeat(streams["first_lane"][slots] + had - begins, counts) + np.arange(len(slot))
        self.lanes.rows["feature"][lane] = feature
        self.lanes.rows["model"][lane] = model
        symbolic = [f for f in np.unique(feature).tolist() if self.features.names[f].startswith(SYMBOLIC)]
        symbols = lane[np.isin(feature, symbolic)]
        self.lanes.rows["symbols"][symbols] = self.symbols.allocate_blocks(1, len(symbols)) + 1
        streams["lanes"][slots] = has

    def _move(self, slots: Int64, capacity: int) -> None:
        """Give streams blocks of so many lanes, with what their former ones held."""
        streams = self.streams.rows
        firsts = self._allocate_lanes(capacity, len(slots))
        for at in np.flatnonzero(streams["capacity"][slots]).tolist():
            stream, first = streams[slots[at]], int(firsts[at])
            old, had, old_first = int(stream["capacity"]), int(stream["lanes"]), int(stream["first_lane"])
            self.lanes.rows[first : first + had] = self.lanes.rows[old_first : old_first + had]
            states = self.recurrent.read(np.arange(old_first, old_first + had))
            self.recurrent.write(np.arange(first, first + had), states)
            self._free_lanes(old_first, old)
        streams["first_lane"][slots], streams["capacity"][slots] = firsts, capacity

    def pack(self, slots: NDArray[np.int64], model: int, version: str) -> Iterator[tuple[str, bytes]]:
        """Yield name and whole state of streams.

        `version` names the weights that the hidden states of lanes marked `model` belong to; those of the others
        belong to former weights.
        """
        counts = self.streams.rows["lanes"][slots].astype(np.int64)
        ends = np.cumsum(counts)
        rows = np.repeat(self.streams.rows["first_lane"][slots] - (ends - counts), counts) + np.arange(counts.sum())
        recurrent = self.recurrent.read(rows)  # at once: it may have to come from a device
        for slot, end in zip(slots.tolist(), ends.tolist(), strict=True):
            stream = self.streams.rows[slot]
            lanes, first = int(stream["lanes"]), int(stream["first_lane"])
            # not JSON: it has no NaN, and an alert may hold one (what was expected of a feature never seen before)
            symbols = self.symbols.rows[self._symbol_rows(slot)]
            known = [[self.symbol_names.name_of(number) for number in vocabulary(row)] for row in symbols]
            notes = msgspec.msgpack.encode([version, self.features_of(slot), self.open_alerts.get(slot), known])
            lane_rows = np.zeros(lanes, self._lane)  # not a copy: that leaves what lies between fields to chance
            lane_rows[...] = self.lanes.rows[first : first + lanes]
            lane_rows["model"] = np.where(lane_rows["model"] == model, PRESENT, FORMER)
            parts = [
                HEADER.pack(
                    *(self._layout, self.state_size, lanes, len(notes)),
                    *(int(stream["admission"]["partition"]), bool(stream["incident"]["open"])),
                ),
                notes,
                stream.tobytes(),
                lane_rows.tobytes(),
                recurrent[end - lanes : end].tobytes(),
            ]
            if len(symbols):
                parts.append(symbols.tobytes())
            yield self.names[slot], b"".join(parts)

    def unpack(self, name: str, row: bytes, model: int, version: str) -> int:
        """Bring a stream back from what `pack` gave; return its slot.

        Lanes whose hidden state belongs to other weights than `version` are marked to be primed before their next
        step. Raises StateError, and then adds nothing, for a row of another layout or damaged.
        """
        damaged = f"state of stream {name!r} is damaged; move the state directory away"
        if row[:8].hex() not in self.layouts:
            raise StateError(
                f"state of stream {name!r} has the layout of another version or of other model.horizons; "
                "go back to those, or move the state directory away"
            )
        at = 0  # so far is read

        def take(dtype: np.dtype[Any], count: int) -> NDArray[Any]:
            nonlocal at
            part = np.frombuffer(row, dtype, count, at)
            at += part.nbytes
            return part

        try:
            if is_former(row):
                row = converted(row, self._layout, self._lane)
            head = head_of(row)
            at = head.begin + head.notes
            written_by, features, note, known = NOTES.decode(row[head.begin : at])
            stored = take(STREAM, 1)[0]
        except (msgspec.MsgspecError, ValueError) as error:
            raise StateError(f"{damaged} ({error})") from error
        state_size, lanes = head.state_size, head.lanes
        wanted = at + lanes * (self._lane.itemsize + 4 * state_size) + SYMBOL_ROW.itemsize * len(known)
        if len(row) != wanted or len(features) != lanes or stored["lanes"] != lanes:
            raise StateError(f"{damaged} ({len(row)} bytes, expected {wanted})")
        if not self._is_consistent(stored, np.frombuffer(row, self._lane, lanes, at), known):
            raise StateError(f"{damaged} (its parts do not fit each other)")

        slot = int(self.add([name])[0])
        self.streams.rows[slot] = stored
        stream = self.streams.rows[slot]
        capacity = int(stream["capacity"])
        first = int(self._allocate_lanes(capacity)[0]) if capacity else -1
        stream["first_lane"] = first
        self.lanes.rows[first : first + lanes] = take(self._lane, lanes)
        self.lanes.rows["feature"][first : first + lanes] = [self.features.id_of(feature) for feature in features]
        present = (self.lanes.rows["model"][first : first + lanes] == PRESENT) & (written_by == version)
        present &= state_size == self.state_size
        self.lanes.rows["model"][first : first + lanes] = np.where(present, model, FORMER)
        states = take(np.dtype(np.float32), lanes * state_size).reshape(lanes, state_size)
        if state_size == self.state_size:  # else of another network: the lanes are primed before their next step
            self.recurrent.write(np.arange(first, first + lanes), states)
        lane_symbols = self.lanes.rows["symbols"][first : first + lanes]
        for names, lane in zip(known, np.flatnonzero(lane_symbols).tolist(), strict=True):
            for symbol in names:
                self.symbol_names.hash_of(symbol)
            lane_symbols[lane] = self.symbols.allocate(1) + 1
            self.symbols.rows[lane_symbols[lane] - 1] = take(SYMBOL_ROW, 1)[0]
        if note is not None:
            self.open_alerts[slot] = note
        return slot

    @staticmethod
    def _is_consistent(stored: np.void, lanes: NDArray[np.void], known: list[list[str]]) -> bool:
        """Whether a row's parts agree on how many lanes and symbols there are: compiled code trusts them."""
        capacity = block_size(len(lanes)) if 0 < len(lanes) <= SIZES[-1] else 0
        return bool(stored["capacity"] == capacity and len(known) == np.count_nonzero(lanes["symbols"]))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all of it takes."""
        tables = self.streams, self.lanes, self.symbols
        lanes = self.lanes.used - self.lanes.free
        # of a free row its first and last page may be its neighbours'
        recurrent = lanes * self.recurrent.row_bytes + self.lanes.free * min(self.recurrent.row_bytes, PAGE)
        names = self._names_bytes + self.features.nbytes + self.symbol_names.nbytes
        counted = STREAM_OVERHEAD * len(self.slots) + LANE_OVERHEAD * lanes
        return sum([table.nbytes for table in tables]) + recurrent + names + counted

    def stream_bytes(self, lanes: int) -> int:
        """Return the bytes that a stream of so many numbers takes."""
        return STREAM.itemsize + STREAM_OVERHEAD + block_size(lanes) * self._lane_bytes

    def bytes_by_slot(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return about how many bytes come free as each of these streams is removed."""
        return STREAM_OVERHEAD + self.streams.rows["capacity"][slots].astype(np.int64) * self._lane_bytes
