"""The form of the log: lines for people, or JSON for machines; what others say must not forge a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

MAX_LOGGED_FEATURES = 20  # of an alert in JSON, with all their numbers


def set_up_logging(level: str, form: str) -> None:
    """Send our own log to standard error; libraries speak up from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in ("connectors", "detector", "training"):
        logging.getLogger(package).setLevel(level.upper())


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
        if alert is not None:
            from connectors.encode import alert_record  # noqa: PLC0415 - numpy, which most commands have no use for
            from connectors.notify.standard_webhooks import leading_features  # noqa: PLC0415

            line |= json.loads(alert_record(leading_features(alert, MAX_LOGGED_FEATURES))[1])
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = json.dumps(line, ensure_ascii=False)
        return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _utc(record: logging.LogRecord, separator: str) -> str:
    text = datetime.fromtimestamp(record.created, UTC).isoformat(separator, "milliseconds")
    return text.replace("+00:00", "Z")


def printable(text: str) -> str:
    """Return `text` with all that is not printable escaped, line feeds too: what others say must not forge a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
