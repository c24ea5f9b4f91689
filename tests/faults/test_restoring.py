"""States come back from the changelog, or it is said in one line why not: every way in which a changelog goes wrong."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, NewTopic

from connectors.batches import Partition
from connectors.kafka.changelog_format import Mark, compressed, mark_record, part_bytes, state_key, state_records
from connectors.kafka.settings import KafkaConnectorError, KafkaSettings
from connectors.kafka.transactions import TransactionalWriter
from detector.checkpointing.recovery import CLAIMED, Restored, Restorer
from detector.checkpointing.sqlite import DATABASE
from detector.checkpointing.store import Place, Placed, SqliteStore
from detector.errors import StateError
from detector.state.records import incident_of
from tests.brokers import Broker
from tests.daemon.support import PATIENCE, until
from tests.golden.make_golden import GONE

pytestmark = pytest.mark.kafka

LAYOUT, FORMER_LAYOUT = "00ff", "00fe"
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "format-2"  # of a former version


class World:
    """A source topic of two partitions, its changelog as some worker wrote it, and stores to restore to."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker, self.folder = broker, folder
        self.topic = broker.create_topic(f"events-{uuid.uuid4().hex[:10]}", 2)
        self.settings = KafkaSettings(
            bootstrap_servers=broker.bootstrap,
            topics=[self.topic],
            group_id="group",
            alerts_topic="",
            dead_letter_topic="",
            transaction_timeout_seconds=900,
        )
        self.changelog = self.settings.changelog_of(self.topic)
        self.partitions = [Partition(self.topic, 0), Partition(self.topic, 1)]
        self._open: list[Any] = []

    def writer(self, name: str = "former") -> TransactionalWriter:
        writer = TransactionalWriter(self.settings, f"longwatch-{self.topic}-{name}")
        self._open.append(writer.close)
        return writer

    def write(
        self,
        states: dict[str, bytes | None],
        offset: int,
        *,
        partition: int = 0,
        writer: TransactionalWriter | None = None,
        commit: bool = True,
        mark: bool = True,
        group: str = "group",
        layout: str = LAYOUT,
        streams: int = 0,
    ) -> None:
        """Write what a checkpoint of one partition writes."""
        writer = writer or self.writer()
        source = self.partitions[partition]
        for name, row in states.items():
            if row is None:
                writer.send(self.changelog, state_key(name), None, None, partition)
                continue
            for key, value in state_records(name, source, offset, compressed(row)):
                writer.send(self.changelog, key, value, None, partition)
        if mark:
            said = Mark(group=group, member=writer.transactional_id, layout=layout, longwatch="0.0.9", streams=streams)
            writer.send(self.changelog, *mark_record(source, offset, said), None, partition)
        writer.flush()
        if commit:
            producer = writer._producer
            assert producer is not None
            producer.commit_transaction()
            writer._began = None

    def make_changelog(self, **configs: str) -> None:
        """Make the changelog topic before longwatch does."""
        admin = self.admin()
        admin.create_topics([NewTopic(self.changelog, 2, 1, topic_configs={"cleanup.policy": "compact"} | configs)])
        admin.wait_for_topics([self.changelog])

    def admin(self) -> KafkaAdminClient:
        admin = KafkaAdminClient(bootstrap_servers=self.broker.bootstrap)
        self._open.append(admin.close)
        return admin

    def store(self, name: str = "mine") -> SqliteStore:
        store = SqliteStore(self.folder / name)
        self._open.append(store.close)
        return store

    def restorer(self, store: SqliteStore, **more: Any) -> Restorer:
        """Start one, with nothing asked for yet."""
        restorer = Restorer(self.settings, store, layouts=[LAYOUT, FORMER_LAYOUT], member="longwatch-group-me", **more)
        restorer.start()
        self._open.append(restorer.stop)
        return restorer

    def restore(self, store: SqliteStore, *partitions: int, restorer: Restorer | None = None) -> dict[int, Restored]:
        """Restore partitions, as an assignment does."""
        mine = restorer or self.restorer(store)
        wanted = [self.partitions[number] for number in partitions or (0,)]
        store.serve(wanted)
        mine.restore(wanted)
        found: dict[int, Restored] = {}

        def all_there() -> bool:
            found.update({restored.partition.partition: restored for restored in mine.finished()})
            return {partition.partition for partition in wanted} <= found.keys()  # others may be done as well

        until(all_there, "the partitions are restored")
        if restorer is None:
            mine.stop()
        return found

    def close(self) -> None:
        for close in reversed(self._open):
            close()


@pytest.fixture
def world(apache: Broker, tmp_path: Path) -> Iterator[World]:
    made = World(apache, tmp_path)
    yield made
    made.close()


def warned(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


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


def test_what_the_store_has_is_not_read_again(world: World) -> None:
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


def test_a_transaction_that_a_dead_worker_left_open_is_ended_not_waited_for(world: World) -> None:
    world.make_changelog()
    dead = world.writer("dead")
    world.write({"a": b"a1"}, 10, writer=dead)
    world.write({"a": b"a2"}, 20, writer=dead, commit=False)
    assert world.restore(store := world.store())[0].source_offset == 10  # its time-out is 900 s
    assert store.load(["a"]) == [b"a1"]
    with pytest.raises(KafkaConnectorError, match="transaction"):
        world.write({"a": b"a3"}, 30, writer=dead)


def test_a_partition_taken_away_while_it_is_restored_comes_back_whole(world: World) -> None:
    world.make_changelog()
    writer = world.writer()
    for turn in range(6):
        world.write({f"s{turn}-{n}": bytes(20_000) for n in range(200)}, turn + 1, writer=writer)
    store = world.store()
    restorer = world.restorer(store)
    world.restore(store, 1, restorer=restorer)  # it is connected, so that what follows meets it at work
    for turn in range(5):
        restorer.restore(world.partitions)
        time.sleep(0.05 * turn)
        restorer.let_go(world.partitions[:1])
    assert world.partitions[0] not in [restored.partition for restored in restorer.finished()]
    restored = world.restore(store, 0, restorer=restorer)
    assert restored[0].source_offset == 6
    assert store.held(world.partitions[0]) == 1_200


def test_a_standby_has_read_what_it_takes_over(world: World) -> None:
    world.make_changelog()
    writer = world.writer()
    world.write({f"s{n}": b"row" for n in range(300)}, 10, writer=writer)
    store = world.store()
    restorer = world.restorer(store, standby=True)
    until(lambda: restorer.caught_up and store.held(world.partitions[0]) == 300, "the standby has caught up")
    world.write({"s1": b"new"}, 20, writer=writer)
    until(lambda: store.places()[world.partitions[0]].source_offset == 20, "it follows")
    restored = world.restore(store, 0, restorer=restorer)
    assert restored[0].streams == 0
    assert store.load(["s1"]) == [b"new"]


def test_an_empty_changelog_leaves_the_stores_states_in_force(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.make_changelog()
    world.write({"a": b"a1"}, 10)
    store = world.store()
    world.restore(store)
    world.admin().delete_topics([world.changelog])
    restored = world.restore(store)
    assert (restored[0].empty, restored[0].source_offset) == (True, 10)
    assert store.load(["a"]) == [b"a1"]


@pytest.mark.parametrize("had", ["nothing", "a time before the changelog", "another changelog"])
def test_a_changelog_of_aborted_transactions_only_is_an_empty_one(
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
        store.save_placed(
            {world.partitions[0]: [Placed("a", compressed(b"a1"))]}, {world.partitions[0]: Place(CLAIMED, 0, 7)}
        )
    writer = world.writer("aborted")
    world.write({"b": b"b1"}, 20, writer=writer, commit=False)
    writer.close()
    restored = world.restore(store)[0]
    offset = {"nothing": None, "a time before the changelog": 7, "another changelog": 10}[had]
    assert (restored.empty, restored.source_offset, restored.streams) == (True, offset, 0)
    assert store.load(["a", "b"]) == [None if had == "nothing" else b"a1", None]
    assert not warned(caplog, "truncated")
    assert not warned(caplog, "built anew")


def test_a_changelog_made_anew_replaces_the_stores_copy(world: World, caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_truncated_changelog_is_told_with_how_much_is_missing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.make_changelog()
    world.write({"a": b"a1", "b": b"b1", "c": b"c1"}, 10, streams=3)
    admin = world.admin()
    admin.alter_configs([ConfigResource("TOPIC", world.changelog, {"cleanup.policy": "compact,delete"})])
    admin.delete_records({TopicPartition(world.changelog, 0): 2})
    admin.alter_configs([ConfigResource("TOPIC", world.changelog, {"cleanup.policy": "compact"})])
    assert world.restore(world.store())[0].source_offset == 10
    assert warned(caplog, "holds 1 states of at least 3 that were written: it has been truncated")


def test_states_without_a_mark_do_not_stand_for_an_offset(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.make_changelog()
    world.write({"a": b"a1"}, 10, mark=False)
    assert world.restore(world.store())[0].source_offset is None
    assert warned(caplog, "does not say for which offset: it has been truncated")


def test_a_large_state_is_written_in_parts_that_a_narrow_changelog_takes(world: World) -> None:
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


def test_a_damaged_record_costs_one_stream(world: World, caplog: pytest.LogCaptureFixture) -> None:
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
    restorer = world.restorer(world.store())
    restorer.restore(world.partitions[:1])
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            restorer.finished()
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
        (of_another_program, "offset 0 is none of longwatch's"),
        (of_another_version, "written by longwatch 0.0.9 in layout beef, this one reads 00ff: run the same longwatch"),
        (that_deletes, "has cleanup.policy=delete, which deletes states"),
        (of_small_records, "has max.message.bytes=9999, longwatch needs 10000 or more: kafka-configs.sh"),
    ],
)
def test_a_changelog_that_cannot_be_used_is_refused_in_one_line(
    world: World, changelog: Callable[[World], None], said: str
) -> None:
    changelog(world)
    told = refusal(world)
    assert said in told
    assert "\n" not in told


@pytest.mark.parametrize("standby", [False, True], ids=["assigned", "standby"])
def test_states_of_another_version_leave_nothing_in_the_store(world: World, standby: bool) -> None:
    of_another_version(world)
    world.write({"b": b"b1"}, 10, partition=1, layout="beef", writer=world.writer("other"))
    store = world.store()
    restorer = world.restorer(store, standby=standby)
    if not standby:
        restorer.restore(world.partitions)

    def refused() -> bool:
        try:
            restorer.finished()
        except StateError:
            return True
        return False

    until(refused, "it is refused")
    assert store.count() == 0


def test_a_source_that_got_more_partitions_gets_more_changelogs(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.make_changelog()
    world.write({"a": b"a1"}, 10)
    store = world.store()
    restorer = world.restorer(store)
    world.restore(store, 0, restorer=restorer)
    world.admin().create_partitions({world.topic: 5})
    world.partitions.append(Partition(world.topic, 4))
    restored = world.restore(store, 2, restorer=restorer)
    assert restored[4].empty
    assert warned(caplog, f"topic {world.topic} has 5 partitions now, 2 before")


def test_a_changelog_of_the_former_layout_is_taken_over(world: World) -> None:
    writer = world.writer()
    world.make_changelog()
    world.write({"a": b"1"}, 5, layout=FORMER_LAYOUT, writer=writer)
    world.write({"b": b"2"}, 7, writer=writer)
    store = world.store()

    assert world.restore(store)[0].source_offset == 7
    assert store.load(["a", "b"]) == [b"1", b"2"]


@pytest.mark.parametrize("told", [True, False], ids=["as this version tells it", "as the former version left it"])
def test_open_incidents_are_found_again_without_their_streams(world: World, told: bool) -> None:
    rows: dict[str, bytes | None] = {}
    for file in ("state", "incident"):
        (world.folder / file).mkdir()
        (world.folder / file / DATABASE).write_bytes(zstandard.decompress((GOLDEN / f"{file}.db.zst").read_bytes()))
        golden = world.store(file)
        rows |= dict(zip(golden.names(), golden.load(golden.names()), strict=True))
    writer, source = world.writer(), world.partitions[0]
    world.make_changelog()
    for name, row in rows.items():
        assert row is not None
        for key, value in state_records(name, source, 9, compressed(row), incident=incident_of(row) is not None):
            writer.send(world.changelog, key, value if told else value[:7] + b"\0" + value[8:], None, 0)
    world.write({}, 9, writer=writer)
    store = world.store()

    world.restore(store)

    assert len(rows) == 4
    assert store.open_incidents(source).keys() == store.open_incidents().keys() == {GONE}
    store.clear(source)
    assert store.open_incidents() == {}
