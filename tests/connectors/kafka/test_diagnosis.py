"""Errors where a broker with access control denies something: the cause and the remedy."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer
from kafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidReplicationFactorError,
    KafkaError,
    PolicyViolationError,
    UnsupportedForMessageFormatError,
    UnsupportedVersionError,
)

from connectors.batches import Partition
from connectors.kafka.alert_feed import AlertFeed
from connectors.kafka.changelog import Changelogs
from connectors.kafka.changelog_format import ChangelogError
from connectors.kafka.errors import KafkaConnectorError, explain_error
from connectors.kafka.history import KafkaHistory
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import KafkaSource
from connectors.kafka.transactions import TransactionalWriter
from connectors.kafka.writer import KafkaWriter, UndeliveredError
from detector.checkpointing.recovery import ChangelogRecovery
from detector.checkpointing.store import SqliteStore
from tests.brokers import MAX_TRANSACTION_SECONDS, PASSWORD, USERNAME, ApacheKafka
from tests.daemon.support import until

pytestmark = pytest.mark.kafka

Make = Callable[..., KafkaSettings]


@pytest.fixture
def settings(guarded_broker: ApacheKafka) -> Make:
    """Settings of a user who may do nothing yet; the group's name is new."""
    group = f"group-{uuid.uuid4().hex[:8]}"

    def make(**more: Any) -> KafkaSettings:
        values: dict[str, Any] = {
            "bootstrap_servers": guarded_broker.guarded_bootstrap,
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_username": USERNAME,
            "sasl_password": PASSWORD,
            "group_id": group,
            "alerts_topic": "",
            "dead_letter_topic": "",
            "delivery_timeout_seconds": 30,
            "transaction_timeout_seconds": MAX_TRANSACTION_SECONDS,
        }
        return KafkaSettings(**values | more)

    return make


@pytest.fixture
def topic(guarded_broker: ApacheKafka) -> str:
    return guarded_broker.create_topic(f"topic-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def elsewhere(guarded_broker: ApacheKafka, settings: Make) -> Make:
    """Settings for the listener that advertises an address without a listener."""
    return lambda **more: settings(
        bootstrap_servers=guarded_broker.elsewhere_bootstrap, security_protocol="PLAINTEXT", **more
    )


@pytest.fixture
def reported(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[KafkaSettings], str]]:
    """Return the first thing that reading with these settings says: a warning, or the error that ends it."""
    sources: list[KafkaSource] = []

    def first(config: KafkaSettings) -> str:
        caplog.set_level(logging.WARNING, "connectors")
        sources.append(KafkaSource(config))

        def said() -> str:
            try:
                sources[-1].poll(0.2)
            except KafkaConnectorError as error:
                return str(error)
            return next((record.getMessage() for record in caplog.records), "")

        return str(until(said, "something is said"))

    yield first
    for source in sources:
        source.close()


def test_an_unreachable_advertised_address_is_not_reported_as_a_missing_topic(
    guarded_broker: ApacheKafka, topic: str, elsewhere: Make, reported: Callable[[KafkaSettings], str]
) -> None:
    line = reported(elsewhere(topics=[topic]))
    assert "No such topic" not in line
    assert f"{guarded_broker.elsewhere}: not reachable" in line
    assert "advertised.listeners" in line
    assert topic in line


def test_writers_and_training_report_an_unreachable_advertised_address(
    guarded_broker: ApacheKafka, topic: str, elsewhere: Make
) -> None:
    writer = KafkaWriter(elsewhere(alerts_topic=topic))
    with pytest.raises(UndeliveredError, match=r"advertised\.listeners"):  # it may be mended while we wait
        writer.open()
    writer.close()
    with pytest.raises(KafkaConnectorError, match=r"advertised\.listeners"):
        KafkaHistory(elsewhere(topics=[topic]))


def test_an_unauthorised_topic_is_not_reported_as_missing(
    guarded_broker: ApacheKafka, topic: str, settings: Make, reported: Callable[[KafkaSettings], str]
) -> None:
    config = settings(topics=[topic])
    guarded_broker.grant("GROUP", config.group_id, "READ")
    line = reported(config)
    assert "No such topic" not in line
    assert f"user '{USERNAME}' may not use topic {topic}: grant Read on it" in line
    with pytest.raises(KafkaConnectorError, match=f"may not use topic {topic}: grant Read on it"):
        KafkaHistory(config)


def test_an_unreadable_topic_and_a_missing_topic_are_both_reported(
    guarded_broker: ApacheKafka,
    topic: str,
    settings: Make,
    reported: Callable[[KafkaSettings], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    missing = f"missing-{topic}"
    config = settings(topics=[topic])
    for name in (topic, missing):
        guarded_broker.grant("TOPIC", name, "DESCRIBE")
    guarded_broker.grant("GROUP", config.group_id, "READ")
    assert f"may not use topic {topic}: grant Read on it" in reported(config)
    caplog.clear()
    guarded_broker.grant("TOPIC", topic, "READ")
    assert f"No such topic on {config.bootstrap_servers} yet: {missing}" in reported(settings(topics=[topic, missing]))


def test_an_unauthorised_group_is_an_error(
    guarded_broker: ApacheKafka, topic: str, settings: Make, reported: Callable[[KafkaSettings], str]
) -> None:
    guarded_broker.grant("TOPIC", topic, "READ")
    config = settings(topics=[topic])
    assert f"user '{USERNAME}' may not use the group {config.group_id}: grant Read on it" in reported(config)


def test_a_group_of_another_program_is_an_error(
    guarded_broker: ApacheKafka, topic: str, settings: Make, reported: Callable[[KafkaSettings], str]
) -> None:
    config = settings(bootstrap_servers=guarded_broker.bootstrap, security_protocol="PLAINTEXT", topics=[topic])
    other = KafkaConsumer(topic, bootstrap_servers=guarded_broker.bootstrap, group_id=config.group_id)
    try:
        until(lambda: other.poll(200) or other.assignment(), "the other program has its partitions")
        line = reported(config)
    finally:
        other.close(autocommit=False)
    assert f"the group {config.group_id} has members that share partitions out in another way" in line
    assert "set kafka.group_id to a name used by longwatch alone" in line


def test_an_unauthorised_output_topic_is_an_error(guarded_broker: ApacheKafka, topic: str, settings: Make) -> None:
    writer = KafkaWriter(settings(alerts_topic=topic))
    with pytest.raises(KafkaConnectorError, match=f"alerts_topic: .*may not use topic {topic}: grant Write on it"):
        writer.open()
    guarded_broker.grant("TOPIC", topic, "DESCRIBE")
    writer.send(topic, None, b"x")
    with pytest.raises(KafkaConnectorError, match=f"grant Write on (topic {topic}|it)") as caught:
        writer.flush()
    assert not isinstance(caught.value, UndeliveredError), "trying again does not help"
    with pytest.raises(KafkaConnectorError):
        writer.close()


def test_an_unauthorised_or_too_long_transaction_is_a_final_error_with_its_setting(
    guarded_broker: ApacheKafka, settings: Make
) -> None:
    config = settings()
    name = f"longwatch/{config.group_id}/me"
    writer = TransactionalWriter(config, name)
    with pytest.raises(KafkaConnectorError, match=f"with the prefix longwatch/{config.group_id}/") as caught:
        writer.open()
    assert not isinstance(caught.value, UndeliveredError)
    guarded_broker.grant("TRANSACTIONAL_ID", name, "WRITE")
    longer = TransactionalWriter(settings(transaction_timeout_seconds=60), name)
    with pytest.raises(KafkaConnectorError, match=r"kafka\.transaction_timeout_seconds = 60 is longer") as caught:
        longer.open()
    assert "transaction.max.timeout.ms" in str(caught.value)
    assert not isinstance(caught.value, UndeliveredError)
    writer.open()
    writer.close()


def test_an_unauthorised_changelog_is_an_error_with_the_rights_to_grant(
    guarded_broker: ApacheKafka, topic: str, settings: Make, tmp_path: Path
) -> None:
    config = settings(topics=[topic])
    changelog = config.changelog_of(topic)
    with pytest.raises(ChangelogError, match=f"may not use topic {topic}: grant Describe on it"):
        prepare(config, topic)
    guarded_broker.grant("TOPIC", topic, "READ")
    words = f"may not use topic {changelog}: grant Create, Describe, DescribeConfigs, Read and Write on it"
    with pytest.raises(ChangelogError, match=words):
        prepare(config, topic)
    guarded_broker.grant("TOPIC", changelog, "CREATE", "DESCRIBE", "DESCRIBE_CONFIGS")
    store = SqliteStore(tmp_path)
    recovery = ChangelogRecovery(config, store, layouts=["00"], member="longwatch/x/y")
    recovery.restore([Partition(topic, 0)])
    recovery.start()
    try:
        with pytest.raises(KafkaConnectorError, match=f"changelog cannot be read: .*{words}"):
            until(lambda: recovery.finished() and False, "it fails")
    finally:
        recovery.stop()
        store.close()


def test_more_changelog_replicas_than_brokers_is_an_error_with_its_setting(
    guarded_broker: ApacheKafka, topic: str, settings: Make
) -> None:
    with pytest.raises(ChangelogError, match=r"kafka\.changelog_replication_factor = 3"):
        prepare(
            settings(
                bootstrap_servers=guarded_broker.bootstrap,
                security_protocol="PLAINTEXT",
                topics=[topic],
                changelog_replication_factor=3,
            ),
            topic,
        )


def prepare(config: KafkaSettings, topic: str) -> None:
    changelogs = Changelogs(config)
    try:
        changelogs.prepare(topic)
    finally:
        changelogs.close()


def test_an_unauthorised_alert_feed_stops_the_daemon_with_the_rights_to_grant(
    guarded_broker: ApacheKafka, topic: str, settings: Make
) -> None:
    guarded_broker.grant("TOPIC", topic, "READ")
    config = settings(alerts_topic=topic)
    feed = AlertFeed(config, None)  # type: ignore[arg-type]  # it never gets that far
    feed.start()
    until(lambda: feed.failure, "the feed ends")
    with pytest.raises(KafkaConnectorError, match=f"group {config.group_id}-webhook: grant Read on it"):
        feed.check()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ClusterAuthorizationFailedError(), "IdempotentWrite on the cluster"),
        (InvalidReplicationFactorError("3"), "kafka.changelog_replication_factor = -1"),
        (PolicyViolationError("at least 2 copies"), "policy refuses it .*at least 2 copies.*create topic t"),
        (UnsupportedForMessageFormatError(), "topic t is kept in a format from before Kafka 0.11"),
        (UnsupportedVersionError("no"), "too old, upgrade them"),
        (KafkaError("Cannot send: [Error 31] ClusterAuthorizationFailedError"), "IdempotentWrite on the cluster"),
        (KafkaError("of no known kind"), "KafkaError: .*of no known kind"),
    ],
)
def test_every_client_error_is_translated_into_one_line_with_advice(error: KafkaError, words: str) -> None:
    line = explain_error(error, KafkaSettings(), topic="t")
    assert line.isprintable()
    assert re.search(words, line), line


def test_translated_errors_contain_no_secret() -> None:
    config = KafkaSettings(security_protocol="SASL_SSL", sasl_username="u", sasl_password="hunter22")
    assert "hunter22" not in explain_error(UnsupportedVersionError(), config)
