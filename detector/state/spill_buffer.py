"""Rows of streams that were evicted, on their way to the store."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)


class _Place(NamedTuple):
    """Where a row lies in the file, in bytes."""

    at: int
    size: int


class SpillBuffer(MutableMapping[str, bytes]):
    """Rows of bytes by name, on their way to the store: some in memory, the rest in a file without a name.

    What a flood evicts between two checkpoints has no bound but the disk's; where that is full it stays in memory.
    """

    def __init__(self, directory: Path | None = None, most_bytes: int = 0) -> None:
        """Hold up to `most_bytes` in memory, the rest in `directory`; without one, everything in memory."""
        self._directory, self._most_bytes = directory, most_bytes
        self._held: dict[str, bytes | _Place] = {}
        self._file: Any = None
        self._warned = False
        self.nbytes = 0  # in memory
        self.written_bytes = 0  # in the file, still wanted

    def empty_copy(self) -> SpillBuffer:
        """Return an empty one of the same kind."""
        return SpillBuffer(self._directory, self._most_bytes)

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __getitem__(self, name: str) -> bytes:
        held = self._held[name]
        if isinstance(held, bytes):
            return held
        row = os.pread(self._file.fileno(), held.size, held.at)
        if len(row) != held.size:
            raise OSError(f"{self._directory}: a file of evicted states breaks off at {held.at + len(row)}")
        return row

    def __delitem__(self, name: str) -> None:
        held = self._held.pop(name)
        if isinstance(held, bytes):
            self.nbytes -= len(held)
        else:
            self.written_bytes -= held.size

    def __setitem__(self, name: str, row: bytes) -> None:
        if name in self._held:
            del self[name]
        if self._directory is not None and self.nbytes + len(row) > self._most_bytes:
            try:
                self._held[name] = _Place(self._write(row), len(row))
            except OSError as error:
                if not self._warned:
                    logger.warning("%s: evicted states stay in memory: %s", self._directory, error)
                self._warned = True
            else:
                self.written_bytes += len(row)
                return
        self._held[name] = row
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
