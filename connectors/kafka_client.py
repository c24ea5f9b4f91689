"""What the Kafka source and the Kafka sinks share: settings, security, and the wait for a broker.

kafka-python says only "unable to bootstrap" for a broker that is down, a refused password and a certificate that is
not trusted alike. So `probe` goes the way itself, step by step (TCP, TLS, Kafka with SASL), and says where it ended.
"""

from __future__ import annotations

import contextlib
import logging
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, Self, TypeVar

from kafka.errors import KafkaConfigurationError, KafkaError
from kafka.net.sasl import get_sasl_mechanism
from kafka.protocol.metadata import ApiVersionsRequest
from kafka.protocol.parser import KafkaProtocol
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from connectors.kafka_oauth import TokenError, Tokens, check_endpoint, from_endpoint, from_file

log = logging.getLogger(__name__)

Client = TypeVar("Client")

CONNECT_SECONDS = 5.0  # one step of a probe; a broker in another region answers within 1 s
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 10.0  # so a broker that comes up is used within about 10 s
LOG_EVERY_SECONDS = 60.0  # once the delay has reached its longest
_EXTENSION = re.compile(r"[A-Za-z]+=[\t\n\r -~]+")  # RFC 7628
RECONNECT_MAX_MS = 5_000  # the client's own longest back-off after an outage; its default is 30 s


class KafkaConnectorError(RuntimeError):
    """Kafka cannot be used as the settings ask; the text says what a person can do."""


class AuthenticationError(KafkaConnectorError):
    """The broker refused user name, password or mechanism: waiting does not help."""


class TlsError(KafkaConnectorError):
    """No TLS session with the broker can be had with these certificates: waiting does not help."""


class KafkaSettings(BaseModel):
    """Section [kafka]: where events come from and where scores, alerts and refused records go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bootstrap_servers: str = Field(
        "127.0.0.1:9092", min_length=1, description="Brokers to ask first: host:port, several with commas."
    )
    topics: list[str] = Field(["metrics"], description="Topics to read events from.")
    topic_pattern: str = Field(
        "", description="Instead of topics: a regular expression that a topic's whole name must match."
    )
    group_id: str = Field("longwatch", min_length=1, description="Consumer group: its members share the partitions.")
    group_instance_id: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,249}$",
        description="Static membership: a name of this member's own, so that a restart within"
        " session_timeout_seconds moves no partition.",
    )
    auto_offset_reset: Literal["earliest", "latest"] = Field(
        "earliest",
        description="Where to begin in a partition for which no offset is known, or one beyond its end (made anew).",
    )
    scores_topic: str = Field("", description="Topic for scores; empty: scores are not written to Kafka.")
    alerts_topic: str = Field("longwatch-alerts", description="Topic for alerts; empty: none.")
    dead_letter_topic: str = Field("longwatch-rejected", description="Topic for refused records; empty: none.")
    changelog_topic: str = Field(
        "{group}-{topic}-changelog",
        pattern=r"^[A-Za-z0-9._{}-]{1,249}$",
        description="Compacted topic for the states of each topic that is read, where state.changelog is on;"
        " {group} and {topic} stand for their names.",
    )
    changelog_replication_factor: int = Field(
        -1, ge=-1, le=100, description="Copies of a changelog that is made by longwatch; -1: as the broker has it."
    )
    transaction_timeout_seconds: float = Field(
        60.0,
        ge=1,
        le=900,
        description="A transaction open for longer is ended by the broker, and its span scored again; longer than"
        " state.checkpoint_interval_seconds.",
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        "none", description="Compression of what is written."
    )
    delivery_timeout_seconds: float = Field(
        120.0, ge=1, le=3600, description="How long a written record may wait for the broker before the daemon stops."
    )
    session_timeout_seconds: float = Field(
        10.0, ge=1, le=1800, description="A member not heard of for so long loses its partitions to the others."
    )
    max_poll_interval_seconds: float = Field(
        300.0,
        ge=10,
        le=86_400,
        description="A member that takes no records for so long (a stuck daemon) leaves the group.",
    )
    max_poll_records: int = Field(5_000, ge=1, le=1_000_000, description="Most records in one micro-batch.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How to talk to the brokers."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        "SCRAM-SHA-512", description="How to log in, where security_protocol begins with SASL."
    )
    sasl_username: str = Field("", description="User name for SASL.")
    sasl_password: SecretStr = Field(SecretStr(""), description="Password for SASL.")
    sasl_oauth_token_file: str = Field(
        "",
        description="For OAUTHBEARER: file that holds a token, read again at each login; whatever puts it there keeps"
        " it fresh.",
    )
    sasl_oauth_token_endpoint_url: str = Field(
        "", description="For OAUTHBEARER: where a token is asked for by client id and secret; https."
    )
    sasl_oauth_client_id: str = Field("", description="Client id for the token endpoint.")
    sasl_oauth_client_secret: SecretStr = Field(SecretStr(""), description="Client secret for the token endpoint.")
    sasl_oauth_scope: str = Field("", description="Scope to ask the token endpoint for; empty: its default.")
    sasl_oauth_ssl_cafile: str = Field(
        "", description="PEM file of the authority that signed the token endpoint's certificate; empty: the system's."
    )
    sasl_oauth_extensions: tuple[str, ...] = Field(
        (), description='SASL extensions, "name=value": Confluent Cloud asks for logicalCluster and identityPoolId.'
    )
    ssl_cafile: str = Field("", description="PEM file of the authority to trust; empty: those of the system.")
    ssl_certfile: str = Field("", description="PEM file of this client's certificate, where brokers ask for one.")
    ssl_keyfile: str = Field("", description="PEM file of the key to ssl_certfile.")
    ssl_key_password: SecretStr = Field(SecretStr(""), description="Password of ssl_keyfile, if it has one.")
    ssl_check_hostname: bool = Field(True, description="Whether the broker's certificate must name its host.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.topic_pattern and "topics" in self.model_fields_set and self.topics:
            raise ValueError("kafka.topics and kafka.topic_pattern are both set: keep one of them")
        if not self.topic_pattern and not any(self.topics):
            raise ValueError("kafka.topics is empty: name the topics to read, or set kafka.topic_pattern")
        try:
            pattern = self.whole_name_pattern()
        except re.error as error:
            raise ValueError(f"kafka.topic_pattern {self.topic_pattern!r} is no regular expression: {error}") from None
        for name in ("scores_topic", "alerts_topic", "dead_letter_topic"):
            topic = getattr(self, name)
            if topic and (pattern.match(topic) if pattern else topic in self.topics):
                raise ValueError(
                    f"kafka.{name} {topic!r} is also read from (kafka.{'topic_pattern' if pattern else 'topics'}):"
                    " the daemon would feed on its own output; rename one of them"
                )
        if "{topic}" not in self.changelog_topic and (pattern or len(self.topics) > 1):
            raise ValueError(
                f"kafka.changelog_topic {self.changelog_topic!r}: several topics are read, each needs a changelog"
                " of its own: put {topic} into the name"
            )
        if set("{}") & set(self.changelog_of("topic")):
            raise ValueError(f"kafka.changelog_topic {self.changelog_topic!r}: only {{group}} and {{topic}} are known")
        if pattern and pattern.match(self.changelog_of("topic")):
            raise ValueError(
                f"kafka.topic_pattern {self.topic_pattern!r} also matches the changelogs, such as"
                f" {self.changelog_of('topic')!r}: make it stricter, or rename kafka.changelog_topic"
            )
        if self.security_protocol.startswith("SASL"):
            self._check_login()
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise ValueError("kafka.ssl_certfile and kafka.ssl_keyfile belong together: set both or none")
        return self

    def _check_login(self) -> None:
        protocol = f"kafka.security_protocol {self.security_protocol}"
        if self.sasl_mechanism != "OAUTHBEARER":
            if not (self.sasl_username and self.sasl_password.get_secret_value()):
                raise ValueError(f"{protocol} needs kafka.sasl_username and kafka.sasl_password")
            return
        if bool(self.sasl_oauth_token_file) == bool(self.sasl_oauth_token_endpoint_url):
            raise ValueError(
                f"{protocol} with OAUTHBEARER needs one of kafka.sasl_oauth_token_file and"
                " kafka.sasl_oauth_token_endpoint_url"
            )
        if self.sasl_oauth_token_endpoint_url and not (
            self.sasl_oauth_client_id and self.sasl_oauth_client_secret.get_secret_value()
        ):
            raise ValueError(
                "kafka.sasl_oauth_token_endpoint_url needs kafka.sasl_oauth_client_id and"
                " kafka.sasl_oauth_client_secret"
            )
        for extension in self.sasl_oauth_extensions:
            if not _EXTENSION.fullmatch(extension) or extension.startswith("auth="):
                raise ValueError(
                    f'kafka.sasl_oauth_extensions: {extension!r:.60}: expected "name=value", letters = text'
                )
        if self.sasl_oauth_token_endpoint_url:
            check_endpoint(self.sasl_oauth_token_endpoint_url)

    def whole_name_pattern(self) -> re.Pattern[str] | None:
        """Return topic_pattern such that `match` asks for the whole name; None where topics are listed."""
        return re.compile(rf"(?:{self.topic_pattern})\Z") if self.topic_pattern else None

    def changelog_of(self, topic: str) -> str:
        """Return the name of the changelog topic for a topic that is read."""
        group = re.sub(r"[^A-Za-z0-9._-]", "-", self.group_id)  # a group's name may be anything, a topic's may not
        return self.changelog_topic.replace("{group}", group).replace("{topic}", topic)

    def client_options(self) -> dict[str, Any]:
        """Return kafka-python's options for connecting, the same for consumer, producer and probe.

        Raises TlsError where a certificate file cannot be read.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": [server.strip() for server in self.bootstrap_servers.split(",")],
            "client_id": "longwatch",
            "security_protocol": self.security_protocol,
            "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
        }
        if self.security_protocol.startswith("SASL"):
            options["sasl_mechanism"] = self.sasl_mechanism
            if self.sasl_mechanism == "OAUTHBEARER":
                extensions = dict(extension.split("=", 1) for extension in self.sasl_oauth_extensions)
                options["sasl_oauth_token_provider"] = Tokens(self._token_source(), extensions, time.monotonic)
            else:
                options["sasl_plain_username"] = self.sasl_username
                options["sasl_plain_password"] = self.sasl_password.get_secret_value()
        if self.security_protocol.endswith("SSL"):
            options["ssl_context"] = self._ssl_context()
        return options

    def _ssl_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ssl_cafile or None)
        except (OSError, ssl.SSLError) as error:
            raise TlsError(f"kafka.ssl_cafile {self.ssl_cafile}: no PEM certificates can be read: {error}") from None
        context.check_hostname = self.ssl_check_hostname
        if self.ssl_certfile:
            self._load_own_certificate(context)
        return context

    def _load_own_certificate(self, context: ssl.SSLContext) -> None:
        asked = False

        def password() -> str:
            nonlocal asked
            asked = True
            return self.ssl_key_password.get_secret_value()

        try:  # without `password` OpenSSL would wait for one at the terminal
            context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, password)
        except (OSError, ssl.SSLError) as error:
            reason = "the key is locked, and kafka.ssl_key_password does not open it" if asked else str(error)
            raise TlsError(
                f"kafka.ssl_certfile {self.ssl_certfile} with kafka.ssl_keyfile {self.ssl_keyfile}"
                f" cannot be used: {reason}"
            ) from None

    def _token_source(self) -> Callable[[], tuple[str, float]]:
        if self.sasl_oauth_token_file:
            return from_file(self.sasl_oauth_token_file)
        try:
            return from_endpoint(
                self.sasl_oauth_token_endpoint_url,
                self.sasl_oauth_client_id,
                self.sasl_oauth_client_secret.get_secret_value(),
                self.sasl_oauth_scope,
                self.sasl_oauth_ssl_cafile,
                time.monotonic,
            )
        except TokenError as error:
            raise TlsError(str(error)) from None


def connect(settings: KafkaSettings, make: Callable[[], Client], stop: threading.Event) -> Client | None:
    """Return `make()` as soon as a broker is there; None once `stop` is set.

    Waits with exponential back-off and jitter for brokers that are not there yet, and says so, ever more rarely.
    Raises AuthenticationError and TlsError at once, for they do not mend themselves.
    """
    quieten_client()
    delay = FIRST_DELAY_SECONDS
    began = time.monotonic()
    next_line = began
    while not stop.is_set():
        reason = probe(settings)
        if reason is None:
            try:
                return make()
            except KafkaConfigurationError as error:
                raise KafkaConnectorError(f"kafka-python refuses the settings: {error}") from None
            except KafkaError as error:  # the broker went away between probe and now
                reason = f"{type(error).__name__}: {error}"
        now = time.monotonic()
        wait = delay * random.uniform(0.75, 1.25)
        if now >= next_line:
            log.warning(
                "No Kafka broker yet after %.0f s at kafka.bootstrap_servers=%s (%s); trying again, next in %.1f s",
                *(now - began, settings.bootstrap_servers, reason, wait),
            )
            next_line = now + (LOG_EVERY_SECONDS if delay == LONGEST_DELAY_SECONDS else 0)
        stop.wait(wait)
        delay = min(2 * delay, LONGEST_DELAY_SECONDS)
    return None


def probe(settings: KafkaSettings) -> str | None:
    """Return None where one of the brokers answers and lets us in, else why none does, for a person.

    Raises AuthenticationError or TlsError where a broker answers but refuses us and no other lets us in.
    """
    options = settings.client_options()
    reasons: list[str] = []
    refusal: KafkaConnectorError | None = None
    for server in options["bootstrap_servers"]:
        try:
            reason = _probe_server(settings, options, server)
        except KafkaConnectorError as error:
            refusal = refusal or error
            continue
        if reason is None:
            return None
        reasons.append(f"{server}: {reason}")
    if refusal is not None:
        raise refusal
    return "; ".join(reasons)


def _probe_server(settings: KafkaSettings, options: dict[str, Any], server: str) -> str | None:
    """Go the way to one broker as the client would; return None, or where it ends."""
    try:
        host, port = split_server(server)
        connection = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
    except OSError as error:
        return f"not reachable: {error.strerror or error}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(connection)
        try:
            if "ssl_context" in options:
                connection = options["ssl_context"].wrap_socket(connection, server_hostname=host)
                stack.enter_context(connection)
            _log_in(settings, options, host, _Conversation(connection))
        except ssl.SSLCertVerificationError as error:
            raise TlsError(
                f"TLS with {server}: the broker's certificate is not trusted: {error.verify_message}."
                f" kafka.ssl_cafile is {settings.ssl_cafile or 'not set, so the system decides'}: it must hold the"
                " authority that signed the broker's certificate, and the certificate must name the host in"
                " kafka.bootstrap_servers"
            ) from None
        except ssl.SSLError as error:
            raise TlsError(
                f"TLS with {server} failed: {error.reason or error}. kafka.security_protocol is"
                f" {settings.security_protocol}: is this a TLS listener, and does it ask for a certificate"
                " (kafka.ssl_certfile)?"
            ) from None
        except (OSError, KafkaError) as error:
            return (
                "the port is open but does not answer as a Kafka broker with kafka.security_protocol="
                f"{settings.security_protocol}: {type(error).__name__}: {error}"
            )
        except TokenError as error:
            if not error.lasting:
                return str(error)
            raise AuthenticationError(f"No token to log in with at {server}: {error}") from None
        except _RefusedError as refused:
            if settings.sasl_mechanism == "OAUTHBEARER":
                source = "token_file" if settings.sasl_oauth_token_file else "token_endpoint_url, client_id and scope"
                raise AuthenticationError(
                    f"The broker {server} refused the token with kafka.sasl_mechanism=OAUTHBEARER: {refused}. Check"
                    f" kafka.sasl_oauth_{source}: issuer, audience, expiry, and kafka.sasl_oauth_extensions"
                ) from None
            raise AuthenticationError(
                f"The broker {server} refused the login of kafka.sasl_username={settings.sasl_username!r} with"
                f" kafka.sasl_mechanism={settings.sasl_mechanism}: {refused}. Check both and kafka.sasl_password, and"
                " that the broker has such a user"
            ) from None
    return None


class _RefusedError(Exception):
    """The broker's reason for refusing a login."""


class _Conversation:
    """Kafka's protocol on a blocking socket: one request, one response.

    Not kafka-python's own connection: a broker answers a wrong password and hangs up, and the client, which learns of
    the hanging up first, drops the answer.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._protocol = KafkaProtocol(client_id="longwatch")

    def ask(self, request: Any) -> Any:
        """Return the response; OSError or KafkaError where none comes."""
        self._protocol.send_request(request)
        self._connection.sendall(self._protocol.send_bytes())
        while True:
            received = self._connection.recv(65_536)
            if not received:
                raise ConnectionError("the connection was closed without an answer")
            for _, response in self._protocol.receive_bytes(received):
                return response


def _log_in(settings: KafkaSettings, options: dict[str, Any], host: str, conversation: _Conversation) -> None:
    """Ask for the broker's versions, as every client does, and log in where asked; _RefusedError with the reason."""
    conversation.ask(ApiVersionsRequest(version=0))
    if not settings.security_protocol.startswith("SASL"):
        return
    name = settings.sasl_mechanism
    offer = conversation.ask(SaslHandshakeRequest(version=1, mechanism=name))
    if offer.error_code:
        raise _RefusedError(f"it offers {', '.join(offer.mechanisms) or 'no mechanism'}")
    mechanism = get_sasl_mechanism(name)(host=host, **options)
    while not mechanism.is_done():
        answer = conversation.ask(SaslAuthenticateRequest(version=1, auth_bytes=mechanism.auth_bytes()))
        if answer.error_code:
            raise _RefusedError(answer.error_message or "no reason given")
        if name == "OAUTHBEARER" and answer.auth_bytes:  # RFC 7628: why the token was refused, as JSON
            raise _RefusedError(repr(answer.auth_bytes[:200]))
        try:
            mechanism.receive(answer.auth_bytes)
        except ValueError as error:
            raise _RefusedError(f"the broker's answer is not in order: {error}") from None
    if not mechanism.is_authenticated():
        raise _RefusedError("the broker did not prove that it knows the password")


def split_server(server: str) -> tuple[str, int]:
    """Return host and port of `host:port`, `[v6]:port` or `host` (port 9092, as kafka-python has it)."""
    host, colon, port = server.rpartition(":")
    if not colon or not port.isdigit():
        return server.strip("[]"), 9092
    return host.strip("[]"), int(port)


def quieten_client() -> None:
    """Leave it to this package to tell the story: kafka-python logs every failed attempt as an error.

    Whoever has set a level for the logger "kafka" keeps it.
    """
    logger = logging.getLogger("kafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
