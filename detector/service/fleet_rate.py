"""How many events a day the whole fleet has: what its budget of alerts goes by.

The number changes at checkpoints only and is a part of them, so that what is scored again after a crash meets the
number that stood then.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from connectors.protocols import DaemonSource
from detector.checkpointing.checkpointer import Checkpointer
from detector.checkpointing.store import SqliteStore
from detector.engine.engine import Engine
from detector.observability.metrics import Metrics
from detector.state.stream_cache import SECONDS_PER_DAY

FLEET_EVENTS = "fleet_events_per_day"  # in a checkpoint's metadata
STEADY = 0.1  # a change by less is none: a fleet's threshold should not move with each checkpoint
SETTLED_SECONDS = SECONDS_PER_DAY  # after which streams that have said nothing here are taken to be over


class FleetRate:
    """Sets the engine's `fleet_events_per_day`. For the daemon's thread.

    A worker of a group knows its own streams only. It takes the others' partitions for as busy as its own: its own rate
    over its share of the partitions.
    """

    def __init__(
        self,
        engine: Engine,
        checkpointer: Checkpointer,
        source: DaemonSource,
        store: SqliteStore,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Go on with the number of the last checkpoint; 0, not known, where there is none."""
        self._engine, self._checkpointer, self._source, self._store = engine, checkpointer, source, store
        self._metrics, self._clock = metrics, clock
        self._set(float(checkpointer.metadata[FLEET_EVENTS]))
        self.assigned()

    def assigned(self) -> None:
        """Note that partitions came or went: their streams have not all been seen here yet."""
        self._least, self._settled = self._engine.fleet_events_per_day, self._clock() + SETTLED_SECONDS

    def commit(self) -> bool:
        """Make a checkpoint from which on the present rate holds; return whether there is one."""
        metadata, former = self._checkpointer.metadata, self._engine.fleet_events_per_day
        metadata[FLEET_EVENTS] = self._present(former)
        made = False
        try:
            made = self._checkpointer.commit()
        finally:
            if not made:
                metadata[FLEET_EVENTS] = former
        self._set(metadata[FLEET_EVENTS])
        return made

    def _set(self, rate: float) -> None:
        self._engine.fleet_events_per_day = rate
        self._metrics.fleet_events_per_day.set(rate)

    def _present(self, former: float) -> float:
        """Return the rate by what is in memory; after a start not below what it was: slow streams have yet to speak."""
        share, streams = self._source.share(), self._engine.streams
        if not share:
            return former
        rate = streams.events_per_day(self._checkpointer.metadata["newest"]) / share
        if streams.has_evicted:
            rate *= max(self._store.count() / max(len(streams), 1), 1.0)
        rate = rate if self._clock() >= self._settled else max(rate, self._least)
        return rate if abs(rate - former) > STEADY * former else former
