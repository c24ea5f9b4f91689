"""How long it takes until a killed worker's partitions are scored again, and how fast states come back."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaConsumer, TopicPartition

from tests.brokers import Broker
from tests.daemon.fleet import make_fleet
from tests.daemon.support import until
from tests.faults.changelogs import World
from tests.faults.support import PARTITIONS, Stream, Topics

pytestmark = pytest.mark.kafka

FLEET = make_fleet(streams=40, rows=400, seed=9)
SESSION = 3.0  # s; a worker that is not heard of for so long is gone


class Watch:
    """Sees which partitions have moved on since it was started: what is committed is scored."""

    def __init__(self, topics: Topics) -> None:
        group = f"group-{topics.name}"
        self._consumer = KafkaConsumer(bootstrap_servers=topics.broker.bootstrap, group_id=group)
        self._partitions = [TopicPartition(topics.events, number) for number in range(PARTITIONS)]
        self._began, self._first = time.monotonic(), self._offsets()

    def _offsets(self) -> list[int]:
        return [self._consumer.committed(partition) or 0 for partition in self._partitions]

    def all_moved_on(self) -> float:
        """Return after how long every partition had."""
        try:
            until(
                lambda: all(a > b for a, b in zip(self._offsets(), self._first, strict=True)),
                "every partition is scored again",
                every=0.05,
            )
            return time.monotonic() - self._began
        finally:
            self._consumer.close(autocommit=False)


def drip(stream: Stream, share: float) -> None:
    """Let events come, a few at a time, so that every partition always has some."""
    stream.until(stream.total * share)


@pytest.mark.parametrize(
    "standby", [pytest.param(False, id="cold", marks=pytest.mark.faults), pytest.param(True, id="standby")]
)
def test_another_worker_takes_over_from_a_killed_one(
    apache: Broker, tmp_path: Path, standby: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    topics = Topics(apache, tmp_path, uuid.uuid4().hex[:8])
    more = {"kafka__session_timeout_seconds": SESSION, "state__standby": standby}
    with Stream(topics, FLEET) as stream, topics.worker("a", **more) as first:
        drip(stream, 0.3)
        first.line("reading from offset")
        with topics.worker("b", **more) as second:
            second.line("reading from offset")
            drip(stream, 0.5)
            time.sleep(1.5)
            first.kill()
            watch = Watch(topics)
            drip(stream, 0.9)
            took = watch.all_moved_on()
            assert second.terminate()[0] == 0
    with capsys.disabled():
        how = "standby" if standby else "cold"
        print(f"\n  {how}: scored again {took:.1f} s after the kill, {SESSION:.0f} s of them until the group knew")


@pytest.mark.faults
def test_a_restarted_worker_with_the_same_name_resumes_its_partitions(
    apache: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topics = Topics(apache, tmp_path, uuid.uuid4().hex[:8])
    more = {"kafka__group_instance_id": "a"}
    with Stream(topics, FLEET) as stream:
        with topics.worker("a", **more) as first:
            drip(stream, 0.3)
            first.line("reading from offset")
            drip(stream, 0.5)
            time.sleep(1.5)
            first.kill()
        watch = Watch(topics)
        drip(stream, 0.9)
        began = time.monotonic()
        with topics.worker("a", **more) as again:
            again.line("running on")
            started = time.monotonic() - began
            took = watch.all_moved_on()
            assert again.terminate()[0] == 0
    with capsys.disabled():
        print(
            f"\n  restarted: scored again {took:.1f} s after the kill, {started:.1f} s of them the program's own start"
        )


def test_thousands_of_states_are_restored(apache: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(apache, tmp_path)
    try:
        world.make_changelog()
        rng = np.random.default_rng(0)
        # as large as a stream of one feature, and as compressible: 31 KB to 9
        body = rng.integers(0, 256, 9_000, np.uint8).tobytes() + bytes(22_000)
        writer = world.writer()
        for turn in range(4):
            states: dict[str, bytes | None] = {f"{turn}-{n}": n.to_bytes(4, "big") + body for n in range(1_000)}
            world.write(states, turn, writer=writer)
        restored = world.restore(store := world.store())[0]
        assert store.row_count(world.partitions[0]) == restored.streams == 4_000
        rate = restored.streams / restored.seconds
        with capsys.disabled():
            print(f"\n  {restored.streams} states of 31 KB restored in {restored.seconds:.1f} s: {rate:,.0f}/s")
    finally:
        world.close()
