"""The page of `longwatch train --diagnose`: what a training did, for people who want to learn from it or to choose.

Everything is in the one HTML file, plots too. All figures are of the run itself and of the data it was given.
"""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import stdtrit
from torch import Tensor

from connectors.batches import Float64, Int64
from detector.commands.plot_style import (
    ALERT,
    BAND,
    DASHES,
    INK,
    PLAIN,
    SCORE,
    VALUE,
    html_document,
    image_tag,
    in_our_style,
    time_axis,
)
from detector.commands.training_data import Excerpt, TrainingData
from training.learn.gradients import state_gradients
from training.learn.settings import Learning
from training.learn.tbptt import TrainStep
from training.network.inputs import INPUT_SIZE
from training.network.model import Forecast, Forecaster, student_t_nll
from training.network.shape import GATES, PARAMETERS_OF_T, Shape, parameter_count
from training.network.weights import Weights, load_prior
from training.retrain.challenger import WindowPlan
from training.retrain.result import RetrainResult
from training.retrain.windows import Recorded

REACH_CELLS = ("rnn", "lstm", "gru")
LAGS = range(1, 151)  # events back: up to half a day at five minutes
REACH_WINDOWS = 64  # places in the data that the norms are the mean of
LIKELY = 0.98  # share that a band holds: what falls outside is rare, and visible
SHOWN = 160  # events of a forecast plot, the last ones
MAX_HORIZONS = 3  # side by side
GATE_NAMES = {
    "rnn": ("hidden state",),
    "lstm": ("input gate", "forget gate", "candidate", "output gate"),
    "gru": ("reset gate", "update gate", "candidate"),
    "esn": (),
}
CELL_STYLES = {  # colour and dashes: some readers cannot tell the colours apart
    "rnn": (ALERT, (0, (1.2, 1.2))),
    "lstm": (SCORE, "solid"),
    "gru": ("#009e73", DASHES),
    "esn": ("#cc79a7", (0, (6, 2, 1, 2))),
}
THIS = (INK, (0, (3, 1, 1, 1)))  # the model of this run
MIN_NORM = 1e-12  # below, a gradient is lost in the rounding of its neighbours
MAX_POINTS = 1500  # of a line: a page is 1,300 pixels wide

Plot = tuple[str, str, Figure]  # its title, how to read it, and itself


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is known of a run."""

    name: str  # what was trained on
    champion: Weights  # that the run began with
    plan: WindowPlan
    learning: Learning
    seed: int
    recording: TrainingData
    steps: Sequence[TrainStep]
    validations: Sequence[tuple[int, float]]  # step and loss
    outcome: RetrainResult

    def write(self, path: Path, summary: str) -> None:
        """Write the page. Raises OSError."""
        model = Forecaster.of(self.outcome.model or self.champion)
        recorded = self.recording.recorded
        plots = [plot_reach(gradient_reach(model, recorded, self.seed))]
        if self.steps:  # there are none where there was too little to judge by
            plots.append(plot_gradients(self.steps, self.learning.clip_norm))
            plots.append(plot_losses(self.steps, self.validations))
        whose = "the new model" if self.outcome.model else "the model that stays"
        plots.append(plot_forecasts(model, self.recording, whose))
        used = {
            "model": self.champion.shape._asdict(),
            "training": {**self.learning.model_dump(), "seed": self.seed},
            "windows": asdict(self.plan),
        }
        body = "\n".join(
            [
                f"<p>Trained on {html.escape(self.name)}.</p>",
                f'<pre class="text">{html.escape(summary)}</pre>',
                *(_section(*plot) for plot in plots),
                _parameters(model),
                _settings(used),
            ]
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html_document("longwatch train: how it went", body), encoding="utf-8")


def gradient_reach(model: Forecaster, recorded: Recorded, seed: int) -> dict[str, dict[str, Float64]]:
    """Return |dL_t/ds_(t-k)| for each k of LAGS, by panel and cell.

    L is the next event's loss, s the state that a lane carries. All cells see the same windows of the recorded lanes:
    fresh ones as they are drawn, and those that ship trained.
    """
    first = recorded.draw(np.random.default_rng(seed), REACH_WINDOWS, LAGS[-1] + 1)
    windows = recorded.part(first, LAGS[-1] + 1, held_back=True, warm_up=0)
    targets = windows.targets[-1:, :, 0]  # [1, windows]

    def norms(network: Forecaster) -> Float64:
        def loss(forecast: Forecast) -> Tensor:
            nearest = Forecast(*(part[..., 0] for part in forecast))
            return student_t_nll(nearest, targets).sum()

        start = network.initial_state(REACH_WINDOWS)
        gradients = state_gradients(network.eval(), windows.inputs, start, LAGS, loss)  # [lags, windows, state]
        return np.asarray(gradients.norm(dim=-1).mean(dim=-1), np.float64)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = {cell: norms(Forecaster(Shape(cell, model.hidden_size))) for cell in REACH_CELLS}
    trained = {cell: norms(Forecaster.of(load_prior(cell))) for cell in REACH_CELLS}
    return {
        f"Fresh cells of {model.hidden_size} units": fresh,
        "Trained: the priors that ship, and this model": trained | {f"this ({model.cell})": norms(model)},
    }


def forecasts(model: Forecaster, recorded: Recorded, excerpt: Excerpt) -> tuple[Float64, Float64, Float64]:
    """Return what is expected of a lane, and the band's lower and upper end, in its own unit: each [rows, horizons]."""
    rows = slice(excerpt.first, excerpt.first + len(excerpt.value))
    with torch.no_grad():
        forecast, _ = model(torch.from_numpy(recorded.inputs[rows])[:, None], model.initial_state(1))
    location, log_scale, freedom = (part[:, 0].double().numpy() for part in forecast)  # [rows, horizons]
    reach = stdtrit(freedom, (1 + LIKELY) / 2) * np.exp(log_scale)
    mean, deviation = excerpt.frames["mean"][:, None], excerpt.frames["deviation"][:, None]
    expected, lower, upper = (
        mean + deviation * np.sinh(unit) for unit in (location, location - reach, location + reach)
    )
    return expected, lower, upper


# -- plots -------------------------------------------------------------------------------------------------------------


@in_our_style
def plot_reach(panels: Mapping[str, Mapping[str, Float64]]) -> Plot:
    """Plot the gradient's norm against the lag: for each panel, by name, a line for each cell, over LAGS."""
    figure = Figure(figsize=(13, 4.6))
    grid = figure.subplots(1, len(panels), sharey=True, gridspec_kw={"top": 0.9, "bottom": 0.12, "wspace": 0.13})
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for name, norms in lines.items():
            colour, dashes = CELL_STYLES.get(name, THIS)
            seen = np.where(norms >= MIN_NORM, norms, np.nan)
            axes.plot(LAGS, seen, color=colour, linestyle=dashes, linewidth=1.6, label=name)
        axes.set_yscale("log")
        axes.set_xlim(1, LAGS[-1])
        axes.set_xlabel("k, events back")
        axes.set_title(title)
        axes.tick_params(labelleft=True)
        axes.grid(axis="x")
        axes.legend(loc="lower left", fontsize=8.5, handlelength=3.2)  # lines fall to the right
    grid[0].set_ylabel("|dL(t) / ds(t-k)|     s = h; lstm: s = h, C")
    return (
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
    return (
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
    return (
        "Training and validation loss",
        "Both should fall and then level off; where the right one rises while the left one still falls, the network is "
        "learning by heart, and the weights of the dashed line are the ones that are kept. (The levels differ: "
        "synthetic series are mixed into the training.)",
        figure,
    )


@in_our_style
def plot_forecasts(model: Forecaster, recording: TrainingData, whose: str) -> Plot:
    """Plot forecasts over a few lanes' last values: a row for each lane, a column for each of the first horizons."""
    horizons = model.horizons[:MAX_HORIZONS]
    rows = len(recording.excerpts)
    height = 0.7 + 2.5 * rows
    figure = Figure(figsize=(13, height))
    margins = {"top": 1 - 0.55 / height, "bottom": 0.45 / height, "wspace": 0.14, "hspace": 0.42}
    grid = figure.subplots(rows, len(horizons), squeeze=False, gridspec_kw=margins)
    for panels, excerpt in zip(grid, recording.excerpts, strict=True):
        bands = forecasts(model, recording.recorded, excerpt)
        for column, (axes, horizon) in enumerate(zip(panels, horizons, strict=True)):
            last = len(excerpt.value) - horizon + 1
            shown = min(SHOWN, last)
            made = slice(last - shown, last)  # rows that forecast
            came = slice(len(excerpt.value) - shown, None)  # and the events that they forecast
            title = f"{excerpt.name}: {horizon} {'event' if horizon == 1 else 'events'} ahead"
            _draw_forecast(
                axes, title, excerpt.time[came], excerpt.value[came], *(band[made, column] for band in bands)
            )
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="upper right", ncols=3)
    return (
        f"Forecasts against the data, by {whose}",
        f"The dark line is what came, on held-back time, and the band holds what was thought {LIKELY:.0%} likely so "
        "many events before: it should be as narrow as the noise and wider further ahead, and the dark line should "
        f"leave it once in {1 / (1 - LIKELY):.0f} events, not more.",
        figure,
    )


def _section(title: str, reading: str, figure: Figure) -> str:
    """Return a heading, how to read the plot, and the plot as an SVG within the page."""
    image = io.BytesIO()
    with rc_context({"svg.hashsalt": "longwatch"}):  # equal plots give equal bytes
        figure.savefig(image, format="svg", metadata={"Date": None})
    tag = image_tag(title, "svg+xml", image.getvalue())
    return f"<h2>{html.escape(title)}</h2>\n<p>{html.escape(reading)}</p>\n{tag}"


def _draw_forecast(
    axes: Axes, title: str, time: Int64, value: Float64, expected: Float64, lower: Float64, upper: Float64
) -> None:
    dates = time.astype("datetime64[ns]")
    axes.fill_between(dates, lower, upper, color=BAND, linewidth=0, label="band")
    axes.plot(dates, expected, color=SCORE, linewidth=0.8, linestyle=DASHES, label="expected")
    axes.plot(dates, value, color=VALUE, linewidth=0.9, label="observed")
    low, high = np.nanmin(value), np.nanmax(value)
    room = 0.35 * (high - low) or 1.0  # a band may be as wide as it likes: the values must be seen
    axes.set_ylim(low - room, high + room)
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


# -- tables ------------------------------------------------------------------------------------------------------------


def _parameters(model: Forecaster) -> str:
    """Return the parameter count as the theory works it out: gate by gate, layer by layer."""
    size, layers, horizons = model.hidden_size, len(model.layers), len(model.horizons)
    counted = parameter_count(model.shape)
    rows = []
    for layer in range(layers):
        below = INPUT_SIZE if layer == 0 else size
        one = (below + size) * size + size
        for gate in GATE_NAMES[model.cell]:
            what = f"layer {layer + 1}, {gate}" if layers > 1 else gate
            rows.append((what, "(d + H) H + H", f"({below} + {size}) {size} + {size}", one))
    if GATES[model.cell]:
        factors = f"{GATES[model.cell]} · {size} · {layers}"
        rows.append(("torch's second biases", "gates H layers", factors, counted["second_biases"]))
    else:
        rows.append(("reservoir", "not trained", "", 0))
    if model.attention is not None:
        rows.append(("attention", "2 H H", f"2 · {size} · {size}", counted["attention"]))
    factors = f"{PARAMETERS_OF_T} · {horizons} ({layers} · {size} + 1) + 2 · {horizons} · {INPUT_SIZE}"
    rows.append((f"heads, n = {horizons}", "3 n (L H + 1) + 2 n d", factors, counted["heads"]))
    total = sum(row[-1] for row in rows)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    check = "as torch counts" if total == trained else f"but torch counts {trained:,}"
    lines = "\n".join(
        f'<tr><th>{html.escape(what)}</th><td>{how}</td><td>{numbers}</td><td class="number">{count:,}</td></tr>'
        for what, how, numbers, count in rows
    )
    return (
        f"<h2>Parameters of this {model.cell}</h2>\n<p>Every gate has a matrix from the d inputs and one from the H "
        "hidden units, and a bias for each unit; heads read the hidden units and the inputs. Multiplied out, the rows "
        f"add up to {total:,}, {check}.</p>\n<table>{lines}\n"
        f'<tr><th>together</th><td></td><td></td><th class="number">{total:,}</th></tr></table>'
    )


def _settings(used: Mapping[str, Mapping[str, Any]]) -> str:
    lines = "\n".join(
        f"<tr><th>{section}.{name}</th><td>{html.escape(_text(value))}</td></tr>"
        for section, values in used.items()
        for name, value in values.items()
    )
    return f"<h2>Settings</h2>\n<p>What this run was made with; lengths are in events.</p>\n<table>{lines}</table>"


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return "as by default" if value is None else str(value)
