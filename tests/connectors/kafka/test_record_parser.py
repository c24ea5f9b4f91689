"""Records out of fetched bytes equal kafka-python's, for anything a producer may write."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from connectors.kafka.record_parser import CompiledPartitionRecords, _scan

PARTITION = TopicPartition("metrics", 3)
NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)

some_bytes = st.none() | st.binary(max_size=300)
headers = st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=200)), max_size=3)
written = st.lists(
    st.tuples(st.integers(0, 2**42), some_bytes, some_bytes, headers), min_size=1, max_size=40
)  # timestamp, key, value, headers


def built(records, *, magic=2, compression=NONE, first=0, **options) -> bytes:
    builder = MemoryRecordsBuilder(magic, compression, 1 << 24, **options)
    for timestamp, key, value, header in records:
        assert builder.append(timestamp, key, value, header)
    builder.close()
    data = bytearray(builder.buffer())
    if magic == 2:
        struct.pack_into(">q", data, 0, first)  # the broker does this; the checksum leaves it out
    return bytes(data)


def read(way, data: bytes, *, fetch_offset=0, **options):
    """Return the records that one of the two ways finds, and where the next fetch would begin."""
    part = way(fetch_offset, PARTITION, MemoryRecords(data), **options)
    found = []
    while part:
        found += part.take(7)
    return found, part.next_fetch_offset, part.leader_epoch


def assert_both_ways_agree(data: bytes, **options) -> int:
    quick, *rest = read(CompiledPartitionRecords, data, **options)
    slow, *expected = read(Fetcher.PartitionRecords, data, **options)
    assert quick == [(r.offset, -1 if r.timestamp is None else r.timestamp, r.key, r.value) for r in slow]
    assert rest == expected
    return len(quick)


@settings(deadline=None)  # the first call compiles
@given(records=written, compression=st.sampled_from([NONE, GZIP, SNAPPY, LZ4, ZSTD]), first=st.integers(0, 2**60))
def test_parsed_records_equal_the_clients(records, compression, first):
    data = built(records, compression=compression, first=first)

    assert assert_both_ways_agree(data, fetch_offset=first) == len(records)


@settings(deadline=None)  # the first call compiles
@given(records=st.lists(st.tuples(st.integers(0, 2**42), some_bytes, some_bytes, st.just([])), min_size=1, max_size=9))
@pytest.mark.parametrize(("magic", "compression"), [(0, NONE), (0, GZIP), (1, NONE), (1, GZIP), (1, SNAPPY), (1, LZ4)])
def test_record_formats_before_kafka_0_11_are_read(records, magic, compression):
    assert assert_both_ways_agree(built(records, magic=magic, compression=compression)) == len(records)


@pytest.mark.parametrize(("magic", "compression"), [(0, GZIP), (1, GZIP), (1, SNAPPY), (1, LZ4)])
def test_an_old_message_that_decompresses_to_too_much_is_one_rejected_record(magic, compression, monkeypatch, caplog):
    monkeypatch.setattr("connectors.kafka.record_parser.MAX_BATCH_BYTES", 1 << 20)
    monkeypatch.setattr("connectors.kafka.record_parser.MAX_RATIO", 1)
    bomb = built([(1, b"k", b"0" * 9_000, [])] * 1_000, magic=magic, compression=compression)
    assert len(bomb) < 1 << 20

    (refused,), next_offset, _ = read(CompiledPartitionRecords, bomb)

    assert len(refused[3]) < len(bomb)
    assert next_offset == refused[0] + 1
    assert "not unpacked but rejected as one" in caplog.text


def test_an_old_message_with_circular_lengths_is_refused():
    inner = bytearray(built([(1, b"k", b"v", [])], magic=1))
    struct.pack_into(">i", inner, 8, -12)
    wrapper = built([(1, None, gzip.compress(bytes(inner)), [])], magic=1)
    attributes = 17
    message = wrapper[:attributes] + bytes([GZIP]) + wrapper[attributes + 1 :]

    with pytest.raises(CorruptRecordError):
        read(CompiledPartitionRecords, message, check_crcs=False)


@pytest.mark.parametrize("compression", [GZIP, SNAPPY, LZ4, ZSTD])
def test_a_batch_that_decompresses_to_too_much_is_one_rejected_record(compression, monkeypatch, caplog):
    monkeypatch.setattr("connectors.kafka.record_parser.MAX_BATCH_BYTES", 1 << 20)
    bomb = built([(1, b"k", b"0" * 9_000, [])] * 1_000, compression=compression)
    assert len(bomb) < 1 << 20
    after = built([(2, b"k", b"v", [])], compression=compression, first=1_000)

    monkeypatch.setattr("connectors.kafka.record_parser.MAX_RATIO", 1)
    (refused, read_on), *_ = read(CompiledPartitionRecords, bomb + after)

    assert refused[0] == 999
    assert len(refused[3]) < 1 << 20
    assert read_on == (1_000, 2, b"k", b"v")
    assert "metrics/3, offsets 0 to 999" in caplog.text


def test_a_poll_ends_at_its_byte_limit(monkeypatch):
    monkeypatch.setattr("connectors.kafka.record_parser.MAX_POLL_BYTES", 100_000)
    data = b"".join(built([(1, b"k", b"0" * 9_000, [])] * 10, compression=GZIP, first=10 * k) for k in range(20))
    part = CompiledPartitionRecords(0, PARTITION, MemoryRecords(data))

    takes = []
    while part:
        takes.append(part.take(1_000))

    assert [record[0] for records in takes for record in records] == list(range(200))
    assert all(len(records) <= 20 for records in takes)


def test_a_batch_that_claims_more_records_than_it_can_hold_is_refused():
    data = bytearray(built([(1, b"k", b"v", [])]))
    for count in (2, 2**31 - 1, -1):
        struct.pack_into(">i", data, 57, count)
        with pytest.raises(CorruptRecordError):
            read(CompiledPartitionRecords, bytes(data), check_crcs=False)


def test_several_batches_are_read_from_the_requested_offset():
    record = (1, b"k", b"v", [])
    data = built([record] * 10) + built([record] * 5, first=10) + built([record] * 3, first=40)

    assert assert_both_ways_agree(data) == 18
    assert assert_both_ways_agree(data, fetch_offset=12) == 6
    assert assert_both_ways_agree(data + data[:30], fetch_offset=12) == 6  # the last batch came cut off, as brokers do


def test_log_append_time_wins_over_the_records_own_time():
    data = bytearray(built([(1_000, b"k", b"v", []), (5_000, b"k", b"v", [])]))
    data[22] |= 0x08  # attributes: log append time

    records, *_ = read(CompiledPartitionRecords, bytes(data), check_crcs=False)

    assert [record[1] for record in records] == [5_000, 5_000]


def test_transaction_markers_are_not_records():
    data = bytearray(built([(1, b"\0\0\0\1", b"\0\0\0\0\0\0", [])]))
    data[22] |= 0x20  # attributes: control batch

    assert assert_both_ways_agree(bytes(data) + built([(1, b"k", b"v", [])], first=1), check_crcs=False) == 1


def test_read_committed_hides_aborted_transactions():
    class Aborted:
        producer_id, first_offset = 7, 0

    data = built([(1, b"k", b"v", [])], transactional=True, producer_id=7, producer_epoch=0, base_sequence=0)
    options = {"isolation_level": IsolationLevel.READ_COMMITTED, "aborted_transactions": [Aborted]}

    assert assert_both_ways_agree(data + built([(2, b"k", b"w", [])], first=1), **options) == 1


def test_a_batch_with_a_wrong_checksum_is_refused():
    data = bytearray(built([(1, b"key", b"value", [])]))
    data[-4] ^= 1

    with pytest.raises(CorruptRecordError, match="metrics/3: the records from offset 0 on are damaged"):
        read(CompiledPartitionRecords, bytes(data))


@settings(deadline=None)  # the first call compiles
@given(data=st.data(), records=written)
def test_malformed_records_are_refused_or_stay_within_the_batch(data, records):
    whole = bytearray(built(records))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(61, len(whole) - 1))] = data.draw(st.integers(0, 255))

    try:
        found, *_ = read(CompiledPartitionRecords, bytes(whole), check_crcs=False)
    except CorruptRecordError:
        return
    assert len(found) <= len(records)  # a changed offset may lie before the one asked for
    assert all(len(field or b"") <= len(whole) for record in found for field in record[2:])


@settings(deadline=None)  # the first call compiles
@given(data=st.binary(max_size=60), count=st.integers(1, 5))
def test_scanning_any_bytes_ends_and_stays_within_them(data, count):
    places = np.zeros((count, 6), np.int64)

    end = _scan(np.frombuffer(data, np.uint8), 0, places)

    assert -1 <= end <= len(data)
    if end >= 0:
        assert places[:, 2:].min() >= -1
        assert places[:, 2:].max() <= len(data)
