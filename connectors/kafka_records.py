"""Fetched bytes to records, without an object and a dozen calls for each: a compiled scan finds where things lie.

kafka-python spends 5.6 us a record on this, two thirds of what a poll costs; here it is a tenth (`longwatch bench`).
Everything else stays the client's: fetching, positions, checksums, decompression, errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from numpy.typing import NDArray

Record = tuple[int, int, bytes | None, bytes | None]  # offset, timestamp in ms (-1: none), key, value

_TIME, _OFFSET, _KEY, _KEY_END, _VALUE, _VALUE_END = range(6)  # columns of a scan; positions are -1 for null


def use_quick_records(consumer: KafkaConsumer) -> None:
    """Let the consumer's poll return lists of `Record` in place of its own ConsumerRecord."""
    # the one seam in the client: its fetcher asks itself for this class, once for each partition fetched
    consumer._fetcher.PartitionRecords = _QuickRecords


class _QuickRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python has no types
    """What one fetch brought of one partition."""

    def _maybe_skip_record(self, record: Record) -> bool:
        """Tell whether a record lies before the offset that was asked for: a batch comes whole."""
        return record[0] < self.fetch_offset  # type: ignore[no-any-return]

    def _unpack_records(self, tp: TopicPartition, records: Any, *deserializers: None) -> Iterator[Record]:
        while (batch := records.next_batch()) is not None:
            if self.check_crcs and not batch.validate_crc():
                raise _corrupt(tp, batch.base_offset)
            if batch.magic < 2:  # written before Kafka 0.11
                for slow in batch:
                    if self.check_crcs and not slow.validate_crc():
                        raise _corrupt(tp, slow.offset)
                    self.next_fetch_offset = slow.offset + 1
                    yield _record_of(slow)
                continue
            self.leader_epoch = batch.leader_epoch
            if self._wanted(batch):
                for record in _unpacked(tp, batch):
                    self.next_fetch_offset = record[0] + 1
                    yield record
            self.next_fetch_offset = batch.next_offset  # compaction may have taken the last record
        self.drain()

    def _wanted(self, batch: Any) -> bool:
        """Tell whether a batch holds records for us: no transaction's own mark, nor what an aborted one wrote."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):  # what follows is of the producer's next transaction
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return False
        return not batch.is_control_batch


def _corrupt(tp: TopicPartition, offset: int) -> CorruptRecordError:
    return CorruptRecordError(f"{tp.topic}/{tp.partition}: the records from offset {offset} on are damaged")


def _record_of(slow: Any) -> Record:
    return slow.offset, -1 if slow.timestamp is None else slow.timestamp, slow.key, slow.value


def _unpacked(tp: TopicPartition, batch: Any) -> Iterator[Record]:
    """Yield the records of a batch in format 2. Raises CorruptRecordError where its bytes are none."""
    iter(batch)  # decompresses
    data = bytes(batch._buffer)
    places = np.empty((batch.records_count, 6), np.int64)
    if _scan(np.frombuffer(data, np.uint8), batch._pos, places) != len(data):
        raise _corrupt(tp, batch.base_offset)
    if batch.timestamp_type == batch.LOG_APPEND_TIME:
        times = [batch.max_timestamp] * len(places)
    else:
        times = (batch.first_timestamp + places[:, _TIME]).tolist()
    offsets = (batch.base_offset + places[:, _OFFSET]).tolist()
    _, _, key, key_end, value, value_end = places.T.tolist()
    keys = [data[a:b] if a >= 0 else None for a, b in zip(key, key_end, strict=True)]
    values = [data[a:b] if a >= 0 else None for a, b in zip(value, value_end, strict=True)]
    return zip(offsets, times, keys, values, strict=True)


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile a function, and keep the code on disk where there is a folder for it."""
    try:
        return numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # numba found none that it may write to
        return numba.njit(function, nogil=True)


@_compiled
def _varint(data: NDArray[np.uint8], at: int) -> tuple[Any, int]:
    """Return the zigzag varint at a position, and the position after it; -1 where it does not end."""
    bits = np.uint64(0)
    for k in range(10):
        if at >= len(data):
            return 0, -1
        byte = data[at]
        at += 1
        bits |= np.uint64(byte & 0x7F) << np.uint64(7 * k)
        if byte < 0x80:
            return np.int64(bits >> np.uint64(1)) ^ -np.int64(bits & np.uint64(1)), at
    return 0, -1


@_compiled
def _bytes(data: NDArray[np.uint8], at: int) -> tuple[int, int, int]:
    """Return where a nullable byte string begins and ends (both -1: null), and the position after it; or -1."""
    length, at = _varint(data, at)
    if at < 0 or length < 0:
        return -1, -1, at
    return (at, at + length, at + length) if length <= len(data) - at else (-1, -1, -1)


@_compiled
def _scan(data: NDArray[np.uint8], at: int, places: NDArray[np.int64]) -> int:
    """Write where each record's parts lie; return the position after the last one, -1 where the bytes are no records.

    A record: length, attributes (a byte), time delta, offset delta, key, value, headers; all but the attributes varints
    or varint lengths. Headers are passed over.
    """
    for i in range(len(places)):
        length, at = _varint(data, at)
        if at < 0 or length < 1 or length > len(data) - at:
            return -1
        end = at + length
        places[i, _TIME], at = _varint(data, at + 1)
        if at < 0:
            return -1
        places[i, _OFFSET], at = _varint(data, at)
        if at < 0:
            return -1
        places[i, _KEY], places[i, _KEY_END], at = _bytes(data, at)
        if at < 0:
            return -1
        places[i, _VALUE], places[i, _VALUE_END], at = _bytes(data, at)
        if at < 0 or at > end:
            return -1
        at = end
    return at
