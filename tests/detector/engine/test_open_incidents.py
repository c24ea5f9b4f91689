"""Incidents of streams that fall silent: they end, once, by the others' time or by a clock, also after a restart."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from connectors.batches import Alert, Partition
from detector.config.settings import load_settings
from detector.engine.engine import Engine, EngineSettings
from detector.scoring.incidents import AlertRules
from detector.service.daemon import Daemon
from detector.service.factory import build_daemon
from tests.streams import HOUR, MINUTE, START, Event, batch_of, clock, in_batches, interleaved, numbered, run, wide
from training.network.weights import Weights

SECOND = MINUTE // 60
ROWS = 500  # of a stream before its incident
FLOOR = 300  # seconds: no silence is shorter


def alarmed(step: int = MINUTE, partition: Partition | None = None) -> list[Event]:
    """A stream whose last three events are an incident."""
    value = 10.0 + np.random.default_rng(4).standard_normal(ROWS + 3)
    value[ROWS:] += 90.0
    events = wide("gone", clock(ROWS + 3, step), value[:, None])
    return [event._replace(partition=partition) for event in events] if partition else events


def normal(name: str, rows: int, first: int = 0, step: int = MINUTE, partition: Partition | None = None) -> list[Event]:
    value = 10.0 + np.random.default_rng(7).standard_normal(rows)
    events = wide(name, clock(rows, step, START + first * step), value[:, None])
    return [event._replace(partition=partition) for event in events] if partition else events


class Clock:
    """A clock that is set by hand, s."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """An engine with what watches its silence, stepped as the daemon does it."""

    def __init__(self, model: Weights, **settings: Any) -> None:
        from detector.engine.open_incidents import OpenIncidents

        self.clock = Clock()
        self.engine = Engine(model, EngineSettings(rules=AlertRules(fixed_threshold=4.0), **settings))
        self.incidents = OpenIncidents(self.clock)
        self.alerts: list[Alert] = []

    def come(self, events: Sequence[Event], size: int = 1000) -> None:
        for batch in in_batches(numbered(events), size):
            step = self.engine.step(batch)
            self.alerts += step.alerts
            self.incidents.step(batch, step)
            self.turn()

    def turn(self) -> None:
        silent = self.incidents.silent()
        alerts, stopped_once = self.engine.resolve_silent(silent)
        self.incidents.resolved(silent, stopped_once)
        self.alerts += alerts

    def of(self, stream: str = "gone") -> list[Alert]:
        return [alert for alert in self.alerts if alert.stream == stream]

    def reported(self, stream: str = "gone") -> list[tuple[str, str]]:
        return [(alert.status, alert.resolved_by) for alert in self.of(stream)]


FIRES, SILENT = ("firing", ""), ("resolved", "silence")
LAST = START + (ROWS + 2) * MINUTE  # of the stream that falls silent
OVER = LAST + 600 * SECOND  # ten times its longest pause later


@pytest.mark.parametrize("size", [1, 50, 100_000])
def test_an_incident_of_a_silent_stream_ends_when_other_streams_advance(model: Weights, size: int) -> None:
    w = Watched(model)
    w.come(interleaved([alarmed(), normal("other", ROWS)], 1), 50)
    assert w.reported() == [FIRES]
    open_before = len(w.incidents)

    w.come(normal("other", 5, ROWS + 3), size)
    assert w.reported() == [FIRES]
    w.come(normal("other", 60, ROWS + 8), size)

    assert w.reported() == [FIRES, SILENT]
    assert w.of()[-1].id == w.of()[0].id
    assert w.of()[-1].ended_at == OVER
    assert len(w.incidents) == open_before - 1


def test_a_silent_streams_incident_ends_within_one_batch_too(model: Weights) -> None:
    """What came of the others before the stream fell silent does not count, what came after does."""
    w = Watched(model)
    w.come(sorted([*alarmed(), *normal("other", ROWS + 60)], key=lambda event: event.time), 100_000)

    assert w.reported() == [FIRES, SILENT]
    assert w.of()[-1].ended_at == OVER


def test_the_streams_next_event_resolves_the_incident_alike(model: Weights) -> None:
    again = [event._replace(values={"f0": -500.0}) for event in normal("gone", 40, ROWS + 30)]

    alone, watched = Watched(model), Watched(model)
    alone.come([*alarmed(), *again])
    watched.come([*alarmed(), *normal("other", ROWS + 30)])
    watched.come(again)

    assert alone.reported()[:3] == watched.reported()[:3] == [FIRES, SILENT, FIRES]
    reported, other = (w.of()[:3] for w in (alone, watched))
    assert replace(reported[1], offset=0) == replace(other[1], offset=0)
    assert [alert.id for alert in reported] == [alert.id for alert in other]
    assert reported[0].id == reported[1].id != reported[2].id


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("regular", [k * 60.0 for k in range(ROWS)]),
        ("once an hour", [k * 3600.0 for k in range(ROWS)]),
        ("irregular", np.cumsum(np.random.default_rng(1).exponential(300.0, ROWS)).tolist()),
        ("bursts", [k // 40 * 3600.0 + k % 40 * 0.5 for k in range(ROWS)]),
        ("at night it sleeps", [k // 100 * 86_400.0 + k % 100 * 300.0 for k in range(ROWS)]),
    ],
)
def test_a_streams_usual_pause_is_not_silence(model: Weights, name: str, times: list[float]) -> None:
    """Each of the streams pauses as it always does right after its incident has begun, and then resumes."""
    value = 10.0 + np.random.default_rng(0).standard_normal(ROWS)
    cut = 400 if name in {"bursts", "at night it sleeps"} else 450
    value[cut - 3 : cut] += 90.0
    events = wide(name, START + (np.array(times) * 1e9).astype(np.int64), value[:, None])
    end = events[-1].time
    others = normal("other", (end - START) // MINUTE + 1)

    w = Watched(model)
    w.come(sorted([*events, *others], key=lambda event: event.time), 500)

    assert w.reported(name)[0] == FIRES
    assert SILENT not in w.reported(name)


def test_a_few_events_ahead_of_time_end_no_incident(model: Weights) -> None:
    w = Watched(model)
    w.come([*alarmed(), *normal("other", ROWS + 3)])
    w.come([Event("other", START + 20 * HOUR, {"f0": 1.0}), Event("third", START + 23 * HOUR, {"f0": 1.0})], 1)

    assert w.reported() == [FIRES]


def test_a_partition_read_ahead_ends_no_incident_of_another_partition(model: Weights) -> None:
    here, there = Partition("metrics", 0), Partition("metrics", 1)
    w = Watched(model)
    w.come(alarmed(partition=here))
    w.incidents.look({here: 5000, there: 0}, reading=True)
    w.come(normal("other", ROWS + 500, partition=there))
    w.clock.now += 3600
    w.incidents.look({here: 5000, there: 0}, reading=True)
    w.turn()
    assert w.reported() == [FIRES]

    w.come(normal("neighbour", ROWS + 60, partition=here))
    assert w.reported() == [FIRES, SILENT]


def test_without_events_the_clock_ends_incidents_unless_events_wait(
    model: Weights,
) -> None:
    here = alarmed()[0].partition
    w = Watched(model)
    w.come(alarmed(step=SECOND))
    for lag, reading in ((7, True), (0, False)):
        w.incidents.look({here: lag}, reading=reading)
        w.clock.now += 10 * FLOOR
        w.incidents.look({here: lag}, reading=reading)
        w.turn()
        assert w.reported() == [FIRES]

    w.clock.now += FLOOR - 1
    w.turn()
    assert w.reported() == [FIRES]
    w.clock.now += 2
    w.turn()
    assert w.reported() == [FIRES, SILENT]
    assert w.of()[-1].ended_at == START + (ROWS + 2 + FLOOR) * SECOND


def test_the_clock_ends_incidents_of_streams_of_revoked_partitions(model: Weights) -> None:
    here, other = alarmed()[0].partition, Partition("metrics", 9)
    w = Watched(model)
    w.come(alarmed())
    w.incidents.look({here: 0}, reading=True)
    w.incidents.look({other: 0}, reading=True)
    w.turn()
    assert w.reported() == [FIRES]
    w.clock.now += 601
    w.turn()
    assert w.reported() == [FIRES, SILENT]


def test_late_events_do_not_count_as_silence(model: Weights) -> None:
    w = Watched(model)
    w.come([*alarmed(), *normal("other", ROWS + 3)])
    for k in range(60):  # sent again and again, dropped each time
        w.come([*normal("gone", 3, ROWS - 10), *normal("other", 1, ROWS + 3 + k)])

    assert w.reported() == [FIRES]


def test_scores_do_not_depend_on_silence_detection(model: Weights) -> None:
    choose = random.Random(2)
    events = sorted([*alarmed(), *normal("gone", 100, ROWS + 50), *normal("other", ROWS + 150)], key=lambda e: e.time)
    plain = run(Engine(model), in_batches(numbered(events), 100))
    w = Watched(model)
    stored: dict[str, bytes] = {}
    w.engine = Engine(model, EngineSettings(max_streams=1), fetch=lambda names: [stored.get(name) for name in names])
    scores = {}
    at = 0
    while at < len(events):
        size = choose.randrange(1, 60)
        batch = batch_of(numbered(events)[at : at + size])
        step = w.engine.step(batch)
        w.incidents.step(batch, step)
        w.turn()
        stored.update(w.engine.streams.drain())
        scores |= dict(zip(batch.offset[step.scores.event].tolist(), step.scores.score.tolist(), strict=True))
        at += size

    assert w.reported() == [SILENT]
    assert list(scores.values()) == plain.score.tolist()


# -- the daemon ------------------------------------------------------------------------------------------------------


def lines(events: Sequence[Event]) -> bytes:
    return b"".join(
        msgspec.json.encode({"stream": e.stream, "timestamp": e.time / 1e9, "value": e.values["f0"]}) + b"\n"
        for e in events
    )


def served(work: Path, events: Sequence[Event], **more: str) -> tuple[list[dict[str, Any]], Daemon]:
    """Let a daemon read a file to its end, resuming where it was; return all alerts so far."""
    (work / "events.jsonl").write_bytes(lines(events))
    settings = {
        "source.type": "file",
        "source.paths": '["events.jsonl"]',
        "source.max_poll_records": "100",
        "state.directory": str(work / "state"),
        "output.alerts_file": str(work / "alerts.jsonl"),
        "training.enabled": "false",
        "alerting.threshold": "5",  # above what noise reaches
        "http.port": "0",
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    daemon = build_daemon(load_settings(overrides=[f"{name}={value}" for name, value in settings.items()]))
    daemon.run()
    return [msgspec.json.decode(line) for line in (work / "alerts.jsonl").read_bytes().splitlines()], daemon


def firing(daemon: Daemon) -> float | None:
    return daemon.metrics.registry.get_sample_value("longwatch_alerts_firing")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def history() -> list[Event]:
    return sorted([*alarmed(), *normal("other", ROWS + 3)], key=lambda event: event.time)


def test_the_daemon_resolves_the_incident_of_a_silent_stream(work: Path) -> None:
    alerts, daemon = served(work, [*history(), *normal("other", 200, ROWS + 3)])

    assert [(alert["stream"], alert["status"]) for alert in alerts] == [("gone", "firing"), ("gone", "resolved")]
    assert alerts[0]["id"] == alerts[1]["id"]
    assert "resolved_by" not in alerts[0]
    assert alerts[1]["resolved_by"] == "silence"
    assert alerts[1]["ended_at"] == "2026-09-21T22:45:20Z"
    assert firing(daemon) == 0


def test_after_a_restart_the_incident_of_a_silent_stream_is_resolved_once(work: Path) -> None:
    alerts, daemon = served(work, history())
    assert [alert["status"] for alert in alerts] == ["firing"]
    assert firing(daemon) == 1

    more = [*history(), *normal("other", 200, ROWS + 3)]
    alerts, daemon = served(work, more, state__max_streams="1")
    assert [alert.get("resolved_by") for alert in alerts] == [None, "silence"]
    assert firing(daemon) == 0

    again = [event._replace(values={"f0": -500.0}) for event in normal("gone", 3, ROWS + 300)]
    alerts, daemon = served(work, [*more, *normal("other", 200, ROWS + 203), *again])
    assert [alert["status"] for alert in alerts] == ["firing", "resolved", "firing"]
    assert alerts[2]["id"] != alerts[0]["id"]
