"""Files as source: CSV and JSON lines, gzipped or not, many together, and standard input."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from connectors.batches import CsvLayout, Partition, RawBatch
from connectors.common.background import OngoingProblem
from connectors.common.private_files import Fingerprint
from connectors.decode.decoder import Decoder
from connectors.files.lines import STANDARD_INPUT, FileError, LineReader
from connectors.files.settings import FileSettings
from connectors.protocols import RebalanceCallbacks

__all__ = ["FileError", "FileSource"]

logger = logging.getLogger(__name__)

MAX_POLL_RECORDS = 10_000  # half as many cost the daemon 5 to 8 % more CPU time
_MAX_POLL_BYTES = 8 << 20  # exceeded by one read of a file at most: decoding takes some 25 times as much
_LONG_AGO = np.iinfo(np.int64).min  # the time of records before the first one with a time
_LAST = np.iinfo(np.int64).max

# Records in the order in which they are returned: the bytes, which of the source's files, and the time in ns
_RECORD = np.dtype([("value", object), ("file", int), ("offset", int), ("line", int), ("time", int)])
_Records = NDArray[np.void]  # of _RECORD
_NONE = np.empty(0, _RECORD)


class FileSource:
    """Reads files as one source: each in its own order, several merged by event time.

    A file is a partition (its path, 0); a record's offset is its number in the file, from 0, blank lines and header
    not counted. The first byte of a file decides: "{" means JSON lines, anything else a CSV header with a column
    `timestamp`, perhaps `stream`, and features. If records cannot name their stream, the file's stem does. `start`
    is where to resume, by partition, and `fingerprints` those that the files had then, by path. Standard input and
    other pipes cannot resume, since what they held before a restart is lost.

    Raises FileError at once for a file that cannot be opened, is neither kind, or was replaced by another one. A
    truncated or damaged file is logged when that is found; all that can be read of it and the others is returned, and
    then `poll` raises FileError.
    """

    grouped = outage = False
    problems: Mapping[str, OngoingProblem] = MappingProxyType({})  # no threads

    def __init__(
        self,
        settings: FileSettings,
        decoder: Decoder | None = None,
        start: Mapping[Partition, int] | None = None,
        fingerprints: Mapping[str, Fingerprint] | None = None,
        *,
        max_poll_records: int | None = None,
    ) -> None:
        decoder = decoder or Decoder()
        self._speed = settings.speed
        self._max_poll_records = max_poll_records or MAX_POLL_RECORDS
        self._paused = False
        self._ready: _Records = _NONE
        self._clock: tuple[float, int] | None = None  # seconds by the monotonic clock, and the event time due then
        self._decoder, self._timed = decoder, len(settings.paths) > 1 or settings.speed > 0
        begin = {Partition(path, 0): 0 for path in settings.paths}
        begin.update((p, at) for p, at in (start or {}).items() if p in begin and p.topic != STANDARD_INPUT)
        self._next = begin  # by partition: the offset of the next record to return
        self._fingerprints = dict(fingerprints or {})  # by path, also of files that are not read now
        self._files: list[_File] = []
        self._open()

    def poll(self, timeout_seconds: float) -> RawBatch:
        """Return the next records, at most max_poll_records; empty after the time-out or at the end."""
        if self._paused:
            time.sleep(timeout_seconds)
            return RawBatch()
        deadline = time.monotonic() + timeout_seconds
        blocks: list[_Records] = []
        room, size = self._max_poll_records, 0
        while room and size < _MAX_POLL_BYTES:
            seconds = 0.0 if blocks else max(deadline - time.monotonic(), 0.0)
            block = self._ready if len(self._ready) else self._merge(seconds)
            count = min(self._due(block, seconds), room)
            self._ready = block[count:]
            if not count:
                break
            blocks.append(block[:count])
            room -= count
            size += sum(map(len, block["value"][:count].tolist()))
        if blocks:
            return self._batch(np.concatenate(blocks))
        self._raise_failure()
        return RawBatch()

    def subscribe(self, callbacks: RebalanceCallbacks) -> None:
        """Do nothing: no file comes or goes."""

    def pause(self) -> None:
        """Hand out nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Hand out records again."""
        self._paused = False

    def share(self) -> float:
        """Return 1: all files are read here."""
        return 1.0

    @property
    def rewinds(self) -> bool:
        """Whether all files can be read again."""
        return not any(file.reader.waits for file in self._files)

    def rewind(self, offsets: Mapping[Partition, int]) -> None:
        """Open the files again, and resume at these offsets; raises FileError."""
        self.close()
        self._fingerprints = self.fingerprints()
        self._next.update(offsets)
        self._ready, self._files = _NONE, []
        self._open()

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Return the fingerprint of each file that can be read again, by path; for `fingerprints` after a restart."""
        read = {file.partition.topic: file.reader for file in self._files if not file.reader.waits}
        return self._fingerprints | {path: reader.fingerprint for path, reader in read.items() if reader.fingerprint}

    def finished(self) -> bool:
        """Whether every file has been read to its end."""
        return not len(self._ready) and all(file.exhausted and not file.failure for file in self._files)

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Do nothing: a file keeps no offsets."""

    def lag(self) -> dict[Partition, int]:
        """Return nothing: the number of records in a file is unknown before it has been read."""
        return {}

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.reader.close()

    def _open(self) -> None:
        try:
            for partition, first in self._next.items():
                before = self._fingerprints.get(partition.topic)
                self._files.append(_File(partition, first, before, self._decoder, timed=self._timed))
        except FileError:
            self.close()
            raise

    def _merge(self, timeout_seconds: float) -> _Records:
        """Return, in order of time, the records that no unread one can precede; none if there are none yet."""
        deadline = time.monotonic() + timeout_seconds
        for file in self._files:
            file.fill(max(deadline - time.monotonic(), 0.0))
        if any(not len(file.records) and not file.ended for file in self._files):
            return _NONE  # a pipe has no data yet, and its next record may be the earliest
        # Of equal times the earlier file's come first: the order depends on the files alone, not on how they are read.
        horizon = min(
            ((file.records["time"][-1], number) for number, file in enumerate(self._files) if not file.ended),
            default=None,
        )
        blocks = []
        for number, file in enumerate(self._files):
            count = len(file.records)
            if horizon is not None:
                times = file.records["time"]
                count = int(np.searchsorted(times, horizon[0], "right" if number <= horizon[1] else "left"))
            taken, file.records = file.records[:count], file.records[count:]
            taken["file"] = number
            blocks.append(taken)
        if len(blocks) == 1:
            return blocks[0]
        merged = np.concatenate(blocks)
        return merged[np.argsort(merged["time"], kind="stable")]

    def _due(self, block: _Records, timeout_seconds: float) -> int:
        """Return how many of the block's records are due, after waiting for its first until the time-out."""
        times = block["time"]
        if not self._speed or not len(times) or times[-1] == _LONG_AGO:
            return len(times)
        if self._clock is None:
            self._clock = (time.monotonic(), int(times[times > _LONG_AGO][0]))
        began, first = self._clock
        wait = (int(times[0]) - first) / (self._speed * 1e9) - (time.monotonic() - began)
        if wait > 0:
            time.sleep(min(wait, timeout_seconds))
        now = min(first + round((time.monotonic() - began) * self._speed * 1e9), _LAST)
        return int(np.searchsorted(times, now, "right"))

    def _raise_failure(self) -> None:
        if not len(self._ready) and all(file.exhausted for file in self._files):
            for file in self._files:
                if file.failure:
                    failure, file.failure = file.failure, ""
                    raise FileError(failure)

    def _batch(self, block: _Records) -> RawBatch:
        numbers, partition = np.unique(block["file"], return_inverse=True)
        files = [self._files[number] for number in numbers.tolist()]
        for number, file in zip(numbers.tolist(), files, strict=True):
            self._next[file.partition] = int(block["offset"][block["file"] == number][-1]) + 1
        codes = partition.tolist()
        return RawBatch(
            partitions=[file.partition for file in files],
            partition=codes,
            offset=block["offset"].tolist(),
            received=[-1] * len(codes),
            key=[files[code].key for code in codes],
            value=block["value"].tolist(),
            line=block["line"].tolist(),
            csv={code: file.layout for code, file in enumerate(files) if file.layout is not None},
        )


class _File:
    """One file: its records that have been read and not yet returned."""

    def __init__(self, at: Partition, first: int, before: Fingerprint | None, decoder: Decoder, *, timed: bool) -> None:
        self.partition = at
        self.layout: CsvLayout | None = None  # of a CSV file
        self.records: _Records = _NONE  # their times never fall: the file's own order holds
        self.ended = False  # nothing is left to read
        self.failure = ""  # why the file could not be read to its end
        self._first, self._decoder, self._timed = first, decoder, timed
        self._begun = False
        self._read = 0  # records so far
        self._latest = _LONG_AGO
        path = at.topic
        name = "stdin" if path == STANDARD_INPUT else Path(path).name.removesuffix(".gz")
        self.key: bytes | None = Path(name).stem.encode()
        self.reader = LineReader(path, decoder.max_record_bytes)
        if self.reader.waits:
            self._first = 0
        else:
            try:
                if first and before is not None and not self.reader.matches(before):
                    raise FileError(
                        f"{path}: does not begin as it did when {first} records of it were processed: it was replaced;"
                        " give it another name, or start with an empty state directory"
                    )
                self.fill(0.0)  # a bad header must be an error at the start
            except FileError:
                self.reader.close()
                raise

    @property
    def exhausted(self) -> bool:
        """Whether all that can be read has been returned."""
        return self.ended and not len(self.records)

    def fill(self, timeout_seconds: float) -> None:
        """Read until there is a record, or the file ends, or the time-out."""
        deadline = time.monotonic() + timeout_seconds
        while not len(self.records) and not self.ended:
            try:
                read = self.reader.read(max(deadline - time.monotonic(), 0.0))
            except FileError as error:
                self.failure = str(error)
                read = None
            if read is None:
                self._end()
            elif read:
                self._take_in(read)
            elif self.reader.waits and time.monotonic() >= deadline:
                return

    def _take_in(self, read: list[tuple[int, bytes]]) -> None:
        if not self._begun:
            self._begun = True
            number, line = read[0]
            line = line.removeprefix(b"\xef\xbb\xbf")  # the byte-order mark that spreadsheets write
            if not line.lstrip().startswith(b"{"):
                try:
                    self.layout = self._decoder.csv_layout(line)
                except ValueError as error:
                    raise FileError(f"{self.partition.topic}, line {number}: {error}") from None
                if self.layout.stream is not None:
                    self.key = None
                read = read[1:]
        begin = min(max(self._first - self._read, 0), len(read))  # those before were processed before a restart
        first, self._read = self._read + begin, self._read + len(read)
        records = np.zeros(len(read) - begin, _RECORD)  # np.empty takes five times as long
        records["line"], records["value"] = [number for number, _ in read[begin:]], [line for _, line in read[begin:]]
        records["offset"] = np.arange(first, self._read)
        if self._timed and len(records):
            times = [self._decoder.time_of(value, self.layout) for value in records["value"]]
            known = np.array([_LONG_AGO if time is None else time for time in times], np.int64)
            records["time"] = np.maximum(np.maximum.accumulate(known), self._latest)
            self._latest = int(records["time"][-1])
        self.records = records

    def _end(self) -> None:
        self.ended = True
        self.reader.close()
        path = self.partition.topic
        if not self.failure and self._read < self._first:
            self.failure = (
                f"{path}: ends after {self._read} records, but {self._first} were processed before: it was"
                " replaced; give it another name, or start with an empty state directory"
            )
        if self.failure:
            logger.error("%s", self.failure)
        elif not self._begun:
            logger.warning("%s: is empty", path)
        else:
            logger.info("%s: read to its end", path)
