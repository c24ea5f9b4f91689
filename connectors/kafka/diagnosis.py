"""What a broker says about its cluster, topics and our rights on them, to explain why nothing is read.

kafka-python is silent if it cannot reach the advertised addresses or may not see a topic: both look like a missing
topic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any, NamedTuple

from kafka.errors import for_code

from connectors.kafka.client_options import client_options
from connectors.kafka.connect import Conversation, NoAnswerError, conversation
from connectors.kafka.errors import KafkaConnectorError, explain_error
from connectors.kafka.settings import KafkaSettings

# Kafka's numbers of the operations on a topic
RIGHTS = {3: "Read", 4: "Write", 5: "Create", 7: "Alter", 8: "Describe", 10: "DescribeConfigs"}
_METADATA = 3  # the request's number
_WITH_RIGHTS = 8  # from this version on it can ask for rights
_NO_SUCH_TOPIC = 3, 100  # error codes


class Topic(NamedTuple):
    """A topic as a broker describes it."""

    error: int  # Kafka's number; 0: it exists and may be seen
    partitions: int
    rights: frozenset[str] | None  # of RIGHTS; None: the broker does not say

    @property
    def missing(self) -> bool:
        """Whether it does not exist."""
        return self.error in _NO_SUCH_TOPIC


class Cluster(NamedTuple):
    """What one broker says."""

    brokers: list[str]  # addresses that clients are sent to, host:port
    nodes: list[str]  # their numbers
    topics: dict[str, Topic]


def describe(talk: Conversation, topics: Collection[str] | None) -> Cluster:
    """Ask a broker for the brokers' addresses and these topics, None: all that may be seen; creates none.

    Raises what `Conversation.ask` raises.
    """
    from kafka.protocol.metadata import MetadataRequest  # noqa: PLC0415 - a release may have none

    kind = MetadataRequest.MetadataRequestTopic
    version = min(_WITH_RIGHTS, talk.newest[_METADATA])
    answer = talk.ask(
        MetadataRequest(
            version=version,
            topics=None if topics is None else [kind(version=version, name=name) for name in topics],
            allow_auto_topic_creation=False,
            include_topic_authorized_operations=version >= _WITH_RIGHTS,
        )
    )
    found = {}
    for topic in answer.topics:
        numbers = getattr(topic, "authorized_operations", None) if version >= _WITH_RIGHTS else None
        rights = None if numbers is None else frozenset(RIGHTS[number] for number in numbers if number in RIGHTS)
        found[topic.name] = Topic(topic.error_code, len(topic.partitions), rights)
    hosts = [(f"[{broker.host}]" if ":" in broker.host else broker.host, broker.port) for broker in answer.brokers]
    nodes = [str(broker.node_id) for broker in answer.brokers]
    return Cluster([f"{host}:{port}" for host, port in hosts], nodes, found)


def unreachable_brokers(settings: KafkaSettings) -> str:
    """Return why the advertised addresses of the brokers cannot be reached; empty if one can, or none is known.

    Raises nothing: it explains another failure.
    """
    return _ask(settings, ())[1]


def explain_unseen_topics(settings: KafkaSettings, topics: Collection[str]) -> dict[str, str]:
    """Return why the client does not see each of the topics, as far as that can be found out.

    Topics that do not exist are left out, and all are if no broker answers. Raises nothing, see `unreachable_brokers`.
    """
    found, lost = _ask(settings, topics)
    if lost:
        return dict.fromkeys(topics, lost)
    return {
        name: explain_error(for_code(topic.error)(), settings, topic=name)
        for name, topic in found.items()
        if topic.error and not topic.missing
    }


def _ask(settings: KafkaSettings, topics: Collection[str]) -> tuple[dict[str, Topic], str]:
    """Return what the first broker that answers says of topics, and why the addresses it names cannot be reached."""
    with contextlib.suppress(KafkaConnectorError):
        options = client_options(settings)
        for server in options["bootstrap_servers"]:
            with contextlib.suppress(NoAnswerError), conversation(settings, options, server) as talk:
                cluster = Cluster([], [], {}) if talk is None else describe(talk, topics)
                return cluster.topics, _unreachable(settings, options, cluster.brokers)
    return {}, ""


def _unreachable(settings: KafkaSettings, options: dict[str, Any], brokers: Collection[str]) -> str:
    reasons: list[str] = []
    for server in brokers:
        try:
            with conversation(settings, options, server):
                return ""
        except (NoAnswerError, KafkaConnectorError) as error:
            reasons.append(f"{server}: {error}")
    if not reasons:
        return ""
    return (
        f"kafka.bootstrap_servers answers, but the addresses that it advertises cannot be used from here"
        f" ({'; '.join(reasons)}): set the brokers' advertised.listeners to addresses that this machine reaches, or use"
        " the listener that is meant for it"
    )
