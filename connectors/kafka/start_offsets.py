"""Where reading begins in a partition: at a known offset, else at the group's committed one, else by the reset."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from connectors.kafka.errors import explain_error
from connectors.kafka.polling import ANSWER_MS
from connectors.kafka.settings import KafkaSettings

log = logging.getLogger(__name__)


class StartOffsets:
    """Finds start offsets for one member of a group.

    New partitions and topics, created after reading has begun, are read from their beginning whatever
    auto_offset_reset says: partitions of topics that this member has read, now or before (`topics_read`), and topics
    that did not exist when it joined.
    """

    def __init__(self, settings: KafkaSettings, topics_read: Iterable[str]) -> None:
        self._settings = settings
        self._topics_read = set(topics_read)
        self._new: set[TopicPartition] = set()  # assigned partitions that are read from their beginning
        self.end: dict[TopicPartition, int] = {}  # of assigned partitions, when it was last looked up

    def note_assigned(self, partitions: Iterable[TopicPartition], topics_at_first: Collection[str] | None) -> None:
        """Note newly assigned partitions; `topics_at_first`: topics that existed when this member joined, if known."""
        for partition in partitions:
            known = topics_at_first is None or partition.topic in topics_at_first
            new = partition.topic in self._topics_read or not known
            (self._new.add if new else self._new.discard)(partition)
        self._topics_read.update(partition.topic for partition in partitions)

    def resolve(
        self,
        consumer: KafkaConsumer,
        known: Mapping[TopicPartition, int | None],
        reached: Mapping[TopicPartition, int],
        *,
        refused: bool = False,
    ) -> dict[TopicPartition, int]:
        """Return the offset to read each partition from, given the `known` ones (None: unknown).

        Where nothing is known and this member has `reached` an offset before the partition was taken away, that counts
        unless another member has committed more since. An offset outside of what the broker holds is logged. One that
        is too low moves to the lowest; one beyond the end moves by the reset, but only once a fetch from there was
        `refused` (the end may be moving): a topic that was deleted and created again may hold events already. If the
        broker does not answer, known offsets are returned as they are, and others are missing.
        """
        partitions = list(known)
        wanted = {partition: (offset, "offset") for partition, offset in known.items() if offset is not None}
        try:
            first = consumer.beginning_offsets(partitions, timeout_ms=ANSWER_MS)
            end = consumer.end_offsets(partitions, timeout_ms=ANSWER_MS)
            for partition in partitions:
                if partition not in wanted:
                    committed = consumer.committed(partition, timeout_ms=ANSWER_MS)
                    before = reached.get(partition)
                    if committed is not None or before is not None:
                        wanted[partition] = max(committed or 0, before or 0), "committed offset"
        except (KafkaError, KeyError) as error:  # KeyError: the client's, where a partition has no answer
            # wrong offsets are refused by the next fetch
            log.warning("Kafka does not say which offsets it holds (%s)", explain_error(error, self._settings))
            return {partition: offset for partition, (offset, _) in wanted.items()}
        found: dict[TopicPartition, int] = {}
        for partition in partitions:
            low, high = first[partition], end[partition]
            self.end[partition] = high
            reset = low if self._settings.auto_offset_reset == "earliest" else high
            begin = low if partition in self._new else reset
            offset, name = wanted.get(partition, (begin, "auto_offset_reset"))
            valid = reset if refused and offset > high else max(offset, low)
            if valid != offset:
                log.warning(
                    "%s/%d: %s %d is out of range, the broker holds %d to %d (%s): reading from %d",
                    *(partition.topic, partition.partition, name, offset, low, high),
                    "the records between were deleted" if offset < low else "was the topic deleted and created again?",
                    valid,
                )
            found[partition] = valid
        return found
