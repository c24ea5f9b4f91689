"""Which streams people have muted, until when: by patterns of names, for streams here and those still to come."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate

FOREVER = 2**63 - 1  # ns


class MuteTable:
    """Patterns, each with the event time (ns) until which streams of such names do not alert."""

    def __init__(self) -> None:
        self._patterns: list[tuple[re.Pattern[str], int]] = []

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def replace(self, until: Mapping[str, int]) -> None:
        """Let these patterns hold, in the place of those that were given before."""
        ordered = sorted(until.items(), key=lambda item: -item[1])
        self._patterns = [(re.compile(translate(pattern)), end) for pattern, end in ordered]

    def until(self, name: str) -> int:
        """Return the event time, ns, until which a stream does not alert; 0 where none of the patterns is its own."""
        return next((end for pattern, end in self._patterns if pattern.match(name)), 0)
