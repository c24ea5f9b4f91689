"""The rate of all streams' events: how it is estimated, when it changes, and that a checkpoint keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from detector.config.settings import load_settings
from detector.engine.engine import Engine, EngineSettings
from detector.observability.metrics import Metrics
from detector.service.daemon import Daemon
from detector.service.factory import build_daemon
from detector.service.fleet_rate import FLEET_EVENTS, SETTLED_SECONDS, FleetRate
from tests.streams import HOUR, MINUTE, START, Event, batch_of, clock, numbered, wide
from training.network.weights import load_prior

A_DAY = 86_400.0


def minutely(names: Sequence[str], rows: int = 20, start: int = START) -> list[Event]:
    value = np.random.default_rng(1).standard_normal((rows, 1))
    return sorted(
        [event for name in names for event in wide(name, clock(rows, MINUTE, start), value)],
        key=lambda event: event.time,
    )


class Parts:
    """A rate with an engine of its own, and the rest made up."""

    def __init__(self, known: float = 0.0, **settings: Any) -> None:
        self.engine = Engine(load_prior(), EngineSettings(**settings))
        self.metrics = Metrics("0.1.0")
        self.now, self.partition_share, self.works, self.stored = 0.0, 1.0, True, 0
        self.metadata: dict[str, Any] = {"newest": START * 1e-9, FLEET_EVENTS: known}
        self.saved: list[float] = []
        self.rate = FleetRate(
            self.engine,
            SimpleNamespace(metadata=self.metadata, commit=self.commit),
            SimpleNamespace(share=lambda: self.partition_share),
            SimpleNamespace(count=lambda: self.stored),
            self.metrics,
            lambda: self.now,
        )

    def commit(self) -> bool:
        if self.works:
            self.saved.append(self.metadata[FLEET_EVENTS])
        return self.works

    def come(self, events: list[Event]) -> None:
        self.engine.step(batch_of(events))
        self.metadata["newest"] = max(event.time for event in events) * 1e-9

    def after_checkpoint(self) -> float:
        self.rate.commit()
        return self.engine.fleet_events_per_day


def test_it_is_the_sum_of_all_streams_rates(parts: Parts) -> None:
    assert parts.engine.fleet_events_per_day == 0.0
    parts.come(minutely(["a", "b"]))
    parts.come(wide("c", clock(20, HOUR, START - 19 * HOUR), np.zeros((20, 1))))
    parts.come(minutely(["too few to tell"], 3))
    assert parts.engine.fleet_events_per_day == 0.0, "nothing changes between two checkpoints"

    assert parts.after_checkpoint() == pytest.approx(2 * 1440 + 24)
    assert parts.saved == [parts.engine.fleet_events_per_day]
    shown = parts.metrics.registry.get_sample_value("longwatch_fleet_events_per_day")
    assert shown == parts.engine.fleet_events_per_day


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_a_worker_takes_the_partitions_of_others_for_as_busy_as_its_own(parts: Parts) -> None:
    parts.come(minutely(["a", "b"]))
    parts.partition_share = 0.25
    assert parts.after_checkpoint() == pytest.approx(8 * 1440)
    parts.partition_share = 0.0  # none of its own: it knows no better
    assert parts.after_checkpoint() == pytest.approx(8 * 1440)


def test_streams_that_were_evicted_count_as_those_in_memory() -> None:
    parts = Parts(max_streams=2)
    parts.come(minutely(["a", "b", "c", "d"]))
    parts.stored = 4
    assert parts.after_checkpoint() == pytest.approx(4 * 1440)


def test_streams_that_have_fallen_silent_count_no_more_once_all_have_had_time_to_speak(parts: Parts) -> None:
    parts.come(minutely(["a", "b", "ended"]))
    before = parts.after_checkpoint()
    parts.come(minutely(["a", "b"], 60, START + 20 * MINUTE))
    assert parts.after_checkpoint() == pytest.approx(2 / 3 * before)


def test_after_a_start_it_does_not_fall_until_slow_streams_have_had_time_to_speak() -> None:
    parts = Parts(known=1e6)
    assert parts.engine.fleet_events_per_day == 1e6
    parts.come(minutely(["a", "b"]))
    assert parts.after_checkpoint() == 1e6
    parts.now = SETTLED_SECONDS
    assert parts.after_checkpoint() == pytest.approx(2 * 1440)
    parts.rate.assigned()
    parts.come(minutely(["a"], 60, START + 20 * MINUTE))
    assert parts.after_checkpoint() == pytest.approx(2 * 1440)


def test_a_small_change_is_none(parts: Parts) -> None:
    names = [f"s{k}" for k in range(20)]
    parts.come(minutely(names))
    before = parts.after_checkpoint()
    parts.come(minutely(["one more"]))
    assert parts.after_checkpoint() == before
    parts.come(minutely(["a third", "of them"]))
    assert parts.after_checkpoint() == pytest.approx(23 * 1440)


def test_without_a_checkpoint_the_former_holds(parts: Parts) -> None:
    parts.come(minutely(["a"]))
    before = parts.after_checkpoint()
    parts.come(minutely(["b"]))
    parts.works = False
    assert parts.after_checkpoint() == before
    assert parts.metadata[FLEET_EVENTS] == before


# -- the daemon --------------------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    events = numbered(minutely([f"s{k}" for k in range(10)], 200))
    (tmp_path / "events.jsonl").write_text(
        "".join(
            json.dumps({"stream": e.stream, "timestamp": e.time * 1e-9, "value": e.values["f0"]}) + "\n" for e in events
        )
    )
    return tmp_path


def daemon_at(work: Path) -> Daemon:
    settings = {
        "source.type": "file",
        "source.paths": json.dumps([str(work / "events.jsonl")]),
        "source.max_poll_records": "100",
        "state.directory": str(work / "state"),
        "state.checkpoint_interval_seconds": "3600",
        "output.scores_file": str(work / "scores.jsonl"),
        "alerting.fleet_alerts_per_day": "0.001",
        "training.enabled": "false",
        "http.port": "0",
    }
    return build_daemon(load_settings(overrides=[f"{name}={value}" for name, value in settings.items()]))


def ticks(daemon: Daemon, events: int) -> None:
    """Let it read so many events, by hundreds."""
    before = daemon.metrics.events._value.get()
    for _ in range(events // 100):
        daemon.tick()
    assert daemon.metrics.events._value.get() == before + events


def thresholds(work: Path) -> list[float]:
    return [json.loads(line)["threshold"] for line in (work / "scores.jsonl").read_text().splitlines()]


def test_a_daemon_that_crashes_meets_the_rate_that_stood_at_its_checkpoint(work: Path) -> None:
    first = daemon_at(work)
    first.startup()
    ticks(first, 500)
    assert first.engine.fleet_events_per_day == 0.0
    assert first.fleet_rate.commit()
    rate = first.engine.fleet_events_per_day
    assert rate == pytest.approx(14_400)
    ticks(first, 300)
    first.sinks.flush()
    before = thresholds(work)
    first.shutdown(orderly=False)

    second = daemon_at(work)
    assert second.engine.fleet_events_per_day == rate
    second.startup()
    ticks(second, 300)
    second.sinks.flush()

    assert thresholds(work) == before
    assert before[-1] == pytest.approx(math.log10(rate / 0.001))
    assert max(before[:500]) < before[-1]
    assert second.metrics.registry.get_sample_value("longwatch_fleet_events_per_day") == rate
    second.shutdown(orderly=True)


def test_events_held_back_are_counted_by_reason(work: Path) -> None:
    daemon = daemon_at(work)
    daemon.startup()
    daemon.shutdown(orderly=True)
    for reason in ("young", "fleet"):
        assert daemon.metrics.registry.get_sample_value("longwatch_events_held_back_total", {"reason": reason}) == 0
