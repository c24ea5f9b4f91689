"""An alert whose stream is followed: what is known of it, and what is not in the file yet."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detector.history.columns import Columns

Int64 = NDArray[np.int64]

TAIL = 50  # events after an alert's end
MAX_EVENTS = 20_000  # from an alert's first event on; what follows is not kept: some 0.5 MB


@dataclass(slots=True, eq=False)
class Follow:
    """An alert whose stream is followed."""

    alert_id: str
    stream: str
    started_at: int  # ns
    record: bytes  # as on the alerts topic
    last: dict[str, int]  # offset of the last event, by partition
    newest: int  # ns: time of the newest event
    number: int = 0  # in the file; 0: it is not there yet
    chunk: int = 1  # the next one
    before: Columns | None = None  # that are not in the file yet
    held: list[Columns] = field(default_factory=list)  # of the chunk before, while it has room
    parts: list[Columns] = field(default_factory=list)  # that are not in the file yet
    in_ring: list[Int64] = field(default_factory=list)  # numbers of events that are to become a part
    ended_at: int | None = None  # ns
    events: int = 0
    tail: int = 0
    gaps: bool = False
    changed: bool = True

    @property
    def done(self) -> bool:
        """Whether nothing more is kept of it."""
        return self.tail >= TAIL or self.events >= MAX_EVENTS
