"""What others fell into, with the daemon as a process: each ends in a defined way, and none in silence."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import NewTopic

from connectors.kafka.changelog_format import state_key
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.transactions import TransactionalWriter, end_transaction_of
from detector.checkpointing.state_directory import DATABASE, PAGE_BYTES
from tests.brokers import Broker
from tests.daemon.fleet import make_fleet
from tests.daemon.receiver import Receiver
from tests.daemon.records import open_producer
from tests.daemon.support import PATIENCE, until
from tests.faults.support import (
    PARTITIONS,
    Stream,
    Topics,
    Undisturbed,
    assert_once,
    assert_same_alerts,
    scored_events,
    webhook_ids,
)

pytestmark = pytest.mark.kafka

FLEET = make_fleet(streams=8, rows=150, seed=3)
EVENTS = 8 * 150
DAMAGED = 2


@pytest.fixture
def topics(apache: Broker, tmp_path: Path) -> Topics:
    return Topics(apache, tmp_path, uuid.uuid4().hex[:8])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"), FLEET)


@pytest.fixture
def admin(apache: Broker) -> Iterator[KafkaAdminClient]:
    found = KafkaAdminClient(bootstrap_servers=apache.bootstrap)
    yield found
    found.close()


def all_committed(topics: Topics, events: int = EVENTS, seconds: float = PATIENCE) -> None:
    until(lambda: scored_events(topics) >= events, f"{events} events are committed", seconds=seconds, every=0.2)


@pytest.mark.faults
def test_a_worker_suspended_beyond_its_session_writes_nothing_twice(topics: Topics, undisturbed: Undisturbed) -> None:
    with Receiver() as receiver, Stream(topics, FLEET) as stream:
        topics.receiver = receiver
        with topics.worker("a") as sleeper:
            stream.until(EVENTS / 3)
            all_committed(topics, EVENTS // 3)
            stream.until(EVENTS / 2)
            sleeper.work_until(
                lambda found: found("events_scored_total") > EVENTS / 3, "more events, not yet committed"
            )
            sleeper.process.send_signal(signal.SIGSTOP)
            with topics.worker("b") as other:
                stream.finish()
                all_committed(topics)
                sleeper.process.send_signal(signal.SIGCONT)
                sleeper.line("rolling back to the last checkpoint|Partitions lost|Partitions revoked")
                sleeper.line("running on")
                time.sleep(2.0)  # whatever it may still write
                assert other.terminate()[0] == 0
            assert sleeper.process.poll() is None, "it goes on as a member of the group"
            assert sleeper.terminate()[0] == 0
    assert_once(topics.scored(), undisturbed.scores(topics))
    assert_same_alerts(topics.alerted(), undisturbed.alerts(topics))
    assert {d.id for d in receiver.taken} == webhook_ids(undisturbed.alerts(topics))


def test_two_workers_with_one_transactional_id_do_not_both_commit(topics: Topics, undisturbed: Undisturbed) -> None:
    with Stream(topics, FLEET) as stream, topics.worker("a", kafka__group_instance_id="one") as worker:
        stream.until(EVENTS / 2)
        all_committed(topics, EVENTS // 2)
        settings = KafkaSettings(bootstrap_servers=topics.broker.bootstrap, transaction_timeout_seconds=15)
        zombie = TransactionalWriter(settings, f"longwatch/group-{topics.name}/one")
        zombie.send(topics.scores, None, b"{}")  # fences the worker, and is never committed
        zombie.flush()
        stream.finish()
        worker.line("rolling back to the last checkpoint: the transaction was ended by the broker")
        all_committed(topics)
        zombie.close()
        assert worker.terminate()[0] == 0
        assert worker.log.count("Traceback") == 0
    assert_once(topics.scored(), undisturbed.scores(topics))


@pytest.mark.faults
def test_records_deleted_by_retention_are_logged_and_skipped(topics: Topics, admin: KafkaAdminClient) -> None:
    with Stream(topics, FLEET) as stream:
        stream.until(EVENTS / 3)
        with topics.worker("a") as worker:
            all_committed(topics, EVENTS // 3)
            assert worker.terminate()[0] == 0
        stream.until(EVENTS * 2 / 3)
        until(lambda: stream.written == EVENTS * 2 // 3, "two thirds are written")
        reached = EVENTS * 2 // 3 // PARTITIONS
        admin.delete_records({TopicPartition(topics.events, number): reached for number in range(PARTITIONS)})
        with topics.worker("a") as worker:
            stream.finish()
            worker.line(rf"offset {EVENTS // 3 // PARTITIONS} is out of range, the broker holds {reached} to")
            all_committed(topics)
            assert worker.terminate()[0] == 0
    assert len(topics.scored()) == EVENTS * 2 // 3


@pytest.mark.faults
def test_a_recreated_topic_is_logged_and_read(topics: Topics, admin: KafkaAdminClient) -> None:
    with Stream(topics, FLEET) as stream, topics.worker("a") as worker:
        stream.finish()
        all_committed(topics)
        assert worker.terminate()[0] == 0
    admin.delete_topics([topics.events])
    until(lambda: topics.events not in admin.list_topics(), "the topic is gone")
    admin.create_topics([NewTopic(topics.events, PARTITIONS, 1)])
    admin.wait_for_topics([topics.events])
    with topics.worker("a") as worker:
        worker.line(r"is out of range, the broker holds 0 to \d+ \(was the topic deleted and created again\?\)")
        before = len(topics.scored())
        producer = open_producer(topics.broker)
        for row in range(20):
            producer.send(topics.events, FLEET.record(row, 0).replace(b"host-00", b"new-00"), b"k", partition=0)
        producer.close()
        until(lambda: len(topics.scored()) == before + 20, "the new events are scored", every=0.3)
        assert worker.terminate()[0] == 0


@pytest.mark.faults
def test_added_partitions_of_a_topic_are_read(topics: Topics, admin: KafkaAdminClient) -> None:
    with Stream(topics, FLEET) as stream, topics.worker("a") as worker:
        stream.until(EVENTS / 2)
        all_committed(topics, EVENTS // 2)
        admin.create_partitions({topics.events: PARTITIONS + 1})
        assert worker.terminate()[0] == 0
        with topics.worker("a") as again:
            again.line(rf"topic {topics.events} has 5 partitions now, 4 before")
            stream.finish()
            producer = open_producer(topics.broker)
            producer.send(topics.events, FLEET.record(0, 0).replace(b"host-00", b"new-00"), b"k", partition=PARTITIONS)
            producer.close()
            all_committed(topics)
            until(lambda: len(topics.scored()) == EVENTS + 1, "the new partition's event is scored", every=0.3)
            assert again.terminate()[0] == 0


def test_a_damaged_row_of_the_local_store_is_restored_from_the_changelog(
    topics: Topics, undisturbed: Undisturbed
) -> None:
    with Stream(topics, FLEET) as stream:
        stream.until(EVENTS / 2)
        with topics.worker("a") as worker:
            all_committed(topics, EVENTS // 2)
            assert worker.terminate()[0] == 0
        with contextlib.closing(sqlite3.connect(topics.folder / f"{topics.name}-a" / DATABASE)) as db, db:
            hit = f"UPDATE streams SET row = zeroblob(length(row)) WHERE name IN ({', '.join('?' * DAMAGED)})"
            names = [name.encode() for name in FLEET.names[:DAMAGED]]  # each on a partition of its own
            assert db.execute(hit, names).rowcount == DAMAGED
        with topics.worker("a") as worker:
            stream.finish()
            all_committed(topics)
            assert worker.terminate()[0] == 0
    said = worker.log.count("the local copy of its states is damaged at stream")
    assert said == DAMAGED, worker.log
    assert_once(topics.scored(), undisturbed.scores(topics))


@pytest.mark.parametrize("part", ["its beginning", pytest.param("its rows", marks=pytest.mark.faults)])
def test_a_damaged_local_store_is_set_aside_and_restored_from_the_changelog(
    topics: Topics, undisturbed: Undisturbed, part: str
) -> None:
    """Damage at its beginning is seen at the start; in the middle when that is read: then the next start mends it."""
    folder, late = topics.folder / f"{topics.name}-a", part == "its rows"
    with Stream(topics, FLEET) as stream:
        stream.until(EVENTS / 2)
        with topics.worker("a") as worker:
            all_committed(topics, EVENTS // 2)
            assert worker.terminate()[0] == 0
        hit = spoilt(folder / DATABASE, late=late)
        stream.finish()
        if late:
            with topics.worker("a") as worker:
                assert worker.wait() == 1
            assert "Traceback" not in worker.log
        with topics.worker("a") as last:
            all_committed(topics)
            assert last.terminate()[0] == 0
    assert "it lies in state.db.damaged now" in (worker if late else last).log
    assert (folder / "state.db.damaged").read_bytes() == hit
    assert_once(topics.scored(), undisturbed.scores(topics))


def spoilt(path: Path, *, late: bool) -> bytes:
    """Overwrite a database's first page, or all but the first ones; return its bytes."""
    content = bytearray(path.read_bytes())
    for at in range(PAGE_BYTES * 8, len(content)) if late else range(PAGE_BYTES):
        content[at] ^= 0x5A
    path.write_bytes(content)
    return bytes(content)


@pytest.mark.faults
def test_a_second_daemon_with_the_same_state_directory_is_refused_in_one_line(topics: Topics) -> None:
    with topics.worker("a") as worker:
        worker.line("running on")
        with topics.worker("a") as second:
            assert second.wait() == 1
            assert f"is in use by another longwatch, process id {worker.process.pid}: stop it, or give" in second.log
            assert "Traceback" not in second.log


@pytest.mark.faults
def test_a_version_with_another_row_layout_gets_advice_that_works(topics: Topics) -> None:
    """`model.horizons` changes the rows as a new version may; checkpointing/test_golden.py has what is quicker."""
    other = {"model__horizons": [1]}
    with Stream(topics, FLEET) as stream:
        stream.until(EVENTS / 2)
        with topics.worker("a") as worker:
            all_committed(topics, EVENTS // 2)
            assert worker.terminate()[0] == 0
        with topics.worker("a", **other) as worker:
            assert worker.wait() == 1
            assert "set state.directory to a new directory, and kafka.changelog_topic to a new name" in worker.log
        with topics.worker("new", **other) as worker:
            assert worker.wait() == 1
            assert "run the same longwatch (and model.horizons) on every worker" in worker.log
            assert "or set kafka.changelog_topic to a new name" in worker.log
            assert "Traceback" not in worker.log
        with topics.worker("new", kafka__changelog_topic=f"new-{topics.changelog}", **other) as worker:
            stream.finish()
            all_committed(topics)
            assert worker.terminate()[0] == 0
    places = {(record["partition"], record["offset"]) for record in topics.scored()}
    assert len(places) == len(topics.scored()) == EVENTS


def test_a_daemon_that_cannot_process_fails_its_liveness_probe(topics: Topics) -> None:
    """A transaction of an unknown worker that never ends: states cannot be restored before it is aborted."""
    with Stream(topics, FLEET) as stream:
        stream.until(EVENTS / 2)
        with topics.worker("a") as worker:
            all_committed(topics, EVENTS // 2)
            assert worker.terminate()[0] == 0
        settings = KafkaSettings(bootstrap_servers=topics.broker.bootstrap, transaction_timeout_seconds=60)
        hanging = TransactionalWriter(settings, "nobody-knows")
        for partition in range(PARTITIONS):
            hanging.send(topics.changelog, state_key("x"), None, None, partition)
        hanging.flush()
        with topics.worker("a", processing__stalled_after_seconds=5) as worker:
            stream.finish()
            worker.line("waiting for a transaction in the changelog to end")
            assert worker.get("/readyz")[0] == 503
            assert worker.get("/livez")[0] == 200
            until(lambda: worker.get("/livez")[0] == 503, "the liveness fails", every=0.2)
            assert "events wait, and none was processed" in worker.get("/livez")[1]
            hanging.reset()
            end_transaction_of(settings, "nobody-knows")
            all_committed(topics)
            until(lambda: worker.get("/livez")[0] == 200, "it lives again", every=0.2)
            assert worker.terminate()[0] == 0


def test_states_survive_changes_of_the_guarantee(topics: Topics, undisturbed: Undisturbed) -> None:
    """Without a changelog, then exactly once, then on another machine at least once with nothing but the changelog."""
    plain = {"processing__guarantee": "at_least_once"}
    with Stream(topics, FLEET) as stream:
        stream.until(EVENTS / 3)
        with topics.worker("a", **plain) as worker:
            worker.work_until(lambda found: found("events_scored_total") == EVENTS // 3, "a third of the events")
            assert worker.terminate()[0] == 0
        with topics.worker("a") as worker:
            worker.line("states of the local store go into the empty changelog")
            stream.until(EVENTS * 2 / 3)
            all_committed(topics, EVENTS * 2 // 3)
            worker.kill()
        with topics.worker("elsewhere", state__changelog=True, **plain) as worker:
            worker.line(r"2 read from the changelog")
            stream.finish()
            all_committed(topics)
            assert worker.terminate()[0] == 0
    found = {record["offset"] * PARTITIONS + record["partition"]: record for record in topics.scored()}
    assert_once(list(found.values()), undisturbed.scores(topics))
