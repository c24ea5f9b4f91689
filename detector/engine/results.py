"""What the stages made of a batch, in the batch's own order and for a person: scores, and alerts of open incidents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from connectors.batches import CALM, SILENCE, Alert, EventBatch, Scores
from detector.engine.stages import ScoredBatch
from detector.scoring.incidents import FIRES, NONE, PEAKS, RESOLVES, alert_id
from detector.state.names import SymbolNames
from detector.state.stream_states import StreamStates
from training.symbols.kernels import PREDICTION

ORIGIN = "id", "started_at", "topic", "partition", "offset"  # what an alert keeps of its incident's first event


def scores_of(batch: EventBatch, scored: ScoredBatch, version: str, names: SymbolNames) -> Scores:
    """Return the scores in the batch's own order; `version` names the weights."""
    work, measured, verdicts, _ = scored
    place = np.full(len(batch), -1)
    place[work.event] = np.arange(len(work.event))
    back = place[place >= 0]
    counts = np.diff(work.start)[back]
    start = np.concatenate(([0], np.cumsum(counts)))
    rows = np.repeat(work.start[:-1][back] - start[:-1], counts) + np.arange(start[-1])
    symbols: dict[int, int] = {}
    likely, p, likely_p = np.zeros(0, np.int32), np.zeros(0), np.zeros(0)
    if batch.symbols:
        is_symbol = work.symbol != 0
        predictions = np.zeros(len(measured), PREDICTION)  # those of numbers stay zero
        predictions[is_symbol] = scored.predictions
        predictions, is_symbol = predictions[rows], is_symbol[rows]
        hashes = predictions["top"].tolist()
        likely = np.array([symbols.setdefault(h, len(symbols)) if h else -1 for h in hashes], np.int32)
        p = np.where(is_symbol, predictions["p"], np.nan)
        likely_p = np.where(is_symbol, predictions["top_p"], np.nan)
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


def alerts_of(
    batch: EventBatch, scored: ScoredBatch, states: StreamStates, version: str, critical_above: float
) -> list[Alert]:
    """Carry open incidents' alerts on; return those that fire or resolve."""
    work, verdicts, open_alerts = scored.batch, scored.verdicts, states.open_alerts
    changed = np.flatnonzero((verdicts["change"] != NONE) | verdicts["lapses"])
    alerts: list[Alert] = []
    for i in changed[np.argsort(work.event[changed])].tolist():
        slot, change = int(work.slot[i]), verdicts["change"][i]
        if verdicts["lapses"][i]:
            alerts.append(resolved(open_alerts.pop(slot), int(work.lapse[i]), SILENCE))
        if change == RESOLVES:
            alerts.append(resolved(open_alerts.pop(slot), int(work.time[i]), CALM))
        elif change in {FIRES, PEAKS}:
            alert = _alert_of(batch, scored, i, version, critical_above, states.symbol_names)
            if change == PEAKS:
                origin = {name: getattr(open_alerts[slot], name) for name in ORIGIN}
                alert = replace(alert, **origin)
            else:
                alerts.append(alert)
            open_alerts[slot] = alert
    return alerts


def _alert_of(
    batch: EventBatch, scored: ScoredBatch, i: int, version: str, critical_above: float, symbols: SymbolNames
) -> Alert:
    """Return the alert that sorted event `i` would fire; critical if its score is so far above the threshold."""
    work, measured, verdicts, _ = scored
    event, verdict = int(work.event[i]), verdicts[i]
    rows = slice(int(work.start[i]), int(work.start[i + 1]))
    names = [batch.features[k] for k in batch.feature[work.observation[rows]]]

    def by_feature(values: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(names, values.tolist(), strict=True))

    observed: dict[str, float | str] = {**by_feature(batch.value[work.observation[rows]])}
    expected: dict[str, float | str | None] = {**by_feature(measured["expected"][rows])}
    lower, upper = by_feature(measured["lower"][rows]), by_feature(measured["upper"][rows])
    observed_probability, expected_probability = {}, {}
    first = int(np.count_nonzero(work.symbol[: rows.start]))
    for k, j in enumerate(np.flatnonzero(work.symbol[rows]).tolist(), first):
        feature, f = names[j], scored.predictions[k]
        observed[feature] = symbols.name_of(int(work.symbol[rows][j]))
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
