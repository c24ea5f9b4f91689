"""When streams were last heard, in memory or not, and the partitions' clocks that this is told by.

Streams in memory have columns by slot; of those that were evicted, or are in the store only, those are kept by name
that may stop or have stopped. The clocks are a part of a checkpoint; the rest is found again from the streams' rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.batches import Partition
from detector.scoring.silence import CLOCK, LEAST_STEP, USUAL_STEPS, WITNESSES, Heard
from detector.state.names import partition_hash

Int64 = NDArray[np.int64]

_KEPT = "time", "seconds", "step", "steps", "looked", "latest", "behind", "highest"  # of a clock, in a checkpoint


class Away(NamedTuple):
    """A stream that is not in memory; as in Heard."""

    at: float
    due: float
    clock: int
    silent: bool


def _unheard(size: int) -> Heard:
    """Return columns of streams that were heard before what is known here."""
    return Heard(np.full(size, np.nan), np.full(size, np.inf), np.full(size, -1, np.int32))


class SilenceTable:
    """What StreamCache knows of its streams' silence."""

    def __init__(self) -> None:
        self.watching = False  # whether anybody wants to know
        self.unseen = True  # whether streams of the store may not be here
        self.partitions: list[Partition] = []
        self.clocks: NDArray[Any] = np.zeros(1, CLOCK)  # [at least as many as partitions]
        self._numbers: dict[Partition, int] = {}  # of their rows
        self.silent = np.zeros(0, np.bool_)  # by slot: it was told that the stream has stopped
        self.heard = _unheard(0)  # by slot
        self._away: dict[str, Away] = {}
        self._heaps: dict[int, list[tuple[float, str]]] = {}  # when they are due, by clock

    def fit(self, rows: int) -> None:
        """Make room for so many slots."""
        more = rows - len(self.silent)
        if more > 0:
            at, due, clock = self.heard
            pad = (0, more)
            self.heard = Heard(
                np.pad(at, pad, constant_values=np.nan),
                np.pad(due, pad, constant_values=np.inf),
                np.pad(clock, pad, constant_values=-1),
            )
            self.silent = np.pad(self.silent, pad)

    # -- clocks --------------------------------------------------------------------------------------------------------

    def numbers_of(self, partitions: Sequence[Partition]) -> NDArray[np.int32]:
        """Return the rows of `clocks` of partitions, [partitions]; those that have none get one."""
        for partition in partitions:
            if partition not in self._numbers:
                self._numbers[partition] = len(self._numbers)
                self.partitions.append(partition)
                self.unseen = True
        if len(self._numbers) > len(self.clocks):
            self.clocks = np.pad(self.clocks, (0, 2 * len(self._numbers) - len(self.clocks)))
        return np.array([self._numbers[partition] for partition in partitions], np.int32)

    def clocks_of(self, hashes: Int64) -> NDArray[np.int32]:
        """Return the rows of `clocks` of the partitions with these hashes; -1: it has none."""
        known = np.array([partition_hash(*partition) for partition in self.partitions], np.int64)
        if not len(known):
            return np.full(len(hashes), -1, np.int32)
        order = np.argsort(known)
        at = order[np.minimum(np.searchsorted(known[order], hashes), len(known) - 1)]
        return np.where(known[at] == hashes, at, -1).astype(np.int32)

    def advances(self, idle: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far clocks advance, seconds [clocks], where partitions had no event for so long, all read; 0: not.

        The last events of all, which are a little ahead of the clock, are past by then, too.
        """
        late = np.maximum(self.clocks["latest"][:, -1] - self.clocks["time"], 0) * 1e-9
        late = np.minimum(late, WITNESSES * np.maximum(LEAST_STEP, USUAL_STEPS * self.clocks["step"]))
        return np.where((idle > 0.0) & (self.clocks["time"] != 0), late + idle, 0.0)

    def pass_time(self, numbers: Int64, idle: NDArray[np.float64]) -> None:
        """Let some of the clocks advance for that, [numbers]; `idle` as in `advances`."""
        self.clocks["seconds"][numbers] += self.advances(idle)[numbers]
        latest = self.clocks["latest"][numbers]
        time = np.maximum(latest[:, -1], self.clocks["time"][numbers]) + (idle[numbers] * 1e9).astype(np.int64)
        self.clocks["time"][numbers], self.clocks["latest"][numbers] = time, time[:, None]

    def document(self) -> list[list[Any]]:
        """Return the clocks as a checkpoint has them."""
        rows = self.clocks[: len(self.partitions)]
        return [
            [*partition, *(row[name].tolist() for name in _KEPT)]
            for partition, row in zip(self.partitions, rows, strict=True)
            if row["time"]
        ]

    def restore(self, document: Iterable[Sequence[Any]]) -> None:
        """Go back to the clocks of a checkpoint; when streams were heard is found again."""
        kept = list(document)
        self.partitions = [Partition(topic, number) for topic, number, *_ in kept]
        self._numbers = {partition: number for number, partition in enumerate(self.partitions)}
        self.clocks = np.zeros(max(len(kept), 1), CLOCK)
        for row, (_, _, *values) in zip(self.clocks, kept, strict=False):
            for name, value in zip(_KEPT, values, strict=True):
                row[name] = value
        for name in ("time", "seconds", "looked"):
            self.clocks[f"first_{name}"] = self.clocks[name]
        self._away, self._heaps = {}, {}
        self.unseen, self.heard = True, _unheard(len(self.silent))

    # -- streams -------------------------------------------------------------------------------------------------------

    def enter(self, names: Sequence[str], slots: Int64, silent: NDArray[np.bool_]) -> None:
        """Take in streams that come into memory; `silent`: it was told that they have stopped."""
        at, due, clock = self.heard
        at[slots], due[slots], clock[slots], self.silent[slots] = np.nan, np.inf, -1, silent
        if self._away:
            for name, slot in zip(names, slots.tolist(), strict=True):
                if (away := self._away.pop(name, None)) is not None:
                    at[slot], due[slot], clock[slot] = away[:3]

    def leave(self, name: str, slot: int) -> None:
        """Keep what is known of a stream that leaves memory."""
        if self.watching:
            at, due, clock = self.heard
            self.keep(name, Away(float(at[slot]), float(due[slot]), int(clock[slot]), bool(self.silent[slot])))
        self.forget(slot)

    def forget(self, slot: int) -> None:
        """Forget the stream in a slot."""
        if slot < len(self.silent):
            self.heard.at[slot], self.heard.due[slot], self.silent[slot] = np.inf, np.inf, False

    def keep(self, name: str, away: Away) -> None:
        """Keep what is known of a stream that is not in memory, where it may stop or has stopped."""
        if np.isfinite(away.due) and away.clock >= 0:
            self._away[name] = away
            heap = self._heaps.setdefault(away.clock, [])
            heapq.heappush(heap, (away.due, name))
            if len(heap) > 2 * len(self._away) + 1000:  # most are of streams that came back
                heap[:] = [(one.due, name) for name, one in self._away.items() if one.clock == away.clock]
                heapq.heapify(heap)

    def drop(self, name: str) -> None:
        """Forget a stream that is not in memory."""
        self._away.pop(name, None)

    def is_away(self, name: str) -> bool:
        """Whether a stream that is not in memory is kept."""
        return name in self._away

    def silent_away(self) -> Iterator[str]:
        """Yield the streams not in memory of which it was told that they have stopped."""
        return (name for name, away in self._away.items() if away.silent)

    def due_away(self, most: int) -> list[str]:
        """Return streams not in memory that are due, so many at most."""
        found: list[str] = []
        for number, heap in self._heaps.items():
            while heap and heap[0][0] < self.clocks["seconds"][number] and len(found) < most:
                due, name = heapq.heappop(heap)
                away = self._away.get(name)
                if away is not None and (away.due, away.clock) == (due, number):
                    found.append(name)
        return found

    def away_clocks_due(self, ahead: NDArray[np.float64]) -> Int64:
        """Return the clocks by which a stream not in memory is due, so many seconds ahead of each, [clocks]."""
        seconds = self.clocks["seconds"] + ahead
        return np.array([number for number, heap in self._heaps.items() if heap and heap[0][0] < seconds[number]], int)

    def due(self, ahead: NDArray[np.float64] | None = None) -> Int64:
        """Return the slots of streams that are due, by their clocks or so many seconds ahead of each, [clocks]."""
        seconds = self.clocks["seconds"] if ahead is None else self.clocks["seconds"] + ahead
        return np.flatnonzero(self.heard.due < seconds[self.heard.clock])

    def looked(self) -> None:
        """Note that all that has stopped by now was told."""
        self.clocks["looked"] = self.clocks["seconds"]

    def __len__(self) -> int:
        """Return how many streams have stopped, as far as was told."""
        return int(np.count_nonzero(self.silent)) + sum(1 for _ in self.silent_away())
