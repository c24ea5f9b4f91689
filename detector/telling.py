"""Alerts in words, for logs and terminals, and the logs' own form."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from connectors.records import Alert

LEADING = 3  # features named in one line


def number(value: float) -> str:
    """Return a number with the digits that matter to a reader."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def moment(ns: int) -> str:
    """Return a time as people write it, UTC."""
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def rarity(score: float) -> str:
    """Return what a score means: how many events pass between two as surprising."""
    return f"once in {10.0 ** min(score, 15.0):,.0f} events"


def describe(alert: Alert) -> str:
    """Return one line: stream, since when, observed against expected, how unlikely."""
    if alert.status == "resolved":
        ended = moment(alert.ended_at or alert.started_at)
        return f"resolved {alert.stream}: calm again at {ended}, alerted since {moment(alert.started_at)}"
    leading = sorted(alert.contributions, key=lambda name: -alert.contributions[name])[:LEADING]
    shares = len(alert.contributions) > 1
    parts = []
    for name in leading:
        lower, upper = number(alert.lower[name]), number(alert.upper[name])
        share = f" ({alert.contributions[name]:.0%})" if shares else ""
        expected = f"expected {number(alert.expected[name])} [{lower} .. {upper}]"
        parts.append(f"{name} {number(alert.observed[name])}, {expected}{share}")
    rest = len(alert.contributions) - len(leading)
    more = f"; {rest} more features" if rest > 0 else ""
    return (
        f"{alert.severity} alert: {alert.stream} at {moment(alert.started_at)}: {'; '.join(parts)}{more}; "
        f"{rarity(alert.score)}"
    )


class JsonLines(logging.Formatter):
    """One JSON object a log line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(level: str, form: str) -> None:
    """Send our own log to standard error; libraries speak up from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else plain)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in ("connectors", "detector", "training"):
        logging.getLogger(package).setLevel(level.upper())
