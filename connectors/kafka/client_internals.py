"""The private parts of kafka-python that longwatch uses, and the fallback if a release no longer has them.

Each part has a public alternative, slower or less exact: a release with other internals costs speed, never events.
The check reads classes and one batch of records made here, so it needs no broker.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from functools import cache
from importlib import import_module
from typing import Any

import kafka
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import NoOffsetForPartitionError

log = logging.getLogger(__name__)

_LOOKING = threading.Lock()  # so that threads that start together warn once
_GZIP = 1  # needs no extra package

# What is lost without each part, for the one warning
_LOST = {
    "records": "records are parsed one by one, at a tenth of the speed, and decompressed without a limit",
    "paused_fetch": "fetched records of a paused partition may delay its resuming",
    "position": "positions are looked up by the client",
    "sender": "an abandoned writer may keep retrying until the process ends",
    "probe": "a refused login is reported in the client's words",
    "rejoin": "a partition that a killed static member was giving away waits for the group's next rebalance",
    "client": "missing topics are not reported, and a rebalance may wait for the next heartbeat",
}
# What they consist of, besides what is tried below: module, class, and an attribute of the class or of its instances
_NEEDED = (
    ("records", "kafka", "KafkaConsumer", "_fetcher"),
    ("records", "kafka.consumer.fetcher", "Fetcher", "_subscriptions"),
    ("records", "kafka.consumer.fetcher", "Fetcher", "_isolation_level"),
    ("paused_fetch", "kafka", "KafkaConsumer", "_fetcher"),
    ("paused_fetch", "kafka.consumer.fetcher", "Fetcher", "_paused_completed_fetches"),
    ("paused_fetch", "kafka.consumer.fetcher", "Fetcher", "_paused_partition_records"),
    ("position", "kafka", "KafkaConsumer", "_subscription"),
    ("position", "kafka.consumer.subscription_state", "SubscriptionState", "assignment"),
    ("sender", "kafka", "KafkaProducer", "_sender"),
    ("sender", "kafka.producer.sender", "Sender", "force_close"),
    ("rejoin", "kafka", "KafkaConsumer", "_coordinator"),
    ("rejoin", "kafka.coordinator.consumer", "ConsumerCoordinator", "request_rejoin"),
    ("client", "kafka.net.compat", "KafkaNetClient", "wakeup"),
    ("client", "kafka.cluster", "ClusterMetadata", "topics"),
    ("client", "kafka.cluster", "ClusterMetadata", "request_update"),
)


def drop_paused_fetch(consumer: KafkaConsumer, partition: TopicPartition) -> None:
    """Make a resumed partition be fetched again, from its position. For the thread that polls.

    The client (3.0.12) keeps what it has fetched of a paused partition, and fetches no more of it before that has been
    handed out. But it returns to it only after dropping the partition that it read last, which it does not do at that
    one's end: a resumed partition could wait for ever.
    """
    if not has("paused_fetch"):
        return
    fetcher = consumer._fetcher
    fetcher._paused_completed_fetches.pop(partition, None)
    paused = fetcher._paused_partition_records.pop(partition, None)
    if paused is not None:
        paused.drain()


def position_of(consumer: KafkaConsumer, partition: TopicPartition, timeout_ms: int) -> int | None:
    """Return the offset of the next record of a partition; None if the client knows none."""
    if has("position"):
        state = consumer._subscription.assignment.get(partition)  # `position` would ask the broker
        return None if state is None or state.position is None else int(state.position.offset)
    found = None
    if partition in consumer.assignment():
        with contextlib.suppress(NoOffsetForPartitionError):  # no position yet
            found = consumer.position(partition, timeout_ms=timeout_ms)
    return None if found is None else int(found)


def request_rebalance(consumer: KafkaConsumer) -> bool:
    """Let a member join its group again with its next poll, so that partitions without an owner get one.

    Return whether the release can.
    """
    if can := has("rejoin"):
        consumer._coordinator.request_rejoin()
    return can


def end_sender(producer: KafkaProducer, seconds: float) -> None:
    """End the thread of a producer that does not close, after `seconds` at most.

    kafka-python (3.0.12) waits for what is to be sent before it closes anything: if that never succeeds, its thread
    would retry for ever, unseen.
    """
    if has("sender"):
        producer._sender.force_close()
        producer._sender.join(seconds)


def client_class() -> Any | None:
    """Return the class of a consumer's network client, which knows the topics and can be woken up; None if missing."""
    return _found("kafka.net.compat", "KafkaNetClient") if has("client") else None


def has(part: str) -> bool:
    """Return whether the installed release has a part, one of the keys of `_LOST`."""
    with _LOOKING:
        return part not in _missing()


@cache
def _missing() -> frozenset[str]:
    """Check every part, and warn once of those that are missing."""
    gone = {part for part, *place in _NEEDED if not _there(*place)}
    gone |= {part for part, works in (("records", _records_are_alike), ("probe", _speaks)) if not works()}
    if gone:
        log.warning(
            "kafka-python %s has other internals than those longwatch is written for (3.0): %s. No event is lost; to"
            " avoid this, install kafka-python<3.1",
            kafka.__version__,
            "; ".join(lost for part, lost in _LOST.items() if part in gone),
        )
    return frozenset(gone)


def _found(module: str, name: str) -> Any | None:
    with contextlib.suppress(ImportError):
        return getattr(import_module(module), name, None)
    return None


def _there(module: str, name: str, attribute: str) -> bool:
    """Return whether a class has an attribute, or its constructor sets it."""
    kind = _found(module, name)
    code = getattr(getattr(kind, "__init__", None), "__code__", None)
    return hasattr(kind, attribute) or attribute in getattr(code, "co_names", ())


def _speaks() -> bool:
    """Return whether a request can be encoded without a client."""
    try:
        from kafka.net.sasl import get_sasl_mechanism  # noqa: PLC0415
        from kafka.protocol.metadata import ApiVersionsRequest  # noqa: PLC0415
        from kafka.protocol.parser import KafkaProtocol  # noqa: PLC0415
        from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest  # noqa: PLC0415

        protocol = KafkaProtocol(client_id="longwatch")
        protocol.send_request(ApiVersionsRequest(version=0))
        parts = (get_sasl_mechanism, SaslAuthenticateRequest, SaslHandshakeRequest)
        return bool(protocol.send_bytes()) and not list(protocol.receive_bytes(b"")) and all(map(callable, parts))
    except Exception:  # noqa: BLE001 - the probe does without
        return False


def _records_are_alike() -> bool:
    """Return whether both parsers agree on a batch of records, and the client's fetcher can be patched."""
    try:
        from kafka.consumer.fetcher import Fetcher  # noqa: PLC0415
        from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder  # noqa: PLC0415

        from connectors.kafka.record_parser import CompiledPartitionRecords  # noqa: PLC0415

        builder = MemoryRecordsBuilder(2, _GZIP, 1 << 16)
        for record in ((1, b"key", b"value"), (2, None, None)):
            builder.append(*record, [("header", b"h")])
        builder.close()
        data, at = bytes(builder.buffer()), TopicPartition("topic", 0)
        quick: Any = CompiledPartitionRecords(0, at, MemoryRecords(data))
        plain: Any = Fetcher.PartitionRecords(0, at, MemoryRecords(data))
        append, parse = Fetcher._append.__code__, Fetcher._parse_fetched_data.__code__
        return (
            append.co_varnames[1 : append.co_argcount] == ("drained", "part", "max_records", "update_offsets")
            and parse.co_varnames[1 : parse.co_argcount] == ("completed_fetch",)
            and {"PartitionRecords", "_append", "_parse_fetched_data"}
            <= {*parse.co_names, *Fetcher.fetched_records.__code__.co_names}
            and quick.take(2) == [(r.offset, r.timestamp, r.key, r.value) for r in plain.take(2)]
            and quick.next_fetch_offset == plain.next_fetch_offset
        )
    except Exception:  # noqa: BLE001 - the public way is used
        return False
