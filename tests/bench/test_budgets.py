"""The measurement of budgets: what it makes and how it counts."""

import numpy as np
import pytest

pytest.importorskip("tests.bench.panel", reason="the panel is on main")

from tests.bench.budgets import LEVELS, Tail, batches, fleet, parts
from tests.bench.clean import CHANGES, SETTLED, after_changes, changed, clean_kinds
from tests.bench.panel import made
from tests.bench.panel_kinds import DAY

STEP, DAYS = 3600, 30


def test_kinds_that_ask_for_an_alert_are_not_clean() -> None:
    kinds = clean_kinds(300, 1)
    assert {"flat noise", "heavy tail", "nightly job, 2 h"} <= set(kinds)
    assert not {"spike of 20", "deployment over an hour", "coupling breaks"} & set(kinds)


def test_a_fleet_has_every_kind_and_incidents_that_are_not_judged_false() -> None:
    rows = DAYS * DAY // STEP
    (part,) = parts(90, rows, STEP, 1.0, ("one ulp",), 1)
    (again,) = parts(90, rows, STEP, 1.0, ("one ulp",), 1)
    assert np.array_equal(part.values, again.values, equal_nan=True)
    assert set(part.kinds) == set(clean_kinds(STEP, 1)) - {"one ulp"}
    assert {incident.kind for incident in part.incidents.values()} == {"12 deviations", "1 hour at a standstill"}
    for stream, incident in part.incidents.items():
        assert incident.found_in.start >= rows // 2
        assert not part.quiet[incident.found_in, stream].any()
    events = sum(len(batch) for batch in batches(part, STEP))
    assert events == (~np.isnan(part.values)).sum()
    (several,) = parts(90, rows, STEP, 1.0, ("one ulp",), 1, 3)
    assert several.values.shape == (rows, 90, 3)
    assert sum(batch.start[-1] for batch in batches(several, STEP)) == (~np.isnan(several.values)).sum()


def test_a_tail_counts_events_and_peaks() -> None:
    score = np.zeros((10_000, 2))
    score[100:105, 0] = 2.5  # one peak of five events
    score[[200, 208, 300], 1] = 3.5  # two peaks: of the first, eight events below have not passed
    tail = Tail()
    tail.add(score, np.ones_like(score, np.bool_))
    assert tail.events == 20_000
    assert tail.exceeded.tolist() == [8, 3, 0]
    assert tail.peaks.tolist() == [3, 2, 0]
    assert len(LEVELS) == 3


def test_a_small_fleet_is_measured() -> None:
    text = fleet(15, DAYS, STEP, [0.1], 1.0, 3.0, features=2)
    assert "15 streams of 2, an event each 3600 s (360 a day), 30 days" in text
    assert "0.1 a day for the fleet" in text
    assert "peaks over nominal at 1e-2 / 1e-3 / 1e-4" in text


def test_a_change_lasts_and_is_judged_in_the_week_after_it_settled() -> None:
    one = made("daily wave", STEP, 2, 1)
    at = len(one.values) // 2
    for name in CHANGES:
        other = changed(one, name)
        same = (other.values == one.values).all(axis=1)
        assert same[:at].all()
        assert same[at:].all() == (name == "none")
        assert np.flatnonzero(other.quiet).tolist() == list(range(at + SETTLED, at + SETTLED + 7 * 24))
    text = after_changes([STEP], 1, 1, 3.0)
    assert all(f"3600 s, {name}" in text for name in CHANGES)
