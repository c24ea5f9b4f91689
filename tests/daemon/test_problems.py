"""Parts that fail in their own threads and retry are visible in metrics and readiness."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.common.background import CALM_SECONDS, LASTING_SECONDS, OngoingProblem
from detector.config.settings import load_settings
from detector.service.daemon import SIDE_PARTS, Daemon
from detector.service.factory import build_daemon
from tests.daemon.support import until


def failing(daemon: Daemon, part: str) -> float | None:
    return daemon.metrics.registry.get_sample_value("longwatch_part_failing", {"part": part})


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that is made, with all its parts, and not started."""
    made = build_daemon(
        load_settings(
            None,
            {},
            [
                "kafka.bootstrap_servers=127.0.0.1:1",
                "processing.guarantee=exactly_once",
                "receivers.hook.url=http://127.0.0.1:1/hook",
                "receivers.hook.allowed_hosts=127.0.0.1",
                f"state.directory={tmp_path}",
                "compute.device=cpu",
                "http.port=0",
            ],
        )
    )
    # the first look of its thread, which takes all that is reported before for mended
    until(lambda: made.incident_store._forget_due, "incidents have been looked at")
    made.incident_store.flush()
    yield made
    made.shutdown(orderly=False)


PARTS = "alert_feed", "changelog", "kafka", "receiver hook", "incidents", "retraining", "history", "feedback"


@pytest.mark.parametrize("part", PARTS)
def test_a_failing_part_shows_in_its_metric_at_once_and_in_readyz_if_it_lasts(
    daemon: Daemon, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.assigned = True
    assert daemon.ready() == (True, "scoring")
    daemon.problems[part].report("no way in")
    daemon._watch({})
    assert failing(daemon, part) == 1
    assert daemon.ready() == (True, "scoring")
    monkeypatch.setattr("connectors.common.background.LASTING_SECONDS", 0.0)
    ready, reported = daemon.ready()
    assert ready == (part in SIDE_PARTS), "scoring and alerts go on without it"
    assert re.search(r"no way in \(for \d+ s\)", reported), reported
    daemon.problems[part].clear()
    daemon._watch({})
    assert failing(daemon, part) == 0
    assert daemon.ready() == (True, "scoring")


def test_a_lasting_problem_is_reported_and_one_that_does_not_recur_ends() -> None:
    now = [time.monotonic()]
    problem = OngoingProblem(clock=lambda: now[0])
    assert (problem.current, problem.persistent()) == ("", "")
    assert problem.report("no way in")
    while not (lasting := problem.persistent()):
        assert problem.current == "no way in"
        now[0] += CALM_SECONDS / 2
        assert not problem.report("no way in"), "it has been reported"
    assert lasting == f"no way in (for {LASTING_SECONDS:.0f} s)"
    now[0] += CALM_SECONDS
    assert (problem.current, problem.persistent()) == ("", "")
    assert problem.report("no way in")
    problem.clear()
    assert problem.current == ""
