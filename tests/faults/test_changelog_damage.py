"""Changelogs that are empty, truncated, damaged or of another longwatch: what is lost is said in one line."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import PolicyViolationError

from connectors.kafka.changelog_format import compressed, state_records
from connectors.kafka.errors import KafkaConnectorError
from detector.checkpointing.recovery import ADOPTED
from detector.checkpointing.store import PartitionPosition, PartitionRow
from detector.errors import StateError
from tests.daemon.support import PATIENCE, until
from tests.faults.changelogs import World, warned

pytestmark = pytest.mark.kafka


def test_an_empty_changelog_keeps_the_local_states(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.make_changelog()
    world.write({"a": b"a1"}, 10)
    store = world.store()
    world.restore(store)
    world.admin().delete_topics([world.changelog])
    restored = world.restore(store)
    assert (restored[0].empty, restored[0].source_offset) == (True, 10)
    assert store.load(["a"]) == [b"a1"]


@pytest.mark.parametrize("had", ["nothing", "a time before the changelog", "another changelog"])
def test_a_changelog_of_aborted_transactions_only_counts_as_empty(
    world: World, caplog: pytest.LogCaptureFixture, had: str
) -> None:
    store = world.store()
    world.make_changelog()
    if had == "another changelog":
        world.write({"a": b"a1"}, 10)
        world.restore(store)
        world.admin().delete_topics([world.changelog])
        until(lambda: world.changelog not in world.admin().list_topics(), "the topic is gone")
        world.make_changelog()
    elif had == "a time before the changelog":
        store.save_partitions(
            {world.partitions[0]: [PartitionRow("a", compressed(b"a1"))]},
            {world.partitions[0]: PartitionPosition(ADOPTED, 0, 7)},
        )
    writer = world.writer("aborted")
    world.write({"b": b"b1"}, 20, writer=writer, commit=False)
    writer.close()
    restored = world.restore(store)[0]
    offset = {"nothing": None, "a time before the changelog": 7, "another changelog": 10}[had]
    assert (restored.empty, restored.source_offset, restored.streams) == (True, offset, 0)
    assert store.load(["a", "b"]) == [None if had == "nothing" else b"a1", None]
    assert not warned(caplog, "truncated")
    assert not warned(caplog, "rebuilding the local copy")


def test_a_recreated_changelog_replaces_the_local_cache(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.make_changelog()
    writer = world.writer()
    world.write({"a": b"a1", "b": b"b1"}, 10, writer=writer)
    store = world.store()
    world.restore(store)
    admin = world.admin()
    admin.delete_topics([world.changelog])
    until(lambda: world.changelog not in admin.list_topics(), "the topic is gone")
    world.make_changelog()
    world.write({f"n{k}": b"n" for k in range(9)}, 5, writer=world.writer("other"))
    assert world.restore(store)[0].source_offset == 5
    assert store.load(["a", "n1"]) == [None, b"n"]
    assert warned(caplog, "is not the one that the local store is a copy of")


def test_a_truncated_changelog_is_logged_with_how_much_is_missing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.make_changelog()
    world.write({"a": b"a1", "b": b"b1", "c": b"c1"}, 10, streams=3)
    admin = world.admin()

    def set_policy(policy: str) -> None:
        """Set it and see it: a broker applies settings later."""
        topic = ConfigResource("TOPIC", world.changelog, {"cleanup.policy": policy})
        admin.alter_configs([topic])
        described = partial(admin.describe_configs, [topic])
        until(lambda: described()["topic"][world.changelog]["cleanup.policy"]["value"] == policy, "it is set")

    def deleted() -> bool:
        with contextlib.suppress(PolicyViolationError):
            return bool(admin.delete_records({TopicPartition(world.changelog, 0): 2}))
        return False

    set_policy("compact,delete")
    until(deleted, "the oldest records are deleted")
    set_policy("compact")
    assert world.restore(world.store())[0].source_offset == 10
    assert warned(caplog, "holds 1 states of at least 3 that were written: it has been truncated")


def test_states_without_a_mark_have_no_offset(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.make_changelog()
    world.write({"a": b"a1"}, 10, mark=False)
    assert world.restore(world.store())[0].source_offset is None
    assert warned(caplog, "does not say for which offset: it has been truncated")


def test_a_damaged_changelog_record_loses_one_stream(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.make_changelog()
    ((key, value),) = state_records("a", world.partitions[0], 5, compressed(b"a1"))
    producer = KafkaProducer(bootstrap_servers=world.broker.bootstrap)
    producer.send(world.changelog, value[:-1] + b"!", key, partition=0).get(timeout=PATIENCE)
    producer.close()
    world.write({"b": b"b1"}, 10)
    store = world.store()
    assert world.restore(store)[0].source_offset == 10
    assert store.load(["a", "b"]) == [None, b"b1"]
    assert warned(caplog, "1 records of the changelog are damaged (checksum mismatch)")


def refusal(world: World) -> str:
    recovery = world.recovery(world.store())
    recovery.restore(world.partitions[:1])
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            recovery.finished()
        except (KafkaConnectorError, StateError) as error:
            return str(error)
        time.sleep(0.05)
    return f"nothing was refused within {PATIENCE:.0f} s"


def of_another_group(world: World) -> None:
    world.make_changelog()
    world.write({}, 10, group="theirs")


def of_another_program(world: World) -> None:
    world.make_changelog()
    producer = KafkaProducer(bootstrap_servers=world.broker.bootstrap)
    producer.send(world.changelog, b'{"cpu": 3}', b"host-1", partition=0).get(timeout=PATIENCE)
    producer.close()


def of_another_version(world: World) -> None:
    world.make_changelog()
    world.write({"a": b"a1"}, 10, layout="beef")


def that_deletes(world: World) -> None:
    world.make_changelog(**{"cleanup.policy": "delete"})


def of_small_records(world: World) -> None:
    world.make_changelog(**{"max.message.bytes": "9999"})


@pytest.mark.parametrize(
    ("changelog", "said"),
    [
        (of_another_group, "is of group 'theirs', not 'group': set kafka.changelog_topic"),
        (of_another_program, "offset 0 was not written by longwatch"),
        (of_another_version, "written by longwatch 0.0.9 in layout beef, this one reads 00ff: run the same longwatch"),
        (that_deletes, "has cleanup.policy=delete, which deletes states"),
        (of_small_records, "has max.message.bytes=9999, longwatch needs 10000 or more: kafka-configs.sh"),
    ],
)
def test_an_unusable_changelog_is_a_one_line_error(world: World, changelog: Callable[[World], None], said: str) -> None:
    changelog(world)
    reported = refusal(world)
    assert said in reported
    assert "\n" not in reported


@pytest.mark.parametrize("standby", [False, True], ids=["assigned", "standby"])
def test_states_of_another_version_leave_nothing_in_the_store(world: World, standby: bool) -> None:
    of_another_version(world)
    world.write({"b": b"b1"}, 10, partition=1, layout="beef", writer=world.writer("other"))
    store = world.store()
    recovery = world.recovery(store, standby=standby)
    if not standby:
        recovery.restore(world.partitions)

    def refused() -> bool:
        try:
            recovery.finished()
        except StateError:
            return True
        return False

    until(refused, "it is refused")
    assert store.count() == 0
