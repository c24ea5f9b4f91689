"""`longwatch config --check`: a line for each thing that the daemon needs, and 2 where one of them is not to be had."""

from __future__ import annotations

import logging
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from connectors.kafka.settings import KafkaSettings
from detector.cli import main
from tests.brokers import (
    MAX_TRANSACTION_SECONDS,
    PASSWORD,
    USERNAME,
    ApacheKafka,
    Broker,
    make_certificate,
    make_expired_certificate,
)

Check = Callable[..., tuple[int, dict[str, str]]]
FILES = ("source.type=file", "source.paths=-", "http.port=0")


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Check]:
    """Return the exit status of a check with these settings, and "ok ..." or "failed ..." of each thing."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*settings: str) -> tuple[int, dict[str, str]]:
        wanted = (f"state.directory={tmp_path / 'state'}", *settings)
        status = 0
        try:
            main(["config", "--check", *(word for one in wanted for word in ("--set", one))])
        except SystemExit as ended:
            status = int(ended.code or 0)
        out = capsys.readouterr().out
        assert out.replace("\n", "").isprintable()
        found = {}
        for line in out.splitlines():
            verdict, what = line.split("  ", 1)
            name, _, said = what.strip().partition(": ")
            found[name] = f"{verdict.strip()} {said}"
        assert status == (2 if any(said.startswith("failed") for said in found.values()) else 0)
        return status, found

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def test_check_passes_when_everything_the_settings_need_exists(check: Check, tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("")
    status, found = check(
        "source.type=file",
        f"source.paths={tmp_path}/events.csv,-",
        f"output.scores_file={tmp_path}/scores.jsonl",
        "http.port=0",
    )
    assert status == 0
    assert list(found) == [
        f"state.directory {tmp_path}/state",
        f"source.paths {tmp_path}/events.csv",
        f"output.scores_file {tmp_path}/scores.jsonl",
        "compute.device auto",
        "http.host 127.0.0.1, http.port 0",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.csv"], "nothing is made"


def test_check_reports_each_missing_thing_with_its_setting(check: Check, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        status, found = check(
            f"state.directory={tmp_path}/file/state",
            "source.type=file",
            f"source.paths={tmp_path}/absent.csv",
            f"output.scores_file={tmp_path}/nowhere/scores.jsonl",
            f"model.directory={tmp_path}/model",
            "compute.device=cuda:99",
            f"http.port={port}",
            "receivers.hook.url=https://no-such-host.invalid/hook",
        )
    assert status == 2
    assert {name: said.split(":")[0] for name, said in found.items()} == {
        f"state.directory {tmp_path}/file/state": f"failed {tmp_path}/file is no directory",
        f"source.paths {tmp_path}/absent.csv": "failed cannot be read",
        f"model.directory {tmp_path}/model": found[f"model.directory {tmp_path}/model"].split(":")[0],
        f"output.scores_file {tmp_path}/nowhere/scores.jsonl": f"failed {tmp_path}/nowhere does not exist",
        "compute.device cuda:99": found["compute.device cuda:99"].split(":")[0],
        f"http.host 127.0.0.1, http.port {port}": "failed cannot be listened on",
        "receivers.hook.url https://no-such-host.invalid:443": "failed the name no-such-host.invalid leads nowhere",
    }
    assert all(said.startswith("failed") for said in found.values())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with the openssl command")
def test_check_verifies_certificates_and_their_expiry(check: Check, tmp_path: Path) -> None:
    key, good, expired, none = (tmp_path / name for name in ("key.pem", "good.pem", "expired.pem", "none.pem"))
    make_certificate(key, good)
    expired_key = tmp_path / "expired-key.pem"
    expired_key.write_text(make_expired_certificate(expired))
    none.write_text("nothing")
    assert check(*FILES, f"http.ssl_certfile={good}", f"http.ssl_keyfile={key}")[0] == 0
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    _, found = check(*FILES, f"http.ssl_certfile={expired}", f"http.ssl_keyfile={expired_key}")
    assert found[f"http.ssl_certfile {expired}"].startswith(f"failed expired on {yesterday}")
    _, found = check(*FILES, f"http.ssl_certfile={none}", f"http.ssl_keyfile={key}")
    assert found[f"http.ssl_certfile {none}"] == "failed no certificate in PEM: it holds no certificate"
    _, found = check(*FILES, f"http.ssl_certfile={good}", f"http.ssl_keyfile={expired_key}")
    assert found[f"http.ssl_certfile {good}"].startswith("failed"), "the key is another one's"
    kafka = ("kafka.bootstrap_servers=127.0.0.1:1", "kafka.security_protocol=SSL", "http.port=0")
    _, found = check(*kafka, f"kafka.ssl_cafile={expired}")
    assert found[f"kafka.ssl_cafile {expired}"].startswith("failed expired on")


def test_check_resolves_the_webhook_without_sending(check: Check) -> None:
    _, found = check(*FILES, "receivers.hook.url=http://localhost:1/secret", "receivers.hook.allowed_hosts=localhost")
    assert found["receivers.hook.url http://localhost:1"].startswith("ok leads to ")


# -- Kafka -------------------------------------------------------------------------------------------------------------


def test_check_reports_an_unreachable_broker(check: Check) -> None:
    status, found = check("kafka.bootstrap_servers=127.0.0.1:1", "http.port=0")
    assert status == 2
    assert found["kafka.bootstrap_servers 127.0.0.1:1"].startswith("failed not reachable")


@pytest.mark.kafka
def test_check_verifies_topics_and_rights_and_leaves_nothing_behind(
    check: Check, apache: Broker, topic: Callable[..., str]
) -> None:
    events, scores = topic(2), topic()
    group = f"group-{uuid.uuid4().hex[:8]}"
    config = KafkaSettings(topics=[events], group_id=group)
    kafka = (
        f"kafka.bootstrap_servers={apache.bootstrap}",
        f"kafka.group_id={group}",
        f"kafka.topics={events}",
        f"kafka.scores_topic={scores}",
        "kafka.dead_letter_topic=",
        "processing.guarantee=exactly_once",
        "http.port=0",
    )
    status, found = check(*kafka, "kafka.alerts_topic=")
    assert status == 0, found
    assert found[f"kafka.topics {events}"] == "ok 2 partitions, Read"
    assert found[f"kafka.scores_topic {scores}"] == "ok 1 partitions, Write"
    assert found[f"kafka.changelog_topic {config.changelog_of(events)}"] == "ok does not exist, longwatch creates it"
    missing = f"missing-{events}"
    status, found = check(*kafka, f"kafka.alerts_topic={missing}")
    assert status == 2
    assert found[f"kafka.alerts_topic {missing}"].startswith("failed does not exist: create it")
    admin = KafkaAdminClient(bootstrap_servers=apache.bootstrap)
    try:
        assert not {missing, config.changelog_of(events)} & set(admin.list_topics())
        assert group not in {found["group_id"] for found in admin.list_groups()}
    finally:
        admin.close()


@pytest.mark.kafka
def test_check_reports_every_missing_right_until_it_is_granted(check: Check, guarded_broker: ApacheKafka) -> None:
    name = uuid.uuid4().hex[:8]
    events, alerts = (guarded_broker.create_topic(f"{kind}-{name}") for kind in ("events", "alerts"))
    group = f"group-{name}"
    changelog = f"{group}-{events}-changelog"
    settings = (
        f"kafka.bootstrap_servers={guarded_broker.guarded_bootstrap}",
        "kafka.security_protocol=SASL_PLAINTEXT",
        "kafka.sasl_mechanism=PLAIN",
        f"kafka.sasl_username={USERNAME}",
        f"kafka.sasl_password={PASSWORD}",
        f"kafka.group_id={group}",
        "kafka.group_instance_id=one",
        f"kafka.topics={events}",
        f"kafka.alerts_topic={alerts}",
        "kafka.dead_letter_topic=",
        f"kafka.transaction_timeout_seconds={MAX_TRANSACTION_SECONDS}",
        "processing.guarantee=exactly_once",
        "receivers.hook.url=http://127.0.0.1:9/hook",
        "receivers.hook.allowed_hosts=127.0.0.1",
        "http.port=0",
    )
    status, found = check(*settings)
    assert status == 2
    wrong = {what: said for what, said in found.items() if said.startswith("failed")}
    grants = {
        f"kafka.topics {events}": "grant Read on it",
        f"kafka.alerts_topic {alerts}": "grant Write and Read on it",
        f"kafka.changelog_topic {changelog}": "grant Create, Describe, DescribeConfigs, Read and Write on it",
        f"group {group}": "grant Read on it",
        f"group {group}-webhook": "grant Read on it",
        f"transactional id longwatch/{group}/one": f"grant Write on those with the prefix longwatch/{group}/",
    }
    assert grants.keys() <= wrong.keys()
    assert wrong.keys() <= grants.keys() | {"idempotent writing"}
    for what, grant in grants.items():
        assert grant in wrong[what]
    guarded_broker.grant("TOPIC", events, "READ")
    guarded_broker.grant("TOPIC", alerts, "READ")
    _, found = check(*settings)
    assert found[f"kafka.topics {events}"].startswith("ok")
    assert f"may not Write topic {alerts}: grant that" in found[f"kafka.alerts_topic {alerts}"]
    guarded_broker.grant("TOPIC", alerts, "WRITE")
    guarded_broker.grant("TOPIC", changelog, "CREATE", "DESCRIBE", "DESCRIBE_CONFIGS", "READ", "WRITE")
    guarded_broker.grant("GROUP", group, "READ")
    guarded_broker.grant("GROUP", f"{group}-webhook", "READ")
    guarded_broker.grant("TRANSACTIONAL_ID", f"longwatch/{group}/one", "WRITE")
    status, found = check(*settings)
    assert status == 0, found


@pytest.mark.kafka
def test_check_reports_bad_advertised_addresses_and_forbidden_timeouts(
    check: Check, guarded_broker: ApacheKafka
) -> None:
    events = guarded_broker.create_topic(f"events-{uuid.uuid4().hex[:8]}")
    _, found = check(
        f"kafka.bootstrap_servers={guarded_broker.elsewhere_bootstrap}",
        f"kafka.topics={events}",
        "kafka.alerts_topic=",
        "kafka.dead_letter_topic=",
        "state.changelog=true",
        "kafka.changelog_replication_factor=3",
        "kafka.session_timeout_seconds=900",
        "http.port=0",
    )
    assert found[f"kafka.bootstrap_servers {guarded_broker.elsewhere_bootstrap}"].startswith("ok")
    assert "advertised.listeners" in found[f"broker {guarded_broker.elsewhere}"]
    assert "kafka.changelog_replication_factor = 3" in found[f"kafka.changelog_topic longwatch-{events}-changelog"]
    assert "transaction.max.timeout.ms" in found["kafka.transaction_timeout_seconds 60"]
    assert found["kafka.session_timeout_seconds 900"].startswith("failed")
