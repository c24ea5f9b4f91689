"""Webhooks against a real HTTP server that checks signatures by itself."""

from __future__ import annotations

import base64
import dataclasses
import email.utils
import hashlib
import hmac
import json
import logging
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from pydantic import ValidationError

from connectors.batches import Alert
from connectors.http_client.url_policy import parse_url
from connectors.webhook.delivery import retry_after_seconds
from connectors.webhook.outbox import NewMessage, Outbox, OutboxError
from connectors.webhook.sink import OUTBOX_FILE, WebhookSettings, WebhookSink
from connectors.webhook.standard_webhooks import parse_secrets, sign, webhook_body, webhook_id

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
NS = 1_000_000_000
ROOT = Path(__file__).parents[3]


def alert(number: int = 1, status: str = "firing", stream: str = "web-1/cpu") -> Alert:
    started = 1_790_000_000 * NS
    return Alert(
        id=f"alert-{number}",
        stream=stream,
        status=status,
        severity="warning",
        started_at=started,
        ended_at=None if status == "firing" else started + 90 * NS,
        score=5.5,
        threshold=4.5,
        observed={"user": 0.9, "system": 0.1},
        expected={"user": 0.4, "system": 0.1},
        lower={"user": 0.3, "system": 0.0},
        upper={"user": 0.5, "system": 0.2},
        contributions={"user": 0.97, "system": 0.03},
        model_version="prior-1",
        topic="metrics",
        partition=0,
        offset=100 + number,
    )


def until(condition: Callable[[], Any], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.005)


class Receiver:
    """An HTTP server that answers what it is told to.

    `hang` keeps the connection open without a word, `drip` answers a byte now and then, other texts come before a 204.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answer: Callable[[dict[str, str], bytes], tuple[int, dict[str, str]] | str] = lambda headers, body: (
            204,
            {},
        )
        self._released = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.requests.append((self.path, headers, body))
                answer = receiver.answer(headers, body)
                if answer == "hang":
                    receiver._released.wait(600)
                elif answer == "drip":
                    for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"x" * 10_000:
                        if receiver._released.wait(0.05):
                            return
                        self.wfile.write(bytes([byte]))
                else:
                    if isinstance(answer, str):  # interim answers, as they are
                        self.wfile.write(answer.encode())
                        answer = 204, {}
                    status, extra = answer
                    self.send_response(status)
                    for name, value in extra.items():
                        self.send_header(name, value)
                    self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: Any) -> None:
                pass  # clients that hang up are what some tests are about

        self.server = Server(("127.0.0.1", port), Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for _, headers, _ in self.requests]

    def close(self) -> None:
        self._released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.close()


class Counts:
    """What the sink tells its metrics."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.pending = -1

    def delivery(self, outcome: str) -> None:
        self.outcomes[outcome] += 1

    def waiting(self, count: int) -> None:
        self.pending = count


@pytest.fixture
def counts() -> Counts:
    return Counts()


MakeSink = Callable[..., WebhookSink]


@pytest.fixture
def make_sink(tmp_path: Path, counts: Counts) -> Iterator[MakeSink]:
    sinks: list[WebhookSink] = []

    def make(port: int, path: str = "/hook", scheme: str = "http", **settings: Any) -> WebhookSink:
        quick = {"retry_base_seconds": 0.02, "retry_cap_seconds": 0.2, "timeout_seconds": 5, "secret": SECRET}
        quick["allowed_hosts"] = ("127.0.0.1",)
        sink = WebhookSink(
            WebhookSettings(url=f"{scheme}://127.0.0.1:{port}{path}", **(quick | settings)),
            tmp_path,
            on_delivery=counts.delivery,
            on_pending=counts.waiting,
        )
        sinks.append(sink)
        return sink

    yield make
    for sink in sinks:
        if sink._thread.is_alive():
            sink.close()


def verify(headers: dict[str, str], body: bytes, secret: str = SECRET) -> bool:
    """Check a signature as a receiver would, from the specification alone."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = headers["webhook-id"].encode() + b"." + headers["webhook-timestamp"].encode() + b"." + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    fresh = abs(time.time() - int(headers["webhook-timestamp"])) < 300
    return fresh and any(
        hmac.compare_digest(signature, f"v1,{expected}") for signature in headers["webhook-signature"].split(" ")
    )


def test_an_alert_arrives_once_signed_and_readable(receiver: Receiver, make_sink: MakeSink, counts: Counts) -> None:
    sink = make_sink(receiver.port, "/hook?channel=ops")
    sink.write([alert(1), alert(1, "resolved")])
    sink.flush()
    until(lambda: counts.outcomes["delivered"] == 2)
    (path, headers, body), (_, _, second) = receiver.requests
    assert path == "/hook?channel=ops"
    assert headers["content-type"] == "application/json"
    assert receiver.ids == ["alert-1-firing", "alert-1-resolved"]
    assert all(verify(headers, body) for _, headers, body in receiver.requests)
    message = json.loads(body)
    assert message["type"] == "alert.firing"
    assert message["timestamp"] == message["data"]["started_at"]
    assert message["data"]["stream"] == "web-1/cpu"
    assert message["data"]["observed"] == {"user": 0.9, "system": 0.1}
    assert json.loads(second)["timestamp"] == json.loads(second)["data"]["ended_at"]
    until(lambda: counts.pending == 0)


def test_a_changed_body_does_not_pass_the_check(receiver: Receiver, make_sink: MakeSink) -> None:
    make_sink(receiver.port).write([alert()])
    until(lambda: receiver.requests)
    _, headers, body = receiver.requests[0]
    assert verify(headers, body)
    assert not verify(headers, body.replace(b"web-1", b"web-2"))


def test_while_a_secret_is_replaced_both_sign(receiver: Receiver, make_sink: MakeSink) -> None:
    other = "whsec_" + base64.b64encode(b"n" * 24).decode()
    make_sink(receiver.port, secret=f"{SECRET} {other}").write([alert()])
    until(lambda: receiver.requests)
    _, headers, body = receiver.requests[0]
    assert verify(headers, body, SECRET)
    assert verify(headers, body, other)


def test_without_a_secret_nothing_is_signed(receiver: Receiver, make_sink: MakeSink) -> None:
    make_sink(receiver.port, secret="").write([alert()])
    until(lambda: receiver.requests)
    assert "webhook-signature" not in receiver.requests[0][1]


def test_the_password_in_a_url_is_sent_and_never_logged(
    receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.answer = lambda headers, body: (500, {})
    settings = WebhookSettings(
        url=f"http://me:pa%20ss@127.0.0.1:{receiver.port}/T0KEN",
        secret=SECRET,
        retry_base_seconds=0.01,
        allowed_hosts=("127.0.0.1",),
    )
    sink = WebhookSink(settings, tmp_path)
    sink.write([alert()])
    until(lambda: len(receiver.requests) >= 2)
    sink.close()
    assert receiver.requests[0][1]["authorization"] == "Basic " + base64.b64encode(b"me:pa ss").decode()
    assert "127.0.0.1" in caplog.text
    for hidden in ("pa%20ss", "pa ss", "T0KEN", SECRET):
        assert hidden not in caplog.text
        assert hidden not in repr(settings)


def test_a_receiver_that_repeats_the_secret_does_not_bring_it_into_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Repeats(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            said = (
                f"No route {self.path} or {unquote(self.path)} for {self.headers['authorization']}\r\n\x1b[2J"
                + "." * 280
            )
            self.send_response(404)
            self.end_headers()
            self.wfile.write((said + self.path).encode())  # the second lies across the limit of what is logged

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Repeats)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://bot:hunter%20two@127.0.0.1:{server.server_port}/services/T0KEN%2Fabc/x?key=K3Y-k3y"
    counts = Counts()
    settings = WebhookSettings(url=url, allowed_hosts=("127.0.0.1",))
    sink = WebhookSink(settings, tmp_path, on_delivery=counts.delivery)
    sink.write([alert()])
    until(lambda: counts.outcomes["failed"])
    sink.close()
    server.shutdown()
    server.server_close()
    assert "it answered 404 'No route ***" in caplog.text
    for hidden in ("T0KEN", "K3Y", "hunter", base64.b64encode(b"bot:hunter two").decode(), "services/", "\x1b"):
        assert hidden not in caplog.text


def test_500_is_tried_again_with_the_same_id_and_a_timestamp_of_its_own(
    receiver: Receiver, make_sink: MakeSink, counts: Counts
) -> None:
    receiver.answer = lambda headers, body: (500, {}) if len(receiver.requests) < 4 else (200, {})
    make_sink(receiver.port).write([alert()])
    until(lambda: counts.outcomes["delivered"])
    assert receiver.ids == ["alert-1-firing"] * 4
    assert counts.outcomes == {"retried": 3, "delivered": 1}
    assert all(verify(headers, body) for _, headers, body in receiver.requests)


def test_retry_after_in_seconds_is_waited_for_by_all(receiver: Receiver, make_sink: MakeSink, counts: Counts) -> None:
    receiver.answer = lambda headers, body: (429, {"Retry-After": "1"}) if len(receiver.requests) == 1 else (200, {})
    began = time.monotonic()
    make_sink(receiver.port).write([alert(1), alert(2, stream="other")])
    until(lambda: len(receiver.requests) >= 2)
    assert time.monotonic() - began >= 1.0
    until(lambda: counts.outcomes["delivered"] == 2)


def test_retry_after_may_be_a_date_and_nonsense_asks_for_nothing() -> None:
    now = 1_790_000_000.0
    assert retry_after_seconds(email.utils.formatdate(now + 90, usegmt=True), now) == 90
    assert retry_after_seconds(email.utils.formatdate(now - 90, usegmt=True), now) == 0
    assert retry_after_seconds(" 7 ", now) == 7
    assert retry_after_seconds("99999999999999999999", now) == 86_400
    for nonsense in (None, "", "soon", "-5", "1.5e9", "Wed, 99 Foo 2026", "²"):
        assert retry_after_seconds(nonsense, now) == 0


@pytest.mark.parametrize("manner", ["hang", "drip"])
def test_a_receiver_that_never_finishes_is_given_up_after_the_timeout(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, caplog: pytest.LogCaptureFixture, manner: str
) -> None:
    receiver.answer = lambda headers, body: manner if len(receiver.requests) == 1 else (200, {})
    began = time.monotonic()
    make_sink(receiver.port, timeout_seconds=0.5).write([alert()])
    until(lambda: counts.outcomes["delivered"])  # neither manner ever ends by itself
    assert time.monotonic() - began >= 0.5
    assert "no answer within webhook.timeout_seconds = 0.5" in caplog.text


INTERIM = "HTTP/1.1 102 Processing\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"


@pytest.mark.parametrize("before", [*INTERIM, "".join(INTERIM), "HTTP/1.1 100 Continue\r\n\r\n" + INTERIM[0] * 3])
def test_interim_answers_are_not_the_answer(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, before: str
) -> None:
    receiver.answer = lambda headers, body: before
    make_sink(receiver.port).write([alert()])
    until(lambda: counts.outcomes)
    assert counts.outcomes == {"delivered": 1}


def test_a_receiver_with_nothing_but_interim_answers_is_given_up(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = lambda headers, body: INTERIM[0] * 1_000
    make_sink(receiver.port).write([alert()])
    until(lambda: counts.outcomes["retried"])
    assert "interim answers (1xx), and none that is final" in caplog.text


@pytest.fixture
def swallowing() -> Iterator[tuple[str, int]]:
    """An address that answers no attempt to connect, as behind a firewall: its queue is full, and nobody accepts."""
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
    """Have every name stand for these places; the names that were asked for, as they are."""
    asked: list[str] = []

    def getaddrinfo(host: str, *_args: Any, **_more: Any) -> list[Any]:
        asked.append(host)
        after()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_an_address_that_swallows_packets_leaves_time_for_the_others(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, swallowing: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, swallowing, ("127.0.0.1", receiver.port))
    make_sink(receiver.port, timeout_seconds=60, allowed_hosts=("127.0.0.0/8",)).write([alert()])
    until(lambda: counts.outcomes["delivered"])
    assert not counts.outcomes["retried"]


def test_a_slow_resolver_counts_towards_the_timeout_and_its_answer_is_used_by_the_next_attempt(
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


def test_after_a_slow_resolver_a_dripping_receiver_has_no_timeout_of_its_own(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, ("127.0.0.1", receiver.port), after=lambda: time.sleep(1.2))
    receiver.answer = lambda headers, body: "drip"
    make_sink(receiver.port, timeout_seconds=1).write([alert()])
    until(lambda: counts.outcomes["retried"] >= 2)  # the drops would last for 50 s


@pytest.mark.parametrize("stage", ["resolving", "connecting", "TLS", "hang", "drip"])
def test_close_waits_for_no_stage_of_a_delivery_and_the_alert_stays(
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
        until(lambda: receiver.requests if stage in {"hang", "drip"} else asked)
        sink.close()
        answers.set()
    until(lambda: not sink._thread.is_alive(), 45)  # its time-out is 60 s
    receiver.requests.clear()
    receiver.answer = lambda headers, body: (200, {})
    make_sink(receiver.port)
    until(lambda: counts.outcomes["delivered"])
    assert receiver.ids == ["alert-1-firing"]


def test_a_receiver_that_is_down_for_a_while_misses_nothing_and_gets_each_stream_in_order(
    make_sink: MakeSink, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    sink = make_sink(port)
    for number in range(20):
        sink.write([alert(number, stream=f"s{number % 5}")])
        sink.write([alert(number, "resolved", stream=f"s{number % 5}")])
    until(lambda: counts.outcomes["retried"] >= 8)
    assert counts.pending == 40
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1, "an outage is told once, not at every attempt"
    assert "refused" in warnings[0].getMessage()
    receiver = Receiver(port)
    try:
        until(lambda: counts.outcomes["delivered"] == 40)
        streams: dict[str, list[str]] = {}
        for _, headers, body in receiver.requests:
            streams.setdefault(json.loads(body)["data"]["stream"], []).append(headers["webhook-id"])
        for stream in range(5):
            numbers = range(stream, 20, 5)
            expected = [f"alert-{number}-{status}" for number in numbers for status in ("firing", "resolved")]
            assert streams[f"s{stream}"] == expected
        until(lambda: counts.pending == 0)
        assert "takes alerts again" in caplog.text
    finally:
        receiver.close()


def test_what_waited_for_the_receiver_is_sent_at_once_when_it_is_back(make_sink: MakeSink, counts: Counts) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    sink = make_sink(port, retry_base_seconds=0.3, retry_cap_seconds=0.6)
    sink.write([alert(number, stream=f"s{number}") for number in range(50)])
    until(lambda: counts.outcomes["retried"] >= 3)
    receiver = Receiver(port)
    try:
        until(lambda: counts.outcomes["delivered"] == 50)
    finally:
        receiver.close()


def test_410_ends_delivery_until_the_next_start_and_keeps_the_alerts(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = lambda headers, body: (410, {})
    sink = make_sink(receiver.port)
    sink.write([alert(1), alert(2, stream="other")])
    until(lambda: "410 Gone" in caplog.text)
    sink.write([alert(3)])
    time.sleep(0.3)
    assert len(receiver.requests) == 1
    assert counts.pending == 3
    sink.close()
    receiver.answer = lambda headers, body: (200, {})
    make_sink(receiver.port)
    until(lambda: counts.outcomes["delivered"] == 3)


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


@pytest.mark.parametrize("status", [400, 500])
def test_a_message_that_the_receiver_cannot_take_does_not_hold_up_the_others(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, status: int
) -> None:
    receiver.answer = lambda headers, body: (status, {}) if headers["webhook-id"] == "alert-0-firing" else (200, {})
    sink = make_sink(receiver.port)
    sink.write([alert(0, stream="poisoned"), alert(1, stream="poisoned"), alert(2, stream="other")])
    until(lambda: counts.outcomes["delivered"] == 2)
    assert set(receiver.ids) == {"alert-0-firing", "alert-1-firing", "alert-2-firing"}
    until(lambda: counts.pending == 1)
    sink.write([alert(3, stream="poisoned"), alert(4, stream="other")])
    until(lambda: counts.outcomes["delivered"] == 4)


def test_a_message_that_breaks_the_receiver_does_not_hold_up_its_own_stream_for_ever(
    receiver: Receiver, make_sink: MakeSink, counts: Counts
) -> None:
    receiver.answer = lambda headers, body: (500, {}) if headers["webhook-id"] == "alert-0-firing" else (200, {})
    make_sink(receiver.port, retry_cap_seconds=0.02).write([alert(0), alert(1)])
    until(lambda: counts.outcomes["delivered"] == 1)


def test_what_cannot_be_delivered_in_time_is_dropped_and_told(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = lambda headers, body: (404, {})
    make_sink(receiver.port, max_age_seconds=1.5).write([alert()])
    until(lambda: counts.pending == 0 and counts.outcomes["dropped"] == 1)
    assert "alert alert-1-firing was dropped" in caplog.text
    assert "404" in caplog.text


def test_a_full_outbox_drops_the_oldest_and_tells(
    make_sink: MakeSink, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    sink = make_sink(1, max_pending=3)  # nobody listens on port 1
    sink.write([alert(number) for number in range(5)])
    sink.flush()
    assert counts.outcomes["dropped"] == 2
    assert counts.pending == 3
    assert "alert alert-0-firing was dropped: more than webhook.max_pending" in caplog.text


class Transactions:
    """The threads that began a transaction in a sink's outbox, one entry for each."""

    def __init__(self, sink: WebhookSink) -> None:
        self.threads: list[int] = []
        sink._outbox._db.set_trace_callback(self._traced)

    def _traced(self, statement: str) -> None:
        if statement.startswith("BEGIN"):
            self.threads.append(threading.get_ident())


def test_a_burst_of_alerts_does_not_make_its_writer_wait_for_the_disk(
    receiver: Receiver, make_sink: MakeSink, counts: Counts
) -> None:
    receiver.answer = lambda headers, body: "hang"
    sink = make_sink(receiver.port)
    begun = Transactions(sink)
    for number in range(300):
        sink.write([alert(number, stream=f"s{number}"), alert(number, "resolved", stream=f"s{number}")])
    own = threading.get_ident()
    assert own not in begun.threads
    sink.flush()
    assert begun.threads.count(own) <= 1
    sink.close()
    with sqlite3.connect(sink._outbox.path) as database:
        assert database.execute("SELECT count(*) FROM message WHERE outcome IS NULL").fetchone() == (600,)
    database.close()


@pytest.mark.parametrize("streams", [90, 1])
def test_outcomes_are_noted_together_and_each_stream_keeps_its_order(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    monkeypatch.setattr("connectors.webhook.sink.TOGETHER_SECONDS", 60.0, raising=False)
    sink = make_sink(receiver.port)
    begun = Transactions(sink)
    sink.write(
        [
            alert(number, status, stream=f"s{number % streams}")
            for status in ("firing", "resolved")
            for number in range(90)
        ]
    )
    sink.flush()
    until(lambda: counts.outcomes["delivered"] == 180 and counts.pending == 0)
    assert len(begun.threads) < 20
    assert receiver.ids == [f"alert-{number}-{status}" for status in ("firing", "resolved") for number in range(90)]


def test_what_is_delivered_before_one_fails_is_noted_and_not_sent_again(
    receiver: Receiver, make_sink: MakeSink, counts: Counts
) -> None:
    refused = {"alert-3-firing", "alert-7-firing"}
    receiver.answer = lambda headers, body: (404 if headers["webhook-id"] in refused else 200, {})
    make_sink(receiver.port, retry_base_seconds=60).write([alert(number, stream=f"s{number}") for number in range(12)])
    until(lambda: counts.outcomes["delivered"] == 10 and counts.pending == 2)
    assert {name: count for name, count in Counter(receiver.ids).items() if name not in refused and count != 1} == {}


def test_a_replayed_alert_is_not_sent_again(receiver: Receiver, make_sink: MakeSink, counts: Counts) -> None:
    sink = make_sink(receiver.port)
    sink.write([alert(1)])
    until(lambda: counts.outcomes["delivered"] == 1)
    sink.write([alert(1)])
    sink.close()
    again = make_sink(receiver.port)
    again.write([alert(1), alert(2)])
    until(lambda: counts.outcomes["delivered"] == 2)
    assert receiver.ids == ["alert-1-firing", "alert-2-firing"]


_CHILD = """
import sys, time
from pathlib import Path
from connectors.webhook.sink import WebhookSettings, WebhookSink
from tests.connectors.webhook.test_webhook import SECRET, alert
sink = WebhookSink(WebhookSettings(url=sys.argv[1], secret=SECRET, allowed_hosts=['127.0.0.1']), Path(sys.argv[2]))
sink.write([alert(1), alert(1, "resolved")])
sink.flush()
print("written", flush=True)
time.sleep(60)
"""


def test_an_alert_outlives_kill_9_between_write_and_delivery_and_is_delivered_once_by_id(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, tmp_path: Path
) -> None:
    receiver.answer = lambda headers, body: "hang"
    for _ in range(2):  # the second child replays the first one's alerts
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, f"http://127.0.0.1:{receiver.port}/", str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait(240) == -signal.SIGKILL
        child.stdout.close()
    time.sleep(0.2)  # a request that the dead child had begun may still be on its way to the receiver's list
    receiver.requests.clear()
    receiver.answer = lambda headers, body: (200, {})
    make_sink(receiver.port)
    until(lambda: counts.outcomes["delivered"] == 2)
    assert receiver.ids == ["alert-1-firing", "alert-1-resolved"]
    assert all(verify(headers, body) for _, headers, body in receiver.requests)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody has signed, in one file."""
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


def test_an_untrusted_certificate_is_refused_and_a_trusted_one_taken(
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


def test_a_damaged_outbox_is_refused_with_what_to_do(make_sink: MakeSink, tmp_path: Path) -> None:
    file = tmp_path / OUTBOX_FILE
    outbox = Outbox(file, 1000)
    outbox.add([NewMessage(str(number), "s", os.urandom(3000)) for number in range(100)], 0.0)
    outbox.close()
    content = bytearray(file.read_bytes())
    content[8192:12288] = os.urandom(4096)
    file.write_bytes(content)
    with pytest.raises(OutboxError, match=f"{file} is damaged .*: move it away together with .*-wal"):
        make_sink(1)
    file.write_bytes(b"this is no database" * 100)
    with pytest.raises(OutboxError, match="is damaged"):
        make_sink(1)


def test_another_programs_database_is_left_alone(make_sink: MakeSink, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / OUTBOX_FILE) as other:
        other.execute("CREATE TABLE precious (x)")
    other.close()
    with pytest.raises(OutboxError, match="is an SQLite file, but no outbox"):
        make_sink(1)


def test_an_outbox_of_another_version_is_refused(make_sink: MakeSink, tmp_path: Path) -> None:
    Outbox(tmp_path / OUTBOX_FILE, 10).close()
    with sqlite3.connect(tmp_path / OUTBOX_FILE) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(OutboxError, match="has version 99, this longwatch knows 1"):
        make_sink(1)


def test_a_second_daemon_on_the_same_outbox_is_refused(make_sink: MakeSink) -> None:
    make_sink(1)
    with pytest.raises(OutboxError, match="another longwatch runs with this state"):
        make_sink(1)


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match=r"cannot be made: No such file or directory; see state\.directory"):
        Outbox(tmp_path / "missing" / "outbox.sqlite3", 10)


def test_a_stream_waits_behind_its_message_that_failed_and_others_do_not(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.sqlite3", 100)

    def ids(now: float, limit: int = 100) -> list[str]:
        return [message.id for message in outbox.next(now, limit)]

    outbox.add([NewMessage(f"{stream}{number}", stream, b"body") for number in range(3) for stream in "ab"], 0.0)
    assert ids(0.0) == ["a0", "b0", "a1", "b1", "a2", "b2"]
    first = outbox.next(0.0, 1)[0].sequence
    outbox.retry(first, 5.0, out_of_order=False)
    assert ids(0.0, 2) == ["b0", "b1"]
    assert ids(5.0) == ["b0", "b1", "b2", "a0"]  # a1 only once a0 is through
    outbox.retry(first, 9.0, out_of_order=True)
    assert ids(5.0) == ["b0", "a1", "b1", "a2", "b2"]
    assert ids(9.0) == ["b0", "a1", "b1", "a2", "b2", "a0"]
    outbox.close()


def test_finding_what_is_next_takes_no_longer_where_many_of_one_stream_wait(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.sqlite3", 100_000)
    added, steps, found = 0, 0, list[int]()

    def step() -> None:
        nonlocal steps
        steps += 1

    outbox._db.set_progress_handler(step, 100)
    for waiting in (1_000, 20_000):
        outbox.add([NewMessage(str(number), "s", b"body") for number in range(added, waiting)], 0.0)
        added, steps = waiting, 0
        outbox.next(0.0, 100)
        found.append(steps)
    assert found[1] <= 2 * found[0] + 10
    outbox.close()


def test_done_messages_are_remembered_without_their_body_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.webhook.outbox.DONE_KEPT", 5)
    outbox = Outbox(tmp_path / "o.sqlite3", 100)
    for number in range(20):
        outbox.add([NewMessage(f"m{number}", "s", b"body")], 0.0)
        (message,) = outbox.next(0.0, 100)
        outbox.finish([(message.sequence, "delivered")])
    rows = outbox._db.execute("SELECT id, body FROM message ORDER BY sequence").fetchall()
    assert rows == [(f"m{number}", None) for number in range(15, 20)]
    outbox.close()


def test_ids_are_headers_without_full_stops_and_differ_where_alerts_do() -> None:
    plain = webhook_id(alert(7))
    assert plain == "alert-7-firing"
    odd = [
        dataclasses.replace(alert(), id=name)
        for name in ("a.b/1", "a%2Eb/1", "ä\r\nx: y", "日本", "x" * 500, "x" * 501, " ")
    ]
    ids = [webhook_id(one) for one in odd]
    assert len(set(ids)) == len(odd)
    for one in ids:
        assert one.isascii()
        assert one.isprintable()
        assert not {".", " "} & set(one)
        assert len(one) <= 200


def test_a_stream_of_thousands_of_features_still_makes_a_small_body() -> None:
    values = {f"feature-{number:05d}": float(number) for number in range(5_000)}
    shares = {name: value / sum(values.values()) for name, value in values.items()}
    wide = dataclasses.replace(
        alert(), observed=values, expected=values, lower=values, upper=values, contributions=shares
    )
    body = webhook_body(wide)
    assert len(body) <= 20_000
    message = json.loads(body)
    kept = message["data"]["contributions"]
    assert message["features_left_out"] + len(kept) == 5_000
    assert len(kept) >= 20
    assert min(kept.values()) >= sorted(shares.values())[-len(kept)], "the largest shares are kept"
    assert message["data"]["observed"].keys() == kept.keys()
    assert "features_left_out" not in json.loads(webhook_body(alert()))


def test_the_signature_is_the_specifications() -> None:
    # computed with the reference library `standardwebhooks` 1.1.0 for Python
    key = parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert (
        sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://example.org/hunter2", "must begin with http:// or https://"),
        ("hunter2", "must begin with"),
        ("http://", "has no host"),
        ("http://user:hunter2@:80/", "has no host"),
        ("http://example.org:99999/hunter2", "its port is not a number"),
        ("http://example.org:x/hunter2", "its port is not a number"),
        ("http://exa mple.org/hunter2", "a space or a control character"),
        ("http://example.org/\r\nhunter2", "a space or a control character"),
        ("http://[::1/hunter2", "is no URL"),
        (f"http://{'a' * 70}.org/hunter2", "a host name that is none"),
    ],
)
def test_a_wrong_url_is_refused_at_start_without_being_shown(url: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why) as refused:
        WebhookSettings(url=url)
    assert "hunter2" not in str(refused.value)


def test_urls_of_many_forms_are_understood() -> None:
    assert str(parse_url("https://example.org/x")) == "https://example.org:443"
    assert str(parse_url("http://[::1]:8080/x?y=z")) == "http://[::1]:8080"
    assert parse_url("http://bücher.example").host == "xn--bcher-kva.example"
    assert parse_url("http://h/a b".replace(" ", "%20") + "/ü?q=ä&r=1").target == "/a%20b/%C3%BC?q=%C3%A4&r=1"
    assert parse_url("http://h").target == "/"


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("whsec_not base64!", "base64 does not follow"),
        ("hunter2", "has 7 bytes, at least 24"),
        ("whsec_aaaa", "3 bytes"),
    ],
)
def test_a_wrong_secret_is_refused_at_start_without_being_shown(secret: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why) as refused:
        WebhookSettings(secret=secret)
    assert "hunter2" not in str(refused.value)
    assert "whsec_aaaa" not in str(refused.value)
