"""The tables of streams and lanes, and the rows that leave them and come back."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.lib.recfunctions import repack_fields
from numpy.typing import NDArray

from detector.engine.engine import Engine, EngineSettings
from detector.errors import StateError
from detector.state.former import head_of
from detector.state.lane_network import KernelLanes
from detector.state.records import HEADER, STREAM, lane_row
from detector.state.stream_states import StreamStates
from detector.state.tables import Table, block_size
from tests.streams import DAY, Event, batch_of, clock, in_batches, numbered, run, seasonal, wide
from training.network.horizons import HORIZONS
from training.network.model import Forecaster
from training.network.shape import Shape
from training.network.weights import Weights, load_prior

LANE = lane_row(HORIZONS)
NOISE = np.random.default_rng(7)


def fed(model: Weights, events: list[Event]) -> Engine:
    engine = Engine(model)
    run(engine, in_batches(numbered(events), 1000))
    return engine


def of_every_family(seed: int = 0, rows: int = 260) -> list[Event]:
    """One, three, 20 and 200 features."""
    rng, events = np.random.default_rng(seed), []
    for features in (1, 3, 20, 200):
        value = seasonal(rng, clock(rows))[:, None] + rng.standard_normal((rows, features))
        events += wide(f"s{features}", clock(rows), value)
    return events


def test_a_stream_of_one_feature_takes_4_kib_in_memory_and_when_saved(model: Weights) -> None:
    rng, time = np.random.default_rng(3), clock(400)
    engine = fed(model, wide("s", time, seasonal(rng, time)[:, None]))
    ((_, row),) = engine.streams.drain()
    assert STREAM.itemsize + LANE.itemsize + 4 * engine.streams.states.state_size <= 4096
    assert len(row) <= 4096


def test_a_table_that_grows_keeps_its_rows() -> None:
    table = Table(np.dtype(np.int64))
    blocks = []
    for number in range(1, 300):
        first = table.allocate(3)
        table.rows[first : first + 3] = number
        blocks.append(first)

    assert len(set(blocks)) == 299
    for number, first in enumerate(blocks, 1):
        assert table.rows[first : first + 3].tolist() == [number] * 3
    assert table.nbytes == 299 * 3 * 8


def test_a_reused_block_is_cleared() -> None:
    table = Table(np.dtype([("a", np.float64), ("b", np.uint8, 4)]))
    first, other = table.allocate(2), table.allocate(2)
    table.rows["a"], table.rows["b"] = 7.0, 9
    table.release(first, 2)

    again = table.allocate(2)

    assert again == first
    assert not table.rows[again : again + 2]["a"].any()
    assert not table.rows[again : again + 2]["b"].any()
    assert (table.rows[other : other + 2]["a"] == 7.0).all()


def test_blocks_of_lanes_waste_at_most_a_third() -> None:
    for lanes in range(1, 1025):
        assert lanes <= block_size(lanes) <= max(1.5 * lanes, lanes + 1)


def test_a_stream_in_a_reused_slot_starts_empty(model: Weights) -> None:
    engine = Engine(model, EngineSettings(max_streams=1))
    fresh = Engine(model)
    rng = np.random.default_rng(1)
    for turn, features in enumerate((1, 4, 1, 40, 2)):
        old = numbered(wide(f"old {turn}", clock(300), rng.standard_normal((300, features)) + 5))
        run(engine, in_batches(old, 100))
        list(engine.streams.drain())
        new = numbered(wide(f"new {turn}", clock(300), rng.standard_normal((300, features)) * 3))

        found, wanted = run(engine, in_batches(new, 100)), run(fresh, in_batches(new, 100))

        for name in ("score", "expected", "lower", "upper", "surprise"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), name)


def test_rows_of_every_family_round_trip_bit_for_bit(model: Weights) -> None:
    engine = fed(model, of_every_family())
    rows = dict(engine.streams.drain())
    other = StreamStates(KernelLanes(model), model.shape.state_size)
    other.features.id_of("other numbers than where it came from")

    for name, row in rows.items():
        other.unpack(name, row, 5, engine.version)

    assert set(rows) == {"s1", "s3", "s20", "s200"}
    slots = np.array([other.slots[name] for name in rows], np.int64)
    again = dict(other.pack(slots, 5, engine.version))
    for name, row in rows.items():
        assert neutral(again[name]) == neutral(row), name
        assert other.features_of(other.slots[name]) == engine.streams.states.features_of(
            engine.streams.states.slots[name]
        )


def neutral(row: bytes) -> tuple[Any, ...]:
    """Take a row apart; what depends on where its stream lies (rows, numbers of features) is left out."""
    head = head_of(row)
    lanes, at = head.lanes, head.begin + head.notes
    notes = row[:at]
    stream = without_padding(np.frombuffer(row, STREAM, 1, at))
    stream["first_lane"] = stream["first_lane"] >= 0
    lane = without_padding(np.frombuffer(row, LANE, lanes, at + STREAM.itemsize))
    lane["feature"] = 0
    at += STREAM.itemsize + lanes * LANE.itemsize
    return notes, stream.tobytes(), lane.tobytes(), row[at:]


def without_padding(rows: NDArray[np.void]) -> NDArray[np.void]:
    """Copy records field by field: what lies between their fields is anything."""
    return rows.astype(repack_fields(rows.dtype, recurse=True))


@pytest.mark.parametrize("where", ["empty", "header", "notes", "half", "last byte", "one byte more", "other horizons"])
def test_a_damaged_or_foreign_row_is_refused_and_leaves_nothing_behind(model: Weights, where: str) -> None:
    engine = fed(model, of_every_family(rows=3))
    states = StreamStates(KernelLanes(model), model.shape.state_size)
    for name, row in engine.streams.drain():
        cut = {"empty": 0, "header": 10, "notes": HEADER.size + 5, "half": len(row) // 2, "last byte": len(row) - 1}
        bad = row[: cut[where]] if where in cut else row + b"\0"
        if where == "other horizons":
            bad = dict(fed(Forecaster(Shape(horizons=(1, 5))).weights, of_every_family(rows=3)).streams.drain())[name]

        with pytest.raises(StateError, match=rf"state of stream '{name}'"):
            states.unpack(name, bad, 1, engine.version)

        assert states.slots == {}


def test_a_row_of_another_layout_is_an_error_with_advice(model: Weights) -> None:
    engine = fed(model, of_every_family(rows=3))
    name, row = next(iter(engine.streams.drain()))

    with pytest.raises(StateError, match=r"another version or of other model\.horizons; go back to those, or move"):
        Engine(model).streams.states.unpack(name, b"\0" * 8 + row[8:], 1, engine.version)


def test_a_row_of_another_network_is_primed_before_its_next_event() -> None:
    """So model.cell and model.directory can be changed without losing what streams have shown."""
    small, events = (
        Forecaster(Shape(hidden_size=8)).weights,
        numbered(wide("s", clock(44), seasonal(NOISE, clock(44))[:, None])),
    )
    rows = dict(fed(small, events[:40]).streams.drain())
    other = Engine(load_prior(), fetch=lambda names: [rows.get(name) for name in names])

    found = run(other, in_batches(events[40:], 100))

    assert len(found.score) == 4
    states = other.streams.states
    lane = np.array([int(states.streams.rows["first_lane"][states.slots["s"]])])
    assert states.lanes.rows["history"]["events"][lane] == 44
    unprimed = Engine(load_prior())
    run(unprimed, in_batches(events[40:], 100))
    assert not np.allclose(
        other.streams.states.recurrent.read(lane), unprimed.streams.states.recurrent.read(np.array([0]))
    )


def alarmed(rows: int = 400) -> list[Event]:
    """A stream of three features, one of them first seen in the very event that alarms."""
    rng = np.random.default_rng(2)
    value = seasonal(rng, clock(rows))[:, None] + 0.1 * rng.standard_normal((rows, 3))
    value[:, 2] = np.nan
    value[-30:, :2] += 40.0
    value[-30:, 2] = 1.0
    return wide("s", clock(rows), value)


def test_an_open_incident_round_trips_even_without_expected_values(model: Weights) -> None:
    events = numbered(alarmed())
    engine = Engine(model)
    fired = run(engine, in_batches(events[:-29], 50)).alerts
    restored = Engine(model, fetch=lambda names: [dict(rows).get(name) for name in names])
    rows = list(engine.streams.drain())
    calm = [
        e._replace(values=dict.fromkeys(e.values, 10.0))
        for e in numbered(wide("s", clock(100, start=clock(1)[0] + DAY * 9), np.zeros((100, 3))))
    ]

    resolved = run(restored, in_batches(calm, 50)).alerts

    assert [alert.status for alert in fired] == ["firing"]
    assert math.isnan(fired[0].expected["f2"])
    assert fired[0].id in {alert.id for alert in resolved if alert.status == "resolved"}


def test_tables_report_their_memory(model: Weights) -> None:
    engine = Engine(model)
    engine.step(batch_of([Event("a", 1, {"x": 1.0})]))
    before = engine.streams.nbytes

    engine.step(batch_of([Event(f"b{k}", 1, {"x": 1.0}) for k in range(100)]))

    assert engine.streams.nbytes - before > 100 * (STREAM.itemsize + LANE.itemsize)
