"""What commands print of alerts and streams: lines for a person, safe for a terminal."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detector.commands.text_chart import ALERT, BAND, OBSERVED, PLAIN, chart, moment
from detector.observability.log_format import printable

CHANGES = 10  # that are shown of a feature whose values are words


def show(lines: Iterable[str]) -> None:
    """Print lines, in characters that the terminal has."""
    encoding = sys.stdout.encoding or "ascii"
    for line in lines:
        try:
            f"{OBSERVED}{ALERT}│".encode(encoding)
        except UnicodeEncodeError:
            line = line.translate(PLAIN).encode(encoding, "replace").decode(encoding)  # noqa: PLW2901
        print(printable(line))


def as_json(document: object) -> None:
    """Print JSON: ASCII only, so that nothing in it reaches the terminal as what it says."""
    print(json.dumps(document, indent=2))


def show_done(done: object, line: str, *, as_document: bool) -> None:
    """Print what was done, in a line or as the API says it."""
    if as_document:
        as_json(done)
    else:
        show([line])


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
    head = f"{feature}: {len(window['time'])} events; {OBSERVED} observed, {BAND} where it would be ordinary"
    lines = [head, *drawn] if drawn else _symbol_lines(window, feature)
    return [*lines, *([window["note"]] if window["note"] else [])]


def _symbol_lines(window: Mapping[str, Any], feature: str) -> list[str]:
    """Return the last changes of a feature whose values are words."""
    if feature not in window["by_feature"]:
        return []
    columns = window["by_feature"][feature]
    known = [
        (time, value, expected)
        for time, value, expected in zip(window["time"], columns["observed"], columns["expected"], strict=True)
        if isinstance(value, str)
    ]
    changes = [now for before, now in zip([(0, None, None), *known], known, strict=False) if before[1] != now[1]]
    rows = [(moment(time), str(expected or ""), value) for time, value, expected in changes[-CHANGES:]]
    return [f"{feature}: its last changes", *table(("UTC", "EXPECTED", "OBSERVED"), rows)] if rows else []
