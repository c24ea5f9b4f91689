"""The webhook sink against a real HTTP server: outages, order, limits, kill -9."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from connectors.notify.dispatcher import OUTBOX_FILE, Dispatcher
from tests.connectors.notify.support import Counts, MakeSink, Receiver, alert, verify
from tests.daemon.support import until
from tests.ports import own_port

ROOT = Path(__file__).parents[3]


def test_after_an_outage_the_receiver_gets_every_alert_in_stream_order(
    make_sink: MakeSink, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    port = own_port()
    sink = make_sink(port)
    for number in range(20):
        sink.write([alert(number, stream=f"s{number % 5}")])
        sink.write([alert(number, "resolved", stream=f"s{number % 5}")])
    until(lambda: counts.outcomes["retried"] >= 8)
    assert counts.pending == 40
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1, "an outage is logged once, not at every attempt"
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
        assert "takes messages again" in caplog.text
    finally:
        receiver.close()


def test_the_backlog_is_sent_as_soon_as_the_receiver_is_back(
    make_sink: MakeSink, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.notify.receivers.Forgetful.retry_cap_seconds", 0.6)
    port = own_port()
    sink = make_sink(port, retry_base_seconds=0.3)
    sink.write([alert(number, stream=f"s{number}") for number in range(50)])
    until(lambda: counts.outcomes["retried"] >= 3)
    receiver = Receiver(port)
    try:
        until(lambda: counts.outcomes["delivered"] == 50)
    finally:
        receiver.close()


def test_410_stops_delivery_until_restart_and_keeps_the_alerts(
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


@pytest.mark.parametrize("status", [400, 500])
def test_a_message_the_receiver_rejects_does_not_block_the_others(
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


def test_a_message_that_always_fails_does_not_block_its_stream_for_ever(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.notify.receivers.Forgetful.retry_cap_seconds", 0.02)
    receiver.answer = lambda headers, body: (500, {}) if headers["webhook-id"] == "alert-0-firing" else (200, {})
    make_sink(receiver.port).write([alert(0), alert(1)])
    until(lambda: counts.outcomes["delivered"] == 1)


def test_an_alert_older_than_max_age_is_dropped_and_logged(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = lambda headers, body: (404, {})
    make_sink(receiver.port, max_age_seconds=1.5).write([alert()])
    until(lambda: counts.pending == 0 and counts.outcomes["dropped"] == 1)
    assert "alert-1-firing was dropped" in caplog.text
    assert "404" in caplog.text


def test_a_full_outbox_drops_the_oldest_alert_and_logs_it(
    make_sink: MakeSink, counts: Counts, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("outbox", "dispatcher"):
        monkeypatch.setattr(f"connectors.notify.{module}.MAX_PENDING", 3)
    sink = make_sink(1)  # nobody listens on port 1
    sink.write([alert(number) for number in range(5)])
    sink.flush()
    assert counts.outcomes["dropped"] == 2
    assert counts.pending == 3
    assert "alert-0-firing was dropped, not told to receiver hook: more than 3 are pending" in caplog.text


class Transactions:
    """The threads that began a transaction in a sink's outbox, one entry for each."""

    def __init__(self, sink: Dispatcher) -> None:
        self.threads: list[int] = []
        sink._outbox._db.set_trace_callback(self._traced)

    def _traced(self, statement: str) -> None:
        if statement.startswith("BEGIN"):
            self.threads.append(threading.get_ident())


def test_writing_a_burst_of_alerts_does_not_wait_for_the_disk(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, tmp_path: Path
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
    with sqlite3.connect(tmp_path / OUTBOX_FILE) as database:
        assert database.execute("SELECT count(*) FROM message WHERE outcome IS NULL").fetchone() == (600,)
    database.close()


@pytest.mark.parametrize("streams", [90, 1])
def test_outcomes_are_committed_in_batches_and_streams_keep_their_order(
    receiver: Receiver, make_sink: MakeSink, counts: Counts, monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    monkeypatch.setattr("connectors.notify.courier.TOGETHER_SECONDS", 60.0, raising=False)
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


def test_deliveries_before_a_failure_are_recorded_and_not_repeated(
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
from connectors.notify.settings import ReceiverSettings
from connectors.notify.dispatcher import OUTBOX_FILE, Dispatcher
from tests.connectors.notify.support import SECRET, alert
settings = ReceiverSettings(url=sys.argv[1], secret=SECRET, allowed_hosts=['127.0.0.1'], tell='alerts')
sink = Dispatcher({'hook': settings}, Path(sys.argv[2]))
sink.write([alert(1), alert(1, "resolved")])
sink.flush()
print("written", flush=True)
time.sleep(60)
"""


def test_an_alert_survives_kill_9_before_delivery_and_is_sent_once(
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
