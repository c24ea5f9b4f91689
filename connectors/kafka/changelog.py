"""The changelog topics: created with the right settings, checked, and read by partition."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, NewTopic
from kafka.errors import (
    InvalidPartitionsError,
    KafkaError,
    NoError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)
from kafka.protocol.consumer import OffsetSpec

from connectors.batches import Partition
from connectors.kafka.changelog_format import MIN_MESSAGE_BYTES, ChangelogError
from connectors.kafka.client_internals import position_of
from connectors.kafka.client_options import client_options
from connectors.kafka.errors import explain_error, is_permanent, principal
from connectors.kafka.polling import ANSWER_MS, BOOTSTRAP_MS, consumer_options, new_consumer, polled_records
from connectors.kafka.raw_record import RawRecord
from connectors.kafka.settings import KafkaSettings

log = logging.getLogger(__name__)

TOPIC_SETTINGS = {
    "cleanup.policy": "compact",
    # The newest segment is not compacted: with the broker's 1 GB, states would be read back a hundred times over
    "segment.bytes": str(64 << 20),
    "min.cleanable.dirty.ratio": "0.3",  # at most so much of what is read back has been superseded
}
RIGHTS = "Create, Describe, DescribeConfigs, Read and Write"
FETCH_BYTES = 8 << 20  # of one partition: records are 10 KB, and the client waits for an answer to ask again
WAIT_MS = 100  # a fetch's longest wait: the partitions to read may change meanwhile
MAX_RECORDS = 2_000  # of one poll: some 20 MB


class Changelogs:
    """Reads changelogs for one thread. Partitions are those of the source; each has one of the same number there."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Connect; raises KafkaError if no broker answers, AuthenticationError, TlsError."""
        self._settings = settings
        self._admin = KafkaAdminClient(**client_options(settings), bootstrap_timeout_ms=BOOTSTRAP_MS)
        options = consumer_options(settings, read_committed=True, max_poll_records=MAX_RECORDS) | {
            "group_id": None,
            "group_instance_id": None,
            "max_partition_fetch_bytes": FETCH_BYTES,
            "fetch_max_wait_ms": WAIT_MS,
        }
        try:
            self._consumer = new_consumer(options)
        except BaseException:
            self._admin.close()
            raise
        self._identities: dict[str, str] = {}  # of topics that have been checked, by the source topic's name

    def prepare(self, topic: str) -> int:
        """Ensure that the changelog of a source topic exists and is configured right; return the source's partitions.

        Creates it if missing, and adds partitions if the source has more. Raises ChangelogError with what is wrong.
        """
        name = self._settings.changelog_of(topic)
        wanted = len(self._describe(topic, "Describe")["partitions"])
        try:
            present = len(self._describe(name, RIGHTS)["partitions"])
        except UnknownTopicOrPartitionError:
            self._make(name, wanted)
            present = wanted
        if present < wanted:
            self._grow(name, wanted)
            log.warning(
                "topic %s has %d partitions now, %d before: added as many to %s. Streams whose keys move to another"
                " partition start from scratch there",
                *(topic, wanted, present, name),
            )
        self._check(name)
        self._identities[topic] = str(self._describe(name, RIGHTS).get("topic_id") or "")
        return wanted

    def identity(self, topic: str) -> str:
        """Return what distinguishes a prepared changelog from a later one of the same name."""
        return self._identities[topic]

    def ends(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, int]]:
        """Return the first offset and the one after the last, open transactions included, of each changelog."""
        changelogs = {self._changelog(p): p for p in partitions}
        # the admin client reads uncommitted, so that open transactions count
        found = self._admin.list_partition_offsets(dict.fromkeys(changelogs, OffsetSpec.LATEST), timeout_ms=ANSWER_MS)
        first = self._consumer.beginning_offsets(list(changelogs), timeout_ms=ANSWER_MS)
        return {p: (first[log_], found[log_].offset) for log_, p in changelogs.items()}

    def follow(self, positions: Mapping[Partition, int]) -> None:
        """Read these partitions from now on, each from a position, and no others."""
        changelogs = {self._changelog(p): at for p, at in positions.items()}
        self._consumer.assign(list(changelogs))
        for partition, at in changelogs.items():
            if position_of(self._consumer, partition, ANSWER_MS) != at:
                self._consumer.seek(partition, at)

    def poll(self, timeout_ms: int) -> dict[Partition, list[RawRecord]]:
        """Return committed records by the source's partition."""
        if not self._consumer.assignment():
            return {}
        polled = polled_records(self._consumer, timeout_ms)
        return {self._source(changelog): records for changelog, records in polled.items()}

    def position(self, partition: Partition) -> int:
        """Return the offset of the next record to read: it also skips transaction markers."""
        return position_of(self._consumer, self._changelog(partition), ANSWER_MS) or 0

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(KafkaError):
            self._consumer.close(timeout_ms=ANSWER_MS)
        with contextlib.suppress(KafkaError):
            self._admin.close()

    def _changelog(self, source: Partition) -> TopicPartition:
        return TopicPartition(self._settings.changelog_of(source.topic), source.partition)

    def _source(self, changelog: TopicPartition) -> Partition:
        topic = next(t for t in self._identities if self._settings.changelog_of(t) == changelog.topic)
        return Partition(topic, changelog.partition)

    def _describe(self, topic: str, right: str) -> dict[str, Any]:
        found = self._admin.describe_topics([topic])
        if not found or not found[0]["partitions"]:
            error = for_code(found[0]["error_code"]) if found else UnknownTopicOrPartitionError
            with self._explained(topic, right):
                raise (UnknownTopicOrPartitionError if error is NoError else error)(topic)
        return dict(found[0])

    @contextlib.contextmanager
    def _explained(self, topic: str, right: str, otherwise: str = "") -> Iterator[None]:
        """Turn permanent errors into a ChangelogError; `right` is the operation on the topic."""
        try:
            yield
        except KafkaError as error:
            if not is_permanent(error):
                raise
            why = explain_error(error, self._settings, topic=topic, right=right)
            raise ChangelogError(f"the changelog of group {self._settings.group_id}: {why}{otherwise}") from None

    def _make(self, name: str, partitions: int) -> None:
        replicas = self._settings.changelog_replication_factor
        configs = topic_settings(replicas)
        otherwise = f"; or create the topic with {partitions} partitions and cleanup.policy=compact"
        with (
            self._explained(name, RIGHTS, otherwise),
            contextlib.suppress(TopicAlreadyExistsError),
        ):  # by another worker
            self._admin.create_topics([NewTopic(name, partitions, replicas, topic_configs=configs)])
            log.info("created the changelog topic %s with %d partitions", name, partitions)
        with self._explained(name, RIGHTS):
            self._admin.wait_for_topics([name])

    def _grow(self, name: str, partitions: int) -> None:
        with self._explained(name, "Alter"), contextlib.suppress(InvalidPartitionsError):  # another worker was faster
            self._admin.create_partitions({name: partitions})
        self._admin.wait_for_topics([name])

    def _check(self, name: str) -> None:
        """Refuse a topic whose settings would lose states."""
        described = self._admin.describe_configs([ConfigResource("TOPIC", name)], config_filter="all")
        settings = {key: value["value"] for key, value in described["topic"][name].items()}
        if not settings:
            log.warning(
                "the settings of the changelog topic %s cannot be seen: grant %s DescribeConfigs on it, and check"
                " that its cleanup.policy is compact",
                *(name, principal(self._settings)),
            )
        if problem := settings_problem(name, settings):
            raise ChangelogError(problem)


def topic_settings(replicas: int) -> dict[str, str]:
    """Return the settings of a new changelog with so many replicas."""
    return TOPIC_SETTINGS | ({"min.insync.replicas": "2"} if replicas > 2 else {})


def settings_problem(name: str, settings: Mapping[str, str]) -> str:
    """Return why a changelog with these settings would lose states, and how to mend it; empty if it would not."""
    if "compact" not in settings.get("cleanup.policy", "compact") or "delete" in settings.get("cleanup.policy", ""):
        return (
            f"the changelog topic {name} has cleanup.policy={settings['cleanup.policy']}, which deletes states that did"
            f" not change for long: kafka-configs.sh --alter --topic {name} --add-config cleanup.policy=compact"
        )
    most = int(settings.get("max.message.bytes") or 1 << 20)
    return str(too_small(name, most)) if most < MIN_MESSAGE_BYTES else ""


def too_small(changelog: str, most_bytes: int) -> ChangelogError:
    """Return the error for a changelog that takes not even small parts of a state."""
    return ChangelogError(
        f"the changelog topic {changelog} has max.message.bytes={most_bytes}, longwatch needs {MIN_MESSAGE_BYTES} or"
        f" more: kafka-configs.sh --alter --topic {changelog} --add-config max.message.bytes=1048588"
    )
