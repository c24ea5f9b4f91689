"""Killed with -9 at any moment, the daemon resumes as if it had never stopped: a file and a topic, seven kills each.

The undisturbed run that all is compared with reads as fast as it can, so its batches are cut elsewhere, too.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from connectors.notify.courier import MAX_TOGETHER
from detector.checkpointing.store import SqliteStore
from detector.history.columns import Columns, joined
from detector.history.store import HistoryStore, Kept
from tests.brokers import Broker
from tests.daemon.fleet import STEP, make_fleet
from tests.daemon.receiver import SECRET, Receiver
from tests.daemon.records import Record, alerts_by_id, by_place, difference, open_producer, read_lines, read_topic
from tests.daemon.support import PATIENCE, EndedError, Longwatch, Samples, until

FLEET = make_fleet(streams=12, rows=800, seed=5)
EVENTS = 12 * 800
PARTITIONS = 4

SCORED = "events_scored_total"
CHECKPOINTS = "checkpoint_seconds_count"

# What is waited for before each kill
MOMENTS = (
    "before its first checkpoint",  # everything since the start is lost, and what has been written must be taken back
    "as it starts",
    "anywhere",  # after as many events of this life as chance says
    "as it saves",  # between the parts of a checkpoint
    "after its first checkpoint",
    "as it restores",
    "anywhere",
)
SHARE = 0.02, 0.12  # of all events, in one life: so seven lives never come to the end


def kill(
    daemon: Longwatch, moment: str, written: Path, least: float, new_scores: Callable[[], bool] = lambda: True
) -> None:
    """Wait for the moment and send SIGKILL. `written` changes within a checkpoint; `least` events come before.

    Where there has been no checkpoint, `new_scores` says whether scores are out that no checkpoint covers.
    """
    if moment == "as it starts":
        daemon.line("state directory .*: ")
    elif moment == "as it restores":
        daemon.line("longwatch .* resumed")
    elif moment == "as it saves":
        daemon.line("running on")
        before = written.stat().st_mtime_ns
        until(lambda: written.stat().st_mtime_ns != before, "a checkpoint begins", every=0.0005)
    elif moment == "after its first checkpoint":
        daemon.work_until(lambda found: found(CHECKPOINTS) > 1, "a checkpoint after the empty one at the start")
    else:
        daemon.work_until(lambda found: found(SCORED) >= least, f"{least:.0f} events scored")
        until(new_scores, "scores are out", every=0.2)
    daemon.kill()


def scored_beyond(directory: Path, records: Sequence[Any]) -> set[tuple[str, int, int]]:
    """Return the events that have a score and lie beyond the last checkpoint in a dead daemon's directory."""
    with closing(SqliteStore(directory)) as store:
        meta = store.meta()
    committed = {(topic, number): at for topic, number, at in meta["offsets"]} if meta else {}
    return {
        place for place in by_place([json.loads(r.value) for r in records]) if place[2] >= committed.get(place[:2], 0)
    }


def settings_of(moment: str) -> dict[str, Any]:
    """Return how often to save in a life that ends at this moment."""
    if moment == "before its first checkpoint":  # nor one that a rebalance asks for, should this machine be slow
        return {"state.checkpoint_interval_seconds": 600, "kafka.session_timeout_seconds": 10}
    return {"state.checkpoint_interval_seconds": 0.2}


class Trickle:
    """Writes the fleet's events to a topic, keyed by stream, little by little up to where it may."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self._producer = open_producer(broker)
        self._topic = topic
        self._target = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._producer.close(timeout=PATIENCE)

    def until(self, events: int) -> None:
        """Let it write until the topic holds so many; returns at once."""
        self._target = events

    def finish(self) -> None:
        """Return when the topic holds all events."""
        self.until(EVENTS)
        self._thread.join(PATIENCE)
        self._producer.flush(timeout=PATIENCE)

    def _run(self) -> None:
        for number, (stream, record) in enumerate(FLEET.records()):
            while number >= self._target or number % 12 == 0:
                if self._ended.wait(0.01):
                    return
                if number < self._target:
                    break
            self._producer.send(self._topic, record, FLEET.names[stream].encode(), partition=stream % PARTITIONS)


def at_end(found: Samples) -> bool:
    """Whether everything in the topic has been read."""
    lags = found.by("consumer_lag", "partition")
    return len(lags) == PARTITIONS and not any(lags.values())


def assert_same_scores(found: Sequence[Record], expected: Sequence[Record]) -> int:
    """Check that each event's scores are the undisturbed run's; return how many were written again."""
    places, wanted = by_place(found), by_place(expected)
    missing = sorted(wanted.keys() - places.keys())
    assert not missing, f"{len(missing)} events were never scored, the first {missing[0]}"
    assert places.keys() == wanted.keys()
    for place, records in places.items():
        for record in records:
            assert not (reported := difference(record, wanted[place][0])), f"{place}: {reported}"
    return len(found) - len(places)


def assert_same_alerts(found: Sequence[Record], expected: Sequence[Record]) -> None:
    """Check that the alerts are the same, by id and in content."""
    mine, wanted = alerts_by_id(found), alerts_by_id(expected)
    assert len(wanted) > 10, "there must be alerts to lose"
    assert mine.keys() == wanted.keys()
    for name, record in mine.items():
        assert not (reported := difference(record, wanted[name])), f"{name}: {reported}"


def surroundings_in(directory: Path) -> dict[str, tuple[Kept, Columns]]:
    """Return what a dead daemon has kept of each alert."""
    with closing(HistoryStore(directory, read_only=True)) as store:
        found = [store.surroundings(kept.id) for kept in store.alerts(1_000)]
    return {one.alert.id: (one.alert, joined(one.decoded()[0])) for one in found if one is not None}


def assert_same_surroundings(mine: Path, undisturbed: Path) -> None:
    """Check that each alert has each event that followed once and as it was scored; what was before may be shorter."""
    found, wanted = surroundings_in(mine), surroundings_in(undisturbed)
    assert found.keys() == wanted.keys()
    for name, (kept, columns) in found.items():
        expected, all_of_it = wanted[name]
        assert kept._replace(written=0.0, last={}) == expected._replace(written=0.0, last={})
        time = columns.values["time"]
        assert (np.diff(time) > 0).all(), f"{name}: an event is there twice"
        since, of = np.searchsorted(time, kept.started_at), np.searchsorted(all_of_it.values["time"], kept.started_at)
        assert since > min(of, 100), "what the kill took from memory is restored from the stream's own window"
        for part in ("time", "score", "threshold", "channel", "alert"):
            assert np.array_equal(columns.values[part][since:], all_of_it.values[part][of:], equal_nan=True), part


def test_kills_do_not_change_a_files_scores_and_each_event_is_scored_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = tmp_path / "events.jsonl"
    events.write_bytes(b"".join(record + b"\n" for _, record in FLEET.records()))

    def settings(name: str) -> dict[str, Any]:
        return {
            "source.type": "file",
            "source.paths": [str(events)],
            "state.directory": str(tmp_path / name),
            "training.enabled": False,
            "output.scores_file": str(tmp_path / f"{name}-scores.jsonl"),
            "output.alerts_file": str(tmp_path / f"{name}-alerts.jsonl"),
        }

    with Longwatch(tmp_path, settings("undisturbed")) as daemon:
        assert daemon.wait() == 0

    rng = random.Random(1)
    slow = {"source.speed": FLEET.rows * STEP / 8.0, "source.max_poll_records": 200}  # 8 s of work in all
    for moment in MOMENTS:
        with Longwatch(tmp_path, settings("killed") | slow | settings_of(moment)) as daemon:
            # so many that the sinks' buffers overflow, and part of what is lost stands in the files already
            least = 0.35 if moment == "before its first checkpoint" else rng.uniform(*SHARE)
            kill(daemon, moment, tmp_path / "killed-scores.jsonl", least * EVENTS)
    with Longwatch(tmp_path, settings("killed") | slow) as daemon:
        left = daemon.work_until(lambda found: found(SCORED) > 0, "a first score")
        try:
            daemon.work_until(lambda _: False, "the end of the file")
        except EndedError:
            assert daemon.wait() == 0
    assert left(SCORED) < EVENTS / 2

    scores = read_lines(tmp_path / "killed-scores.jsonl")
    repeated = assert_same_scores(scores, read_lines(tmp_path / "undisturbed-scores.jsonl"))
    assert repeated == 0
    assert [record["offset"] for record in scores] == list(range(EVENTS)), "in the file's order, each once"
    alerts = read_lines(tmp_path / "killed-alerts.jsonl")
    assert_same_alerts(alerts, read_lines(tmp_path / "undisturbed-alerts.jsonl"))
    assert len(alerts) == len(alerts_by_id(alerts)), "each reported once"
    assert_same_surroundings(tmp_path / "killed", tmp_path / "undisturbed")
    with capsys.disabled():
        print(
            f"\n  {len(MOMENTS)} kills: {len(scores)} events scored once each, {len(alerts)} alerts reported once each"
        )


@pytest.mark.kafka
def test_kills_do_not_change_a_topics_scores_and_each_alert_has_one_id(
    tmp_path: Path, broker: Broker, topic: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    events, scores, alerts = topic(partitions=PARTITIONS), topic(prefix="scores"), topic(prefix="alerts")
    # a static member resumes at once; without one the group waits for the dead one's session to end
    member = {} if broker.kind == "tansu" else {"kafka.group_instance_id": "worker-0"}

    def settings(name: str, receiver: Receiver) -> dict[str, Any]:
        return {
            "kafka.bootstrap_servers": broker.bootstrap,
            "kafka.topics": [events],
            "kafka.group_id": f"{name}-{events}",
            "kafka.session_timeout_seconds": 3 if broker.kind == "tansu" else 10,
            "kafka.alerts_topic": "",
            "kafka.dead_letter_topic": "",
            "state.directory": str(tmp_path / name),
            "training.enabled": False,
            "receivers.hook.url": receiver.url,
            "receivers.hook.tell": "alerts",
            "receivers.hook.secret": SECRET,
            "receivers.hook.allowed_hosts": ["127.0.0.1"],
        }

    rng = random.Random(2)
    slice_, uncommitted = EVENTS // (len(MOMENTS) + 1), set()
    with Receiver() as receiver, Trickle(broker, events) as trickle:
        killed = settings("killed", receiver) | member | {"kafka.scores_topic": scores, "kafka.alerts_topic": alerts}
        for number, moment in enumerate(MOMENTS):
            backlog = number % 3 == 2  # else the events come while it works
            if backlog:
                trickle.until((number + 1) * slice_)
            written, least = len(read_topic(broker, scores)), rng.uniform(*SHARE) * EVENTS

            def new_scores(written: int = written) -> bool:
                return len(read_topic(broker, scores)) > written

            with Longwatch(tmp_path, killed | settings_of(moment)) as daemon:
                if not moment.startswith("as it"):
                    daemon.line("Connected to Kafka")
                trickle.until((number + 1) * slice_)
                kill(daemon, moment, tmp_path / "killed" / "state.db-wal", least, new_scores)
            uncommitted |= scored_beyond(tmp_path / "killed", read_topic(broker, scores))
        trickle.finish()
        with Longwatch(tmp_path, killed) as daemon:
            daemon.work_until(at_end, "all that the topic holds is scored")
            daemon.work_until(lambda found: found("outbox_pending", receiver="hook") == 0, "all alerts are delivered")
            assert daemon.terminate()[0] == 0
        delivered = list(receiver.taken)
        assert not receiver.refused

    with Receiver() as quiet:
        whole = {
            "output.scores_file": str(tmp_path / "scores.jsonl"),
            "output.alerts_file": str(tmp_path / "alerts.jsonl"),
        }
        with Longwatch(tmp_path, settings("undisturbed", quiet) | whole) as daemon:
            daemon.work_until(lambda found: found(SCORED) == EVENTS, "all events are scored")
            daemon.work_until(lambda found: found("outbox_pending", receiver="hook") == 0, "all alerts are delivered")
            assert daemon.terminate()[0] == 0

    found = [json.loads(record.value) for record in read_topic(broker, scores)]
    repeated = assert_same_scores(found, read_lines(tmp_path / "scores.jsonl"))
    assert repeated >= len(uncommitted), "what no checkpoint covered at a kill is scored again"

    reported = [json.loads(record.value) for record in read_topic(broker, alerts)]
    assert_same_alerts(reported, read_lines(tmp_path / "alerts.jsonl"))
    assert_same_alerts([delivery.alert for delivery in delivered], reported)
    assert set(quiet.ids) == {delivery.id for delivery in delivered}
    assert len(quiet.ids) == len(set(quiet.ids)), "an undisturbed daemon delivers each alert once"
    bodies = {delivery.id: delivery.body for delivery in delivered}
    assert all(bodies[delivery.id] == delivery.body for delivery in delivered), "a repeat is the same message"
    again = len(delivered) - len(bodies)
    assert again <= len(MOMENTS) * MAX_TOGETHER, "what was on its way, or not noted yet, at a kill is sent again"
    with capsys.disabled():
        print(
            f"\n  {len(MOMENTS)} kills: {EVENTS} events scored, {repeated} of them again and equally; "
            f"{len(bodies)} alerts, {again} delivered again under the same id"
        )
