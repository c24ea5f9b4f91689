"""After how long a stream has stopped: by what is remembered of its pauses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detector.scoring.claims import STREAM_SCORE
from detector.scoring.incidents import AlertRules
from detector.scoring.rules import StreamRules
from detector.scoring.silence import (
    DAY_NS,
    DAYS,
    PAUSE_SECONDS,
    SPAN_NS,
    TOLD,
    code_of,
    longest_pause,
    remember_pause,
    stops_after,
)
from tests.bench.silence_panel import DAY, KINDS, run

START = SPAN_NS * 1000
SECOND, HOUR_NS = 1_000_000_000, 3_600_000_000_000
ASKED = AlertRules(silence=True)


def stream(present: float, former: float = 0.0, days: int = 30) -> np.void:
    record = np.zeros(1, STREAM_SCORE)[0]
    record["pauses"][:] = code_of(present), code_of(former), 0, days
    return record


def after(record: np.void, interval: float, events: int = 1000, rules: AlertRules = ASKED) -> float:
    return float(stops_after(record, StreamRules(rules).table().of[0], interval, events))


@pytest.mark.parametrize("seconds", [0.07, 1.0, 10.0, 61.0, 3600.0, 86_400.0, 30 * 86_400.0])
def test_a_pause_is_kept_in_a_byte_and_rounded_up_by_a_tenth_at_most(seconds: float) -> None:
    assert seconds <= PAUSE_SECONDS[code_of(seconds)] <= 1.1 * seconds


def test_what_cannot_be_kept_is_none_or_the_longest() -> None:
    assert code_of(0.0) == code_of(-5.0) == 0
    assert code_of(1e12) == 255


@pytest.mark.parametrize(
    ("present", "former", "interval", "times"),
    [
        (1000.0, 1000.0, 1000.0, 2.0),  # it keeps time
        (50_000.0, 50_000.0, 60.0, 2.0),  # it rests at night
        (50_000.0, 20_000.0, 60.0, 3.0),  # it paused for longer than it usually does
        (6000.0, 6000.0, 1000.0, 3.0),  # it comes at random, however alike its longest pauses are
    ],
)
def test_a_stream_has_stopped_after_some_of_its_longest_pauses(
    present: float, former: float, interval: float, times: float
) -> None:
    record = stream(present, former)
    assert after(record, interval) == pytest.approx(times * longest_pause(record))
    assert after(record, interval, events=40) >= after(record, interval)


def test_it_is_judged_once_it_is_known_for_a_week() -> None:
    assert after(stream(1000.0, days=6), 1000.0) == math.inf
    assert after(stream(1000.0), 1000.0, events=19) == math.inf
    assert after(stream(1000.0, days=7), 1000.0) < math.inf


def test_settings_bound_it() -> None:
    assert after(stream(10.0), 10.0) == 300.0
    assert after(stream(10.0), 10.0, rules=ASKED._replace(min_silence_seconds=30.0)) == 30.0
    assert after(stream(1000.0), 1000.0, rules=ASKED._replace(max_silence_seconds=60.0)) == 60.0
    assert after(stream(0.0, days=0), 0.0, events=0, rules=ASKED._replace(max_silence_seconds=60.0)) == 60.0
    assert after(stream(1000.0), 1000.0, rules=AlertRules()) == math.inf


def test_a_fortnight_is_remembered_and_the_one_before() -> None:
    record = stream(0.0, days=0)
    remember_pause(record, START, START + 9 * HOUR_NS, False)
    assert longest_pause(record) == pytest.approx(9 * 3600.0, rel=0.1)
    remember_pause(record, START + SPAN_NS - SECOND, START + SPAN_NS + SECOND, False)
    assert longest_pause(record) == pytest.approx(9 * 3600.0, rel=0.1)
    remember_pause(record, START + 2 * SPAN_NS - SECOND, START + 2 * SPAN_NS + SECOND, False)
    assert longest_pause(record) < 3.0
    remember_pause(record, START + 2 * SPAN_NS, START + 5 * SPAN_NS, False)
    assert longest_pause(record) == pytest.approx(3 * 14 * 86_400.0, rel=0.1)


def test_days_count_on_which_it_spoke() -> None:
    record = stream(0.0, days=0)
    for hour in range(1, 100):
        remember_pause(record, START + (hour - 1) * HOUR_NS, START + hour * HOUR_NS, False)
    assert record["pauses"][DAYS] == 99 * HOUR_NS // DAY_NS


def test_a_pause_that_was_told_is_usual_only_once_it_comes_again() -> None:
    record = stream(10.0)
    remember_pause(record, START, START + HOUR_NS, True)
    assert longest_pause(record) < 11.0
    remember_pause(record, START + 2 * HOUR_NS, START + 3 * HOUR_NS, True)
    assert longest_pause(record) == pytest.approx(3600.0, rel=0.1)
    assert record["pauses"][TOLD] == 0


@pytest.fixture(scope="module")
def panel() -> dict[str, tuple[int, float]]:
    """False alarms of five streams of each rhythm, second week to sixth, and hours after which they are told."""
    rng, each = np.random.default_rng(11), 5
    events = [make(rng, 42 * DAY) for make in KINDS.values() for _ in range(each)]
    told, stops = run(events, 42 * DAY, 7 * DAY)
    rows = {name: slice(k * each, (k + 1) * each) for k, name in enumerate(KINDS)}
    return {name: (int(told[at].sum()), float(np.median(stops[at])) / 3600.0) for name, at in rows.items()}


@pytest.mark.parametrize("rhythm", [name for name in KINDS if not name.startswith("bursts")])
def test_no_usual_rhythm_is_silence(panel: dict[str, tuple[int, float]], rhythm: str) -> None:
    false_alarms, hours = panel[rhythm]
    assert false_alarms == 0
    assert hours < math.inf


def test_bursts_without_a_longest_pause_are_rarely_told_and_hours_do_for_what_keeps_time(
    panel: dict[str, tuple[int, float]],
) -> None:
    assert sum(count for name, (count, _) in panel.items() if name.startswith("bursts")) <= 10  # in 350 days
    assert panel["every minute"][1] < 0.1
    assert panel["every hour"][1] < 4.0
