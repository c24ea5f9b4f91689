"""What the daemon asks of an edge. A source or sink is one file that keeps one of these promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from connectors.batches import Alert, Partition, RawBatch, Rejected, Scores


class NotWrittenError(Exception):
    """An output takes nothing at present (its disk is full): it keeps what it was given, and `flush` tries again."""


class Source(Protocol):
    """Where records come from. Offsets are those of the next record to read."""

    def poll(self, timeout_seconds: float) -> RawBatch:
        """Return the next records, at most the source's own batch limit; empty after the time-out or at the end."""

    def finished(self) -> bool:
        """Whether no record will ever come again (a file that has been read; never true of Kafka)."""

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Tell the source what has been processed for good. Only the daemon's checkpoint calls this."""

    def lag(self) -> dict[Partition, int]:
        """Return how many records each assigned partition holds that have not been polled."""

    def close(self) -> None:
        """Let go: leave the group, close files and sockets."""


class DaemonSource(Source, Protocol):
    """A source that the daemon may have to read again from its last checkpoint on."""

    @property
    def rewinds(self) -> bool:
        """Whether `rewind` works: a pipe's records come once."""

    def fingerprints(self) -> Mapping[str, Sequence[int | str]]:
        """Return what tells, after a restart, that offsets are still those of the same files; as JSON can hold it."""

    def rewind(self, offsets: Mapping[Partition, int]) -> None:
        """Go back to these offsets, which have been polled since the last commit, and hand out what follows again."""


class Sink(Protocol):
    """What every sink can do beside writing."""

    def flush(self) -> None:
        """Return when all that was written is durable; raise when it cannot be, NotWrittenError when not at present."""

    def position(self) -> dict[str, Any]:
        """Return what `restore` needs to take back everything written after now, as JSON can hold it."""

    def restore(self, position: Mapping[str, Any]) -> None:
        """Take back what was written after `position` (a crash came before the checkpoint)."""

    def close(self) -> None:
        """Flush and let go."""


class ScoreSink(Sink, Protocol):
    """Takes every score."""

    def write(self, scores: Scores) -> None:
        """Write a batch's scores, one record an event."""


class AlertSink(Sink, Protocol):
    """Takes alerts, as they fire and as they resolve."""

    def write(self, alerts: Sequence[Alert]) -> None:
        """Write alerts in their order."""


class DeadLetterSink(Sink, Protocol):
    """Takes what could not be decoded."""

    def write(self, rejected: Sequence[Rejected]) -> None:
        """Write refusals in their order."""
