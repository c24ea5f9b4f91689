"""Checks that brokers, topics and rights are as the settings need, without changing anything.

The broker lists our rights on a topic. For groups and transactional ids it does not, so they are tried with requests
that cannot succeed: a heartbeat of no member, the end of nobody's transaction. The broker checks the right first, and
its answer says which of the two was wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kafka.errors import BrokerResponseError, for_code

from connectors.common.findings import Finding
from connectors.kafka.changelog import RIGHTS, settings_problem, topic_settings
from connectors.kafka.client_options import client_options
from connectors.kafka.connect import Conversation, NoAnswerError, conversation
from connectors.kafka.diagnosis import Cluster, Topic, describe
from connectors.kafka.errors import KafkaConnectorError, explain_error, principal
from connectors.kafka.settings import KafkaSettings

NOBODY = "config-check"  # a member of no group
NO_PRODUCER = (1 << 63) - 1  # brokers count producers from 0
ANSWER_MS = 5_000
_CREATE = 19  # the request's number
_BROKER, _TOPIC = 4, 2  # resources that have settings
_NOT_CONTROLLER, _EXISTS = 41, 36  # error codes
# Error codes that say that a right is missing (on a topic, group, the cluster, a transactional id); others come after
# the check of the right
_REFUSALS = 29, 30, 31, 53


class Uses(NamedTuple):
    """Which parts of Kafka the other settings use."""

    changelog: bool
    feed: bool  # alerts are read from their topic


def findings(settings: KafkaSettings, uses: Uses) -> Iterator[Finding]:
    """Check brokers, topics and rights; yield each finding as soon as it is known. Raises no error of Kafka's."""
    try:
        options = client_options(settings)
    except KafkaConnectorError as error:
        yield Finding("kafka", str(error))
        return
    answering: str | None = None
    for server in options["bootstrap_servers"]:
        finding = _reach(settings, options, f"kafka.bootstrap_servers {server}", server)
        answering = answering or (None if finding.problem else server)
        yield finding
    if answering is None:
        return
    try:
        with conversation(settings, options, answering) as talk:
            if talk is None:
                yield Finding("kafka", note="topics and rights cannot be checked with the kafka-python installed here")
                return
            yield from _ask(settings, options, uses, talk)
    except (NoAnswerError, KafkaConnectorError) as error:
        yield Finding(f"kafka.bootstrap_servers {answering}", str(error))


def _reach(settings: KafkaSettings, options: dict[str, Any], what: str, server: str, mend: str = "") -> Finding:
    try:
        with conversation(settings, options, server):
            how = f"{settings.security_protocol} {settings.sasl_mechanism}"
            return Finding(what, note=f"answers ({how if 'SASL' in how else settings.security_protocol})")
    except (NoAnswerError, KafkaConnectorError) as error:
        return Finding(what, f"{error}{mend}")


def _ask(settings: KafkaSettings, options: dict[str, Any], uses: Uses, talk: Conversation) -> Iterator[Finding]:
    outputs = settings.outputs
    pattern = settings.whole_name_pattern()
    sources = settings.topics
    if pattern is not None:
        sources = sorted(filter(pattern.match, describe(talk, None).topics))
        yield Finding(
            f"kafka.topic_pattern {settings.topic_pattern}",
            "" if sources else "no visible topic matches: create one, or grant Describe on it",
            ", ".join(sources),
        )
    changelogs = {settings.changelog_of(topic): topic for topic in sources} if uses.changelog else {}
    cluster = describe(talk, {*sources, *outputs.values(), *changelogs})
    mend = (
        " (so the brokers name themselves): set their advertised.listeners to addresses that this machine reaches, or"
        " use the listener that is meant for it"
    )
    for server in cluster.brokers:
        yield _reach(settings, options, f"broker {server}", server, mend)
    limits = _settings_of(talk, _BROKER, cluster.nodes)
    for topic in sources:
        yield _topic(settings, "kafka.topics", topic, cluster, ("Read",), "create it, or name one that exists")
    makes = limits.get("auto.create.topics.enable") == "true"
    for name, topic in outputs.items():
        rights = ("Write", "Read") if uses.feed and name == "alerts_topic" else ("Write",)
        if makes and cluster.topics[topic].missing:
            yield Finding(
                f"kafka.{name} {topic}", note="does not exist, the brokers create it (auto.create.topics.enable)"
            )
        else:
            mend = "create it, or set the name of one that exists, or an empty one"
            yield _topic(settings, f"kafka.{name}", topic, cluster, rights, mend)
    for changelog, topic in changelogs.items():
        yield _changelog(settings, talk, changelog, cluster, cluster.topics[topic].partitions)
    yield from _names(settings, uses, talk, bool(outputs) or uses.changelog)
    yield from _limits(settings, uses, limits)


def _topic(
    settings: KafkaSettings, setting: str, name: str, cluster: Cluster, rights: Iterable[str], mend: str
) -> Finding:
    """Check a topic that must exist."""
    topic, what, right = cluster.topics[name], f"{setting} {name}", " and ".join(rights)
    if topic.missing:
        return Finding(what, f"does not exist: {mend}")
    if topic.error:
        return Finding(what, explain_error(for_code(topic.error)(), settings, topic=name, right=right))
    return Finding(what, _lacks(settings, topic, name, rights), f"{topic.partitions} partitions, {right}")


def _lacks(settings: KafkaSettings, topic: Topic, name: str, rights: Iterable[str]) -> str:
    lacking = [right for right in rights if topic.rights is not None and right not in topic.rights]
    return f"{principal(settings)} may not {' and '.join(lacking)} topic {name}: grant that" if lacking else ""


def _changelog(settings: KafkaSettings, talk: Conversation, name: str, cluster: Cluster, partitions: int) -> Finding:
    """Check a changelog, or whether it may be created."""
    topic, what = cluster.topics[name], f"kafka.changelog_topic {name}"
    if not topic.error:
        lacking = _lacks(settings, topic, name, ("Describe", "DescribeConfigs", "Read", "Write"))
        found = _settings_of(talk, _TOPIC, [name])
        return Finding(what, lacking or settings_problem(name, found), f"{topic.partitions} partitions, Read and Write")
    if not topic.missing:
        return Finding(what, explain_error(for_code(topic.error)(), settings, topic=name, right=RIGHTS))
    from kafka.protocol.admin import CreateTopicsRequest  # noqa: PLC0415 - a release may have none

    version = min(4, talk.newest[_CREATE])  # before 4 a broker has no default of replicas
    configs = [
        CreateTopicsRequest.CreatableTopic.CreatableTopicConfig(version=version, name=key, value=value)
        for key, value in topic_settings(settings.changelog_replication_factor).items()
    ]
    wanted = CreateTopicsRequest.CreatableTopic(
        version=version,
        name=name,
        num_partitions=max(1, partitions),
        replication_factor=settings.changelog_replication_factor if version >= 4 else 1,
        assignments=[],
        configs=configs,
    )
    answer = talk.ask(
        CreateTopicsRequest(version=version, topics=[wanted], timeout_ms=ANSWER_MS, validate_only=True)
    ).topics[0]
    if answer.error_code in {0, _EXISTS, _NOT_CONTROLLER}:
        return Finding(what, note="does not exist, longwatch creates it")
    error: BrokerResponseError = for_code(answer.error_code)(answer.error_message or "")
    return Finding(
        what, f"does not exist, and cannot be created: {explain_error(error, settings, topic=name, right=RIGHTS)}"
    )


def _names(settings: KafkaSettings, uses: Uses, talk: Conversation, writes: bool) -> Iterator[Finding]:
    """Check the rights on groups, the cluster and the transactional id."""
    from kafka.protocol.consumer.group import HeartbeatRequest  # noqa: PLC0415 - a release may have none
    from kafka.protocol.producer.transaction import EndTxnRequest, InitProducerIdRequest  # noqa: PLC0415

    for group in (settings.group_id, settings.feed_group) if uses.feed else (settings.group_id,):
        answer = talk.ask(HeartbeatRequest(version=0, group_id=group, generation_id=-1, member_id=NOBODY))
        yield Finding(f"group {group}", _refusal(settings, answer.error_code, group), "Read")
    if writes:
        answer = talk.ask(InitProducerIdRequest(version=0, transactional_id=None, transaction_timeout_ms=1))
        yield Finding("idempotent writing", _refusal(settings, answer.error_code), "allowed")
    if uses.changelog:
        name = settings.transactional_id(settings.group_instance_id or NOBODY)
        answer = talk.ask(
            EndTxnRequest(version=0, transactional_id=name, producer_id=NO_PRODUCER, producer_epoch=0, committed=False)
        )
        yield Finding(f"transactional id {name}", _refusal(settings, answer.error_code), "Write")


def _refusal(settings: KafkaSettings, code: int, group: str = "") -> str:
    return explain_error(for_code(code)(), settings, right="Write", group=group) if code in _REFUSALS else ""


def _limits(settings: KafkaSettings, uses: Uses, limits: Mapping[str, str]) -> Iterator[Finding]:
    """Compare times with what a broker allows, if it may be seen."""
    least, most = limits.get("group.min.session.timeout.ms"), limits.get("group.max.session.timeout.ms")
    if least and most:
        fits = int(least) <= settings.session_timeout_seconds * 1000 <= int(most)
        yield Finding(
            f"kafka.session_timeout_seconds {settings.session_timeout_seconds:g}",
            "" if fits else explain_error(for_code(26)(), settings),
            f"brokers allow {int(least) / 1000:g} to {int(most) / 1000:g} s",
        )
    if uses.changelog and (longest := limits.get("transaction.max.timeout.ms")):
        fits = settings.transaction_timeout_seconds * 1000 <= int(longest)
        yield Finding(
            f"kafka.transaction_timeout_seconds {settings.transaction_timeout_seconds:g}",
            "" if fits else explain_error(for_code(50)(), settings),
            f"brokers allow up to {int(longest) / 1000:g} s",
        )


def _settings_of(talk: Conversation, kind: int, names: Iterable[str]) -> dict[str, str]:
    """Return the settings of the first resource that the broker describes (of brokers: itself); empty if none."""
    from kafka.protocol.admin import DescribeConfigsRequest  # noqa: PLC0415 - a release may have none

    for name in names:
        wanted = DescribeConfigsRequest.DescribeConfigsResource(
            version=1, resource_type=kind, resource_name=name, configuration_keys=None
        )
        answer = talk.ask(DescribeConfigsRequest(version=1, resources=[wanted], include_synonyms=False)).results[0]
        if not answer.error_code:
            return {config.name: config.value for config in answer.configs if config.value is not None}
    return {}
