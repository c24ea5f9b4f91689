"""Names and addresses for Kafka: which are valid, and those derived from a group's, a topic's and a member's name.

Derived names must be distinct, or two groups would write into each other's transactions, groups and topics.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+(%[\w.-]+)?\]|[^\s:/\[\]]+):(\d{1,5})")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
FEED_ENDING = "-webhook"  # of the group that reads a group's alerts for its webhook; reserved


def topic_problem(name: str) -> str:
    """Return why this is no valid name of a topic; empty if it is."""
    if name in {".", ".."} or not _TOPIC.fullmatch(name):
        return "no name for a topic: Kafka takes 1 to 249 of the characters A-Z, a-z, 0-9, '.', '_' and '-'"
    return ""


def server_problem(server: str) -> str:
    """Return why this is no valid address of a broker; empty if it is."""
    if "://" in server:
        return "no scheme is expected: host:port, and kafka.security_protocol says how to talk to it"
    found = _SERVER.fullmatch(server)
    if found is None:
        return "expected host:port, such as broker-1:9092 or [::1]:9092, several with commas"
    return "" if 0 < int(found[3]) < 65_536 else "a port is 1 to 65535"


def check_endpoint(url: str) -> None:
    """Raise ValueError for a token endpoint's URL that is invalid or not encrypted."""
    wrong = "kafka.sasl_oauth_token_endpoint_url: expected https://host[:port]/path"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(wrong) from None
    if parts.scheme not in {"https", "http"} or not parts.hostname or parts.username is not None or port == 0:
        raise ValueError(wrong)
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(wrong)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ValueError(
            "kafka.sasl_oauth_token_endpoint_url: https is needed, since the client's secret is sent there"
        )


def transactional_id(group: str, member: str) -> str:
    """Return the name of a worker's transactions: a member's name holds no slash, so the last one ends the group's."""
    return f"longwatch/{group}/{member}"


def feed_group(group: str) -> str:
    """Return the name of the group that reads a group's alerts for its webhook."""
    return f"{group}{FEED_ENDING}"


def changelog_name(template: str, group: str, topic: str) -> str:
    """Return the name of the changelog of a topic that a group reads."""
    return template.replace("{group}", _in_a_topic(group)).replace("{topic}", topic)


def changelog_pattern(template: str, group: str) -> str:
    """Return the regular expression that the whole name of a group's changelog matches, whatever topic it is of."""
    return re.escape(template.replace("{group}", _in_a_topic(group))).replace(re.escape("{topic}"), ".+")


def _in_a_topic(group: str) -> str:
    """Return a group's name with the characters that a topic's name may not have replaced."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", group)
