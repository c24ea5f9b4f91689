"""The same engine over history: files in, a CSV with a row for each event out, and figures where there are labels.

Deterministic: same files and settings, same rows. The network is not retrained here.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from connectors.batches import Alert, Scores
from connectors.decode.decoder import Decoder
from connectors.files.labels import LabelsError, Window, load_labels, windows_of
from connectors.files.lines import FileError
from connectors.files.settings import FileSettings
from connectors.files.source import FileSource
from detector.commands import LOOKAHEAD_NOTE
from detector.commands.outputs import OutputFile
from detector.commands.score_table import PER_FEATURE, ExtraColumns, ScoreTable, cells, feature_columns
from detector.config.settings import Settings
from detector.engine.engine import Engine
from detector.errors import UsageError
from detector.observability.alert_text import describe
from detector.service.engine_setup import device_of, engine_settings
from detector.service.model_choice import first_model
from training.evaluate import average_precision, incident_table, incidents, roc_auc, rows_in_windows

if TYPE_CHECKING:
    from detector.commands.smooth import ScoredHistory, Smoothed

logger = logging.getLogger(__name__)

LOOKAHEAD_PREFIX = "lookahead_"  # begins the name of every column that knows the future
MAX_NAMES = 5  # streams named in a line
MAX_LOGGED_REJECTIONS = 10
ROWS_AT_ONCE = 10_000  # of the extra columns, as text


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

    def write(scores: Scores) -> None:
        if table is not None:
            table.write(scores)
        if history is not None:
            history.add(scores)

    result = replay(options.files, settings, write)
    if not result.scored:
        raise FileError(
            f"no event was scored: {result.rejected} records were rejected, {result.dropped} events late or duplicate;"
            " see section [decode]" + (f", and {output.path} stays as it was" if output else "")
        )
    if table is not None:
        table.close(lookahead_columns(history, settings) if history is not None else None)
    if history is not None:
        print(f"longwatch: {options.output} has columns named lookahead_... . {LOOKAHEAD_NOTE}", file=sys.stderr)
    report = sys.stderr if output and output.is_standard_output else sys.stdout
    firing = [alert for alert in result.alerts if alert.status == "firing"]
    for alert in firing:
        print(describe(alert), file=report)
    print(
        f"{result.scored:,} events scored in {result.seconds:.1f} s "
        f"({result.scored / max(result.seconds, 1e-9):,.0f}/s), {len(firing)} alerts, "
        f"{result.dropped} late or duplicate, {result.rejected} rejected" + (f"; {output.path}" if output else ""),
        file=report,
    )
    if labels is not None:
        print(f"\n{evaluation(result.streams, labels)}", file=report)


@dataclass(slots=True)
class ScoredStream:
    """One stream's scored events in their order, for an evaluation; every array is [events]."""

    time: NDArray[np.int64]  # ns
    score: NDArray[np.float64]
    alert: NDArray[np.bool_]


class ScoredStreams:
    """Collects the scores of every stream."""

    def __init__(self) -> None:
        self._parts: dict[str, list[ScoredStream]] = {}

    def add(self, scores: Scores) -> None:
        """Take a batch in."""
        stream = scores.batch.stream[scores.event]
        time_ = scores.batch.time[scores.event]
        order = np.argsort(stream, kind="stable")
        edges = np.flatnonzero(np.diff(stream[order], prepend=-1, append=-1))
        for a, b in pairwise(edges):
            rows = order[a:b]
            name = scores.batch.streams[stream[rows[0]]]
            self._parts.setdefault(name, []).append(ScoredStream(time_[rows], scores.score[rows], scores.alert[rows]))

    def all(self) -> dict[str, ScoredStream]:
        """Return each stream whole, by name."""
        return {
            name: ScoredStream(
                np.concatenate([part.time for part in parts]),
                np.concatenate([part.score for part in parts]),
                np.concatenate([part.alert for part in parts]),
            )
            for name, parts in sorted(self._parts.items())
        }


@dataclass(slots=True)
class BacktestResult:
    """The outcome of a backtest."""

    events: int = 0
    scored: int = 0
    dropped: int = 0
    seconds: float = 0.0
    alerts: list[Alert] = field(default_factory=list)
    rejected: int = 0
    streams: ScoredStreams = field(default_factory=ScoredStreams)


def replay(
    paths: Sequence[str],
    settings: Settings,
    write: Callable[[Scores], None],
) -> BacktestResult:
    """Score all events of `paths`, each file at full speed; hand every batch of scores to `write`.

    Raises FileError for a file that cannot be read.
    """
    decoder = Decoder(settings.decode)
    source = FileSource(FileSettings(paths=tuple(paths)), decoder)
    stored: dict[str, bytes] = {}  # states of evicted streams
    engine = Engine(
        first_model(settings),
        engine_settings(settings),
        device_of(settings),
        lambda names: [stored.get(name) for name in names],
    )
    result = BacktestResult()
    began = time.perf_counter()
    bar = tqdm(unit=" events", unit_scale=True, disable=None)
    while not source.finished():
        raw = source.poll(0.5)
        batch, rejected = decoder.decode(raw)
        for one in rejected[: max(MAX_LOGGED_REJECTIONS - result.rejected, 0)]:
            logger.warning("rejected: %s", one.detail)
        result.rejected += len(rejected)
        step = engine.step(batch)
        if engine.streams.pending_count:
            stored.update(engine.streams.drain())
        write(step.scores)
        result.events += len(batch)
        result.scored += len(step.scores)
        result.alerts += step.alerts
        result.streams.add(step.scores)
        bar.update(len(batch))
    bar.close()
    source.close()
    engine.close()
    result.dropped = result.events - result.scored
    result.seconds = time.perf_counter() - began
    return result


def lookahead_columns(history: ScoredHistory, settings: Settings) -> ExtraColumns:
    """Return the columns that a pass over all of `history`, backwards too, adds to a ScoreTable of the same events."""
    from training.network.model import Forecaster  # noqa: PLC0415 - with torch, which the engine does not need on a CPU

    model = Forecaster.of(first_model(settings)).to(device_of(settings))
    with tqdm(desc="looking ahead", total=len(history), unit=" values", unit_scale=True, disable=None) as bar:
        smoothed = history.smoothed(model, bar.update)
    names = feature_columns([LOOKAHEAD_PREFIX + kind for kind in PER_FEATURE], history.features)
    return ExtraColumns([LOOKAHEAD_PREFIX + "score", *names], _rows(history, smoothed))


def _rows(history: ScoredHistory, smoothed: Smoothed) -> Iterator[str]:
    start, feature, width = history.start(), history.feature(), len(PER_FEATURE)
    for first in range(0, len(smoothed.score), ROWS_AT_ONCE):
        edges = start[first : first + ROWS_AT_ONCE + 1]
        here = slice(int(edges[0]), int(edges[-1]))
        table = np.full((len(edges) - 1, 1 + width * len(history.features)), np.nan)
        table[:, 0] = smoothed.score[first : first + ROWS_AT_ONCE]
        row = np.repeat(np.arange(len(table)), np.diff(edges))
        for k, values in enumerate((smoothed.expected, smoothed.lower, smoothed.upper)):
            table[row, 1 + width * feature[here] + k] = values[here]
        yield from map(cells, table.tolist())


def _some(names: Iterable[str]) -> str:
    shown = [repr(name) for name in islice(names, MAX_NAMES + 1)]
    return ", ".join([*shown[:MAX_NAMES], "..."] if len(shown) > MAX_NAMES else shown) or "none"


def evaluation(streams: ScoredStreams, labels: dict[str, list[Window]]) -> str:
    """Return a table of found and missed incidents and false alarms, and how well scores rank labelled rows.

    Raises LabelsError where the labels name none of the streams.
    """
    judged, scores, rows = [], [], []
    for name, scored in streams.all().items():
        windows = windows_of(labels, name)
        if windows is None:
            logger.warning("stream %r is not named in the labels: left out of the figures", name)
            continue
        order = np.argsort(scored.time, kind="stable")
        judged.append(incidents(name, scored.time[order], scored.alert[order], windows))
        scores.append(scored.score[order])
        rows.append(rows_in_windows(scored.time[order], windows))
    if not judged:
        raise LabelsError(
            f"the labels name none of the streams: they name {_some(labels)}, scored were {_some(streams.all())}"
        )
    score, labelled = np.concatenate(scores), np.concatenate(rows)
    auc, precision = roc_auc(score, labelled), average_precision(score, labelled)
    return (
        f"{incident_table(judged)}\n\nROC AUC {auc:.3f}, average precision {precision:.3f}, over {len(score):,} events"
    )
