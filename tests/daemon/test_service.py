"""The daemon as a service: notifications, waiting, refusals, and how it stops."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from tests.brokers import CHECKOUT, Broker
from tests.daemon.fleet import START, STEP, make_fleet
from tests.daemon.records import by_place, open_producer, read_lines, read_topic
from tests.daemon.support import PATIENCE, RUN_RETRAINING, Longwatch, Samples
from tests.fleets import odd_waves

STDIN = {"source.type": "file", "source.paths": ["-"], "training.enabled": False}


# -- systemd -----------------------------------------------------------------------------------------------------------


def test_systemd_is_notified_from_ready_to_stopping_and_its_watchdog_fed_while_idle(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        deadline = 2.0  # s that systemd waits for a sign of life
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": str(round(deadline * 1e6))}
        settings = STDIN | {"state.directory": str(tmp_path / "state")}
        with Longwatch(tmp_path, settings, environ=environ, stdin=subprocess.PIPE) as daemon:
            while (first := manager.recv(1000)) == b"WATCHDOG=1":
                pass  # a disk that is slow to take the first checkpoint is waited for alive
            assert first.startswith(b"READY=1\n")
            beats: list[float] = []
            while len(beats) < 4:
                assert manager.recv(1000) == b"WATCHDOG=1"
                beats.append(time.monotonic())
            # the shortest: a machine with much else to do may delay one of them, an idle wait too long delays each
            assert min(after - before for before, after in itertools.pairwise(beats)) < deadline
            assert daemon.terminate()[0] == 0
            messages = [manager.recv(1000)]
            while b"STOPPING=1" not in messages[-1]:
                messages.append(manager.recv(1000))


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "reported"),
    [
        ("kafka.bootstrap_server=a:9092", "did you mean kafka.bootstrap_servers"),
        ("state.checkpoint_interval_seconds=-1", "state.checkpoint_interval_seconds"),
        ("http.port=many", "http.port"),
    ],
)
def test_invalid_settings_are_a_one_line_error_and_exit_2(option: str, reported: str) -> None:
    command = [sys.executable, "-m", "detector", "run", "--set", option]
    found = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith("longwatch: ")
    assert reported in line


def assert_refused(daemon: Longwatch, *reported: str) -> None:
    """Check that it ended with 1 and that its last word, one line, says why."""
    assert daemon.wait() == 1
    last = daemon.log.splitlines()[-1]
    assert last.startswith("longwatch: ")
    assert all(part in last for part in reported), last
    assert "Traceback" not in daemon.log


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Longwatch]:
    """A daemon whose standard input says nothing."""
    folder = tmp_path_factory.mktemp("idle")
    with Longwatch(folder, STDIN | {"state.directory": str(folder / "state")}, stdin=subprocess.PIPE) as daemon:
        daemon.line("running on")
        yield daemon


def test_a_port_in_use_is_refused(tmp_path: Path, idle: Longwatch) -> None:
    taken = int(idle.line(r"served on http://127\.0\.0\.1:(\d+)/")[1])
    settings = STDIN | {"state.directory": str(tmp_path / "state"), "http.port": taken}
    with Longwatch(tmp_path, settings) as daemon:
        assert_refused(daemon, "http.port", str(taken), "in use")


def test_a_state_directory_in_use_is_refused(tmp_path: Path, idle: Longwatch) -> None:
    with Longwatch(tmp_path, STDIN | {"state.directory": idle.settings["state.directory"]}) as daemon:
        assert_refused(daemon, "in use by another longwatch", str(idle.process.pid), "state.directory")
    assert idle.get("/livez")[0] == 200


def test_a_damaged_state_is_refused_and_unchanged(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    damaged = os.urandom(4096)
    (state / "state.db").write_bytes(damaged)
    with Longwatch(tmp_path, STDIN | {"state.directory": str(state)}) as daemon:
        assert_refused(daemon, str(state), "damaged or not longwatch's", "move it away")
    assert (state / "state.db").read_bytes() == damaged


def test_a_database_of_another_program_stops_the_start_and_is_unchanged(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with sqlite3.connect(state / "state.db") as foreign:
        foreign.execute("CREATE TABLE recipes (name TEXT)")
        foreign.execute("INSERT INTO recipes VALUES ('borscht')")
    foreign.close()
    with Longwatch(tmp_path, STDIN | {"state.directory": str(state)}) as daemon:
        assert_refused(daemon, str(state), "another program", "move it away")
    assert sqlite3.connect(state / "state.db").execute("SELECT name FROM recipes").fetchall() == [("borscht",)]


# -- brokers that come and go ------------------------------------------------------------------------------------------

STREAMS, ROWS, PARTITIONS = 20, 200, 2
FLEET = make_fleet(STREAMS, ROWS, seed=7)


def produce(producer: KafkaProducer, topic: str, rows: range) -> None:
    for row in rows:
        for stream in range(STREAMS):
            producer.send(topic, FLEET.record(row, stream), FLEET.names[stream].encode(), partition=stream % PARTITIONS)
    producer.flush(timeout=PATIENCE)


def kafka_settings(broker: Broker, folder: Path) -> dict[str, Any]:
    """Return settings of a daemon that takes small bites, so that it is at work for a while."""
    return {
        "kafka.bootstrap_servers": broker.bootstrap,
        "kafka.topics": ["events"],
        "kafka.group_id": folder.name,
        "source.max_poll_records": 10,
        "kafka.scores_topic": "scores",
        "kafka.alerts_topic": "alerts",
        "kafka.dead_letter_topic": "",
        "state.directory": str(folder / "state"),
        "state.checkpoint_interval_seconds": 0.5,
        "training.enabled": False,
    }


def make_topics(broker: Broker) -> None:
    for name, partitions in (("scores", 1), ("alerts", 1), ("events", PARTITIONS)):
        broker.create_topic(name, partitions)


@pytest.mark.kafka
def test_the_daemon_waits_for_its_broker_and_an_outage_loses_nothing(tmp_path: Path, own_broker: Broker) -> None:
    with Longwatch(tmp_path, kafka_settings(own_broker, tmp_path)) as daemon:
        daemon.line("No Kafka broker yet .* not reachable")
        assert daemon.get("/livez")[0] == 200
        assert daemon.get("/readyz") == (503, "waiting for partitions\n")

        own_broker.start()
        make_topics(own_broker)
        producer = open_producer(own_broker)
        produce(producer, "events", range(ROWS // 2))
        daemon.work_until(lambda found: found("events_scored_total") > 0, "the broker that came is used")
        assert daemon.get("/readyz")[0] == 200

        with daemon.halted():
            produce(producer, "events", range(ROWS // 2, ROWS))
            own_broker.stop()
        begun = time.monotonic()
        before = daemon.metrics()("events_scored_total")
        assert before < STREAMS * ROWS, "the outage came in the middle"
        while time.monotonic() < begun + 6:
            assert daemon.get("/livez")[0] == 200
            time.sleep(0.5)
        own_broker.start()
        samples = daemon.work_until(lambda found: found("events_scored_total") >= STREAMS * ROWS, "all is scored")
        producer.close(timeout=PATIENCE)
        assert daemon.terminate()[0] == 0

    scores = [json.loads(record.value) for record in read_topic(own_broker, "scores")]
    assert len(scores) == len(by_place(scores)) == STREAMS * ROWS, "none lost, and none twice without a crash"
    assert samples("events_late_total") == samples("events_duplicate_total") == 0


@pytest.mark.kafka
def test_a_daemon_suspended_beyond_its_session_resumes_where_it_was(
    tmp_path: Path, apache: Broker, topic: Callable[..., str]
) -> None:
    events = topic(partitions=PARTITIONS)
    settings = kafka_settings(apache, tmp_path) | {
        "kafka.topics": [events],
        "kafka.scores_topic": "",
        "kafka.alerts_topic": "",
        "kafka.session_timeout_seconds": 2,
        "source.max_poll_records": 1_000,
        "state.checkpoint_interval_seconds": 600,  # so nothing is committed when it wakes up without its partitions
        "output.scores_file": str(tmp_path / "scores.jsonl"),
    }
    producer = open_producer(apache)
    with Longwatch(tmp_path, settings) as daemon:
        produce(producer, events, range(ROWS // 2))
        daemon.work_until(lambda found: found("events_scored_total") >= STREAMS * ROWS // 2, "half is scored")
        with daemon.halted():
            time.sleep(4)
        produce(producer, events, range(ROWS // 2, ROWS))
        daemon.line("Partitions lost")
        samples = daemon.work_until(lambda found: found("events_scored_total") >= STREAMS * ROWS, "all is scored")
        assert daemon.terminate()[0] == 0
    producer.close(timeout=PATIENCE)
    assert samples("events_late_total") == samples("events_duplicate_total") == 0
    assert len(by_place(read_lines(tmp_path / "scores.jsonl"))) == STREAMS * ROWS


@pytest.mark.kafka
def test_without_a_broker_the_daemon_stops_in_time_and_a_second_signal_stops_it_at_once(
    tmp_path: Path, own_broker: Broker
) -> None:
    own_broker.start()
    make_topics(own_broker)
    producer = open_producer(own_broker)
    produce(producer, "events", range(ROWS))
    producer.close(timeout=PATIENCE)
    folders = tmp_path / "stopped_once", tmp_path / "stopped_twice"
    for folder in folders:
        folder.mkdir()
    stopped_once, stopped_twice = (Longwatch(folder, kafka_settings(own_broker, folder)) for folder in folders)
    with stopped_once, stopped_twice:
        for daemon in (stopped_once, stopped_twice):
            daemon.work_until(lambda found: found("events_scored_total") > 0, "it is at work")
        with stopped_once.halted(), stopped_twice.halted():
            own_broker.stop()
        stopped_once.process.send_signal(signal.SIGTERM)
        stopped_twice.process.send_signal(signal.SIGTERM)
        stopped_twice.line(" stopping$")
        assert stopped_twice.process.poll() is None
        assert stopped_twice.terminate()[0] == -signal.SIGTERM, "the second signal ended it, not what it was about"
        assert stopped_once.wait() == 0
        assert stopped_once.log.count("will be scored again") <= 1  # none where the broker had taken all before it went
        assert "Traceback" not in stopped_once.log


# -- learning ----------------------------------------------------------------------------------------------------------

LEARNERS, LEARNER_ROWS = 40, 10_000  # at 40 rows a second: far more than is ever read
LEARNING_SECONDS = 600  # a retraining comes last: on a machine with much else to do its 5 s have taken more than 70


def odd_waves_from_file(folder: Path, lanes: int, rows: int) -> dict[str, Any]:
    """Write streams of odd waves to a file; return the settings of a daemon that scores it."""
    events = folder / "events.csv"
    values = odd_waves(lanes, rows)
    with events.open("w") as file:
        file.write("timestamp,stream,value\n")
        for row in range(rows):
            file.writelines(f"{START + row * STEP},lane-{n},{values[n, row]:.6g}\n" for n in range(lanes))
    return {
        "source.type": "file",
        "source.paths": [str(events)],
        "state.directory": str(folder / "state"),
        "output.scores_file": str(folder / "scores.jsonl"),
    }


def test_scoring_continues_while_retraining_and_a_new_model_survives_kill_9(tmp_path: Path) -> None:
    settings = odd_waves_from_file(tmp_path, LEARNERS, LEARNER_ROWS) | {
        "source.speed": 40 * STEP,
        "state.checkpoint_interval_seconds": 0.5,
        "training.budget_seconds": 4,
        "compute.threads": 1,
    }
    counted: list[tuple[float, float]] = []

    def swapped(found: Samples) -> bool:
        counted.append((time.monotonic(), found("events_scored_total")))
        assert found("retrain_total", outcome="failed") == 0
        return version(found) != first

    with Longwatch(tmp_path, settings, program=RUN_RETRAINING) as daemon:
        first = daemon.line(r"model (\w+)$")[1]
        samples = daemon.work_until(swapped, "a better model is promoted", seconds=LEARNING_SECONDS)
        ended = time.monotonic()
        model = version(samples)
        assert samples("model_trained_timestamp_seconds") > 0
        done = samples("events_scored_total")
        daemon.work_until(lambda found: found("events_scored_total") > done + 400, "scoring with the new model")
        daemon.kill()

    seconds = float(daemon.line(r"retraining promoted after ([\d.]+) s")[1])
    during = [scored for at, scored in counted if ended - seconds < at <= ended]
    moved = [at for (at, scored), (_, before) in zip(counted[1:], counted, strict=False) if scored > before]
    pauses = [b - a for a, b in itertools.pairwise(moved) if b > ended - seconds]
    assert len(pauses) > 5, f"{during[-1] - during[0]} events in {seconds} s"
    assert max(pauses) < seconds / 2, f"scoring paused {max(pauses):.1f} s of a retraining of {seconds:.1f} s"

    with Longwatch(tmp_path, settings | {"training.enabled": False}) as daemon:
        assert daemon.line(r"resumed\); model (\w+)$")[1] == model
        samples = daemon.work_until(lambda found: found("events_scored_total") > 400, "scoring goes on")
        assert version(samples) == model
        assert daemon.terminate()[0] == 0
    scores = read_lines(tmp_path / "scores.jsonl")
    assert [record["offset"] for record in scores] == list(range(len(scores)))
    versions = [record["model_version"] for record in scores]
    assert [name for name, _ in itertools.groupby(versions)] == [first, model], "from one event on, and never back"


def test_after_a_change_of_cell_streams_keep_their_history(tmp_path: Path) -> None:
    """Only hidden states are the network's own: they are primed, and nothing begins to warm up again."""
    settings = odd_waves_from_file(tmp_path, 5, 1000) | {
        "source.speed": 50 * STEP,
        "state.checkpoint_interval_seconds": 0.2,
        "training.enabled": False,
    }
    with Longwatch(tmp_path, settings) as daemon:
        daemon.work_until(lambda found: found("events_scored_total") > 5 * 150, "a past")
        assert daemon.terminate()[0] == 0

    with Longwatch(tmp_path, settings | {"model.cell": "rnn", "source.speed": 0}) as daemon:
        daemon.line(r": rnn on cpu.*5 streams, resumed")
        assert daemon.wait() == 0

    scores = read_lines(tmp_path / "scores.jsonl")
    assert [record["offset"] for record in scores] == list(range(5 * 1000))
    models = [record["model_version"] for record in scores]
    assert len(list(itertools.groupby(models))) == 2
    swapped = models.index(models[-1])
    assert swapped >= 5 * 50
    assert not any(record.get("warming") for record in scores[swapped:])


def version(samples: Samples) -> str:
    (found,) = (s for s in samples.families["longwatch_model_info"].samples if s.value == 1)
    return found.labels["version"]
