"""One daemon for all tests that only read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon.support import until
from tests.detector.web.support import ROWS, SPIKE, STREAMS, Watched, scored, watched


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A daemon whose streams have all just been far out."""
    patterns = ["host-0[0-3]/*", "<script>*"]
    with watched(tmp_path_factory.mktemp("watched"), http__stream_scores=patterns) as found:
        found.feed(ROWS, spike=SPIKE)
        scored(found, ROWS * len(STREAMS))
        until(lambda: found.get("/incidents")["incidents"], "there is an incident")
        yield found
