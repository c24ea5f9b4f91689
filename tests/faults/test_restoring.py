"""States come back from the changelog."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import zstandard
from kafka.admin import ConfigResource

from connectors.batches import Partition
from connectors.kafka.changelog_format import compressed, part_bytes, state_records
from connectors.kafka.errors import KafkaConnectorError
from detector.checkpointing.state_directory import DATABASE
from detector.state.former import TAKEN_OVER, incident_of
from tests.daemon.support import until
from tests.faults.changelogs import FORMER_LAYOUT, World, warned
from tests.golden.make_golden import GONE

pytestmark = pytest.mark.kafka
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "format-2"  # of a former version


def test_a_new_group_begins_with_a_changelog_of_the_right_settings(world: World) -> None:
    store = world.store()
    restored = world.restore(store, 0, 1)
    assert all(one.source_offset is None and one.empty for one in restored.values())
    found = world.admin().describe_configs([ConfigResource("TOPIC", world.changelog)], config_filter="all")
    assert found["topic"][world.changelog]["cleanup.policy"]["value"] == "compact"


def test_states_and_their_offset_are_those_that_were_last_committed(world: World) -> None:
    world.make_changelog()
    writer = world.writer()
    world.write({"a": b"a1", "b": b"b1", "gone": b"x"}, 10, writer=writer)
    world.write({"a": b"a2", "gone": None}, 20, writer=writer)
    world.write({"a": b"a3"}, 30, writer=writer, commit=False)
    writer.close()  # gives the open transaction up
    store = world.store()
    restored = world.restore(store)
    assert restored[0].source_offset == 20
    assert store.load(["a", "b", "gone"]) == [b"a2", b"b1", None]


def test_states_in_the_local_store_are_not_read_again(world: World) -> None:
    world.make_changelog()
    writer = world.writer()
    world.write({"a": b"a1", "b": b"b1"}, 10, writer=writer)
    store = world.store()
    assert world.restore(store)[0].streams == 2
    assert world.restore(store)[0].streams == 0
    world.write({"b": b"b2"}, 20, writer=writer)
    restored = world.restore(store)
    assert (restored[0].streams, restored[0].source_offset) == (1, 20)
    assert store.load(["a", "b"]) == [b"a1", b"b2"]


def test_a_dead_workers_open_transaction_is_aborted_not_waited_for(world: World) -> None:
    world.make_changelog()
    dead = world.writer("dead")
    world.write({"a": b"a1"}, 10, writer=dead)
    world.write({"a": b"a2"}, 20, writer=dead, commit=False)
    assert world.restore(store := world.store())[0].source_offset == 10  # its time-out is 900 s
    assert store.load(["a"]) == [b"a1"]
    with pytest.raises(KafkaConnectorError, match="transaction"):
        world.write({"a": b"a3"}, 30, writer=dead)


def test_a_partition_revoked_during_its_restore_is_restored_completely_later(world: World) -> None:
    world.make_changelog()
    writer = world.writer()
    for turn in range(6):
        world.write({f"s{turn}-{n}": bytes(20_000) for n in range(200)}, turn + 1, writer=writer)
    store = world.store()
    recovery = world.recovery(store)
    world.restore(store, 1, recovery=recovery)  # it is connected, so that what follows meets it at work
    for turn in range(5):
        recovery.restore(world.partitions)
        time.sleep(0.05 * turn)
        recovery.revoke(world.partitions[:1])
    assert world.partitions[0] not in [restored.partition for restored in recovery.finished()]
    restored = world.restore(store, 0, recovery=recovery)
    assert restored[0].source_offset == 6
    assert store.row_count(world.partitions[0]) == 1_200


def test_a_standby_has_already_restored_what_it_takes_over(world: World) -> None:
    world.make_changelog()
    writer = world.writer()
    world.write({f"s{n}": b"row" for n in range(300)}, 10, writer=writer)
    store = world.store()
    recovery = world.recovery(store, standby=True)
    until(lambda: recovery.standby_ready and store.row_count(world.partitions[0]) == 300, "the standby has caught up")
    world.write({"s1": b"new"}, 20, writer=writer)
    until(lambda: store.positions()[world.partitions[0]].source_offset == 20, "it follows")
    restored = world.restore(store, 0, recovery=recovery)
    assert restored[0].streams == 0
    assert store.load(["s1"]) == [b"new"]


def test_a_large_state_is_split_to_fit_the_changelogs_limit(world: World) -> None:
    world.make_changelog(**{"max.message.bytes": "10000"})
    rows = {"wide" * 1_000: os.urandom(200_000), "next": b"small"}
    writer, source = world.writer(), world.partitions[0]
    parts = [
        record
        for name, row in rows.items()
        for record in state_records(name, source, 10, compressed(row), part_bytes(10_000))
    ]
    assert len(parts) > 40
    for key, value in parts:
        writer.send(world.changelog, key, value, None, 0)
    world.write({}, 10, writer=writer)
    store = world.store()
    assert world.restore(store)[0].source_offset == 10
    assert store.load(list(rows)) == list(rows.values())


def test_new_source_partitions_get_changelog_partitions(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.make_changelog()
    world.write({"a": b"a1"}, 10)
    store = world.store()
    recovery = world.recovery(store)
    world.restore(store, 0, recovery=recovery)
    world.admin().create_partitions({world.topic: 5})
    world.partitions.append(Partition(world.topic, 4))
    restored = world.restore(store, 2, recovery=recovery)
    assert restored[4].empty
    assert warned(caplog, f"topic {world.topic} has 5 partitions now, 2 before")


def test_a_changelog_of_the_former_layout_is_read(world: World) -> None:
    writer = world.writer()
    world.make_changelog()
    world.write({"a": b"1"}, 5, layout=FORMER_LAYOUT, writer=writer)
    world.write({"b": b"2"}, 7, writer=writer)
    store = world.store()

    assert world.restore(store)[0].source_offset == 7
    assert store.load(["a", "b"]) == [b"1", b"2"]


def test_that_the_scores_of_a_former_changelog_begin_anew_is_said_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """However many partitions and checkpoints it has, and not again at the next start."""

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if TAKEN_OVER in record.getMessage()]

    writer = world.writer()
    world.make_changelog()
    for offset in (5, 6):
        for partition in (0, 1):
            world.write({f"s{partition}": b"1"}, offset, partition=partition, layout=FORMER_LAYOUT, writer=writer)
    store = world.store()
    world.restore(store, 0, 1)
    assert len(said()) == 1
    assert f"changelog {world.changelog}: its states were written by longwatch 0.0.9 in a former layout" in said()[0]

    for partition in (0, 1):
        world.write({f"s{partition}": b"2"}, 7, partition=partition, writer=writer)
    world.restore(store, 0, 1)
    assert len(said()) == 1, said()


@pytest.mark.parametrize("reported", [True, False], ids=["as this version tells it", "as the former version left it"])
def test_open_incidents_are_restored_without_loading_their_streams(world: World, reported: bool) -> None:
    rows: dict[str, bytes | None] = {}
    for file in ("state", "incident"):
        (world.folder / file).mkdir()
        (world.folder / file / DATABASE).write_bytes(zstandard.decompress((GOLDEN / f"{file}.db.zst").read_bytes()))
        golden = world.store(file)
        rows |= dict(zip(golden.unassigned(), golden.load(golden.unassigned()), strict=True))
    writer, source = world.writer(), world.partitions[0]
    world.make_changelog()
    for name, row in rows.items():
        assert row is not None
        for key, value in state_records(name, source, 9, compressed(row), incident=incident_of(row) is not None):
            writer.send(world.changelog, key, value if reported else value[:7] + b"\0" + value[8:], None, 0)
    world.write({}, 9, writer=writer)
    store = world.store()

    world.restore(store)

    assert len(rows) == 4
    assert store.open_incidents(source).keys() == store.open_incidents().keys() == {GONE}
    store.clear(source)
    assert store.open_incidents() == {}
