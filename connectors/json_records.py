"""The JSON that leaves longwatch: scores, alerts, incidents, webhook messages, rejected records.

Fields, their order and their meaning are a public interface: encoding uses these types, and docs/formats.md and the
JSON Schemas (`longwatch schema`) are made from them. A number that is not finite becomes null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from connectors.batches import ACCEPTED, ALERT_CHANNELS, BACK, CHANNELS, FALSE, GONE, HELD_BACK, MUTED, RESET, SILENCE

EVIDENCE = (
    "the channel's own numbers, in the data's unit, of the leading feature. forecast: observed, expected, lower, upper."
    " level: level, usual (of this hour), lower, upper. still: seconds, usual_longest_seconds. coupling: observed,"
    " expected (what the other features let expect). novel: observed, nearest, nearest_seconds_ago (at most); where"
    " only the forecast's error is new, observed and expected. symbol: observed_probability, expected_probability."
    " silence: silent_seconds, usual_seconds (between events), usual_longest_seconds."
    " What is not known is left out"
)


def _field(description: str, **schema: Any) -> msgspec.Meta:
    """Describe a field; `schema` goes into the JSON Schema only, so that decoding old records is no stricter."""
    return msgspec.Meta(description=description, extra_json_schema=schema or None)


_Share = Annotated[float, _field("from 0 to 1", minimum=0, maximum=1)]
_Time = Annotated[str, _field("RFC 3339 in UTC, by the events' clock, with up to nine decimals", format="date-time")]

_Stream = Annotated[str, _field("the stream's name")]
_Score = Annotated[
    float, _field("log10 of the return period in events: 5 is as rare as once in 100,000 events", minimum=0)
]
_Threshold = Annotated[float, _field("the score above which this stream alerts", minimum=0)]
_Rank = Annotated[float, _field("how unusual the event is: to sort and to draw by; every event has one", minimum=0)]
_Channel = Annotated[
    str, _field("what claims most that the event is rare (docs/scoring.md); empty: nothing", enum=[*CHANNELS, ""])
]
_ReturnPeriod = Annotated[str, _field('the score in words: "once in 11 days"')]
_Observed = Annotated[dict[str, float | str], _field("by feature: a number in the data's own unit, or a symbol")]
_Expected = Annotated[
    dict[str, float | str | None],
    _field("by feature: what the model expected, of a symbol the likeliest; null before the first forecast"),
]
_Lower = Annotated[
    dict[str, float | None],
    _field(
        "by feature that is a number: lower end of the band that the model allowed; null before the first forecast,"
        " and in an alert for a feature that leads by something else than its distance from the forecast"
    ),
]
_Upper = Annotated[dict[str, float | None], _field("by feature that is a number: upper end of that band")]
_ObservedProbability = Annotated[
    dict[str, _Share], _field("by feature that is a symbol: how likely the observed one was")
]
_ExpectedProbability = Annotated[
    dict[str, _Share], _field("by feature that is a symbol: how likely the expected one was")
]
_ModelVersion = Annotated[str, _field("fingerprint of the weights that scored")]
_Topic = Annotated[str, _field("Kafka topic, or path of the file, that the event came from")]
_Partition = Annotated[int, _field("partition of the topic; 0 for a file", minimum=0)]
_Offset = Annotated[int, _field("offset in the partition; of a file the record's number, from 0", minimum=0)]
_FeaturesLeftOut = Annotated[
    int, _field("how many features, those with the least contributions, had no room in the record", minimum=0)
]


class ScoreRecord(msgspec.Struct, omit_defaults=True, gc=False):
    """One scored event: a line of output.scores_file, a record of kafka.scores_topic (key: the stream's name)."""

    stream: _Stream
    timestamp: Annotated[_Time, _field("the event's own time")]
    score: _Score
    threshold: _Threshold
    alert: Annotated[bool, _field("whether the event is part of an alert")]
    rank: _Rank
    channel: _Channel
    return_period: _ReturnPeriod
    surprise: Annotated[float, _field("mean negative log-likelihood of the event's features, in nats")]
    observed: _Observed
    expected: _Expected
    lower: _Lower
    upper: _Upper
    model_version: _ModelVersion
    topic: _Topic
    partition: _Partition
    offset: _Offset
    warming: Annotated[bool, _field("true while the stream is too young to be judged: its score is 0")] = False
    held_back: Annotated[
        str,
        _field(
            "why an event above the threshold of its stream's own budget is no alert."
            ' "young": the stream has seen too little to know what is so rare.'
            ' "fleet": alerting.fleet_alerts_per_day; events of other streams are rarer.'
            ' "false": a person has called an alert on such an error of the stream false',
            enum=[name for name in HELD_BACK if name],
        ),
    ] = ""
    missing_events: Annotated[
        int, _field('of an event held back as "young": how many more its stream needs to be judged by its budget alone')
    ] = 0
    observed_probability: _ObservedProbability = {}
    expected_probability: _ExpectedProbability = {}
    features_left_out: _FeaturesLeftOut = 0


class AlertRecord(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One incident of one stream, when it fires and again when it resolves.

    A line of output.alerts_file, a record of kafka.alerts_topic (key: the stream's name, header `group`: the consumer
    group of the worker). The values by feature are those of the event with the highest score so far.
    """

    id: Annotated[str, _field("the same when the incident fires and when it resolves, and after any restart")]
    stream: _Stream
    status: Literal["firing", "resolved"]
    severity: Annotated[
        Literal["warning", "critical"], _field("critical: above the threshold by alerting.critical_above_threshold")
    ]
    summary: Annotated[str, _field("what was found, as a sentence made of the evidence")] = ""
    channel: Annotated[
        str,
        _field(
            "what claims that the event is rare, docs/scoring.md explains each; silence: the stream has stopped",
            enum=list(ALERT_CHANNELS),
        ),
    ] = ""
    feature: Annotated[str, _field("the feature that leads: it contributes most")] = ""
    return_period: _ReturnPeriod = ""
    started_at: Annotated[_Time, _field("time of the first event")]
    ended_at: Annotated[_Time | None, _field("time at which the incident ended; null while it fires")]
    score: _Score
    threshold: _Threshold
    rank: _Rank = 0.0
    evidence: Annotated[dict[str, float], _field(EVIDENCE)] = {}
    observed: _Observed
    expected: _Expected
    lower: _Lower
    upper: _Upper
    contributions: Annotated[
        dict[str, _Share], _field("by feature: its share in what the channel claims; all add up to 1")
    ]
    model_version: _ModelVersion
    topic: _Topic
    partition: _Partition
    offset: Annotated[
        int,
        _field(
            "offset in the partition; of a file the record's number, from 0; -1: of no record, but of silence",
            minimum=-1,
        ),
    ]
    observed_probability: _ObservedProbability = {}
    expected_probability: _ExpectedProbability = {}
    resolved_by: Annotated[
        str,
        _field(
            'what ended it: the old level came "back", the new one was "accepted" as normal, the "silence" of the'
            ' stream, or a person who called it "false" or had the stream begin anew ("reset"). A stream that stopped'
            ' is "back", "gone" for good, or nobody wants to know any more ("muted"); absent while it fires',
            enum=[BACK, ACCEPTED, SILENCE, FALSE, RESET, GONE, MUTED],
        ),
    ] = ""
    features_left_out: _FeaturesLeftOut = 0
    rule: Annotated[str, _field("name of the rule ([[rules]]) that the stream had; absent: [alerting] held")] = ""


class WebhookMessage(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The body of a webhook request, a message of Standard Webhooks.

    The header `webhook-id` is the same for every repetition of a message.
    """

    type: Literal["alert.firing", "alert.resolved"]
    timestamp: Annotated[_Time, _field("when the incident began, or ended if it is resolved")]
    features_left_out: _FeaturesLeftOut = 0
    data: Annotated[AlertRecord, _field("the alert")]


class IncidentAlert(msgspec.Struct, kw_only=True):
    """One stream's alert, as a part of an incident."""

    id: Annotated[str, _field("the alert's id")]
    stream: _Stream
    status: Literal["firing", "resolved"]
    severity: Literal["warning", "critical"]
    started_at: Annotated[_Time, _field("time of the first event")]
    ended_at: Annotated[_Time | None, _field("time at which it ended; null while it fires")]
    score: _Score
    channel: Annotated[str, _field("what claims that the event is rare: docs/scoring.md explains each")]
    summary: Annotated[str, _field("what was found, as a sentence")]


class IncidentRecord(msgspec.Struct, kw_only=True):
    """What broke together: an incident over one stream or many, as it is at present."""

    id: Annotated[str, _field("that of its first alert; the same as long as the incident lasts, and after any restart")]
    state: Literal["open", "resolved"]
    severity: Annotated[Literal["warning", "critical"], _field("the worst of its alerts so far")]
    first_severity: Annotated[Literal["warning", "critical"], _field("of its first alert")]
    summary: Annotated[str, _field("which streams, and what is worst, as a sentence")]
    stream: Annotated[str, _field("the stream of its first alert")]
    started_at: Annotated[_Time, _field("when its first alert began")]
    ended_at: Annotated[_Time | None, _field("when its last alert ended; null while it is open")]
    score: _Score
    streams: Annotated[int, _field("how many streams have an alert in it", minimum=1)]
    firing: Annotated[int, _field("how many of its alerts fire at present", minimum=0)]
    revision: Annotated[int, _field("rises each time that its state is told; 0: it has not been", minimum=0)]
    alerts: Annotated[list[IncidentAlert], _field("the worst of its alerts, by score")]
    alerts_left_out: Annotated[int, _field("how many more alerts it has", minimum=0)] = 0


class IncidentMessage(msgspec.Struct, kw_only=True):
    """The body of a webhook request about an incident, a message of Standard Webhooks.

    The header `webhook-id` is the same for every repetition of a message.
    """

    type: Literal["incident.opened", "incident.updated", "incident.resolved"]
    timestamp: Annotated[_Time, _field("when the incident began, or ended if it is resolved")]
    data: Annotated[IncidentRecord, _field("the incident")]


class RejectedRecord(msgspec.Struct, omit_defaults=True):
    """A record that could not be decoded or scored.

    A line of output.dead_letter_file, a record of kafka.dead_letter_topic. Either `raw` or `raw_base64` gives the
    record's bytes back exactly.
    """

    topic: Annotated[str, _field("Kafka topic, or path of the file, that the record came from")]
    partition: _Partition
    offset: _Offset
    reason: Annotated[str, _field("why it was rejected: a label of longwatch_events_rejected_total")]
    detail: Annotated[str, _field("for people: what was found, and what was expected")]
    raw: Annotated[str | UnsetType, _field("the record, where it is valid UTF-8")] = UNSET
    raw_base64: Annotated[
        str | UnsetType, _field("the record in base64, where it is not", contentEncoding="base64")
    ] = UNSET
