"""A changelog as some worker wrote it, and stores to restore to."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from connectors.batches import Partition
from connectors.kafka.changelog_format import Mark, compressed, mark_record, state_key, state_records
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.transactions import TransactionalWriter
from detector.checkpointing.recovery import ChangelogRecovery, Restored
from detector.checkpointing.store import SqliteStore
from tests.brokers import Broker
from tests.connectors.kafka.support import end_transaction
from tests.daemon.support import until

LAYOUT, FORMER_LAYOUT = "00ff", "00fe"


class World:
    """A source topic of two partitions, its changelog as some worker wrote it, and stores to restore to."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker, self.folder = broker, folder
        self.topic = broker.create_topic(f"events-{uuid.uuid4().hex[:10]}", 2)
        self.settings = KafkaSettings(
            bootstrap_servers=broker.bootstrap,
            topics=[self.topic],
            group_id="group",
            alerts_topic="",
            dead_letter_topic="",
            transaction_timeout_seconds=900,
        )
        self.changelog = self.settings.changelog_of(self.topic)
        self.partitions = [Partition(self.topic, 0), Partition(self.topic, 1)]
        self._open: list[Any] = []

    def writer(self, name: str = "former") -> TransactionalWriter:
        writer = TransactionalWriter(self.settings, f"longwatch-{self.topic}-{name}")
        self._open.append(writer.close)
        return writer

    def write(
        self,
        states: dict[str, bytes | None],
        offset: int,
        *,
        partition: int = 0,
        writer: TransactionalWriter | None = None,
        commit: bool = True,
        mark: bool = True,
        group: str = "group",
        layout: str = LAYOUT,
        streams: int = 0,
    ) -> None:
        """Write what a checkpoint of one partition writes."""
        writer = writer or self.writer()
        source = self.partitions[partition]
        for name, row in states.items():
            if row is None:
                writer.send(self.changelog, state_key(name), None, None, partition)
                continue
            for key, value in state_records(name, source, offset, compressed(row)):
                writer.send(self.changelog, key, value, None, partition)
        if mark:
            said = Mark(group=group, member=writer.transactional_id, layout=layout, longwatch="0.0.9", streams=streams)
            writer.send(self.changelog, *mark_record(source, offset, said), None, partition)
        writer.flush()
        if commit:
            end_transaction(writer)

    def make_changelog(self, **configs: str) -> None:
        """Make the changelog topic before longwatch does."""
        admin = self.admin()
        admin.create_topics([NewTopic(self.changelog, 2, 1, topic_configs={"cleanup.policy": "compact"} | configs)])
        admin.wait_for_topics([self.changelog])

    def admin(self) -> KafkaAdminClient:
        admin = KafkaAdminClient(bootstrap_servers=self.broker.bootstrap)
        self._open.append(admin.close)
        return admin

    def store(self, name: str = "mine") -> SqliteStore:
        store = SqliteStore(self.folder / name)
        self._open.append(store.close)
        return store

    def recovery(self, store: SqliteStore, **more: Any) -> ChangelogRecovery:
        """Start one, with nothing asked for yet."""
        recovery = ChangelogRecovery(
            self.settings, store, layouts=[LAYOUT, FORMER_LAYOUT], member="longwatch-group-me", **more
        )
        recovery.start()
        self._open.append(recovery.stop)
        return recovery

    def restore(
        self, store: SqliteStore, *partitions: int, recovery: ChangelogRecovery | None = None
    ) -> dict[int, Restored]:
        """Restore partitions, as an assignment does."""
        mine = recovery or self.recovery(store)
        wanted = [self.partitions[number] for number in partitions or (0,)]
        store.restrict_to(wanted)
        mine.restore(wanted)
        found: dict[int, Restored] = {}

        def all_there() -> bool:
            found.update({restored.partition.partition: restored for restored in mine.finished()})
            return {partition.partition for partition in wanted} <= found.keys()  # others may be done as well

        until(all_there, "the partitions are restored")
        if recovery is None:
            mine.stop()
        return found

    def close(self) -> None:
        for close in reversed(self._open):
            close()


def warned(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
