"""What the demo makes of the scores and alerts that it has written: series, a summary in words, plots and a page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from tqdm import tqdm

from connectors.batches import Int64
from connectors.files.labels import Window, windows_of
from connectors.json_records import AlertRecord, ScoreRecord
from detector.commands.plot_style import html_page, save_png
from detector.commands.plots import Series, plot_overview, plot_stream
from detector.scoring.judge import NOVELTY_WARMUP
from training.evaluate import StreamIncidents, incidents, nab_probation

COLUMNS = 100  # of a terminal
WEEK_NS = 604_800 * 10**9
RULES = (
    "Found: an alert fired within the labelled window. False alarm: one fired outside every window. Delay: from the "
    "start of the window, which in this benchmark lies well before the incident itself."
)


def read_series(scores: Path, alerts: Path, labels: Mapping[str, list[Window]]) -> list[Series]:
    """Return the streams of a file of scores and a file of alerts, by name; of each its first feature."""
    records: dict[str, list[ScoreRecord]] = {}
    decoder = msgspec.json.Decoder(ScoreRecord)
    with scores.open("rb") as lines:
        for line in lines:
            record = decoder.decode(line)
            records.setdefault(record.stream, []).append(record)
    fired: dict[str, list[str]] = {}
    with alerts.open("rb") as lines:
        for line in lines:
            alert = msgspec.json.decode(line, type=AlertRecord)
            if alert.status == "firing":
                fired.setdefault(alert.stream, []).append(alert.started_at)
    return [
        _series(stream, rows, fired.get(stream, []), windows_of(labels, stream) or [])
        for stream, rows in sorted(records.items())
    ]


def match_incidents(series: Series) -> StreamIncidents:
    """Match the alerts that fired with the labelled windows."""
    return incidents(series.stream, series.time, np.isin(series.time, series.alerts), series.windows)


def summary(series: Sequence[Series], judged: Sequence[StreamIncidents], budget: float) -> list[str]:
    """Return in words what the table says, against the budget of alerts (a stream and week)."""
    found, labelled = sum(one.found for one in judged), sum(len(one.incidents) for one in judged)
    false = sum(len(one.false_alarms) for one in judged)
    weeks = sum(int(one.time[-1] - one.time[0]) for one in series) / WEEK_NS
    early = sum(
        sum(alarm < one.time[nab_probation(len(one.time))] for alarm in verdict.false_alarms)
        for one, verdict in zip(series, judged, strict=True)
    )
    return [
        f"{found} of {labelled} labelled incidents found. {false} false alarms in {weeks:.0f} weeks of streams: "
        f"{false / weeks:.2f} a stream and week; the budget, alerting.alerts_per_stream_per_week, is {budget:g}.",
        f"{early} of the false alarms fell into the first 15 % of a series (at most 750 events), which the benchmark "
        f"leaves to learning and does not count. Here they count: a stream warms up for {NOVELTY_WARMUP} events only.",
    ]


def write_plots(
    series: Sequence[Series], judged: Sequence[StreamIncidents], paragraphs: Sequence[str], table: str, output: Path
) -> str:
    """Write a PNG for each stream, one for all, and a page with them; return where."""
    captioned = [
        replace(one, note=f"{verdict.found} of {len(verdict.incidents)} incidents found, "
                f"{len(verdict.false_alarms)} false alarms in {len(one.time):,} events")
        for one, verdict in zip(series, judged, strict=True)
    ]  # fmt: skip
    images = []
    for one in tqdm(
        captioned, desc="drawing", unit=" plots", ncols=COLUMNS, leave=False, disable=None, file=sys.stderr
    ):
        path = output / f"{one.stream}.png"
        save_png(plot_stream(one), path)
        images.append((f"{one.stream}: {one.note}", path))
    found, labelled = sum(one.found for one in judged), sum(len(one.incidents) for one in judged)
    title = f"longwatch demo: {found} of {labelled} labelled incidents found in {len(series)} real series"
    save_png(plot_overview(captioned, title), output / "demo.png")
    (output / "index.html").write_text(html_page(title, paragraphs, table, images), encoding="utf-8")
    return f"{output / 'index.html'}, {output / 'demo.png'}"


def _series(stream: str, rows: Sequence[ScoreRecord], fired: Sequence[str], windows: Sequence[Window]) -> Series:
    feature = next(iter(rows[0].observed))
    return Series(
        stream=stream,
        feature=feature,
        time=_times([row.timestamp for row in rows]),
        value=np.array([row.observed.get(feature) for row in rows], np.float64),
        expected=np.array([row.expected.get(feature) for row in rows], np.float64),
        lower=np.array([row.lower.get(feature) for row in rows], np.float64),
        upper=np.array([row.upper.get(feature) for row in rows], np.float64),
        score=np.array([row.score for row in rows]),
        threshold=np.array([row.threshold for row in rows]),
        alerts=_times(fired),
        windows=windows,
    )


def _times(texts: Sequence[str]) -> Int64:
    return np.array([text.removesuffix("Z") for text in texts], "datetime64[ns]").astype(np.int64)
