"""How large a record may be: what the client sends in one request, and what its topic takes.

A broker measures a batch of records as sent, compressed or not. A record needs the most alone in its batch and not
compressed: what fits like that always fits.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource
from kafka.errors import KafkaError

from connectors.kafka.client_options import client_options
from connectors.kafka.settings import KafkaSettings

log = logging.getLogger(__name__)

Header = tuple[str, bytes]

MAX_REQUEST_BYTES = 1 << 20  # the client's own limit, for a record as for a request
BATCH_BYTES = 120  # a batch's header and a record's own fields, at most
HEADER_BYTES = 10  # lengths of a header's name and value, at most
ANSWER_MS = 5_000  # to ask a broker for what a topic takes


class RecordSizes:
    """The limits of each topic. The broker is asked once; a refused record lowers them.

    `refused` is thread-safe.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._most: dict[str, int] = {}
        self._refused: dict[str, int] = {}  # sizes of records that were refused since the broker was asked

    def room(self, topic: str, key: bytes | None, headers: Sequence[Header] = ()) -> int:
        """Return how many bytes the value of a record may have, less than 0 if not even an empty one fits."""
        return self.most_bytes(topic) - record_bytes(key, None, headers)

    def most_bytes(self, topic: str) -> int:
        """Return how many bytes a topic takes in a batch of one record."""
        most = self._most.get(topic)
        if most is None or topic in self._refused:
            limits = max_message_bytes(self._settings, [topic])
            self._most[topic] = most = self._lowered(topic, limits.get(topic, MAX_REQUEST_BYTES))
        return most

    def smallest(self, topics: Iterable[str]) -> int:
        """Return what all of these topics take, as far as known."""
        new = [topic for topic in topics if topic not in self._most]
        limits = max_message_bytes(self._settings, new) if new else {}
        self._most |= {topic: self._lowered(topic, most) for topic, most in limits.items()}
        return min(self._most.values(), default=MAX_REQUEST_BYTES)

    def refused(self, topic: str, size: int) -> None:
        """Note that a record of so many bytes was too large, whatever the broker said."""
        self._refused[topic] = min(size, self._refused.get(topic, size))

    def _lowered(self, topic: str, limit: int) -> int:
        most = min(limit, MAX_REQUEST_BYTES)
        if (size := self._refused.pop(topic, None)) is not None:
            if most >= size:  # a guess, for want of DescribeConfigs on the topic
                most = min(size // 2, self._most.get(topic, size))
            log.warning(
                "topic %s does not take a record of %d bytes: from now on the limit is %d (max.message.bytes)",
                *(topic, size, most),
            )
        return most


def record_bytes(key: bytes | None, value: bytes | None, headers: Sequence[Header] = ()) -> int:
    """Return how many bytes a record takes at most, alone in its batch and not compressed."""
    named = sum(len(name.encode()) + len(data) + HEADER_BYTES for name, data in headers)
    return BATCH_BYTES + len(key or b"") + len(value or b"") + named


def max_message_bytes(settings: KafkaSettings, topics: Iterable[str]) -> dict[str, int]:
    """Return max.message.bytes of the topics whose settings may be seen (DescribeConfigs)."""
    found: dict[str, int] = {}
    try:
        admin = KafkaAdminClient(**client_options(settings), bootstrap_timeout_ms=ANSWER_MS)
    except KafkaError as error:
        log.debug("no broker says what %s take: %s", topics, error)
        return found
    try:
        for topic in topics:
            try:
                described = admin.describe_configs([ConfigResource("TOPIC", topic)], config_filter="all")
                found[topic] = int(described["topic"][topic]["max.message.bytes"]["value"])
            except (KafkaError, KeyError, TypeError, ValueError) as error:  # not allowed, or not supported
                log.debug("the broker does not say what topic %s takes: %s", topic, error)
    finally:
        with contextlib.suppress(KafkaError):
            admin.close()
    return found
