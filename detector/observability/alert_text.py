"""Alerts in words, for logs and terminals."""

from __future__ import annotations

import logging

from connectors.batches import ACCEPTED, BACK, FALSE, GONE, MUTED, RESET, SILENCE, SILENT, Alert
from connectors.words import format_time
from detector.observability.log_format import printable

OTHERS = 2  # features named beside the one that leads ...
MIN_SHARE = 0.1  # ... if they contribute so much
_ENDED = {
    SILENCE: "silent for too long at",
    ACCEPTED: "the new level was taken as normal at",
    FALSE: "called false at",
    RESET: "the stream was reset at",
    GONE: "taken to be gone for good at",
    MUTED: "muted at",
}


def log_alert(logger: logging.Logger, alert: Alert) -> None:
    """Log an alert in words, and where logs are JSON with its fields."""
    level = logging.WARNING if alert.status == "firing" else logging.INFO
    logger.log(level, "%s", describe(alert), extra={"alert": alert})


def describe(alert: Alert) -> str:
    """Return one line: stream, since when, what was found, how rare that is."""
    return printable(_described(alert))


def _described(alert: Alert) -> str:
    if alert.status == "resolved":
        ended = format_time(alert.ended_at or alert.started_at)
        if alert.channel == SILENT and alert.resolved_by == BACK:
            return f"resolved {alert.stream}: events again at {ended}, none since {format_time(alert.started_at)}: " + (
                alert.summary
            )
        how = _ENDED.get(alert.resolved_by, "back to normal at")
        return f"resolved {alert.stream}: {how} {ended}, alerting since {format_time(alert.started_at)}"
    if alert.channel == SILENT:
        return f"{alert.severity} alert: {alert.stream}: {alert.summary}; the last at {format_time(alert.started_at)}"
    shares = sorted(alert.contributions.items(), key=lambda item: -item[1])
    others = [f"{name} ({share:.0%})" for name, share in shares if share >= MIN_SHARE and name != alert.feature]
    also = f"; also {', '.join(others[:OTHERS])}" if others else ""
    return (
        f"{alert.severity} alert: {alert.stream} at {format_time(alert.started_at)}: {alert.summary}{also}; "
        f"{alert.return_period}"
    )
