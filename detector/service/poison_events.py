"""A poison event: one on which the engine raises. It is found by bisection and put aside; the others are scored.

A step that raises leaves its streams half changed, and copies of all states before every step would cost much of the
speed where there are many streams. So nothing is copied until it happens once. Then the caller goes back to its last
checkpoint (`FaultError`), and from there on each step is made carefully: with copies of its streams' states to go back
to, and in halves where it raises again, down to the one event. The others' scores are as if it had never come, by the
engine's parity.

Where a stream's events raise one after the other it may be its state that is poisoned. Then the next one is tried on
the state of a stream never seen: if the engine takes it there, the stream is reset.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from connectors.batches import EventBatch, Partition, RawBatch, Rejected
from detector.engine.engine import Engine, Step
from detector.errors import StateError
from detector.observability.metrics import ENGINE_ERROR
from training.network.shape import ModelError

logger = logging.getLogger(__name__)

# A producer that has sent one such event sends more: without this each would cost a way back to the last checkpoint
CAREFUL_SECONDS = 60.0
# So many events one after the other, and none between them that the engine could take: then it is not the events
MAX_FAILURES_IN_A_ROW = 100
# So many of one stream, and none between them that the engine could take: perhaps it is the stream's state
MAX_FAILURES_OF_A_STREAM = 3
MAX_FAILING_STREAMS = 10_000  # streams that are counted: names are the senders' to choose
MAX_LOGGED = 10  # events that are named in the log; the others are only counted
# What no event is to blame for: the store, the disk, memory (torch's own error is a RuntimeError)
INFRASTRUCTURE_ERRORS = (StateError, ModelError, OSError, MemoryError)


class FaultError(Exception):
    """The engine raised: go back to the last checkpoint, and make the next steps with the same `PoisonGuard`."""


class EngineError(RuntimeError):
    """The engine raises on whatever it is given."""


class SubBatch(NamedTuple):
    """A part of a batch: what came of its events, or the one that is put aside."""

    batch: EventBatch
    step: Step | None
    refused: list[Rejected]
    reset: bool = False  # its one stream's state was given up


class PoisonGuard:
    """Makes the engine's steps. `always`: carefully from the first on, for a source that cannot go back."""

    def __init__(self, engine: Engine, *, always: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._always, self._clock = engine, always, clock
        self._until: dict[Partition, int] = {}  # offsets by which the event must have come again
        self._careful_by = -1.0  # by `clock`, s
        self._in_a_row = 0
        self._failing: dict[str, int] = {}  # by stream: events on which the engine raised, since it last took one
        self._logged = 0

    def step_all(self, batch: EventBatch, raw: RawBatch) -> Iterator[SubBatch]:
        """Yield a batch's parts in their order: one, unless an event raises.

        Raises FaultError where the engine raised and nothing can be put back, EngineError where it is not the events.
        """
        if not (self._always or self._until or self._clock() < self._careful_by):
            came = self._try(batch)
            if isinstance(came, Exception):
                self._until = _ends(raw)
                raise FaultError(f"{type(came).__name__}: {came}") from came
            yield self._taken(batch, came)
            return
        yield from self._bisect(batch, raw)
        for partition, end in _ends(raw).items():
            if self._until.get(partition, end) <= end:
                self._until.pop(partition, None)

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """Expect nothing any more of partitions that are others' now."""
        for partition in partitions:
            self._until.pop(partition, None)

    def _bisect(self, batch: EventBatch, raw: RawBatch) -> Iterator[SubBatch]:
        before = self._engine.streams.snapshot(batch.streams)
        came = self._try(batch)
        if not isinstance(came, Exception):
            yield self._taken(batch, came)
            return
        if not len(batch):
            raise came
        self._engine.streams.restore(before)
        self._careful_by = self._clock() + CAREFUL_SECONDS
        if len(batch) > 1:
            del before, came  # the exception holds all that the failed step had in its hands
            half = len(batch) // 2
            yield from self._bisect(batch.slice(0, half), raw)
            yield from self._bisect(batch.slice(half, len(batch)), raw)
            return
        reset = self._retry_on_fresh_state(batch, before, came)
        if reset is not None:
            yield self._taken(batch, reset)._replace(reset=True)
            return
        self._in_a_row += 1
        if self._in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise EngineError(
                f"the engine raised on {self._in_a_row} events one after the other, so it is not the events:"
                f" {type(came).__name__}: {came}"
            ) from came
        yield SubBatch(batch, None, [self._reject(batch, raw, came)])

    def _try(self, batch: EventBatch) -> Step | Exception:
        """Step, and return what it raises where an event may be to blame."""
        try:
            return self._engine.step(batch)
        except INFRASTRUCTURE_ERRORS:
            raise
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":  # torch.cuda's: a batch of half the size would only hide it
                raise
            return error

    def _taken(self, batch: EventBatch, step: Step) -> SubBatch:
        self._in_a_row = 0
        if self._failing:
            for name in batch.streams:
                self._failing.pop(name, None)
        return SubBatch(batch, step, [])

    def _retry_on_fresh_state(
        self, batch: EventBatch, before: Mapping[str, bytes | None], failure: Exception
    ) -> Step | None:
        """Step an event on the state of a stream never seen, where its own may be at fault; None: it is not."""
        (name,) = batch.streams
        if len(self._failing) >= MAX_FAILING_STREAMS:
            self._failing.clear()
        self._failing[name] = self._failing.get(name, 0) + 1
        if self._failing[name] < MAX_FAILURES_OF_A_STREAM:
            return None
        self._engine.streams.replace(name, None)
        came = self._try(batch)
        if isinstance(came, Exception):
            self._engine.streams.restore(before)
            return None
        logger.error(
            "state of stream %r was reset: the engine raised on %d of its events in a row, and does not on an empty"
            " state: %s: %s",
            name, self._failing[name], type(failure).__name__, failure, exc_info=failure,
        )  # fmt: skip
        return came

    def _reject(self, batch: EventBatch, raw: RawBatch, error: Exception) -> Rejected:
        partition, offset = batch.partitions[batch.partition[0]], int(batch.offset[0])
        found = (
            value
            for code, at, value in zip(raw.partition, raw.offset, raw.value, strict=True)
            if at == offset and raw.partitions[code] == partition
        )
        why = f"{type(error).__name__}: {error}"
        detail = f"the engine raised {why}; event of stream {batch.streams[0]!r} at {int(batch.time[0])} ns"
        if self._logged < MAX_LOGGED:
            self._logged += 1
            rest = "" if self._logged < MAX_LOGGED else "; further ones are only counted"
            logger.error(
                "%s/%d, offset %d: put aside, the others are scored: %s%s", *partition, offset, detail, rest,
                exc_info=error,
            )  # fmt: skip
        return Rejected(partition.topic, partition.partition, offset, ENGINE_ERROR, detail, next(found, b""))


def _ends(raw: RawBatch) -> dict[Partition, int]:
    """Return, by partition, the offset after a batch's last record."""
    ends: dict[Partition, int] = {}
    for code, offset in zip(raw.partition, raw.offset, strict=True):
        ends[raw.partitions[code]] = max(ends.get(raw.partitions[code], 0), offset + 1)
    return ends
