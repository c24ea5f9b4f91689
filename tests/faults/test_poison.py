"""An event on which the engine raises: put aside with its reason, and the others scored as if it had never come.

What raises here is a kernel of our own, made to raise on one value: before its work for some, after it for others, so
that states are left half changed in either way.
"""

from __future__ import annotations

import json
import random
import subprocess
import textwrap
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.batches import EventBatch, Partition, RawBatch, Rejected
from connectors.decode.decoder import Decoder
from connectors.encode import score_records
from detector.engine import stages
from detector.engine.engine import Engine, EngineSettings, Step
from detector.observability.metrics import ENGINE_ERROR
from detector.scoring.batch import SortedBatch, Tables
from detector.service.poison_events import (
    CAREFUL_SECONDS,
    MAX_FAILURES_OF_A_STREAM,
    EngineError,
    FaultError,
    PoisonGuard,
)
from tests.brokers import Broker
from tests.daemon.fleet import make_fleet
from tests.daemon.records import Record, by_place, difference, open_producer, read_lines
from tests.daemon.support import Longwatch, until
from tests.detector.engine.restarts import assert_same
from tests.faults.support import PARTITIONS, Topics, committed, scored_events
from tests.streams import Event, Outcome, fleet, in_batches, interleaved, run
from training.network.weights import Weights

BEFORE, AFTER = 12_345.5, 12_346.5  # values that make the kernel raise before and after its work


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the last kernel raise where it meets one of the values."""
    judge = getattr(stages, "judge")  # noqa: B009 - a kernel of the scans', which the stages do not export

    def raising(tables: Tables, batch: SortedBatch, *rest: Any) -> None:
        *_, (first, last), _ = rest
        here = batch.value[batch.start[first] : batch.start[last]]
        if (here == BEFORE).any():
            raise IndexError("before")
        judge(tables, batch, *rest)
        if (here == AFTER).any():
            raise ZeroDivisionError("after")

    monkeypatch.setattr(stages, "judge", raising)


def with_poison(events: Sequence[Event], seed: int) -> list[Event]:
    """Put a poison event before one in 200, of the same stream; and some of a stream that has no others."""
    rng = random.Random(seed)
    mixed: list[Event] = []
    for event in events:
        if rng.random() < 1 / 200:
            value = rng.choice([BEFORE, AFTER])
            feature = next(iter(event.values))
            mixed.append(event._replace(values={**event.values, feature: value}, offset=-1 - len(mixed)))
        mixed.append(event)
    return [Event("bad", 10**18, {"x": BEFORE}, -(10**6)), *mixed, Event("bad", 10**18 + 1, {"x": AFTER}, -(10**6) - 1)]


def raw_of(batch: EventBatch) -> RawBatch:
    """Return the records of a batch: each is its own offset."""
    offsets = batch.offset.tolist()
    return RawBatch(
        partitions=batch.partitions,
        partition=batch.partition.tolist(),
        offset=offsets,
        value=[str(offset).encode() for offset in offsets],
    )


class Kept:
    """A store: rows by name."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}

    def fetch(self, names: Sequence[str]) -> list[bytes | None]:
        return [self.rows.get(name) for name in names]


class Steps:
    """What an engine has said, for `run` to gather."""

    def __init__(self) -> None:
        self.batches: list[EventBatch] = []
        self._steps: list[Step] = []

    def add(self, batch: EventBatch, step: Step) -> None:
        self.batches.append(batch)
        self._steps.append(step)

    def gathered(self) -> Outcome:
        said = iter(self._steps)

        class Said:
            def step(self, _: EventBatch) -> Step:
                return next(said)

        return run(Said(), self.batches)  # type: ignore[arg-type]  # it needs no more of an engine


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return interleaved(fleet(), 5)[:3_000]


@pytest.fixture(scope="module")
def reference(model: Weights, events: list[Event]) -> Outcome:
    return run(Engine(model), in_batches(events, 500))


@pytest.mark.parametrize("threads", [1, 4])
def test_a_poisonous_event_does_not_change_the_others_scores(
    model: Weights, events: list[Event], reference: Outcome, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    poison(monkeypatch)
    monkeypatch.setattr(stages, "THREAD_EVENTS", 1)
    mixed = with_poison(events, 1)
    bad = [event.offset for event in mixed if event.offset < 0]
    assert len(bad) > 10
    store = Kept()
    # few in memory, so that some come from the store and others are on their way to it
    engine = Engine(model, EngineSettings(threads=threads, max_streams=9), fetch=store.fetch)
    guard, steps, refused = PoisonGuard(engine, always=True), Steps(), list[Rejected]()
    for number, batch in enumerate(in_batches(mixed, 700)):
        for part, step, aside, _ in guard.step_all(batch, raw_of(batch)):
            refused += aside
            if step is not None:
                steps.add(part, step)
        if number % 3 == 2:
            store.rows.update(engine.streams.drain())
    engine.close()
    assert [refusal.offset for refusal in refused] == bad, "each is put aside once, in their order"
    assert {refusal.reason for refusal in refused} == {ENGINE_ERROR}
    assert all(refusal.raw == str(refusal.offset).encode() for refusal in refused)
    assert "IndexError: before" in refused[0].detail
    assert "event of stream 'bad'" in refused[0].detail
    assert_same(steps.gathered(), reference)


def test_states_are_copied_only_for_a_while_after_an_event_raised(
    model: Weights, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    now = [1_000.0]
    engine = Engine(model)
    guard = PoisonGuard(engine, clock=lambda: now[0])
    copied: list[int] = []
    snapshot = engine.streams.snapshot

    def counted(names: Sequence[str]) -> dict[str, bytes | None]:
        copied.append(len(names))
        return snapshot(names)

    monkeypatch.setattr(engine.streams, "snapshot", counted)
    (bad,) = in_batches([*events[:10], Event("bad", 1, {"x": AFTER}, 10**6)], 11)
    good = list(in_batches(events[10:40], 10))

    list(guard.step_all(good[0], raw_of(good[0])))
    with pytest.raises(FaultError, match="ZeroDivisionError: after"):
        list(guard.step_all(bad, raw_of(bad)))
    assert not copied
    engine.streams.roll_back()
    assert len([scored for scored in guard.step_all(bad, raw_of(bad)) if scored.step is None]) == 1
    copied.clear()
    list(guard.step_all(good[1], raw_of(good[1])))
    assert copied, "another one may follow"
    now[0] += CAREFUL_SECONDS + 1
    copied.clear()
    list(guard.step_all(good[2], raw_of(good[2])))
    assert not copied


def test_a_stream_whose_state_raises_is_reset_and_the_others_continue(
    model: Weights, events: list[Event], reference: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Kept()
    engine = Engine(model, fetch=store.fetch)
    judge = getattr(stages, "judge")  # noqa: B009 - as in `poison`

    def raising(tables: Tables, batch: SortedBatch, *rest: Any) -> None:
        judge(tables, batch, *rest)
        *_, (first, last), _ = rest
        slots = batch.slot[first:last]
        poisoned = slots == engine.streams.states.slots.get("noisy", -1)
        if (tables.streams["score"]["events"][slots[poisoned]] > 100).any():
            raise IndexError("state")

    monkeypatch.setattr(stages, "judge", raising)
    guard, steps, refused = PoisonGuard(engine, always=True), Steps(), list[Rejected]()
    anew: list[int] = []
    for batch in in_batches(events, 250):
        for part, step, aside, reset in guard.step_all(batch, raw_of(batch)):
            refused += aside
            anew += part.offset.tolist() if reset else []
            if step is not None:
                steps.add(part, step)
        store.rows.update(engine.streams.drain())
    mine = [event.offset for event in events if event.stream == "noisy"]
    assert [refusal.offset for refusal in refused] == [
        offset for life in (mine[100:], mine[202:]) for offset in life[: MAX_FAILURES_OF_A_STREAM - 1]
    ]
    assert anew == [mine[100 + MAX_FAILURES_OF_A_STREAM - 1], mine[202 + MAX_FAILURES_OF_A_STREAM - 1]]
    found = steps.gathered()
    others = np.flatnonzero(~np.isin(reference.offset, mine))
    same = np.flatnonzero(~np.isin(found.offset, mine))
    assert np.array_equal(found.offset[same], reference.offset[others])
    assert np.array_equal(found.score[same], reference.score[others])
    own = np.isin(found.offset, mine)
    assert found.warming[own][100], "the first event after it is that of a new stream"
    assert Engine(model, fetch=store.fetch).step(batch).scores is not None, "what was saved can be gone on with"


def test_an_engine_that_always_raises_rejects_no_events(
    model: Weights, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(stages, "judge", broken)
    guard = PoisonGuard(Engine(model), always=True)
    (batch,) = in_batches(events[:200], 200)
    with pytest.raises(EngineError, match="on 100 events one after the other, so it is not the events"):
        list(guard.step_all(batch, raw_of(batch)))


# -- the daemon --------------------------------------------------------------------------------------------------------

# `longwatch run` whose last kernel raises, after its work, where it meets the value
POISONED = (
    "-c",
    textwrap.dedent("""
        import sys
        from detector import cli
        from detector.engine import stages
        judge = stages.judge
        def raising(tables, batch, *rest):
            judge(tables, batch, *rest)
            if (batch.value == 12346.5).any():
                raise ZeroDivisionError("after")
        stages.judge = raising
        sys.argv[1:1] = ["run"]
        cli.main()
    """),
)
FLEET = make_fleet(streams=8, rows=150, seed=3)
EVENTS = 8 * 150
PLACES = 500, 508, 902  # of the poison events: in the middle, where every stream has a past
Event_ = tuple[str, str]  # stream and timestamp


def records() -> Iterator[tuple[int, bytes]]:
    """Yield the fleet's events with the poison ones among them."""
    number = 0
    for stream, record in FLEET.records():
        if number in PLACES:
            bad = json.loads(record)
            bad["values"] = dict.fromkeys(bad["values"], AFTER)
            bad["timestamp"] -= 1
            yield stream, json.dumps(bad).encode()
            number += 1
        yield stream, record
        number += 1


@pytest.fixture(scope="module")
def expected(model: Weights) -> dict[Event_, Record]:
    """Return the scores of an engine to which the poison never came."""
    lines = [record for _, record in FLEET.records()]
    count = len(lines)
    raw = RawBatch([Partition("events", 0)], [0] * count, list(range(count)), [-1] * count, [None] * count, lines)
    batch, _ = Decoder().decode(raw)
    return by_event([json.loads(record) for _, record in score_records(Engine(model).step(batch).scores)])


def by_event(records: Sequence[Record]) -> dict[Event_, Record]:
    """Return scores by stream and time, without where the events stood."""
    found: dict[Event_, Record] = {}
    for record in records:
        kept = {name: value for name, value in record.items() if name not in {"topic", "partition", "offset"}}
        assert found.setdefault((record["stream"], record["timestamp"]), kept) is kept, "each event is scored once"
    return found


def assert_same_scores(found: Sequence[Record], expected: dict[Event_, Record]) -> None:
    mine = by_event(found)
    assert mine.keys() == expected.keys()
    for event, record in mine.items():
        assert not (reported := difference(record, expected[event])), f"{event}: {reported}"


@pytest.mark.parametrize("source", ["file", pytest.param("pipe", marks=pytest.mark.faults)])
def test_a_file_reader_rolls_back_to_its_checkpoint_and_scores_each_event_once(
    tmp_path: Path, source: str, expected: dict[Event_, Record]
) -> None:
    events = tmp_path / "events.jsonl"
    events.write_bytes(b"\n".join(record for _, record in records()) + b"\n")
    settings = {
        "source.type": "file",
        "source.paths": ["-"] if source == "pipe" else [str(events)],
        "source.max_poll_records": 100,
        "state.directory": str(tmp_path / "state"),
        "state.checkpoint_interval_seconds": 0.2,
        "training.enabled": False,
        "output.scores_file": str(tmp_path / "scores.jsonl"),
        "output.dead_letter_file": str(tmp_path / "refused.jsonl"),
    }
    stdin = subprocess.PIPE if source == "pipe" else subprocess.DEVNULL
    with Longwatch(tmp_path, settings, program=POISONED, stdin=stdin) as daemon:
        if daemon.process.stdin is not None:
            daemon.process.stdin.write(events.read_bytes())
            daemon.process.stdin.close()
        assert daemon.wait() == 0, daemon.log
    # a pipe cannot be read again, so there each step is made carefully
    assert daemon.log.count("rolling back to the last checkpoint") == (source == "file")
    assert_same_scores(read_lines(tmp_path / "scores.jsonl"), expected)
    refused = read_lines(tmp_path / "refused.jsonl")
    assert [(refusal["reason"], refusal["offset"]) for refusal in refused] == [(ENGINE_ERROR, at) for at in PLACES]


@pytest.mark.kafka
@pytest.mark.parametrize("guarantee", ["exactly_once", pytest.param("at_least_once", marks=pytest.mark.faults)])
def test_a_topic_reader_rolls_back_to_its_commit_and_scores_the_others_correctly(
    apache: Broker, tmp_path: Path, expected: dict[Event_, Record], guarantee: str
) -> None:
    topics = Topics(apache, tmp_path, uuid.uuid4().hex[:8])
    refused = apache.create_topic(f"refused-{topics.name}")
    more = {"kafka__dead_letter_topic": refused, "source__max_poll_records": 100, "processing__guarantee": guarantee}
    settings = topics.settings("a", **more)
    producer = open_producer(apache)
    for stream, record in records():
        producer.send(topics.events, record, partition=stream % PARTITIONS)
    producer.close()
    with Longwatch(tmp_path, settings, program=POISONED) as worker:
        until(lambda: scored_events(topics) == EVENTS + len(PLACES), "all is committed", every=0.2)
        samples = worker.metrics()
        assert worker.terminate()[0] == 0
    assert samples("events_rejected_total", reason=ENGINE_ERROR) == len(PLACES)
    assert worker.log.count("rolling back to the last checkpoint: ZeroDivisionError") == 1
    found = topics.scored()
    if guarantee == "at_least_once":  # what came since the checkpoint is written again, equally
        found = [
            records[0] for records in by_place(found).values() if not any(difference(r, records[0]) for r in records)
        ]
    assert_same_scores(found, expected)
    dead = {record.offset: dict(record.headers) for record in committed(apache, refused)}
    assert [headers["reason"] for headers in dead.values()] == [ENGINE_ERROR.encode()] * len(PLACES)
