"""The demo's plots: values with the band that was expected, the score with its threshold, alerts and labels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from tqdm import tqdm

from connectors.batches import Int64
from connectors.files.labels import Window
from connectors.words import format_time, return_periods
from detector.commands.demo_report import COLUMNS, Series, found_of
from detector.commands.plot_style import (
    ALERT,
    BAND,
    DASHES,
    INK,
    PLAIN,
    SCORE,
    SOFT,
    VALUE,
    WINDOW,
    html_page,
    in_our_style,
    save_png,
    time_axis,
)  # fmt: skip
from training.evaluate import rows_in_windows

TICKS, CLOSE_UP_TICKS = 9, 6  # of time, at most
OVERVIEW_WIDTH, OVERVIEW_HEAD, OVERVIEW_ROW, OVERVIEW_FOOT = 9.5, 0.75, 1.55, 0.65  # inches
OVERVIEW_DPI = 140  # sharp where a page shows it at half its pixels
CLOSE_UP_EVENTS = 60  # on each side of the strongest alert: few enough for the band to be seen
GAP = 12  # a line is broken where so many usual intervals pass without an event


def write_plots(series: Sequence[Series], paragraphs: Sequence[str], table: str, output: Path) -> str:
    """Write a PNG for each stream, one for all, and a page with them; return where."""
    images = []
    for one in tqdm(series, desc="drawing", unit=" plots", ncols=COLUMNS, leave=False, disable=None, file=sys.stderr):
        path = output / f"{one.stream}.png"
        save_png(plot_stream(one), path)
        images.append((f"{one.stream}: {_note(one)}", path))
    title = f"longwatch demo: {found_of(series)} in {len(series)} real series"
    save_png(plot_overview(series, title), output / "demo.png")
    (output / "index.html").write_text(html_page(title, paragraphs, table, images), encoding="utf-8")
    return f"{output / 'index.html'}, {output / 'demo.png'}"


@in_our_style
def plot_stream(series: Series) -> Figure:
    """Return a stream's plot: all of it on the left, the surroundings of its strongest alert on the right."""
    figure = Figure(figsize=(13, 4.8))
    fired = np.flatnonzero(np.isin(series.time, series.alerts))
    grid = figure.add_gridspec(
        *(2, 2 if len(fired) else 1), height_ratios=(2, 1), width_ratios=(2.2, 1) if len(fired) else None,
        left=0.055, right=0.985 if len(fired) else 0.93, top=0.87, bottom=0.17, wspace=0.21, hspace=0.1,
    )  # fmt: skip
    value, score = _panels(figure, grid, 0, series, slice(None))
    _head(value, series.stream, _note(series))
    _rarity_axis(score, series)
    if len(fired):
        row = int(fired[np.argmax(series.score[fired])])
        near = slice(max(row - CLOSE_UP_EVENTS, 0), row + CLOSE_UP_EVENTS)
        value, _ = _panels(figure, grid, 1, series, near, marker=9.0)
        when = format_time(int(series.time[row]))[:16]
        told = series.told[int(np.flatnonzero(series.alerts == series.time[row])[0])]
        _head(value, f"Strongest alert: {when}Z", told)
    _legend(figure)
    return figure


@in_our_style
def plot_overview(streams: Sequence[Series], title: str) -> Figure:
    """Return one plot of several streams, one below the other, each with its own axis of time."""
    height = OVERVIEW_HEAD + OVERVIEW_FOOT + OVERVIEW_ROW * len(streams)
    figure = Figure(figsize=(OVERVIEW_WIDTH, height), dpi=OVERVIEW_DPI)
    figure.text(0.1, 1 - 0.3 / height, title, fontsize=12, fontweight="bold", va="center", **PLAIN)
    rows = figure.add_gridspec(
        len(streams), 1, left=0.1, right=0.91, hspace=0.52,
        top=1 - OVERVIEW_HEAD / height, bottom=OVERVIEW_FOOT / height,
    )  # fmt: skip
    for number, series in enumerate(streams):
        grid = rows[number].subgridspec(2, 1, height_ratios=(1.7, 1), hspace=0.12)
        value, score = _panels(figure, grid, 0, series, slice(None))
        value.set_title(series.stream, fontsize=9.5, pad=4, **PLAIN)
        value.set_title(_note(series), loc="right", fontsize=8, fontweight="normal", color=SOFT, pad=4, **PLAIN)
        _rarity_axis(score, series)
    _legend(figure)
    return figure


def _note(series: Series) -> str:
    judged = series.judged
    return (
        f"{judged.found} of {len(judged.incidents)} incidents found, "
        f"{len(judged.false_alarms)} false alarms in {len(series.time):,} events"
    )


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
    time_axis(score, 3, CLOSE_UP_TICKS if column else TICKS)
    _score_axis(score, series)
    return value, score


def _head(axes: Axes, title: str, note: str) -> None:
    axes.set_title(title, pad=19, **PLAIN)
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
    """Mark where alerts fired: full triangles inside labelled windows, else hollow."""
    time = series.time[rows]
    fired = np.flatnonzero(np.isin(time, series.alerts))
    right = rows_in_windows(time[fired], series.windows)
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
    interval = float(np.median(np.diff(series.time))) * 1e-9 if len(series.time) > 1 else 0.0
    axes.set_yticks([level], return_periods(np.array([level]), np.array([interval])))
    axes.tick_params(length=0, labelsize=7.5)
    axes.spines["right"].set_visible(False)


def _legend(figure: Figure) -> None:
    triangle = partial(Line2D, [], [], linestyle="none", marker="v", markersize=6, markeredgecolor=ALERT)
    entries = [
        Line2D([], [], color=VALUE, linewidth=1, label="observed"),
        Patch(color=BAND, linewidth=0, label="expected band"),
        Line2D([], [], color=SCORE, linewidth=1, label="score"),
        Line2D([], [], color=INK, linewidth=1, linestyle=DASHES, label="threshold"),
        Patch(color=WINDOW, linewidth=0, label="labelled incident"),
        triangle(markerfacecolor=ALERT, label="alert in a labelled incident"),
        triangle(markerfacecolor="white", label="alert outside"),
    ]
    figure.legend(handles=entries, loc="lower center", ncols=len(entries), columnspacing=1.4)
