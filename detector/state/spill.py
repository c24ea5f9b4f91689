"""Where evicted states wait for the next checkpoint: in memory up to a bound, the rest in a temporary file.

What a flood evicts between two checkpoints has no bound but the disk's; where that is full it stays in memory.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class SpillBuffer:
    """Rows of bytes by name, on their way to the store: some in memory, the rest in a file without a name."""

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
        """Take rows; one of the same name is replaced."""
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
        """Remove and return a row; None where there is none."""
        row = self.get(name)
        self.drop(name)
        return row

    def drop(self, name: str) -> None:
        """Remove a row, if it is there."""
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
