"""Scores, alerts and rejected records as JSON, the same for files and for Kafka."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from connectors.batches import CHANNELS, HELD_BACK, Alert, Int64, Rejected, Scores
from connectors.json_records import AlertRecord, RejectedRecord, ScoreRecord
from connectors.words import return_periods

NS_PER_SECOND = 1_000_000_000
CHANNEL_NAMES = (*CHANNELS, "")  # by number; -1 is none

_encoder = msgspec.json.Encoder()


def rfc3339(time: Int64) -> list[str]:
    """Return times, ns since 1970 UTC [n], as RFC 3339 in UTC with as many digits as they need."""
    seconds, fraction = np.divmod(time, NS_PER_SECOND)
    texts: list[str] = np.datetime_as_string(seconds.astype("datetime64[s]")).tolist()
    if not fraction.any():
        return [text + "Z" for text in texts]
    return [
        f"{text}.{nanos:09d}".rstrip("0") + "Z" if nanos else text + "Z"
        for text, nanos in zip(texts, fraction.tolist(), strict=True)
    ]


def score_records(scores: Scores) -> list[tuple[bytes, bytes]]:
    """Return a record for each scored event, in order: (stream's name in UTF-8, JSON). NaN and infinity become null.

    A record's bytes depend on its event alone, not on the batch in which it was scored.
    """
    batch = scores.batch
    event = scores.event
    keys = [name.encode() for name in batch.streams]
    feature = [batch.features[code] for code in batch.feature[scores.observation].tolist()]
    observed = batch.value[scores.observation].tolist()
    expected = scores.expected.tolist()
    lower = scores.lower.tolist()
    upper = scores.upper.tolist()
    start = scores.start.tolist()
    # By row, if there are symbols: the observed one, None for a number; the likeliest; and how likely they were
    codes = batch.symbol[scores.observation].tolist() if batch.symbols else []
    symbols = [batch.symbols[code] if code >= 0 else None for code in codes]
    likeliest = [scores.symbols[code] if code >= 0 else None for code in scores.expected_symbol.tolist()]
    observed_p, expected_p = scores.observed_probability.tolist(), scores.expected_probability.tolist()
    encode = _encoder.encode
    records = []
    rows = zip(
        batch.stream[event].tolist(),
        rfc3339(batch.time[event]),
        scores.score.tolist(),
        scores.threshold.tolist(),
        scores.alert.tolist(),
        scores.rank.tolist(),
        [CHANNEL_NAMES[number] for number in scores.channel.tolist()],
        return_periods(scores.score, scores.interval),
        scores.surprise.tolist(),
        batch.partition[event].tolist(),
        batch.offset[event].tolist(),
        scores.warming.tolist(),
        scores.held_back.tolist() if len(scores.held_back) else [0] * len(scores),
        scores.missing.tolist() if len(scores.missing) else [0] * len(scores),
        start[:-1],
        start[1:],
        strict=True,
    )
    for (
        stream, timestamp, score, threshold, alert, rank, channel, period, surprise,
        partition, offset, warming, held, missing, first, last,
    ) in rows:  # fmt: skip
        topic, number = batch.partitions[partition]
        record = ScoreRecord(  # in their order: by name each record would take 1.2 µs more
            batch.streams[stream],
            timestamp,
            score,
            threshold,
            alert,
            rank,
            channel,
            period,
            surprise,
            {feature[row]: observed[row] for row in range(first, last)},
            {feature[row]: expected[row] for row in range(first, last)},
            {feature[row]: lower[row] for row in range(first, last)},
            {feature[row]: upper[row] for row in range(first, last)},
            scores.model_version,
            topic,
            number,
            offset,
            warming,
            HELD_BACK[held],
            missing,
        )
        for row in range(first, last) if symbols else ():
            if (symbol := symbols[row]) is not None:  # no band, but probabilities
                name = feature[row]
                record.observed[name], record.expected[name] = symbol, likeliest[row]
                record.observed_probability[name], record.expected_probability[name] = observed_p[row], expected_p[row]
                del record.lower[name], record.upper[name]
        records.append((keys[stream], encode(record)))
    return records


def contributions_of(scores: Scores, row: int) -> dict[str, float]:
    """Return the contributions of a scored event's features, by name."""
    rows = slice(int(scores.start[row]), int(scores.start[row + 1]))
    features = scores.batch.feature[scores.observation[rows]].tolist()
    return dict(
        zip([scores.batch.features[code] for code in features], scores.contribution[rows].tolist(), strict=True)
    )


def shortened(record: bytes, contributions: Mapping[str, float], most_bytes: int) -> tuple[bytes, int]:
    """Return a score's or an alert's JSON with as many features as fit, and how many it leaves out.

    The largest contributions are kept; `features_left_out` counts the others. It is longer than `most_bytes` only if it
    is so without any feature.
    """
    fields: dict[str, Any] = msgspec.json.decode(record)
    by_feature = {name: values for name, values in fields.items() if type(values) is dict and name != "evidence"}
    names = sorted(fields["observed"], key=lambda name: -contributions.get(name, 0.0))
    before = fields.get("features_left_out", 0)
    bare = fields | {name: {} for name in by_feature} | {"features_left_out": before + len(names)}
    room = most_bytes - len(_encoder.encode(bare))
    kept: set[str] = set()
    for name in names:
        # a field's braces are counted, a comma is not
        room -= sum(len(_encoder.encode({name: of[name]})) - 1 for of in by_feature.values() if name in of)
        if room < 0:
            break
        kept.add(name)
    left_out = before + len(names) - len(kept)
    only = {field: {name: of[name] for name in of if name in kept} for field, of in by_feature.items()}
    return _encoder.encode(fields | only | {"features_left_out": left_out}), left_out


def alert_record(alert: Alert) -> tuple[bytes, bytes]:
    """Return an alert's record: (stream's name in UTF-8, JSON)."""
    return alert.stream.encode(), _encoder.encode(alert_fields(alert))


def alert_fields(alert: Alert) -> AlertRecord:
    """Return an alert as its record has it."""
    fields: dict[str, Any] = {name: getattr(alert, name) for name in Alert.__slots__}
    fields["started_at"] = rfc3339_of(alert.started_at)
    fields["ended_at"] = None if alert.ended_at is None else rfc3339_of(alert.ended_at)
    return AlertRecord(**fields)


def rejected_record(rejected: Rejected) -> bytes:
    """Return a rejected record's JSON: where it came from, why it was rejected, and its bytes."""
    where = rejected.topic, rejected.partition, rejected.offset
    record = RejectedRecord(*where, rejected.reason, rejected.detail)
    try:
        record.raw = rejected.raw.decode()
    except UnicodeDecodeError:
        record.raw_base64 = base64.b64encode(rejected.raw).decode()
    return _encoder.encode(record)


def rfc3339_of(time: int) -> str:
    """Return a time, ns since 1970 UTC, as RFC 3339 in UTC."""
    return rfc3339(np.array([time], np.int64))[0]
