"""Which streams are in memory, and which of them the store does not have yet.

`StreamStates` has a row for each stream here. Others are loaded from the store when their events come; the longest idle
are evicted when there is no room, into a `SpillBuffer` where they have changed. `drain` hands over what changed; it can
be undone: back to the last drain (`roll_back`), or to before a step (`snapshot`, `restore`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import repeat
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.batches import Partition
from detector.scoring.admission import BLOCKED, MIN_SILENCE, PAUSES
from detector.scoring.claims import WARM_UP_EVENTS
from detector.state.former import head_of
from detector.state.mutes import MuteTable
from detector.state.names import partition_hash
from detector.state.silence import SilenceTable
from detector.state.spill_buffer import SpillBuffer
from detector.state.stream_states import STREAM_OVERHEAD, StreamStates
from training.network.history import WINDOW

Int64 = NDArray[np.int64]

PACK_BATCH = 256  # streams whose hidden states are read together: 0.1 MB, of the widest 100 MB
# Of the memory for states: what a chunk of a batch may load, what it may add, and what may wait for a drain
PORTION = 1 / 16
SECONDS_PER_DAY = 86_400.0
KNOWN_INTERVAL_EVENTS = 10  # of a stream before its mean interval says how many events a day it has


class Census(NamedTuple):
    """What is in memory."""

    warming: int  # streams too young to be judged
    blocked: int  # streams that drop everything that comes
    lanes: int


class StreamCache:
    """The streams in memory.

    `fetch` returns the states that were drained of streams not in memory (None: never seen); what it returns is
    taken one by one, as memory allows. `spill` holds what is evicted between two drains. At most `max_streams` stay in
    memory; their states may take `memory_bytes`, but for one stream more (0: no limit). `rules_of` returns the
    numbers of the rules that streams get, by their names.
    """

    def __init__(
        self,
        states: StreamStates,
        version: str,
        fetch: Callable[[Sequence[str]], Iterable[bytes | None]] | None = None,
        spill: SpillBuffer | None = None,
        *,
        max_streams: int,
        memory_bytes: int = 0,
        rules_of: Callable[[Sequence[str]], NDArray[np.uint8]] = lambda names: np.zeros(len(names), np.uint8),
    ) -> None:
        self.states = states
        self.version = version  # of the weights that hidden states belong to, by name; below by number
        self.model_number = 1
        self._fetch = fetch or (lambda names: [None] * len(names))
        self.max_streams, self.memory_bytes, self._rules_of = max_streams, memory_bytes, rules_of
        self._mutes = MuteTable()
        self.silence = SilenceTable()
        self.muted_until = np.zeros(0, np.int64)  # by slot, event time, ns; 0: no person has muted the stream
        self._changed = np.zeros(0, np.bool_)  # by slot, as `_last_use`
        self.spill = SpillBuffer() if spill is None else spill  # evicted since the last drain
        self.has_evicted = False  # so that not all streams that speak are here
        self._uses = 0
        self._last_use = np.zeros(0, np.int64)  # by slot: when it was last asked for; times may be wrong

    def __len__(self) -> int:
        return len(self.states.slots)

    def load(self, names: list[str], room: float = 0) -> Int64:
        """Return the slots of streams, loaded or new: of the first ones only, where more take `room` bytes (0: any)."""
        slots = self.find(names)
        absent = np.flatnonzero(slots < 0).tolist()
        taken = self.states.nbytes
        most = taken + room if room else math.inf
        held = self.spill if len(self.spill) else {}
        unknown = iter(self._fetch([name for i in absent if (name := names[i]) not in held]))
        new: list[int] = []
        for i in absent:
            if i and taken >= most:
                slots = slots[:i]
                break
            name = names[i]
            row = held.pop(name, None)
            saved = next(unknown) if row is None else row
            if saved is None:
                new.append(i)
                taken += self.states.streams.row_bytes + STREAM_OVERHEAD + sys.getsizeof(name)
                continue
            before = self.states.nbytes
            slots[i] = self._unpack(name, saved)
            taken += self.states.nbytes - before
            if row is not None:
                self.mark_changed(slots[i : i + 1])
        slots[new] = self._add([names[i] for i in new])
        self.use_now(slots)
        return slots

    def find(self, names: Sequence[str]) -> Int64:
        """Return the slots of streams that are in memory, -1 for those that are not."""
        slots = self.states.slots
        if len(names) > 1:
            with suppress(KeyError):  # nearly always all are: half the time
                return np.fromiter(itemgetter(*names)(slots), np.int64, len(names))
        return np.fromiter(map(slots.get, names, repeat(-1)), np.int64, len(names))

    def use_now(self, slots: Int64) -> None:
        """Let the streams in these slots be the last to be evicted."""
        self._fit()
        self._uses += 1
        self._last_use[slots] = self._uses

    def _add(self, names: list[str]) -> Int64:
        slots = self.states.add(names)
        self._come(names, slots)
        return slots

    def _unpack(self, name: str, row: bytes) -> int:
        slot = self.states.unpack(name, row, self.model_number, self.version)
        self._come([name], np.array([slot]))
        return slot

    def _come(self, names: list[str], slots: Int64) -> None:
        self._name_tells(names, slots)
        self.silence.enter(names, slots, self.states.streams.rows["silent"][slots])

    def _name_tells(self, names: list[str], slots: Int64) -> None:
        """Note what follows from streams' names, whatever a stored row says: it may be of former settings and mutes."""
        self._fit()
        rows = self.states.streams.rows
        rows["rule"][slots] = self._rules_of(names)
        self.muted_until[slots] = [self._mutes.until(name) for name in names] if self._mutes else 0
        # by people; a rule's own mute is in the rule
        rows["muted"][slots] = self.muted_until[slots] > rows["admission"]["time"][slots]

    def give_rules(self, rules_of: Callable[[Sequence[str]], NDArray[np.uint8]]) -> None:
        """Let other rules hold from now on, for the streams in memory and all that come."""
        self._rules_of = rules_of
        self._name_tells([*self.states.slots], self._slots())

    def mute(self, until: Mapping[str, int]) -> None:
        """Let streams whose names are like these patterns not alert until the time of each, ns; all others may.

        A stream's own events count, by their own time. What rules mute stays muted.
        """
        self._mutes.replace(until)
        self._name_tells([*self.states.slots], self._slots())

    def is_muted(self, name: str, time: int) -> bool:
        """Whether people have muted a stream, here or not, at an event time, ns."""
        return bool(self._mutes) and self._mutes.until(name) > time

    def known(self, name: str) -> int:
        """Return the slot of a stream, loaded where it is not in memory; -1 for one that was never seen."""
        here = name in self.states.slots or name in self.spill or next(iter(self._fetch([name]))) is not None
        return int(self.load([name])[0]) if here else -1

    def mark_changed(self, slots: Int64) -> None:
        """Let the states in these slots be part of the next drain."""
        self._fit()
        self._changed[slots] = True

    def _fit(self) -> None:
        """Make room for what is known by slot."""
        more = len(self.states.streams.rows) - len(self._last_use)
        if more:
            self._last_use, self._changed = np.pad(self._last_use, (0, more)), np.pad(self._changed, (0, more))
            self.muted_until = np.pad(self.muted_until, (0, more))
            self.silence.fit(len(self._last_use))

    def use(self, version: str) -> None:
        """Let hidden states belong to other weights from now on; those of before are marked by their number."""
        self.version = version
        self.model_number += 1

    def evict(self) -> tuple[int, int]:
        """Evict the longest idle streams past the limits; return how many for memory and how many for their number.

        For memory: once states take more than `memory_bytes` less three portions.
        """
        limit, for_memory = self.memory_bytes, 0
        if limit and (used := self.states.nbytes) > (1 - 3 * PORTION) * limit:
            free = np.cumsum(self.states.bytes_by_slot(self._idle()))
            # a fourth one at once, so that the search for the idle is worth it
            for_memory = self._evict(int(np.searchsorted(free, used - (1 - 4 * PORTION) * limit)) + 1)
        return for_memory, self._evict(len(self.states.slots) - self.max_streams)

    def _idle(self) -> Int64:
        """Return the slots of all streams, the longest idle first."""
        slots = self._slots()
        time = self.states.streams.rows["admission"]["time"][slots]
        return slots[np.lexsort((slots, time, self._last_use[slots]))]

    def _slots(self) -> Int64:
        return np.fromiter(self.states.slots.values(), np.int64, len(self.states.slots))

    def _evict(self, count: int) -> int:
        """Evict so many of the longest idle streams; return how many that was. What changed waits for `drain`."""
        if count <= 0:
            return 0
        self.has_evicted = True
        idle = self._idle()[:count]
        changed = idle[self._changed[idle]]
        for at in range(0, len(changed), PACK_BATCH):
            some = changed[at : at + PACK_BATCH]
            self.spill.update(self.states.pack(some, self.model_number, self.version))
        self._changed[idle] = False
        for slot in idle.tolist():
            self.silence.leave(self.states.names[slot], slot)
            self.states.remove(slot)
        return len(idle)

    def drain(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and state of every stream that changed since the last drain; they then count as saved."""
        changed, self._changed = np.flatnonzero(self._changed), np.zeros_like(self._changed)
        spill, self.spill = self.spill, self.spill.empty_copy()
        yield from spill.items()
        for at in range(0, len(changed), PACK_BATCH):
            yield from self.states.pack(changed[at : at + PACK_BATCH], self.model_number, self.version)

    @contextmanager
    def draining(self) -> Iterator[Iterator[tuple[str, bytes]]]:
        """Give what `drain` yields; where the block raises, these streams were not saved and count as changed still."""
        changed, spill = np.flatnonzero(self._changed), self.spill
        try:
            yield self.drain()
        except BaseException:
            self.mark_changed(changed[[bool(self.states.names[slot]) for slot in changed]])  # not those forgotten since
            spill.update(self.spill)
            self.spill = spill
            raise

    def snapshot(self, names: Iterable[str]) -> dict[str, bytes | None]:
        """Return the states of streams as they are here, for `restore`; None for one that is not in memory."""
        here = np.array([self.states.slots[name] for name in names if name in self.states.slots], np.int64)
        packed = dict(self.states.pack(here, self.model_number, self.version))
        return {name: packed.get(name, self.spill.get(name)) for name in names}

    def restore(self, rows: Mapping[str, bytes | None]) -> None:
        """Undo what a step has done to streams, also one that raised half way: they are as `snapshot` found them."""
        self.forget(rows)
        self.spill.update((name, row) for name, row in rows.items() if row is not None)

    def forget(self, names: Iterable[str]) -> None:
        """Drop these streams' states, saved or not: their next events load what was saved."""
        for name in names:
            self.spill.pop(name, None)
            self.silence.drop(name)
            slot = self.states.slots.get(name, -1)
            if slot >= 0:
                self._changed[slot] = False
                self.silence.forget(slot)
                self.states.remove(slot)

    def replace(self, name: str, row: bytes | None) -> None:
        """Give a stream another state, to be saved in the place of what it has; None: that of one never seen.

        Raises StateError, and then forgets the stream, for a row of another layout or damaged.
        """
        self.forget([name])
        slots = self._add([name]) if row is None else np.array([self._unpack(name, row)])
        self.mark_changed(slots)

    def roll_back(self) -> None:
        """Forget all streams that have changed since the last drain."""
        self.forget([*self.spill, *(self.states.names[slot] for slot in np.flatnonzero(self._changed))])

    def on_partition(self, partition: Partition) -> list[str]:
        """Return the streams, drained or not, that were last seen on a partition."""
        mark, names = partition_hash(*partition), self.states.names
        slots = self._slots()
        here = slots[self.states.streams.rows["admission"]["partition"][slots] == mark]
        return [
            *(names[slot] for slot in here),
            *(name for name, row in self.spill.items() if head_of(row).partition == mark),
        ]

    def histories(self, most: int, seed: int) -> tuple[NDArray[np.void], Int64]:
        """Return copies of recent windows, INPUT_HISTORY [lanes], and which stream each lane is of, [lanes].

        Full windows only, and of a larger fleet `most` lanes, drawn at random.
        """
        slots = self._slots()
        streams = self.states.streams.rows[slots]
        counts = streams["lanes"].astype(np.int64)
        ends = np.cumsum(counts)
        lanes = np.repeat(streams["first_lane"] - (ends - counts), counts) + np.arange(counts.sum())
        histories = self.states.lanes.rows["history"]
        stream = np.repeat(slots, counts)
        full = np.flatnonzero(histories["events"][lanes] >= WINDOW)
        if len(full) > most:
            full = np.sort(np.random.default_rng(seed).choice(full, most, replace=False))
        return histories[lanes[full]], stream[full]

    def census(self) -> Census:
        """Count what is in memory."""
        streams = self.states.streams.rows[self._slots()]
        warming, blocked = streams["score"]["events"] <= WARM_UP_EVENTS, streams["admission"]["dropped"] >= BLOCKED
        return Census(int(warming.sum()), int(blocked.sum()), int(streams["lanes"].sum()))

    def events_per_day(self, newest: float = -math.inf) -> float:
        """Return how many events a day the streams in memory have, by their own time.

        Those that have fallen silent by `newest`, a time in s, count no more; by default all count.
        """
        rows = self.states.streams.rows["admission"][self._slots()]
        silent = newest - rows["time"] * 1e-9 > np.maximum(MIN_SILENCE, PAUSES * rows["pause"])
        known = (rows["arrived"] >= KNOWN_INTERVAL_EVENTS) & (rows["interval"] > 0.0)
        return float((SECONDS_PER_DAY / rows["interval"][known & ~silent]).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of memory that states take, with those that wait for a drain."""
        return self.states.nbytes + self.spill.nbytes
