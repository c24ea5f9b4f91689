"""Members of a consumer group against a real broker: who owns which partition, and what is committed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from connectors.batches import Partition
from connectors.kafka.errors import KafkaConnectorError
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import KafkaSource
from connectors.protocols import DEFERRED
from tests.brokers import Broker
from tests.connectors.kafka.support import DEADLINE, Member, Topic, committed, produce, read, settings
from tests.daemon.support import until

pytestmark = pytest.mark.kafka


def victim_process(config: KafkaSettings, on_revoked: str = "None") -> subprocess.Popen[bytes]:
    """Start a member that prints how many partitions it is given; `on_revoked`: code for when it gives some away."""
    code = (
        "import os, sys\n"
        "from connectors.kafka.settings import KafkaSettings\n"
        "from connectors.kafka.source import KafkaSource\n"
        "from connectors.protocols import RebalanceCallbacks\n"
        "source = KafkaSource(KafkaSettings.model_validate_json(sys.argv[1]))\n"
        "source.subscribe(RebalanceCallbacks(\n"
        "    on_assigned=lambda partitions: print(len(partitions), flush=True),\n"
        f"    on_revoked=lambda partitions: {on_revoked}))\n"
        "while True: source.poll(0.5)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, config.model_dump_json(exclude={"sasl_password", "ssl_key_password"})],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )


def test_two_members_share_partitions_and_one_takes_over_when_the_other_leaves(
    apache: Broker, topic: Topic, open_member: Callable[..., Member]
) -> None:
    name = topic(partitions=4)
    config = settings(apache, name)
    first = open_member(config)
    until(lambda: len(first.owned) == 4, "the first member owns all 4 partitions")
    second = open_member(config)
    until(lambda: len(first.owned) == 2 and len(second.owned) == 2, "each member owns 2 partitions")
    assert first.owned.isdisjoint(second.owned)
    until(lambda: first.source.share() == second.source.share() == 0.5, "each knows that it has half of all")
    revoked = [partitions for kind, partitions in first.events if kind == "revoked"]
    assert [len(partitions) for partitions in revoked] == [2], "only the partitions that move are revoked"
    assert first.threads == {first.thread.name}, "callbacks run on the thread that polls"
    produce(apache, name, range(400), partitions=4)
    until(lambda: len(first.values) + len(second.values) == 400, "400 records came")
    assert sorted(first.values + second.values) == list(range(400))
    assert first.values
    assert second.values
    second.close()
    until(lambda: len(first.owned) == 4, "the first member owns all again")
    until(lambda: first.source.share() == 1.0, "it knows that there is no other")
    produce(apache, name, range(400, 500), partitions=4)
    until(lambda: set(range(400, 500)) <= set(first.values), "the records of all partitions come to the first")


def test_partitions_of_a_killed_member_are_reassigned_after_the_session_timeout(
    apache: Broker, topic: Topic, open_member: Callable[..., Member]
) -> None:
    name = topic(partitions=4)
    config = settings(apache, name)
    victim = victim_process(config)
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"4\n"
        survivor = open_member(config)
        until(lambda: len(survivor.owned) == 2, "the second member owns 2 partitions")
        victim.kill()
        until(lambda: len(survivor.owned) == 4, "the survivor owns all partitions")
    finally:
        victim.kill()
        victim.wait(DEADLINE)
        victim.stdout.close()


def test_a_static_member_that_restarts_in_time_causes_no_rebalance(
    apache: Broker, topic: Topic, open_member: Callable[..., Member]
) -> None:
    name = topic(partitions=4)
    config = settings(apache, name, session_timeout_seconds=20)
    other = open_member(config.model_copy(update={"group_instance_id": "other"}))
    static = open_member(config.model_copy(update={"group_instance_id": "static"}))
    until(lambda: len(static.owned) == 2 and len(other.owned) == 2, "each owns 2 partitions")
    before, events = set(static.owned), list(other.events)
    static.close()
    again = open_member(config.model_copy(update={"group_instance_id": "static"}))
    until(lambda: len(again.owned) == 2, "the member is back")
    assert again.owned == before
    assert other.events == events


def test_a_static_member_killed_as_it_gives_a_partition_away_does_not_leave_it_without_an_owner(
    apache: Broker, topic: Topic, open_member: Callable[..., Member]
) -> None:
    """Its next life gets what it kept, without a rebalance: it has to ask for the one that the killed life owed."""
    name = topic(partitions=2)
    config = settings(apache, name, session_timeout_seconds=20)
    static = config.model_copy(update={"group_instance_id": "static"})
    with victim_process(static, on_revoked="os.kill(os.getpid(), 9)") as victim:
        try:
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"2\n"
            other = open_member(config)
            assert victim.wait(DEADLINE) == -9
        finally:
            victim.kill()
    back = open_member(static, owned=[Partition(name, 0), Partition(name, 1)])
    until(lambda: back.owned, "the static member is back")
    until(lambda: other.owned, "the other member gets the partition")
    assert len(back.owned) == len(other.owned) == 1
    assert back.owned.isdisjoint(other.owned)


def test_a_second_member_with_the_same_instance_id_is_an_error_for_the_first(
    apache: Broker, topic: Topic, open_member: Callable[..., Member]
) -> None:
    name = topic()
    config = settings(apache, name, group_instance_id="twin")
    first = open_member(config)
    until(lambda: first.owned, "the first member owns the partition")
    second = open_member(config)
    until(lambda: second.owned, "the second member has taken over")
    produce(apache, name, range(10))
    until(lambda: first.error, "the first member's checkpoint fails")
    error, first.error = first.error, None
    assert isinstance(error, KafkaConnectorError)
    assert "group_instance_id=twin" in str(error)


def test_a_session_timeout_the_broker_forbids_is_an_error_with_its_settings(
    apache: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
    source = open_source(settings(apache, topic(), session_timeout_seconds=1_200))  # tests.brokers allows 600
    with pytest.raises(KafkaConnectorError, match=r"session_timeout_seconds = 1200 .*group\.max\.session"):
        read(source, 1)


def test_holding_and_seeking_partitions_revoked_meanwhile_is_harmless(
    apache: Broker, topic: Topic, open_source: Callable[..., KafkaSource], open_member: Callable[..., Member]
) -> None:
    """The client revokes a partition before the source's thread, perhaps busy with a roll-back, learns of it."""
    name = topic(partitions=2)
    config = settings(apache, name)
    placed: list[dict[Partition, int]] = []
    source = open_source(config, start=lambda _: DEFERRED, on_placed=placed.append)
    mine = [Partition(name, 0), Partition(name, 1)]
    until(lambda: source.poll(0.1) is not None and len(source._reader.held) == 2, "both partitions are assigned")
    source.seek({mine[0]: 0, mine[1]: 0})
    other = open_member(config)
    consumer = source._reader.consumer
    assert consumer is not None
    until(lambda: len(consumer.assignment()) == 1, "the client has let one go")
    source.hold(mine)  # raised KeyError
    source.seek(dict.fromkeys(mine, 0))
    assert source.lag() == {}
    until(lambda: source.poll(0.1) is not None and any(placed), "what is left is placed")
    until(lambda: other.owned, "the other one has its partition")
    assert {partition for offsets in placed for partition in offsets} == set(mine) - other.owned
    produce(apache, name, range(10), partitions=2)
    until(lambda: (b := source.poll(0.1)) is not None and len(b), "what is left is read")
    until(lambda: len(other.values) == 5, "the other one reads, too")


def test_commit_sets_the_groups_offset_and_ignores_foreign_partitions(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
    name = topic(partitions=2)
    produce(broker, name, range(100), partitions=2)
    config = settings(broker, name)
    source = open_source(config)
    source.commit({Partition(name, 0): 7})  # before anything is connected: nothing to do
    read(source, 100)
    source.commit({Partition(name, 0): 17, Partition("another", 3): 5})
    assert committed(broker, config.group_id, name, 0) == 17
    assert committed(broker, config.group_id, name, 1) is None


def test_a_commit_that_fails_is_logged_and_not_raised(
    apache: Broker, topic: Topic, open_source: Callable[..., KafkaSource], caplog: pytest.LogCaptureFixture
) -> None:
    name = topic()
    produce(apache, name, range(10))
    # shorter than the setting may be, so that the test is short
    lost: list[list[Partition]] = []
    source = open_source(
        settings(apache, name).model_copy(update={"max_poll_interval_seconds": 3.0}), on_lost=lost.append
    )
    read(source, 10)
    produce(apache, name, range(10, 20))
    time.sleep(5)  # takes nothing for longer than max_poll_interval: the client leaves the group
    source.commit({Partition(name, 0): 10})
    assert "not committed" in caplog.text
    assert read(source, 10)[-10:] == list(range(10, 20)), "the member joins again by itself"
    until(lambda: source.poll(0.1) is not None and lost, "the loss is reported")
    assert lost == [[Partition(name, 0)]]
