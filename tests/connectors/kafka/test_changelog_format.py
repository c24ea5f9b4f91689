"""The changelog's records round trip; damaged and foreign ones are detected."""

from __future__ import annotations

import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.batches import Partition
from connectors.kafka.changelog_format import (
    MAX_PART_BYTES,
    MAX_STATE_BYTES,
    Assembler,
    ChangelogError,
    Entry,
    Mark,
    compressed,
    mark_record,
    restored,
    state_key,
    state_records,
)

SOURCE = Partition("metrics", 3)
MARK = Mark(group="g", member="longwatch-g-a", layout="00ff", longwatch="0.1.0", streams=7)


def assembler() -> Assembler:
    return Assembler("g-metrics-changelog", SOURCE)


@given(
    stream=st.text(min_size=1, max_size=40) | st.just("\ud800"),
    row=st.binary(max_size=2_000),
    offset=st.integers(0, 2**62),
)
def test_a_state_is_read_back_under_any_stream_name(stream: str, row: bytes, offset: int) -> None:
    ((key, value),) = state_records(stream, SOURCE, offset, compressed(row))
    entry = assembler().take(0, key, value)
    assert entry is not None
    assert (entry.stream, entry.offset, restored(entry.row)) == (stream, offset, row)


def test_a_state_larger_than_a_record_is_split_and_reassembled() -> None:
    row = os.urandom(2 * MAX_PART_BYTES + 5)
    records = list(state_records("wide", SOURCE, 9, compressed(row)))
    assert len(records) == 3
    assert max(len(value) for _, value in records) < 1_000_000
    assert len({key for key, _ in records}) == 3, "compaction must keep every part"
    taken = assembler()
    entries = [taken.take(at, *record) for at, record in enumerate(records, 5)]
    assert entries[:2] == [None, None]
    assert entries[2] is not None
    assert restored(entries[2].row) == row


def test_reading_resumes_at_the_first_part_of_a_state() -> None:
    taken = assembler()
    records = list(state_records("wide", SOURCE, 9, compressed(os.urandom(MAX_PART_BYTES + 5))))
    taken.take(40, *records[0])
    assert taken.resume(41) == 40
    taken.take(41, *records[1])
    assert taken.resume(42) == 42


def test_parts_whose_first_part_was_compacted_away_are_skipped() -> None:
    old = list(state_records("wide", SOURCE, 1, compressed(os.urandom(2 * MAX_PART_BYTES + 5))))
    new = list(state_records("wide", SOURCE, 2, compressed(os.urandom(MAX_PART_BYTES + 5))))
    taken = assembler()
    assert taken.take(0, *old[2]) is None
    assert taken.take(1, *new[0]) is None
    entry = taken.take(2, *new[1])
    assert entry is not None
    assert entry.offset == 2


def test_a_mark_round_trips() -> None:
    assert assembler().take(0, *mark_record(SOURCE, 12, MARK)) == Entry("", 12, mark=MARK)


def test_a_tombstone_means_the_stream_was_removed() -> None:
    assert assembler().take(0, state_key("web-1"), None) == Entry("web-1", -1, gone=True)


@pytest.mark.parametrize("at", [8, 20, 40, -1])
def test_a_damaged_record_loses_only_its_own_stream(at: int) -> None:
    ((key, value),) = state_records("web-1", SOURCE, 9, compressed(b"x" * 500))
    broken = bytearray(value)
    broken[at] ^= 1
    taken = assembler()
    assert taken.take(0, key, bytes(broken)) is None
    assert taken.damaged == 1
    assert taken.take(1, key, value) is not None


def test_a_value_under_another_streams_key_is_damaged() -> None:
    ((_, value),) = state_records("web-1", SOURCE, 9, compressed(b"x"))
    taken = assembler()
    assert taken.take(0, state_key("web-2"), value) is None
    assert taken.damaged == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, b"{}"),
        (b"host-1", b'{"value": 3}'),
        (b"s\xff\xfe", b'{"value": 3}'),
        (b"shost-1", b'{"value": 3}'),
        (b"shost-1", b"lwcl"),
    ],
)
def test_another_programs_record_is_an_error_with_its_offset(key: bytes | None, value: bytes) -> None:
    with pytest.raises(
        ChangelogError, match=r"g-metrics-changelog/3: the record at offset 17 was not written by longwatch"
    ):
        assembler().take(17, key, value)


def test_a_record_of_another_topic_is_an_error() -> None:
    ((key, value),) = state_records("web-1", Partition("other", 3), 9, compressed(b"x"))
    with pytest.raises(ChangelogError, match="belongs to other/3"):
        assembler().take(0, key, value)


def test_a_newer_versions_record_is_an_error_with_advice() -> None:
    ((key, value),) = state_records("web-1", SOURCE, 9, compressed(b"x"))
    with pytest.raises(ChangelogError, match=r"version 2, this longwatch reads 1: run the longwatch that wrote it"):
        assembler().take(0, key, value[:4] + b"\x02" + value[5:])


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=300))
def test_random_bytes_are_an_error_or_damage_never_a_state(key: bytes, value: bytes) -> None:
    taken = assembler()
    try:
        entry = taken.take(0, key, value)
    except ChangelogError:
        return
    assert entry is None
    assert taken.damaged == 1


def test_a_frame_that_claims_a_huge_size_is_refused_before_allocating() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(b"")
    claims = bytearray(zstandard.ZstdCompressor(write_content_size=True).compress(bytes(70_000)))
    claims[5:9] = (MAX_STATE_BYTES * 8).to_bytes(8, "little")[:4]
    assert restored(bomb) == b""
    with pytest.raises(ValueError, match=r"size|frame|corrupt"):
        restored(bytes(claims))
    with pytest.raises(ValueError, match=r"size|frame"):
        restored(zlib.compress(b"x" * 100))
