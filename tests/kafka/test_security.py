"""TLS and SASL against a real secured broker: who may come in does, and every way to fail is told apart."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from connectors.kafka import AuthenticationError, KafkaConnectorError, KafkaSettings, KafkaSource, TlsError
from connectors.kafka_client import probe
from connectors.kafka_sinks import KafkaWriter
from tests.brokers import PASSWORD, USERNAME, ApacheKafka, make_certificate

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with the openssl command"),
]

WRONG_PASSWORD = "wrong-pony"


@pytest.fixture
def settings(secured_broker: ApacheKafka) -> Callable[..., KafkaSettings]:
    def make(**more: Any) -> KafkaSettings:
        values: dict[str, Any] = {
            "bootstrap_servers": secured_broker.secure_bootstrap,
            "topics": ["secured"],
            "group_id": f"group-{time.monotonic_ns()}",
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": USERNAME,
            "sasl_password": PASSWORD,
            "ssl_cafile": str(secured_broker.cafile),
        }
        return KafkaSettings(**{**values, **more})

    return make


@pytest.fixture
def poll() -> Iterator[Callable[[KafkaSettings], int]]:
    """Poll a source with these settings for up to 20 s, until a record comes; return how many."""
    sources: list[KafkaSource] = []

    def count(config: KafkaSettings) -> int:
        sources.append(KafkaSource(config))
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if batch := sources[-1].poll(0.5):
                return len(batch)
        return 0

    yield count
    for source in sources:
        source.close()


def test_a_user_with_the_right_password_and_authority_reads_and_writes(
    secured_broker: ApacheKafka,
    settings: Callable[..., KafkaSettings],
    poll: Callable[[KafkaSettings], int],
) -> None:
    secured_broker.create_topic("secured")
    producer = KafkaProducer(bootstrap_servers=secured_broker.bootstrap)
    producer.send("secured", b"1").get(timeout=10)
    producer.close()
    assert poll(settings()) == 1
    writer = KafkaWriter(settings(alerts_topic="secured", topics=["other"], dead_letter_topic=""))
    writer.open()
    writer.send("secured", b"k", b"2")
    writer.close()
    assert poll(settings()) == 2


def test_a_refused_password_is_told_at_once_with_the_settings_to_check_and_without_the_password(
    settings: Callable[..., KafkaSettings], poll: Callable[[KafkaSettings], int]
) -> None:
    began = time.monotonic()
    with pytest.raises(AuthenticationError) as caught:
        poll(settings(sasl_password=WRONG_PASSWORD))
    assert time.monotonic() - began < 10
    told = str(caught.value)
    assert f"kafka.sasl_username='{USERNAME}'" in told
    assert "kafka.sasl_mechanism=SCRAM-SHA-512" in told
    assert "kafka.sasl_password" in told
    assert WRONG_PASSWORD not in told
    assert WRONG_PASSWORD not in repr(caught.value.__dict__)


def test_a_refused_password_is_told_from_an_unreachable_broker(settings: Callable[..., KafkaSettings]) -> None:
    unreachable = probe(settings(bootstrap_servers="127.0.0.1:1", sasl_password=WRONG_PASSWORD))
    assert unreachable is not None
    assert "not reachable" in unreachable
    unknown = probe(settings(bootstrap_servers="no-such-host.invalid:9092"))
    assert unknown is not None
    assert "not reachable" in unknown


def test_one_good_broker_among_several_is_enough(
    secured_broker: ApacheKafka, settings: Callable[..., KafkaSettings]
) -> None:
    assert probe(settings(bootstrap_servers=f"127.0.0.1:1, {secured_broker.secure_bootstrap}")) is None


def test_an_unknown_user_and_a_mechanism_that_is_not_offered_are_refused(
    settings: Callable[..., KafkaSettings],
) -> None:
    with pytest.raises(AuthenticationError, match="sasl_username='nobody'"):
        probe(settings(sasl_username="nobody"))
    with pytest.raises(AuthenticationError, match="sasl_mechanism=PLAIN"):
        probe(settings(sasl_mechanism="PLAIN"))


def test_an_authority_that_did_not_sign_the_certificate_is_told_with_its_setting(
    settings: Callable[..., KafkaSettings], poll: Callable[[KafkaSettings], int], tmp_path: Path
) -> None:
    make_certificate(tmp_path / "key.pem", tmp_path / "other.pem")
    with pytest.raises(TlsError, match=r"not trusted.*kafka\.ssl_cafile is .*other\.pem"):
        poll(settings(ssl_cafile=str(tmp_path / "other.pem")))


def test_a_certificate_for_another_host_is_told(
    secured_broker: ApacheKafka, settings: Callable[..., KafkaSettings]
) -> None:
    port = secured_broker.secure_bootstrap.rsplit(":", 1)[1]
    # the same address, spelt in a way that the certificate does not name
    with pytest.raises(TlsError, match=r"not trusted.*must name the host in kafka\.bootstrap_servers"):
        probe(settings(bootstrap_servers=f"127.1:{port}"))


def test_certificate_files_that_cannot_be_read_are_told_with_their_settings(
    settings: Callable[..., KafkaSettings], tmp_path: Path
) -> None:
    with pytest.raises(TlsError, match=r"kafka\.ssl_cafile .*missing\.pem"):
        probe(settings(ssl_cafile=str(tmp_path / "missing.pem")))
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    with pytest.raises(TlsError, match=r"kafka\.ssl_certfile .*garbage\.pem"):
        probe(settings(ssl_certfile=str(garbage), ssl_keyfile=str(garbage)))


def test_tls_to_a_plaintext_listener_and_plaintext_to_a_tls_listener_are_told(
    secured_broker: ApacheKafka, settings: Callable[..., KafkaSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka_client.CONNECT_SECONDS", 2.0)
    reason = _probe_or_error(settings(bootstrap_servers=secured_broker.bootstrap))
    assert "TLS" in str(reason)
    reason = _probe_or_error(settings(security_protocol="PLAINTEXT"))
    assert "kafka.security_protocol=PLAINTEXT" in str(reason)


def test_a_writer_tells_a_refused_password_too(settings: Callable[..., KafkaSettings]) -> None:
    writer = KafkaWriter(settings(sasl_password=WRONG_PASSWORD))
    with pytest.raises(AuthenticationError):
        writer.open()
    writer.close()


def test_no_secret_shows_in_the_settings_text(settings: Callable[..., KafkaSettings]) -> None:
    assert PASSWORD not in repr(settings())
    assert PASSWORD not in settings().model_dump_json()


def _probe_or_error(config: KafkaSettings) -> str | KafkaConnectorError | None:
    try:
        return probe(config)
    except KafkaConnectorError as error:
        return error
