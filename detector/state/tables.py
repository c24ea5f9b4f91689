"""Tables of records that grow in place and give memory back: address space is reserved, pages come as rows are written.

A table that grows by copying holds everything twice for a moment, and one whose freed rows stay resident never gets
smaller. Here a table's rows lie in a mapping far larger than it needs: untouched pages cost nothing, growing is a
longer view of the same place, and the whole pages of what is wiped go back to the system at once. So what the process
occupies is what its rows occupy, and `nbytes` is true to the page.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
# Linux' own number (x86-64 and arm64 alike), which Python names only later: no swap is set aside for what is reserved
_MAP_NORESERVE = 0x4000
# Of the machine's memory, for each table: blocks of several sizes leave gaps that only their own size can fill
RESERVED = 4
FIRST_ROWS = 64
POPULATED = 16 * PAGE  # bytes from which on pages are worth a call for all of them at once
_MADV_POPULATE_WRITE = 23  # Linux 5.14; likewise
# rows a block of lanes may have: at most a third is waste
SIZES = tuple(sorted({int(base * 2**power) for power in range(17) for base in (1, 1.5)} | {1, 2}))


def machine_bytes() -> int:
    """Return the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def block_size(lanes: int) -> int:
    """Return the rows that a block for so many lanes gets."""
    return next(size for size in SIZES if size >= lanes)


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

    def populate(self, first: int, rows: int) -> None:
        """Have the pages of rows that will be written now all at once, not by a fault each.

        Not as large pages: on a virtual machine these may be memory that its host has yet to find, which took 700 ms
        for 370 MB, and 40 at other times.
        """
        begin, end = first * self.row_bytes // PAGE * PAGE, -(-(first + rows) * self.row_bytes // PAGE) * PAGE
        if end - begin >= POPULATED:
            with suppress(OSError):  # a system too old for it: each page then comes as it is written
                self._map.madvise(_MADV_POPULATE_WRITE, begin, end - begin)

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

    def whole_pages(self, first: int, rows: int) -> tuple[int, int]:
        """Return where the whole pages within some rows begin and end, in bytes; equal where there is none."""
        begin = -(-first * self.row_bytes // PAGE) * PAGE
        return begin, max(begin, (first + rows) * self.row_bytes // PAGE * PAGE)

    def release(self, first: int, rows: int) -> int:
        """Zero rows, give their whole pages back, and return how many bytes these had."""
        begin, end = self.whole_pages(first, rows)
        if begin == end:
            self._bytes[first * self.row_bytes : (first + rows) * self.row_bytes] = 0
            return 0
        self._bytes[first * self.row_bytes : begin] = 0
        self._bytes[end : (first + rows) * self.row_bytes] = 0
        self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)  # reads as zeros from now on
        return end - begin


class Table(GrowableArray):
    """Records that hand out blocks of rows by size."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        super().__init__(dtype)
        self.resize(FIRST_ROWS)
        self.used = 0  # rows that were handed out, released or not
        self.free = 0  # of them, released
        self.nbytes = 0  # of memory: free blocks included, but for those of their pages that the system has
        self._free: dict[int, list[int]] = {}  # where blocks begin, by size; no list is empty
        self._merge_beyond = FIRST_ROWS  # free rows

    def allocate(self, size: int) -> int:
        """Return the first of `size` rows, zeroed."""
        first = self._freed(size)
        return self._extend(size) if first is None else first

    def allocate_blocks(self, size: int, count: int) -> NDArray[np.int64]:
        """Return where so many blocks of `size` rows begin, zeroed: what was freed, and then new ones side by side."""
        freed: list[int] = []
        while len(freed) < count and (first := self._freed(size)) is not None:
            freed.append(first)
        new = count - len(freed)
        return np.concatenate([np.array(freed, np.int64), self._extend(size * new) + size * np.arange(new)])

    def _extend(self, rows: int) -> int:
        first = self.used
        self.used += rows
        self.nbytes += rows * self.row_bytes
        if self.used > len(self.rows):
            self.resize(max(self.used, len(self.rows) * 3 // 2))
        self.populate(first, rows)
        return first

    def release(self, first: int, rows: int) -> int:
        """Take a block back, wiped; return how many bytes the system got."""
        self.free += rows
        return self._add_free(first, rows)

    def _add_free(self, first: int, rows: int) -> int:
        self._free.setdefault(rows, []).append(first)
        given_back = super().release(first, rows)
        self.nbytes -= given_back
        return given_back

    def _freed(self, size: int) -> int | None:
        """Return the first row of a free block, made of several where they touch; None: there is none."""
        first = self._reuse(size)
        if first is None and self.free > self._merge_beyond and self.free > self.used // 4:
            self._merge()
            first = self._reuse(size)
        return first

    def _reuse(self, size: int) -> int | None:
        """Return the first row of a free block, cut from the largest where none has the size; None: none is enough."""
        has = size if size in self._free else max(self._free, default=0)
        if has < size:
            return None
        first = self._free[has].pop()
        if not self._free[has]:
            del self._free[has]
        begin, end = self.whole_pages(first, has)
        self.nbytes += end - begin
        self.free -= size
        if has > size:
            self._add_free(first + size, has - size)
        return first

    def _merge(self) -> None:
        """Make one block of free blocks that touch: what was many streams' of one size is room for those of another."""
        blocks = np.array(sorted((first, size) for size, firsts in self._free.items() for first in firsts))
        begins = np.flatnonzero(np.concatenate(([True], blocks[1:, 0] != blocks[:-1].sum(axis=1))))
        self._free, self.nbytes = {}, self.used * self.row_bytes
        for first, size in zip(blocks[begins, 0].tolist(), np.add.reduceat(blocks[:, 1], begins).tolist(), strict=True):
            self._add_free(first, size)
        self._merge_beyond = self.free + self.used // 8
