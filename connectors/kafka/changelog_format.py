"""The changelog's records: a stream's state, or a mark with the source offset that a partition's states belong to.

Layout of a value, little endian, without padding; docs/exactly-once.md documents it for other readers:

| bytes | what                                                                                     |
|-------|------------------------------------------------------------------------------------------|
| 4     | `lwcl`                                                                                   |
| 1     | version of this layout, 1                                                                |
| 1     | kind: 0 a state, 1 a mark                                                                |
| 1     | how the body is compressed: 0 not at all, 1 one zstd frame                               |
| 1     | of a state: 1 its stream has no open incident, 2 it has one; 0 unknown                   |
| 4     | CRC-32C of the key and of all that follows here                                          |
| 4     | source partition                                                                         |
| 8     | source offset: of the next event; those before it have gone into the state               |
| 2, 2  | number of this part, and of all parts (a state larger than a record may be is cut)       |
| 2     | bytes of the source topic's name                                                         |
|       | the source topic's name, UTF-8                                                           |
|       | the body: a state's row, or a mark's JSON                                                |

Keys, for compaction is by key: `m` for the mark, `s` and the stream's name for a state's first part, `p`, the part's
number (2 bytes) and the name for each further part. No value: the stream has left this partition.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import crc32c
import msgspec
import zstandard

from connectors.batches import Partition
from connectors.kafka.errors import KafkaConnectorError

MAGIC = b"lwcl"
VERSION = 1
STATE, MARK = 0, 1
UNKNOWN, CALM, OPEN = 0, 1, 2
PLAIN, ZSTD = 0, 1

MAX_PART_BYTES = 900_000  # brokers take 1 MiB by default; a topic that takes less gets smaller parts
MIN_MESSAGE_BYTES = 10_000  # a changelog that takes less than this is refused
ROOM_BYTES = 5_000  # in addition to a part: the key with a stream's name, the header, Kafka's own
MAX_STATE_BYTES = 1 << 28  # a row of 1,024 features has 32 MB; a larger size is damage
# A row of one feature, 31.5 KB: level 1 leaves 30 % of it at 660 MB/s, 3 as much at 490, 6 29 % at 150; lz4 36 %
# at 1,160. Twenty rows in one frame came to 27 %, which is not worth writing twenty where one has changed.
ZSTD_LEVEL = 1

_HEADER = struct.Struct("<4sBBBBI")
_ORIGIN = struct.Struct("<iqHHH")
_INCIDENT = {CALM: False, OPEN: True}


class ChangelogError(KafkaConnectorError):
    """A changelog that cannot be used; the text names topic, partition and offset, and says what to do."""


def part_bytes(message_bytes: int) -> int:
    """Return how large a part of a state may be if messages may have so many bytes."""
    return min(MAX_PART_BYTES, message_bytes - ROOM_BYTES)


class Mark(msgspec.Struct, frozen=True):
    """Describes a whole partition at one offset; written last in each of its transactions."""

    group: str
    member: str  # the transactional id of the writer, so that another worker can end its transaction
    layout: str  # digest of the rows' layout
    longwatch: str  # version that wrote it
    streams: int  # states that the partition holds at least


@dataclass(frozen=True, slots=True)
class Entry:
    """A record of the changelog, checked: one of a state's bytes, a mark, or nothing (the stream is gone)."""

    stream: str  # "" for a mark
    offset: int  # of the source; -1 if the stream is gone
    compressed: bool = False
    row: bytes = b""
    mark: Mark | None = None
    gone: bool = False
    incident: bool | None = None  # the stream has an open one; None: unknown


def compressed(row: bytes) -> bytes:
    """Return a row as one zstd frame, which contains its size."""
    return _compressor.compress(row)


def restored(frame: bytes) -> bytes:
    """Return the row in a zstd frame; ValueError if it is damaged."""
    try:
        if not 0 <= zstandard.frame_content_size(frame) <= MAX_STATE_BYTES:
            raise ValueError("a zstd frame of unknown or impossible size")
        return zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


_compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)


def state_records(
    stream: str,
    source: Partition,
    offset: int,
    frame: bytes,
    most_bytes: int = MAX_PART_BYTES,
    *,
    incident: bool = False,
) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of each part of a stream's state, of so many bytes at most.

    `frame` is from `compressed`; `incident`: one is open.
    """
    parts = max(1, -(-len(frame) // most_bytes))
    for part in range(parts):
        body = frame[part * most_bytes : (part + 1) * most_bytes] if parts > 1 else frame
        key = state_key(stream, part)
        yield key, _value(key, (STATE, ZSTD, OPEN if incident else CALM), source, (offset, part, parts), body)


def state_key(stream: str, part: int = 0) -> bytes:
    """Return the key of a part of a stream's state."""
    # JSON may carry a lone surrogate into a name
    name = stream.encode("utf-8", "surrogatepass")
    return b"s" + name if part == 0 else b"p" + part.to_bytes(2, "little") + name


def mark_record(source: Partition, offset: int, mark: Mark) -> tuple[bytes, bytes]:
    """Return key and value of a mark."""
    return b"m", _value(b"m", (MARK, PLAIN, UNKNOWN), source, (offset, 0, 1), msgspec.json.encode(mark))


def _value(
    key: bytes,
    form: tuple[int, int, int],  # kind, codec, incident
    source: Partition,
    place: tuple[int, int, int],  # the source's offset, the part, of how many
    body: bytes,
) -> bytes:
    topic = source.topic.encode()
    rest = b"".join((_ORIGIN.pack(source.partition, *place, len(topic)), topic, body))
    return _HEADER.pack(MAGIC, VERSION, *form, crc32c.crc32c(rest, crc32c.crc32c(key))) + rest


class Assembler:
    """Reads one partition's records in their order and puts states together again from their parts."""

    def __init__(self, changelog: str, source: Partition) -> None:
        self._place = f"changelog {changelog}/{source.partition}"
        self._source = source
        self._begun: tuple[str, int, int, int, list[bytes]] | None = None  # stream, where, source offset, parts, so far
        self.damaged = 0  # damaged records; their streams start from scratch

    def resume(self, position: int) -> int:
        """Return where to resume reading after a position: the first part of an incomplete state, if any."""
        return position if self._begun is None else self._begun[1]

    def take(self, at: int, key: bytes | None, value: bytes | None) -> Entry | None:
        """Return what the record at a changelog offset says; None while parts are missing, or if it is damaged.

        Raises ChangelogError for a record that longwatch of this version did not write.
        """
        if key is None or key[:1] not in (b"s", b"p", b"m"):
            raise self._foreign(at, f"its key is {key!r:.60}")
        try:
            stream = key[1 if key[:1] == b"s" else 3 :].decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise self._foreign(at, f"its key is {key!r:.60}") from None
        begun, self._begun = self._begun, None  # parts of one state follow one another
        if value is None:
            return Entry(stream, -1, gone=True) if key[:1] == b"s" else None
        if len(value) < _HEADER.size + _ORIGIN.size or value[:4] != MAGIC:
            raise self._foreign(at, f"{len(value)} bytes that begin with {value[:4]!r}")
        _, version, kind, codec, incident, checksum = _HEADER.unpack_from(value)
        if version != VERSION:
            raise ChangelogError(
                f"{self._place}: the record at offset {at} has version {version}, this longwatch reads {VERSION}: run"
                " the longwatch that wrote it on every worker, or set kafka.changelog_topic to a new name, and every"
                " stream starts from scratch"
            )
        if crc32c.crc32c(memoryview(value)[_HEADER.size :], crc32c.crc32c(key)) != checksum:
            self.damaged += 1
            return None
        partition, offset, part, parts, length = _ORIGIN.unpack_from(value, _HEADER.size)
        begin = _HEADER.size + _ORIGIN.size
        topic = value[begin : begin + length].decode("utf-8", "replace")
        if (topic, partition) != self._source:
            raise self._foreign(at, f"it belongs to {topic}/{partition}")
        body = value[begin + length :]
        if kind == MARK:
            try:
                return Entry("", offset, mark=msgspec.json.decode(body, type=Mark))
            except msgspec.MsgspecError as error:
                raise self._foreign(at, f"a mark that cannot be read: {error}") from None
        if parts == 1:
            return Entry(stream, offset, codec == ZSTD, body, incident=_INCIDENT.get(incident))
        if part == 0:
            begun = (stream, at, offset, parts, [])
        if begun is None or (begun[0], *begun[2:4], len(begun[4])) != (stream, offset, parts, part):
            return None  # its first parts were compacted away: a later state follows
        begun[4].append(body)
        if part == parts - 1:
            return Entry(stream, offset, codec == ZSTD, b"".join(begun[4]), incident=_INCIDENT.get(incident))
        self._begun = begun
        return None

    def _foreign(self, at: int, found: str) -> ChangelogError:
        return ChangelogError(
            f"{self._place}: the record at offset {at} was not written by longwatch for {self._source.topic}/"
            f"{self._source.partition} ({found}): another program or another group writes to this topic; set"
            " kafka.changelog_topic to a name that only this group uses"
        )
