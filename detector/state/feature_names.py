"""The names of features: rows of lanes hold numbers."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

SYMBOLIC = "\0"  # before the name of a feature that is a symbol: no name of a feature of numbers begins so
NAMES_KEPT = 10_000  # names that are kept before those that no lane has any more are dropped
NAME_OVERHEAD = 200  # bytes a name, beside itself


class FeatureNames:
    """Features by number and back; a number is used again once no lane has it."""

    def __init__(self) -> None:
        self.names: list[str] = []  # by number; "" where the number is free
        self._ids: dict[str, int] = {}
        self._free: list[int] = []
        self._limit = NAMES_KEPT
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._ids)

    def id_of(self, name: str) -> int:
        """Return the number of a name, a new one if need be."""
        number = self._ids.get(name, -1)
        if number < 0:
            if self._free:
                number = self._free.pop()
                self.names[number] = name
            else:
                number = len(self.names)
                self.names.append(name)
            self._ids[name] = number
            self._bytes += sys.getsizeof(name)
        return number

    def sweep(self, used: NDArray[np.int32]) -> None:
        """Once there are many, drop the names whose numbers are not among these."""
        if len(self._ids) <= self._limit:
            return
        known = set(np.unique(used).tolist())
        for name, number in list(self._ids.items()):
            if number not in known:
                del self._ids[name]
                self.names[number] = ""
                self._free.append(number)
                self._bytes -= sys.getsizeof(name)
        self._limit = max(2 * len(self._ids), NAMES_KEPT)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all of it takes."""
        return self._bytes + NAME_OVERHEAD * len(self._ids)
