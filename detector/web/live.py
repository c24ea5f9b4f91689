"""The events of the streams that somebody looks at, as they are scored: kept while they are looked at.

For all other streams, and while nobody looks, this costs nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.batches import CHANNELS, Scores

MAX_WATCHED = 64  # streams
KEPT = 1_000  # events of each
FORGOTTEN_SECONDS = 120.0  # after which a stream that nobody asks for is dropped


class Value(NamedTuple):
    """What an event had of a feature."""

    observed: float | str | None
    expected: float | str | None
    lower: float | None
    upper: float | None
    contribution: float


class Point(NamedTuple):
    """A scored event."""

    time: int  # ns
    score: float
    threshold: float
    channel: str  # "": nothing is claimed
    alert: bool
    model_version: str
    values: dict[str, Value]  # by feature


class _Watched:
    def __init__(self, now: float) -> None:
        self.points: deque[tuple[int, Point]] = deque(maxlen=KEPT)  # with their numbers
        self.asked_at = now


class LiveStreams:
    """Watches streams by name. `step` is for the loop, everything else for any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._watched: dict[str, _Watched] = {}
        self._number = 0

    def points(self, stream: str, after: int = 0) -> tuple[int, list[Point]]:
        """Return the events of a stream since it is watched, after a number; and the number to ask for next.

        Asking is watching. Where too many streams are watched, the one not asked for for longest is dropped.
        """
        now = self._clock()
        with self._lock:
            watched = self._watched.get(stream)
            if watched is None:
                if len(self._watched) >= MAX_WATCHED:
                    del self._watched[min(self._watched, key=lambda name: self._watched[name].asked_at)]
                watched = self._watched[stream] = _Watched(now)
            watched.asked_at = now
            return self._number, [point for number, point in watched.points if number > after]

    def step(self, scores: Scores, slot: NDArray[np.int64], slots: Mapping[str, int]) -> None:
        """Take the scores of a batch; `slot` [scored]: of each event's stream; `slots`: those of streams by name.

        It is by these that a stream's events are found: to look for its name in each batch would cost as much as a page
        may cost in all.
        """
        if not self._watched:
            return
        with self._lock:
            now = self._clock()
            for name in [n for n, one in self._watched.items() if now - one.asked_at > FORGOTTEN_SECONDS]:
                del self._watched[name]
            wanted = [slots.get(name, -1) for name in self._watched]
            rows = np.flatnonzero(np.isin(slot, wanted)).tolist()
            self._number += len(rows) > 0
            names, codes = scores.batch.streams, scores.batch.stream[scores.event[rows]].tolist()
            for row, code in zip(rows, codes, strict=True):
                if (watched := self._watched.get(names[code])) is not None:
                    watched.points.append((self._number, _point(scores, row)))


def _point(scores: Scores, row: int) -> Point:
    batch, at = scores.batch, int(scores.event[row])
    values = {}
    for j in range(int(scores.start[row]), int(scores.start[row + 1])):
        observation = int(scores.observation[j])
        symbol = int(batch.symbol[observation]) if batch.symbols else -1
        if symbol >= 0:
            likely = int(scores.expected_symbol[j])
            observed: float | str | None = batch.symbols[symbol]
            expected: float | str | None = scores.symbols[likely] if likely >= 0 else None
        else:
            observed, expected = _known(batch.value[observation]), _known(scores.expected[j])
        values[batch.features[batch.feature[observation]]] = Value(
            observed=observed,
            expected=expected,
            lower=_known(scores.lower[j]),
            upper=_known(scores.upper[j]),
            contribution=float(scores.contribution[j]),
        )
    channel = int(scores.channel[row])
    return Point(
        time=int(batch.time[at]),
        score=float(scores.score[row]),
        threshold=float(scores.threshold[row]),
        channel=CHANNELS[channel] if channel >= 0 else "",
        alert=bool(scores.alert[row]),
        model_version=scores.model_version,
        values=values,
    )


def _known(number: float) -> float | None:
    value = float(number)
    return value if np.isfinite(value) else None
