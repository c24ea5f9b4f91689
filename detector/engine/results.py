"""What the stages made of a batch, in the batch's own order and for a person: scores, and alerts of open incidents."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.batches import ACCEPTED, BACK, CHANNELS, SILENCE, Alert, EventBatch, Scores
from connectors.words import return_periods, summary
from detector.engine.stages import ScoredBatch
from detector.scoring.admission import AHEAD
from detector.scoring.batch import Records, SortedBatch
from detector.scoring.incidents import FIRES, NONE, PEAKS, RENEWS, RESOLVES, alert_id
from detector.scoring.rules import StreamRules
from detector.state.names import SymbolNames
from detector.state.stream_states import StreamStates
from training.network.compiled import compiled
from training.network.memory import prefetch, unowned
from training.symbols.kernels import PREDICTION

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

ORIGIN = "id", "started_at", "topic", "partition", "offset", "rule"  # what an alert keeps of its incident's first event


def scores_of(batch: EventBatch, scored: ScoredBatch, version: str, names: SymbolNames) -> Scores:
    """Return the scores in the batch's own order; `version` names the weights."""
    work, measured, verdicts, _ = scored
    place = np.full(len(batch), -1)
    place[work.event] = np.arange(len(work.event))
    back = place[place >= 0]
    counts = np.diff(work.start)[back]
    start = np.concatenate(([0], np.cumsum(counts)))
    of_event, of_observation = _event_columns(len(back)), _observation_columns(len(measured))
    _gather(work, back, start, measured, verdicts, of_event, of_observation)
    symbols: dict[int, int] = {}
    likely, p, likely_p = np.zeros(0, np.int32), np.zeros(0), np.zeros(0)
    if batch.symbols:
        rows = np.repeat(work.start[:-1][back] - start[:-1], counts) + np.arange(start[-1])
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
        **of_event._asdict(),
        start=start,
        **of_observation._asdict(),
        model_version=version,
        symbols=[names.name_of(number) for number in symbols],
        expected_symbol=likely,
        observed_probability=p,
        expected_probability=likely_p,
    )


class _EventColumns(NamedTuple):
    """Columns of Scores, [scored]."""

    event: Int64
    score: Float64
    threshold: Float64
    rank: Float64
    channel: NDArray[np.int8]
    interval: Float64
    alert: NDArray[np.bool_]
    warming: NDArray[np.bool_]
    held_back: NDArray[np.int8]
    missing: Int64
    surprise: Float64


class _ObservationColumns(NamedTuple):
    """Columns of Scores, [scored observations]."""

    observation: Int64
    expected: Float64
    lower: Float64
    upper: Float64
    contribution: Float64


def _event_columns(count: int) -> _EventColumns:
    score, threshold, rank, interval, surprise = np.empty((5, count))
    channel, held_back = np.empty((2, count), np.int8)
    alert, warming = np.empty((2, count), np.bool_)
    event, missing = np.empty((2, count), np.int64)
    return _EventColumns(
        event=event, score=score, threshold=threshold, rank=rank, channel=channel, interval=interval, alert=alert,
        warming=warming, held_back=held_back, missing=missing, surprise=surprise,
    )  # fmt: skip


def _observation_columns(count: int) -> _ObservationColumns:
    return _ObservationColumns(np.empty(count, np.int64), *np.empty((4, count)))


@compiled
def _gather(
    work: SortedBatch,
    back: Int64,  # [scored] row in `work`, of the batch's events in their order
    start: Int64,  # [scored + 1]
    measured: Records,
    verdicts: Records,
    of_event: _EventColumns,
    of_observation: _ObservationColumns,
) -> None:
    """Write the columns of Scores, row by row: column by column each row would be waited for a dozen times."""
    work, back, start = unowned(work), unowned(back), unowned(start)
    measured, verdicts, to, part = unowned(measured), unowned(verdicts), unowned(of_event), unowned(of_observation)
    for i in range(len(back)):
        if i + AHEAD < len(back):
            prefetch(verdicts, back[i + AHEAD])
            prefetch(measured, work.start[back[i + AHEAD]])
        row = back[i]
        v = verdicts[row]
        to.event[i], to.interval[i] = work.event[row], work.interval[row]
        to.score[i], to.threshold[i], to.rank[i], to.surprise[i] = v.score, v.threshold, v.rank, v.surprise
        to.channel[i], to.alert[i], to.warming[i] = v.channel, v.alert, v.warming
        to.held_back[i], to.missing[i] = v.held_back, v.missing
        first = work.start[row]
        for j in range(start[i], start[i + 1]):
            k = first + j - start[i]
            m = measured[k]
            part.observation[j], part.contribution[j] = work.observation[k], m.contribution
            part.expected[j], part.lower[j], part.upper[j] = m.expected, m.lower, m.upper


def alerts_of(
    batch: EventBatch, scored: ScoredBatch, states: StreamStates, version: str, rules: StreamRules
) -> list[Alert]:
    """Carry open incidents' alerts on; return those that fire or resolve."""
    work, verdicts, open_alerts = scored.batch, scored.verdicts, states.open_alerts
    changed = np.flatnonzero((verdicts["change"] != NONE) | verdicts["lapses"])
    alerts: list[Alert] = []
    for i in changed[np.argsort(work.event[changed])].tolist():
        slot, change = int(work.slot[i]), verdicts["change"][i]
        if verdicts["lapses"][i]:
            alerts.append(resolved(open_alerts.pop(slot), int(work.lapse[i]), SILENCE))
        if change in {RESOLVES, RENEWS}:
            by = ACCEPTED if verdicts["accepted"][i] else BACK
            alerts.append(resolved(open_alerts.pop(slot), int(work.time[i]), by))
        if change in {FIRES, PEAKS, RENEWS}:
            rule = int(states.streams.rows["rule"][slot])
            alert = _alert_of(batch, scored, i, version, rules.critical_above(rule), states.symbol_names)
            alert = replace(alert, rule=rules.all[rule].name)
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
    contributions = by_feature(measured["contribution"][rows])
    observed_probability, expected_probability = {}, {}
    first = int(np.count_nonzero(work.symbol[: rows.start]))
    for k, j in enumerate(np.flatnonzero(work.symbol[rows]).tolist(), first):
        feature, f = names[j], scored.predictions[k]
        observed[feature] = symbols.name_of(int(work.symbol[rows][j]))
        expected[feature] = symbols.name_of(int(f["top"])) if f["top"] else None
        observed_probability[feature], expected_probability[feature] = float(f["p"]), float(f["top_p"])
        del lower[feature], upper[feature]

    channel, lead = CHANNELS[verdict["channel"]], max(contributions, key=lambda name: contributions[name])
    if channel == "symbol":
        evidence = {
            "observed_probability": observed_probability[lead],
            "expected_probability": expected_probability[lead],
        }
    else:
        evidence = evidence_of(channel, verdict)
        lower[lead] = upper[lead] = math.nan
        if channel == "forecast":
            expected[lead] = evidence["expected"]
            lower[lead], upper[lead] = (evidence.get(name, math.nan) for name in ("lower", "upper"))
    sentence = summary(channel, lead, evidence, observed[lead], expected[lead], several=len(names) > 1)

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
        contributions=contributions,
        model_version=version,
        topic=where.topic,
        partition=where.partition,
        offset=int(batch.offset[event]),
        observed_probability=observed_probability,
        expected_probability=expected_probability,
        channel=channel,
        feature=lead,
        rank=float(verdict["rank"]),
        return_period=return_periods(verdict["score"].reshape(1), work.interval[i : i + 1])[0],
        summary=sentence,
        evidence=evidence,
    )


# what explain.py writes to VERDICT, by channel: the evidence's name of each number
EVIDENCE: dict[str, dict[str, str]] = {
    "forecast": {"observed": "observed", "expected": "expected", "lower": "lower", "upper": "upper"},
    "level": {"level": "observed", "usual": "expected", "lower": "lower", "upper": "upper"},
    "still": {"seconds": "seconds", "usual_longest_seconds": "usual_seconds"},
    "coupling": {"observed": "observed", "expected": "expected"},
    "novel": {"observed": "observed", "nearest": "expected", "nearest_seconds_ago": "seconds"},
}


def evidence_of(channel: str, verdict: Records) -> dict[str, float]:
    """Return a channel's numbers by name; left out are those that are not known."""
    found = {name: float(verdict[column]) for name, column in EVIDENCE[channel].items()}
    if channel == "novel" and math.isnan(found["nearest_seconds_ago"]):  # it is the error that is new
        found = {"observed": found["observed"], "expected": found["nearest"]}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def resolved(alert: Alert, ended_at: int, by: str) -> Alert:
    """Return the end of a firing alert's incident. Where the stream's time has moved back, so has its beginning."""
    started_at = min(alert.started_at, ended_at)
    return replace(alert, status="resolved", started_at=started_at, ended_at=ended_at, resolved_by=by)
