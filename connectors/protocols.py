"""What the daemon needs of a source and of a sink. Each kind of source or sink implements one of these protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from connectors.batches import Alert, Partition, RawBatch, Rejected, Scores
from connectors.common.background import OngoingProblem

_Results_contra = TypeVar("_Results_contra", contravariant=True)


class NotWrittenError(Exception):
    """An output takes nothing at present (its disk is full): it keeps what it was given, and `flush` retries."""


class Source(Protocol):
    """Where records come from. Offsets are those of the next record to read."""

    def poll(self, timeout_seconds: float) -> RawBatch:
        """Return the next records, at most the source's own batch limit; empty after the time-out or at the end."""

    def finished(self) -> bool:
        """Whether no record will ever come again (a file that has been read; never true of Kafka)."""

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Note what has been processed for good. Only the daemon's checkpoint calls this."""

    def lag(self) -> dict[Partition, int]:
        """Return how many records each assigned partition holds that have not been polled."""

    def close(self) -> None:
        """Leave the group, close files and sockets."""


DEFERRED = -1  # instead of an offset to begin at: a seek follows, once the partition's state is restored


@dataclass(frozen=True, slots=True)
class RebalanceCallbacks:
    """What a source calls within `poll`, on its thread, as a group gives it partitions and takes them away.

    `start(partition)` is called after `on_assigned` and returns the offset to begin at, from the local store, which
    takes precedence over what is committed in Kafka; None if it knows none, DEFERRED if a seek follows. `on_revoked`
    comes before the partitions are given away, while `commit` of their offsets still works (checkpoint there);
    `on_lost` when others may already have them. `on_placed` gets the offsets where reading starts or resumes: at the
    assignment, after a seek, and if the broker does not hold the next record.
    """

    start: Callable[[Partition], int | None] = lambda _: None
    on_assigned: Callable[[list[Partition]], None] = lambda _: None
    on_revoked: Callable[[list[Partition]], None] = lambda _: None
    on_lost: Callable[[list[Partition]], None] = lambda _: None
    on_placed: Callable[[dict[Partition, int]], None] = lambda _: None


class DaemonSource(Source, Protocol):
    """A source that the daemon may have to pause, and to read again from its last checkpoint on."""

    @property
    def grouped(self) -> bool:
        """Whether a group gives partitions and takes them away; else all are read from the start."""

    @property
    def outage(self) -> bool:
        """Whether the broker gives no answer, so that it is unknown whether there are records."""

    @property
    def problems(self) -> Mapping[str, OngoingProblem]:
        """What fails in background threads, by the name that metrics give it."""

    @property
    def rewinds(self) -> bool:
        """Whether `rewind` works: a pipe's records come once."""

    def subscribe(self, callbacks: RebalanceCallbacks) -> None:
        """Call these as partitions come and go. To be called before the first `poll`."""

    def pause(self) -> None:
        """Return no records until `resume`; `poll` is still called."""

    def resume(self) -> None:
        """Return records again."""

    def share(self) -> float:
        """Return the share of all partitions that are read here; 0 while that is none, or not known."""

    def fingerprints(self) -> Mapping[str, Sequence[int | str]]:
        """Return what identifies, after a restart, the files that offsets belong to; as JSON can hold it."""

    def rewind(self, offsets: Mapping[Partition, int]) -> None:
        """Go back to these offsets, which have been polled since the last commit, and read from there again."""


class Sink(Protocol[_Results_contra]):
    """Takes results of one kind."""

    def write(self, results: _Results_contra) -> None:
        """Write a batch's results in their order, a record each."""

    @property
    def full(self) -> bool:
        """Whether so much waits to be written that no more should come."""

    def flush(self) -> None:
        """Return when all that was written is durable; raise when it cannot be, NotWrittenError when not at present."""

    def position(self) -> dict[str, Any]:
        """Return what `restore` needs to take back everything written after now, as JSON can hold it."""

    def restore(self, position: Mapping[str, Any]) -> None:
        """Take back what was written after `position` (a crash came before the checkpoint)."""

    def close(self) -> None:
        """Flush and close."""


ScoreSink = Sink[Scores]
AlertSink = Sink[Sequence[Alert]]  # as they fire and as they resolve
DeadLetterSink = Sink[Sequence[Rejected]]  # what could not be decoded or scored
