"""The behaviour panel: series are what their names say, and alerts in them are judged as an operator would."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.bench.data import Series
from tests.bench.panel import (
    FEATURES,
    STEPS,
    PanelSeries,
    Told,
    false_table,
    found_table,
    groups,
    judge,
    made,
    run,
    summary,
)
from tests.bench.panel_kinds import KINDS
from tests.bench.scored import Detector, ScoredRows
from training.evaluate import Bool

HOUR, DAY = 3600, 86_400


def mask(text: str) -> Bool:
    return np.array([letter == "x" for letter in text], dtype=np.bool_)


def hours(quiet: str, due: str = "", once: str = "") -> PanelSeries:
    """A series of an event each six hours; what is expected in its rows, marked x."""
    rows = len(quiet)
    times = 6 * HOUR * 10**9 * np.arange(rows)
    marks = (mask(text.ljust(rows, ".")) for text in (due, once, quiet))
    return PanelSeries("s", times, np.zeros((rows, 1)), "kind", 6 * HOUR, *marks)


# --- How alerts are judged --------------------------------------------------------------------------------------------


def test_an_alert_in_any_row_that_is_due_finds_it() -> None:
    one = hours("xxxxx...", due=".....xx.")
    assert judge(one, mask("......x.")).found
    assert not judge(one, mask("....x..x")).found


def test_false_alarms_are_runs_by_the_row_in_which_they_begin_in_the_first_day_and_after_it() -> None:
    told = judge(hours("xxxxxxxxxx..xx"), mask("x.xx.xxxx.xxx."))
    assert told.false == (2, 1), "what begins where nothing is judged is not false, even if it lasts"
    assert told.weeks == pytest.approx((4 / 28, 8 / 28))


def test_where_one_alert_is_allowed_the_second_is_false() -> None:
    one = hours("xxxxx.....", once=".....xxxxx")
    assert judge(one, mask("......xx..")).false == (0, 0)
    assert judge(one, mask("......x.xx")).false == (0, 1)
    assert judge(one, mask("....x...x.")).false == (0, 1)
    assert judge(one, mask("....x...x.")).clean


def test_the_tables_count_by_kind_features_and_step() -> None:
    told = [
        Told("stuck", 60, 1, True, True, (0, 0), (0.1, 0.9)),
        Told("stuck", 60, 1, True, False, (0, 1), (0.1, 0.9)),
        Told("wave", 60, 4, False, False, (1, 0), (0.5, 1.0)),
        Told("wave", 300, 4, False, False, (0, 9), (0.5, 3.0)),
    ]
    assert found_table(told).splitlines()[1].split() == ["stuck", "1/2"]
    assert false_table(told).splitlines()[1].split() == ["wave", "2.00", "0.00", "0.00", "3.00"]
    first, second = summary(told, budget=1.0).splitlines()
    assert first == "found 1 of 2 (0.500); 11 false alarms in 7 stream-weeks (1.57 a week)"
    assert "after the first day: 0.50" in second, "nine in three weeks are more than twice one a week"
    assert "in it: 1.00" in second, "one alert is always within"


def test_each_detector_is_shown_what_it_can_take() -> None:
    def alert_always(series: Sequence[Series]) -> dict[str, ScoredRows]:
        return {
            one.stream: ScoredRows(one.times, ones, ones, np.ones(len(one.times), np.bool_), ones)
            for one in series
            for ones in [np.ones(len(one.times))]
        }

    def one_feature(series: Sequence[Series]) -> str | None:
        return "takes one feature" if any(one.values.shape[1] > 1 for one in series) else None

    shown = {"all": Detector(alert_always, False, lambda _: None), "one": Detector(alert_always, False, one_feature)}
    told = run(groups([1], [3600], [1, 2], ["stuck", "daily wave"]), shown)
    assert [(one.kind, one.features) for one in told["all"]] == [
        ("stuck", 1),
        ("daily wave", 1),
        ("stuck", 2),
        ("daily wave", 2),
    ]
    assert len(told["one"]) == 2
    assert [one.found for one in told["one"]] == [True, False]


# --- What the series are ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_the_same_by_its_seed_and_says_what_is_expected(kind: str) -> None:
    step, features = max(KINDS[kind].steps), max(KINDS[kind].features, 2)
    one, again, other = (made(kind, step, features, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.values, again.values)
    if kind not in ("one ulp", "spike in a constant"):
        assert not np.array_equal(one.values, other.values, equal_nan=True)
    assert one.values.shape == (len(one.times), features)
    assert (np.diff(one.times) > 0).all()
    assert not (one.quiet & (one.due | one.once)).any()
    assert one.quiet[: len(one.times) // 100].mean() > 0.5, "the first day is judged"
    assert one.quiet.mean() > 0.6


def test_kinds_are_left_out_where_they_make_no_sense() -> None:
    names = {
        (one.kind, one.step, one.features) for part in groups([1], (1, 3600), FEATURES, list(KINDS)) for one in part
    }
    assert ("coupling breaks", 3600, 2) in names
    assert ("coupling breaks", 3600, 1) not in names
    assert ("quiet weekends", 1, 1) not in names
    assert ("daily wave", 1, 12) not in names, "series of one second are long"
    assert {step for _, step, _ in names} == {1, 3600}
    assert STEPS == (1, 10, 60, 300, 3600)


def day_of(one: PanelSeries) -> np.ndarray:
    return (one.times - one.times[0]) // (DAY * 10**9)


def test_weekends_are_quiet_and_the_sunday_that_is_not_is_due() -> None:
    clean, worked = made("quiet weekends", 3600, 1, 1), made("weekday on a Sunday", 3600, 1, 1)
    noon = (clean.times // (HOUR * 10**9)) % 24 == 12
    by_day = [clean.values[noon & (day_of(clean) % 7 == day)].mean() for day in range(7)]
    assert min(by_day[:5]) > 90
    assert max(by_day[5:]) < 30
    sunday = np.unique(day_of(worked)[worked.due])
    assert len(sunday) == 1
    assert sunday[0] % 7 == 6
    assert worked.values[worked.due & noon].mean() > 90


def test_a_missing_day_is_missing_and_the_rhythm_goes_on() -> None:
    one = made("return after a missing day", 300, 1, 1)
    gap = int(np.argmax(np.diff(one.times)))
    assert np.diff(one.times)[gap] == (DAY + 300) * 10**9
    assert one.quiet.all()


def test_a_clock_change_moves_the_rhythm_by_an_hour() -> None:
    one = made("daylight saving", 3600, 1, 1)
    hour = (one.times // (HOUR * 10**9)) % 24
    opening = one.values[hour == 8][:, 0]  # half an hour after the door opens, from the change on; at first shut
    assert opening[: int(0.7 * len(opening))].mean() < 30
    assert opening[int(0.9 * len(opening)) :].mean() > 90


def test_a_counter_only_rises_but_for_its_resets() -> None:
    one = made("counter resets", 300, 1, 1)
    falls = np.flatnonzero(np.diff(one.values[:, 0]) < 0)
    assert 5 <= len(falls) <= 10
    assert one.values[falls + 1].max() == 0
    assert not one.quiet[falls[0] + 1], "the first cannot be known"
    assert one.quiet[falls[1:] + 1].all(), "the others can"


def test_a_night_without_its_job_is_due_only_where_the_job_is_long() -> None:
    short, long = made("nightly job missing, 10 min", 300, 1, 1), made("nightly job missing, 2 h", 300, 1, 1)
    assert short.once.any()
    assert not short.due.any()
    assert long.values[long.due].max() < 20
    night = (long.times // (HOUR * 10**9)) % 24 == 2
    assert long.values[night & ~long.due].min() > 50


def test_a_state_that_stays_is_due_once_it_has_lasted_longer_than_ever() -> None:
    one, clean = made("stuck on", 60, 1, 1), made("two states", 60, 1, 1)

    def longest(values: np.ndarray) -> int:
        changes = np.flatnonzero(np.diff(values, prepend=0, append=0))
        return int(np.diff(changes.reshape(-1, 2)).max())

    assert longest(clean.values[:, 0]) <= 23
    assert longest(one.values[:, 0]) >= 400
    first = int(np.argmax(one.due))
    assert (one.values[first - 24 : first] == 1).all()
    assert one.values[first - 25, 0] == 0
