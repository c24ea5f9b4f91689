"""Connecting: waiting for a broker, and finding out why there is none.

kafka-python says only "unable to bootstrap" for a broker that is down, a refused password and a certificate that is
not trusted alike. So `probe` connects itself, step by step (TCP, TLS, Kafka with SASL), and says which step failed.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from kafka.errors import KafkaConfigurationError, KafkaError

from connectors.kafka.client_internals import has
from connectors.kafka.client_options import client_options
from connectors.kafka.errors import AuthenticationError, KafkaConnectorError, TlsError
from connectors.kafka.oauth import TokenError
from connectors.kafka.settings import KafkaSettings

log = logging.getLogger(__name__)

Client = TypeVar("Client")

CONNECT_SECONDS = 5.0  # one step of a probe; a broker in another region answers within 1 s
FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 10.0  # so a broker that comes up is used within about 10 s
LOG_EVERY_SECONDS = 60.0  # once the delay has reached its longest


def connect(settings: KafkaSettings, make: Callable[[], Client], stop: threading.Event) -> Client | None:
    """Return `make()` as soon as a broker is reachable; None once `stop` is set.

    Retries with exponential back-off and jitter, and logs that, ever more rarely. Raises AuthenticationError and
    TlsError at once, since retrying does not help there.
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
            next_line = now + (LOG_EVERY_SECONDS if delay == MAX_DELAY_SECONDS else 0)
        stop.wait(wait)
        delay = min(2 * delay, MAX_DELAY_SECONDS)
    return None


def probe(settings: KafkaSettings) -> str | None:
    """Return None if one of the brokers answers and accepts the login, else why none does, for a person.

    Raises AuthenticationError or TlsError if a broker answers but refuses us and no other accepts.
    """
    options = client_options(settings)
    reasons: list[str] = []
    refusal: KafkaConnectorError | None = None
    for server in options["bootstrap_servers"]:
        try:
            with conversation(settings, options, server):
                return None
        except NoAnswerError as error:
            reasons.append(f"{server}: {error}")
        except KafkaConnectorError as error:
            refusal = refusal or error
    if refusal is not None:
        raise refusal
    return "; ".join(reasons)


class NoAnswerError(Exception):
    """A broker gives no answer; the text says which step fails."""


@contextlib.contextmanager
def conversation(settings: KafkaSettings, options: dict[str, Any], server: str) -> Iterator[Conversation | None]:
    """Connect to one broker as the client would, logged in; `options` are the client's.

    Yields None if the installed client lacks the parts for that.
    Raises NoAnswerError, also if it stops answering; AuthenticationError or TlsError where it refuses us.
    """
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    try:
        connection = socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS)
    except OSError as error:
        raise NoAnswerError(f"not reachable: {error.strerror or error}") from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(connection)
        try:
            if "ssl_context" in options:
                connection = options["ssl_context"].wrap_socket(connection, server_hostname=host)
                stack.enter_context(connection)
            if not has("probe"):
                yield None
                return
            talk = Conversation(connection)
            _log_in(settings, options, host, talk)
            yield talk
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
            raise NoAnswerError(
                "the port is open but does not answer as a Kafka broker with kafka.security_protocol="
                f"{settings.security_protocol}: {type(error).__name__}: {error}"
            ) from None
        except TokenError as error:
            if not error.permanent:
                raise NoAnswerError(str(error)) from None
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


class _RefusedError(Exception):
    """The broker's reason for refusing a login."""


class Conversation:
    """Kafka's protocol on a blocking socket: one request, one response.

    Not kafka-python's own connection: a broker answers a wrong password and hangs up, and the client, which learns of
    the hanging up first, drops the answer.
    """

    def __init__(self, connection: socket.socket) -> None:
        from kafka.protocol.parser import KafkaProtocol  # noqa: PLC0415 - a release may have none

        self.newest: dict[int, int] = {}  # version of each request that the broker knows, by the request's number
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


def _log_in(settings: KafkaSettings, options: dict[str, Any], host: str, talk: Conversation) -> None:
    """Ask for the broker's versions, as every client does, and log in where asked; _RefusedError with the reason."""
    from kafka.net.sasl import get_sasl_mechanism  # noqa: PLC0415
    from kafka.protocol.metadata import ApiVersionsRequest  # noqa: PLC0415
    from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest  # noqa: PLC0415

    talk.newest = {known.api_key: known.max_version for known in talk.ask(ApiVersionsRequest(version=0)).api_keys}
    if not settings.security_protocol.startswith("SASL"):
        return
    name = settings.sasl_mechanism
    offer = talk.ask(SaslHandshakeRequest(version=1, mechanism=name))
    if offer.error_code:
        raise _RefusedError(f"it offers {', '.join(offer.mechanisms) or 'no mechanism'}")
    mechanism = get_sasl_mechanism(name)(host=host, **options)
    while not mechanism.is_done():
        answer = talk.ask(SaslAuthenticateRequest(version=1, auth_bytes=mechanism.auth_bytes()))
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


def quieten_client() -> None:
    """Silence kafka-python, which logs every failed attempt as an error: this package does the logging.

    A level that was set for the logger "kafka" stays.
    """
    logger = logging.getLogger("kafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
