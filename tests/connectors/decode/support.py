"""Records to decode, and their events as plain tuples."""

from __future__ import annotations

import json
import math

from connectors.batches import CsvLayout, Partition, RawBatch
from connectors.decode.decoder import REASONS, Decoder

NOON = 1_763_640_000  # 2025-11-20T12:00:00Z
NOON_NS = NOON * 10**9
RECEIVED_MS = NOON * 1_000 + 250
CSV = CsvLayout(cells=4, timestamp=0, stream=1, values=((2, "cpu"), (3, "mem")))


def raw_batch(*values, key=b"from-key", received=RECEIVED_MS, csv=None):
    values = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    count = len(values)
    partitions = [Partition("metrics", 3)]
    offsets = list(range(100, 100 + count))
    return RawBatch(partitions, [0] * count, offsets, [received] * count, [key] * count, values, csv=csv or {})


def decode(*values, config=None, **more):
    return Decoder(config).decode(raw_batch(*values, **more))


def events(batch):
    """Return a batch as [(stream, ns, {feature: value})]; a symbol's value is text."""

    def value_of(cell):
        if batch.symbols and batch.symbol[cell] >= 0:
            assert math.isnan(batch.value[cell])
            return batch.symbols[batch.symbol[cell]]
        return float(batch.value[cell])

    return [
        (
            batch.streams[batch.stream[row]],
            int(batch.time[row]),
            {
                batch.features[batch.feature[cell]]: value_of(cell)
                for cell in range(batch.start[row], batch.start[row + 1])
            },
        )
        for row in range(len(batch))
    ]


def one(value, **more):
    batch, rejected = decode(value, **more)
    assert rejected == []
    (event,) = events(batch)
    return event


def reason(value, **more):
    batch, rejected = decode(value, **more)
    assert len(batch) == 0
    (refusal,) = rejected
    assert refusal.reason in REASONS
    assert (refusal.topic, refusal.partition, refusal.offset) == ("metrics", 3, 100)
    assert refusal.detail.isprintable()
    assert len(refusal.detail) < 400
    return refusal.reason
