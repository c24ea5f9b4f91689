"""A receiver of webhooks and sinks that send to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.notify.dispatcher import Dispatcher
from connectors.notify.settings import ReceiverSettings
from tests.connectors.notify.support import SECRET, Counts, MakeSink, Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.close()


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def make_sink(tmp_path: Path, counts: Counts, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeSink]:
    monkeypatch.setattr("connectors.notify.receivers.Forgetful.retry_cap_seconds", 0.2)
    sinks: list[Dispatcher] = []

    def make(port: int, path: str = "/hook", scheme: str = "http", **settings: Any) -> Dispatcher:
        quick = {"retry_base_seconds": 0.02, "timeout_seconds": 5, "secret": SECRET}
        quick["allowed_hosts"] = ("127.0.0.1",)
        sink = Dispatcher(
            {"hook": ReceiverSettings(url=f"{scheme}://127.0.0.1:{port}{path}", tell="alerts", **(quick | settings))},
            tmp_path,
            on_delivery=lambda receiver, outcome: counts.delivery(outcome),
            on_pending=lambda receiver, count: counts.waiting(count),
        )
        sinks.append(sink)
        return sink

    yield make
    for sink in sinks:
        if any(courier.alive for courier in sink._couriers.values()):
            sink.close()
