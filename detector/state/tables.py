"""A table of records that grows in place and hands out blocks of rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from detector.state.arena import FIRST_ROWS, GrowableArray, whole_pages

# rows a block of lanes may have: at most a third is waste
SIZES = tuple(sorted({int(base * 2**power) for power in range(17) for base in (1, 1.5)} | {1, 2}))


class Table:
    """A structured array that grows in place, handing out blocks of rows by size."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._array = GrowableArray(dtype)
        self._array.resize(FIRST_ROWS)
        self.rows = self._array.rows
        self.used = 0  # rows that were handed out, released or not
        self.free = 0  # of them, released
        self._given_back = 0  # bytes of free blocks that the system has
        self._free: dict[int, list[int]] = {}  # where blocks begin, by size; no list is empty
        self._merge_beyond = FIRST_ROWS  # free rows

    def allocate(self, size: int) -> int:
        """Return the first of `size` rows, zeroed."""
        first = self._reuse(size)
        if first is None and self.free > self._merge_beyond and self.free > self.used // 4:
            self._merge()
            first = self._reuse(size)
        if first is not None:
            return first
        first = self.used
        self.used += size
        if self.used > len(self.rows):
            self._array.resize(max(self.used, len(self.rows) * 3 // 2))
            self.rows = self._array.rows
        return first

    def release(self, first: int, size: int) -> None:
        """Give rows back, wiped."""
        self._given_back += self._array.release(first, size)
        self._free.setdefault(size, []).append(first)
        self.free += size

    def _reuse(self, size: int) -> int | None:
        """Return the first row of a free block, cut from the largest where none has the size; None: none is enough."""
        has = size if size in self._free else max(self._free, default=0)
        if has < size:
            return None
        first = self._free[has].pop()
        if not self._free[has]:
            del self._free[has]
        self._given_back -= whole_pages(first, has, self._array.row_bytes)
        self.free -= size
        if has > size:
            self._free.setdefault(has - size, []).append(first + size)
            self._given_back += whole_pages(first + size, has - size, self._array.row_bytes)
        return first

    def _merge(self) -> None:
        """Make one block of free blocks that touch: what was many streams' of one size is room for those of another."""
        blocks = np.array(sorted((first, size) for size, firsts in self._free.items() for first in firsts))
        begins = np.flatnonzero(np.concatenate(([True], blocks[1:, 0] != blocks[:-1].sum(axis=1))))
        self._free, self._given_back = {}, 0
        for first, size in zip(blocks[begins, 0].tolist(), np.add.reduceat(blocks[:, 1], begins).tolist(), strict=True):
            self._given_back += self._array.release(first, size)
            self._free.setdefault(size, []).append(first)
        self._merge_beyond = self.free + self.used // 8

    @property
    def nbytes(self) -> int:
        """Bytes of memory: free blocks included, but for those of their pages that the system has."""
        return self.used * self._array.row_bytes - self._given_back


def block_size(lanes: int) -> int:
    """Return the rows that a block for so many lanes gets."""
    return next(size for size in SIZES if size >= lanes)
