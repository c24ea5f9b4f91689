"""Warnings about streams, of which thousands may have the same at once."""

from __future__ import annotations

import logging

from connectors.common.throttle import LogThrottle

logger = logging.getLogger(__name__)

MAX_NAMED = 3  # streams, in a line about many
MAX_LINES = 5  # one for each stream while there are no more than this
INTERVAL_SECONDS = 10.0


class StreamWarnings:
    """Log lines about streams; where many have the same warning at once, one line counts them."""

    def __init__(self, what: str) -> None:
        """Say in `what` what several streams did, for the line that counts them."""
        self._what = what
        self._throttle = LogThrottle(INTERVAL_SECONDS)
        self._waiting: dict[str, str] = {}
        self._new = 0

    def add(self, stream: str, line: str) -> None:
        """Add the line of one stream."""
        self._new += 1
        if len(self._waiting) <= MAX_LINES:
            self._waiting[stream] = line

    def flush(self) -> None:
        """Log what has come, at once after a time of quiet, else every INTERVAL_SECONDS."""
        count, self._new = self._throttle.due(self._new), 0
        if not count:
            return
        if count <= MAX_LINES:
            for line in self._waiting.values():
                logger.warning("%s", line)
        else:
            names = ", ".join(map(repr, list(self._waiting)[:MAX_NAMED]))
            logger.warning("%s streams %s, among them %s", f"{count:,}", self._what, names)
        self._waiting = {}
