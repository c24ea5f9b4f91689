"""What every test of the daemon as a process needs: kernels that have been compiled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import Broker
from tests.faults.changelogs import World
from tests.kernels import compile_kernels


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Compile numba's kernels, which takes half a minute the first time, where no clock is watched."""
    compile_kernels("lstm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the long forms out unless they are asked for: they take most of an hour."""
    if not os.environ.get("LONGWATCH_FAULTS"):
        for item in items:
            if item.get_closest_marker("faults"):
                item.add_marker(pytest.mark.skip(reason="a long form: make test-faults, or LONGWATCH_FAULTS=1"))


@pytest.fixture
def world(apache: Broker, tmp_path: Path) -> Iterator[World]:
    made = World(apache, tmp_path)
    yield made
    made.close()
