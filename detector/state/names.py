"""Names and what the tables hold in their place: features have numbers, symbols and partitions hashes."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
from numpy.typing import NDArray

from connectors.batches import EventBatch

Int64 = NDArray[np.int64]

SYMBOLIC = "\0"  # before the name of a feature that is a symbol: no name of a feature of numbers begins so
FEATURES_KEPT = 10_000  # names that are kept before those that no lane has any more are dropped
FEATURE_OVERHEAD = 200  # bytes a feature's name, without the name itself
SYMBOL_BYTES_KEPT = 16 << 20  # bytes of names that are kept before those that no lane knows any more are dropped
SYMBOL_OVERHEAD = 300  # bytes a symbol's name, without the name itself: two entries of dicts


class FeatureNames:
    """Features by number and back; a number is used again once no lane has it."""

    def __init__(self) -> None:
        self.names: list[str] = []  # by number; "" where the number is free
        self._ids: dict[str, int] = {}
        self._free: list[int] = []
        self._limit = FEATURES_KEPT
        self.nbytes = 0  # of memory that all of it takes

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
            self.nbytes += sys.getsizeof(name) + FEATURE_OVERHEAD
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
                self.nbytes -= sys.getsizeof(name) + FEATURE_OVERHEAD
        self._limit = max(2 * len(self._ids), FEATURES_KEPT)


class SymbolNames:
    """Symbols by hash and back. Rows of lanes hold hashes; names are kept once, however many lanes know them."""

    def __init__(self) -> None:
        self._hashes: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._limit = SYMBOL_BYTES_KEPT
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
            self.nbytes += sys.getsizeof(name) + SYMBOL_OVERHEAD
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
        self.nbytes = sum(map(sys.getsizeof, self._hashes)) + SYMBOL_OVERHEAD * len(self._hashes)
        self._limit = max(2 * self.nbytes, SYMBOL_BYTES_KEPT)


def identify_observations(
    features: FeatureNames, symbols: SymbolNames, batch: EventBatch, rows: slice
) -> tuple[Int64, Int64]:
    """Return the numbers of some observations' features and the hashes of their symbols, as in Ids."""
    code = batch.feature[rows]
    feature = np.array([features.id_of(name) for name in batch.features], np.int64)[code]
    if not batch.symbols:
        return feature, np.zeros(len(code), np.int64)
    hashes = np.array([*map(symbols.hash_of, batch.symbols), 0], np.int64)  # the last for -1
    symbol = hashes[batch.symbol[rows]]
    for which in np.unique(code[symbol != 0]).tolist():
        feature[(symbol != 0) & (code == which)] = features.id_of(SYMBOLIC + batch.features[which])
    return feature, symbol


def partition_hash(topic: str, partition: int) -> int:
    """Return what a stream's row keeps of the partition it was last seen on."""
    digest = hashlib.blake2b(f"{topic}\0{partition}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) | 1  # never 0, which means "none yet"
