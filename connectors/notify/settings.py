"""Receivers: where incidents are told, of whom each hears, and how, as settings."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from connectors.common.section import MAX_SECONDS, Section
from connectors.http_client.url_policy import Targets, parse_url
from connectors.notify.template import Template

MIN_SECRET_BYTES = 24  # Standard Webhooks' least
MAX_RECEIVERS = 20  # each has a thread and labels of metrics
MAX_REPLICAS = 10
MAX_HEADERS = 20
MAX_AGE_SECONDS = 259_200.0  # by default: an alert of before a long weekend still says what happened

PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"
SLACK_URL = "https://slack.com/api"

_HEADER = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]+):[ \t]*([!-~\x80-\xff]([\t -~\x80-\xff]*[!-~\x80-\xff])?)")
_OURS = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection"})
# What only some types take
_ONLY = {
    "secret": {"webhook"},
    "template": {"webhook"},
    "tell": {"webhook"},
    "headers": {"webhook", "alertmanager", "alertmanager-webhook"},
    "routing_key": {"pagerduty"},
    "token": {"slack"},
    "channel": {"slack"},
}


class ReceiverSettings(Section):
    """A section [receivers.NAME]."""

    type: Literal["webhook", "alertmanager", "pagerduty", "slack", "alertmanager-webhook"] = "webhook"
    """webhook: signed JSON. alertmanager: its API v2. pagerduty: Events API v2. slack: a message that follows its
    incident. alertmanager-webhook: JSON as Alertmanager's own webhooks, for what takes those."""
    url: SecretStr = SecretStr("")
    """Where to, http:// or https://. alertmanager: that of each replica, separated by spaces. pagerduty: not needed.
    slack: that of an incoming webhook, or empty where token is set."""
    secret: SecretStr = SecretStr("")
    """webhook: signing key of Standard Webhooks, whsec_<base64>, or plain text of 24 bytes or more; two, separated by a
    space, while one replaces the other; empty: unsigned."""
    headers: SecretStr = SecretStr("")
    """webhook, alertmanager, alertmanager-webhook: more request headers, a line each, such as
    "Authorization: Bearer ..."."""
    template: str = ""
    """webhook: the body, as JSON whose texts may name $summary, $severity and so on; empty: longwatch's own."""
    tell: Literal["incidents", "alerts"] = "incidents"
    """webhook: tell incidents as they open, change and resolve, or each alert of each stream by itself."""
    routing_key: SecretStr = SecretStr("")
    """pagerduty: the integration key of the service, 32 characters."""
    token: SecretStr = SecretStr("")
    """slack: a bot's token, xoxb-..., with the scope chat:write: its message is updated as the incident goes on."""
    channel: str = ""
    """slack: the channel, as an ID such as C0123456789, where token is set."""
    streams: tuple[str, ...] = ()
    """Patterns of names of streams, such as "prod-*/*": only incidents with such a stream are told; empty: all."""
    least_severity: Literal["warning", "critical"] = "warning"
    """The least severe that is told."""
    allowed_hosts: tuple[str, ...] = ()
    """The only hosts, addresses and networks that url may lead to; empty: any public address. Private and loopback
    addresses need their host or network listed, link-local ones the address itself."""
    timeout_seconds: float = Field(default=15.0, gt=0, le=60)
    """Time limit of one delivery."""
    retry_base_seconds: float = Field(default=5.0, gt=0, le=3600)
    """Longest wait before the first retry; four times as long before each next one, up to half an hour."""
    max_age_seconds: float = Field(default=MAX_AGE_SECONDS, gt=0, le=MAX_SECONDS)
    """What could not be delivered for this long is dropped."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: SecretStr, info: ValidationInfo) -> SecretStr:
        for one in split_urls(url, info.data.get("type")):
            parse_url(one, "the URL")
        return url

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr) -> SecretStr:
        parse_secrets(secret.get_secret_value())
        return secret

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: SecretStr) -> SecretStr:
        parse_headers(headers)
        return headers

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str) -> str:
        if template:
            Template(template)
        return template

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        Targets(hosts, "receivers.NAME.allowed_hosts")
        return hosts

    @model_validator(mode="after")
    def _check_type(self) -> ReceiverSettings:
        for name, types in _ONLY.items():
            value = getattr(self, name)
            text = value.get_secret_value() if isinstance(value, SecretStr) else value
            if self.type not in types and text != ("incidents" if name == "tell" else ""):
                raise ValueError(f'receivers.NAME.{name} is not for type "{self.type}": leave it out')
        if self.tell == "alerts" and self.template:
            raise ValueError('receivers.NAME.template is for incidents: leave receivers.NAME.tell at "incidents"')
        if self.type == "pagerduty":
            if not self.routing_key.get_secret_value():
                raise ValueError("receivers.NAME.routing_key is not set: PagerDuty shows it as Integration Key")
        elif self.type == "slack" and self.token.get_secret_value():
            if not self.channel:
                raise ValueError("receivers.NAME.channel is not set: Slack shows a channel's ID in its About")
        elif not self.url.get_secret_value():
            also = ", or receivers.NAME.token" if self.type == "slack" else ""
            raise ValueError(f"receivers.NAME.url is not set: name where to tell{also}")
        if len(self.urls()) > MAX_REPLICAS:
            raise ValueError(
                f"receivers.NAME.url names {len(self.urls())} replicas, at most {MAX_REPLICAS} are expected"
            )
        targets = Targets(self.allowed_hosts, "receivers.NAME.allowed_hosts")
        for url in self.urls():
            refusal = targets.refuses_host(parse_url(url).host)
            if refusal is not None:
                raise ValueError(f"receivers.NAME.url: {refusal}")
        return self

    def urls(self) -> list[str]:
        """Return where requests go: Alertmanager's replicas, or one."""
        found = split_urls(self.url, self.type)
        if not found and self.type == "pagerduty":
            return [PAGERDUTY_URL]
        return found or [SLACK_URL]


def split_urls(url: SecretStr, kind: str | None) -> list[str]:
    """Return the URLs in a setting: of Alertmanager there may be several."""
    text = url.get_secret_value()
    if kind == "alertmanager":
        return text.split()
    return [text] if text else []


def parse_headers(headers: SecretStr) -> dict[str, str]:
    """Return more headers of requests. Raises ValueError, without them in its text."""
    lines = [line.strip() for line in headers.get_secret_value().splitlines() if line.strip()]
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        header = _HEADER.fullmatch(line)
        if header is None:
            raise ValueError(f'line {number} is no header: expected "Name: value"')
        if header[1].lower() in _OURS or header[1].lower().startswith("webhook-"):
            raise ValueError(f"line {number} sets {header[1]}, which longwatch sets itself: leave it out")
        found[header[1].lower()] = header[2]
    if len(lines) > MAX_HEADERS:
        raise ValueError(f"{len(lines)} headers, at most {MAX_HEADERS} are expected")
    return found


def parse_secrets(text: str) -> list[bytes]:
    """Return the signing keys in a setting, which may hold several. Raises ValueError, without them in its text."""
    keys = []
    for secret in text.split():
        if secret.startswith("whsec_"):
            try:
                key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
            except binascii.Error:
                raise ValueError("it begins with whsec_, but base64 does not follow") from None
        else:
            key = secret.encode()
        if len(key) < MIN_SECRET_BYTES:
            raise ValueError(
                f"it has {len(key)} bytes, at least {MIN_SECRET_BYTES} are needed: "
                'make one with echo "whsec_$(openssl rand -base64 32)"'
            )
        keys.append(key)
    return keys
