"""Streams of waves with noise and known anomalies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

START = 1_700_000_000 // 86_400 * 86_400  # Unix s, a midnight: long ago by any machine's clock
STEP = 60  # s between two events of a stream
SPIKES = 0.4, 0.65  # where they are, as shares of the rows: by then every stream has been judged for a while
SHIFT_AT, SHIFT_ROWS = 0.75, 60  # where the level shifts, as a share of the rows, and for how long
ONSET = 2  # rows of a shift that are a surprise: after them the network expects the new level


class Fleet(NamedTuple):
    """Streams that report once a step, all at the same times; some with anomalies."""

    names: list[str]
    values: NDArray[np.float64]  # [rows, streams, features] NaN: the stream has fewer features
    spike: NDArray[np.bool_]  # [rows, streams] one event that is far out
    onset: NDArray[np.bool_]  # [rows, streams] first events of a new level
    after: NDArray[np.bool_]  # [rows, streams] in the wake of either: neither normal nor injected

    @property
    def rows(self) -> int:
        """Events of each stream."""
        return len(self.values)

    def record(self, row: int, stream: int) -> bytes:
        """Return an event as it is in the topic or file."""
        value = {f"f{k}": x for k, x in enumerate(self.values[row, stream].tolist()) if not math.isnan(x)}
        return msgspec.json.encode({"stream": self.names[stream], "timestamp": START + row * STEP, "values": value})

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yield (stream's number, record), row by row."""
        for row in range(self.rows):
            for stream in range(len(self.names)):
                yield stream, self.record(row, stream)


def make_fleet(streams: int, rows: int, seed: int) -> Fleet:
    """Make streams of waves with noise: the last fifth of them has three features, every second one has anomalies."""
    rng = np.random.default_rng(seed)
    time_of_day = np.arange(rows)[:, None, None] * STEP
    period = rng.choice([1_800.0, 3_600.0, 7_200.0], (1, streams, 1))
    wave = np.sin(2 * np.pi * (time_of_day / period + rng.uniform(0, 1, (1, streams, 3))))
    values = 20.0 + 2.0 * wave + 0.3 * rng.standard_normal((rows, streams, 3))
    values[:, : streams - streams // 5, 1:] = np.nan
    spike, onset, after = (np.zeros((rows, streams), np.bool_) for _ in range(3))
    shift = round(SHIFT_AT * rows)
    for stream in range(0, streams, 2):
        for row in rng.choice(np.arange(*(round(share * rows) for share in SPIKES)), 4, replace=False).tolist():
            values[row, stream, :2] += rng.choice([-8.0, 8.0])
            spike[row, stream] = True
            after[row : row + 30, stream] = True
        values[shift : shift + SHIFT_ROWS, stream] += 6.0
        onset[shift : shift + ONSET, stream] = True
        after[shift : shift + 2 * SHIFT_ROWS, stream] = True
    return Fleet([f"host-{stream:02d}/load" for stream in range(streams)], values, spike, onset, after)
