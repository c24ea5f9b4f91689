"""Results, states and offsets in one Kafka transaction: a reader with `read_committed` sees all of it or nothing.

A transaction begins with the first record after the last one's end and ends with `commit` or `reset`. Whatever goes
wrong in between (the broker is down too long, another member has this one's partitions, another process has its name)
is a TransactionError, and after `reset` the same work can be done again in a new transaction.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from typing import Any

from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, ProducerFencedError
from kafka.structs import ConsumerGroupMetadata

from connectors.batches import Partition
from connectors.common.background import run_in_thread
from connectors.kafka.errors import KafkaConnectorError, explain_error, is_permanent
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.writer import TOO_LARGE, KafkaWriter, UndeliveredError

log = logging.getLogger(__name__)


class TransactionError(UndeliveredError):
    """The transaction cannot be committed. Roll back to what was last committed."""


class TransactionalWriter(KafkaWriter):
    """A KafkaWriter all of whose records since the last `commit` become visible together, or never.

    `transactional_id` belongs to this worker: a second process that connects with it ends the first one's transaction.
    """

    def __init__(
        self, settings: KafkaSettings, transactional_id: str, waiting: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(settings, waiting)
        self.transactional_id = transactional_id
        self._in_transaction = False

    def commit(self, offsets: Mapping[Partition, int], member: ConsumerGroupMetadata | None) -> None:
        """Commit what was sent and these offsets of the next events to read, both or neither.

        `member` is the consumer's membership: the broker refuses offsets of a member that has left. Does nothing if
        nothing was sent. Raises TransactionError; whether the broker has committed is known
        only after `reset`, by reading.
        """
        if not self._in_transaction:
            return
        # without a generation the broker would accept the offsets from anybody
        if member is None or member.generation_id < 0:
            self._failed("", KafkaError("this worker is not a member of the group now"))
        # before the offsets: the next owner of a partition waits for the transactions that it finds in the changelog
        self.flush()
        producer = self._producer
        if producer is None:  # closed meanwhile
            raise TransactionError("the Kafka writer is closed")
        wanted = {TopicPartition(*p): OffsetAndMetadata(at, "", -1) for p, at in offsets.items()}
        if wanted:
            self._within(lambda: producer.send_offsets_to_transaction(wanted, member))
        self._within(producer.commit_transaction)
        self._in_transaction = False

    def reset(self) -> None:
        """Abandon the transaction. The next use connects again, which first ends what is still open."""
        self._in_transaction = False
        super().reset()

    def close(self) -> None:
        """Close; what has not been committed is aborted."""
        if self._closed:
            return
        self._closed = True
        producer, unfinished = self._producer, self._in_transaction
        self._producer, self._in_transaction = None, False
        if producer is None:
            return
        if unfinished and self._failure is None:
            with contextlib.suppress(KafkaConnectorError):  # otherwise it ends by its time-out
                self._within(producer.abort_transaction, seconds=1.0)
        self._release(producer)

    def _connected(self) -> KafkaProducer:
        if self._producer is None:
            producer = super()._connected()
            try:
                self._within(producer.init_transactions)
            except BaseException:
                self._producer = self._failure = None  # nothing was sent, so there is nothing to roll back
                self._release(producer)
                raise
        return self._producer

    def _before_record(self, producer: KafkaProducer) -> None:
        if self._in_transaction:
            return
        try:
            producer.begin_transaction()
        except KafkaError as error:
            self._failed("", error)
        self._in_transaction = True
        if self._failure is not None:
            raise self._failure

    def _topics(self) -> list[str]:
        return [*super()._topics(), *(self.settings.changelog_of(topic) for topic in self.settings.topics)]

    def _producer_options(self) -> dict[str, Any]:
        return {
            "transactional_id": self.transactional_id,
            "transaction_timeout_ms": round(self.settings.transaction_timeout_seconds * 1000),
        }

    def _within(self, work: Callable[[], None], seconds: float | None = None) -> None:
        """Run a call of the client that has no time-out; TransactionError if it fails or takes too long."""
        # after the transaction's own time-out the broker has aborted it, so success is impossible; and the client
        # (3.0.12) sometimes never finishes a request whose broker was killed
        limit = min(self.settings.delivery_timeout_seconds, self.settings.transaction_timeout_seconds)
        limit = limit if seconds is None else seconds
        done = run_in_thread(work)
        if not wait([done], limit).done:
            self._failed("", KafkaError(f"no answer of the transaction's coordinator within {limit:.0f} s"))
        elif isinstance(error := done.exception(), KafkaError):
            self._failed("", error)
        elif error is not None:
            raise error
        if self._failure is not None:
            raise self._failure

    def _failure_of(self, topic: str, error: BaseException) -> KafkaConnectorError:
        if isinstance(error, TOO_LARGE) or is_permanent(error):
            return super()._failure_of(topic, error)
        where = f" (topic {topic})" if topic else ""
        # itself, or an error that the client derives from it
        if ProducerFencedError.__name__ in f"{type(error)} {error}":
            return TransactionError(
                f"the transaction was ended by the broker{where}: it was longer than kafka.transaction_timeout_seconds,"
                f" or another process has the transactional id {self.transactional_id}"
            )
        why = explain_error(error, self.settings, topic=topic, right="Write")
        return TransactionError(f"the transaction failed{where}: {why}")


def end_transaction_of(settings: KafkaSettings, transactional_id: str) -> None:
    """End the open transaction of a dead worker; one that is still alive rolls back to its last commit.

    Raises KafkaConnectorError if the broker does not allow it.
    """
    writer = TransactionalWriter(settings, transactional_id)
    try:
        writer._connected()
    finally:
        writer.close()
