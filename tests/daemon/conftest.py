"""What every test of the daemon as a process needs: kernels that have been compiled."""

from __future__ import annotations

import signal

import pytest

from tests.kernels import compile_kernels


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Compile numba's kernels, which takes half a minute the first time, where no clock is watched."""
    compile_kernels("lstm")


@pytest.fixture(scope="session", autouse=True)
def hangups() -> None:
    """Let processes that tests start hear SIGHUP, also where the tests are run by nohup: ignored, it stays so."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # a handler does not go along
