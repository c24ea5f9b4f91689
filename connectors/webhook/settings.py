"""Where alerts are POSTed and how they are signed, as settings."""

from __future__ import annotations

import base64
import binascii

from pydantic import Field, SecretStr, field_validator, model_validator

from connectors.common.section import MAX_SECONDS, Section
from connectors.http_client.url_policy import Targets, parse_url

MIN_SECRET_BYTES = 24  # Standard Webhooks' least


class WebhookSettings(Section):
    """The [webhook] section."""

    url: SecretStr = SecretStr("")
    """URL that alerts are POSTed to, http:// or https://; empty: none."""
    secret: SecretStr = SecretStr("")
    """Signing key of Standard Webhooks: whsec_<base64>, or plain text of 24 bytes or more; two, separated by a space,
    while one replaces the other; empty: unsigned."""
    allowed_hosts: tuple[str, ...] = ()
    """The only hosts, addresses and networks that url may lead to; empty: any public address. Private and loopback
    addresses need their host or network listed, link-local ones the address itself."""
    timeout_seconds: float = Field(default=15.0, gt=0, le=60)
    """Time limit of one delivery."""
    retry_base_seconds: float = Field(default=5.0, gt=0, le=3600)
    """Longest wait before the first retry; four times as long before each next one, up to half an hour."""
    max_age_seconds: float = Field(default=259_200.0, gt=0, le=MAX_SECONDS)
    """An alert that could not be delivered for this long is dropped."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value():
            parse_url(url.get_secret_value())
        return url

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr) -> SecretStr:
        parse_secrets(secret.get_secret_value())
        return secret

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        Targets(hosts)
        return hosts

    @model_validator(mode="after")
    def _check_target(self) -> WebhookSettings:
        if self.url.get_secret_value():
            refusal = Targets(self.allowed_hosts).refuses_host(parse_url(self.url.get_secret_value()).host)
            if refusal is not None:
                raise ValueError(f"webhook.url: {refusal}")
        return self


def parse_secrets(text: str) -> list[bytes]:
    """Return the signing keys in a setting, which may hold several. Raises ValueError, without them in its text."""
    keys = []
    for secret in text.split():
        if secret.startswith("whsec_"):
            try:
                key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
            except binascii.Error:
                raise ValueError("webhook.secret begins with whsec_, but base64 does not follow") from None
        else:
            key = secret.encode()
        if len(key) < MIN_SECRET_BYTES:
            raise ValueError(
                f"webhook.secret has {len(key)} bytes, at least {MIN_SECRET_BYTES} are needed: "
                'make one with echo "whsec_$(openssl rand -base64 32)"'
            )
        keys.append(key)
    return keys
