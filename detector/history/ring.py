"""The events scored last, of all streams: a ring of columns that a batch is copied into, and found in by one pass.

A stream is known by Python's hash of its name, which a name keeps once it was made: 64 bits, of this process alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from connectors.batches import Scores, numbered
from detector.history.columns import EVENT, NOT_KNOWN, OBSERVATION, Columns

Int64 = NDArray[np.int64]

# 40 MB once it is full: of 1,000 streams of one feature the last 260 events each, of 10,000 the last 26
EVENTS, OBSERVATIONS = 1 << 18, 1 << 19
MAX_NAMES = 50_000  # features, or symbols, that are kept before those that no event has any more are dropped

_GONE = np.iinfo(np.int64).min  # an event's `first`: it was taken back
_EVENT = {
    name: EVENT.get(name, np.dtype(np.int64))
    for name in ("stream", "time", "offset", "first", *EVENT)  # first: number of its first observation
} | {"count": np.dtype(np.int32)}


def hashes_of(streams: Sequence[str]) -> Int64:
    """Return what streams are known by, [streams]."""
    return np.fromiter(map(hash, streams), np.int64, len(streams))


class Ring:
    """The last `events` events, as far as they have no more than `observations` observations in all.

    Events are numbered from 0 on as they come; so are observations.
    """

    def __init__(self, events: int = EVENTS, observations: int = OBSERVATIONS) -> None:
        self._events = {name: np.zeros(events, dtype) for name, dtype in _EVENT.items()}
        self._observations = {name: np.zeros(observations, dtype) for name, dtype in OBSERVATION.items()}
        self._room, self._observation_room = events, observations
        self.written = 0  # events so far, those included that others have taken the place of
        self._observations_written = 0
        self._features, self._symbols, self._models = dict[str, int](), dict[str, int](), dict[str, int]()

    @property
    def nbytes(self) -> int:
        """Bytes that it takes once it is full."""
        return sum(column.nbytes for table in (self._events, self._observations) for column in table.values())

    def append(self, scores: Scores, streams: Int64) -> int:
        """Take scores in; `streams` are their batch's `hashes_of`. Returns the first scored event's number.

        Of a batch with more than there is room for the last events are kept; the others' numbers are below those of
        this batch.
        """
        count, batch = len(scores), scores.batch
        row = max(count - self._room, int(np.searchsorted(scores.start, scores.start[-1] - self._observation_room)))
        number = self.written - row
        event, first = scores.event[row:], int(scores.start[row])
        observation = scores.observation[first:]
        self._sweep()
        feature = numbered(batch.features, self._features)
        model = self._models.setdefault(scores.model_version, len(self._models))
        self._put(self._events, self.written, {
            "stream": streams[batch.stream[event]], "time": batch.time[event], "offset": batch.offset[event],
            "first": scores.start[row:-1] + (self._observations_written - first), "count": np.diff(scores.start[row:]),
            "score": scores.score[row:], "threshold": scores.threshold[row:], "channel": scores.channel[row:],
            "alert": scores.alert[row:], "model": np.broadcast_to(np.int16(model), len(event)),
        })  # fmt: skip
        unknown = np.broadcast_to(np.int32(NOT_KNOWN), len(observation))
        symbol = expected_symbol = unknown
        if batch.symbols:
            symbol = np.append(numbered(batch.symbols, self._symbols), NOT_KNOWN)[batch.symbol[observation]]
            of_expected = np.append(numbered(scores.symbols, self._symbols), NOT_KNOWN)
            expected_symbol = of_expected[scores.expected_symbol[first:]]
        self._put(self._observations, self._observations_written, {
            "feature": feature[batch.feature[observation]], "symbol": symbol, "expected_symbol": expected_symbol,
            "observed": batch.value[observation], "expected": scores.expected[first:], "lower": scores.lower[first:],
            "upper": scores.upper[first:], "contribution": scores.contribution[first:],
        })  # fmt: skip
        self.written += len(event)
        self._observations_written += len(observation)
        return number

    def place(self) -> tuple[int, int]:
        """Return how many events and observations there have been."""
        return self.written, self._observations_written

    def has_room(self, scores: Scores, since: tuple[int, int]) -> bool:
        """Whether scores can be appended without taking the place of what came since a `place`."""
        events, observations = self.written - since[0], self._observations_written - since[1]
        fits = events + len(scores) <= self._room
        return fits and observations + len(scores.observation) <= self._observation_room

    def take_back(self, number: int) -> None:
        """Forget the events from this number on: they will come again."""
        gone = np.arange(max(number, self.written - self._room, 0), self.written)
        self._events["first"][gone % self._room] = _GONE

    @staticmethod
    def _put(table: dict[str, NDArray[Any]], number: int, values: dict[str, NDArray[Any]]) -> None:
        for name, new in values.items():
            column = table[name]
            at, count = number % len(column), len(new)
            until_end = min(count, len(column) - at)
            column[at : at + until_end] = new[:until_end]
            if until_end < count:
                column[: count - until_end] = new[until_end:]

    def _sweep(self) -> None:
        """Once there are many names, drop those that no event has."""
        for name, columns in (("_features", ("feature",)), ("_symbols", ("symbol", "expected_symbol"))):
            numbers: dict[str, int] = getattr(self, name)
            if len(numbers) <= MAX_NAMES:
                continue
            used = np.unique(np.concatenate([self._observations[column] for column in columns]))
            used = used[used >= 0]
            names, codes = list(numbers), np.full(len(numbers) + 1, NOT_KNOWN)
            codes[used] = np.arange(len(used))
            for column in columns:
                self._observations[column][:] = codes[self._observations[column]]
            setattr(self, name, {names[code]: i for i, code in enumerate(used.tolist())})

    # -- what of it is asked for ---------------------------------------------------------------------------------------

    def find(self, streams: Sequence[int], most: int, before: int | None = None) -> list[Int64]:
        """Return the numbers of each stream's last events, `most` at most and before number `before`, oldest first.

        An event that came again, as its partition came back, is there once.
        """
        filled = min(self.written, self._room)
        has = self._events["stream"][:filled]
        wanted = np.array(streams, np.int64)
        slots = np.flatnonzero(has == wanted[0] if len(wanted) == 1 else np.isin(has, wanted))
        number = self._numbers(slots)
        kept = self._events["first"][slots] >= self._observations_written - self._observation_room
        kept &= number < (self.written if before is None else before)
        slots, number = slots[kept], number[kept]
        order = np.argsort(number)
        slots, number = slots[order], number[order]
        of = self._events["stream"][slots]
        return [self._once(number[of == stream])[-most:] if most else number[:0] for stream in wanted.tolist()]

    def _numbers(self, slots: Int64) -> Int64:
        """Return the numbers of the events that are in these places."""
        at = self.written % self._room
        numbers: Int64 = slots + (self.written - at) - np.where(slots >= at, self._room, 0)
        return numbers

    def _once(self, number: Int64) -> Int64:
        """Return the last of events of the same time and offset."""
        slots = number % self._room
        time, offset = self._events["time"][slots], self._events["offset"][slots]
        order = np.lexsort((number, offset, time))
        last = np.append((np.diff(time[order]) != 0) | (np.diff(offset[order]) != 0), [True])[: len(order)]
        kept: Int64 = np.sort(number[order[last]])
        return kept

    def event(self, name: str, number: Int64) -> NDArray[Any]:
        """Return a column of some events: "time" or "offset", or one of EVENT."""
        return self._events[name][number % self._room]

    def columns(self, number: Int64) -> Columns:
        """Return events by their numbers, in this order."""
        slots = number % self._room
        count = self._events["count"][slots].astype(np.int64)
        start = np.concatenate(([0], np.cumsum(count)))
        rows = np.repeat(self._events["first"][slots] - start[:-1], count) + np.arange(start[-1])
        rows %= self._observation_room
        return Columns(
            list(self._features),
            list(self._symbols),
            list(self._models),
            start,
            {name: self._events[name][slots] for name in EVENT}
            | {name: self._observations[name][rows] for name in OBSERVATION},
        )
