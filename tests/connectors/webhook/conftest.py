"""A receiver of webhooks and sinks that send to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.webhook.settings import WebhookSettings
from connectors.webhook.sink import WebhookSink
from tests.connectors.webhook.support import SECRET, Counts, MakeSink, Receiver


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
    monkeypatch.setattr("connectors.webhook.sink.RETRY_CAP_SECONDS", 0.2)
    sinks: list[WebhookSink] = []

    def make(port: int, path: str = "/hook", scheme: str = "http", **settings: Any) -> WebhookSink:
        quick = {"retry_base_seconds": 0.02, "timeout_seconds": 5, "secret": SECRET}
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
