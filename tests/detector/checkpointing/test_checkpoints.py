"""Checkpoints of a daemon that is driven turn by turn: what a rollback takes back, and what is scored in the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detector.config.settings import load_settings
from detector.service.daemon import Daemon
from detector.service.factory import build_daemon

EVENTS = 600


@contextmanager
def started(folder: Path, name: str) -> Iterator[Daemon]:
    """Start a daemon on a file of events, 100 at a turn, with a state directory and a file of scores of its own."""
    events = folder / "events.jsonl"
    lines = ({"stream": f"s{n % 3}", "timestamp": n // 3 * 60, "value": n * 7 % 31} for n in range(EVENTS))
    events.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    settings = {
        "source.type": "file",
        "source.paths": events,
        "source.max_poll_records": 100,
        "state.directory": folder / name,
        "output.scores_file": folder / f"{name}.jsonl",
        "compute.device": "cpu",
        "training.enabled": "false",
        "http.port": 0,
    }
    daemon = build_daemon(
        load_settings(environment={}, overrides=[f"{key}={value}" for key, value in settings.items()])
    )
    daemon.startup()
    try:
        yield daemon
    finally:
        daemon.shutdown(orderly=True)


def finish(daemon: Daemon) -> None:
    while not daemon.source.finished():
        daemon.tick()


def scored(folder: Path, name: str) -> list[bytes]:
    return (folder / f"{name}.jsonl").read_bytes().splitlines()


def test_a_rollback_takes_back_scores_offsets_and_states_since_the_last_commit(tmp_path: Path) -> None:
    with started(tmp_path, "undisturbed") as daemon:
        finish(daemon)
    with started(tmp_path, "rolled-back") as daemon:
        daemon.tick()
        assert daemon.checkpointer.commit()
        assert [*daemon.checkpointer.offsets.values()] == [100]
        daemon.tick()
        daemon.tick()
        daemon.sinks.flush()
        assert len(scored(tmp_path, "rolled-back")) == 300
        daemon.checkpointer.roll_back(RuntimeError("a fault"))
        assert [*daemon.checkpointer.offsets.values()] == [100]
        assert len(scored(tmp_path, "rolled-back")) == 100
        finish(daemon)
    assert scored(tmp_path, "rolled-back") == scored(tmp_path, "undisturbed")


def test_a_paused_source_hands_out_nothing_and_resumes_where_it_was(tmp_path: Path) -> None:
    with started(tmp_path, "paused") as daemon:
        daemon.tick()
        daemon.source.pause()
        daemon.tick()
        assert [*daemon.checkpointer.offsets.values()] == [100]
        daemon.source.resume()
        finish(daemon)
    assert len(scored(tmp_path, "paused")) == EVENTS
