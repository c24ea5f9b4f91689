"""A full disk under the store, the outbox, result files and the log: a small mounted file system."""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from connectors.batches import Rejected
from connectors.files.sinks import FileDeadLetterSink, FileFullError
from connectors.notify.dispatcher import Dispatcher
from connectors.notify.outbox import NewMessage, Outbox, OutboxFullError
from connectors.notify.settings import ReceiverSettings
from connectors.notify.standard_webhooks import webhook_id
from detector.checkpointing.state_directory import UnsavedError
from detector.checkpointing.store import SqliteStore
from tests.brokers import Broker
from tests.daemon.fleet import STEP, make_fleet
from tests.daemon.receiver import SECRET, Receiver
from tests.daemon.records import Record, difference, read_lines
from tests.daemon.support import PATIENCE, Longwatch, until
from tests.faults.support import Stream, Topics, Undisturbed, alert, assert_once, scored_events, webhook_ids

FLEET = make_fleet(streams=8, rows=500, seed=3)
EVENTS = 8 * 500


class Disk:
    """A mounted file system that a ballast file fills to the last byte."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ballast = root / "ballast"

    def fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(4096))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(root)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount(8) to make a small file system with")
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield Disk(root)
    subprocess.run(["umount", "-l", str(root)], capture_output=True, timeout=PATIENCE, check=True)


def test_a_store_that_cannot_save_keeps_the_former_checkpoint_and_saves_when_it_can(disk: Disk) -> None:
    store = SqliteStore(disk.root / "state")
    store.save([("a", b"1" * 1000)], {"n": 1})
    disk.fill()
    for _ in range(2):
        with pytest.raises(UnsavedError, match="the disk is full"):
            store.save([(f"{n}", bytes(500_000)) for n in range(50)], {"n": 2})
    assert store.meta() == {"n": 1}
    assert store.load(["a"]) == [b"1" * 1000]
    disk.free()
    store.save([(f"{n}", bytes(500_000)) for n in range(50)], {"n": 2})
    assert store.meta() == {"n": 2}
    store.close()


def test_an_outbox_on_a_full_disk_adds_all_or_nothing_and_recovers(disk: Disk) -> None:
    outbox = Outbox(disk.root / "outbox")
    outbox.add([NewMessage("r", "first", "s", b"x")], 0.0)
    disk.fill()
    many = [NewMessage("r", f"{n}", "s", bytes(100_000)) for n in range(20)]
    for _ in range(2):
        with pytest.raises(OutboxFullError, match="disk is full; make room"):
            outbox.add(many, 0.0)
    assert outbox.pending() == 1
    disk.free()
    outbox.add(many, 0.0)
    assert outbox.pending() == 21
    outbox.close()


def test_flush_reports_alerts_kept_out_by_a_full_disk_and_they_arrive_once(disk: Disk) -> None:
    pending: list[int] = []
    with Receiver() as receiver:
        settings = ReceiverSettings.model_validate(
            {
                "url": receiver.url,
                "tell": "alerts",
                "secret": SECRET,
                "allowed_hosts": ["127.0.0.1"],
                "retry_base_seconds": 0.05,
            }
        )
        sink = Dispatcher({"hook": settings}, disk.root, on_pending=lambda name, count: pending.append(count))
        disk.fill()
        alerts = [alert(number) for number in range(1_200)]
        sink.write(alerts[:600])
        with pytest.raises(OutboxFullError):
            sink.flush()
        assert pending[-1] == 600
        assert not sink.full
        sink.write(alerts[600:])
        assert sink.full, "no more should come"
        disk.free()
        sink.flush()
        assert not sink.full
        until(lambda: len(receiver.taken) == 1_200, "all are delivered")
        sink.close()
    assert receiver.ids == [webhook_id(one) for one in alerts], "in their order, each once"


def test_a_file_of_results_on_a_full_disk_keeps_its_lines_whole(disk: Disk) -> None:
    path = disk.root / "dead.jsonl"
    sink = FileDeadLetterSink(path)
    disk.fill()
    raw = b"x" * 100_000
    for number in range(200):
        sink.write([Rejected("t", 0, number, "not_json", "x", raw)])
    assert sink.full
    for _ in range(2):
        with pytest.raises(FileFullError, match="No space left on device"):
            sink.flush()
    disk.free()
    sink.flush()
    assert not sink.full
    assert sink.position()[str(path)][0] == path.stat().st_size
    assert [line["offset"] for line in read_lines(path)] == list(range(200))
    sink.close()


class Expected(NamedTuple):
    """What an undisturbed run gives."""

    run: Undisturbed
    scores: list[Record]  # of the file, in its order
    ids: set[str]  # of the webhook's messages


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Undisturbed(folder, FLEET)
    scores, alerts = (read_lines(folder / f"undisturbed-{name}.jsonl") for name in ("scores", "alerts"))
    return Expected(run, scores, webhook_ids(alerts))


def test_a_daemon_on_a_full_disk_keeps_scoring_and_a_kill_loses_nothing(
    disk: Disk, tmp_path: Path, expected: Expected
) -> None:
    """Store, outbox, files of results and log are all on it."""
    events, scores = tmp_path / "events.jsonl", disk.root / "scores.jsonl"
    events.write_bytes(b"\n".join(record for _, record in FLEET.records()))
    with Receiver() as receiver:
        settings = {
            "source.type": "file",
            "source.paths": [str(events)],
            "source.speed": FLEET.rows * STEP / 8.0,  # 8 s
            "state.directory": str(disk.root / "state"),
            "state.checkpoint_interval_seconds": 0.2,
            "training.enabled": False,
            "output.scores_file": str(scores),
            "receivers.hook.url": receiver.url,
            "receivers.hook.tell": "alerts",
            "receivers.hook.secret": SECRET,
            "receivers.hook.allowed_hosts": ["127.0.0.1"],
            "receivers.hook.retry_base_seconds": 0.2,
        }
        (disk.root / "log").mkdir()
        with Longwatch(disk.root / "log", settings) as daemon:
            daemon.work_until(lambda found: found("events_scored_total") > EVENTS * 0.2, "it is at work")
            disk.fill()
            samples = daemon.work_until(lambda found: found("checkpoint_failures_total") >= 2, "no checkpoint")
            scored = samples("events_scored_total")
            samples = daemon.work_until(lambda found: found("events_scored_total") > scored + 100, "scoring goes on")
            assert daemon.get("/livez")[0] == daemon.get("/readyz")[0] == 200, "a restart would not mend it"
            disk.free()
            daemon.line("checkpoints work again, after")
            before = samples("checkpoint_failures_total")
            disk.fill()
            samples = daemon.work_until(lambda found: found("checkpoint_failures_total") > before + 1, "once more")
            assert samples("events_scored_total") < EVENTS
            daemon.kill()
        disk.free()
        assert daemon.log.count("no checkpoint: ") >= 1
        assert "Traceback" not in daemon.log
        with Longwatch(tmp_path, settings | {"source.speed": 0}) as daemon:
            assert daemon.wait() == 0
        # what waits in the outbox is sent by the next start, too
        with Longwatch(tmp_path, settings | {"source.paths": ["-"]}, stdin=subprocess.PIPE) as daemon:
            daemon.work_until(lambda found: found("outbox_pending", receiver="hook") == 0, "all is delivered")
            assert daemon.terminate()[0] == 0
    found = read_lines(scores)
    assert [record["offset"] for record in found] == list(range(EVENTS)), "each once, in their order"
    for record, other in zip(found, expected.scores, strict=True):
        assert not (reported := difference(record, other | {"topic": record["topic"]})), reported
    assert {delivery.id for delivery in receiver.taken} == expected.ids
    assert len(expected.ids) > 3


@pytest.mark.kafka
@pytest.mark.faults
def test_exactly_once_survives_a_full_disk_under_the_store(
    apache: Broker, disk: Disk, tmp_path: Path, expected: Expected
) -> None:
    """The store falls behind the changelog; streams that it has not got are not taken from it."""
    topics = Topics(apache, tmp_path, uuid.uuid4().hex[:8])
    more = {"state__directory": str(disk.root / "state"), "state__max_streams": 5}  # so that streams come and go
    with Receiver() as receiver, Stream(topics, FLEET) as stream:
        topics.receiver = receiver
        with topics.worker("a", **more) as worker:
            stream.until(EVENTS * 0.2)
            until(lambda: scored_events(topics) >= EVENTS * 0.2, "a fifth is committed", every=0.2)
            disk.fill()
            stream.until(EVENTS * 0.4)
            until(lambda: scored_events(topics) >= EVENTS * 0.4, "it goes on committing", every=0.2)
            assert worker.metrics()("checkpoint_failures_total") > 0
            disk.free()
            stream.until(EVENTS * 0.6)
            worker.line("checkpoints work again")
            disk.fill()
            stream.until(EVENTS * 0.8)
            until(lambda: scored_events(topics) >= EVENTS * 0.7, "it goes on committing", every=0.2)
            worker.kill()
        disk.free()
        with topics.worker("a", **more) as worker:
            stream.finish()
            until(lambda: scored_events(topics) == EVENTS, "all is committed", every=0.2)
            until(lambda: set(receiver.ids) >= expected.ids, "all alerts are delivered", every=0.2)
            assert worker.terminate()[0] == 0
        assert set(receiver.ids) == expected.ids
    assert_once(topics.scored(), expected.run.scores(topics))
