"""A stream's window as text: what was observed against the band that was expected, with alerts marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any, NamedTuple

OBSERVED, BAND, ALERT = "●", "░", "▲"
PLAIN = str.maketrans({OBSERVED: "*", BAND: ":", ALERT: "^", "│": "|"})  # for a terminal without these
LABEL = 11  # characters of an axis' label
WIDEST = 0.05  # of the bands that may leave the chart: a young stream's first are far too wide


class _Bin(NamedTuple):
    """Neighbouring events that share a column of characters."""

    lowest: float | None  # observed, as the next
    highest: float | None
    lower: float | None
    upper: float | None
    alert: bool


def room_of(columns: Mapping[str, Sequence[Any]]) -> tuple[float, float] | None:
    """Return the range of a feature's chart: all that was observed, and all bands but the widest. None: no number."""
    if not (values := numbers_of(columns["observed"])):
        return None
    lower, upper = sorted(numbers_of(columns["lower"])), sorted(numbers_of(columns["upper"]))
    left_out = int(len(lower) * WIDEST)
    return (
        min([*values, *lower[left_out : left_out + 1]]),
        max([*values, *upper[len(upper) - 1 - left_out : len(upper) - left_out]]),
    )


def chart(window: Mapping[str, Any], feature: str, *, width: int, height: int = 15) -> list[str]:
    """Return lines that draw a feature of a window, as the API has it; none where it has no number to draw."""
    room = room_of(window["by_feature"][feature])
    if room is None:
        return []
    low, high = room
    bins, span, top = list(_bins(window, feature, max(width - LABEL - 3, 10))), high - low or 1.0, height - 1

    def row(value: float) -> int:
        return min(max(round((value - low) / span * top), 0), top)

    grid = [[" "] * len(bins) for _ in range(height)]
    for column, one in enumerate(bins):
        for ends, mark in ((one[2:4], BAND), (one[0:2], OBSERVED)):
            first, last = ends
            if isinstance(first, float) and isinstance(last, float):
                for at in range(row(first), row(last) + 1):
                    grid[at][column] = mark
    labels = {at: f"{low + span * at / top:,.4g}" for at in (0, top // 2, top)}
    lines = [f"{labels.get(at, ''):>{LABEL}} │ {''.join(grid[at])}".rstrip() for at in range(top, -1, -1)]
    if any(one.alert for one in bins):
        lines.append(f"{'alert':>{LABEL}} │ {''.join(ALERT if one.alert else ' ' for one in bins)}".rstrip())
    return [*lines, *_time_axis(window["time"], len(bins))]


def _time_axis(times: Sequence[float], width: int) -> list[str]:
    """Return when the window begins and ends; the former alone where there is no room for both."""
    first, last = moment(times[0]), moment(times[-1])
    both = f"{first}{last:>{width - len(first)}}" if width > len(first) + len(last) else first
    return [f"{'UTC':>{LABEL}}   {both}"]


def moment(seconds: float) -> str:
    """Return a Unix time for a person, UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _bins(window: Mapping[str, Any], feature: str, most: int) -> Iterator[_Bin]:
    """Share the events out over at most so many columns of characters."""
    columns, alerts = window["by_feature"][feature], window["alert"]
    events = len(alerts)
    for at in range(min(most, events)):
        part = slice(at * events // min(most, events), (at + 1) * events // min(most, events))
        observed, lower, upper = (numbers_of(columns[name][part]) for name in ("observed", "lower", "upper"))
        yield _Bin(
            lowest=min(observed, default=None), highest=max(observed, default=None),
            lower=median(lower) if lower else None, upper=median(upper) if upper else None, alert=any(alerts[part]),
        )  # fmt: skip


def numbers_of(values: Sequence[object]) -> list[float]:
    """Return the numbers of a column, without what is not known and without symbols."""
    return [float(v) for v in values if isinstance(v, int | float)]
