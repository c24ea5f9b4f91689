"""Memory that grows in place and is given back: address space is reserved, pages come as rows are written.

A table that grows by copying holds everything twice for a moment, and one whose freed rows stay resident never gets
smaller. Here a table's rows stand in a mapping far larger than it needs: untouched pages cost nothing, growing is a
longer view of the same place, and the whole pages of what is wiped go back to the system at once. So what the process
occupies is what its rows occupy, and `nbytes` is true to the page.
"""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

PAGE = mmap.PAGESIZE
# Linux' own number (x86-64 and arm64 alike), which Python names only later: no swap is set aside for what is reserved
_MAP_NORESERVE = 0x4000
# Of the machine's memory, for each table: blocks of several sizes leave gaps that only their own size can fill
RESERVED = 4
FIRST_ROWS = 64


def machine_bytes() -> int:
    """Return the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def whole_pages(first: int, rows: int, row_bytes: int) -> int:
    """Return the bytes of the whole pages within some rows."""
    begin, end = _pages(first, rows, row_bytes)
    return end - begin


def _pages(first: int, rows: int, row_bytes: int) -> tuple[int, int]:
    """Return where the whole pages within some rows begin and end, in bytes; equal where there is none."""
    begin = -(-first * row_bytes // PAGE) * PAGE
    return begin, max(begin, (first + rows) * row_bytes // PAGE * PAGE)


class GrowableArray:
    """Zeroed rows of one type that grow in place. A view taken of `rows` before it grew stays good."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...] = ()) -> None:
        """Make room for rows of `shape` items of `dtype`."""
        self.row_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self._dtype, self._shape = dtype, shape
        self._reserve(max(RESERVED * machine_bytes(), FIRST_ROWS * self.row_bytes))
        self.resize(0)

    def _reserve(self, size: int) -> None:
        """Reserve so much, or as much of it as the system lets us (limits of the address space, strict accounting)."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        while True:
            try:
                self._map = mmap.mmap(-1, -(-size // PAGE) * PAGE, flags=flags)
            except OSError:
                if size <= PAGE:
                    raise MemoryError(f"no {size} bytes of address space are left: see ulimit -v") from None
                size //= 4
            else:
                break
        self._bytes = np.frombuffer(self._map, np.uint8)

    def resize(self, rows: int) -> None:
        """Let `rows` be so many; new ones are zero."""
        size = rows * self.row_bytes
        if size > len(self._bytes):  # more than was to be had at once
            former, had = self._bytes, self.rows.nbytes
            self._reserve(2 * size)
            if size > len(self._bytes):
                raise MemoryError(f"no {size} bytes of address space are left: see ulimit -v")
            self._bytes[:had] = former[:had]
        self.rows: NDArray[Any] = self._bytes[:size].view(self._dtype).reshape(rows, *self._shape)

    def release(self, first: int, rows: int) -> int:
        """Zero rows, give their whole pages back, and return how many bytes these had."""
        begin, end = _pages(first, rows, self.row_bytes)
        if begin == end:
            self._bytes[first * self.row_bytes : (first + rows) * self.row_bytes] = 0
            return 0
        self._bytes[first * self.row_bytes : begin] = 0
        self._bytes[end : (first + rows) * self.row_bytes] = 0
        self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)  # reads as zeros from now on
        return end - begin


class SpillBuffer:
    """Rows of bytes by name, on their way to the store: some in memory, the rest in a file without a name.

    What a flood evicts between two checkpoints has no bound but the disk's; where that is full it stays in memory.
    """

    def __init__(self, directory: Path | None = None, most_bytes: int = 0) -> None:
        """Hold up to `most_bytes` in memory, the rest in `directory`; without one, everything in memory."""
        self._directory, self._most_bytes = directory, most_bytes
        self._rows: dict[str, bytes] = {}
        self._positions: dict[str, tuple[int, int]] = {}  # in the file: where, and how many bytes
        self._file: Any = None
        self._warned = False
        self.nbytes = 0  # in memory
        self.written_bytes = 0  # in the file, still wanted

    def empty_copy(self) -> SpillBuffer:
        """Return an empty one of the same kind."""
        return SpillBuffer(self._directory, self._most_bytes)

    def __len__(self) -> int:
        return len(self._rows) + len(self._positions)

    def __contains__(self, name: str) -> bool:
        return name in self._rows or name in self._positions

    def __iter__(self) -> Iterator[str]:
        yield from self._rows
        yield from self._positions

    def update(self, rows: Iterable[tuple[str, bytes]]) -> None:
        """Take rows; one that is here under the same name gives way."""
        for name, row in rows:
            self.drop(name)
            if self._directory is not None and self.nbytes + len(row) > self._most_bytes:
                try:
                    self._positions[name] = self._write(row), len(row)
                    self.written_bytes += len(row)
                    continue
                except OSError as error:
                    if not self._warned:
                        logger.warning("%s: evicted states stay in memory: %s", self._directory, error)
                    self._warned = True
            self._rows[name] = row
            self.nbytes += len(row)

    def _write(self, row: bytes) -> int:
        """Append a row to the file; return where it begins."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - closed with us
        at: int = self._file.seek(0, os.SEEK_END)
        written = 0
        while written < len(row):
            written += self._file.write(memoryview(row)[written:])
        return at

    def get(self, name: str) -> bytes | None:
        """Return a row; None where there is none."""
        if (row := self._rows.get(name)) is not None:
            return row
        place = self._positions.get(name)
        return None if place is None else self._read(*place)

    def pop(self, name: str) -> bytes | None:
        """Return a row and let it go; None where there is none."""
        row = self.get(name)
        self.drop(name)
        return row

    def drop(self, name: str) -> None:
        """Let a row go, if it is there."""
        if (row := self._rows.pop(name, None)) is not None:
            self.nbytes -= len(row)
        if (place := self._positions.pop(name, None)) is not None:
            self.written_bytes -= place[1]

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Yield every name and its row."""
        yield from self._rows.items()
        for name, place in self._positions.items():
            yield name, self._read(*place)

    def _read(self, at: int, size: int) -> bytes:
        row = os.pread(self._file.fileno(), size, at)
        if len(row) != size:
            raise OSError(f"{self._directory}: a file of evicted states breaks off at {at + len(row)}")
        return row
