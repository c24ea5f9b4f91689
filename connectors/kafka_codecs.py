"""Decompression with a bound: a megabyte on the topic may say that it is gigabytes.

Brokers bound a batch as it is compressed, and every producer chooses what is in it; kafka-python unpacks whatever
that comes to.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import lz4.frame  # type: ignore[import-untyped]  # it publishes no types, nor does the next
import snappy  # type: ignore[import-untyped]
import zstandard

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
CHUNK_BYTES = 1 << 20
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_XERIAL = b"\x82SNAPPY\x00"  # how Java's producers frame snappy's blocks: 16 bytes, then size and block
_XERIAL_HEADER = 16


class TooLargeError(Exception):
    """The bytes come to more than the bound."""


def decompressed(codec: int, data: bytes, most_bytes: int) -> bytes:
    """Return what a batch's bytes are when unpacked. Raises TooLargeError, and ValueError where they are damaged."""
    try:
        if codec == GZIP:
            return _frames(data, most_bytes, lambda: zlib.decompressobj(_GZIP_WINDOW), "a gzip stream")
        if codec == SNAPPY:
            return _snappy(data, most_bytes)
        if codec == LZ4:
            return _frames(data, most_bytes, lz4.frame.LZ4FrameDecompressor, "an LZ4 frame")
        if codec == ZSTD:
            with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
                io.BytesIO(data), read_across_frames=True
            ) as reader:
                return _within(reader.read(most_bytes + 1), most_bytes)
    except (zlib.error, zstandard.ZstdError, snappy.UncompressError, RuntimeError, EOFError, struct.error) as error:
        raise ValueError(str(error)) from None
    raise ValueError(f"no codec has the number {codec}")


def _within(data: bytes, most_bytes: int) -> bytes:
    if len(data) > most_bytes:
        raise TooLargeError
    return data


def _frames(data: bytes, most_bytes: int, make: Callable[[], Any], frame: str) -> bytes:
    """Unpack frames one after the other; `make()` returns a decompressor of one, as zlib and lz4 both have it."""
    parts, size = [], 0
    while data:
        decompressor = make()
        part = decompressor.decompress(data, most_bytes + 1 - size)
        size += len(part)
        if size > most_bytes:
            raise TooLargeError
        if not decompressor.eof:
            raise ValueError(f"{frame} breaks off")
        parts.append(part)
        data = decompressor.unused_data or b""
    return b"".join(parts)


def _snappy(data: bytes, most_bytes: int) -> bytes:
    if not data.startswith(_XERIAL):
        return _block(data, most_bytes)
    parts, size, at = [], 0, _XERIAL_HEADER
    while at < len(data):
        (length,) = struct.unpack_from(">i", data, at)
        if not 0 < length <= len(data) - at - 4:
            raise ValueError("a block of snappy breaks off")
        parts.append(_block(data[at + 4 : at + 4 + length], most_bytes - size))
        size += len(parts[-1])
        at += 4 + length
    return b"".join(parts)


def _block(data: bytes, most_bytes: int) -> bytes:
    """Unpack a block of snappy, which begins with its length as a varint."""
    size = shift = 0
    for byte in data[:5]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if size > most_bytes:
        raise TooLargeError
    unpacked: bytes = snappy.decompress(data)
    return unpacked
