"""Quiet times in a daemon that is killed and rolled back in the middle of a window, and reads its events again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from detector.config.settings import load_settings
from detector.service.daemon import Daemon
from detector.service.factory import build_daemon

STREAMS = "a/x", "b/x"
ROWS, SPIKES, STEP = 600, (300, 450), 60  # both streams are far out at five o'clock and at half past seven
IN_THE_WINDOW = 302  # row
SETTINGS = """
[calendars.backups]
cron = "50 5 * * *"
duration_seconds = 1800
timezone = "Europe/Berlin"

[[rules]]
name = "backed-up"
streams = ["a/*"]
quiet = ["backups"]
"""  # Berlin is an hour ahead


@contextmanager
def started(folder: Path, name: str, *, orderly: bool = True) -> Iterator[Daemon]:
    """Start a daemon on the streams' events; where its end is not orderly, it saves nothing more."""
    values = np.random.default_rng(3).normal(size=(ROWS, len(STREAMS)))
    for nth, row in enumerate(SPIKES):
        values[row : row + 3] += 40.0 * 3**nth
    events = (
        {"stream": stream, "timestamp": row * STEP, "value": float(values[row, k])}
        for row in range(ROWS)
        for k, stream in enumerate(STREAMS)
    )
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    (folder / "longwatch.toml").write_text(SETTINGS)
    settings = {
        "source.type": "file",
        "source.paths": folder / "events.jsonl",
        "source.max_poll_records": 7,
        "state.directory": folder / name,
        "state.checkpoint_interval_seconds": 3600,
        "output.scores_file": folder / f"{name}.scores.jsonl",
        "output.alerts_file": folder / f"{name}.alerts.jsonl",
        "compute.device": "cpu",
        "training.enabled": "false",
        "http.port": 0,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    daemon = build_daemon(load_settings(folder / "longwatch.toml", {}, overrides))
    try:
        daemon.startup()
        yield daemon
    finally:
        daemon.shutdown(orderly=orderly)


def read_until(daemon: Daemon, row: int = ROWS) -> None:
    while not daemon.source.finished() and sum(daemon.checkpointer.offsets.values()) < row * len(STREAMS):
        daemon.tick()


def outcome(folder: Path, name: str) -> list[bytes]:
    return [(folder / f"{name}.{what}.jsonl").read_bytes() for what in ("scores", "alerts")]


@pytest.fixture
def undisturbed(tmp_path: Path) -> list[bytes]:
    with started(tmp_path, "undisturbed") as daemon:
        read_until(daemon)
    return outcome(tmp_path, "undisturbed")


def test_no_alert_begins_in_a_window_by_the_events_time(undisturbed: list[bytes]) -> None:
    alerts = [json.loads(line) for line in undisturbed[1].splitlines()]
    assert {(alert["stream"], alert["started_at"]) for alert in alerts} == {
        ("a/x", "1970-01-01T07:30:00Z"),
        ("b/x", "1970-01-01T05:00:00Z"),
        ("b/x", "1970-01-01T07:30:00Z"),
    }


@pytest.mark.parametrize("saved", [True, False])
def test_killed_in_a_window_the_daemon_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, undisturbed: list[bytes], saved: bool
) -> None:
    with started(tmp_path, "killed", orderly=False) as daemon:
        read_until(daemon, IN_THE_WINDOW - 1)
        if saved:
            assert daemon.checkpointer.commit()
        read_until(daemon, IN_THE_WINDOW + 2)
        daemon.sinks.flush()
    with started(tmp_path, "killed") as daemon:
        assert (sum(daemon.checkpointer.offsets.values()) > 0) == saved
        read_until(daemon)
    assert outcome(tmp_path, "killed") == undisturbed


def test_rolled_back_in_a_window_the_daemon_finds_the_same(tmp_path: Path, undisturbed: list[bytes]) -> None:
    with started(tmp_path, "back") as daemon:
        read_until(daemon, IN_THE_WINDOW - 1)
        assert daemon.checkpointer.commit()
        read_until(daemon, IN_THE_WINDOW + 30)
        daemon.checkpointer.roll_back(RuntimeError("a test"))
        daemon.feedback.rolled_back()
        read_until(daemon)
    assert outcome(tmp_path, "back") == undisturbed
