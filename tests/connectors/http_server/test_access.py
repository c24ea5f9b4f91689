"""Who may read the HTTP port: basic authentication and TLS over real sockets."""

from __future__ import annotations

import base64
import http.client
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from connectors.http_server.server import HttpError, HttpServer, HttpSettings
from tests.brokers import make_certificate

PASSWORD = "a-long-pässword"
openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with the openssl command")

Serve = Callable[..., HttpServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[HttpServer] = []

    def start(**settings: Any) -> HttpServer:
        chosen = HttpSettings.model_validate({"port": 0} | settings)
        servers.append(HttpServer(chosen, CollectorRegistry(), lambda: (True, ""), lambda: (False, "restoring")))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with key.pem, cert.pem, and locked.pem: the same key under the password "sesame-sesame"."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder / "key.pem", folder / "cert.pem")
    command = ["openssl", "pkcs8", "-topk8", "-in", str(folder / "key.pem"), "-out", str(folder / "locked.pem")]
    subprocess.run([*command, "-passout", "pass:sesame-sesame"], check=True, capture_output=True, timeout=240)
    return folder


def basic(username: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()}


def ask(
    server: HttpServer, path: str, headers: dict[str, str] | None = None, trust: Path | None = None
) -> tuple[int, dict[str, str]]:
    connection: http.client.HTTPConnection
    if trust is None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=240)
    else:
        context = ssl.create_default_context(cafile=str(trust))
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=240, context=context)
    try:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()


def test_without_the_password_only_probes_are_answered(serve: Serve) -> None:
    server = serve(username="prometheus", password=PASSWORD)
    for path in ("/metrics", "/", "/nothing"):
        status, headers = ask(server, path)
        assert status == 401, path
        assert headers["www-authenticate"] == 'Basic realm="longwatch", charset="UTF-8"'
        given = basic("prometheus", PASSWORD)["Authorization"]
        for accepted in (given, given.replace("Basic ", "basic   ")):
            assert ask(server, path, {"Authorization": accepted})[0] in {200, 404}
    assert ask(server, "/livez")[0] == 200
    assert ask(server, "/readyz")[0] == 503


@pytest.mark.parametrize(
    "headers",
    [
        basic("prometheus", PASSWORD[:-1]),
        basic("prometheus", PASSWORD + "x"),
        basic("prometheus", ""),
        basic("Prometheus", PASSWORD),
        basic("", PASSWORD),
        {"Authorization": "Basic"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic " + base64.b64encode(PASSWORD.encode()).decode()},
        {"Authorization": "Bearer " + PASSWORD.encode().decode("latin-1")},
        {"Authorization": ""},
    ],
)
def test_a_wrong_password_is_refused(serve: Serve, headers: dict[str, str]) -> None:
    assert ask(serve(username="prometheus", password=PASSWORD), "/metrics", headers)[0] == 401


def test_failed_logins_are_logged_at_intervals_without_the_password(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(username="prometheus", password=PASSWORD)
    ask(server, "/metrics")  # no attempt
    for number in range(20):
        ask(server, "/metrics", basic("prometheus", f"guess-{number}"))
    reported = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert reported == ["1 requests with a wrong user name or password, the last from 127.0.0.1"]
    assert "guess" not in caplog.text
    assert PASSWORD not in caplog.text


def test_a_clear_text_password_over_the_network_is_warned_about(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    serve(username="u", password=PASSWORD)
    assert "clear text" not in caplog.text
    serve(username="u", password=PASSWORD, host="0.0.0.0")
    assert "http.password travels in clear text" in caplog.text


@openssl
def test_with_a_certificate_only_https_is_served(serve: Serve, certificate: Path) -> None:
    names = {"ssl_certfile": str(certificate / "cert.pem"), "ssl_keyfile": str(certificate / "key.pem")}
    server = serve(username="u", password=PASSWORD, **names)
    assert ask(server, "/metrics", trust=certificate / "cert.pem")[0] == 401
    assert ask(server, "/metrics", basic("u", PASSWORD), trust=certificate / "cert.pem")[0] == 200
    assert ask(server, "/livez", trust=certificate / "cert.pem")[0] == 200
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(server, "/livez")


@openssl
def test_an_unfinished_tls_handshake_blocks_nobody_and_is_disconnected(
    serve: Serve, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    names = {"ssl_certfile": str(certificate / "cert.pem"), "ssl_keyfile": str(certificate / "key.pem")}
    server = serve(**names)

    def silent(handshake_seconds: float) -> list[socket.socket]:
        monkeypatch.setattr("connectors.http_server.protocol.REQUEST_SECONDS", handshake_seconds)
        return [socket.create_connection(("127.0.0.1", server.port), timeout=240) for _ in range(4)]

    stopped_once = silent(600.0)
    assert ask(server, "/livez", trust=certificate / "cert.pem")[0] == 200, "none of them has gone yet"
    for connection in silent(0.5):
        assert connection.recv(1) == b""  # hung up on
        connection.close()
    for connection in stopped_once:
        connection.close()
    deadline = time.monotonic() + 240
    while threading.active_count() > before + 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@openssl
def test_probes_are_answered_despite_many_unfinished_handshakes(serve: Serve, certificate: Path) -> None:
    server = serve(ssl_certfile=str(certificate / "cert.pem"), ssl_keyfile=str(certificate / "key.pem"))
    silent: list[socket.socket] = []
    for _ in range(15):
        silent += [socket.create_connection(("127.0.0.1", server.port), timeout=240) for _ in range(20)]
        assert ask(server, "/livez", trust=certificate / "cert.pem")[0] == 200
    for connection in silent:
        connection.close()


@openssl
def test_an_encrypted_key_is_opened_with_its_password(serve: Serve, certificate: Path) -> None:
    names = {"ssl_certfile": str(certificate / "cert.pem"), "ssl_keyfile": str(certificate / "locked.pem")}
    server = serve(**names, ssl_key_password="sesame-sesame")
    assert ask(server, "/livez", trust=certificate / "cert.pem")[0] == 200


@openssl
@pytest.mark.parametrize(
    ("names", "why"),
    [
        (
            {"ssl_certfile": "cert.pem", "ssl_keyfile": "absent.pem"},
            "absent.pem: cannot be read: No such",
        ),
        ({"ssl_certfile": "cert.pem", "ssl_keyfile": "cert.pem"}, "expected a certificate and a key in PEM form"),
        ({"ssl_certfile": "cert.pem", "ssl_keyfile": "other.pem"}, "the key does not belong to the certificate"),
        ({"ssl_certfile": "cert.pem", "ssl_keyfile": "locked.pem"}, "the key is locked, and http.ssl_key_password"),
        (
            {"ssl_certfile": "cert.pem", "ssl_keyfile": "locked.pem", "ssl_key_password": "hunter2hunter2"},
            "the key is locked, and http.ssl_key_password",
        ),
    ],
)
def test_each_invalid_certificate_is_a_one_line_error(certificate: Path, names: dict[str, str], why: str) -> None:
    if not (certificate / "other.pem").exists():
        make_certificate(certificate / "other.pem", certificate / "other-cert.pem")
    paths = {key: str(certificate / name) if name.endswith(".pem") else name for key, name in names.items()}
    settings = HttpSettings.model_validate({"port": 0} | paths)
    server = HttpServer(settings, CollectorRegistry(), lambda: (True, ""), lambda: (True, ""))
    with pytest.raises(HttpError, match=rf"http\.ssl_.*{why}") as refused:
        server.start()
    assert "\n" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"username": "u"}, "http.username and http.password belong together"),
        ({"password": PASSWORD}, "http.username and http.password belong together"),
        ({"username": "u:v", "password": PASSWORD}, "hold no colon"),
        ({"username": "u", "password": "hunter2"}, "12 characters or more"),
        ({"username": "u", "password": "hunter2\nhunter2"}, "must be printable"),
        ({"ssl_certfile": "cert.pem"}, "belong together"),
        ({"ssl_keyfile": "key.pem"}, "belong together"),
    ],
)
def test_inconsistent_settings_are_refused_without_echoing_them(settings: dict[str, str], why: str) -> None:
    with pytest.raises(ValidationError, match=why) as refused:
        HttpSettings.model_validate(settings)
    assert "hunter2" not in str(refused.value)
    assert PASSWORD not in str(refused.value)
