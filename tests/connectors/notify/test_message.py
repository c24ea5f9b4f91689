"""What is sent: bodies, ids and signatures, checked by the receiver itself; secrets are never logged."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from pydantic import ValidationError

from connectors.notify.dispatcher import Dispatcher
from connectors.notify.settings import ReceiverSettings, parse_secrets
from connectors.notify.standard_webhooks import sign, webhook_body, webhook_id
from tests.connectors.notify.support import SECRET, Counts, MakeSink, Receiver, alert, verify
from tests.daemon.support import until


def test_an_alert_arrives_once_as_signed_json(receiver: Receiver, make_sink: MakeSink, counts: Counts) -> None:
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


def test_a_changed_body_fails_signature_verification(receiver: Receiver, make_sink: MakeSink) -> None:
    make_sink(receiver.port).write([alert()])
    until(lambda: receiver.requests)
    _, headers, body = receiver.requests[0]
    assert verify(headers, body)
    assert not verify(headers, body.replace(b"web-1", b"web-2"))


def test_during_secret_rotation_both_secrets_sign(receiver: Receiver, make_sink: MakeSink) -> None:
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
    settings = ReceiverSettings(
        url=f"http://me:pa%20ss@127.0.0.1:{receiver.port}/T0KEN",
        secret=SECRET,
        tell="alerts",
        retry_base_seconds=0.01,
        allowed_hosts=("127.0.0.1",),
    )
    sink = Dispatcher({"hook": settings}, tmp_path)
    sink.write([alert()])
    until(lambda: len(receiver.requests) >= 2)
    sink.close()
    assert receiver.requests[0][1]["authorization"] == "Basic " + base64.b64encode(b"me:pa ss").decode()
    assert "127.0.0.1" in caplog.text
    for hidden in ("pa%20ss", "pa ss", "T0KEN", SECRET):
        assert hidden not in caplog.text
        assert hidden not in repr(settings)


def test_secrets_echoed_by_the_receiver_are_masked_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
    settings = ReceiverSettings(url=url, tell="alerts", allowed_hosts=("127.0.0.1",))
    sink = Dispatcher({"hook": settings}, tmp_path, on_delivery=lambda name, outcome: counts.delivery(outcome))
    sink.write([alert()])
    until(lambda: counts.outcomes["failed"])
    sink.close()
    server.shutdown()
    server.server_close()
    assert "it answered 404 'No route ***" in caplog.text
    for hidden in ("T0KEN", "K3Y", "hunter", base64.b64encode(b"bot:hunter two").decode(), "services/", "\x1b"):
        assert hidden not in caplog.text


def test_webhook_ids_are_valid_headers_and_unique_per_alert() -> None:
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


def test_an_alert_with_thousands_of_features_has_a_small_body() -> None:
    values = {f"feature-{number:05d}": float(number) for number in range(5_000)}
    shares = {name: value / sum(values.values()) for name, value in values.items()}
    wide = dataclasses.replace(
        alert(),
        observed=values,
        expected=values,
        lower=values,
        upper=values,
        contributions=shares,
        evidence={"observed": 1.0, "nearest": 2.0},
    )
    body = webhook_body(wide)
    assert len(body) <= 20_000
    message = json.loads(body)
    kept = message["data"]["contributions"]
    assert message["features_left_out"] + len(kept) == 5_000
    assert len(kept) >= 20
    assert min(kept.values()) >= sorted(shares.values())[-len(kept)], "the largest shares are kept"
    assert message["data"]["observed"].keys() == kept.keys()
    assert message["data"]["evidence"] == wide.evidence, "it is not by feature"
    assert "features_left_out" not in json.loads(webhook_body(alert()))


def test_the_signature_equals_the_reference_librarys() -> None:
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
        (f"http://{'a' * 70}.org/hunter2", "an invalid host name"),
    ],
)
def test_an_invalid_url_is_refused_without_echoing_it(url: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why) as refused:
        ReceiverSettings(url=url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("whsec_not base64!", "base64 does not follow"),
        ("hunter2", "has 7 bytes, at least 24"),
        ("whsec_aaaa", "3 bytes"),
    ],
)
def test_an_invalid_secret_is_refused_without_echoing_it(secret: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why) as refused:
        ReceiverSettings(secret=secret)
    assert "hunter2" not in str(refused.value)
    assert "whsec_aaaa" not in str(refused.value)
