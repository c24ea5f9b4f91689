"""Checkpoints: what was done so far made durable as one point in the stream, and the way back to the last of them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from connectors.batches import Partition, RawBatch
from connectors.common.background import OngoingProblem
from connectors.kafka.errors import KafkaConnectorError
from connectors.kafka.writer import UndeliveredError
from connectors.protocols import DaemonSource, NotWrittenError
from connectors.sink_group import SinkGroup
from detector.checkpointing.deadlines import BrokerWait
from detector.checkpointing.state_directory import UnsavedError
from detector.checkpointing.store import SqliteStore
from detector.config.settings import Settings
from detector.engine.open_incidents import OpenIncidents
from detector.errors import StateError
from detector.observability.metrics import Metrics
from detector.state.former import TAKEN_OVER
from detector.state.stream_cache import StreamCache

logger = logging.getLogger(__name__)

META_VERSION = 1
CLOCKS = "clocks"  # in a checkpoint's meta document: those of partitions, that silence is told by
FORCED_CHECKPOINT = 20_000  # evicted streams that wait for a checkpoint in memory: at most so many
MAX_ROLL_BACKS = 10  # without a checkpoint in between: it does not mend itself
UNSAVED_SECONDS = 60.0  # without a checkpoint that is due, after which /readyz says so


class CheckpointParts(NamedTuple):
    """What has a part in a checkpoint."""

    streams: StreamCache
    store: SqliteStore
    sinks: SinkGroup
    source: DaemonSource
    incidents: OpenIncidents
    broker_wait: BrokerWait
    metrics: Metrics


class Checkpointer:
    """Commits the work since the last checkpoint, or rolls it back. For the daemon's thread, but `overdue`.

    States stay with this worker, whichever partitions it has: in the local store, in one transaction with offsets and
    the sinks' positions. `ChangelogCheckpointer` makes them durable in a transaction of Kafka.
    """

    def __init__(
        self, settings: Settings, parts: CheckpointParts, offsets: dict[Partition, int], metadata: dict[str, Any]
    ) -> None:
        """`offsets` are those of the next events, and are kept up; `metadata` is what a checkpoint says of the daemon.

        `metadata`: `longwatch`, its version; `member`, the worker's name; `model`, "" while it is the first one;
        `newest`, the time of the newest event, s; `fleet_events_per_day`, what the engine goes by from there on.
        """
        self._settings, self._parts, self.metadata = settings, parts, metadata
        self.offsets = offsets
        self.dirty = False  # whether there is anything that the last one does not cover
        self.last_error: Exception | None = None  # why there is no checkpoint at present
        self._failing_since = 0.0  # monotonic, s
        self._at = time.monotonic()  # when it was made, or tried
        self._start_offsets: dict[Partition, int] = {}  # offsets at which what came since the last one begins
        self._sink_positions = parts.sinks.position()  # what the sinks held then
        self._roll_backs = 0  # since the last one
        self.restoring: set[Partition] = set()  # whose states are on their way
        self.problems: dict[str, OngoingProblem] = {}  # of threads, by the name that metrics give them

    def start(self) -> None:
        """Take up what the store holds."""
        store = self._parts.store
        if store.positions():
            store.clear(None)  # what is saved from now on is not in the changelog
        self._parts.incidents.found(store.open_incidents())

    def close(self) -> None:
        """End threads, if any; a transaction that is open is given up."""

    # -- how far the work has come ------------------------------------------------------------------------------------

    def record_start(self, raw: RawBatch) -> None:
        """Note where each partition begins that had nothing since the last checkpoint."""
        for code, partition in enumerate(raw.partitions):
            if partition not in self._start_offsets:
                self._start_offsets[partition] = raw.offset[raw.partition.index(code)]

    def record_offsets(self, raw: RawBatch, newest: float) -> None:
        """Note the next offset of each partition the batch came from, and the time of the newest event, s."""
        after = np.full(len(raw.partitions), -1, np.int64)
        np.maximum.at(after, np.asarray(raw.partition, np.int64), np.asarray(raw.offset, np.int64) + 1)
        for partition, offset in zip(raw.partitions, after.tolist(), strict=True):
            if offset >= 0:
                self.offsets[partition] = offset
        self.offsets.update(raw.passed)
        self.metadata["newest"] = newest
        self.dirty = True

    def record_repartitioned(self, streams: Iterable[str]) -> None:
        """Note streams that came on another partition than before."""

    def use_model(self, version: str) -> None:
        """Let checkpoints name this model from now on."""
        self.metadata["model"] = version

    @property
    def due(self) -> bool:
        """Whether one should be made now."""
        since = time.monotonic() - self._at
        late = self.dirty and since >= self._settings.state.checkpoint_interval_seconds
        return late or (self.backlog_full and self.last_error is None)

    @property
    def stalled(self) -> bool:
        """Whether nothing more should be read before there is a checkpoint."""
        return self.last_error is not None and self.backlog_full

    @property
    def backlog_full(self) -> bool:
        """Whether so much waits for a checkpoint that no more should come."""
        streams = self._parts.streams
        waiting = streams.spill.nbytes + streams.spill.written_bytes  # a transaction holds all at once, compressed
        much = len(streams.spill) > FORCED_CHECKPOINT or waiting > streams.memory_bytes
        return much or self._parts.sinks.full

    def overdue(self) -> str:
        """Return for how long there has been none, and why; empty while that is not worth a word. For any thread."""
        error, since = self.last_error, time.monotonic() - self._failing_since
        return f"no checkpoint for {since:.0f} s: {error}" if error is not None and since > UNSAVED_SECONDS else ""

    # -- partitions ---------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> int:
        """Return what counts up while states are restored."""
        return 0

    @property
    def standby(self) -> tuple[bool, str] | None:
        """Whether this worker could take over any partition, in words; None where it is no standby."""
        return None

    def start_offset(self, partition: Partition) -> int | None:
        """Return where to begin with a partition, None where that is unknown, DEFERRED where a seek follows.

        The store's offset rules over what is committed in Kafka.
        """
        return self.offsets.get(partition)

    def assign(self, partitions: list[Partition]) -> None:
        """Take over partitions: their states are here."""

    def resume_restored(self) -> None:
        """Let reading begin in partitions whose states have come."""

    def on_placed(self, offsets: Mapping[Partition, int]) -> None:
        """Note where reading begins. It is made durable at once: a partition may be silent until after a restart."""
        if any(self.offsets.get(partition) != offset for partition, offset in offsets.items()):
            self.offsets.update(offsets)
            self.commit_soon()

    def revoke(self, partitions: list[Partition]) -> None:
        """Save what was done, then forget where these partitions stand: the next owner moves them on."""
        failure: UndeliveredError | None = None
        try:
            self._commit_before_revoke()
        except UndeliveredError as error:
            failure = error
        self._forget_states(partitions)
        if failure is not None:
            self.roll_back(failure)
        self._forget_offsets(partitions)

    def lost(self, partitions: list[Partition]) -> None:
        """Let go of partitions that others may already have: their progress does not touch what is saved here."""
        self.revoke(partitions)

    def _commit_before_revoke(self) -> None:
        self.commit()

    def _forget_states(self, partitions: Iterable[Partition]) -> None:
        """Forget states that follow their partitions."""

    def _forget_offsets(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            self.offsets.pop(partition, None)
            self._start_offsets.pop(partition, None)

    # -- commit -------------------------------------------------------------------------------------------------------

    def commit(self) -> bool:
        """Make everything so far durable, as one point in the stream; return whether it is.

        1. Scores, alerts and dead letters are flushed, the webhook's outbox too: nothing below may cover what is not
           written. Alerts have ids that a replay gives again.
        2. Changed states, offsets and the sinks' positions are saved, in one transaction.
        3. Offsets are committed to Kafka: for lag tools, and for a worker without this store.

        Killed before 2, the former checkpoint holds: files are cut back to it, Kafka sees the span again with equal
        scores. Killed between 2 and 3, the store's offsets rule over Kafka's.

        Where there is no room for it scoring continues, and it is tried again after the usual interval. Raises
        UndeliveredError where brokers did not take what was written: then `roll_back`.
        """
        began = time.monotonic()
        try:
            if not self._flush():
                logger.warning("outputs not flushed in time: events since the last checkpoint will be scored again")
                return False
            meta = self.meta()
            with self._parts.streams.draining() as rows:
                self._save(rows, meta)
        except (NotWrittenError, UnsavedError) as error:
            self._defer(error)
            return False
        self._commit_offsets()
        self.dirty = False
        self._roll_backs = 0
        self._start_offsets, self._sink_positions = {}, meta["sinks"]
        self._at = time.monotonic()
        if self.last_error is not None:
            logger.info("checkpoints work again, after %.0f s without", self._at - self._failing_since)
            self.last_error = None
        self._observe(self._at - began)
        return True

    def commit_soon(self) -> None:
        """Let one be made in this turn."""
        self.dirty, self._at = True, -math.inf

    def meta(self) -> dict[str, Any]:
        """Return what a checkpoint says besides the states."""
        return {
            "version": META_VERSION,
            "layout": self._parts.streams.states.layouts[0],
            "offsets": [[*partition, offset] for partition, offset in sorted(self.offsets.items())],
            "beginnings": self._parts.source.fingerprints(),
            "sinks": self._parts.sinks.position(),
            CLOCKS: self._parts.streams.silence.document(),
            **self.metadata,
        }

    def _flush(self) -> bool:
        """Return whether all outputs are written; False where a stop cannot wait for that."""
        return self._parts.broker_wait.run(self._parts.sinks.flush)

    def _save(self, rows: Iterator[tuple[str, bytes]], meta: Mapping[str, Any]) -> None:
        """Save changed streams and the meta document, all or nothing."""
        self._parts.store.save(rows, meta)

    def _commit_offsets(self) -> None:
        """Tell the source what has been processed for good."""
        self._parts.broker_wait.run(lambda: self._parts.source.commit(self.offsets))

    def _defer(self, error: Exception) -> None:
        """Go on without a checkpoint, which is tried again after the usual interval."""
        self._parts.metrics.checkpoint_failures.inc()
        self._at = time.monotonic()
        if self.last_error is None:
            self._failing_since = self._at
            interval = self._settings.state.checkpoint_interval_seconds
            logger.error("no checkpoint: %s. Scoring continues; retrying every %g s", error, interval)
        self.last_error = error

    def _observe(self, seconds: float) -> None:
        metrics = self._parts.metrics
        metrics.checkpoint_seconds.observe([seconds])
        metrics.last_checkpoint_timestamp.set_to_current_time()
        metrics.events_unsaved.set(0)
        observe_fleet(metrics, self._parts.streams)
        if seconds > self._settings.state.checkpoint_interval_seconds:
            logger.warning("a checkpoint took %.1f s, longer than state.checkpoint_interval_seconds", seconds)

    # -- roll back ----------------------------------------------------------------------------------------------------

    def roll_back(self, why: Exception) -> None:
        """Go back to the last checkpoint: streams that changed since come back from the store.

        Waits for brokers, however long they are away. Raises KafkaConnectorError where it has not helped before.
        """
        self._roll_backs += 1
        if self._roll_backs > MAX_ROLL_BACKS:
            raise KafkaConnectorError(f"no checkpoint could be made, {MAX_ROLL_BACKS} times in a row: {why}") from why
        logger.warning("rolling back to the last checkpoint: %s", why)
        self._parts.sinks.restore(self._sink_positions)
        self._parts.incidents.clear()
        self._restore(why)
        if (writer := self._parts.sinks.writer) is not None:
            self._parts.broker_wait.until_brokers_answer(writer.reopen)
        self._parts.streams.silence.restore((self._parts.store.meta() or {}).get(CLOCKS, ()))
        self._start_offsets = {}
        self.dirty = False

    def _restore(self, why: Exception) -> None:
        """Bring states, incidents and source back to the last checkpoint."""
        parts = self._parts
        if isinstance(why, UndeliveredError):
            parts.metrics.checkpoint_failures.inc()
        parts.streams.roll_back()
        parts.incidents.found(parts.store.open_incidents())
        self.offsets.update(self._start_offsets)
        parts.source.rewind(self._start_offsets)


def observe_fleet(metrics: Metrics, streams: StreamCache) -> None:
    """Show how many streams in memory are in which condition."""
    census = streams.census()
    metrics.streams_warming.set(census.warming)
    metrics.streams_blocked.set(census.blocked)
    metrics.lanes.set(census.lanes)
    metrics.device_memory.set(streams.states.recurrent.device_bytes)


def check_layout(meta: Mapping[str, Any], settings: Settings, layouts: Sequence[str], version: str) -> None:
    """Refuse states that this version cannot read at once, not when the first of these streams comes.

    `meta` is the store's, `layouts` are those that this version reads, its own first; raises StateError. Of states that
    a former version wrote the log says what becomes of them: once, as the next checkpoint names the present layout.
    """
    if meta.get("layout", layouts[0]) in layouts[1:]:
        logger.warning(
            "state directory %s: its states were written by longwatch %s in a former layout: %s",
            *(settings.state.directory, meta.get("longwatch"), TAKEN_OVER),
        )
    elif meta.get("layout", layouts[0]) != layouts[0]:
        changelog = ", and kafka.changelog_topic to a new name" if settings.changelog else ""
        raise StateError(
            f"state directory {settings.state.directory}: its states were written by longwatch"
            f" {meta.get('longwatch')} in layout {meta['layout']}, this one ({version}, model.horizons"
            f" {list(settings.model.horizons)}) reads {layouts[0]}: go back to that version and its"
            f" model.horizons, or set state.directory to a new directory{changelog}, and every stream starts from an"
            " empty state"
        )
