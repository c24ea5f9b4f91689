"""TLS and SASL against a real secured broker: what works, and every failure with its own error."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

import pytest
from kafka import KafkaProducer

from connectors.kafka.client_options import client_options
from connectors.kafka.connect import probe
from connectors.kafka.errors import AuthenticationError, KafkaConnectorError, TlsError
from connectors.kafka.oauth import TokenError, Tokens
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import KafkaSource
from connectors.kafka.writer import KafkaWriter
from tests.brokers import PASSWORD, USERNAME, ApacheKafka, make_certificate
from tests.daemon.support import PATIENCE

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with the openssl command"),
]

WRONG_PASSWORD = "wrong-pony"


@pytest.fixture
def settings(secured_broker: ApacheKafka) -> Callable[..., KafkaSettings]:
    def make(**more: Any) -> KafkaSettings:
        values: dict[str, Any] = {
            "bootstrap_servers": secured_broker.secure_bootstrap,
            "topics": ["secured"],
            "group_id": f"group-{time.monotonic_ns()}",
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": USERNAME,
            "sasl_password": PASSWORD,
            "ssl_cafile": str(secured_broker.cafile),
        }
        return KafkaSettings(**{**values, **more})

    return make


@pytest.fixture
def poll() -> Iterator[Callable[[KafkaSettings], int]]:
    """Poll a source with these settings until a record comes; return how many."""
    sources: list[KafkaSource] = []

    def count(config: KafkaSettings) -> int:
        sources.append(KafkaSource(config))
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if batch := sources[-1].poll(0.5):
                return len(batch)
        return 0

    yield count
    for source in sources:
        source.close()


def test_a_user_with_the_right_password_and_authority_reads_and_writes(
    secured_broker: ApacheKafka,
    settings: Callable[..., KafkaSettings],
    poll: Callable[[KafkaSettings], int],
) -> None:
    secured_broker.create_topic("secured")
    producer = KafkaProducer(bootstrap_servers=secured_broker.bootstrap)
    producer.send("secured", b"1").get(timeout=PATIENCE)
    producer.close()
    assert poll(settings()) == 1
    writer = KafkaWriter(settings(alerts_topic="secured", topics=["other"], dead_letter_topic=""))
    writer.open()
    writer.send("secured", b"k", b"2")
    writer.close()
    assert poll(settings()) == 2


def test_a_refused_password_is_an_error_with_settings_to_check_and_no_password(
    settings: Callable[..., KafkaSettings], poll: Callable[[KafkaSettings], int]
) -> None:
    with pytest.raises(AuthenticationError) as caught:
        poll(settings(sasl_password=WRONG_PASSWORD))
    reported = str(caught.value)
    assert f"kafka.sasl_username='{USERNAME}'" in reported
    assert "kafka.sasl_mechanism=SCRAM-SHA-512" in reported
    assert "kafka.sasl_password" in reported
    assert WRONG_PASSWORD not in reported
    assert WRONG_PASSWORD not in repr(caught.value.__dict__)


def test_a_refused_password_is_distinguished_from_an_unreachable_broker(settings: Callable[..., KafkaSettings]) -> None:
    unreachable = probe(settings(bootstrap_servers="127.0.0.1:1", sasl_password=WRONG_PASSWORD))
    assert unreachable is not None
    assert "not reachable" in unreachable
    unknown = probe(settings(bootstrap_servers="no-such-host.invalid:9092"))
    assert unknown is not None
    assert "not reachable" in unknown


def test_one_reachable_broker_among_several_is_enough(
    secured_broker: ApacheKafka, settings: Callable[..., KafkaSettings]
) -> None:
    assert probe(settings(bootstrap_servers=f"127.0.0.1:1, {secured_broker.secure_bootstrap}")) is None


def test_an_unknown_user_and_an_unsupported_mechanism_are_refused(
    settings: Callable[..., KafkaSettings],
) -> None:
    with pytest.raises(AuthenticationError, match="sasl_username='nobody'"):
        probe(settings(sasl_username="nobody"))
    with pytest.raises(AuthenticationError, match="sasl_mechanism=SCRAM-SHA-256: it offers"):
        probe(settings(sasl_mechanism="SCRAM-SHA-256"))


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN"])
def test_each_password_mechanism_works_over_tls_and_a_wrong_password_is_one_line(
    settings: Callable[..., KafkaSettings], mechanism: str
) -> None:
    assert probe(settings(sasl_mechanism=mechanism)) is None
    with pytest.raises(AuthenticationError, match=r"kafka\.sasl_password") as caught:
        probe(settings(sasl_mechanism=mechanism, sasl_password=WRONG_PASSWORD))
    assert str(caught.value).isprintable()
    assert WRONG_PASSWORD not in str(caught.value)


def test_an_expired_certificate_is_a_one_line_error(
    secured_broker: ApacheKafka, settings: Callable[..., KafkaSettings]
) -> None:
    with pytest.raises(TlsError, match=r"certificate has expired.*kafka\.ssl_cafile is .*expired\.pem") as caught:
        probe(
            settings(bootstrap_servers=secured_broker.expired_bootstrap, ssl_cafile=str(secured_broker.expired_cafile))
        )
    assert str(caught.value).isprintable()


def test_an_encrypted_key_without_password_is_refused_without_a_prompt(
    settings: Callable[..., KafkaSettings], tmp_path: Path
) -> None:
    make_certificate(tmp_path / "key.pem", tmp_path / "cert.pem")
    lock = ["openssl", "pkcs8", "-topk8", "-in", str(tmp_path / "key.pem"), "-out", str(tmp_path / "locked.pem")]
    subprocess.run([*lock, "-passout", "pass:pony-pony"], check=True, capture_output=True, timeout=PATIENCE)
    files = {"ssl_certfile": str(tmp_path / "cert.pem"), "ssl_keyfile": str(tmp_path / "locked.pem")}
    for password in ("", "wrong"):
        with pytest.raises(TlsError, match=r"the key is locked, and kafka\.ssl_key_password does not open it"):
            client_options(settings(**files, ssl_key_password=password))
    assert client_options(settings(**files, ssl_key_password="pony-pony"))["ssl_context"]


# -- tokens ------------------------------------------------------------------------------------------------------------


def unsigned_token(lives_seconds: float, subject: str = "longwatch") -> str:
    """Return a token that the broker of these tests accepts: it is configured not to check signatures."""
    now = time.time()
    parts = ({"alg": "none"}, {"sub": subject, "iat": now - 60, "exp": now + lives_seconds})
    return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts) + "."


@pytest.fixture
def with_token(settings: Callable[..., KafkaSettings], tmp_path: Path) -> Callable[..., KafkaSettings]:
    (tmp_path / "token").write_text(unsigned_token(3_600) + "\n")

    def make(**more: Any) -> KafkaSettings:
        bearer = {"sasl_mechanism": "OAUTHBEARER", "sasl_username": "", "sasl_password": ""}
        return settings(**{**bearer, "sasl_oauth_token_file": str(tmp_path / "token"), **more})

    return make


def test_a_token_from_a_file_can_read_and_write_over_tls(
    secured_broker: ApacheKafka,
    with_token: Callable[..., KafkaSettings],
    poll: Callable[[KafkaSettings], int],
) -> None:
    secured_broker.create_topic("with-token")
    writer = KafkaWriter(with_token(alerts_topic="with-token", topics=["other"], dead_letter_topic=""))
    writer.open()
    writer.send("with-token", b"k", b"2")
    writer.close()
    assert poll(with_token(topics=["with-token"])) == 1


def test_an_expired_or_invalid_token_is_a_one_line_error_without_the_token(
    with_token: Callable[..., KafkaSettings], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(expired := unsigned_token(-600))
    with pytest.raises(AuthenticationError, match=r"refused the token.*kafka\.sasl_oauth_token_file") as caught:
        probe(with_token())
    assert str(caught.value).isprintable()
    assert expired not in str(caught.value)

    (tmp_path / "token").write_text("two words")
    with pytest.raises(AuthenticationError, match=r"kafka\.sasl_oauth_token_file .*holds no token"):
        probe(with_token())
    with pytest.raises(AuthenticationError, match=r"kafka\.sasl_oauth_token_file .*cannot be read: No such file"):
        probe(with_token(sasl_oauth_token_file=str(tmp_path / "missing")))


def test_a_token_file_that_has_been_replaced_is_read_again(
    with_token: Callable[..., KafkaSettings], tmp_path: Path
) -> None:
    provider = client_options(with_token())["sasl_oauth_token_provider"]
    first = provider.token()
    (tmp_path / "token").write_text(second := unsigned_token(60))
    assert first != provider.token() == second


def test_tokens_are_fetched_from_an_endpoint_with_valid_credentials(with_token: Callable[..., KafkaSettings]) -> None:
    with TokenEndpoint() as endpoint:
        own = with_token(**endpoint.settings)
        assert probe(own) is None
        asked = endpoint.asked[-1]
        assert asked["form"] == {"grant_type": ["client_credentials"], "scope": ["kafka read"]}
        assert asked["authorization"] == "Basic " + base64.b64encode(b"long%2Bwatch:s3cr%3At-pony").decode()

        with pytest.raises(AuthenticationError, match=r"answered 401 .*kafka\.sasl_oauth_client_secret") as caught:
            probe(with_token(**{**endpoint.settings, "sasl_oauth_client_secret": "wrong"}))
        assert str(caught.value).isprintable()
        assert "s3cr" not in str(caught.value)
    reason = probe(own)
    assert reason is not None  # away: it may come back, so this is waited for
    assert "gives no answer" in reason
    assert "kafka.sasl_oauth_token_endpoint_url" in reason


def test_inconsistent_token_settings_are_refused_by_name(
    with_token: Callable[..., KafkaSettings],
) -> None:
    endpoint = {"sasl_oauth_token_file": "", "sasl_oauth_client_id": "a", "sasl_oauth_client_secret": "b"}
    for more, named in (
        ({"sasl_oauth_token_file": ""}, "sasl_oauth_token_endpoint_url"),
        ({"sasl_oauth_token_endpoint_url": "https://a/b"}, "needs one of"),
        ({**endpoint, "sasl_oauth_token_endpoint_url": "http://idp.example.com/token"}, "https is needed"),
        ({**endpoint, "sasl_oauth_token_endpoint_url": "https://u:p@idp/token"}, "expected https://"),
        ({**endpoint, "sasl_oauth_token_endpoint_url": "https://idp:x/token"}, "expected https://"),
        ({**endpoint, "sasl_oauth_token_endpoint_url": "https://idp/", "sasl_oauth_client_id": ""}, "client_id"),
        ({"sasl_oauth_extensions": ("no-equals",)}, "sasl_oauth_extensions"),
        ({"sasl_oauth_extensions": ("a=b\x01c",)}, "sasl_oauth_extensions"),
    ):
        with pytest.raises(ValueError, match=named):
            with_token(**more)
    provider = client_options(with_token(sasl_oauth_extensions=("logicalCluster=lkc-1", "identityPoolId=p=1")))
    assert provider["sasl_oauth_token_provider"].extensions() == {"logicalCluster": "lkc-1", "identityPoolId": "p=1"}


def test_a_token_is_renewed_at_four_fifths_and_survives_an_endpoint_outage() -> None:
    now, answers = 0.0, [("one", 100.0), ("two", 180.0), TokenError("away", permanent=False)]

    def fetch() -> tuple[str, float]:
        answer = answers.pop(0)
        if isinstance(answer, TokenError):
            answers.append(answer)
            raise answer
        return answer

    tokens = Tokens(fetch, {}, lambda: now)
    assert tokens.token() == "one"
    now = 79.0
    assert tokens.token() == "one"
    now = 81.0
    assert tokens.token() == "two"
    now = 179.0
    assert tokens.token() == "two"
    now = 181.0
    with pytest.raises(TokenError):
        tokens.token()


class TokenEndpoint:
    """An identity provider's token endpoint, as RFC 6749 has it, for one client."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                endpoint.asked.append({"form": form, "authorization": self.headers["Authorization"]})
                good = self.headers["Authorization"].endswith(base64.b64encode(b"long%2Bwatch:s3cr%3At-pony").decode())
                body: dict[str, Any] = {"error": "invalid_client", "error_description": "s3cr:t-pony"}
                if good:
                    body = {"access_token": unsigned_token(600), "token_type": "Bearer", "expires_in": 600}
                self.send_response(200 if good else 401)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.settings = {
            "sasl_oauth_token_file": "",
            "sasl_oauth_token_endpoint_url": f"http://127.0.0.1:{self._server.server_port}/token",
            "sasl_oauth_client_id": "long+watch",
            "sasl_oauth_client_secret": "s3cr:t-pony",
            "sasl_oauth_scope": "kafka read",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_a_certificate_of_an_unknown_authority_is_an_error_with_its_setting(
    settings: Callable[..., KafkaSettings], poll: Callable[[KafkaSettings], int], tmp_path: Path
) -> None:
    make_certificate(tmp_path / "key.pem", tmp_path / "other.pem")
    with pytest.raises(TlsError, match=r"not trusted.*kafka\.ssl_cafile is .*other\.pem"):
        poll(settings(ssl_cafile=str(tmp_path / "other.pem")))


def test_a_certificate_for_another_host_is_an_error(
    secured_broker: ApacheKafka, settings: Callable[..., KafkaSettings]
) -> None:
    port = secured_broker.secure_bootstrap.rsplit(":", 1)[1]
    # the same address, spelt in a way that the certificate does not name
    with pytest.raises(TlsError, match=r"not trusted.*must name the host in kafka\.bootstrap_servers"):
        probe(settings(bootstrap_servers=f"127.1:{port}"))


def test_unreadable_certificate_files_are_errors_with_their_settings(
    settings: Callable[..., KafkaSettings], tmp_path: Path
) -> None:
    with pytest.raises(TlsError, match=r"kafka\.ssl_cafile .*missing\.pem"):
        probe(settings(ssl_cafile=str(tmp_path / "missing.pem")))
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    with pytest.raises(TlsError, match=r"kafka\.ssl_certfile .*garbage\.pem"):
        probe(settings(ssl_certfile=str(garbage), ssl_keyfile=str(garbage)))


def test_a_mismatch_of_tls_and_plaintext_listeners_is_an_error(
    secured_broker: ApacheKafka, settings: Callable[..., KafkaSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka.connect.CONNECT_SECONDS", 2.0)
    reason = _probe_or_error(settings(bootstrap_servers=secured_broker.bootstrap))
    assert "TLS" in str(reason)
    reason = _probe_or_error(settings(security_protocol="PLAINTEXT"))
    assert "kafka.security_protocol=PLAINTEXT" in str(reason)


def test_a_writer_reports_a_refused_password(settings: Callable[..., KafkaSettings]) -> None:
    writer = KafkaWriter(settings(sasl_password=WRONG_PASSWORD))
    with pytest.raises(AuthenticationError):
        writer.open()
    writer.close()


def test_the_text_of_the_settings_hides_secrets(settings: Callable[..., KafkaSettings]) -> None:
    assert PASSWORD not in repr(settings())
    assert PASSWORD not in settings().model_dump_json()


def _probe_or_error(config: KafkaSettings) -> str | KafkaConnectorError | None:
    try:
        return probe(config)
    except KafkaConnectorError as error:
        return error
