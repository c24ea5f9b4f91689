"""The page of `longwatch train --diagnose`: what a training did, for people who want to learn from it or to choose.

Everything is in the one HTML file, plots too. All figures are of the run itself and of the data it was given.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from detector.commands.diagnosis_plots import (
    ForecastSeries,
    plot_forecasts,
    plot_gradients,
    plot_losses,
    plot_reach,
)
from detector.commands.plot_style import html_document
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
REACH = 150  # events back: half a day at five minutes
REACH_WINDOWS = 64  # places in the data that the norms are the mean of
BAND = 0.98  # what falls outside is rare, and visible
SHOWN = 160  # events of a forecast plot, the last ones
MAX_HORIZONS = 3  # side by side
GATE_NAMES = {
    "rnn": ("hidden state",),
    "lstm": ("input gate", "forget gate", "candidate", "output gate"),
    "gru": ("reset gate", "update gate", "candidate"),
    "esn": (),
}


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
        lags = list(range(1, REACH + 1))
        plots = [plot_reach(gradient_reach(model, recorded, lags, self.seed), lags)]
        if self.steps:  # there are none where there was too little to judge by
            plots.append(plot_gradients(self.steps, self.learning.clip_norm))
            plots.append(plot_losses(self.steps, self.validations))
        whose = "the new model" if self.outcome.model else "the model that stays"
        plots.append(plot_forecasts([forecasts(model, recorded, one) for one in self.recording.excerpts], BAND, whose))
        used = {
            "model": self.champion.shape._asdict(),
            "training": {**self.learning.model_dump(), "seed": self.seed},
            "windows": asdict(self.plan),
        }
        body = "\n".join(
            [
                f"<p>Trained on {html.escape(self.name)}.</p>",
                f'<pre class="text">{html.escape(summary)}</pre>',
                *(plot.html() for plot in plots),
                _parameters(model),
                _settings(used),
            ]
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html_document("longwatch train: how it went", body), encoding="utf-8")


def gradient_reach(
    model: Forecaster, recorded: Recorded, lags: Sequence[int], seed: int
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return |dL_t/ds_(t-k)| by panel and cell, [lags]; L is the next event's loss, s the state a lane carries.

    All cells see the same windows of the recorded lanes: fresh ones as they are drawn, and those that ship trained.
    """
    first = recorded.draw(np.random.default_rng(seed), REACH_WINDOWS, lags[-1] + 1)
    windows = recorded.part(first, lags[-1] + 1, held_back=True, warm_up=0)
    targets = windows.targets[-1:, :, 0]  # [1, windows]

    def norms(network: Forecaster) -> NDArray[np.float64]:
        def loss(forecast: Forecast) -> Tensor:
            nearest = Forecast(*(part[..., 0] for part in forecast))
            return student_t_nll(nearest, targets).sum()

        start = network.initial_state(REACH_WINDOWS)
        gradients = state_gradients(network.eval(), windows.inputs, start, lags, loss)  # [lags, windows, state]
        return np.asarray(gradients.norm(dim=-1).mean(dim=-1), np.float64)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = {cell: norms(Forecaster(Shape(cell, model.hidden_size))) for cell in REACH_CELLS}
    trained = {cell: norms(Forecaster.of(load_prior(cell))) for cell in REACH_CELLS}
    return {
        f"Fresh cells of {model.hidden_size} units": fresh,
        "Trained: the priors that ship, and this model": trained | {f"this ({model.cell})": norms(model)},
    }


def forecasts(model: Forecaster, recorded: Recorded, excerpt: Excerpt) -> list[ForecastSeries]:
    """Return the forecasts of a lane's last events, for the first few horizons, in the data's own unit."""
    rows = slice(excerpt.first, excerpt.first + len(excerpt.value))
    with torch.no_grad():
        forecast, _ = model(torch.from_numpy(recorded.inputs[rows])[:, None], model.initial_state(1))
    location, log_scale, freedom = (part[:, 0].double().numpy() for part in forecast)  # [rows, horizons]
    reach = stdtrit(freedom, (1 + BAND) / 2) * np.exp(log_scale)
    mean, deviation = excerpt.frames["mean"][:, None], excerpt.frames["deviation"][:, None]
    expected, lower, upper = (
        mean + deviation * np.sinh(unit) for unit in (location, location - reach, location + reach)
    )

    found = []
    for column, horizon in enumerate(model.horizons[:MAX_HORIZONS]):
        last = len(excerpt.value) - horizon + 1
        shown = min(SHOWN, last)
        made = slice(last - shown, last)  # rows that forecast
        came = slice(len(excerpt.value) - shown, None)  # and the events that they forecast
        bands = (part[made, column] for part in (expected, lower, upper))
        found.append(ForecastSeries(excerpt.name, horizon, excerpt.time[came], excerpt.value[came], *bands))
    return found


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
    rows.append(
        (
            f"heads, n = {horizons}",
            "3 n (L H + 1) + 2 n d",
            f"{PARAMETERS_OF_T} · {horizons} ({layers} · {size} + 1) + 2 · {horizons} · {INPUT_SIZE}",
            counted["heads"],
        )
    )
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
