"""Alerts in words, for logs and terminals, and the logs' own form."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from connectors.batches import SILENCE, Alert
from connectors.common.throttle import LogThrottle
from connectors.encode import alert_record
from connectors.webhook.standard_webhooks import leading_features

logger = logging.getLogger(__name__)

LEADING = 3  # features, or streams, named in one line
MAX_LINES = 5  # about as many streams, each with one of its own
GATHERED_SECONDS = 10.0
MAX_LOGGED_FEATURES = 20  # in JSON, with all their numbers


def number(value: float) -> str:
    """Return a number with the digits that matter to a reader."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def moment(ns: int) -> str:
    """Return a time as people write it, in UTC and saying so."""
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def rarity(score: float) -> str:
    """Return what a score means: how many events pass between two as surprising."""
    return f"once in {10.0 ** min(score, 15.0):,.0f} events"


def log_alert(logger: logging.Logger, alert: Alert) -> None:
    """Log an alert in words, and where logs are JSON with its fields."""
    level = logging.WARNING if alert.status == "firing" else logging.INFO
    logger.log(level, "%s", describe(alert), extra={"alert": alert})


def describe(alert: Alert) -> str:
    """Return one line: stream, since when, observed against expected, how unlikely."""
    return printable(_described(alert))


def _described(alert: Alert) -> str:
    if alert.status == "resolved":
        ended = moment(alert.ended_at or alert.started_at)
        how = "silent for too long by" if alert.resolved_by == SILENCE else "calm again at"
        return f"resolved {alert.stream}: {how} {ended}, alerted since {moment(alert.started_at)}"
    leading = sorted(alert.contributions, key=lambda name: -alert.contributions[name])[:LEADING]
    shares = len(alert.contributions) > 1
    parts = []
    for name in leading:
        share = f" ({alert.contributions[name]:.0%})" if shares else ""
        parts.append(f"{name} {_against_expected(alert, name)}{share}")
    rest = len(alert.contributions) - len(leading)
    more = f"; {rest} more features" if rest > 0 else ""
    return (
        f"{alert.severity} alert: {alert.stream} at {moment(alert.started_at)}: {'; '.join(parts)}{more}; "
        f"{rarity(alert.score)}"
    )


def duration(seconds: float) -> str:
    """Return a time as people say it, in its two largest units."""
    units = ("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)
    for (unit, size), (below, part) in pairwise(units):
        if seconds >= size:
            whole, rest = divmod(round(seconds / part), size // part)
            return f"{whole} {unit} {rest} {below}" if rest else f"{whole} {unit}"
    return f"{number(seconds)} s"


class Gathered:
    """Lines about streams, of which thousands may have the same to tell at once: then one line counts them."""

    def __init__(self, what: str) -> None:
        """Tell of several streams that they did `what`."""
        self._what = what
        self._throttle = LogThrottle(GATHERED_SECONDS)
        self._waiting: dict[str, str] = {}
        self._new = 0

    def add(self, stream: str, line: str) -> None:
        """Take in what one stream has to tell."""
        self._new += 1
        if len(self._waiting) <= MAX_LINES:
            self._waiting[stream] = line

    def tell(self) -> None:
        """Log what has come, at once after a time of quiet, else every GATHERED_SECONDS."""
        count, self._new = self._throttle.due(self._new), 0
        if not count:
            return
        if count <= MAX_LINES:
            for line in self._waiting.values():
                logger.warning("%s", line)
        else:
            names = ", ".join(map(repr, list(self._waiting)[:LEADING]))
            logger.warning("%s streams %s, among them %s", f"{count:,}", self._what, names)
        self._waiting = {}


def printable(text: str) -> str:
    """Return `text` with all that is not printable escaped, line feeds too: what others say must not forge a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class TextLines(logging.Formatter):
    """A line a message, for people; a traceback's lines follow it, indented, so that none looks like a message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - the base class's name
        """Return the record's time, in UTC."""
        return _utc(record, " ")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        """Return the message's line."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the base class's name
        """Return the traceback."""
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).split("\n"))


def value(found: float | str | None) -> str:
    """Return a number or a symbol for a reader."""
    return number(found) if isinstance(found, float | int) else "nothing" if found is None else repr(found)


def _against_expected(alert: Alert, name: str) -> str:
    observed, expected = value(alert.observed[name]), value(alert.expected[name])
    if name in alert.observed_probability:
        p, expected_p = alert.observed_probability[name], alert.expected_probability[name]
        return f"{observed} (probability {p:.2g}), expected {expected} ({expected_p:.2g})"
    return f"{observed}, expected {expected} [{number(alert.lower[name])} .. {number(alert.upper[name])}]"


class JsonLines(logging.Formatter):
    """One JSON object a log line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        line: dict[str, Any] = {
            "time": _utc(record, "T"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        alert = getattr(record, "alert", None)
        if isinstance(alert, Alert):
            line |= json.loads(alert_record(leading_features(alert, MAX_LOGGED_FEATURES))[1])
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = json.dumps(line, ensure_ascii=False)
        return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _utc(record: logging.LogRecord, separator: str) -> str:
    text = datetime.fromtimestamp(record.created, UTC).isoformat(separator, "milliseconds")
    return text.replace("+00:00", "Z")


def set_up_logging(level: str, form: str) -> None:
    """Send our own log to standard error; libraries speak up from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in ("connectors", "detector", "training"):
        logging.getLogger(package).setLevel(level.upper())
