"""A stream's window as a PNG: each feature with its band, and the score against the threshold."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from detector.commands.plot_style import (
    ALERT,
    BAND,
    DASHES,
    PLAIN,
    SCORE,
    SOFT,
    VALUE,
    in_our_style,
    save_png,
    time_axis,
)
from detector.commands.text_chart import room_of

MAX_FEATURES = 6  # those that contribute most at the highest score
WIDTH, ROW = 9.5, 1.9  # inches


@in_our_style
def plot_window(window: Mapping[str, Any], title: str, path: Path) -> None:
    """Write the picture. Raises OSError."""
    time = [datetime.fromtimestamp(at, UTC) for at in window["time"]]
    features = _leading(window)
    figure = Figure(figsize=(WIDTH, ROW * (len(features) + 1)), layout="constrained")
    rows = figure.subplots(len(features) + 1, 1, sharex=True, squeeze=False)[:, 0]
    alert = np.array(window["alert"], bool)
    for axes, feature in zip(rows, features, strict=False):
        of = {name: _column(window["by_feature"][feature][name]) for name in ("observed", "lower", "upper")}
        axes.fill_between(time, of["lower"], of["upper"], color=BAND, linewidth=0)
        axes.plot(time, of["observed"], color=VALUE, linewidth=0.9)
        axes.plot(np.array(time)[alert], of["observed"][alert], ".", color=ALERT)
        axes.set_ylabel(feature, **PLAIN)
        if (room := room_of(window["by_feature"][feature])) is not None:
            margin = (room[1] - room[0] or 1.0) * 0.05
            axes.set_ylim(room[0] - margin, room[1] + margin)
    rows[-1].plot(time, _column(window["score"]), color=SCORE, linewidth=0.9)
    rows[-1].plot(time, _column(window["threshold"]), color=SOFT, linestyle=DASHES, linewidth=0.9)
    rows[-1].set_ylabel("score")
    time_axis(rows[-1], 4, 9)
    rows[0].set_title(title, **PLAIN)
    save_png(figure, path)


def _leading(window: Mapping[str, Any]) -> list[str]:
    """Return the features that are numbers, those that contribute most first."""
    score = _column(window["score"])
    worst = int(np.nanargmax(score)) if np.isfinite(score).any() else -1
    found = [name for name in window["features"] if np.isfinite(_column(window["by_feature"][name]["observed"])).any()]
    share = {name: window["by_feature"][name]["contribution"][worst] or 0.0 for name in found}
    return sorted(found, key=lambda name: -share[name])[:MAX_FEATURES]


def _column(values: list[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], np.float64)
