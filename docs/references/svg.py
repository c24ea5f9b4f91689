"""Small pictures of series as SVG: panels one below the other, in columns side by side; light and dark.

Drawn here and not by matplotlib: a picture of some hundred points is then twenty kilobytes of text that needs no font
and no version of anything to be the same, and has two sets of colours. Each stands on a ground of its own, so that it
can be read on any page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

LEFT, COLUMN, GAP = 44, 320, 62  # pixels: of the first panel, of a column, and between two
TOP, HEIGHTS, SPACE, BOTTOM = 60, (104, 58, 58), 18, 22
INKS = {  # of lines: on a light and on a dark ground
    "value": ("#0072b2", "#56b4e9"),
    "second": ("#009e73", "#2fd6a3"),
    "third": ("#a8558b", "#e79ac8"),
    "dots": ("#0072b2", "#56b4e9"),
    "statistic": ("#d55e00", "#ff9f4a"),
    "score": ("#555", "#bbb"),
    "bound": ("#b5179e", "#f072d6"),
    "mark": ("#c1121f", "#ff6b6b"),
}


def _style() -> str:
    def inks(dark: bool) -> str:
        return "".join(f".{kind}{{stroke:{ink[dark]}}}.{kind}-name{{fill:{ink[dark]}}}" for kind, ink in INKS.items())

    return (
        "text{font:11px sans-serif;fill:#333}.head,.mark-name{font-weight:bold}"
        "polyline,path,line{fill:none;stroke-width:1.3;stroke-linejoin:round}"
        "path{stroke-width:3;stroke-linecap:round}.bound{stroke-dasharray:5 3}.end{stroke-dasharray:2 3}"
        ".ground{fill:#fff}.frame{fill:none;stroke:#999}.band{fill:#0072b2;opacity:.16}"
        + inks(False)
        + "@media(prefers-color-scheme:dark){text{fill:#ddd}"
        ".ground{fill:#14181d}.frame{stroke:#666}.band{fill:#56b4e9;opacity:.24}" + inks(True) + "}"
    )


class Line(NamedTuple):
    """A line of a panel."""

    kind: str  # of INKS
    y: Float64  # [points]
    name: str


class Panel(NamedTuple):
    """Lines over the same hours, and a band behind them."""

    lines: Sequence[Line]
    band: tuple[Float64, Float64] | None = None  # lower and upper, [points]
    whole: bool = False  # the axis begins at 0
    ticks: Sequence[str] = ()  # what 0, 1, ... stand for


class Mark(NamedTuple):
    """A line through all panels of a column."""

    at: int  # point
    text: str
    end: bool = False  # dotted: an incident's end


class Column(NamedTuple):
    """Panels one below the other, of one series."""

    title: str
    hours: Float64  # [points] ascending, of the day
    panels: Sequence[Panel]
    marks: Sequence[Mark]


def drawn(title: str, columns: Sequence[Column]) -> str:
    """Return a picture of columns side by side."""
    width = LEFT + len(columns) * (COLUMN + GAP) - GAP + 14
    height = TOP + sum(HEIGHTS) + 2 * SPACE + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><title>{escape(title)}</title><style>{_style()}</style>'
        f'<rect class="ground" width="{width}" height="{height}"/>'
    ]
    for k, column in enumerate(columns):
        parts.extend(_column(column, LEFT + k * (COLUMN + GAP)))
    return "\n".join([*parts, "</svg>\n"])


def _column(column: Column, left: int) -> list[str]:
    hours = column.hours
    x = left + COLUMN * (hours - hours[0]) / (hours[-1] - hours[0])
    parts = [f'<text class="head" x="{left}" y="14">{escape(column.title)}</text>']
    top = TOP
    for panel, height in zip(column.panels, HEIGHTS, strict=False):
        parts.extend(_panel(panel, x, left, top, height))
        top += height + SPACE
    bottom = top - SPACE
    for hour in range(int(np.ceil(hours[0] / 3)) * 3, int(hours[-1]) + 1, 3):
        at = left + COLUMN * (hour - hours[0]) / (hours[-1] - hours[0])
        parts.append(f'<text x="{at:.0f}" y="{bottom + 14}" text-anchor="middle">{hour % 24:02d}:00</text>')
    for k, mark in enumerate(column.marks):
        at, kind = x[mark.at], "mark end" if mark.end else "mark"
        side, y = "end" if at > left + 0.6 * COLUMN else "start", 28 + 11 * (k % 2)
        parts.append(f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        text = escape(mark.text)
        parts.append(f'<text class="mark-name" x="{at:.0f}" y="{y}" text-anchor="{side}">{text}</text>')
    return parts


def _panel(panel: Panel, x: Float64, left: int, top: int, height: int) -> list[str]:
    every = np.concatenate([line.y for line in panel.lines] + list(panel.band or ()))
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    low = 0.0 if panel.whole else low
    high = high if high > low else low + 1.0

    def points(of: Float64, at: Float64) -> str:
        y = top + height - 3 - (height - 6) * (of - low) / (high - low)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(at.tolist(), y.tolist(), strict=True) if not math.isnan(b))

    parts = [f'<rect class="frame" x="{left}" y="{top}" width="{COLUMN}" height="{height}"/>']
    if panel.band is not None:
        lower, upper = panel.band
        edge = points(np.concatenate([lower, upper[::-1]]), np.concatenate([x, x[::-1]]))
        parts.append(f'<polygon class="band" points="{edge}"/>')
    for line in panel.lines:
        if line.kind == "dots":
            path = " ".join(f"M{point}h0" for point in points(line.y, x).split())
            parts.append(f'<path class="dots" d="{path}"/>')
        else:
            parts.append(f'<polyline class="{line.kind}" points="{points(line.y, x)}"/>')
    ends = [(high, f"{high:.3g}"), (low, f"{low:.3g}")]
    for value, text in enumerate(panel.ticks) if panel.ticks else ends:
        y = top + height - (height - 9) * (value - low) / (high - low)
        parts.append(f'<text x="{left - 4}" y="{y:.0f}" text-anchor="end">{escape(text)}</text>')
    names = "  ".join(f'<tspan class="{line.kind}-name">{escape(line.name)}</tspan>' for line in panel.lines)
    parts.append(f'<text x="{left}" y="{top - 5}" xml:space="preserve">{names}</text>')
    return parts
