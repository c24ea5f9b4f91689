"""Three workers that are killed, stopped and started again while events come: each event is scored once, and rightly.

The long form, `LONGWATCH_FAULTS=1 pytest tests/faults -m faults`, has 200,000 events and 100 kills.
"""

from __future__ import annotations

import random
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.brokers import Broker
from tests.daemon.fleet import make_fleet
from tests.daemon.receiver import Receiver
from tests.daemon.support import until
from tests.faults.support import (
    SESSION,
    Stream,
    Topics,
    Undisturbed,
    assert_once,
    assert_same_alerts,
    scored_events,
    webhook_ids,
)
from tests.faults.workers import Workers


@dataclass(frozen=True)
class Size:
    streams: int
    rows: int
    kills: int
    burst: int  # of these in quick succession, once in the middle
    rejoins: int  # times that a worker stops in order and comes back later
    sleeps: int  # times that a worker is suspended beyond its session, then resumed
    tells: int  # times that settings are read again and streams muted
    patience: float  # s, for the last events


SHORT = Size(streams=12, rows=600, kills=3, burst=2, rejoins=1, sleeps=0, tells=2, patience=300.0)
LONG = Size(streams=40, rows=5_000, kills=100, burst=20, rejoins=12, sleeps=8, tells=20, patience=600.0)


@pytest.mark.kafka
def test_kills_neither_lose_nor_duplicate_an_event(
    tmp_path: Path, apache: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    chaos(SHORT, tmp_path, apache, capsys)


@pytest.mark.kafka
@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_100_kills_neither_lose_nor_duplicate_one_of_200_000_events(
    tmp_path: Path, apache: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    chaos(LONG, tmp_path, apache, capsys)


def chaos(size: Size, folder: Path, broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(11)
    fleet = make_fleet(streams=size.streams, rows=size.rows, seed=7)
    began = time.monotonic()
    with Receiver() as receiver:
        topics = Topics(broker, folder, uuid.uuid4().hex[:8], receiver)
        deeds = ["kill"] * (size.kills - size.burst) + ["rejoin"] * size.rejoins + ["sleep"] * size.sleeps
        deeds += ["tell"] * size.tells
        rng.shuffle(deeds)
        deeds[len(deeds) // 2 : len(deeds) // 2] = ["burst"] * size.burst
        with Stream(topics, fleet) as stream, Workers(topics) as workers:
            for name in "abc":
                workers.start(name)
            stream.until(stream.total * 0.1)
            until(lambda: scored_events(topics) > 0, "a first commit")
            for number, deed in enumerate(deeds, 1):
                stream.until(stream.total * (0.1 + 0.85 * number / len(deeds)))
                name = rng.choice(sorted(workers.running))
                if deed == "rejoin":
                    workers.leave(name)
                    time.sleep(rng.uniform(0, 4 if size is LONG else 1))
                    workers.start(name)
                elif deed == "sleep":
                    workers.sleep(name)
                elif deed == "tell":
                    workers.tell(name)
                else:
                    workers.kill(name)
                # a start takes some seconds: long pauses kill workers that score, short ones such as just begin
                pauses = [0.5, 2.0, 6.0, 12.0] if size is LONG else [0.5, 2.0]
                time.sleep(rng.uniform(0.1, 1.0) if deed == "burst" else rng.choice(pauses))
            stream.finish()
            done(topics, stream.total, size.patience, workers)
            reported = topics.alerted()
            wanted = webhook_ids(reported)
            until(lambda: wanted <= set(receiver.ids), "every alert is delivered")
            workers.stop()
        delivered = list(receiver.taken)
        assert not receiver.refused
    took = time.monotonic() - began
    found, reported = topics.scored(), topics.alerted()  # once more: nobody writes now
    undisturbed = Undisturbed(folder, fleet)
    most = assert_once(found, undisturbed.scores(topics))
    assert reported, "there must be alerts to lose"
    assert min(workers.muted, workers.reloaded) > 0, "some of what was told was done"
    assert_same_alerts(reported, undisturbed.alerts(topics))
    assert {d.id for d in delivered} == webhook_ids(undisturbed.alerts(topics)), "webhooks, by id"
    again = len(delivered) - len({d.id for d in delivered})
    with capsys.disabled():
        print(
            f"\n  {size.kills} kills -9 ({size.burst} of them in a burst), {size.rejoins} leaves and joins,"
            f" {size.sleeps} sleeps of {SESSION + 3:.0f} s,"
            f" {size.tells} times told ({workers.muted} mutes, {workers.reloaded} reloads),"
            f" {took / 60:.1f} minutes: {len(found):,} events, 0 lost, 0 twice, largest score difference {most:.1e};"
            f" {len(reported)} alerts, once each; {len(delivered)} webhooks, {again} of them again under the same id"
        )


def done(topics: Topics, events: int, seconds: float, workers: Workers) -> None:
    """Wait until everything is committed; a worker that has ended by itself fails the test."""
    deadline = time.monotonic() + seconds
    while (count := scored_events(topics)) < events:
        for name, worker in workers.running.items():
            if worker.process.poll() is not None:
                worker.fail(f"worker {name} ended by itself with {worker.process.returncode}")
        if time.monotonic() > deadline:
            tails = "\n".join(f"--- {n}\n" + "\n".join(w.log.splitlines()[-12:]) for n, w in workers.running.items())
            pytest.fail(f"{count} of {events} events committed after {seconds:.0f} s\n{tails}")
        time.sleep(0.3)
