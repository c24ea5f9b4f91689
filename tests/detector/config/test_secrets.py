"""No secret leaves by what the program says: planted in every secret setting, every failure provoked, all output read.

Whatever setting is a secret is found by its type, so that one which comes later is planted too.
"""

from __future__ import annotations

import base64
import http.client
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from detector.cli import main
from detector.config.names import NAME, is_secret, leaves
from detector.config.settings import Settings
from detector.observability.log_format import JsonLines, TextLines
from tests.brokers import CHECKOUT, USERNAME, ApacheKafka, make_certificate
from tests.daemon.support import Longwatch

Said = Callable[..., tuple[int, str]]

SECONDS = 300.0
GIVEN = {"routing_key": "pager", "token": "chat"}  # receivers, by the secret that only they have; others: hook
SECRETS = [
    tuple(GIVEN.get(path[-1], "hook") if part == NAME else part for part in path)
    for path, annotation in leaves(Settings)
    if is_secret(annotation)
]
URL = ("receivers", "hook", "url")
RECEIVERS = {"hook__tell": "alerts", "pager__type": "pagerduty", "chat__type": "slack", "chat__channel": "C1"}
MARK = "Pl4nted"
openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with the openssl command")


def planted(name: tuple[str, ...]) -> str:
    """Return a setting's secret, good enough to be accepted."""
    if name == URL:
        return f"http://bot:{MARK}-url-pass%20word@127.0.0.1:1/{MARK}-url-path/x?token={MARK}-url-query"
    text = f"{MARK}-{'-'.join(name)}-and-more-of-it"
    return f"X-Key: {text}" if name[-1] == "headers" else text


def variable(name: tuple[str, ...]) -> str:
    return "LONGWATCH_" + "__".join(name).upper()


def environ(**more: str) -> dict[str, str]:
    """Return an environment with every secret planted, and what must go with them."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LONGWATCH_", "NOTIFY_"))}
    own = {variable(name): planted(name) for name in SECRETS}
    beside = {"LONGWATCH_HTTP__USERNAME": "u", "LONGWATCH_RECEIVERS__HOOK__ALLOWED_HOSTS": "127.0.0.1"}
    beside |= {f"LONGWATCH_RECEIVERS__{name}".upper(): value for name, value in RECEIVERS.items()}
    return {**clean, "LONGWATCH_COMPUTE__DEVICE": "cpu", **own, **beside, **more}


def longwatch(*arguments: str, env: Mapping[str, str]) -> tuple[int, str]:
    """Run a command; return its exit status and all that it said."""
    command = [sys.executable, "-m", "detector", *arguments]
    done = subprocess.run(
        command, env=env, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS, check=False
    )
    return done.returncode, done.stdout.decode(errors="replace")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Said]:
    """Run a command in this process, which is quicker; for those that end at once."""
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in ("connectors", "detector")}
    handlers, level = list(root.handlers), root.level

    def run(*arguments: str, env: Mapping[str, str]) -> tuple[int, str]:
        for name in os.environ:
            if name.startswith("LONGWATCH_"):
                monkeypatch.delenv(name)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        status = 0
        try:
            main(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, "".join(capfd.readouterr())

    yield run
    root.handlers, root.level = handlers, level  # the command sets up its own logging
    for name, former in levels.items():
        logging.getLogger(name).setLevel(former)


def assert_no_secret(text: str) -> None:
    credentials = (f"u:{planted(('http', 'password'))}", f"bot:{MARK}-url-pass word")
    for spelling in (MARK, *(base64.b64encode(text.encode()).decode() for text in credentials)):
        assert spelling not in text, text[max(0, text.find(spelling) - 300) : text.find(spelling) + 100]


def test_every_secret_setting_is_covered_by_these_tests() -> None:
    some = {("kafka", "sasl_password"), ("receivers", "hook", "secret"), URL, ("http", "password")}
    assert some <= set(SECRETS)
    assert all(MARK in planted(name) for name in SECRETS)


@pytest.mark.parametrize("command", ["config", "config --schema", "config --check"])
@pytest.mark.parametrize("source", ["environment", "file", "option", "secret file"])
def test_config_shows_no_secret(tmp_path: Path, said: Said, command: str, source: str) -> None:
    arguments = command.split()
    env = environ()
    if source != "environment":
        env = {name: value for name, value in env.items() if MARK not in value}
    if source == "file":
        config = tmp_path / "longwatch.toml"
        config.write_text("".join(f"{'.'.join(name)} = {json.dumps(planted(name))}\n" for name in SECRETS))
        arguments += ["--config", str(config)]
    elif source == "option":
        arguments += [part for name in SECRETS for part in ("--set", f"{'.'.join(name)}={planted(name)}")]
    elif source == "secret file":
        for name in SECRETS:
            (tmp_path / "_".join(name)).write_text(planted(name) + "\n")
            env[variable(name) + "_FILE"] = str(tmp_path / "_".join(name))
    status, text = said(*arguments, env=env)
    assert status == (2 if command == "config --check" else 0), text  # the check finds no broker
    assert_no_secret(text)
    if command == "config":
        assert all(f"# {name} = hidden" in text for *_, name in SECRETS)


@pytest.mark.parametrize("name", SECRETS, ids=".".join)
def test_errors_of_refused_settings_show_no_secret(tmp_path: Path, said: Said, name: tuple[str, ...]) -> None:
    section, setting = ".".join(name[:-1]), name[-1]
    config = tmp_path / "longwatch.toml"
    config.write_text(f'[{section}]\n{setting} = ["{MARK}"]\nnothing = "{MARK}"\n')
    clean = {key: value for key, value in environ().items() if MARK not in value}
    wrong = [
        ["--config", str(config)],  # a list, and a setting that does not exist
        ["--set", f"{section}.{setting}_file={planted(name)}"],  # the secret where its file's name belongs
        ["--set", f"{section}.{setting} {planted(name)}"],  # no equals sign
        ["--set", f"{section}.{setting}x={planted(name)}"],  # misspelt
        ["--set", f"{section}={planted(name)}"],  # a section
        ["--set", "http.password=" + MARK],  # too short
        ["--set", "receivers.hook.secret=" + MARK, "--set", f"receivers.hook.url=ftp://{MARK}"],
        ["--set", f"receivers.hook.url=http://{MARK}:{MARK}@10.0.0.1/{MARK}"],  # refused
    ]
    for arguments in wrong:
        status, text = said("config", *arguments, env=clean)
        assert status == 2, (arguments, text)
        assert "Traceback" not in text
        assert_no_secret(text)


@openssl
@pytest.mark.parametrize("section", ["http", "kafka"])
def test_a_wrong_key_password_is_a_one_line_error_without_the_password(tmp_path: Path, section: str) -> None:
    make_certificate(tmp_path / "key.pem", tmp_path / "cert.pem")
    lock = ["openssl", "pkcs8", "-topk8", "-in", str(tmp_path / "key.pem"), "-out", str(tmp_path / "locked.pem")]
    subprocess.run([*lock, "-passout", "pass:another-password"], check=True, capture_output=True, timeout=SECONDS)
    names = {"ssl_certfile": "cert.pem", "ssl_keyfile": "locked.pem"}
    more = {variable((section, name)): str(tmp_path / file) for name, file in names.items()}
    if section == "kafka":
        more |= {"LONGWATCH_KAFKA__SECURITY_PROTOCOL": "SSL"}
    else:
        more |= {"LONGWATCH_SOURCE__TYPE": "file", "LONGWATCH_SOURCE__PATHS": "-"}
    status, said = longwatch("run", env=environ(LONGWATCH_STATE__DIRECTORY=str(tmp_path / "state"), **more))
    assert status == 1, said
    assert said.splitlines()[-1].startswith(f"longwatch: {section}.ssl_certfile"), said
    assert_no_secret(said)


def test_waiting_for_a_broker_logs_no_secret(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nonsense:
        threading.Thread(target=_answer_nonsense, args=(nonsense,), daemon=True).start()
        more = {
            "LONGWATCH_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{nonsense.getsockname()[1]}",
            "LONGWATCH_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "LONGWATCH_KAFKA__SASL_USERNAME": "u",
            "LONGWATCH_LOGGING__LEVEL": "debug",
        }
        settings = {"state.directory": str(tmp_path / "state")}
        with Longwatch(tmp_path, settings, environ=environ(**more)) as daemon:
            daemon.line("No Kafka broker yet")
            daemon.terminate()
            assert_no_secret(daemon.log)


def _answer_nonsense(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def run_on(broker: ApacheKafka, folder: Path, **more: str) -> tuple[int, str]:
    """Run the daemon on a secured broker; return its exit status and all that it said."""
    kafka = {
        "LONGWATCH_KAFKA__BOOTSTRAP_SERVERS": broker.secure_bootstrap,
        "LONGWATCH_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "LONGWATCH_KAFKA__SSL_CAFILE": str(broker.cafile),
        "LONGWATCH_LOGGING__LEVEL": "debug",
    }
    return longwatch("run", env=environ(LONGWATCH_STATE__DIRECTORY=str(folder / "state"), **kafka, **more))


@pytest.mark.kafka
@openssl
def test_a_refused_kafka_password_is_a_one_line_error_without_the_password(
    tmp_path: Path, secured_broker: ApacheKafka
) -> None:
    status, said = run_on(secured_broker, tmp_path, LONGWATCH_KAFKA__SASL_USERNAME=USERNAME)
    assert status == 1, said
    assert said.splitlines()[-1].startswith("longwatch: ")
    assert "kafka.sasl_password" in said
    assert_no_secret(said)


@pytest.mark.kafka
@openssl
def test_a_refused_client_secret_is_masked_even_if_the_identity_provider_echoes_it(
    tmp_path: Path, secured_broker: ApacheKafka, repeating_receiver: Receiver
) -> None:
    provider = repeating_receiver.url.split("@")[1].split("/")[0]
    status, said = run_on(
        secured_broker,
        tmp_path,
        LONGWATCH_KAFKA__SASL_MECHANISM="OAUTHBEARER",
        LONGWATCH_KAFKA__SASL_OAUTH_TOKEN_ENDPOINT_URL=f"http://{provider}/token",
        LONGWATCH_KAFKA__SASL_OAUTH_CLIENT_ID="us",
    )
    assert status == 1, said
    assert said.splitlines()[-1].startswith("longwatch: No token to log in with")
    assert "kafka.sasl_oauth_client_secret" in said
    assert_no_secret(said)
    encoded = base64.b64encode(f"us:{planted(('kafka', 'sasl_oauth_client_secret'))}".encode()).decode()
    assert any(encoded in headers["Authorization"] for headers in repeating_receiver.taken)
    assert encoded not in said


class Receiver(NamedTuple):
    url: str
    taken: list[dict[str, str]]


@pytest.fixture
def repeating_receiver() -> Iterator[Receiver]:
    """A webhook receiver that refuses everything and repeats what it was sent, as some error pages do."""
    taken: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(401)
            self.end_headers()
            self.wfile.write(f"{self.path} {self.headers['authorization']}".encode())
            taken.append(dict(self.headers))

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield Receiver(planted(URL).replace("127.0.0.1:1/", f"127.0.0.1:{server.server_port}/"), taken)
    server.shutdown()
    server.server_close()


def test_the_daemons_log_metrics_answers_and_files_show_no_secret(tmp_path: Path, repeating_receiver: Receiver) -> None:
    """A whole life: a webhook that refuses, a wrong password at the HTTP port, every page read, an orderly end."""
    events = [
        json.dumps({"stream": "s", "timestamp": 1_700_000_000 + 60 * i, "value": 100.0 if i == 180 else i % 3})
        for i in range(200)
    ]
    settings = {
        "source.type": "file",
        "source.paths": ["-"],
        "state.directory": str(tmp_path / "state"),
        "output.scores_file": str(tmp_path / "scores.jsonl"),
        "output.alerts_file": str(tmp_path / "alerts.jsonl"),
        "alerting.threshold": 0.5,
        "training.enabled": False,
        "logging.level": "debug",
    }
    env = environ(LONGWATCH_RECEIVERS__HOOK__URL=repeating_receiver.url)
    with Longwatch(tmp_path, settings, environ=env, stdin=subprocess.PIPE) as daemon:
        assert daemon.process.stdin is not None
        daemon.process.stdin.write("\n".join(events).encode() + b"\n")
        daemon.process.stdin.flush()
        daemon.line("it answered 401")
        assert repeating_receiver.taken
        port = int(daemon.line(r"served on http://127\.0\.0\.1:(\d+)/, with a password")[1])
        for password in ("", MARK + "-guess", planted(("http", "password"))):
            for path in ("/", "/metrics", "/livez", "/readyz", "/nothing"):
                assert_no_secret(_page(port, path, password))
        assert "longwatch_events_total" in _page(port, "/metrics", planted(("http", "password")))
        status, _ = daemon.terminate()
        assert status == 0, daemon.log
        assert_no_secret(daemon.log)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3
    for file in files:
        assert MARK.encode() not in file.read_bytes(), file


def _page(port: int, path: str, password: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    credentials = base64.b64encode(f"u:{password}".encode()).decode()
    connection.request("GET", path, headers={"Authorization": f"Basic {credentials}"} if password else {})
    answer = connection.getresponse()
    text = f"{answer.status} {answer.getheaders()} {answer.read().decode()}"
    connection.close()
    return text


def test_tracebacks_of_unexpected_errors_show_no_secret(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from connectors.decode.decoder import Decoder\n"
        "def decode(self, raw):\n"
        "    raise RuntimeError('nobody expected this')\n"
        "Decoder.decode = decode\n"
    )
    (tmp_path / "events.jsonl").write_text('{"stream": "s", "timestamp": 1700000000, "value": 1}\n')
    more = {
        "PYTHONPATH": str(tmp_path),
        "LONGWATCH_SOURCE__TYPE": "file",
        "LONGWATCH_SOURCE__PATHS": str(tmp_path / "events.jsonl"),
        "LONGWATCH_STATE__DIRECTORY": str(tmp_path / "state"),
    }
    status, said = longwatch("run", env=environ(**more))
    assert status == 1
    assert "RuntimeError: nobody expected this" in said
    assert_no_secret(said)


# -- what others say must not forge a line -----------------------------------------------------------------------------

FORGED = "x\n2026-01-01 00:00:00 INFO all is well\r\x1b[2J\x85\u2028\u202e\x00é"


def _record(with_traceback: bool = False) -> logging.LogRecord:
    error = None
    if with_traceback:
        try:
            raise ValueError(FORGED)
        except ValueError:
            error = sys.exc_info()
    return logging.LogRecord("detector", logging.WARNING, __file__, 1, "it answered %s", (FORGED,), error)


def test_any_message_is_one_log_line() -> None:
    text = TextLines().format(_record())
    assert text.isprintable()
    assert text.endswith(r"it answered x\n2026-01-01 00:00:00 INFO all is well\r\x1b[2J\x85\u2028\u202e\x00é")


def test_a_traceback_cannot_forge_log_messages() -> None:
    first, *rest = TextLines().format(_record(with_traceback=True)).split("\n")
    assert first.isprintable()
    assert len(rest) > 3
    assert all(line.startswith("  ") and line.isprintable() for line in rest)


def test_json_log_records_are_one_printable_line_and_round_trip() -> None:
    for record in (_record(), _record(with_traceback=True)):
        text = JsonLines().format(record)
        assert text.isprintable()
        assert json.loads(text)["message"] == f"it answered {FORGED}"
