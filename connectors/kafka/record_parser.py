"""Fetched bytes to records, without an object and a dozen calls for each: a compiled scan finds all positions.

kafka-python spends 5.6 us a record on this, two thirds of what a poll costs; here it is a tenth (`make bench`).
Fetching, positions, checksums and errors stay the client's.
"""

from __future__ import annotations

import itertools
import logging
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
import zstandard
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError, KafkaError
from kafka.protocol.consumer import IsolationLevel
from numpy.typing import NDArray

from connectors.kafka.decompress import TooLargeError, decompressed
from connectors.kafka.raw_record import RawRecord, raw_record

log = logging.getLogger(__name__)

# Brokers take batches of 1 MiB by default, and JSON shrinks to a tenth or a twentieth
MAX_BATCH_BYTES = 32 << 20
MAX_RATIO = 32  # where brokers take larger batches, these may come to so many times their size
MAX_POLL_BYTES = 8 << 20  # unpacked for one poll, but for the last batch
MALFORMED = (
    *(struct.error, zlib.error, zstandard.ZstdError, ValueError, IndexError, TypeError, EOFError, RuntimeError),
    *(AssertionError, OverflowError),
)
MIN_OLD_MESSAGE_BYTES = 14  # of format 0: checksum, format, attributes, two lengths
MIN_RECORD_BYTES = 7  # length, attributes, two deltas, two lengths, number of headers

_OLD_LENGTH = struct.Struct(">8xi")  # behind an offset, in formats 0 and 1
_TIME, _OFFSET, _KEY, _KEY_END, _VALUE, _VALUE_END = range(6)  # columns of a scan; positions are -1 for null


def use_compiled_parser(consumer: KafkaConsumer) -> None:
    """Let the consumer's poll return lists of `RawRecord` in place of its own ConsumerRecord.

    And let its `highwater` be the end of what can be read: where only committed records are, the last stable offset.
    """
    # patched in the client: its fetcher uses this class, once for each partition fetched, ...
    fetcher = consumer._fetcher
    fetcher.PartitionRecords = CompiledPartitionRecords
    append, parse, unpacked = fetcher._append, fetcher._parse_fetched_data, 0

    def bounded(drained: dict[Any, Any], part: Any, most: int, update_offsets: bool) -> int:
        nonlocal unpacked
        taken: int = append(drained, part, most, update_offsets)
        unpacked = part.unpacked + (unpacked if len(drained) > 1 else 0)
        return most if unpacked > MAX_POLL_BYTES else taken

    def stable(fetched: Any) -> Any:
        part = parse(fetched)
        state, end = fetcher._subscriptions.assignment.get(fetched.topic_partition), fetched.partition_data
        if part is not None and state is not None and end.last_stable_offset is not None:
            state.highwater = end.last_stable_offset
        return part

    fetcher._append = bounded  # ... this to add a partition's records to those of a poll ...
    if fetcher._isolation_level == IsolationLevel.READ_COMMITTED:
        fetcher._parse_fetched_data = stable  # ... and this to read a broker's answer about a partition


class CompiledPartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python has no types
    """What one fetch brought of one partition."""

    unpacked = 0  # bytes since `take` was last called

    def take(self, n: int | None = None) -> list[RawRecord]:
        """Return the next records, at most n: fewer if they are large."""
        self._maybe_raise_next_inline_exception()
        self.unpacked = 0
        records: list[RawRecord] = []
        try:
            for record in itertools.islice(self.record_iterator, 0, n):
                records.append(record)
                if self.unpacked > MAX_POLL_BYTES:
                    break
        except Exception as error:
            if not records:
                raise
            self._next_inline_exception = error  # raised by the next call
        return records

    def _maybe_skip_record(self, record: RawRecord) -> bool:
        """Return whether a record lies before the requested offset: a batch comes whole."""
        return record[0] < self.fetch_offset  # type: ignore[no-any-return]

    def _unpack_records(self, tp: TopicPartition, records: Any, *deserializers: None) -> Iterator[RawRecord]:
        try:
            while (batch := records.next_batch()) is not None:
                if self.check_crcs and not batch.validate_crc():
                    raise _corrupt(tp, batch.base_offset)
                if batch.magic < 2:  # written before Kafka 0.11
                    yield from self._unpack_old(tp, batch)
                    continue
                self.leader_epoch = batch.leader_epoch
                if self._wanted(batch):
                    size, found = _unpacked(tp, batch)
                    self.unpacked += size
                    for record in found:
                        self.next_fetch_offset = record[0] + 1
                        yield record
                self.next_fetch_offset = batch.next_offset  # compaction may have taken the last record
            self.drain()
        except KafkaError:
            raise
        except MALFORMED as error:  # raised by the client's parsers for malformed bytes
            raise CorruptRecordError(
                f"{tp.topic}/{tp.partition}: what was fetched from offset {self.next_fetch_offset} on is no batch of"
                f" records ({type(error).__name__})"
            ) from None

    def _unpack_old(self, tp: TopicPartition, message: Any) -> Iterator[RawRecord]:
        """Yield the records of a message in format 0 or 1; a compressed one holds others, the last under its offset."""
        if codec := message.compression_type:
            message._assert_has_codec(codec)
            _, packed = message._read_key_value(message.KEY_OFFSET_V1 if message.magic else message.KEY_OFFSET_V0)
            packed = packed or b""
            if (data := _bounded(tp, codec, packed, message.base_offset, message.base_offset)) is None:
                self.unpacked += len(packed)
                self.next_fetch_offset = message.base_offset + 1
                yield message.base_offset, -1 if message._timestamp is None else message._timestamp, None, packed
                return
            self.unpacked += len(data)
            _check_lengths(tp, message.base_offset, data)
            # where the client keeps what it decompresses itself, without a limit
            message._buffer, message._decompressed = memoryview(data), True
        for record in message:
            if self.check_crcs and not record.validate_crc():
                raise _corrupt(tp, record.offset)
            self.next_fetch_offset = record.offset + 1
            yield raw_record(record)

    def _wanted(self, batch: Any) -> bool:
        """Return whether a batch holds records to read: no transaction marker, nothing that was aborted."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):  # what follows is of the producer's next transaction
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return False
        return not batch.is_control_batch


def _corrupt(tp: TopicPartition, offset: int) -> CorruptRecordError:
    return CorruptRecordError(f"{tp.topic}/{tp.partition}: the records from offset {offset} on are damaged")


def _bounded(tp: TopicPartition, codec: int, packed: bytes, first: int, last: int) -> bytes | None:
    """Return the bytes of the records first..last, or None where they come to too much; CorruptRecordError."""
    most = max(MAX_BATCH_BYTES, MAX_RATIO * len(packed))
    try:
        return decompressed(codec, packed, most)
    except TooLargeError:
        log.warning(
            "%s/%d, offsets %d to %d: %d bytes that decompress to more than %d are not unpacked but rejected as one",
            *(*tp, first, last, len(packed), most),
        )
        return None
    except ValueError:
        raise _corrupt(tp, first) from None


def _check_lengths(tp: TopicPartition, offset: int, messages: bytes) -> None:
    """Refuse messages whose lengths do not add up: the client would loop over them for ever."""
    at = 0
    while at < len(messages):
        (length,) = _OLD_LENGTH.unpack_from(messages, at)
        if length < MIN_OLD_MESSAGE_BYTES:
            raise _corrupt(tp, offset)
        at += _OLD_LENGTH.size + length
    if at != len(messages) or not messages:
        raise _corrupt(tp, offset)


def _unpacked(tp: TopicPartition, batch: Any) -> tuple[int, Iterator[RawRecord]]:
    """Return how many bytes a batch in format 2 comes to, and its records; CorruptRecordError if it is damaged.

    A batch that would decompress to too much becomes one record with the compressed bytes, which decoding rejects like
    any other unreadable record.
    """
    data = bytes(memoryview(batch._buffer)[batch._pos :])
    if codec := batch.compression_type:
        batch._assert_has_codec(codec)
        packed = data
        unpacked = _bounded(tp, codec, packed, batch.base_offset, batch.last_offset)
        if unpacked is None:
            return len(packed), iter([(batch.last_offset, batch.max_timestamp, None, packed)])
        data = unpacked
    count = batch.records_count
    if not 0 <= count <= len(data) // MIN_RECORD_BYTES:
        raise _corrupt(tp, batch.base_offset)
    places = np.empty((count, 6), np.int64)
    if _scan(np.frombuffer(data, np.uint8), 0, places) != len(data):
        raise _corrupt(tp, batch.base_offset)
    if batch.timestamp_type == batch.LOG_APPEND_TIME:
        times = [batch.max_timestamp] * len(places)
    else:
        times = (batch.first_timestamp + places[:, _TIME]).tolist()
    offsets = (batch.base_offset + places[:, _OFFSET]).tolist()
    _, _, key, key_end, value, value_end = places.T.tolist()
    keys = [data[a:b] if a >= 0 else None for a, b in zip(key, key_end, strict=True)]
    values = [data[a:b] if a >= 0 else None for a, b in zip(value, value_end, strict=True)]
    return len(data), zip(offsets, times, keys, values, strict=True)


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile a function and cache the code on disk, if possible.

    `training.network.compiled` has a second one, since connectors and training may not import each other.
    """
    try:
        return numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # numba found no cache folder that it may write to
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
    """Write where each record's parts lie; return the position after the last one, -1 if the bytes are no records.

    A record: length, attributes (a byte), time delta, offset delta, key, value, headers; all but the attributes varints
    or varint lengths. Headers are skipped.
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
