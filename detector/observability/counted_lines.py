"""Lines of the log that count what is too much for a line each: rejected records, warnings about streams, the run."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from connectors.batches import Rejected
from connectors.common.throttle import LogThrottle
from detector.config.settings import Settings

logger = logging.getLogger(__name__)

MIN_IN_A_ROW = 30  # rejected without one between them that could be read: then it is not single records
MAX_DETAIL = 300  # characters of what was wrong with a record
MAX_NAMED = 3  # streams, in a line about many
MAX_LINES = 5  # one for each stream while there are no more than this
INTERVAL_SECONDS = 10.0  # between lines with the same warning about streams
SUMMARY_SECONDS = 3600.0
COUNTED = ("scored", "rejected", "late", "duplicate", "alerts")


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


class RunSummary:
    """What the daemon has done, by the names of COUNTED: in a quiet log, the hourly line shows that it is alive."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._logged_at = clock()  # s
        self._all, self._recent = Counter[str](), Counter[str]()

    def count(self, **found: int) -> None:
        """Add the counts of a batch."""
        self._recent.update(found)

    def log_hourly(self, streams: int, lag: int) -> None:
        """Log once an hour what was counted, how many streams are in memory and how many records wait to be read."""
        if self._clock() - self._logged_at < SUMMARY_SECONDS:
            return
        logger.info("in the last hour: %s; %d streams in memory, %d records behind", _words(self._recent), streams, lag)
        self._logged_at = self._clock()
        self._settle()

    def log_total(self) -> None:
        """Log what was counted in the whole run."""
        self._settle()
        logger.info("in %.0f s: %s", self._clock() - self._began, _words(self._all))

    def _settle(self) -> None:
        self._all.update(self._recent)
        self._recent.clear()


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in COUNTED)
