"""Streams read from a real engine and store: what is shown, what is shared, and what waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from detector.checkpointing.store import SqliteStore
from detector.engine.engine import Engine, EngineSettings
from detector.errors import BusyError
from detector.service.turns import Turns
from detector.web import streams as module
from detector.web.streams import Streams, stream_scores
from tests.detector.engine.support import noisy
from tests.streams import clock, in_batches, numbered, wide
from training.network.weights import Weights


class Looks:
    """Turns that count."""

    def __init__(self) -> None:
        self.turns, self.count = Turns(), 0

    def __call__(self, timeout: float) -> AbstractContextManager[None]:
        self.count += 1
        return self.turns.look(timeout)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path)
    yield store
    store.close()


@pytest.fixture
def engine(model: Weights) -> Engine:
    engine = Engine(model, EngineSettings())
    for number in range(6):
        for batch in in_batches(numbered(wide(f"rack/{number}", clock(70), noisy(70, seed=number))), 100):
            engine.step(batch)
    return engine


def test_what_was_read_is_shared_for_a_second(
    engine: Engine, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", 3600.0)
    looks = Looks()
    streams = Streams(engine, store, looks, follows_changelog=False)
    threads = [threading.Thread(target=streams.page, args=("", "anomalous", 0, 3)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    streams.page("RACK/3", "name", 0, 10)
    assert looks.count == 1
    for batch in in_batches(numbered(wide("new", clock(1), noisy(1))), 1):
        engine.step(batch)
    found = streams.one("new")
    assert found is not None
    assert found[0].events == 1, "what is asked for by name is never missing"


def test_while_the_engine_is_busy_the_last_moment_is_shown(
    engine: Engine, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(module, "SHARE", 1e9)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    turns = Turns()
    streams = Streams(engine, store, turns.look, follows_changelog=False)
    release = threading.Event()

    @contextmanager
    def busy() -> Iterator[None]:
        taken = threading.Event()

        def hold() -> None:
            with turns.turn():
                taken.set()
                release.wait(240)

        holding = threading.Thread(target=hold)
        holding.start()
        assert taken.wait(240)
        yield
        release.set()
        holding.join(240)
        release.clear()

    with busy(), pytest.raises(BusyError):
        streams.page("", "name", 0, 10)
    assert streams.page("", "name", 0, 10).total == 6
    with busy():
        assert streams.page("", "name", 0, 10).total == 6


def test_those_on_disk_follow_those_in_memory_page_by_page(engine: Engine, store: SqliteStore) -> None:
    with engine.streams.draining() as rows:
        store.save(rows, {})
    engine.streams.forget(["rack/1", "rack/4"])
    streams = Streams(engine, store, Turns().look, follows_changelog=False)
    found = [row for offset in range(0, 8, 2) for row in streams.page("rack", "name", offset, 2).streams]
    assert [row.name for row in found] == ["rack/0", "rack/2", "rack/3", "rack/5", "rack/1", "rack/4"]
    assert [row.events is None for row in found] == [False] * 4 + [True] * 2
    assert streams.page("rack", "name", 0, 10).total == 6
    assert "About 2 more are on disk" in streams.page("", "name", 0, 10).note
    assert streams.page("ack/1", "name", 0, 10).streams == (), "on disk only the beginning counts"
    others = Streams(engine, store, Turns().look, follows_changelog=True)
    assert others.page("rack", "name", 0, 10).total == 4, "they may be another worker's by now"
    assert others.one("rack/1") is None


def test_nobody_waits_for_a_checkpoint_to_be_written(engine: Engine, store: SqliteStore) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow_rows() -> Iterator[tuple[str, bytes]]:
        begun.set()
        release.wait(240)
        yield from ()

    saving = threading.Thread(target=store.save, args=(slow_rows(), {}))
    saving.start()
    assert begun.wait(240)
    streams = Streams(engine, store, Turns().look, follows_changelog=False)
    page = streams.page("rack", "name", 0, 10)
    assert page.total == 6
    assert "while a checkpoint is written" in page.note
    with pytest.raises(BusyError):
        streams.one("unknown")
    release.set()
    saving.join(240)
    assert streams.one("unknown") is None


def test_a_metrics_streams_are_bounded_and_found_as_they_come(
    engine: Engine, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_STREAM_SCORES", 3)
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(module, "SHARE", 1e9)
    shown = stream_scores(Streams(engine, store, Turns().look, follows_changelog=False), ["rack/[2-9]", "other"])
    assert [labels for labels, _ in shown()] == [("rack/2",), ("rack/3",), ("rack/4",)]
    for batch in in_batches(numbered(wide("other", clock(1), noisy(1))), 1):
        engine.step(batch)
    assert [labels for labels, _ in shown()] == [("other",), ("rack/2",), ("rack/3",)]
