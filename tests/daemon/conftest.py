"""What every test of the daemon as a process needs: kernels that have been compiled."""

from __future__ import annotations

import pytest

from tests.daemon.support import Longwatch, make_fleet


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the first run compile numba's kernels, which takes 12 s on an idle machine, where no clock is watched."""
    folder = tmp_path_factory.mktemp("compiled")
    events = folder / "events.jsonl"
    events.write_bytes(b"\n".join(record for _, record in make_fleet(streams=5, rows=200, seed=1).records()))
    settings = {"source.type": "file", "source.paths": [str(events)], "state.directory": str(folder / "state")}
    with Longwatch(folder, settings) as daemon:
        assert daemon.wait(180) == 0, daemon.log
