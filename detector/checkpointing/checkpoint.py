"""Checkpoints: what was done so far made durable as one point in the stream, and the way back to the last of them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from connectors.batches import Partition, RawBatch
from connectors.kafka.errors import KafkaConnectorError
from connectors.kafka.source import KafkaSource
from connectors.kafka.writer import UndeliveredError
from connectors.protocols import DaemonSource, NotWrittenError
from detector.checkpointing.changelog_checkpoint import ChangelogCheckpointer
from detector.checkpointing.deadlines import BrokerWait
from detector.checkpointing.sqlite import UnsavedError
from detector.checkpointing.store import SqliteStore
from detector.config.settings import Settings
from detector.engine.engine import Engine
from detector.engine.open_incidents import OpenIncidents
from detector.errors import StateError
from detector.service.factory import Sinks
from detector.service.reporter import Reporter

logger = logging.getLogger(__name__)

META_VERSION = 1
FORCED_CHECKPOINT = 20_000  # evicted streams that wait for a checkpoint in memory: at most so many
MAX_ROLL_BACKS = 10  # without a checkpoint in between: it does not mend itself
UNSAVED_SECONDS = 60.0  # without a checkpoint that is due, after which /readyz says so


class Parts(NamedTuple):
    """What has a part in a checkpoint."""

    engine: Engine
    store: SqliteStore
    sinks: Sinks
    source: DaemonSource
    incidents: OpenIncidents
    partitions: ChangelogCheckpointer | None  # None: states do not follow their partitions


class Checkpoints:
    """Knows how far the work has come since the last checkpoint. For the daemon's thread, but `overdue`."""

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        broker_wait: BrokerWait,
        reporter: Reporter,
        offsets: dict[Partition, int],
        metadata: dict[str, str],
    ) -> None:
        """`offsets` are those of the next events, and are kept up; `metadata` is what a checkpoint says of the daemon.

        `metadata`: `longwatch`, its version; `member`, the worker's name; `model`, "" while it is the first one.
        """
        self._settings, self._parts, self._broker_wait, self._reporter = settings, parts, broker_wait, reporter
        self.offsets, self.metadata = offsets, metadata
        self.dirty = False  # whether there is anything that the last one does not cover
        self.last_error: Exception | None = None  # why there is no checkpoint at present
        self._failing_since = 0.0  # monotonic, s
        self._at = time.monotonic()  # when it was made, or tried
        self._start_offsets: dict[Partition, int] = {}  # offsets at which what came since the last one begins
        self._sink_positions = parts.sinks.position()  # what the sinks held then
        self._roll_backs = 0  # since the last one

    # -- how far the work has come ------------------------------------------------------------------------------------

    def record_start(self, raw: RawBatch) -> None:
        """Note where each partition begins that had nothing since the last checkpoint."""
        for code, partition in enumerate(raw.partitions):
            if partition not in self._start_offsets:
                self._start_offsets[partition] = raw.offset[raw.partition.index(code)]

    def record_offsets(self, raw: RawBatch) -> None:
        """Note the next offset of each partition the batch came from."""
        after = np.full(len(raw.partitions), -1, np.int64)
        np.maximum.at(after, np.asarray(raw.partition, np.int64), np.asarray(raw.offset, np.int64) + 1)
        for partition, offset in zip(raw.partitions, after.tolist(), strict=True):
            if offset >= 0:
                self.offsets[partition] = offset
        self.offsets.update(raw.passed)
        self.dirty = True

    def on_placed(self, offsets: Mapping[Partition, int]) -> None:
        """Note where reading begins. It is made durable at once: a partition may be silent until after a restart."""
        if any(self.offsets.get(partition) != offset for partition, offset in offsets.items()):
            self.offsets.update(offsets)
            self.commit_soon()

    def commit_soon(self) -> None:
        """Let one be made in this turn."""
        self.dirty, self._at = True, -math.inf

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """Forget where these stand: their next owner moves them on."""
        for partition in partitions:
            self.offsets.pop(partition, None)
            self._start_offsets.pop(partition, None)

    @property
    def due(self) -> bool:
        """Whether one should be made now."""
        since = time.monotonic() - self._at
        late = self.dirty and since >= self._settings.state.checkpoint_interval_seconds
        return late or (self.backlog_full and self.last_error is None)

    @property
    def backlog_full(self) -> bool:
        """Whether so much waits for a checkpoint that no more should come."""
        engine = self._parts.engine
        much = (
            engine.streams.pending_count > FORCED_CHECKPOINT
            or engine.streams.pending_bytes > engine.settings.memory_bytes
        )
        return much or self._parts.sinks.full()

    def overdue(self) -> str:
        """Return for how long there has been none, and why; empty while that is not worth a word. For any thread."""
        error, since = self.last_error, time.monotonic() - self._failing_since
        return f"no checkpoint for {since:.0f} s: {error}" if error is not None and since > UNSAVED_SECONDS else ""

    # -- forth --------------------------------------------------------------------------------------------------------

    def commit(self) -> bool:
        """Make everything so far durable, as one point in the stream; return whether it is.

        1. Scores, alerts and dead letters are flushed, the webhook's outbox too: nothing below may cover what is not
           written. Alerts have ids that a replay gives again.
        2. Changed states, offsets and the sinks' positions go to the store, in one transaction.
        3. Offsets are committed to Kafka: for lag tools, and for a worker without this store.

        Killed before 2, the former checkpoint holds: files are cut back to it, Kafka sees the span again with equal
        scores. Killed between 2 and 3, the store's offsets rule over Kafka's.

        Where there is no room for it scoring goes on, and it is tried again after the usual interval. Raises
        UndeliveredError where brokers did not take what was written: then `roll_back`.
        """
        began = time.monotonic()
        engine, store, sinks, source, _, partitions = self._parts
        try:
            # with exactly-once the transaction flushes, too
            if not self._settings.exactly_once and not self._broker_wait.run(sinks.flush):
                logger.warning(
                    "outputs were not taken in time: what came since the last checkpoint will be scored again"
                )
                return False
            meta = self.meta()
            with engine.streams.draining() as rows:
                if partitions is not None and isinstance(source, KafkaSource):
                    partitions.commit(source, meta, self._broker_wait.run)
                else:
                    store.save(rows, (), meta)
        except (NotWrittenError, UnsavedError) as error:
            self._defer(error)
            return False
        if partitions is None:
            self._broker_wait.run(lambda: source.commit(self.offsets))
        self.dirty = False
        self._roll_backs = 0
        self._start_offsets, self._sink_positions = {}, meta["sinks"]
        self._at = time.monotonic()
        if self.last_error is not None:
            logger.info("checkpoints are made again, after %.0f s without", self._at - self._failing_since)
            self.last_error = None
        self._reporter.checkpoint(self._at - began)
        return True

    def meta(self) -> dict[str, Any]:
        """Return what a checkpoint says beside the states."""
        return {
            "version": META_VERSION,
            "layout": self._parts.engine.streams.states.layout,
            "offsets": [[*partition, offset] for partition, offset in sorted(self.offsets.items())],
            "beginnings": self._parts.source.fingerprints(),
            "sinks": self._parts.sinks.position(),
            "newest": self._reporter.newest,
            **self.metadata,
        }

    def _defer(self, error: Exception) -> None:
        """Go on without a checkpoint, which is tried again after the usual interval."""
        self._reporter.no_checkpoint()
        self._at = time.monotonic()
        if self.last_error is None:
            self._failing_since = self._at
            interval = self._settings.state.checkpoint_interval_seconds
            logger.error("no checkpoint: %s. Scoring goes on; it is tried again every %g s", error, interval)
        self.last_error = error

    # -- and back -----------------------------------------------------------------------------------------------------

    def roll_back(self, why: Exception) -> None:
        """Go back to the last checkpoint: streams that changed since come back from the store.

        Waits for brokers, however long they are away. Raises KafkaConnectorError where it has not helped before.
        """
        self._roll_backs += 1
        if self._roll_backs > MAX_ROLL_BACKS:
            raise KafkaConnectorError(f"no checkpoint could be made, {MAX_ROLL_BACKS} times in a row: {why}") from why
        logger.warning("going back to the last checkpoint: %s", why)
        engine, store, sinks, source, incidents, partitions = self._parts
        sinks.restore(self._sink_positions)
        incidents.clear()
        if partitions is not None and isinstance(source, KafkaSource):
            partitions.roll_back(source, self._broker_wait.until_brokers_answer)
        else:
            if isinstance(why, UndeliveredError):
                self._reporter.no_checkpoint()
            engine.streams.roll_back()
            incidents.found(store.open_incidents())
            self.offsets.update(self._start_offsets)
            source.rewind(self._start_offsets)
        if sinks.writer is not None and not self._settings.exactly_once:
            self._broker_wait.until_brokers_answer(sinks.writer.reopen)
        self._start_offsets = {}
        self.dirty = False


def check_layout(meta: dict[str, Any], settings: Settings, layouts: Sequence[str], version: str) -> None:
    """Refuse states that this version cannot read at once, not when the first of these streams comes.

    `meta` is the store's, `layouts` are those that this version reads, its own first; raises StateError.
    """
    if meta.get("layout", layouts[0]) not in layouts:
        changelog = ", and kafka.changelog_topic to a new name" if settings.changelog else ""
        raise StateError(
            f"state directory {settings.state.directory}: its states were written by longwatch"
            f" {meta.get('longwatch')} in layout {meta['layout']}, this one ({version}, model.horizons"
            f" {list(settings.model.horizons)}) reads {layouts[0]}: go back to that version and its"
            f" model.horizons, or set state.directory to a new directory{changelog}, and every stream learns anew"
        )
