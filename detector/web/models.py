"""What the API answers and takes, as OpenAPI describes it.

Times are RFC 3339 in UTC; columns of times are Unix seconds. null stands for what is not known.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Severity = Literal["warning", "critical"]
Name = Annotated[str, Field(min_length=1, max_length=4096)]
Column = list[float | None]


class Model(BaseModel):
    """The base: what is not declared is refused."""

    model_config = ConfigDict(extra="forbid")


class Error(Model):
    """Why a request failed."""

    error: str = Field(description="one sentence, and how to mend it")


class ModelNow(Model):
    """The network that scores."""

    version: str
    cell: str
    trained_at: str | None = Field(description="null for the one that ships")


class Latency(Model):
    """Seconds from a record's arrival at the broker to its score, over the last minute."""

    p50: float
    p99: float


class Loss(Model):
    """What a retraining changed."""

    what: str
    before: float | None = Field(description="of the model that scored, in nats")
    after: float | None = Field(description="of the challenger")


class Retraining(Model):
    """The last retraining."""

    at: str
    outcome: Literal["promoted", "rejected", "failed", "skipped"]
    reason: str
    seconds: float
    losses: list[Loss]
    curve: list[float] = Field(description="training losses in nats, in order, thinned")


class Status(Model):
    """How the daemon is."""

    version: str
    ready: bool
    word: str = Field(description="why it is not ready, or a word on its state")
    now: str
    model: ModelNow
    streams: int = Field(description="in memory")
    open_incidents: int
    events_per_second: float
    lag: int = Field(description="records that have not been read yet")
    latency_seconds: Latency | None
    rejected_share: float
    late_share: float
    state_bytes: int
    state_limit_bytes: int
    resident_bytes: int
    retraining: Retraining | None
    writable: bool = Field(description="whether the one who asks may change anything")
    changelog: bool


class FleetSeries(Model):
    """The last hour, a point every ten seconds."""

    time: list[float]
    events_per_second: list[float]
    lag: list[int]
    latency_p99: Column
    resident_bytes: list[int]


class IncidentAlert(Model):
    """One stream's alert, as a part of an incident."""

    id: str
    stream: str
    severity: Severity
    started_at: str
    ended_at: str | None
    score: float
    channel: str
    summary: str
    verdict: Literal["false", "right"] | None


class Said(Model):
    """Who has taken an incident on, or judged an alert, and why."""

    by: str
    at: str
    reason: str


class Incident(Model):
    """What broke together."""

    id: str
    state: Literal["open", "resolved"]
    severity: Severity
    started_at: str
    ended_at: str | None
    summary: str
    score: float
    streams: int
    alerts: list[IncidentAlert] = Field(description="the worst ones, by score")
    acknowledged: Said | None


class Incidents(Model):
    """Some incidents, newest first."""

    incidents: list[Incident]
    next: str | None = Field(description="give it as `before` for those that follow; null: there are no more")


class Stream(Model):
    """A stream as it is now. Of one that is only on disk no more than the name is known here."""

    name: str
    score: float | None = Field(description="of its last event; null before its first since the start")
    threshold: float | None
    rank: float | None = Field(description="how far from usual it is now")
    last_event_at: str | None
    interval_seconds: float | None
    events: int | None
    warming: bool | None
    firing: str | None = Field(description="the id of its alert that fires")
    muted: bool | None
    rule: str | None
    features: int | None


class Streams(Model):
    """Some streams."""

    streams: list[Stream]
    total: int
    note: str = Field(description="what is not among them, for a person")


class Mute(Model):
    """Streams that do not alert."""

    id: int
    pattern: str
    until: str | None = Field(description="a time of the streams' own events; null: for good")
    reason: str
    author: str
    created_at: str


class StreamDetail(Stream):
    """A stream and its features."""

    feature_names: list[str] = Field(description="in the order in which they appeared")
    mutes: list[Mute] = Field(description="people's mutes in force whose patterns its name matches")


class FeatureColumns(Model):
    """A feature's columns."""

    observed: list[float | str | None]
    expected: list[float | str | None]
    lower: Column
    upper: Column
    contribution: Column


class ModelSwap(Model):
    """From when on a model scored."""

    time: float
    version: str


class Window(Model):
    """Recent events of a stream, in columns."""

    stream: str
    features: list[str]
    time: list[float] = Field(description="Unix seconds")
    score: Column
    threshold: Column
    channel: list[str]
    alert: list[bool]
    models: list[ModelSwap]
    by_feature: dict[str, FeatureColumns]
    complete: bool = Field(description="whether nothing of it is missing")
    note: str = Field(description="for a person: what is missing, or an estimate")


class AlertDetail(Model):
    """An alert."""

    alert: dict[str, Any] = Field(description="as on the alerts topic: docs/formats.md")
    incident: str | None = Field(description="the id of its incident; null: that is not known any more")
    verdict: Literal["false", "right"] | None
    judged: Said | None = Field(description="whose verdict it is")
    samples: Window | None = Field(description="what its stream did around it; null: nothing of it is kept here")


class Band(Model):
    """What is expected at some horizons, with the network's own 99 % band."""

    horizons: list[int] = Field(description="events ahead")
    expected: Column
    lower: Column
    upper: Column


class Forecast(Model):
    """What is expected next, if events go on as they came."""

    features: dict[str, Band] = Field(description="by feature that is a number")


class Hidden(Model):
    """What the network remembered of a feature after each event of its window."""

    time: list[float] = Field(description="Unix seconds; but for the last an estimate")
    units: int
    values: list[list[float]] = Field(description="events x units")


class ModelCard(Model):
    """A network that is kept."""

    version: str
    trained_at: str | None
    cell: str | None
    losses: dict[str, float]
    current: bool


class Models(Model):
    """The networks that are kept, oldest first."""

    models: list[ModelCard]


class Reloaded(Model):
    """What has changed as settings were read again."""

    applied: list[str] = Field(description="sections whose changes hold now")
    needs_restart: list[str] = Field(description="settings that have changed, and hold from the next start on")


class ReceiverTest(Model):
    """Which receiver to try."""

    receiver: str | None = Field(default=None, max_length=200, description="null: all")


class ReceiverTried(Model):
    """How a test alert went."""

    receiver: str
    place: str
    problem: str = Field(description='"": it took the alert and its end')


class ReceiversTried(Model):
    """How test alerts went."""

    receivers: list[ReceiverTried]


class Signed(Model):
    """Who says something, and why."""

    reason: str = Field("", max_length=1_000)
    author: str = Field("", max_length=200)


class MuteRequest(Signed):
    """What to mute."""

    pattern: str = Field(min_length=1, max_length=1_024, description="a stream's name; * stands for any characters")
    until: datetime | None = Field(None, description="a time of the streams' own events; null: for good")


class VerdictRequest(Signed):
    """What to say of an alert."""

    verdict: Literal["false", "right"]


class Mutes(Model):
    """The mutes in force."""

    mutes: list[Mute]


class Done(Model):
    """What was done, and is durable."""

    sequence: int
    kind: str
    target: str
