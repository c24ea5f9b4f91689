"""What the demo makes of the scores and alerts that it has written: series, and a summary in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from connectors.batches import Float64, Int64
from connectors.files.labels import Window, windows_of
from connectors.json_records import AlertRecord, ScoreRecord
from detector.scoring.claims import WARM_UP_EVENTS
from training.evaluate import StreamIncidents, incidents, nab_probation

COLUMNS = 100  # of a terminal
WEEK_NS = 604_800 * 10**9
RULES = (
    "Found: an alert fired within the labelled window. False alarm: one fired outside every window. Delay: from the "
    "start of the window, which in this benchmark lies well before the incident itself."
)


@dataclass(frozen=True, slots=True)
class Series:
    """One feature of one stream, scored; the columns are [events], in order of time. NaN: not known."""

    stream: str
    feature: str
    time: Int64  # ns
    value: Float64
    lower: Float64
    upper: Float64
    score: Float64
    threshold: Float64
    alerts: Int64  # [alerts] ns: when each fired
    told: Sequence[str]  # [alerts] what each found, and how rare that is
    windows: Sequence[Window]  # labelled incidents

    @property
    def judged(self) -> StreamIncidents:
        """The alerts that fired, matched with the labelled windows."""
        return incidents(self.stream, self.time, np.isin(self.time, self.alerts), self.windows)


def read_series(scores: Path, alerts: Path, labels: Mapping[str, list[Window]]) -> list[Series]:
    """Return the streams of a file of scores and a file of alerts, by name; of each its first feature."""
    records: dict[str, list[ScoreRecord]] = defaultdict(list)
    for record in msgspec.json.Decoder(ScoreRecord).decode_lines(scores.read_bytes()):
        records[record.stream].append(record)
    fired: dict[str, list[AlertRecord]] = defaultdict(list)
    for alert in msgspec.json.Decoder(AlertRecord).decode_lines(alerts.read_bytes()):
        if alert.status == "firing":
            fired[alert.stream].append(alert)
    return [
        _series(stream, rows, fired[stream], windows_of(labels, stream) or [])
        for stream, rows in sorted(records.items())
    ]


def found_of(series: Sequence[Series]) -> str:
    """Return in words how many of all labelled incidents were found."""
    judged = [one.judged for one in series]
    found, labelled = sum(one.found for one in judged), sum(len(one.incidents) for one in judged)
    return f"{found} of {labelled} labelled incidents found"


def summary(series: Sequence[Series], budget: float) -> list[str]:
    """Return in words what the alerts come to, against the budget of alerts (a stream and week)."""
    false = sum(len(one.judged.false_alarms) for one in series)
    weeks = sum(int(one.time[-1] - one.time[0]) for one in series) / WEEK_NS
    early = sum(
        sum(alarm < one.time[nab_probation(len(one.time))] for alarm in one.judged.false_alarms) for one in series
    )
    return [
        f"{found_of(series)}. {false} false alarms in {weeks:.0f} weeks of streams: "
        f"{false / weeks:.2f} a stream and week; the budget, alerting.alerts_per_stream_per_week, is {budget:g}.",
        f"{early} of the false alarms fell into the first 15 % of a series (at most 750 events), which the benchmark "
        f"leaves to learning and does not count. Here they count: a stream warms up for {WARM_UP_EVENTS} events only.",
    ]


def _series(
    stream: str, rows: Sequence[ScoreRecord], fired: Sequence[AlertRecord], windows: Sequence[Window]
) -> Series:
    feature = next(iter(rows[0].observed))
    return Series(
        stream=stream,
        feature=feature,
        time=_times([row.timestamp for row in rows]),
        value=np.array([row.observed.get(feature) for row in rows], np.float64),
        lower=np.array([row.lower.get(feature) for row in rows], np.float64),
        upper=np.array([row.upper.get(feature) for row in rows], np.float64),
        score=np.array([row.score for row in rows]),
        threshold=np.array([row.threshold for row in rows]),
        alerts=_times([alert.started_at for alert in fired]),
        told=[f"{alert.summary}; {alert.return_period}" for alert in fired],
        windows=windows,
    )


def _times(texts: Sequence[str]) -> Int64:
    return np.array([text.removesuffix("Z") for text in texts], "datetime64[ns]").astype(np.int64)
