"""A batch on its way through the engine: sorted, judged, and put into words for whoever asked.

Between the stages everything lies sorted by stream; what leaves is in the batch's own order again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.batches import Alert, EventBatch, Scores
from detector.scoring.incidents import alert_id
from detector.state.symbol_names import SymbolNames

Int64 = NDArray[np.int64]


class SortedBatch(NamedTuple):
    """A batch's admitted events, sorted by stream, and where they came from."""

    event: Int64  # [events] index into the batch
    slot: Int64  # [events]
    time: Int64  # [events]
    interval: NDArray[np.float64]  # [events] running mean time between events, as of each
    lapse: Int64  # [events] when its stream had fallen silent before it came, ns; 0: it had not
    start: Int64  # [events + 1]
    observation: Int64  # [observations] index into the batch
    lane: Int64
    many_row: Int64
    value: NDArray[np.float64]
    symbol: Int64  # [observations] hash, 0: a number; [0] where all are

    def numbers(self) -> SortedBatch:
        """Return the same events with their numbers only."""
        if not len(self.symbol):
            return self
        kept = self.symbol == 0
        columns = {name: getattr(self, name)[kept] for name in ("observation", "lane", "many_row", "value")}
        start = np.concatenate(([0], np.cumsum(kept)))[self.start]
        return self._replace(start=start, symbol=np.zeros(0, np.int64), **columns)


class ScoredBatch(NamedTuple):
    """What the stages made of a batch's events; the order of Sorted."""

    work: SortedBatch
    measured: NDArray[np.void]  # MEASURED [observations]
    verdicts: NDArray[np.void]  # VERDICT [events]
    foreseen: NDArray[np.void]  # PREDICTION [observations], zeros for a number; [0] where all are
    features_dropped: int


def pass_numbers(slot: Int64, new: dict[int, dict[int, int]]) -> Int64 | None:
    """Return in which pass each event is to go through: a stream that gains features begins another; None: all in one.

    Events [events] are sorted by slot; `new` says by which of them a slot gains its features.
    """
    begins = np.zeros(len(slot), np.int64)
    begins[[event for features in new.values() for event in features.values()]] = 1
    first = np.flatnonzero(np.diff(slot, prepend=-1))
    begins[first] = 0
    if not begins.any():
        return None
    passes = np.cumsum(begins)
    return passes - np.repeat(passes[first], np.diff(first, append=len(slot)))


def concat(parts: list[ScoredBatch]) -> ScoredBatch:
    """Return the parts as one; a stream's events stay in their order."""
    works = [part.work for part in parts]
    counts = np.concatenate([np.diff(work.start) for work in works])
    columns = {name: np.concatenate([getattr(work, name) for work in works]) for name in SortedBatch._fields}
    columns["start"] = np.concatenate(([0], np.cumsum(counts)))
    return ScoredBatch(
        SortedBatch(**columns),
        np.concatenate([part.measured for part in parts]),
        np.concatenate([part.verdicts for part in parts]),
        np.concatenate([part.foreseen for part in parts]),
        sum(part.features_dropped for part in parts),
    )


def scores_of(batch: EventBatch, judged: ScoredBatch, version: str, names: SymbolNames) -> Scores:
    """Return the scores in the batch's own order; `version` names the weights."""
    work, measured, verdicts, foreseen, _ = judged
    place = np.full(len(batch), -1)
    place[work.event] = np.arange(len(work.event))
    back = place[place >= 0]
    counts = np.diff(work.start)[back]
    start = np.concatenate(([0], np.cumsum(counts)))
    rows = np.repeat(work.start[:-1][back] - start[:-1], counts) + np.arange(start[-1])
    symbols: dict[int, int] = {}
    likely, p, likely_p = np.zeros(0, np.int32), np.zeros(0), np.zeros(0)
    if len(foreseen):
        hashes = foreseen["top"][rows].tolist()
        likely = np.array([symbols.setdefault(h, len(symbols)) if h else -1 for h in hashes], np.int32)
        is_symbol = work.symbol[rows] != 0
        p = np.where(is_symbol, foreseen["p"][rows], np.nan)
        likely_p = np.where(is_symbol, foreseen["top_p"][rows], np.nan)
    return Scores(
        batch=batch,
        event=work.event[back],
        score=verdicts["score"][back],  # column by column: numpy takes ten times as long for rows of many fields
        threshold=verdicts["threshold"][back],
        alert=verdicts["alert"][back],
        warming=verdicts["warming"][back],
        young=verdicts["young"][back],
        surprise=verdicts["surprise"][back],
        start=start,
        observation=work.observation[rows],
        expected=measured["expected"][rows],
        lower=measured["lower"][rows],
        upper=measured["upper"][rows],
        contribution=measured["contribution"][rows],
        model_version=version,
        symbols=[names.name_of(number) for number in symbols],
        expected_symbol=likely,
        observed_probability=p,
        expected_probability=likely_p,
    )


def alert_of(
    batch: EventBatch, judged: ScoredBatch, i: int, version: str, critical_above: float, symbols: SymbolNames
) -> Alert:
    """Return the alert that sorted event `i` would fire; critical if its score is so far above the threshold."""
    work, measured, verdicts, foreseen, _ = judged
    event, verdict = int(work.event[i]), verdicts[i]
    rows = slice(int(work.start[i]), int(work.start[i + 1]))
    names = [batch.features[k] for k in batch.feature[work.observation[rows]]]

    def by_feature(values: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(names, values.tolist(), strict=True))

    observed: dict[str, float | str] = {**by_feature(batch.value[work.observation[rows]])}
    expected: dict[str, float | str | None] = {**by_feature(measured["expected"][rows])}
    lower, upper = by_feature(measured["lower"][rows]), by_feature(measured["upper"][rows])
    observed_probability, expected_probability = {}, {}
    for j in range(rows.start, rows.stop) if len(foreseen) else ():
        if work.symbol[j]:
            feature, f = names[j - rows.start], foreseen[j]
            observed[feature] = symbols.name_of(int(work.symbol[j]))
            expected[feature] = symbols.name_of(int(f["top"])) if f["top"] else None
            observed_probability[feature], expected_probability[feature] = float(f["p"]), float(f["top_p"])
            del lower[feature], upper[feature]

    name = batch.streams[batch.stream[event]]
    where = batch.partitions[batch.partition[event]]
    critical = verdict["score"] > verdict["threshold"] + critical_above
    return Alert(
        id=alert_id(name, int(work.time[i])),
        stream=name,
        status="firing",
        severity="critical" if critical else "warning",
        started_at=int(work.time[i]),
        ended_at=None,
        score=float(verdict["score"]),
        threshold=float(verdict["threshold"]),
        observed=observed,
        expected=expected,
        lower=lower,
        upper=upper,
        contributions=by_feature(measured["contribution"][rows]),
        model_version=version,
        topic=where.topic,
        partition=where.partition,
        offset=int(batch.offset[event]),
        observed_probability=observed_probability,
        expected_probability=expected_probability,
    )


def resolved(alert: Alert, ended_at: int, by: str) -> Alert:
    """Return the end of a firing alert's incident. Where the stream's time has moved back, so has its beginning."""
    started_at = min(alert.started_at, ended_at)
    return replace(alert, status="resolved", started_at=started_at, ended_at=ended_at, resolved_by=by)
