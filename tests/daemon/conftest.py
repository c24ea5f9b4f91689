"""What every test of the daemon as a process needs: kernels that have been compiled."""

from __future__ import annotations

import pytest

from tests.kernels import compile_kernels


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Compile numba's kernels, which takes half a minute the first time, where no clock is watched."""
    compile_kernels("lstm")
