"""A record as it comes from a poll, in place of the client's own larger object."""

from __future__ import annotations

from typing import Any

RawRecord = tuple[int, int, bytes | None, bytes | None]  # offset, timestamp in ms (-1: none), key, value


def raw_record(slow: Any) -> RawRecord:
    """Return what is needed of the client's object."""
    return slow.offset, -1 if slow.timestamp is None else slow.timestamp, slow.key, slow.value
