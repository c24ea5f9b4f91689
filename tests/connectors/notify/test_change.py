"""Receivers that are added, changed and taken away while messages wait: none is lost, none is sent twice."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from connectors.notify.dispatcher import Dispatcher
from connectors.notify.settings import ReceiverSettings
from tests.connectors.notify.incidents import incident, told
from tests.connectors.notify.support import SECRET, Counts, MakeSink, Receiver, alert, verify
from tests.daemon.support import until
from tests.ports import own_port

OTHER_SECRET = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()


def at(port: int, **values: Any) -> ReceiverSettings:
    own = {"allowed_hosts": ["127.0.0.1"], "retry_base_seconds": 0.05, "secret": SECRET, "tell": "alerts"}
    return ReceiverSettings.model_validate(own | {"url": f"http://127.0.0.1:{port}/hook"} | values)


def test_what_waits_goes_where_the_receiver_is_now(make_sink: MakeSink, counts: Counts, receiver: Receiver) -> None:
    sink = make_sink(own_port(), retry_base_seconds=3600)
    sink.write([alert(1), alert(2)])
    until(lambda: counts.outcomes["retried"])
    sink.use({"hook": at(receiver.port)})
    sink.write([alert(3)])
    until(lambda: counts.outcomes["delivered"] == 3)
    assert receiver.ids == [f"alert-{number}-firing" for number in (1, 2, 3)]
    until(lambda: counts.pending == 0)


def test_an_attempt_in_progress_ends_before_the_changed_receiver_begins(
    make_sink: MakeSink, counts: Counts, receiver: Receiver
) -> None:
    asked, answers = threading.Event(), threading.Event()

    def slow(headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str]]:
        asked.set()
        assert answers.wait(60)
        return 204, {}

    receiver.answer = slow
    sink = make_sink(receiver.port, timeout_seconds=60)
    sink.write([alert(1)])
    assert asked.wait(60)
    sink.use({"hook": at(receiver.port, secret=OTHER_SECRET)})
    sink.write([alert(2)])
    sink.flush()
    answers.set()
    until(lambda: counts.outcomes["delivered"] == 2)
    assert receiver.ids == ["alert-1-firing", "alert-2-firing"]
    signed = [
        [verify(headers, body, secret) for secret in (SECRET, OTHER_SECRET)] for _, headers, body in receiver.requests
    ]
    assert signed == [[True, False], [False, True]]


def test_what_waits_for_a_receiver_that_is_gone_is_there_when_it_comes_back(
    make_sink: MakeSink, counts: Counts, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    sink = make_sink(own_port())
    sink.write([alert(1)])
    until(lambda: counts.outcomes["retried"])
    other = at(receiver.port)
    sink.use({"other": other})
    assert "1 messages wait for receiver hook, which is not set any more" in caplog.text
    sink.write([alert(2)])
    until(lambda: receiver.ids == ["alert-2-firing"])
    sink.use({"other": other, "hook": at(receiver.port, url=f"http://127.0.0.1:{receiver.port}/again")})
    until(lambda: len(receiver.requests) == 2)
    assert (receiver.requests[1][0], receiver.ids[1]) == ("/again", "alert-1-firing")


def test_who_was_told_of_an_incident_is_told_of_its_end_whatever_its_filter_says_now(
    receiver: Receiver, tmp_path: Path
) -> None:
    sink = Dispatcher({"hook": at(receiver.port, tell="incidents")}, tmp_path)
    try:
        sink.tell([told(incident())])
        until(lambda: len(receiver.requests) == 1)
        sink.use({"hook": at(receiver.port, tell="incidents", streams=["db-*"])})
        sink.tell([told(incident(2)), told(incident(3, "resolved")), told(incident(1, "resolved", id="another"))])
        until(lambda: len(receiver.requests) == 2)
        sink.tell([told(incident(1, id="last", stream="db-1"))._replace(streams=["db-1"])])
        until(lambda: len(receiver.requests) == 3)
    finally:
        sink.close()
    said = [(data["type"], data["data"]["id"]) for data in (json.loads(body) for _, _, body in receiver.requests)]
    assert said == [("incident.opened", "a0"), ("incident.resolved", "a0"), ("incident.opened", "last")]


def test_what_a_receiver_of_another_type_cannot_read_is_dropped_and_holds_nothing_up(
    make_sink: MakeSink, counts: Counts, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    sink = make_sink(own_port())
    sink.write([alert(1)])
    until(lambda: counts.outcomes["retried"])
    sink.use({"hook": at(receiver.port, type="alertmanager-webhook", tell="incidents", secret="")})
    sink.tell([told(incident())])
    until(lambda: counts.outcomes["delivered"])
    assert counts.outcomes["dropped"] == 1
    assert "alert-1-firing was dropped" in caplog.text
