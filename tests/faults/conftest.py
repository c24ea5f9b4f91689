"""What every test of the daemon as a process needs: kernels that have been compiled."""

from __future__ import annotations

import os

import pytest

from tests.daemon.support import make_fleet
from tests.faults.support import Undisturbed


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the first run compile numba's kernels, which takes 12 s on an idle machine, where no clock is watched."""
    Undisturbed(tmp_path_factory.mktemp("compiled"), make_fleet(streams=5, rows=200, seed=1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the long forms out unless they are asked for: they take most of an hour."""
    if not os.environ.get("LONGWATCH_FAULTS"):
        for item in items:
            if item.get_closest_marker("faults"):
                item.add_marker(pytest.mark.skip(reason="a long form: make test-faults, or LONGWATCH_FAULTS=1"))
