"""The [http] section of the settings, and the certificate that it names."""

from __future__ import annotations

import ssl
from pathlib import Path

from pydantic import Field, SecretStr, model_validator

from connectors.common.certificates import load_key_pair
from connectors.common.section import Section
from connectors.errors import UserError

MIN_PASSWORD, MIN_TOKEN = 12, 16  # characters: nothing slows down who guesses


class HttpSettings(Section):
    """The [http] section."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on; 0.0.0.0 or :: for all."""
    port: int = Field(default=9464, ge=0, le=65535)
    """Port to listen on; 0: any that is free."""
    external_url: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """Where people find this port, such as https://longwatch.example.com: what receivers are told links there."""
    username: str = ""
    """User name required (basic authentication) for all but /livez and /readyz; empty: none."""
    password: SecretStr = SecretStr("")
    """Password that goes with username, 12 characters or more."""
    token: SecretStr = SecretStr("")
    """Token that programs may write with, 16 characters or more: Authorization: Bearer TOKEN; empty: only the one that
    the daemon makes itself, api.token in the state directory."""
    stream_scores: tuple[str, ...] = ()
    """Patterns of names of streams whose scores /metrics shows one by one, such as "web-1/*"; 200 streams at most."""
    ssl_certfile: str = ""
    """PEM file of this server's certificate with its chain, for https; empty: plain http."""
    ssl_keyfile: str = ""
    """PEM file of the private key of ssl_certfile."""
    ssl_key_password: SecretStr = SecretStr("")
    """Password of ssl_keyfile, if it has one."""

    @model_validator(mode="after")
    def _check(self) -> HttpSettings:
        password = self.password.get_secret_value()
        if bool(self.username) != bool(password):
            raise ValueError("http.username and http.password belong together: set both or none")
        if ":" in self.username or not self.username.isprintable():
            raise ValueError("http.username must be printable and hold no colon, which ends it in basic authentication")
        if password and (len(password) < MIN_PASSWORD or not password.isprintable()):
            raise ValueError(
                f"http.password must be printable and have {MIN_PASSWORD} characters or more: make one with "
                "openssl rand -base64 24"
            )
        token = self.token.get_secret_value()
        if token and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
            raise ValueError(
                f"http.token must be printable ASCII without spaces and have {MIN_TOKEN} characters or more: make one"
                " with openssl rand -hex 24"
            )
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise ValueError("http.ssl_certfile and http.ssl_keyfile belong together: set both or none")
        return self

    def tls(self) -> ssl.SSLContext | None:
        """Return what https needs, None for plain http. Raises HttpError where certificate or key cannot be used."""
        if not self.ssl_certfile:
            return None
        for name, path in (("ssl_certfile", self.ssl_certfile), ("ssl_keyfile", self.ssl_keyfile)):
            try:
                Path(path).open("rb").close()
            except OSError as error:
                raise HttpError(f"http.{name} {path}: cannot be read: {error.strerror or error}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        password = self.ssl_key_password.get_secret_value()
        if problem := load_key_pair(context, "http", self.ssl_certfile, self.ssl_keyfile, password):
            raise HttpError(problem)
        return context


class HttpError(UserError):
    """The server cannot listen as configured; the text names the settings."""
