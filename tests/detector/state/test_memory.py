"""States stay within their memory limit, and eviction does not change scores."""

from __future__ import annotations

import ctypes
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from connectors.batches import EventBatch
from detector.config.sections import MIN_STATE_BYTES
from detector.engine import engine as engine_module
from detector.engine.engine import Engine, EngineSettings
from detector.service.engine_setup import BASE_BYTES, SHARE, log_capacity, memory_limit
from detector.state.spill_buffer import SpillBuffer
from detector.state.stream_cache import PORTION
from detector.state.tables import PAGE, GrowableArray, Table, machine_bytes
from tests.detector.engine.restarts import assert_same
from tests.streams import MINUTE, START, Event, batch_of, in_batches, numbered, run
from training.network.weights import Weights

LIMIT = MIN_STATE_BYTES
HUGE_PAGE = 4 << 20  # bytes that the system may lay beneath a single one
WIDEST = 32 << 20  # one stream of 1,024 features: the only thing that may stand above the limit


class Store:
    """Rows by stream, as a store would keep them; hands them out one by one."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}

    def fetch(self, names: list[str]) -> Iterator[bytes | None]:
        for name in names:
            yield self.rows.get(name)


def limited(model: Weights, store: Store, folder: Path | None = None) -> Engine:
    spill = SpillBuffer(folder, round(PORTION * LIMIT)) if folder else None
    return Engine(model, EngineSettings(memory_bytes=LIMIT), fetch=store.fetch, spill=spill)


def resident(rows: NDArray[Any]) -> int:
    """Return how many bytes of an array's own pages are in memory, by mincore(2)."""
    before = rows.ctypes.data % PAGE
    size = before + rows.nbytes
    pages = np.zeros(-(-size // PAGE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
    if libc.mincore(rows.ctypes.data - before, size, pages.ctypes.data):
        raise OSError(ctypes.get_errno(), "mincore")
    return PAGE * int((pages & 1).sum())


# -- tables ------------------------------------------------------------------------------------------------------------


def test_cleared_rows_return_their_memory() -> None:
    array = GrowableArray(np.dtype((np.void, 3 * PAGE)))
    array.resize(2_000)
    assert resident(array.rows) == 0
    array.rows.view(np.uint8)[:] = 1
    assert resident(array.rows) > 0.9 * array.rows.nbytes
    assert array.release(500, 1_000) == array.rows[500:1_500].nbytes

    assert resident(array.rows[500:1_500]) == 0
    assert resident(array.rows) > 0.4 * array.rows.nbytes
    assert array.rows[:500].view(np.uint8).all()
    assert not array.rows[500:1_500].view(np.uint8).any()
    array.release(0, 2_000)
    assert not array.rows[:100].view(np.uint8).any()


def test_growing_a_table_does_not_copy_its_rows() -> None:
    table = Table(np.dtype((np.void, 10_000)))
    place, lengths = table.rows.ctypes.data, {len(table.rows)}
    for number in range(2_000):
        first = table.allocate(1)
        table.rows[first] = bytes([number % 255 + 1]) * 10_000
        lengths.add(len(table.rows))
        assert table.rows.ctypes.data == place
    assert len(lengths) > 5, "it has grown again and again"
    assert resident(table.rows) <= table.used * 10_000 + HUGE_PAGE
    assert table.rows[1].tobytes() == bytes([2]) * 10_000


def test_an_array_that_outgrows_its_reservation_keeps_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.state.tables.RESERVED", 0)
    array = GrowableArray(np.dtype(np.int64))
    for rows in (10, 1_000, 100_000):
        array.resize(rows)
        array.rows[rows // 2 :] = rows
    assert array.rows[9] == 10
    assert array.rows[999] == 1_000
    assert array.rows[-1] == 100_000


@pytest.mark.parametrize("size", [1, 5])
def test_blocks_that_come_together_take_no_page_that_they_do_not_touch(size: int) -> None:
    table = Table(np.dtype((np.void, 4 * PAGE + 100)))
    table.allocate(7)
    place = table.rows.ctypes.data

    blocks = table.allocate_blocks(size, 600)

    assert blocks.tolist() == [7 + size * k for k in range(600)]
    assert not table.rows.view(np.uint8).any()
    assert table.rows.ctypes.data == place
    assert resident(table.rows[: table.used]) >= resident(table.rows)
    for first in blocks[1:-1].tolist():
        table.release(first, size)
    assert resident(table.rows) < 2.1 * PAGE * len(blocks) + 2 * size * table.row_bytes, "but for what blocks share"


def test_blocks_that_come_together_are_first_those_that_were_freed() -> None:
    table = Table(np.dtype((np.void, 100)))
    blocks = table.allocate_blocks(2, 5).tolist()
    for first in blocks[1:3]:
        table.rows[first : first + 2] = b"x" * 100
        table.release(first, 2)

    again = table.allocate_blocks(2, 4).tolist()

    assert sorted(again) == [*blocks[1:3], 10, 12]
    assert not table.rows.view(np.uint8).any()
    assert (table.used, table.free, table.nbytes) == (14, 0, 1_400)


def test_memory_freed_by_small_blocks_serves_large_ones() -> None:
    table = Table(np.dtype((np.void, 6_000)))
    small = [table.allocate(1) for _ in range(4_000)]
    for first in small:
        table.rows[first] = b"x" * 6_000
        table.release(first, 1)
    for _ in range(500):
        first = table.allocate(6)
        assert not table.rows[first : first + 6].view(np.uint8).any()
    assert table.used == 4_000
    assert table.free == 1_000


# -- the engine --------------------------------------------------------------------------------------------------------


def crowd(seed: int, streams: int, rows: int) -> list[Event]:
    """Return events of streams of one, some and many features, and symbols, that come back again and again."""
    choose = random.Random(seed)
    widths = [choose.choice([1, 1, 1, 1, 3, 7, 40]) for _ in range(streams)]
    events = []
    for row in range(rows):
        for stream in choose.sample(range(streams), streams):
            shown = min(widths[stream], 1 + 3 * row * widths[stream] // rows)  # features come one by one
            values: dict[str, float | str] = {f"f{k}": choose.gauss(10, 1) for k in range(shown)}
            if stream % 9 == 0:
                values["code"] = f"E{choose.randrange(5)}"
            events.append(Event(f"s{stream}", START + row * MINUTE, values))
    return numbered(events)


@pytest.mark.parametrize("size", [100, 3_000])
def test_a_small_memory_limit_is_kept_and_does_not_change_scores(model: Weights, tmp_path: Path, size: int) -> None:
    events = crowd(1, streams=2_000, rows=3)
    store = Store()
    engine = limited(model, store, tmp_path)
    highest = 0

    def batches() -> Iterator[EventBatch]:
        nonlocal highest
        for number, batch in enumerate(in_batches(events, size)):
            yield batch
            highest = max(highest, engine.streams.nbytes)
            if number % 3 == 2:
                store.rows.update(engine.streams.drain())

    assert_same(run(engine, batches()), run(Engine(model), in_batches(events, 1_000)))
    assert len(engine.streams) < 2_000
    assert 0.5 * LIMIT < highest <= LIMIT


def test_one_batch_may_hold_more_streams_than_fit_in_memory(model: Weights, tmp_path: Path) -> None:
    """5,000 new streams, three times what fits; then all of them again, whose states must come back."""
    store = Store()
    engine = limited(model, store, tmp_path)
    twice = [
        Event(f"s{k}", START + row * MINUTE, {"x": float(k)}, row * 5_000 + k) for row in (0, 1) for k in range(5_000)
    ]
    outcome = run(engine, in_batches(twice, 5_000))

    assert_same(outcome, run(Engine(model), in_batches(twice, 5_000)))
    assert engine.streams.nbytes <= LIMIT
    assert len(dict(engine.streams.drain())) == 5_000


def test_streams_of_a_thousand_features_are_scored_one_by_one(model: Weights, tmp_path: Path) -> None:
    store = Store()
    engine = limited(model, store, tmp_path)
    events = numbered(
        Event(f"s{k}", START + row * MINUTE, {f"f{n}": 1.0 for n in range(1_000)}) for row in (0, 1) for k in range(12)
    )
    highest = 0
    for batch in (
        *in_batches(events, 12),
        batch_of([Event(f"s{k}", START + 5 * MINUTE, {"f1": 1.0}) for k in range(12)]),
    ):
        assert len(engine.step(batch).scores) == 12
        highest = max(highest, engine.streams.nbytes)
    assert highest <= LIMIT + WIDEST


def test_a_very_large_batch_is_scored_in_parts(model: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    events = crowd(2, streams=60, rows=3)
    reference = run(Engine(model), in_batches(events, 1_000))
    monkeypatch.setattr(engine_module, "MAX_OBSERVATIONS", 100)
    assert_same(run(Engine(model), in_batches(events, 1_000)), reference)


def test_an_empty_batch_is_a_valid_step(model: Weights, tmp_path: Path) -> None:
    assert len(limited(model, Store(), tmp_path).step(batch_of([])).scores) == 0


def test_unused_feature_names_are_removed(model: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream is full of features and keeps adding names: they are dropped, and so are their names."""
    monkeypatch.setattr("detector.state.names.FEATURES_KEPT", 2_000)
    engine = Engine(model)
    for row in range(40):
        values = {f"feature-{row}-{k}": 1.0 for k in range(500)} | {"steady": 1.0}
        engine.step(
            batch_of([Event("s", START + row * MINUTE, values), Event("t", START + row * MINUTE, {"steady": 1.0})])
        )
    assert len(engine.streams.states.features) < 5_000
    assert len(engine.streams.states.features.names) < 5_000
    assert set(engine.streams.states.features_of(engine.streams.states.slots["t"])) == {"steady"}
    assert "feature-0-499" in engine.streams.states.features_of(engine.streams.states.slots["s"])


def test_memory_is_returned_when_streams_are_removed(model: Weights) -> None:
    engine = Engine(model)
    engine.step(batch_of([Event(f"s{k}", START, {f"f{n}": 1.0 for n in range(32)}) for k in range(300)]))
    full = engine.streams.nbytes
    engine.streams.forget([f"s{k}" for k in range(300)])
    assert engine.streams.nbytes < 0.2 * full


def test_reported_memory_follows_the_streams(model: Weights) -> None:
    for features in (1, 4, 16):
        engine = Engine(model)
        before, count = engine.streams.nbytes, 400
        engine.step(batch_of([Event(f"s{k}", START, {f"f{n}": 1.0 for n in range(features)}) for k in range(count)]))
        assert (engine.streams.nbytes - before) / count == pytest.approx(
            engine.streams.states.stream_bytes(features), rel=0.05
        )
        slots = np.arange(count)
        assert engine.streams.states.bytes_by_slot(slots).mean() == pytest.approx(
            engine.streams.states.stream_bytes(features), rel=0.15
        )


# -- what waits for the store ------------------------------------------------------------------------------------------


def test_spilled_rows_above_the_limit_go_to_disk(tmp_path: Path) -> None:
    spill = SpillBuffer(tmp_path, 1_000)
    rows = {f"s{k}": bytes([k]) * 300 for k in range(20)}
    spill.update(rows.items())
    spill.update([("s3", b"new"), ("s19", b"newer")])

    assert spill.nbytes <= 1_000
    assert len(spill) == 20
    assert dict(spill.items()) == rows | {"s3": b"new", "s19": b"newer"}
    assert spill.pop("s7") == rows["s7"]
    assert spill.pop("s7", None) is None
    assert "s7" not in spill
    assert not list(tmp_path.iterdir())  # the file has no name: it is gone with the process, however that ends


def test_spilled_rows_stay_in_memory_when_the_disk_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spill = SpillBuffer(tmp_path / "gone", 10)
    with caplog.at_level(logging.WARNING):
        spill.update((f"s{k}", b"x" * 100) for k in range(3))
    assert len(dict(spill.items())) == 3
    assert len(caplog.records) == 1
    assert "stay in memory" in caplog.text


# -- the limit ---------------------------------------------------------------------------------------------------------


def root_with(folder: Path, cgroup: str, **files: str) -> Path:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = (
            folder
            / "sys/fs/cgroup"
            / name.replace("__", "/")
            .replace("memory_max", "memory.max")
            .replace("limit_in_bytes", "memory.limit_in_bytes")
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


GIB = 1 << 30


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/a/b\n", {"a__b__memory_max": f"{2 * GIB}\n"}),
        ("0::/a/b\n", {"a__b__memory_max": "max\n", "a__memory_max": f"{2 * GIB}\n"}),  # a parent's
        ("0::/\n", {"memory_max": f"{2 * GIB}\n"}),  # a container with a namespace of its own
        ("0::/docker/123\n", {"memory_max": f"{2 * GIB}\n"}),  # ... and without one
        ("4:memory:/a\n0::/\n", {"memory__a__limit_in_bytes": f"{2 * GIB}\n"}),
        (
            "4:cpu,memory:/a\n",
            {"memory__a__limit_in_bytes": "9223372036854771712", "memory__limit_in_bytes": f"{2 * GIB}"},
        ),
    ],
)
def test_the_memory_limit_follows_the_cgroup(tmp_path: Path, cgroup: str, files: dict[str, str]) -> None:
    found = memory_limit(0, changelog=False, root=root_with(tmp_path, cgroup, **files))
    assert found.state_bytes == round(SHARE * (2 * GIB - BASE_BYTES))
    assert "its cgroup has (2.1 GB)" in found.reason


def test_the_memory_limit_is_the_machines_without_cgroup_and_the_setting_wins(tmp_path: Path) -> None:
    nothing = memory_limit(0, changelog=False, root=tmp_path)
    assert nothing.state_bytes == max(round(SHARE * (machine_bytes() - BASE_BYTES)), MIN_STATE_BYTES)
    assert memory_limit(0, changelog=True, root=tmp_path).state_bytes <= nothing.state_bytes
    assert memory_limit(123 << 20, changelog=False, root=tmp_path) == (123 << 20, "state.memory_bytes")


def test_a_too_small_cgroup_is_logged(tmp_path: Path) -> None:
    found = memory_limit(0, changelog=False, root=root_with(tmp_path, "0::/\n", memory_max=str(GIB // 2)))
    assert found.state_bytes == MIN_STATE_BYTES
    assert "0.5 GB" in found.reason


def test_the_logged_stream_capacity_is_right(model: Weights, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = limited(model, Store(), tmp_path)
    with caplog.at_level(logging.INFO):
        log_capacity(memory_limit(LIMIT, changelog=False), engine.streams.states, 1 - 3 * PORTION, 100_000)
    reported = int(caplog.messages[-1].partition("some ")[2].split()[0])
    most = 0
    for batch in in_batches([Event(f"s{k}", START, {"x": 1.0}) for k in range(16_000)], 100):
        engine.step(batch)
        most = max(most, len(engine.streams))
    assert reported == pytest.approx(most, rel=0.05)
