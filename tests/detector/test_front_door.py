"""What engineers import: `from detector import Engine`, batches of arrays and events, and docs/embedding.md."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import datetime

import numpy as np
import pytest

import detector
from connectors.batches import EventBatch
from tests.brokers import CHECKOUT

EMBEDDING = (CHECKOUT / "docs" / "embedding.md").read_text(encoding="utf-8")


def test_the_bare_import_loads_nothing_heavy() -> None:
    ask = "import sys, detector; print({'numpy', 'numba', 'torch', 'pydantic'} & sys.modules.keys(), detector.__all__)"
    done = subprocess.run([sys.executable, "-c", ask], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("set() ")


def test_every_exported_name_exists() -> None:
    assert {getattr(detector, name).__name__ for name in detector.__all__} == set(detector.__all__)
    with pytest.raises(AttributeError, match="no attribute 'engin'"):
        _ = detector.engin


def test_python_m_detector_runs_longwatch() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "detector", "--version"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"longwatch {detector.__version__}\n"


def test_the_examples_of_the_documents_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "embedding"}
    blocks = re.findall(r"^```python\n(.*?)^```$", EMBEDDING, re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, "docs/embedding.md", "exec"), names)
    printed = capsys.readouterr().out
    shown = re.search(r"^```text\n(.*?)^```$", EMBEDDING, re.MULTILINE | re.DOTALL)
    digits = re.compile(r"\d[\d.,]*")  # the last ones differ from machine to machine
    assert shown
    assert digits.sub("", printed).startswith(digits.sub("", shown[1]))
    assert printed.startswith("critical alert: web-1 at 2026-11-07 06:00:00Z: observed 14.06, expected 11.3")


def test_a_batch_keeps_the_order_of_its_events() -> None:
    batch = EventBatch.of(
        [
            ("a", 5, {"x": 1, "y": "up"}),
            ("b", np.datetime64("1970-01-01T00:00:01"), {"x": 2.5}),
            ("a", datetime(1970, 1, 1, 0, 0, 2), {"y": "down"}),  # noqa: DTZ001 - UTC, as numpy has it
        ]
    )
    assert [batch.streams[code] for code in batch.stream] == ["a", "b", "a"]
    assert batch.time.tolist() == [5, 10**9, 2 * 10**9]
    assert [batch.features[code] for code in batch.feature] == ["x", "y", "x", "y"]
    np.testing.assert_array_equal(batch.value, [1.0, np.nan, 2.5, np.nan])
    assert [batch.symbols[code] if code >= 0 else None for code in batch.symbol] == [None, "up", None, "down"]
    assert batch.start.tolist() == [0, 2, 3, 4]


def test_columns_and_events_make_the_same_batch() -> None:
    nan = float("nan")
    columns = EventBatch.of_columns("a", np.arange(4), {"x": [1.0, nan, nan, 4.0], "y": [5.0, 6.0, nan, nan]})
    assert columns.offset.tolist() == [0, 1, 3]  # the third row has no value: it is no event
    events = EventBatch.of([("a", 0, {"x": 1.0, "y": 5.0}), ("a", 1, {"y": 6.0}), ("a", 3, {"x": 4.0})])
    for name in ("streams", "features", "partitions"):
        assert getattr(columns, name) == getattr(events, name)
    for name in ("stream", "time", "received", "partition", "start", "feature", "value", "symbol"):
        np.testing.assert_array_equal(getattr(columns, name), getattr(events, name))
        assert getattr(columns, name).dtype == getattr(events, name).dtype


def test_a_table_and_events_make_the_same_batch() -> None:
    table = EventBatch.of_table(["a", "b"], ["x", "y"], [1, 0, 1], [3, 4, 5], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    events = EventBatch.of([("b", 3, {"x": 1.0, "y": 2.0}), ("a", 4, {"x": 3, "y": 4}), ("b", 5, {"x": 5, "y": 6})])
    assert [table.streams[code] for code in table.stream] == [events.streams[code] for code in events.stream]
    assert (table.features, table.partitions) == (events.features, events.partitions)
    for name in ("time", "received", "partition", "offset", "start", "feature", "value", "symbol"):
        np.testing.assert_array_equal(getattr(table, name), getattr(events, name))
        assert getattr(table, name).dtype == getattr(events, name).dtype


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_are_not_finite_are_an_error(value: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        EventBatch.of([("a", 0, {"x": value})])


@pytest.mark.parametrize("time", ["noon", 1.5, np.datetime64("NaT")])
def test_an_invalid_time_is_an_error(time: object) -> None:
    with pytest.raises(ValueError, match=r"time|date"):
        EventBatch.of([("a", time, {"x": 1.0})])


def test_columns_of_unequal_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="dimension"):
        EventBatch.of_columns("a", np.arange(3), {"x": [1.0, 2.0, 3.0], "y": [1.0]})
    with pytest.raises(ValueError, match="must be finite"):
        EventBatch.of_columns("a", np.arange(1), {"x": [float("inf")]})
