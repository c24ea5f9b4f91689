"""The names of symbols: rows of categorical lanes hold hashes."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
from numpy.typing import NDArray

NAMES_KEPT = 16 << 20  # bytes of symbols' names that are kept before those that no lane knows any more are dropped
NAME_OVERHEAD = 300  # bytes a name, beside itself: two entries of dicts


class SymbolNames:
    """Symbols by hash and back. Rows of lanes hold hashes; names are kept once, however many lanes know them."""

    def __init__(self) -> None:
        self._hashes: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._limit = NAMES_KEPT
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._names)

    def hash_of(self, name: str) -> int:
        """Return a symbol's hash: the same everywhere, and never 0."""
        number = self._hashes.get(name)
        if number is None:
            digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
            number = self._hashes[name] = int.from_bytes(digest, "little", signed=True) | 1
            self._names[number] = name
            self.nbytes += sys.getsizeof(name) + NAME_OVERHEAD
        return number

    def name_of(self, number: int) -> str:
        """Return the symbol of a hash that a lane holds."""
        return self._names[number]

    def sweep(self, rows: NDArray[np.void]) -> None:
        """Once there are many, drop the names that no lane of these rows, SYMBOL_ROW [lanes], knows."""
        if self.nbytes <= self._limit:
            return
        known = np.unique(rows["lane"]["symbol"]).tolist()
        self._names = {number: self._names[number] for number in known if number in self._names}
        self._hashes = {name: number for number, name in self._names.items()}
        self.nbytes = sum(map(sys.getsizeof, self._hashes)) + NAME_OVERHEAD * len(self._hashes)
        self._limit = max(2 * self.nbytes, NAMES_KEPT)
