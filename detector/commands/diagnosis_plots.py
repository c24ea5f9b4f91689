"""The plots of `longwatch train --diagnose`, each with a sentence that says how to read it."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from connectors.batches import Float64, Int64
from detector.commands.plot_style import (
    ALERT,
    BAND,
    DASHES,
    INK,
    PLAIN,
    SCORE,
    VALUE,
    image_tag,
    in_our_style,
    time_axis,
)
from training.learn.tbptt import TrainStep

CELL_STYLES = {  # colour and dashes: some readers cannot tell the colours apart
    "rnn": (ALERT, (0, (1.2, 1.2))),
    "lstm": (SCORE, "solid"),
    "gru": ("#009e73", DASHES),
    "esn": ("#cc79a7", (0, (6, 2, 1, 2))),
}
THIS = (INK, (0, (3, 1, 1, 1)))  # the model of this run
MIN_NORM = 1e-12  # below, a gradient is lost in the rounding of its neighbours
MAX_POINTS = 1500  # of a line: a page is 1,300 pixels wide


class Plot(NamedTuple):
    """A plot and how to read it."""

    title: str
    reading: str
    figure: Figure

    def html(self) -> str:
        """Return a heading, the sentence and the plot as an SVG within the page."""
        image = io.BytesIO()
        with rc_context({"svg.hashsalt": "longwatch"}):  # equal plots give equal bytes
            self.figure.savefig(image, format="svg", metadata={"Date": None})
        title, reading = html.escape(self.title), html.escape(self.reading)
        return f"<h2>{title}</h2>\n<p>{reading}</p>\n{image_tag(self.title, 'svg+xml', image.getvalue())}"


class ForecastSeries(NamedTuple):
    """One lane's values, and what was forecast of them some events ahead; columns are [events]."""

    name: str
    horizon: int
    time: Int64  # ns
    value: Float64
    expected: Float64
    lower: Float64
    upper: Float64


@in_our_style
def plot_reach(panels: Mapping[str, Mapping[str, Float64]], lags: Sequence[int]) -> Plot:
    """Plot the gradient's norm against the lag: for each panel, by name, a line for each cell, [lags]."""
    figure = Figure(figsize=(13, 4.6))
    grid = figure.subplots(1, len(panels), sharey=True, gridspec_kw={"top": 0.9, "bottom": 0.12, "wspace": 0.13})
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for name, norms in lines.items():
            colour, dashes = CELL_STYLES.get(name, THIS)
            seen = np.where(norms >= MIN_NORM, norms, np.nan)
            axes.plot(lags, seen, color=colour, linestyle=dashes, linewidth=1.6, label=name)
        axes.set_yscale("log")
        axes.set_xlim(1, lags[-1])
        axes.set_xlabel("k, events back")
        axes.set_title(title)
        axes.tick_params(labelleft=True)
        axes.grid(axis="x")
        axes.legend(loc="lower left", fontsize=8.5, handlelength=3.2)  # lines fall to the right
    grid[0].set_ylabel("|dL(t) / ds(t-k)|     s = h; lstm: s = h, C")
    return Plot(
        "How far back a gradient reaches",
        "Each line falls as the gradient of an event's loss vanishes on its way back through k events: where it has "
        "lost many powers of ten nothing can be learnt across that distance (where a line ends, nothing is left), a "
        "flat line reaches far, a rising one explodes.",
        figure,
    )


@in_our_style
def plot_gradients(steps: Sequence[TrainStep], clip_norm: float) -> Plot:
    """Plot each step's gradient norm, before and after clipping; clip_norm: its limit, inf where there is none."""
    number, before, after = _columns(steps, "number", "gradient_norm", "clipped_norm")
    clipped = float(np.mean(before > after * (1 + 1e-6)))
    figure = Figure(figsize=(13, 3.6))
    axes = figure.subplots(gridspec_kw={"top": 0.9, "bottom": 0.15})
    axes.plot(number, before, color=ALERT, linewidth=0.9, label="before clipping")
    axes.plot(number, after, color=SCORE, linewidth=1.8, label="after")
    if np.isfinite(clip_norm):
        axes.axhline(clip_norm, color=INK, linewidth=0.9, linestyle=DASHES, label=f"limit {clip_norm:g}")
    if before.max() > 10 * after.min():
        axes.set_yscale("log")
    _step_axis(axes)
    axes.set_ylabel("global norm of the gradient")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    return Plot(
        "Gradients before and after clipping",
        "Where the upper line leaves the lower, the gradient was too long and was cut down to the limit "
        f"({clipped:.0%} of the steps): single peaks are what clipping is for; where it stays far above, only the "
        "gradient's direction is learnt from, and all steps are equally long.",
        figure,
    )


@in_our_style
def plot_losses(steps: Sequence[TrainStep], validations: Sequence[tuple[int, float]]) -> Plot:
    """Plot the loss of each step, their running mean, and the validation loss where it was asked for."""
    number, loss = _columns(steps, "number", "loss")
    asked = np.array(validations, np.float64).reshape(-1, 2)
    figure = Figure(figsize=(13, 3.8))
    learning, held = figure.subplots(1, 2, gridspec_kw={"top": 0.87, "bottom": 0.15, "wspace": 0.16})
    learning.plot(number, loss, color=BAND, linewidth=0.8, label="each step")
    learning.plot(number, _running_mean(loss), color=SCORE, linewidth=1.6, label="running mean")
    learning.legend(loc="upper right", ncols=2)
    held.plot(asked[:, 0], asked[:, 1], color=ALERT, marker="o", markersize=4, linewidth=1.2)
    if len(asked):
        best = asked[np.argmin(asked[:, 1])]
        held.axvline(best[0], color=INK, linewidth=0.9, linestyle=DASHES)
        right = best[0] < np.mean(asked[[0, -1], 0])  # where there is room for the words
        held.annotate(
            f"best: step {best[0]:.0f}", (best[0], 1), (4 if right else -4, -10),
            xycoords=held.get_xaxis_transform(), textcoords="offset points",
            ha="left" if right else "right", fontsize=8, color=INK,
        )  # fmt: skip
    for axes, title in ((learning, "Training loss"), (held, "Validation loss, on held-back time")):
        axes.set_title(title)
        _step_axis(axes)
        axes.set_ylabel("nats")
        axes.margins(y=0.12)
    return Plot(
        "Training and validation loss",
        "Both should fall and then level off; where the right one rises while the left one still falls, the network is "
        "learning by heart, and the weights of the dashed line are the ones that are kept. (The levels differ: "
        "synthetic series are mixed into the training.)",
        figure,
    )


@in_our_style
def plot_forecasts(lanes: Sequence[Sequence[ForecastSeries]], share: float, whose: str) -> Plot:
    """Plot forecasts over the values: a row for each lane, a column for each horizon; share: of the band."""
    rows, columns = len(lanes), len(lanes[0])
    height = 0.7 + 2.5 * rows
    figure = Figure(figsize=(13, height))
    margins = {"top": 1 - 0.55 / height, "bottom": 0.45 / height, "wspace": 0.14, "hspace": 0.42}
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw=margins)
    for panels, lane in zip(grid, lanes, strict=True):
        for axes, ahead in zip(panels, lane, strict=True):
            _draw_forecast(axes, ahead)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="upper right", ncols=3)
    return Plot(
        f"Forecasts against the data, by {whose}",
        f"The dark line is what came, on held-back time, and the band holds what was thought {share:.0%} likely so "
        "many events before: it should be as narrow as the noise and wider further ahead, and the dark line should "
        f"leave it once in {1 / (1 - share):.0f} events, not more.",
        figure,
    )


# -- the parts of a plot -----------------------------------------------------------------------------------------------


def _draw_forecast(axes: Axes, forecast: ForecastSeries) -> None:
    dates = forecast.time.astype("datetime64[ns]")
    axes.fill_between(dates, forecast.lower, forecast.upper, color=BAND, linewidth=0, label="band")
    axes.plot(dates, forecast.expected, color=SCORE, linewidth=0.8, linestyle=DASHES, label="expected")
    axes.plot(dates, forecast.value, color=VALUE, linewidth=0.9, label="observed")
    low, high = np.nanmin(forecast.value), np.nanmax(forecast.value)
    room = 0.35 * (high - low) or 1.0  # a band may be as wide as it likes: the values must be seen
    axes.set_ylim(low - room, high + room)
    events = "event" if forecast.horizon == 1 else "events"
    title = f"{forecast.name}: {forecast.horizon} {events} ahead"
    axes.set_title(title, fontsize=9.5, **PLAIN)
    axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:,.6g}")
    time_axis(axes, 2, 6)


def _step_axis(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.locator_params(axis="x", integer=True)
    axes.margins(x=0.02)


def _columns(steps: Sequence[TrainStep], *names: str) -> list[Float64]:
    every = max(len(steps) // MAX_POINTS, 1)
    return [np.array([getattr(step, name) for step in steps[::every]], np.float64) for name in names]


def _running_mean(values: Float64) -> Float64:
    """Return the mean of the last tenth of the run, at most, before each value."""
    width = max(len(values) // 10, 1)
    total = np.convolve(values, np.ones(width))[: len(values)]
    return total / np.minimum(np.arange(len(values)) + 1, width)
