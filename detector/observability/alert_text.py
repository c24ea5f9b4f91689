"""Alerts in words, for logs and terminals."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from itertools import pairwise

from connectors.batches import SILENCE, Alert
from detector.observability.log_format import printable

LEADING = 3  # features named in one line


def log_alert(logger: logging.Logger, alert: Alert) -> None:
    """Log an alert in words, and where logs are JSON with its fields."""
    level = logging.WARNING if alert.status == "firing" else logging.INFO
    logger.log(level, "%s", describe(alert), extra={"alert": alert})


def describe(alert: Alert) -> str:
    """Return one line: stream, since when, observed against expected, how unlikely."""
    return printable(_described(alert))


def _described(alert: Alert) -> str:
    if alert.status == "resolved":
        ended = format_time(alert.ended_at or alert.started_at)
        how = "silent for too long at" if alert.resolved_by == SILENCE else "calm again at"
        return f"resolved {alert.stream}: {how} {ended}, alerting since {format_time(alert.started_at)}"
    leading = sorted(alert.contributions, key=lambda name: -alert.contributions[name])[:LEADING]
    shares = len(alert.contributions) > 1
    parts = []
    for name in leading:
        share = f" ({alert.contributions[name]:.0%})" if shares else ""
        parts.append(f"{name} {_against_expected(alert, name)}{share}")
    rest = len(alert.contributions) - len(leading)
    more = f"; {rest} more features" if rest > 0 else ""
    return (
        f"{alert.severity} alert: {alert.stream} at {format_time(alert.started_at)}: {'; '.join(parts)}{more}; "
        f"{format_return_period(alert.score)}"
    )


def _against_expected(alert: Alert, name: str) -> str:
    observed, expected = format_value(alert.observed[name]), format_value(alert.expected[name])
    if name in alert.observed_probability:
        p, expected_p = alert.observed_probability[name], alert.expected_probability[name]
        return f"{observed} (probability {p:.2g}), expected {expected} ({expected_p:.2g})"
    return f"{observed}, expected {expected} [{format_number(alert.lower[name])} .. {format_number(alert.upper[name])}]"


def format_number(value: float) -> str:
    """Return a number with the digits that matter to a reader."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def format_value(found: float | str | None) -> str:
    """Return a number or a symbol for a reader."""
    return format_number(found) if isinstance(found, float | int) else "nothing" if found is None else repr(found)


def format_time(ns: int) -> str:
    """Return a time as people write it, in UTC and saying so."""
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def format_duration(seconds: float) -> str:
    """Return a time as people say it, in its two largest units."""
    units = ("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)
    for (unit, size), (below, part) in pairwise(units):
        if seconds >= size:
            whole, rest = divmod(round(seconds / part), size // part)
            return f"{whole} {unit} {rest} {below}" if rest else f"{whole} {unit}"
    return f"{format_number(seconds)} s"


def format_return_period(score: float) -> str:
    """Return what a score means: how many events pass between two as surprising."""
    return f"once in {10.0 ** min(score, 15.0):,.0f} events"
