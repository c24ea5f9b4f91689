"""From scores to alerts: one incident, one alert. Scores are given here; test_alerts.py makes them from streams."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from detector.scoring.batch import VERDICT
from detector.scoring.incidents import (
    CLAIM,
    CLEAR,
    FIRES,
    FLARE,
    NONE,
    PEAKS,
    REFRACTORY_MANY,
    REFRACTORY_SINGLE,
    RESOLVES,
    AlertRules,
    alert_id,
    watch,
)
from detector.scoring.threshold import MIN_THRESHOLD_MANY, MIN_THRESHOLD_SINGLE, threshold_of
from detector.state.records import STREAM

SECOND = 1_000_000_000
THRESHOLD = 3.0
QUIET, HIGH = 0.5, THRESHOLD + 2 * CLEAR


def watched(
    scores: Sequence[float],
    *,
    single: bool = True,
    muted: bool = False,
    warming: bool = False,
    events: int = 10_000,
    deviations: float | Sequence[float] = 5.0,
    expected: float = 10.0,
    direction: int = 0,
    min_absolute: float = 0.0,
    min_relative: float = 0.0,
    min_duration: float = 0.0,
    step: int = SECOND,
    fixed: bool = False,
) -> tuple[list[int], list[bool]]:
    """Watch a stream with these scores, an event every `step` ns; return changes and alerts."""
    s, v = np.zeros(1, STREAM), np.zeros(1, VERDICT)
    s["lanes"], s["muted"], s["events"] = 1 if single else 2, muted, events
    fixed_threshold = THRESHOLD if fixed else math.nan
    rules = AlertRules(
        fixed_threshold=fixed_threshold,
        direction=direction,
        min_deviation_absolute=min_absolute,
        min_deviation_relative=min_relative,
        min_duration_seconds=min_duration,
    )
    changes, alerts = [], []
    for k, (score, deviation) in enumerate(zip(scores, np.broadcast_to(deviations, len(scores)).tolist(), strict=True)):
        v["score"], v["threshold"], v["warming"] = score, THRESHOLD, warming
        watch(s[0], v[0], k * step, deviation, expected, rules)
        changes.append(int(v["change"][0]))
        alerts.append(bool(v["alert"][0]))
    return changes, alerts


def at(changes: Sequence[int], what: int) -> list[int]:
    return [k for k, change in enumerate(changes) if change == what]


@pytest.mark.parametrize(("single", "refractory"), [(True, REFRACTORY_SINGLE), (False, REFRACTORY_MANY)])
def test_one_incident_fires_once_follows_its_peak_and_resolves(single: bool, refractory: int) -> None:
    incident = [QUIET, HIGH, HIGH + 1, HIGH, HIGH + 2, QUIET, HIGH + 1.5]
    changes, alerts = watched(incident + [QUIET] * 100, single=single)

    assert at(changes, FIRES) == [1]
    assert at(changes, PEAKS) == [2, 4]
    assert at(changes, RESOLVES) == [6 + refractory]
    assert [k for k, alert in enumerate(alerts) if alert] == [1, 2, 3, 4]


def test_a_flare_up_within_an_incident_is_silent_unless_it_is_a_new_peak() -> None:
    changes, alerts = watched([HIGH, QUIET, HIGH + FLARE - 0.1, QUIET, HIGH + FLARE + 0.5, QUIET])

    assert at(changes, FIRES) == [0]
    assert alerts == [True, False, False, False, True, False]
    assert at(changes, PEAKS) == [2, 4]


def test_a_new_incident_after_the_end_fires_again() -> None:
    changes, _ = watched([HIGH] + [QUIET] * REFRACTORY_SINGLE + [QUIET, HIGH])

    assert at(changes, FIRES) == [0, REFRACTORY_SINGLE + 2]


def test_the_calm_period_starts_after_the_last_event_above_the_threshold() -> None:
    flickering = ([HIGH] + [QUIET] * (REFRACTORY_SINGLE - 1)) * 5
    changes, _ = watched([*flickering, QUIET])

    assert at(changes, FIRES) == [0]
    assert at(changes, RESOLVES) == [len(flickering)]


def test_a_stream_of_many_features_needs_two_of_five_events_or_a_clear_one() -> None:
    slight = THRESHOLD + CLEAR / 2

    assert at(watched([slight, QUIET, QUIET, QUIET, QUIET, slight], single=False)[0], FIRES) == []
    assert at(watched([slight, QUIET, QUIET, QUIET, slight], single=False)[0], FIRES) == [4]
    assert at(watched([QUIET, THRESHOLD + CLEAR + 0.01], single=False)[0], FIRES) == [1]
    assert at(watched([QUIET, slight], single=True)[0], FIRES) == [1]


def test_scores_at_the_threshold_do_not_alert() -> None:
    assert set(watched([THRESHOLD] * 10)[0]) == {NONE}


@pytest.mark.parametrize(("direction", "fires"), [(0, [1, 100]), (1, [1]), (-1, [100])])
def test_direction_limits_alerts_to_one_side(direction: int, fires: list[int]) -> None:
    scores = [QUIET] * 200
    scores[1] = scores[100] = HIGH
    deviations = [0.0] * 200
    deviations[1], deviations[100] = 5.0, -5.0

    assert at(watched(scores, direction=direction, deviations=deviations)[0], FIRES) == fires


@pytest.mark.parametrize(
    ("rules", "fires"),
    [
        ({"min_absolute": 5.0}, True),
        ({"min_absolute": 5.1}, False),
        ({"min_relative": 0.5}, True),
        ({"min_relative": 0.51}, False),
        ({"min_relative": 0.51, "expected": -10.0}, False),
        ({"min_relative": 9.0, "expected": 0.0}, True),
    ],
)
def test_deviations_below_min_deviation_do_not_alert(rules: dict[str, Any], fires: bool) -> None:
    for deviation in (5.0, -5.0):
        changes, _ = watched([QUIET, HIGH, QUIET], deviations=deviation, **rules)
        assert bool(at(changes, FIRES)) == fires


def test_min_duration_counts_event_time_of_an_unbroken_run() -> None:
    def fires(scores: Sequence[float], step: int = SECOND) -> list[int]:
        return at(watched(scores, min_duration=3.0, step=step)[0], FIRES)

    assert fires([QUIET, HIGH, HIGH, HIGH, HIGH]) == [4]
    assert fires([HIGH, HIGH, HIGH, QUIET, HIGH, HIGH, HIGH]) == []
    assert fires([QUIET, HIGH, HIGH], step=60 * SECOND) == [2]


@pytest.mark.parametrize("why", ["muted", "warming"])
def test_muted_streams_and_streams_in_warm_up_never_alert(why: str) -> None:
    changes, alerts = watched([HIGH] * 50, **{why: True})

    assert set(changes) == {NONE}
    assert not any(alerts)


def test_a_stream_alerts_once_its_history_supports_its_threshold() -> None:
    enough = math.ceil(10**THRESHOLD / CLAIM)

    assert at(watched([HIGH], events=enough - 1)[0], FIRES) == []
    assert at(watched([HIGH], events=enough)[0], FIRES) == [0]
    assert at(watched([HIGH], events=enough - 1, fixed=True)[0], FIRES) == [0]  # the operator's own threshold


def test_the_threshold_follows_from_the_budget_and_the_streams_rate() -> None:
    single, many = np.zeros(1, STREAM), np.zeros(1, STREAM)
    single["lanes"], many["lanes"] = 1, 2

    def of(stream: np.ndarray, interval: float, per_week: float = 7.0, fixed: float = math.nan) -> float:
        return threshold_of(stream[0], interval, per_week, fixed)

    assert of(many, 60.0) == pytest.approx(math.log10(10_080 / 7))
    assert of(many, 1.0, per_week=1.0) == pytest.approx(math.log10(604_800))
    assert of(many, 300.0, per_week=0.7) == pytest.approx(math.log10(2016 / 0.7))
    assert of(many, 3600.0) == MIN_THRESHOLD_MANY
    assert of(many, 0.0) == MIN_THRESHOLD_MANY
    assert of(single, 300.0) == MIN_THRESHOLD_SINGLE
    assert of(single, 1.0) > MIN_THRESHOLD_SINGLE
    assert of(single, 300.0, fixed=1.5) == 1.5


def test_an_alert_id_depends_on_stream_and_start_only() -> None:
    assert alert_id("web-1/cpu", 1_790_000_000 * SECOND) == "65b672b5cb48c1ce80bf76ae"  # as ever: receivers know it
    assert len({alert_id("a", 1), alert_id("a", 2), alert_id("b", 1), alert_id("a\x001", 1)}) == 4
