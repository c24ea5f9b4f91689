"""Decompression: what producers wrote, within a bound, and at a cost that grows with the bytes and no faster."""

from __future__ import annotations

import gzip
import struct
import zlib

import lz4.frame
import pytest
import snappy
import zstandard

from connectors.kafka.decompress import GZIP, LZ4, SNAPPY, ZSTD, TooLargeError, decompressed

COMPRESS = {
    GZIP: gzip.compress,
    SNAPPY: lambda data: struct.pack(">i", len(block := snappy.compress(data))) + block,
    LZ4: lz4.frame.compress,
    ZSTD: zstandard.ZstdCompressor().compress,
}
BEGINS = {SNAPPY: b"\x82SNAPPY\x00" + bytes(8)}
CODECS = pytest.mark.parametrize("codec", COMPRESS, ids={GZIP: "gzip", SNAPPY: "snappy", LZ4: "lz4", ZSTD: "zstd"}.get)


def frames(codec: int, *contents: bytes) -> bytes:
    return BEGINS.get(codec, b"") + b"".join(map(COMPRESS[codec], contents))


@CODECS
def test_concatenated_frames_of_any_size_are_read(codec: int) -> None:
    contents = [b"", b"a", bytes(3_000_000), b"b" * 100, bytes(range(256)) * 999, b""]

    assert decompressed(codec, frames(codec, *contents), 1 << 23) == b"".join(contents)


@CODECS
def test_the_size_limit_counts_all_frames_together(codec: int) -> None:
    data = frames(codec, bytes(60_000), bytes(40_000))

    assert len(decompressed(codec, data, 100_000)) == 100_000
    with pytest.raises(TooLargeError):
        decompressed(codec, data, 99_999)
    with pytest.raises(TooLargeError):
        decompressed(codec, frames(codec, bytes(100_000_000)), 99_999)


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4], ids=["gzip", "snappy", "lz4"])  # zstd gives what it has
def test_truncated_data_and_trailing_garbage_are_refused(codec: int) -> None:
    data = frames(codec, b"a" * 1_000, bytes(range(256)))

    for damaged in (data[:-1], data[: len(data) // 2 + 3], data + b"\x07\x07\x07\x07\x07"):
        with pytest.raises(ValueError, match=r"\S"):
            decompressed(codec, damaged, 1 << 20)


@pytest.mark.parametrize("codec", [GZIP, LZ4], ids=["gzip", "lz4"])
def test_many_small_frames_take_no_more_memory_than_their_bytes(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the bytes handed to the codecs, which copy what follows a frame on request."""
    handed = 0

    def counted(method):
        def call(*arguments, **options):
            nonlocal handed
            handed += sum(len(a) for a in arguments if isinstance(a, bytes | memoryview))
            return method(*arguments, **options)

        return call

    class Counted:
        def __init__(self, inner):
            self._inner = inner
            self.decompress = counted(inner.decompress)

        def __getattr__(self, name):
            return getattr(self._inner, name)

    make, make_frame = zlib.decompressobj, lz4.frame.LZ4FrameDecompressor
    monkeypatch.setattr(zlib, "decompressobj", lambda *arguments: Counted(make(*arguments)))
    monkeypatch.setattr(lz4.frame, "LZ4FrameDecompressor", lambda: Counted(make_frame()))
    monkeypatch.setattr(lz4.frame, "decompress_chunk", counted(lz4.frame.decompress_chunk))
    data = frames(codec, *[b"x"] * 3_000)

    assert decompressed(codec, data, 1 << 20) == b"x" * 3_000
    assert len(data) <= handed <= 10 * len(data)
