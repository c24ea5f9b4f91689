"""One attempt to deliver: answers, redirects, time limits, addresses and certificates."""

from __future__ import annotations

import email.utils
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.notify.client import retry_after_seconds
from tests.connectors.notify.support import Counts, MakeSink, Receiver, alert, verify
from tests.daemon.support import until


def test_a_500_is_retried_with_the_same_id_and_a_fresh_timestamp(
    receiver: Receiver, make_sink: MakeSink, counts: Counts
) -> None:
    receiver.answer = lambda headers, body: (500, {}) if len(receiver.requests) < 4 else (200, {})
    make_sink(receiver.port).write([alert()])
    until(lambda: counts.outcomes["delivered"])
    assert receiver.ids == ["alert-1-firing"] * 4
    assert counts.outcomes == {"retried": 3, "delivered": 1}
    assert all(verify(headers, body) for _, headers, body in receiver.requests)


def test_retry_after_in_seconds_delays_every_stream(receiver: Receiver, make_sink: MakeSink, counts: Counts) -> None:
    receiver.answer = lambda headers, body: (429, {"Retry-After": "1"}) if len(receiver.requests) == 1 else (200, {})
    began = time.monotonic()
    make_sink(receiver.port).write([alert(1), alert(2, stream="other")])
    until(lambda: len(receiver.requests) >= 2)
    assert time.monotonic() - began >= 1.0
    until(lambda: counts.outcomes["delivered"] == 2)


def test_retry_after_may_be_a_date_and_an_invalid_one_is_ignored() -> None:
    now = 1_790_000_000.0
    assert retry_after_seconds(email.utils.formatdate(now + 90, usegmt=True), now) == 90
    assert retry_after_seconds(email.utils.formatdate(now - 90, usegmt=True), now) == 0
    assert retry_after_seconds(" 7 ", now) == 7
    assert retry_after_seconds("99999999999999999999", now) == 86_400
    for nonsense in ("", "soon", "-5", "1.5e9", "Wed, 99 Foo 2026", "²"):
        assert retry_after_seconds(nonsense, now) == 0


@pytest.mark.parametrize("manner", ["hang", "half", "drip"])
def test_a_receiver_that_never_finishes_its_answer_times_out(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, caplog: pytest.LogCaptureFixture, manner: str
) -> None:
    receiver.answer = lambda headers, body: manner if len(receiver.requests) == 1 else (200, {})
    began = time.monotonic()
    make_sink(receiver.port, timeout_seconds=0.5).write([alert()])
    until(lambda: counts.outcomes["delivered"])  # neither manner ever ends by itself
    assert time.monotonic() - began >= 0.5
    assert "no answer within receivers.hook.timeout_seconds = 0.5" in caplog.text


INTERIM = "HTTP/1.1 102 Processing\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"


@pytest.mark.parametrize("before", [*INTERIM, "".join(INTERIM), "HTTP/1.1 100 Continue\r\n\r\n" + INTERIM[0] * 3])
def test_interim_1xx_answers_are_skipped(receiver: Receiver, make_sink: MakeSink, counts: Counts, before: str) -> None:
    receiver.answer = lambda headers, body: before
    make_sink(receiver.port).write([alert()])
    until(lambda: counts.outcomes)
    assert counts.outcomes == {"delivered": 1}


def test_a_receiver_that_sends_only_interim_answers_is_retried_later(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = lambda headers, body: INTERIM[0] * 1_000
    make_sink(receiver.port).write([alert()])
    until(lambda: counts.outcomes["retried"])
    assert "interim answers (1xx) and no final one" in caplog.text


@pytest.fixture
def swallowing() -> Iterator[tuple[str, int]]:
    """An address that never accepts a connection, as behind a firewall: its backlog is full."""
    with socket.create_server(("127.0.0.2", 0), backlog=0) as server:
        filling = [socket.socket() for _ in range(4)]
        for client in filling:
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()
        for client in filling:
            client.close()


Place = tuple[str, int]


def resolve_to(
    monkeypatch: pytest.MonkeyPatch, *places: Place, after: Callable[[], object] = lambda: None
) -> list[str]:
    """Resolve every name to these addresses; return the list of names that are looked up."""
    asked: list[str] = []

    def getaddrinfo(host: str, *_args: Any, **_more: Any) -> list[Any]:
        asked.append(host)
        after()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_an_address_that_drops_packets_leaves_time_for_the_others(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, swallowing: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, swallowing, ("127.0.0.1", receiver.port))
    make_sink(receiver.port, timeout_seconds=60, allowed_hosts=("127.0.0.0/8",)).write([alert()])
    until(lambda: counts.outcomes["delivered"])
    assert not counts.outcomes["retried"]


def test_slow_name_resolution_counts_towards_the_timeout_and_its_answer_is_reused(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    asked = resolve_to(monkeypatch, ("127.0.0.1", receiver.port), after=lambda: answers.wait(60))
    try:
        make_sink(receiver.port, timeout_seconds=0.3).write([alert()])
        until(lambda: counts.outcomes["retried"] >= 2)
        assert len(asked) == 1
    finally:
        answers.set()
    until(lambda: counts.outcomes["delivered"])


def test_resolving_and_a_dripping_receiver_share_one_timeout(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, ("127.0.0.1", receiver.port), after=lambda: time.sleep(1.2))
    receiver.answer = lambda headers, body: "drip"
    make_sink(receiver.port, timeout_seconds=1).write([alert()])
    until(lambda: counts.outcomes["retried"] >= 2)  # the drops would last for 50 s


@pytest.mark.parametrize("stage", ["resolving", "connecting", "TLS", "hang", "half", "drip"])
def test_close_does_not_wait_for_a_delivery_and_the_alert_stays_queued(
    receiver: Receiver,
    make_sink: MakeSink,
    counts: Counts,
    swallowing: Place,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    receiver.answer = lambda headers, body: stage
    answers = threading.Event()
    place = swallowing if stage == "connecting" else ("127.0.0.1", receiver.port)
    with monkeypatch.context() as patched, socket.create_server(("127.0.0.1", 0)) as silent:
        asked = resolve_to(
            patched,
            silent.getsockname() if stage == "TLS" else place,
            after=lambda: answers.wait(60) if stage == "resolving" else None,
        )
        scheme = "https" if stage == "TLS" else "http"
        sink = make_sink(receiver.port, scheme=scheme, timeout_seconds=60, allowed_hosts=("127.0.0.0/8",))
        sink.write([alert()])
        sink.flush()
        until(lambda: receiver.requests if stage in {"hang", "half", "drip"} else asked)
        sink.close()
        answers.set()
    until(
        lambda: not any(thread.name == "webhook" for thread in threading.enumerate()), seconds=45
    )  # its time-out is 60 s
    receiver.requests.clear()
    receiver.answer = lambda headers, body: (200, {})
    make_sink(receiver.port)
    until(lambda: counts.outcomes["delivered"])
    assert receiver.ids == ["alert-1-firing"]


def test_a_redirect_is_not_followed(receiver: Receiver, make_sink: MakeSink, counts: Counts) -> None:
    elsewhere = Receiver()
    try:
        receiver.answer = lambda headers, body: (307, {"Location": f"http://127.0.0.1:{elsewhere.port}/"})
        make_sink(receiver.port).write([alert()])
        until(lambda: counts.outcomes["failed"] >= 2)
        assert elsewhere.requests == []
        assert counts.pending == 1
    finally:
        elsewhere.close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and a self-signed certificate for 127.0.0.1 in one file."""
    path = tmp_path / "tls.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    made = subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"],
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


def test_an_untrusted_certificate_is_refused_and_a_trusted_one_accepted(
    make_sink: MakeSink,
    counts: Counts,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    receiver = Receiver(tls=context)
    try:
        sink = make_sink(receiver.port, scheme="https")
        sink.write([alert()])
        until(lambda: counts.outcomes["retried"] >= 2)
        assert receiver.requests == []
        assert "certificate verify failed" in caplog.text
        sink.close()
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
        make_sink(receiver.port, scheme="https")
        until(lambda: counts.outcomes["delivered"] == 1)
        assert verify(*receiver.requests[0][1:])
    finally:
        receiver.close()
