"""Rows that say of which generation they are."""

from __future__ import annotations

from detector.checkpointing.store import (
    SqliteStore,
)

NAMES = [f"host-{i}/cpu" for i in range(50)]


def rows(generation: int, size: int = 2000) -> list[tuple[str, bytes]]:
    return [(name, generation.to_bytes(4, "big") * (size // 4)) for name in NAMES]


def generation_of(store: SqliteStore) -> tuple[int, set[int]]:
    """Return the generation of the meta document, and those of all rows."""
    meta = store.meta()
    names = [*store.unassigned(), *(name for place in store.positions() for name in store.streams_of(place))]
    found = {int.from_bytes(row[:4], "big") for row in store.load(names) if row}
    return (0 if meta is None else meta["generation"]), found or {0}
