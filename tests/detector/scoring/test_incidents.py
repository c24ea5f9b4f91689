"""From scores to alerts: one incident, one alert. Scores are given here; test_judge.py makes them from streams."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from detector.scoring.batch import VERDICT
from detector.scoring.claims import CHANNELS, FORECAST, NOVEL, STILL
from detector.scoring.incidents import (
    CLEAR,
    FALSE,
    FIRES,
    FLEET,
    FREE,
    NONE,
    PEAKS,
    REFRACTORY,
    RENEWS,
    RESOLVES,
    YOUNG,
    AlertRules,
    Case,
    Limits,
    alert_id,
    end_incident,
    watch,
)
from detector.scoring.news import AGAIN
from detector.state.records import STREAM
from tests.detector.scoring.support import SECOND, rule_of

THRESHOLD = 3.0
QUIET, HIGH = 0.5, THRESHOLD + 2 * CLEAR


def watched(
    scores: Sequence[float],
    *,
    several: bool = False,
    channel: int = FORECAST,
    muted: bool = False,
    own: float = THRESHOLD,
    fleet: float = 0.0,
    deviations: float | Sequence[float] = 5.0,
    expected: float = 10.0,
    direction: int = 0,
    min_absolute: float = 0.0,
    min_relative: float = 0.0,
    min_duration: float = 0.0,
    lasts: bool = False,
    ends: bool = False,
    step: int = SECOND,
) -> tuple[list[int], np.ndarray]:
    """Watch a stream with these scores, all of them news, an event every `step` ns; return changes and VERDICT."""
    s, verdicts = np.zeros(1, STREAM), np.zeros(len(scores), VERDICT)
    s["muted"] = muted
    rules = AlertRules(
        direction=direction,
        min_deviation_absolute=min_absolute,
        min_deviation_relative=min_relative,
        min_duration_seconds=min_duration,
    )
    deviations = np.broadcast_to(deviations, len(scores)).tolist()
    for k, (score, deviation) in enumerate(zip(scores, deviations, strict=True)):
        v = verdicts[k]
        v["score"], v["threshold"], v["channel"] = score, THRESHOLD, channel
        case = Case(k * step, score > THRESHOLD, several, lasts, ends, deviation, expected)
        watch(s[0], v, case, Limits(own, fleet), rule_of(rules))
    return verdicts["change"].tolist(), verdicts


def at(changes: Sequence[int], what: int) -> list[int]:
    return [k for k, change in enumerate(changes) if change == what]


def fired(scores: Sequence[float], **options: Any) -> list[int]:
    return at(watched(scores, **options)[0], FIRES)


@pytest.mark.parametrize("several", [False, True])
def test_one_incident_fires_once_follows_its_peak_and_resolves(several: bool) -> None:
    incident = [QUIET, HIGH, HIGH + 1, HIGH, HIGH * AGAIN + 0.1, QUIET, HIGH * AGAIN]
    changes, verdicts = watched([*incident, *[QUIET] * (REFRACTORY + 5)], several=several)

    assert at(changes, FIRES) == [1]
    assert at(changes, PEAKS) == [4]
    assert at(changes, RESOLVES) == [6 + REFRACTORY]
    assert np.flatnonzero(verdicts["alert"]).tolist() == [1, 4]


def test_after_an_incident_the_next_one_fires_again() -> None:
    changes, _ = watched([HIGH, *[QUIET] * REFRACTORY, QUIET, HIGH])

    assert at(changes, FIRES) == [0, REFRACTORY + 2]


def test_twenty_events_without_news_end_an_incident() -> None:
    """News, not what stands above the threshold: a lasting condition must not blind the stream."""
    flickering = ([HIGH] + [QUIET] * (REFRACTORY - 1)) * 5
    changes, _ = watched([*flickering, QUIET])
    assert at(changes, FIRES) == [0]
    assert at(changes, RESOLVES) == [len(flickering)]

    s, v, ends = np.zeros(1, STREAM), np.zeros(1, VERDICT), []
    for k in range(REFRACTORY + 1):
        v["score"], v["threshold"] = HIGH if k == 0 else 0.95 * THRESHOLD, THRESHOLD
        watch(s[0], v[0], Case(k * SECOND, True, False, False, False, 5.0, 10.0), Limits(THRESHOLD, 0.0), rule_of())
        ends.append(int(v["change"][0]))
    assert at(ends, RESOLVES) == [REFRACTORY]


def test_a_stream_of_several_features_needs_two_of_five_events_or_a_clear_one() -> None:
    slight = THRESHOLD + CLEAR / 2

    assert fired([slight, QUIET, QUIET, QUIET, QUIET, slight], several=True) == []
    assert fired([slight, QUIET, QUIET, QUIET, slight], several=True) == [4]
    assert fired([QUIET, THRESHOLD + CLEAR + 0.01], several=True) == [1]
    assert fired([QUIET, slight]) == [1]


@pytest.mark.parametrize("channel", [STILL, NOVEL])
def test_still_and_novel_need_no_second_event(channel: int) -> None:
    assert fired([QUIET, THRESHOLD + CLEAR / 2], several=True, channel=channel) == [1]


def test_scores_at_the_threshold_do_not_alert() -> None:
    assert set(watched([THRESHOLD] * 10)[0]) == {NONE}


@pytest.mark.parametrize(("direction", "fires"), [(0, [1, 100]), (1, [1]), (-1, [100])])
def test_direction_limits_alerts_to_one_side(direction: int, fires: list[int]) -> None:
    scores, deviations = [QUIET] * 200, [0.0] * 200
    scores[1] = scores[100] = HIGH
    deviations[1], deviations[100] = 5.0, -5.0

    assert fired(scores, direction=direction, deviations=deviations) == fires


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
        assert bool(fired([QUIET, HIGH, QUIET], deviations=deviation, **rules)) == fires


def test_min_duration_counts_event_time_of_an_unbroken_run() -> None:
    def fires(scores: Sequence[float], step: int = SECOND) -> list[int]:
        return fired(scores, min_duration=3.0, step=step)

    assert fires([QUIET, HIGH, HIGH, HIGH, HIGH]) == [4]
    assert fires([HIGH, HIGH, HIGH, QUIET, HIGH, HIGH, HIGH]) == []
    assert fires([QUIET, HIGH, HIGH], step=60 * SECOND) == [2]


def test_muted_streams_never_alert() -> None:
    changes, verdicts = watched([HIGH] * 50, muted=True)

    assert set(changes) == {NONE}
    assert not verdicts["alert"].any()


@pytest.mark.parametrize("rules", [{"direction": -1}, {"min_absolute": 9.0}, {"muted": True}, {"min_duration": 9.0}])
def test_what_was_not_told_is_news_still(rules: dict[str, Any]) -> None:
    s, v = np.zeros(1, STREAM), np.zeros(1, VERDICT)
    s["score"]["told"] = HIGH
    s["muted"] = rules.pop("muted", False)
    given = AlertRules(
        direction=rules.get("direction", 0),
        min_deviation_absolute=rules.get("min_absolute", 0.0),
        min_duration_seconds=rules.get("min_duration", 0.0),
    )
    v["score"], v["threshold"] = HIGH, THRESHOLD
    watch(s[0], v[0], Case(0, True, False, False, False, 5.0, 10.0), Limits(THRESHOLD, 0.0), rule_of(given))

    assert v["change"] == NONE
    assert s["score"]["told"][0].tolist() == pytest.approx([0.0, *[HIGH] * (len(CHANNELS) - 1)])


@pytest.mark.parametrize(("fleet", "by"), [(0.0, YOUNG), (THRESHOLD - 0.2, FLEET)])
def test_what_only_youth_or_the_fleet_holds_back_is_marked(fleet: float, by: int) -> None:
    """The threshold contains both; what the stream's own budget would let through is told apart."""
    scores = [THRESHOLD - 0.5, THRESHOLD - 1.5, HIGH]

    assert watched(scores, own=THRESHOLD - 1.0, fleet=fleet)[1]["held_back"].tolist() == [by, FREE, FREE]
    assert not watched(scores, own=THRESHOLD - 1.0, fleet=fleet, muted=True)[1]["held_back"].any()


def test_what_was_called_false_is_held_back_as_what_was_told() -> None:
    s, v = np.zeros(1, STREAM), np.zeros(1, VERDICT)
    s["score"]["told"] = v["score"] = HIGH
    v["threshold"] = THRESHOLD
    watch(s[0], v[0], Case(0, True, False, False, False, 5.0, 10.0, false=True), Limits(THRESHOLD, 0.0), rule_of())

    assert (v["change"], v["held_back"]) == (NONE, FALSE)
    assert (s["score"]["told"] == np.float32(HIGH)).all(), "what it leaves behind is no news either"


def test_what_lasts_keeps_an_incident_open_and_what_is_news_meanwhile_is_another() -> None:
    rest = [QUIET] * (REFRACTORY + 10)

    assert at(watched([HIGH, *rest], lasts=True)[0], RESOLVES) == []
    changes, verdicts = watched([HIGH, *rest, HIGH, *rest], lasts=True)
    assert at(changes, RENEWS) == [1 + len(rest)]
    assert np.flatnonzero(verdicts["alert"]).tolist() == [0, 1 + len(rest)]


def test_the_end_of_an_incident_is_no_other_one() -> None:
    rest = [QUIET] * (REFRACTORY + 10)

    changes, verdicts = watched([HIGH, *rest, HIGH, *rest], lasts=True, ends=True)

    assert set(changes[1:]) == {NONE}
    assert np.flatnonzero(verdicts["alert"]).tolist() == [0]


def test_silence_ends_an_incident_whole() -> None:
    s = np.zeros(1, STREAM)
    incident = s["incident"]
    incident["open"], incident["on"], incident["peak"], incident["recent"], incident["calm"] = True, True, 5.0, 3, 7

    end_incident(s[0])

    assert not any(incident[name][0] for name in ("open", "on", "peak", "recent", "calm"))


def test_time_that_moves_back_begins_the_run_anew() -> None:
    s, v = np.zeros(1, STREAM), np.zeros(1, VERDICT)
    found = []
    for time in (100, 101, 50, 52, 54):
        v["score"], v["threshold"] = HIGH, THRESHOLD
        rule = rule_of(AlertRules(min_duration_seconds=3.0))
        watch(s[0], v[0], Case(time * SECOND, True, False, False, False, 5.0, 10.0), Limits(THRESHOLD, 0.0), rule)
        found.append(int(v["change"][0]))

    assert at(found, FIRES) == [4]


def test_an_alert_id_depends_on_stream_and_start_only() -> None:
    assert alert_id("web-1/cpu", 1_790_000_000 * SECOND) == "65b672b5cb48c1ce80bf76ae"  # as ever: receivers know it
    assert len({alert_id("a", 1), alert_id("a", 2), alert_id("b", 1), alert_id("a\x001", 1)}) == 4


def test_the_defaults_are_three_alerts_a_week_on_both_sides() -> None:
    rules = AlertRules()

    assert rules.alerts_per_stream_per_week == 3.0
    assert math.isnan(rules.fixed_threshold)
    assert rules.direction == 0
