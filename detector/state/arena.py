"""Memory that grows in place and is given back: address space is reserved, pages come as rows are written.

A table that grows by copying holds everything twice for a moment, and one whose freed rows stay resident never gets
smaller. Here a table's rows lie in a mapping far larger than it needs: untouched pages cost nothing, growing is a
longer view of the same place, and the whole pages of what is wiped go back to the system at once. So what the process
occupies is what its rows occupy, and `nbytes` is true to the page.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
