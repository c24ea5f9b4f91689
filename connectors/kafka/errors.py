"""Kafka's errors explained: for each that can reach a person, its cause and the remedy.

An error is recognised by its name, which the client repeats in the text of errors that it derives from others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from connectors.errors import UserError
from connectors.kafka.settings import KafkaSettings


class KafkaConnectorError(UserError):
    """Kafka cannot be used as the settings ask; the text says how to mend it."""


class AuthenticationError(KafkaConnectorError):
    """The broker refused user name, password or mechanism: waiting does not help."""


class TlsError(KafkaConnectorError):
    """No TLS session with the broker can be had with these certificates: waiting does not help."""


class _Cause(NamedTuple):
    """What an error means. In the text, {right} is what is done with the {topic}; other names are settings."""

    text: str
    permanent: bool = True  # retrying does not help


_REPLICAS = _Cause("too few replicas of {topic} are in sync (min.insync.replicas): check the brokers", False)
_OLD = _Cause("the brokers do not know a request that longwatch needs ({error}): they are too old, upgrade them")

_CAUSES: Mapping[str, _Cause] = {
    "TopicAuthorizationFailedError": _Cause("{user} may not use {topic}: grant {right} on it"),
    "GroupAuthorizationFailedError": _Cause("{user} may not use the group {group}: grant Read on it"),
    "TransactionalIdAuthorizationFailedError": _Cause(
        "{user} may not use the transactional id: grant Write on those with the prefix longwatch/{group_id}/"
    ),
    "ClusterAuthorizationFailedError": _Cause(
        "{user} may not do this on the cluster: grant {right} on {topic}; brokers before 3.0 also ask for"
        " IdempotentWrite on the cluster"
    ),
    "InvalidTransactionTimeoutError": _Cause(
        "kafka.transaction_timeout_seconds = {transaction_timeout_seconds:g} is longer than the brokers allow: set it"
        " to their transaction.max.timeout.ms or less, or raise that"
    ),
    "InvalidSessionTimeoutError": _Cause(
        "kafka.session_timeout_seconds = {session_timeout_seconds:g} is not what the brokers allow: set it between"
        " their group.min.session.timeout.ms (6 s by default) and group.max.session.timeout.ms (30 min), or change"
        " those"
    ),
    "InconsistentGroupProtocolError": _Cause(
        "the group {group} has members that share partitions out in another way: either another program uses the name,"
        " then set kafka.group_id to a name used by longwatch alone; or workers of another version, then stop them"
    ),
    "FencedInstanceIdError": _Cause(
        "another member of group {group} runs with kafka.group_instance_id={group_instance_id}: give each daemon a"
        " different name"
    ),
    "InvalidGroupIdError": _Cause("kafka.group_id = {group_id!r} is not a valid name for the brokers: set another"),
    "GroupMaxSizeReachedError": _Cause(
        "the group {group} has as many members as its group.max.size allows: start fewer workers, or raise that"
    ),
    "InvalidReplicationFactorError": _Cause(
        "the cluster has too few brokers for kafka.changelog_replication_factor = {changelog_replication_factor}"
        " (-1: the brokers' default.replication.factor): set it to their number or less"
    ),
    "PolicyViolationError": _Cause(
        "the brokers' policy refuses it ({error}): have an administrator create {topic} as the policy asks"
    ),
    "InvalidTopicError": _Cause(
        "{topic} is not a valid name, or an internal topic that cannot be written: set another"
    ),
    "UnknownTopicOrPartitionError": _Cause(
        "{topic} does not exist: create it, or set the name of one that does", False
    ),
    "UnsupportedForMessageFormatError": _Cause(
        "{topic} is kept in a format from before Kafka 0.11: set its message.format.version to 0.11.0 or later, or"
        " create it again"
    ),
    "UnsupportedVersionError": _OLD,
    "IncompatibleBrokerVersion": _OLD,
    "UnrecognizedBrokerVersion": _OLD,
    "UnsupportedCompressionTypeError": _Cause(
        "the brokers do not take kafka.compression = {compression} for {topic}: set another"
    ),
    "UnsupportedCodecError": _Cause(
        "records are compressed in a way that this installation cannot read ({error}): install the packages lz4,"
        " zstandard and python-snappy"
    ),
    "NotEnoughReplicasError": _REPLICAS,
    "NotEnoughReplicasAfterAppendError": _REPLICAS,
    "KafkaStorageError": _Cause("a broker cannot use the disk that holds {topic}: check its log", False),
}
_NAME = re.compile(r"\b[A-Z]\w+(?:Error|Version)\b")


def _cause(error: BaseException) -> _Cause | None:
    """Return the cause of an error: by its own name, else by a name in its text."""
    texts = (f"{type(error).__name__} {error}", repr(error.__cause__))
    names = (name for text in texts for name in _NAME.findall(text))
    return next((_CAUSES[name] for name in names if name in _CAUSES), None)


def is_permanent(error: BaseException) -> bool:
    """Return whether retrying is useless and a person must act."""
    cause = _cause(error)
    return cause is not None and cause.permanent


def explain_error(
    error: BaseException, settings: KafkaSettings, *, topic: str = "", right: str = "Read", group: str = ""
) -> str:
    """Return an error's cause and remedy in one line; its own text if it is not a known one.

    `topic` is the topic concerned, if any and not named by the error, and `right` the operation on it; `group` the
    consumer group, if it is not kafka.group_id.
    """
    cause = _cause(error)
    own = " ".join(f"{type(error).__name__}: {error}".split())
    if cause is None:
        return own
    named = error.args[0] if error.args and isinstance(error.args[0], set | frozenset) else ()
    topics = ", ".join(sorted(map(str, named))) or topic
    return cause.text.format(
        **settings.model_dump(exclude={"sasl_password", "ssl_key_password", "sasl_oauth_client_secret"}),
        error=own,
        topic=f"topic {topics}" if topics else "the topic",
        right=right,
        group=group or settings.group_id,
        user=principal(settings),
    )


def principal(settings: KafkaSettings) -> str:
    """Return as which user the brokers know this client."""
    if not settings.security_protocol.startswith("SASL"):
        return "this client (User:ANONYMOUS, or whom kafka.ssl_certfile names)"
    if settings.sasl_mechanism == "OAUTHBEARER":
        return "the user whom the token names"
    return f"user {settings.sasl_username!r}"
