"""The same engine over history: files in, a CSV with a row for each event out, and figures where there are labels.

Deterministic: same files and settings, same rows. The network is not retrained here.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from connectors.batches import Alert, Bool, EventBatch, Float64, Int64, Scores, numbered
from connectors.decode.decoder import Decoder
from connectors.files.labels import LabelsError, Window, load_labels, windows_of
from connectors.files.lines import FileError
from connectors.files.settings import FileSettings
from connectors.files.source import FileSource
from detector.commands import LOOKAHEAD_NOTE
from detector.commands.budgets import BUDGETS, Spans, Trial, budget_table
from detector.commands.outputs import OutputFile
from detector.commands.score_table import ScoreTable
from detector.config.settings import Settings
from detector.engine.engine import Engine, Step
from detector.errors import UsageError
from detector.observability.alert_text import describe
from detector.service.engine_setup import device_of, engine_settings
from detector.service.model_choice import first_model
from training.evaluate import average_precision, incident_table, incidents, roc_auc, rows_in_windows

if TYPE_CHECKING:
    from detector.commands.smooth import ScoredHistory

logger = logging.getLogger(__name__)

MAX_NAMES = 5  # streams named in a line
MAX_LOGGED_REJECTIONS = 10


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Score the files and write the table, the alerts and, with labels, an evaluation.

    Raises FileError where nothing could be scored or written, LabelsError, UsageError, and SmoothError with --smooth.
    """
    if options.smooth and options.output is None:
        raise UsageError("backtest: --smooth adds columns to a table: name it with --output")
    labels = load_labels(options.labels) if options.labels else None
    output = OutputFile(options.output) if options.output else None
    table = ScoreTable(output) if output else None
    history: ScoredHistory | None = None
    if options.smooth:
        from detector.commands.smooth import ScoredHistory  # noqa: PLC0415 - with torch

        history = ScoredHistory()
    streams = ScoredStreams() if labels is not None else None
    spans = Spans() if options.budgets else None
    trials = [_trial(settings, budget) for budget in BUDGETS] if options.budgets else []
    parts = (table, history, streams, spans, *trials)
    result = replay(options.files, settings, [part.add for part in parts if part is not None])
    if not result.scored:
        raise FileError(
            f"no event was scored: {result.rejected} records were rejected, {result.dropped} events late or duplicate;"
            " see section [decode]" + (f", and {output.path} stays as it was" if output else "")
        )
    if table is not None:
        table.close(*(history.columns(first_model(settings), device_of(settings)) if history is not None else ()))
    if history is not None:
        print(f"longwatch: {options.output} has columns named lookahead_... . {LOOKAHEAD_NOTE}", file=sys.stderr)
    report = sys.stderr if output and output.is_standard_output else sys.stdout
    firing = [alert for alert in result.alerts if alert.status == "firing"]
    for alert in firing if spans is None else ():
        print(describe(alert), file=report)
    print(
        f"{result.scored:,} events scored in {result.seconds:.1f} s "
        f"({result.scored / max(result.seconds, 1e-9):,.0f}/s), {len(firing)} alerts, "
        f"{result.dropped} late or duplicate, {result.rejected} rejected" + (f"; {output.path}" if output else ""),
        file=report,
    )
    if spans is not None:
        print(f"\n{budget_table(trials, spans, settings)}", file=report)
    if labels is not None and streams is not None:
        print(f"\n{evaluation(streams, labels)}", file=report)


class ScoredStreams:
    """Collects the ranks and alerts of every stream."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # by name
        self._parts: list[tuple[Int64, Int64, Float64, Bool]] = []  # stream, time, rank, alert

    def add(self, scores: Scores) -> None:
        """Take a batch in."""
        batch, event = scores.batch, scores.event
        stream = numbered(batch.streams, self._numbers)[batch.stream[event]]
        self._parts.append((stream, batch.time[event], scores.rank, scores.alert))

    def by_name(self) -> dict[str, tuple[Int64, Float64, Bool]]:
        """Return each stream's times (ns), ranks and alerts, [events] in order of time; streams sorted by name."""
        names = list(self._numbers)
        stream, time_, rank, alert = map(np.concatenate, zip(*self._parts, strict=True))
        order = np.lexsort((time_, stream))  # stable
        groups = np.split(order, np.flatnonzero(np.diff(stream[order])) + 1)
        found = {names[stream[rows[0]]]: (time_[rows], rank[rows], alert[rows]) for rows in groups}
        return dict(sorted(found.items()))


@dataclass(slots=True)
class BacktestResult:
    """The outcome of a backtest."""

    scored: int = 0
    dropped: int = 0
    rejected: int = 0
    alerts: list[Alert] = field(default_factory=list)
    seconds: float = 0.0


class Scorer:
    """An engine that keeps evicted states itself, and goes by the rate of all events that it has seen."""

    def __init__(self, settings: Settings) -> None:
        self._stored: dict[str, bytes] = {}  # states of evicted streams
        self._engine = Engine(
            first_model(settings),
            engine_settings(settings),
            device_of(settings),
            lambda names: [self._stored.get(name) for name in names],
        )

    def step(self, batch: EventBatch) -> Step:
        """Score a batch."""
        engine = self._engine
        step = engine.step(batch)
        if engine.streams.spill:
            self._stored.update(engine.streams.drain())
        engine.fleet_events_per_day = engine.streams.events_per_day()
        return step

    def close(self) -> None:
        """End the engine's threads."""
        self._engine.close()


def _trial(settings: Settings, budget: float) -> Trial:
    alerting = settings.alerting.model_copy(update={"alerts_per_stream_per_week": budget, "threshold": None})
    scorer = Scorer(settings.model_copy(update={"alerting": alerting}))
    return Trial(budget, lambda scores: scorer.step(scores.batch).alerts)


def replay(paths: Sequence[str], settings: Settings, takers: Sequence[Callable[[Scores], None]]) -> BacktestResult:
    """Score all events of `paths`, each file at full speed; hand every batch of scores to each of `takers`.

    Raises FileError for a file that cannot be read.
    """
    decoder = Decoder(settings.decode)
    source = FileSource(FileSettings(paths=tuple(paths)), decoder)
    scorer = Scorer(settings)
    result = BacktestResult()
    began = time.perf_counter()
    with closing(scorer), closing(source), tqdm(unit=" events", unit_scale=True, disable=None) as bar:
        while not source.finished():
            batch, rejected = decoder.decode(source.poll(0.5))
            for one in rejected[: max(MAX_LOGGED_REJECTIONS - result.rejected, 0)]:
                logger.warning("rejected: %s", one.detail)
            step = scorer.step(batch)
            for take in takers:
                take(step.scores)
            result.scored += len(step.scores)
            result.dropped += len(batch) - len(step.scores)
            result.rejected += len(rejected)
            result.alerts += step.alerts
            bar.update(len(batch))
    result.seconds = time.perf_counter() - began
    return result


def _some(names: Iterable[str]) -> str:
    shown = [repr(name) for name in islice(names, MAX_NAMES + 1)]
    return ", ".join([*shown[:MAX_NAMES], "..."] if len(shown) > MAX_NAMES else shown) or "none"


def evaluation(streams: ScoredStreams, labels: dict[str, list[Window]]) -> str:
    """Return a table of found and missed incidents and false alarms, and how well the rank finds labelled rows.

    Raises LabelsError where the labels name none of the streams.
    """
    judged, ranks, rows = [], [], []
    scored = streams.by_name()
    for name, (time_, rank, alert) in scored.items():
        windows = windows_of(labels, name)
        if windows is None:
            logger.warning("stream %r is not named in the labels: left out of the figures", name)
            continue
        judged.append(incidents(name, time_, alert, windows))
        ranks.append(rank)
        rows.append(rows_in_windows(time_, windows))
    if not judged:
        raise LabelsError(
            f"the labels name none of the streams: they name {_some(labels)}, scored were {_some(scored)}"
        )
    rank, labelled = np.concatenate(ranks), np.concatenate(rows)
    auc, precision = roc_auc(rank, labelled), average_precision(rank, labelled)
    return (
        f"{incident_table(judged)}\n\n"
        f"rank: ROC AUC {auc:.3f}, average precision {precision:.3f}, over {len(rank):,} events"
    )
