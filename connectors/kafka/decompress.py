"""Decompression with a limit: a megabyte on the topic may decompress to gigabytes.

Brokers limit the compressed size of a batch only, and kafka-python decompresses without a limit.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial

import lz4.frame  # type: ignore[import-untyped]  # it publishes no types, nor does the next
import snappy  # type: ignore[import-untyped]
import zstandard

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
MIN_PIECE_BYTES = 64  # first piece of a frame: the smallest frame has eleven
MAX_PART_BYTES = 1 << 20  # lz4 makes room for all that it may return before it knows how little that is
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_XERIAL = b"\x82SNAPPY\x00"  # how Java's producers frame snappy's blocks: 16 bytes, then size and block
_XERIAL_HEADER = 16

# Takes a piece and max_length=bytes; returns the next bytes unpacked, how many of the piece were used, and whether a
# frame ended there
Feed = Callable[..., tuple[bytes, int, bool]]


class TooLargeError(Exception):
    """The bytes decompress to more than the limit."""


def decompressed(codec: int, data: bytes, most_bytes: int) -> bytes:
    """Return what a batch's bytes are when unpacked. Raises TooLargeError, and ValueError if they are damaged."""
    try:
        if codec == GZIP:
            return _frames(data, most_bytes, _members(), "a gzip stream")
        if codec == SNAPPY:
            return _snappy(data, most_bytes)
        if codec == LZ4:
            context = lz4.frame.create_decompression_context()
            return _frames(data, most_bytes, partial(lz4.frame.decompress_chunk, context), "an LZ4 frame")
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


def _frames(data: bytes, most_bytes: int, feed: Feed, frame: str) -> bytes:
    """Unpack frames one after the other.

    Each is fed in pieces that double, so that the bytes touched are at most a small multiple of the data, however many
    frames there are: what follows a frame would be copied for every frame otherwise.
    """
    view, parts = memoryview(data), []
    at, size, piece, ended = 0, 0, MIN_PIECE_BYTES, True
    while at < len(view):
        part, used, ended = feed(view[at : at + piece], max_length=min(most_bytes + 1 - size, MAX_PART_BYTES))
        if not part and not used:
            raise ValueError(f"{frame} cannot be read on")
        at, size = at + used, size + len(part)
        if size > most_bytes:
            raise TooLargeError
        parts.append(part)
        piece = MIN_PIECE_BYTES if ended else 2 * piece
    if not ended:
        raise ValueError(f"{frame} breaks off")
    return b"".join(parts)


def _members() -> Feed:
    """Return what reads the members of a gzip stream."""
    current = zlib.decompressobj(_GZIP_WINDOW)

    def feed(piece: memoryview, *, max_length: int) -> tuple[bytes, int, bool]:
        nonlocal current
        member = current
        part = member.decompress(piece, max_length)
        used = len(piece) - len(member.unused_data if member.eof else member.unconsumed_tail)
        if member.eof:
            current = zlib.decompressobj(_GZIP_WINDOW)
        return part, used, member.eof

    return feed


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
