"""Section [kafka] of the settings. Every command reads it, so the client is not imported here."""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from connectors.common.section import Section

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+(%[\w.-]+)?\]|[^\s:/\[\]]+):(\d{1,5})")
_EXTENSION = re.compile(r"[A-Za-z]+=[\t\n\r -~]+")  # RFC 7628
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_FEED_ENDING = "-webhook"  # of the group that reads a group's alerts for its webhook; reserved


class KafkaSettings(Section):
    """Section [kafka]: where events come from and where scores, alerts and rejected records go."""

    bootstrap_servers: str = Field("127.0.0.1:9092", min_length=1)
    """Brokers to connect to first: host:port, several separated by commas."""
    topics: list[str] = Field(["metrics"])
    """Topics to read events from."""
    topic_pattern: str = ""
    """Instead of topics: a regular expression that the whole name of a topic must match."""
    group_id: str = Field("longwatch", min_length=1)
    """Consumer group; its members share the partitions."""
    group_instance_id: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,249}$")
    """Static membership: a name unique to this member; a restart within session_timeout_seconds then moves no
    partition."""
    auto_offset_reset: Literal["earliest", "latest"] = "earliest"
    """Where to start in a partition without a known offset, or with one beyond its end (a topic that was deleted and
    created again). Partitions and topics created later are read from their beginning."""
    scores_topic: str = ""
    """Topic for scores; empty: scores are not written to Kafka."""
    alerts_topic: str = "longwatch-alerts"
    """Topic for alerts; empty: none."""
    dead_letter_topic: str = "longwatch-rejected"
    """Topic for rejected records; empty: none."""
    changelog_topic: str = Field("{group}-{topic}-changelog", pattern=r"^[A-Za-z0-9._{}-]{1,249}$")
    """Compacted topic that the states of each input topic are written to, if state.changelog is on; {group} and {topic}
    are replaced by their names."""
    changelog_replication_factor: int = Field(-1, ge=-1, le=100)
    """Replicas of a changelog topic that longwatch creates; -1: the broker's default."""
    transaction_timeout_seconds: float = Field(60.0, ge=1, le=900)
    """The broker aborts a transaction that is open for longer, and its events are scored again; must be longer than
    state.checkpoint_interval_seconds."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    """Compression of the records written."""
    delivery_timeout_seconds: float = Field(120.0, ge=1, le=3600)
    """The daemon stops if the broker has not taken a written record within this time."""
    session_timeout_seconds: float = Field(10.0, ge=1, le=1800)
    """A member not heard of for this long loses its partitions to the others."""
    max_poll_interval_seconds: float = Field(300.0, ge=10, le=86_400)
    """A member that takes no records for this long (a stuck daemon) leaves the group."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Protocol to the brokers: with or without TLS and login."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "SCRAM-SHA-512"
    """How to log in, if security_protocol begins with SASL."""
    sasl_username: str = ""
    """User name for SASL."""
    sasl_password: SecretStr = SecretStr("")
    """Password for SASL."""
    sasl_oauth_token_file: str = ""
    """For OAUTHBEARER: file that holds a token, read again at each login; another program keeps it fresh."""
    sasl_oauth_token_endpoint_url: str = ""
    """For OAUTHBEARER: https URL to request a token from, with client id and secret."""
    sasl_oauth_client_id: str = ""
    """Client id for the token endpoint."""
    sasl_oauth_client_secret: SecretStr = SecretStr("")
    """Client secret for the token endpoint."""
    sasl_oauth_scope: str = ""
    """Scope to request from the token endpoint; empty: its default."""
    sasl_oauth_ssl_cafile: str = ""
    """PEM file of the authority that signed the token endpoint's certificate; empty: the system's."""
    sasl_oauth_extensions: tuple[str, ...] = ()
    """SASL extensions, "name=value"; Confluent Cloud needs logicalCluster and identityPoolId."""
    ssl_cafile: str = ""
    """PEM file of the authority that signed the brokers' certificates; empty: the system's."""
    ssl_certfile: str = ""
    """PEM file of this client's certificate, if brokers ask for one."""
    ssl_keyfile: str = ""
    """PEM file of the private key of ssl_certfile."""
    ssl_key_password: SecretStr = SecretStr("")
    """Password of ssl_keyfile, if it has one."""
    ssl_check_hostname: bool = True
    """Require that the broker's certificate names its host."""

    @field_validator("bootstrap_servers")
    @classmethod
    def _addresses(cls, servers: str) -> str:
        for server in servers.split(","):
            if problem := _server_problem(server.strip()):
                raise ValueError(f"{server.strip()!r}: {problem}")
        return servers

    @field_validator("topics", "scores_topic", "alerts_topic", "dead_letter_topic")
    @classmethod
    def _names_of_topics(cls, found: str | list[str]) -> str | list[str]:
        for name in [found] if isinstance(found, str) else found:
            if problem := name and topic_problem(name):
                raise ValueError(f"{name!r:.60} is {problem}")
        if not isinstance(found, str) and (twice := [name for name, n in Counter(found).items() if n > 1]):
            raise ValueError(f"{twice[0]!r} is named twice: keep one")
        return found

    @field_validator("group_id")
    @classmethod
    def _no_feeds_group(cls, group: str) -> str:
        if group.endswith(_FEED_ENDING):
            raise ValueError(
                f"names that end in {_FEED_ENDING!r} are reserved for the groups that read alerts for a webhook: choose"
                " another"
            )
        return group

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.topic_pattern and "topics" in self.model_fields_set and self.topics:
            raise ValueError("kafka.topics and kafka.topic_pattern are both set: keep one of them")
        if not self.topic_pattern and not all(self.topics or [""]):
            raise ValueError("kafka.topics is empty: name the topics to read, or set kafka.topic_pattern")
        try:
            re.compile(self.topic_pattern)
        except re.error as error:
            raise ValueError(f"kafka.topic_pattern {self.topic_pattern!r} is no regular expression: {error}") from None
        if "{topic}" not in self.changelog_topic and (self.topic_pattern or len(self.topics) > 1):
            raise ValueError(
                f"kafka.changelog_topic {self.changelog_topic!r}: several topics are read, and each needs its own"
                " changelog: put {topic} into the name"
            )
        if set("{}") & set(self.changelog_of("topic")):
            raise ValueError(f"kafka.changelog_topic {self.changelog_topic!r}: only {{group}} and {{topic}} are known")
        self._check_that_topics_differ()
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
            _check_endpoint(self.sasl_oauth_token_endpoint_url)

    def _check_that_topics_differ(self) -> None:
        """Check that nothing is both read and written, and no two kinds of records go to one topic."""
        uses: dict[str, str] = {} if self.topic_pattern else dict.fromkeys(self.topics, "topics")
        for name, topic in self.outputs.items():
            if uses.get(topic) == "topics":
                raise ValueError(
                    f"kafka.{name} {topic!r} is also read from (kafka.topics): the daemon would read its own output;"
                    " rename one of them"
                )
            if topic in uses:
                raise ValueError(
                    f"kafka.{name} {topic!r} is also kafka.{uses[topic]}: their records differ, so each needs its"
                    " own topic"
                )
            uses[topic] = name
        for topic in ["topic"] if self.topic_pattern else self.topics:
            changelog = self.changelog_of(topic)
            if changelog == topic or changelog in uses:
                raise ValueError(
                    f"kafka.changelog_topic {self.changelog_topic!r}: {changelog!r} is the changelog of {topic!r} and"
                    f" also kafka.{uses.get(changelog, 'topic_pattern')}: rename one of them"
                )

    @property
    def outputs(self) -> dict[str, str]:
        """Topics for results by their setting's name, without those that are switched off."""
        names = ("scores_topic", "alerts_topic", "dead_letter_topic")
        return {name: topic for name in names if (topic := getattr(self, name))}

    def whole_name_pattern(self) -> re.Pattern[str] | None:
        """Return topic_pattern such that `match` asks for the whole name; None where topics are listed.

        What this group writes itself never matches: scores, alerts, dead letters, changelogs.
        """
        if not self.topic_pattern:
            return None
        written = list(map(re.escape, self.outputs.values()))
        written.append(re.escape(self._changelog_template).replace(re.escape("{topic}"), ".+"))
        return re.compile(rf"(?!(?:{'|'.join(written)})\Z)(?:{self.topic_pattern})\Z")

    def changelog_of(self, topic: str) -> str:
        """Return the name of the changelog topic for a topic that is read."""
        return self._changelog_template.replace("{topic}", topic)

    @property
    def _changelog_template(self) -> str:
        """`changelog_topic` with the group's name, without the characters that a topic's name may not have."""
        return self.changelog_topic.replace("{group}", re.sub(r"[^A-Za-z0-9._-]", "-", self.group_id))

    @property
    def feed_group(self) -> str:
        """The group that reads this group's alerts for its webhook."""
        return f"{self.group_id}{_FEED_ENDING}"

    def transactional_id(self, member: str) -> str:
        """Return the name of a worker's transactions: a member's name holds no slash, so the last one ends the group's.

        Two groups must not end each other's transactions.
        """
        return f"longwatch/{self.group_id}/{member}"


def topic_problem(name: str) -> str:
    """Return why this is no valid name of a topic; empty if it is."""
    if name in {".", ".."} or not _TOPIC.fullmatch(name):
        return "no name for a topic: Kafka takes 1 to 249 of the characters A-Z, a-z, 0-9, '.', '_' and '-'"
    return ""


def _server_problem(server: str) -> str:
    """Return why this is no valid address of a broker; empty if it is."""
    if "://" in server:
        return "no scheme is expected: host:port, and kafka.security_protocol says how to talk to it"
    found = _SERVER.fullmatch(server)
    if found is None:
        return "expected host:port, such as broker-1:9092 or [::1]:9092, several with commas"
    return "" if 0 < int(found[3]) < 65_536 else "a port is 1 to 65535"


def _check_endpoint(url: str) -> None:
    """Raise ValueError for a token endpoint's URL that is invalid or not encrypted."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"https", "http"} and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("kafka.sasl_oauth_token_endpoint_url: expected https://host[:port]/path")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ValueError(
            "kafka.sasl_oauth_token_endpoint_url: https is needed, since the client's secret is sent there"
        )
