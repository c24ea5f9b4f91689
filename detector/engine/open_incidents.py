"""Which streams have an open incident, and for how long each has said nothing: by the others' time, or by a clock.

A partition's time is that of its events; where none come although none wait, it follows the clock. A stream's silence
is how far its partition's time has advanced since its last event, so that clocks which differ do no harm, nor does a
partition that is read before another. Whether that is silence the engine knows (`resolve_silent`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from connectors.batches import SILENT, Alert, EventBatch, Partition
from detector.engine.engine import Step
from detector.scoring.admission import MIN_SILENCE
from detector.state.names import partition_hash

WITNESSES = 15  # events the middle one of whose times is the partition's: a few that are wrong move nothing
ELSEWHERE = 0  # in place of a partition's hash: those that this worker does not have


@dataclass(slots=True)
class _Progress:
    """How a partition's time advances."""

    quiet_since: float  # by the clock, s: the last event, or the last look that found others waiting
    seconds: float = 0.0  # that its events' time has advanced
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=WITNESSES))  # ns
    middle: int = 0  # of them

    def middle_with(self, times: list[int]) -> int:
        """Return the time of the partition once these have come, too; ns."""
        recent = [*self.recent, *times[-WITNESSES:]][-WITNESSES:]
        return sorted(recent)[(len(recent) - 1) // 2]

    def seconds_with(self, times: list[int]) -> float:
        """Return how far time has advanced once these have come, too."""
        if not times or not self.recent:
            return self.seconds
        return self.seconds + max(self.middle_with(times) - self.middle, 0) * 1e-9

    def take(self, times: list[int]) -> None:
        """Take in the times of events; where they are behind the others', time advances from there."""
        if not self.recent:
            self.recent.append(times[0])
            self.middle = times[0]
        self.seconds, self.middle = self.seconds_with(times), self.middle_with(times)
        self.recent.extend(times[-WITNESSES:])


@dataclass(slots=True)
class _Open:
    partition: int  # hash
    since: float  # by the clock, s: its last event
    seconds: float = 0.0  # the partition's seconds then
    allowed: float = MIN_SILENCE  # seconds it may say nothing, as far as known


class OpenIncidents:
    """The open incidents of the streams of this worker, in memory or not. For the daemon's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, _Open] = {}
        self._progress: dict[int, _Progress] = {ELSEWHERE: _Progress(clock())}

    def __len__(self) -> int:
        return len(self._open)

    def found(self, incidents: Mapping[str, int]) -> None:
        """Take in open incidents from a store, each with its partition's hash; their silence begins now."""
        now = self._clock()
        for stream, partition in incidents.items():
            self._open[stream] = _Open(partition, now, self._of(partition).seconds)

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """Forget the incidents of partitions that are others' now, with their states."""
        gone = {partition_hash(*partition) for partition in partitions}
        self._open = {stream: o for stream, o in self._open.items() if o.partition not in gone}

    def clear(self) -> None:
        """Forget all incidents."""
        self._open.clear()

    def step(self, batch: EventBatch, step: Step) -> None:
        """Note which incidents opened and ended, which streams had events, and how time advances."""
        now, scored = self._clock(), step.scores.event
        for alert in step.alerts:
            if alert.channel == SILENT:
                continue
            if alert.status == "firing":
                self._open[alert.stream] = _Open(partition_hash(alert.topic, alert.partition), now)
            else:
                self._open.pop(alert.stream, None)
        present = [(code, self._open[name]) for code, name in enumerate(batch.streams) if name in self._open]
        for code, partition in enumerate(batch.partitions):
            rows = np.flatnonzero(batch.partition == code)
            if not len(rows):
                continue
            number = partition_hash(*partition)
            progress = self._progress.setdefault(number, _Progress(now))
            progress.quiet_since = now
            mine = scored[batch.partition[scored] == code]
            times = batch.time[mine]
            if len(times) and not progress.recent:
                progress.take(times[:1].tolist())
            last = np.full(len(batch.streams), -1)
            last[batch.stream[rows]] = rows
            for stream, one in present:
                if last[stream] >= 0:
                    until = int(np.searchsorted(mine, last[stream], "right"))
                    one.partition, one.since, one.allowed = number, now, MIN_SILENCE
                    one.seconds = progress.seconds_with(times[max(until - WITNESSES, 0) : until].tolist())
            if len(times):
                progress.take(times[-WITNESSES:].tolist())

    def look(self, lag: Mapping[Partition, int], *, reading: bool) -> None:
        """Note where events wait: no clock counts there, nor anywhere while nothing can be read or nothing is ours."""
        now = self._clock()
        here = {partition_hash(*partition): waiting for partition, waiting in lag.items()}
        gone = self._progress.keys() - here.keys() - {ELSEWHERE}
        for partition in gone:
            del self._progress[partition]
        for one in self._open.values() if gone else ():
            if one.partition in gone:
                one.seconds, one.since = 0.0, now
        for partition, waiting in here.items():
            progress = self._progress.setdefault(partition, _Progress(now))
            if waiting or not reading:
                progress.quiet_since = now
        if not (here and reading):
            self._progress[ELSEWHERE].quiet_since = now

    def silent(self) -> dict[str, float]:
        """Return the streams that may have fallen silent, with the seconds for which they have said nothing."""
        now = self._clock()
        found = {}
        for stream, one in self._open.items():
            progress = self._of(one.partition)
            seconds = max(progress.seconds - one.seconds, 0.0) + now - max(progress.quiet_since, one.since)
            if seconds > one.allowed:
                found[stream] = seconds
        return found

    def ended(self, alerts: Iterable[Alert]) -> None:
        """Forget the incidents that people have ended."""
        for alert in alerts:
            if alert.channel != SILENT:
                self._open.pop(alert.stream, None)

    def resolved(self, silent: Iterable[str], not_yet: Mapping[str, float]) -> None:
        """Forget the incidents of these streams but for those that may say nothing for longer."""
        for stream in silent:
            if stream in not_yet:
                self._open[stream].allowed = not_yet[stream]
            else:
                del self._open[stream]

    def _of(self, partition: int) -> _Progress:
        return self._progress.get(partition, self._progress[ELSEWHERE])
