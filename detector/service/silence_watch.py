"""Has streams that stop told: by their partition's events, and by the clock while none come although none wait.

Time that a partition is without events counts only while everything is read to its end, and is made durable before
anybody is told what follows from it: after a crash the same is told again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from connectors.batches import Alert, EventBatch, Partition
from detector.checkpointing.store import DamagedRowError
from detector.engine.engine import Engine

LOOK_SECONDS = 1.0  # between two looks
MOST_IDLE_SECONDS = 5.0  # that count between two looks: a daemon that was stopped for longer has not looked
STORED_AT_ONCE = 256  # streams of the store looked through in a turn: 8 MB of rows


class SilenceWatch:
    """Looks for streams that have stopped. For the daemon's thread.

    names_after: returns the names of the store's streams after one, in order, so many at most; load: their rows.
    """

    def __init__(
        self,
        engine: Engine,
        names_after: Callable[[str, int], Sequence[str]],
        load: Callable[[Sequence[str]], Iterable[bytes | None]],
        commit: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._names_after, self._load = engine, names_after, load
        self._commit, self._clock = commit, clock
        self._table = engine.streams.silence
        self._idle: dict[Partition, float] = {}  # seconds without events although none wait
        self._looked = self._due = clock()
        self._after: str | None = None  # the stream of the store that was looked at last; None: all were

    def step(self, batch: EventBatch) -> None:
        """Note which partitions had events."""
        for partition in batch.partitions:
            self._idle.pop(partition, None)

    def look(self, lag: Mapping[Partition, int], *, reading: bool) -> None:
        """Note where events wait, or cannot be read: no clock counts there."""
        now = self._clock()
        passed, self._looked = min(now - self._looked, MOST_IDLE_SECONDS), now
        quiet = [partition for partition, waiting in lag.items() if reading and not waiting]
        self._idle = {partition: self._idle.get(partition, -passed) + passed for partition in quiet}

    def advance(self) -> list[Alert]:
        """Return the alerts of streams that have stopped, and of those that have an end without an event."""
        if not self._table.watching and not len(self._table):
            return []
        self._look_through_store()
        now = self._clock()
        if now < self._due:
            return []
        self._due = now + LOOK_SECONDS
        if not self._let_idle_time_pass():
            return []
        return self._engine.silence.stopped()

    def _let_idle_time_pass(self) -> bool:
        """Let a partition's time follow the clock where a stream would have stopped by it; False: not durable yet."""
        idle = np.zeros(len(self._table.clocks))
        for number, partition in enumerate(self._table.partitions):
            idle[number] = self._idle.get(partition, 0.0)
        ahead = self._table.advances(idle)
        numbers = np.union1d(self._table.heard.clock[self._table.due(ahead)], self._table.away_clocks_due(ahead))
        numbers = numbers[idle[numbers] > 0.0]
        if not len(numbers):
            return True
        self._table.pass_time(numbers, idle)
        for number in numbers.tolist():
            self._idle[self._table.partitions[number]] = 0.0
        return self._commit()

    def _look_through_store(self) -> None:
        """Look at some streams of the store that are not in memory: they may stop, or have stopped before a restart."""
        if self._table.unseen:
            if not self._table.clocks["time"].any():
                return  # nobody knows how late it is
            self._table.unseen, self._after = False, ""
        if self._after is None:
            return
        names = self._names_after(self._after, STORED_AT_ONCE)
        self._after = names[-1] if names else None
        wanted = self._engine.silence.wanted_of(names)
        try:
            self._engine.silence.look_through(wanted, self._load(wanted))
        except DamagedRowError:  # it is seen to when its stream comes
            return
