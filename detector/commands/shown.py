"""What commands print of alerts and streams: lines for a person, safe for a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detector.commands.text_chart import ALERT, OBSERVED, PLAIN, chart
from detector.observability.log_format import printable


def show(lines: Iterable[str]) -> None:
    """Print lines, in characters that the terminal has."""
    encoding = sys.stdout.encoding or "ascii"
    for line in lines:
        try:
            f"{OBSERVED}{ALERT}│".encode(encoding)
        except UnicodeEncodeError:
            line = line.translate(PLAIN).encode(encoding, "replace").decode(encoding)  # noqa: PLW2901
        print(printable(line))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's lines; its last column may be of any width."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head) - 1)]
    return [
        "  ".join([*(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in (head, *rows)
    ]


def alert_lines(alert: Mapping[str, Any], incident: str | None, verdict: str | None) -> list[str]:
    """Return what an alert says, with the numbers that it was found by."""
    until = f" until {alert['ended_at']}" if alert["ended_at"] else ", it has not ended"
    channel, feature = alert.get("channel") or "no channel", alert.get("feature") or "no feature"
    lines = [
        f"{alert['severity']} alert {alert['id']} of {alert['stream']}",
        f"from {alert['started_at']}{until}",
        f"{alert.get('summary', '')}; {alert.get('return_period', '')}".strip("; "),
        f"score {alert['score']:.3g}, threshold {alert['threshold']:.3g}, found by {channel} in {feature}",
    ]
    evidence = ", ".join(f"{name} {value:,.6g}" for name, value in alert.get("evidence", {}).items())
    shares = sorted(alert["contributions"].items(), key=lambda one: -one[1])[:8]
    of = ", ".join(f"{name} {share:.0%}" for name, share in shares)
    said = {"evidence": evidence, "shares": of, "rule": alert.get("rule"), "incident": incident, "verdict": verdict}
    return lines + [f"{name}: {value}" for name, value in said.items() if value]


def window_lines(window: Mapping[str, Any], feature: str) -> list[str]:
    """Return a window's chart and what is to be said of it."""
    if not window["time"]:
        return [window["note"]] if window["note"] else []
    if feature not in window["by_feature"]:
        feature = next(iter(window["features"]), "")
    drawn = chart(window, feature, width=shutil.get_terminal_size().columns) if feature else []
    head = [f"{feature}: {len(window['time'])} events; {OBSERVED} observed, shaded: expected"] if drawn else []
    return [*head, *drawn, *([window["note"]] if window["note"] else [])]
