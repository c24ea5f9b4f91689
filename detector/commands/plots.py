"""Plots of scored streams: values with the band that was expected, the score with its threshold, and the alerts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.files.labels import Window
from detector.commands.plot_style import ALERT, BAND, DASHES, INK, PLAIN, SCORE, SOFT, VALUE, WINDOW, new_figure
from detector.observability.alert_text import format_number, format_return_period, format_time
from training.evaluate import rows_in_windows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpecBase

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

TICKS, CLOSE_UP_TICKS = 9, 6  # of time, at most
OVERVIEW_WIDTH, OVERVIEW_HEAD, OVERVIEW_ROW, OVERVIEW_FOOT = 9.5, 0.75, 1.55, 0.65  # inches
OVERVIEW_DPI = 140  # sharp where a page shows it at half its pixels
CLOSE_UP_EVENTS = 60  # on each side of the strongest alert: few enough for the band to be seen
GAP = 12  # a line is broken where so many usual intervals pass without an event


@dataclass(frozen=True, slots=True)
class Series:
    """One feature of one stream, scored; the columns are [events], in order of time. NaN: not known."""

    stream: str
    feature: str
    time: Int64  # ns
    value: Float64
    expected: Float64
    lower: Float64
    upper: Float64
    score: Float64
    threshold: Float64
    alerts: Int64  # [alerts] ns: when each fired
    windows: Sequence[Window]  # labelled incidents, if any are known
    note: str = ""  # a few words behind the name


class _Strongest(NamedTuple):
    """The alert with the highest score at its firing."""

    row: int
    when: str
    words: str


def plot_stream(series: Series) -> Figure:
    """Return a stream's plot: all of it on the left, the surroundings of its strongest alert on the right."""
    with new_figure(13, 4.8) as figure:
        strongest = _strongest(series)
        grid = figure.add_gridspec(
            *(2, 2 if strongest else 1), height_ratios=(2, 1), width_ratios=(2.2, 1) if strongest else None,
            left=0.055, right=0.985 if strongest else 0.93, top=0.87, bottom=0.17, wspace=0.21, hspace=0.1,
        )  # fmt: skip
        panels = _panels(figure, grid, 0, series, slice(None))
        _head(panels[0], series.stream, series.note)
        _rarity_axis(panels[1], series)
        if strongest:
            near = slice(max(strongest.row - CLOSE_UP_EVENTS, 0), strongest.row + CLOSE_UP_EVENTS)
            value, _ = _panels(figure, grid, 1, series, near, marker=9.0)
            _head(value, f"Strongest alert: {strongest.when}", strongest.words)
        _legend(figure, labelled=bool(series.windows))
        return figure


def plot_overview(streams: Sequence[Series], title: str) -> Figure:
    """Return one plot of several streams, one below the other, each with its own axis of time."""
    height = OVERVIEW_HEAD + OVERVIEW_FOOT + OVERVIEW_ROW * len(streams)
    with new_figure(OVERVIEW_WIDTH, height, OVERVIEW_DPI) as figure:
        figure.text(0.1, 1 - 0.3 / height, title, fontsize=12, fontweight="bold", va="center", **PLAIN)
        rows = figure.add_gridspec(
            len(streams), 1, left=0.1, right=0.91, hspace=0.52,
            top=1 - OVERVIEW_HEAD / height, bottom=OVERVIEW_FOOT / height,
        )  # fmt: skip
        for number_, series in enumerate(streams):
            grid = rows[number_].subgridspec(2, 1, height_ratios=(1.7, 1), hspace=0.12)
            value, score = _panels(figure, grid, 0, series, slice(None))
            value.set_title(series.stream, loc="left", fontsize=9.5, fontweight="bold", pad=4, **PLAIN)
            value.set_title(series.note, loc="right", fontsize=8, color=SOFT, pad=4, **PLAIN)
            _rarity_axis(score, series)
        _legend(figure, labelled=any(series.windows for series in streams))
        return figure


def _strongest(series: Series) -> _Strongest | None:
    rows = np.flatnonzero(np.isin(series.time, series.alerts))
    if not len(rows):
        return None
    row = int(rows[np.argmax(series.score[rows])])
    band = f"{format_number(float(series.lower[row]))} .. {format_number(float(series.upper[row]))}"
    observed, rare = format_number(float(series.value[row])), format_return_period(float(series.score[row]))
    return _Strongest(row, f"{format_time(int(series.time[row]))[:16]}Z", f"{observed}, expected {band}; {rare}")


def _panels(
    figure: Figure, grid: GridSpecBase, column: int, series: Series, rows: slice, marker: float = 6.0
) -> tuple[Axes, Axes]:
    """Draw values above scores, over one axis of time; return the two."""
    value = figure.add_subplot(grid[0, column])
    score = figure.add_subplot(grid[1, column], sharex=value)
    value.tick_params(labelbottom=False, bottom=False)
    time = series.time[rows]
    dates = time.astype("datetime64[ns]")
    _shade(value, score, series.windows, time)

    gaps = _gaps(time)
    line = np.insert(dates, gaps, np.datetime64("NaT"))
    lower, upper, observed, scored = (
        np.insert(each[rows], gaps, np.nan) for each in (series.lower, series.upper, series.value, series.score)
    )
    value.fill_between(line, lower, upper, color=BAND, linewidth=0)
    value.plot(line, observed, color=VALUE, linewidth=0.7)
    score.plot(line, scored, color=SCORE, linewidth=0.6)
    score.plot(dates, series.threshold[rows], color=INK, linewidth=0.9, linestyle=DASHES)
    _mark(value, score, series, rows, marker)

    low, high = float(np.nanmin(series.value[rows])), float(np.nanmax(series.value[rows]))
    room = 0.08 * (high - low) or 1.0
    value.set_ylim(low - room, high + room)
    value.set_ylabel(series.feature, **PLAIN)
    figure.align_ylabels((value, score))
    value.yaxis.set_major_formatter(lambda tick, _: f"{tick:,.6g}")
    _time_axis(score, CLOSE_UP_TICKS if column else TICKS)
    _score_axis(score, series)
    return value, score


def _head(axes: Axes, title: str, note: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=19, **PLAIN)
    axes.annotate(
        note, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", fontsize=8, color=SOFT, **PLAIN
    )


def _gaps(time: Int64) -> Int64:
    """Return the rows before which a line has to be broken: [gaps]."""
    steps = np.diff(time)
    if not len(steps):
        return np.zeros(0, np.int64)
    return (np.flatnonzero(steps > GAP * np.median(steps)) + 1).astype(np.int64)


def _shade(value: Axes, score: Axes, windows: Sequence[Window], time: Int64) -> None:
    for start, end in windows:
        if end >= time[0] and start <= time[-1]:
            begin, stop = np.array([max(start, time[0]), min(end, time[-1])]).astype("datetime64[ns]")
            for axes in (value, score):
                axes.axvspan(begin, stop, color=WINDOW, linewidth=0, zorder=0)


def _mark(value: Axes, score: Axes, series: Series, rows: slice, size: float) -> None:
    """Mark where alerts fired: full triangles inside labelled windows (or where nothing is labelled), else hollow."""
    time = series.time[rows]
    fired = np.flatnonzero(np.isin(time, series.alerts))
    right = rows_in_windows(time[fired], series.windows) | (not series.windows)
    for axes, column in ((value, series.value[rows]), (score, series.score[rows])):
        for chosen, fill in ((fired[~right], "white"), (fired[right], ALERT)):
            axes.plot(
                time[chosen].astype("datetime64[ns]"), column[chosen], linestyle="none", marker="v", markersize=size,
                markerfacecolor=fill, markeredgecolor=ALERT, markeredgewidth=1.1, zorder=4, clip_on=False,
            )  # fmt: skip


def _score_axis(score: Axes, series: Series) -> None:
    top = max(float(series.score.max()), float(series.threshold.max()))
    score.set_ylim(0, top * 1.12)
    score.set_yticks(range(0, int(top) + 1, 2 if top > 3 else 1))
    score.set_ylabel("score")


def _rarity_axis(score: Axes, series: Series) -> None:
    """Say at the right how rare the threshold is."""
    level = float(series.threshold[-1])
    axes = score.secondary_yaxis("right")
    axes.set_yticks([level], [f"1 in {10**level:,.0f}"])
    axes.tick_params(length=0, labelsize=7.5)
    axes.spines["right"].set_visible(False)


def _time_axis(axes: Axes, most: int) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: PLC0415 - the extra

    locator = AutoDateLocator(minticks=3, maxticks=most)  # type: ignore[no-untyped-call]  # matplotlib.dates has none
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]  # likewise
    axes.margins(x=0.005)


def _legend(figure: Figure, *, labelled: bool) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - the extra
    from matplotlib.patches import Patch  # noqa: PLC0415

    def triangle(fill: str) -> Line2D:
        return Line2D([], [], linestyle="none", marker="v", markersize=6, markerfacecolor=fill, markeredgecolor=ALERT)

    entries: dict[str, Line2D | Patch] = {
        "observed": Line2D([], [], color=VALUE, linewidth=1),
        "expected band": Patch(color=BAND, linewidth=0),
        "score": Line2D([], [], color=SCORE, linewidth=1),
        "threshold": Line2D([], [], color=INK, linewidth=1, linestyle=DASHES),
    }
    if labelled:
        entries["labelled incident"] = Patch(color=WINDOW, linewidth=0)
        entries["alert in a labelled incident"] = triangle(ALERT)
        entries["alert outside"] = triangle("white")
    else:
        entries["alert"] = triangle(ALERT)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="lower center",
        ncols=len(entries),
        frameon=False,
        fontsize=8,
        columnspacing=1.4,
    )
