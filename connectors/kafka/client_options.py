"""From the settings to kafka-python's options for connecting: addresses, login, TLS."""

from __future__ import annotations

import ssl
import time
from typing import Any
from urllib.parse import urlsplit

from connectors.common.certificates import load_key_pair
from connectors.kafka.errors import TlsError
from connectors.kafka.oauth import Tokens, from_endpoint, from_file
from connectors.kafka.settings import KafkaSettings

RECONNECT_MAX_MS = 5_000  # the client's own longest back-off after an outage; its default is 30 s


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return kafka-python's options for connecting, the same for consumer, producer and probe.

    Raises TlsError where a certificate file cannot be read.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
        "client_id": "longwatch",
        "security_protocol": settings.security_protocol,
        "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
    }
    if settings.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.sasl_mechanism
        if settings.sasl_mechanism == "OAUTHBEARER":
            options["sasl_oauth_token_provider"] = _tokens(settings)
        else:
            options["sasl_plain_username"] = settings.sasl_username
            options["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    return options


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    context = _trusting("kafka.ssl_cafile", settings.ssl_cafile)
    context.check_hostname = settings.ssl_check_hostname
    if settings.ssl_certfile:
        password = settings.ssl_key_password.get_secret_value()
        if problem := load_key_pair(context, "kafka", settings.ssl_certfile, settings.ssl_keyfile, password):
            raise TlsError(problem)
    return context


def _trusting(setting: str, cafile: str) -> ssl.SSLContext:
    """Return a context that trusts the authorities in a file, or the system's."""
    try:
        return ssl.create_default_context(cafile=cafile or None)
    except (OSError, ssl.SSLError) as error:
        raise TlsError(f"{setting} {cafile}: no PEM certificates can be read: {error}") from None


def _tokens(settings: KafkaSettings) -> Tokens:
    """Return what the client asks for a token."""
    from kafka.net.sasl.oauth import AbstractTokenProvider  # noqa: PLC0415 - a release may have none

    AbstractTokenProvider.register(Tokens)
    extensions = dict(extension.split("=", 1) for extension in settings.sasl_oauth_extensions)
    if settings.sasl_oauth_token_file:
        source = from_file(settings.sasl_oauth_token_file)
    else:
        https = urlsplit(settings.sasl_oauth_token_endpoint_url).scheme == "https"
        context = _trusting("kafka.sasl_oauth_ssl_cafile", settings.sasl_oauth_ssl_cafile) if https else None
        source = from_endpoint(settings, context)
    return Tokens(source, extensions, time.monotonic)
