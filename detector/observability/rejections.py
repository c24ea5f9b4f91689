"""Rejected records in the log: why, an example, and where they are kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from connectors.batches import Rejected
from connectors.common.throttle import LogThrottle
from detector.config.settings import Settings

logger = logging.getLogger(__name__)

MIN_IN_A_ROW = 30  # rejected without one between them that could be read: then it is not single records
MAX_DETAIL = 300  # characters of what was wrong with a record


class RejectionLog:
    """Logs rejected records, each reason at most once a minute, and as an error while no record can be read at all."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept_in = _kept_in(settings)
        self._of_files = settings.source.type == "file"
        self._throttles: dict[str, LogThrottle] = {}
        self._loud = LogThrottle(clock=clock)
        self._in_a_row = 0
        self._reason = ""  # of the last one

    def log(self, rejected: Sequence[Rejected], read: int) -> None:
        """Log the rejected records of a batch; `read` is how many others it had."""
        if read:
            if self.nothing_read:
                logger.info("records can be read again, after %d rejected ones", self._in_a_row)
            self._in_a_row = 0
        else:
            self._in_a_row += len(rejected)
        by_reason: dict[str, list[Rejected]] = {}
        for one in rejected:
            self._reason = one.reason
            by_reason.setdefault(one.reason, []).append(one)
        for reason, same in by_reason.items():
            throttle = self._throttles.setdefault(reason, LogThrottle(clock=self._clock))
            if count := throttle.due(len(same)):
                last = same[-1]
                # a file's name and line are in the detail
                place = "" if self._of_files else f"{last.topic}/{last.partition}, offset {last.offset}: "
                logger.warning(
                    "%d records were rejected (%s), the last: %s%s; they are kept in %s",
                    *(count, reason, place, last.detail[:MAX_DETAIL], self._kept_in),
                )
        if rejected and self.nothing_read and self._loud.due():
            logger.error("%s: check the settings in [decode], and what writes the records", self.nothing_read)

    @property
    def nothing_read(self) -> str:
        """What to say while one record after the other is rejected, without their names or values; else empty."""
        if self._in_a_row < MIN_IN_A_ROW:
            return ""
        return f"none of the last {self._in_a_row} records could be read (the last: {self._reason})"


def _kept_in(settings: Settings) -> str:
    topic = settings.kafka.dead_letter_topic if settings.source.type == "kafka" else ""
    places = [f"the topic {topic}"] if topic else []
    if settings.output.dead_letter_file:
        places.append(str(settings.output.dead_letter_file))
    return " and ".join(places) or "no place, since output.dead_letter_file is empty"
