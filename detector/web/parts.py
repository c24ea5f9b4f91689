"""What the API reads: parts of the daemon, and what it makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from connectors.encode import rfc3339_of
from connectors.json_records import IncidentRecord
from connectors.notify.settings import ReceiverSettings
from detector.config.changes import Changes
from detector.engine.engine import Engine
from detector.feedback.feedback import Feedback
from detector.feedback.journal import Entry
from detector.history.history import History
from detector.history.recent import Look
from detector.incidents.incidents import ALERTS_SHOWN, Incidents
from detector.web import models
from detector.web.fleet import Fleet
from detector.web.live import LiveStreams, Point
from detector.web.streams import StreamRow, Streams
from training.network.registry import Registry, RegistryError

LIVE_NOTE = "As it is scored."


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Parts of the daemon, for any thread."""

    version: str  # longwatch's
    engine: Engine
    streams: Streams
    live: LiveStreams
    fleet: Fleet
    incidents: Incidents
    feedback: Feedback
    history: History
    look: Callable[[str], Look | None]  # at a stream between two turns; None: nobody knows it
    registry: Registry
    reload: Callable[[], Future[Changes] | None]  # reads the settings again; None: it cannot
    ready: Callable[[], tuple[bool, str]]
    receivers: Callable[[], Mapping[str, ReceiverSettings]]  # as they are now
    external_url: str
    cell: str
    state_limit_bytes: int
    changelog: bool


def status(parts: Parts, *, writable: bool) -> models.Status:
    """Return how the daemon is. The engine is only asked for what one read tells: nobody waits for its turn."""
    is_ready, word = parts.ready()
    now, version = parts.fleet.now(), parts.engine.version
    return models.Status(
        version=parts.version,
        ready=is_ready,
        word=word,
        now=unix_text(datetime.now(UTC).timestamp()),
        model=models.ModelNow(version=version, cell=parts.cell, trained_at=_trained_at(parts.registry, version)),
        streams=len(parts.engine.streams),
        open_incidents=parts.incidents.open_count(),
        events_per_second=now.events_per_second,
        lag=now.lag,
        latency_seconds=None if now.latency is None else models.Latency(p50=now.latency[0], p99=now.latency[1]),
        rejected_share=now.rejected_share,
        late_share=now.late_share,
        state_bytes=parts.engine.streams.nbytes,
        state_limit_bytes=parts.state_limit_bytes,
        resident_bytes=now.resident_bytes,
        retraining=_retraining(parts.fleet),
        writable=writable,
        changelog=parts.changelog,
    )


def _retraining(fleet: Fleet) -> models.Retraining | None:
    if (last := fleet.last_retraining) is None:
        return None
    result = last.result
    pairs = {
        "held-back windows": (result.champion_loss, result.validation_loss),
        "synthetic series": (math.nan, result.replay_loss),
        "training": (math.nan, result.training_loss),
    }
    return models.Retraining(
        at=unix_text(last.at),
        outcome=result.outcome,
        reason=result.reason,
        seconds=result.seconds,
        losses=[
            models.Loss(what=what, before=_finite(before), after=_finite(after))
            for what, (before, after) in pairs.items()
            if math.isfinite(after)
        ],
        curve=list(result.curve),
    )


def fleet_series(fleet: Fleet) -> models.FleetSeries:
    """Return the last hour."""
    points = fleet.points()
    return models.FleetSeries(
        time=[p.time for p in points],
        events_per_second=[p.events_per_second for p in points],
        lag=[p.lag for p in points],
        latency_p99=[p.latency_p99 for p in points],
        resident_bytes=[p.resident_bytes for p in points],
    )


def incident(parts: Parts, record: IncidentRecord, most: int = ALERTS_SHOWN) -> models.Incident:
    """Return an incident with so many of its alerts."""
    taken = parts.feedback.acknowledged(record.id)
    return models.Incident(
        id=record.id,
        state=record.state,
        severity=record.severity,
        started_at=record.started_at,
        ended_at=record.ended_at,
        summary=record.summary,
        score=record.score,
        streams=record.streams,
        alerts=[
            models.IncidentAlert(
                id=alert.id,
                stream=alert.stream,
                severity=alert.severity,
                started_at=alert.started_at,
                ended_at=alert.ended_at,
                score=alert.score,
                channel=alert.channel,
                summary=alert.summary,
                verdict=verdict_on(parts, alert.id),
            )
            for alert in record.alerts[:most]
        ],
        acknowledged=said(taken),
    )


def said(entry: Entry | None) -> models.Said | None:
    """Return who said it; None for what nobody said."""
    return None if entry is None else models.Said(by=entry.author, at=unix_text(entry.created), reason=entry.reason)


def verdict_on(parts: Parts, alert: str) -> Literal["false", "right"] | None:
    """Return what was said of an alert last."""
    entry = parts.feedback.verdicts(alert)
    return None if entry is None else "false" if entry.kind == "false" else "right"


def stream_fields(row: StreamRow) -> dict[str, object]:
    """Return a stream's fields as the API has them."""
    fields: dict[str, object] = row._asdict()
    at = fields["last_event_at"]
    fields["last_event_at"] = rfc3339_of(at) if isinstance(at, int) else None
    fields["rule"] = row.rule or None
    return fields


def window(stream: str, points: Sequence[Point]) -> models.Window:
    """Return events in columns."""
    features = list(dict.fromkeys(feature for point in points for feature in point.values))
    swaps = list[models.ModelSwap]()
    for point in points:
        if not swaps or swaps[-1].version != point.model_version:
            swaps.append(models.ModelSwap(time=point.time * 1e-9, version=point.model_version))
    by_feature = {}
    for feature in features:
        values = [point.values.get(feature) for point in points]
        by_feature[feature] = models.FeatureColumns(
            observed=[None if v is None else v.observed for v in values],
            expected=[None if v is None else v.expected for v in values],
            lower=[None if v is None else v.lower for v in values],
            upper=[None if v is None else v.upper for v in values],
            contribution=[None if v is None else v.contribution for v in values],
        )
    return models.Window(
        stream=stream,
        features=features,
        time=[point.time * 1e-9 for point in points],
        score=[point.score for point in points],
        threshold=[point.threshold for point in points],
        channel=[point.channel for point in points],
        alert=[point.alert for point in points],
        models=swaps,
        by_feature=by_feature,
        complete=False,
        note=LIVE_NOTE,
    )


def forecast(look: Look) -> models.Forecast:
    """Return what is expected next of a stream."""
    return models.Forecast(features={name: models.Band(**band._asdict()) for name, band in look.forecast().items()})


def hidden(look: Look, feature: str) -> models.Hidden:
    """Return the hidden states over a feature's window. Raises KeyError where the stream has no such number."""
    found = look.hidden(feature)
    units = found.values.shape[1]
    return models.Hidden(time=(found.time * 1e-9).tolist(), units=units, values=found.values.tolist())


def model_cards(parts: Parts) -> models.Models:
    """Return the networks that are kept, and the one that scores also where it ships."""
    current = parts.engine.version
    found = []
    for version in parts.registry.versions():
        card = parts.registry.card(version)
        found.append(
            models.ModelCard(
                version=version,
                trained_at=unix_text(card.trained_at),
                cell=parts.cell if version == current else None,
                losses=card.figures,
                current=version == current,
            )
        )
    if not any(card.current for card in found):
        shipped = models.ModelCard(version=current, trained_at=None, cell=parts.cell, losses={}, current=True)
        found.insert(0, shipped)
    return models.Models(models=found)


def unix_text(seconds: float) -> str:
    """Return a Unix time as RFC 3339, to the millisecond."""
    return rfc3339_of(round(seconds * 1e3) * 1_000_000)


def _trained_at(registry: Registry, version: str) -> str | None:
    try:
        return unix_text(registry.card(version).trained_at)
    except RegistryError:  # the one that ships is in no registry
        return None


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
