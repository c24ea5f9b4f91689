"""A stream's window as text: what was observed against the band that was expected, with alerts marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

OBSERVED, BAND, ALERT = "●", "░", "▲"
PLAIN = str.maketrans({OBSERVED: "*", BAND: ":", ALERT: "^", "│": "|"})  # for a terminal without these
LABEL = 11  # characters of an axis' label


class _Bin(NamedTuple):
    """Neighbouring events that share a column of characters."""

    lowest: float | None  # observed, as the next
    highest: float | None
    lower: float | None
    upper: float | None
    alert: bool


def chart(window: Mapping[str, Any], feature: str, *, width: int, height: int = 12) -> list[str]:
    """Return lines that draw a feature of a window, as the API has it; none where it has no number to draw."""
    bins = list(_bins(window, feature, max(width - LABEL - 3, 10)))
    numbers = [v for one in bins for v in one[:4] if v is not None]
    if not any(one.lowest is not None for one in bins):
        return []
    low, high = min(numbers), max(numbers)
    span = high - low or 1.0

    def row(value: float) -> int:
        return round((value - low) / span * (height - 1))

    grid = [[" "] * len(bins) for _ in range(height)]
    for column, one in enumerate(bins):
        for ends, mark in ((one[2:4], BAND), (one[0:2], OBSERVED)):
            first, last = ends
            if isinstance(first, float) and isinstance(last, float):
                for at in range(row(first), row(last) + 1):
                    grid[at][column] = mark
    lines = []
    for at in range(height - 1, -1, -1):
        label = {height - 1: high, 0: low, (height - 1) // 2: low + span * ((height - 1) // 2) / (height - 1)}.get(at)
        text = "" if label is None else f"{label:,.4g}"
        lines.append(f"{text:>{LABEL}} │ {''.join(grid[at])}".rstrip())
    marks = "".join(ALERT if one.alert else " " for one in bins)
    if marks.strip():
        lines.append(f"{'alert':>{LABEL}} │ {marks}".rstrip())
    return lines


def _bins(window: Mapping[str, Any], feature: str, most: int) -> Iterator[_Bin]:
    """Share the events out over at most so many columns of characters."""
    columns, alerts = window["by_feature"][feature], window["alert"]
    events = len(alerts)
    for at in range(min(most, events)):
        part = slice(at * events // min(most, events), (at + 1) * events // min(most, events))
        observed, lower, upper = (_numbers(columns[name][part]) for name in ("observed", "lower", "upper"))
        yield _Bin(
            lowest=min(observed, default=None), highest=max(observed, default=None),
            lower=min(lower, default=None), upper=max(upper, default=None), alert=any(alerts[part]),
        )  # fmt: skip


def _numbers(values: Sequence[object]) -> list[float]:
    return [float(v) for v in values if isinstance(v, int | float)]
