"""Tokens for Kafka's SASL OAUTHBEARER: from a file that is kept fresh by something else, or from an identity provider.

A file is read again for each login: Kubernetes' projected service-account tokens and cloud agents replace theirs
before they expire. From a token endpoint (RFC 6749, client credentials) a token is asked for when the last one has
lived four fifths of its life; while the endpoint is down, the last one is used as long as it is valid.
"""

from __future__ import annotations

import base64
import http.client
import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from connectors.common.throttle import LogThrottle
from connectors.errors import UserError
from connectors.http_client.post import HttpPoster
from connectors.kafka.settings import KafkaSettings

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0  # of the endpoint: the Kafka client's own thread waits for it
MAX_ANSWER_BYTES = 1 << 18
MAX_TOKEN_BYTES = 1 << 16
REFRESH_SHARE = 0.8  # of a token's life
DEFAULT_LIFE_SECONDS = 300.0  # where the endpoint does not say
MAX_LIFE_SECONDS = 1e9

TokenSource = Callable[[], tuple[str, float]]  # a token, and when it expires (monotonic, s)


class TokenError(UserError):
    """No token could be obtained; the text names the setting and says why. `permanent`: retrying does not help."""

    def __init__(self, text: str, *, permanent: bool) -> None:
        super().__init__(text)
        self.permanent = permanent


class Tokens:
    """What kafka-python asks for a token at each login."""

    def __init__(self, fetch: TokenSource, extensions: Mapping[str, str], clock: Callable[[], float]) -> None:
        self._fetch, self._extensions, self._clock = fetch, dict(extensions), clock
        self._lock = threading.Lock()
        self._token, self._refresh_at, self._expires_at = "", -1.0, -1.0
        self._throttle = LogThrottle(clock=clock)

    def token(self) -> str:
        """Return a valid token. Raises TokenError."""
        with self._lock:
            now = self._clock()
            if now < self._refresh_at:
                return self._token
            try:
                token, self._expires_at = self._fetch()
            except TokenError as error:
                # kafka-python retries silently
                if self._throttle.due():
                    log.warning("%s", error)
                if now < self._expires_at and not error.permanent:
                    return self._token
                raise
            self._token = token
            self._refresh_at = now + REFRESH_SHARE * (self._expires_at - now)
            return token

    def extensions(self) -> dict[str, str]:
        """Return what goes with the token (Confluent Cloud: logicalCluster, identityPoolId)."""
        return self._extensions


def from_file(path: str) -> TokenSource:
    """Return a source that reads a token from a file, for each login."""

    def fetch() -> tuple[str, float]:
        where = f"kafka.sasl_oauth_token_file {path}"
        try:
            with Path(path).open("rb") as file:
                found = file.read(MAX_TOKEN_BYTES + 1)
        except OSError as error:
            raise TokenError(f"{where}: cannot be read: {error.strerror or error}", permanent=True) from None
        return _checked(found.decode("utf-8", "replace").strip(), where), -1.0

    return fetch


def from_endpoint(settings: KafkaSettings, context: ssl.SSLContext | None) -> TokenSource:
    """Return a source that asks an identity provider for a token; without a context, not by TLS."""
    parts, scope = urlsplit(settings.sasl_oauth_token_endpoint_url), settings.sasl_oauth_scope
    client_id, client_secret = settings.sasl_oauth_client_id, settings.sasl_oauth_client_secret.get_secret_value()
    where = f"the token endpoint {parts.scheme}://{parts.netloc} (kafka.sasl_oauth_token_endpoint_url)"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    form = {"grant_type": "client_credentials", **({"scope": scope} if scope else {})}
    # RFC 6749, 2.3.1: both are form-encoded before they are joined
    credentials = base64.b64encode(f"{quote(client_id, safe='')}:{quote(client_secret, safe='')}".encode()).decode()
    headers = {
        "Authorization": f"Basic {credentials}",
        "Content-Type": "application/x-www-form-urlencoded",
        "Accept": "application/json",
    }
    host = str(parts.hostname)
    port = parts.port or (http.client.HTTP_PORT if context is None else http.client.HTTPS_PORT)
    poster = HttpPoster(host, port, context)

    def fetch() -> tuple[str, float]:
        began = time.monotonic()
        try:
            with poster.post(target, urlencode(form).encode(), headers, ANSWER_SECONDS) as response:
                status, body = response.status, response.read(MAX_ANSWER_BYTES)
        except ssl.SSLCertVerificationError as error:
            raise TokenError(
                f"{where}: its certificate is not trusted: {error.verify_message}; kafka.sasl_oauth_ssl_cafile is"
                f" {settings.sasl_oauth_ssl_cafile or 'not set, so the system decides'}",
                permanent=True,
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise TokenError(f"{where} gives no answer: {type(error).__name__}: {error}", permanent=False) from None
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        answer: dict[str, Any] = found if isinstance(found, dict) else {}
        if status != http.client.OK:
            # `error` is one of RFC 6749's words; the description may repeat what was sent
            word = str(answer.get("error", ""))[:60]
            raise TokenError(
                f"{where} answered {status}{f' ({word!r})' if word else ''}: check kafka.sasl_oauth_client_id,"
                " kafka.sasl_oauth_client_secret and kafka.sasl_oauth_scope",
                permanent=400 <= status < 500 and status != http.client.TOO_MANY_REQUESTS,
            )
        life, token = answer.get("expires_in"), answer.get("access_token")
        if not isinstance(life, int | float) or not 0 < life < MAX_LIFE_SECONDS:
            life = DEFAULT_LIFE_SECONDS
        return _checked(token if isinstance(token, str) else "", where), began + life

    return fetch


def _checked(token: str, where: str) -> str:
    """Return a token that can go into SASL's message, which has control characters as its own marks."""
    if not token or len(token) > MAX_TOKEN_BYTES or not token.isascii() or not token.isprintable() or " " in token:
        raise TokenError(
            f"{where}: holds no token, which is one word of at most {MAX_TOKEN_BYTES} bytes", permanent=True
        )
    return token
