"""Clean streams of every kind at every step: do they keep to their budget, and how soon again after a change?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from connectors.batches import EventBatch
from detector.engine.engine import Engine, EngineSettings
from detector.scoring.incidents import AlertRules
from tests.bench.measures import WEEK
from tests.bench.panel import TIMES_BUDGET, TIMES_BUDGET_FIRST_DAY, PanelSeries, Told, judge, keeps, made, rate
from tests.bench.panel_kinds import KINDS, Frame, Kind
from training.evaluate import Bool, Float64

SETTLED = 200  # events after a lasting change from which on the budget is to hold again
STEP = 5.0  # deviations of the values, that a level moves by
CHANGES: dict[str, Callable[[Float64], Float64]] = {  # what becomes of a stream's values [rows, features], for good
    "none": lambda value: value,
    "step": lambda value: value + STEP * np.nanstd(value, axis=0),
    "twice as large": lambda value: 2.0 * value,
}


def clean_kinds(step: int, features: int) -> list[str]:
    """Return the kinds whose series have nothing that somebody has to be told."""
    return [
        name
        for name, kind in KINDS.items()
        if step in kind.steps and features >= kind.features and made_once(kind, step, features)
    ]


def made_once(kind: Kind, step: int, features: int) -> bool:
    """Whether a kind's series are clean."""
    series = kind.make(Frame(step, features, np.random.default_rng(0)))
    return series.due is None and series.once is None


def clean_streams(steps: Sequence[int], seeds: int, features: int, budget: float) -> str:
    """Return how clean streams keep to their budget, by step and kind."""
    lines, every = [f"{'alerts a week: day 1, later; shares':<34}{'streams':>8}{'day 1':>8}{'later':>8}"], []
    for step in steps:
        told: list[Told] = []
        for name in clean_kinds(step, features):
            mine = []
            for seed in range(100, 100 + seeds):
                one = made(name, step, features, seed)
                mine.append(judge(one, _alerts(one, budget)))
            told += mine
            lines.append(_told_row(f"  {step} s, {name}", mine))
        lines.append(_told_row(f"{step} s", told) + f"   within: {_within(told, budget)}")
        every += told
    return "\n".join([*lines, _told_row("all", every) + f"   within: {_within(every, budget)}"])


def after_changes(steps: Sequence[int], seeds: int, features: int, budget: float) -> str:
    """Return how clean streams keep to their budget in the week that begins SETTLED events after a lasting change.

    The change comes in the middle of a series, and to all of its features at once.
    """
    lines = [f"{'alerts a week, settled':<34}{'streams':>8}{'rate':>8}"]
    for step in steps:
        names = clean_kinds(step, features)
        for change in CHANGES:
            told = [
                judge(one, _alerts(one, budget))
                for name in names
                for one in (changed(made(name, step, features, seed), change) for seed in range(100, 100 + seeds))
            ]
            weekly = sum(sum(one.false) for one in told) / sum(sum(one.weeks) for one in told)
            often = [one.kind for one in told if not keeps(sum(one.false), sum(one.weeks), TIMES_BUDGET * budget)]
            kinds = ", ".join(f"{name} {often.count(name)}" for name in dict.fromkeys(often))
            within = f"within {TIMES_BUDGET} x: {1 - len(often) / len(told):.2f}" + f"; beyond: {kinds}" * bool(kinds)
            lines.append(f"  {f'{step} s, {change}':<32}{len(told):>8}{weekly:>8.2f}   {within}")
    return "\n".join(lines)


def changed(one: PanelSeries, change: str) -> PanelSeries:
    """Return a series changed for good from its middle on, and what is judged of it."""
    values, quiet, at = one.values.copy(), one.quiet.copy(), len(one.values) // 2
    values[at:] = CHANGES[change](values)[at:]
    quiet[: at + SETTLED] = False
    quiet[at + SETTLED + WEEK // one.step :] = False
    return replace(one, values=values, quiet=quiet)


def _alerts(one: PanelSeries, budget: float) -> Bool:
    columns = {f"f{k}": one.values[:, k] for k in range(one.features)}
    engine = Engine(settings=EngineSettings(rules=AlertRules(alerts_per_stream_per_week=budget)))
    batch = EventBatch.of_columns(one.stream, one.times.astype("datetime64[ns]"), columns)
    scores = engine.step(batch).scores
    alert = np.zeros(len(one.times), np.bool_)
    alert[batch.offset[scores.event]] = scores.alert
    return alert


def _told_row(name: str, told: Sequence[Told]) -> str:
    return f"{name:<34}{len(told):>8}" + "".join(f"{rate(told, part):>8}" for part in (0, 1))


def _within(told: Sequence[Told], budget: float) -> str:
    """Return the shares of streams within their multiples of the budget; one alert is always within."""
    shares = []
    for part, times in ((0, TIMES_BUDGET_FIRST_DAY), (1, TIMES_BUDGET)):
        known = [keeps(one.false[part], one.weeks[part], times * budget) for one in told if one.weeks[part]]
        shares.append(f"{np.mean(known):.2f}" if known else "-")
    return f"{shares[0]} day 1 ({TIMES_BUDGET_FIRST_DAY} x), {shares[1]} later ({TIMES_BUDGET} x)"
