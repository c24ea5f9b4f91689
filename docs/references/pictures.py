"""The pictures of docs/scoring.md, docs/images/channels/*.svg: python -m docs.references.pictures.

Each is a small series that the product's own engine has scored, with the shipped network and the default settings: the
values, the channel's statistic, and the score against the threshold. On the left what the channel finds, on the right
what it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.batches import CHANNELS, EventBatch
from detector.engine.batch_layout import Pass
from detector.engine.engine import Engine
from detector.engine.stages import ScoredBatch
from detector.scoring import units
from detector.scoring.incidents import FIRES, RENEWS, RESOLVES
from docs.references.svg import Column, Line, Mark, Panel, drawn

Float64 = NDArray[np.float64]

FOLDER = Path(__file__).resolve().parents[1] / "images" / "channels"
DAY = 288  # events: one every five minutes
START = np.datetime64("2026-10-05T00:00:00", "ns")  # a Monday


class Series(NamedTuple):
    """A stream of numbers or of symbols, and which part of it is shown."""

    title: str
    features: Mapping[str, Float64 | list[str]]  # [events] each
    shown: slice


class Scored(NamedTuple):
    """What the engine made of a series of one feature or several."""

    measured: NDArray[np.void]  # MEASURED [events, features]
    verdicts: NDArray[np.void]  # VERDICT [events]


class Picture(NamedTuple):
    """A picture of a channel."""

    title: str
    statistic: str  # what the second panel shows ...
    of: Callable[[Scored], Float64]  # ... and where from, [events]
    found: Series
    missed: Series


def _times(count: int) -> NDArray[np.datetime64]:
    return START + np.arange(count) * np.timedelta64(5, "m")


def _day(count: int, seed: int, noise: float = 1.0) -> Float64:
    """Return a load with a day: 20 at night, 60 at noon, and noise."""
    hours = np.arange(count) / 12.0
    return 40.0 - 20.0 * np.cos(2.0 * np.pi * hours / 24.0) + noise * np.random.default_rng(seed).normal(size=count)


def _flat(count: int, seed: int) -> Float64:
    """Return a value that stays about 40, as a sensor with two decimals gives it."""
    return np.round(40.0 + np.random.default_rng(seed).normal(size=count), 2)


def forecast() -> Picture:
    """Show one wild value, and a sensor stuck at a usual one."""
    spike, stuck = _day(8 * DAY, 1), _flat(8 * DAY, 2)
    spike[7 * DAY + 150] += 12.0
    stuck[7 * DAY + 130 : 7 * DAY + 190] = 40.2
    shown = slice(7 * DAY + 84, 7 * DAY + 216)
    return Picture(
        "The channel forecast: one value far from its forecast, and a sensor that is stuck at a usual value",
        "largest error, units",
        lambda s: s.measured["units"][:, 0, [units.ERROR, units.SMOOTHED, units.FAR]].max(axis=1),
        Series("found: one value 12 deviations off", {"value": spike}, shown),
        Series("not found: stuck at a usual value", {"value": stuck}, shown),
    )


def level() -> Picture:
    """Show a night that does not end, and one wild value."""
    night, spike = _day(8 * DAY, 3), _day(8 * DAY, 1)
    begin = 7 * DAY + 36  # 03:00
    night[begin:] = 26.0 + np.random.default_rng(4).normal(size=8 * DAY - begin)
    spike[7 * DAY + 75] += 12.0
    shown = slice(7 * DAY, 7 * DAY + 132)
    return Picture(
        "The channel level: an outage that begins at night, and one value far from its forecast",
        "difference from the hour's usual, units",
        lambda s: s.measured["units"][:, 0, units.LEVEL],
        Series("found: the morning's load does not come", {"value": night}, shown),
        Series("not found: one value, over at once", {"value": spike}, shown),
    )


def still() -> Picture:
    """Show a sensor that is stuck, and a state that often rests."""
    stuck = _flat(8 * DAY, 5)
    stuck[7 * DAY + 120 : 7 * DAY + 186] = 40.2
    state = np.zeros(8 * DAY)
    for at in np.cumsum(3.0 + np.random.default_rng(6).exponential(25.0, 80)).astype(int):
        state[at : at + 3] = 1.0  # on for a quarter of an hour, now and then
    state[7 * DAY + 120 : 7 * DAY + 186] = 0.0
    shown = slice(7 * DAY + 84, 7 * DAY + 216)
    return Picture(
        "The channel still: a sensor that is stuck, and a state that often rests",
        "log10 of events between such runs",
        lambda s: s.measured["still"][:, 0],
        Series("found: no change for five and a half hours", {"value": stuck}, shown),
        Series("not found: a state that often rests", {"value": state}, shown),
    )


def coupling() -> Picture:
    """Show a feature that parts from the others, and all of them together."""
    rng = np.random.default_rng(7)
    load = 10.0 * np.sin(np.cumsum(rng.normal(size=8 * DAY)) / 12.0)  # [events] wanders, without a rhythm

    def three(loads: tuple[Float64, Float64, Float64]) -> dict[str, Float64]:
        gains = {"in": 1.0, "out": 0.8, "cpu": 0.6}
        return {
            name: 40.0 + gain * of + 0.3 * rng.normal(size=len(of))
            for (name, gain), of in zip(gains.items(), loads, strict=True)
        }

    turn, stop = 7 * DAY + 132, 7 * DAY + 192
    alone, common = load.copy(), load.copy()
    alone[turn:stop] *= np.linspace(1.0, -1.0, stop - turn)
    apart, together = three((load, load, alone)), three((common, common, common))
    shown = slice(7 * DAY + 84, 7 * DAY + 216)
    return Picture(
        "The channel coupling: a feature that parts from the others, and a rise of all",
        "what the others leave unexplained, units",
        lambda s: s.measured["units"][:, :, units.COUPLING].max(axis=1),
        Series("found: cpu parts from in and out", apart, shown),
        Series("not found: all three rise together", together, shown),
    )


def novel() -> Picture:
    """Show a value between two usual ones, and one that was met before."""
    rng = np.random.default_rng(8)
    state = np.where(np.sin(np.arange(8 * DAY) / 11.0) > 0.0, 80.0, 20.0) + rng.normal(size=8 * DAY)
    between = state.copy()
    between[7 * DAY + 150] = 50.0
    usual = state.copy()
    usual[7 * DAY + 144 : 7 * DAY + 156] = 20.0 + rng.normal(size=12)
    shown = slice(7 * DAY + 84, 7 * DAY + 216)
    return Picture(
        "The channel novel: a value that was never met, inside the range, and a familiar one at a wrong time",
        "log10 of events between such",
        lambda s: s.measured["novel"][:, 0],
        Series("found: 50, where only 20 and 80 were met", {"value": between}, shown),
        Series("not found: 20 again, at a wrong time", {"value": usual}, shown),
    )


def symbol() -> Picture:
    """Show a symbol that was never met, and three that stay away."""
    rng = np.random.default_rng(9)
    steps = ["login", "query", "write", "logout"]
    new = [steps[k % 4] if rng.random() > 0.02 else steps[int(rng.integers(4))] for k in range(8 * DAY)]
    away = list(new)
    new[7 * DAY + 150] = "panic"
    away[7 * DAY + 132 : 7 * DAY + 180] = ["query"] * 48
    shown = slice(7 * DAY + 84, 7 * DAY + 216)
    return Picture(
        "The channel symbol: a symbol that was never met, and one that stays away",
        "surprise, nats",
        lambda s: s.measured["surprise"][:, 0],
        Series("found: a symbol never seen", {"code": new}, shown),
        Series("not found: three of four symbols stay away", {"code": away}, shown),
    )


def news() -> Picture:
    """Show a change that lasts, and one that goes back."""
    lasts, back = _day(9 * DAY, 10), _day(9 * DAY, 10)
    lasts[7 * DAY + 130 :] += 25.0
    back[7 * DAY + 130 : 7 * DAY + 142] += 25.0
    shown = slice(7 * DAY + 108, 7 * DAY + 204)
    return Picture(
        "News: a change that lasts is told once and taken as normal; one that goes back ends when it has",
        "largest error, units",
        lambda s: s.measured["units"][:, 0, [units.ERROR, units.SMOOTHED, units.FAR]].max(axis=1),
        Series("a change that lasts", {"value": lasts}, shown),
        Series("a change of one hour", {"value": back}, shown),
    )


PICTURES = {make.__name__: make for make in (forecast, level, still, coupling, novel, symbol, news)}


def scored(series: Series) -> Scored:
    """Return what the engine makes of a series, as a stream of its own."""
    columns = series.features
    count = len(next(iter(columns.values())))
    engine = Engine()
    kept: list[ScoredBatch] = []
    run = engine._stages.run

    def keep(one: Pass, model: int) -> ScoredBatch:
        kept.append(run(one, model))
        return kept[-1]

    engine._stages.run = keep  # type: ignore[method-assign]
    rows = [{name: column[k] for name, column in columns.items()} for k in range(count)]
    engine.step(EventBatch.of(zip(["stream"] * count, _times(count), rows, strict=True)))
    engine.close()
    (whole,) = kept
    return Scored(whole.measured.reshape(count, len(columns)), whole.verdicts)


def columns_of(picture: Picture) -> list[Column]:
    """Return what a picture shows, scored: what is found, what is not."""
    return [_column_of(series, picture.statistic, picture.of) for series in (picture.found, picture.missed)]


def _column_of(series: Series, statistic: str, of: Callable[[Scored], Float64]) -> Column:
    result, part = scored(series), series.shown
    verdicts = result.verdicts[part]
    values = list(series.features.values())
    ticks: list[str] = []
    if isinstance(values[0], list):
        ticks = list(dict.fromkeys(values[0]))
        lines = [Line("dots", np.array([float(ticks.index(name)) for name in values[0][part]]), "code")]
        band = None
    else:
        kinds = ("value", "second", "third")
        lines = [
            Line(kind, np.asarray(column)[part], name)
            for kind, (name, column) in zip(kinds, series.features.items(), strict=False)
        ]
        band = (result.measured["lower"][part, 0], result.measured["upper"][part, 0]) if len(values) == 1 else None
    marks = []
    for k in np.flatnonzero(np.isin(verdicts["change"], (FIRES, RENEWS, RESOLVES))).tolist():
        v = verdicts[k]
        if v["change"] != RESOLVES:
            marks.append(Mark(k, f"alert: {CHANNELS[v['channel']]}"))
        else:
            marks.append(Mark(k, "resolved: " + ("accepted" if v["accepted"] else "back"), end=True))
    hours = part.start / 12.0 % 24.0 + np.arange(part.stop - part.start) / 12.0
    panels = [
        Panel(lines, band, ticks=ticks),
        Panel([Line("statistic", of(result)[part], statistic)], whole=True),
        Panel(
            [Line("score", verdicts["score"], "score"), Line("bound", verdicts["threshold"], "threshold")],
            whole=True,
        ),
    ]
    return Column(series.title, hours, panels, marks)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, make in PICTURES.items():
        picture = make()
        (FOLDER / f"{name}.svg").write_text(drawn(picture.title, columns_of(picture)), encoding="utf-8")
