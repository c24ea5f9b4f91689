"""Quiet times of rules: no alert begins in them, everything is scored as ever, and a replay finds the same."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import numpy as np
import pytest

from detector.calendars.recurring import cron_spans
from detector.calendars.windows import Calendar
from detector.engine.engine import Engine, EngineSettings
from detector.scoring.incidents import REFRACTORY
from detector.scoring.rules import StreamRule
from tests.detector.engine.support import fired, noisy, rows_of
from tests.streams import MINUTE, Event, clock, in_batches, numbered, run, wide
from training.network.weights import Weights

STEP = 5 * MINUTE


def quiet_from(first: int, last: int) -> StreamRule:
    """A rule for q/*, quiet from one row to before another."""
    begin = int(clock(1)[0])
    spans = [(begin + first * STEP, begin + last * STEP)]
    return StreamRule("quiet", ("q/*",), quiet=(Calendar("upkeep", lambda a, b: spans),))


def spikes(*rows: int, streams: tuple[str, ...] = ("q/a", "b")) -> list[Event]:
    value = noisy(2000)
    for nth, row in enumerate(rows):
        value[row] += 6.0 * 1.5**nth
    together = [wide(name, clock(2000), value) for name in streams]
    return [event for row in zip(*together, strict=True) for event in row]


def outcome_of(model: Weights, events: list[Event], rule: StreamRule, size: int = 1000):
    return run(Engine(model, EngineSettings(by_pattern=(rule,))), in_batches(numbered(events), size))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_no_alert_begins_in_a_window_in_which_events_are_scored_all_the_same(model: Weights, size: int) -> None:
    events = spikes(1500, 1700)
    found = outcome_of(model, events, quiet_from(1490, 1510), size)
    begun = {(alert.stream, row) for alert in fired(found) for row in rows_of([alert]) if row in (1500, 1700)}
    assert begun == {("q/a", 1700), ("b", 1500), ("b", 1700)}
    without = outcome_of(model, events, StreamRule("none", ("q/*",)))
    until = 2 * 1500 + 2  # what is not told there stays news, so what follows is scored by that
    assert (found.score[:until] == without.score[:until]).all()
    assert found.score[2 * 1500] > 4.0
    same = outcome_of(model, events, quiet_from(1490, 1510))
    assert (found.score == same.score).all()
    assert [repr(alert) for alert in found.alerts] == [repr(alert) for alert in same.alerts]


def test_a_window_is_by_the_clock_of_its_zone_and_by_events_time(model: Weights) -> None:
    at = int(clock(2000)[1500]) // 10**9
    shown = np.datetime64(at, "s").item().replace(tzinfo=ZoneInfo("UTC")).astimezone(ZoneInfo("Asia/Tokyo"))
    tokyo = cron_spans(f"{shown.minute} {shown.hour} * * *", 300.0, ZoneInfo("Asia/Tokyo"))
    rule = StreamRule("quiet", ("q/*",), quiet=(Calendar("upkeep", tokyo),))
    found = outcome_of(model, spikes(1500), rule)
    assert {alert.stream for alert in fired(found) if rows_of([alert]) == [1500]} == {"b"}


def test_an_alert_that_was_open_before_ends_by_itself_and_is_told(model: Weights) -> None:
    found = outcome_of(model, spikes(1500), quiet_from(1501, 1900))
    told = [alert for alert in found.alerts if alert.stream == "q/a" and rows_of([alert]) == [1500]]
    assert [alert.status for alert in told] == ["firing", "resolved"]
    assert told[1].ended_at is not None
    assert 0 < (told[1].ended_at - told[1].started_at) // STEP <= REFRACTORY


def test_what_still_stands_out_as_the_window_ends_is_told_then(model: Weights) -> None:
    value = noisy(2000)
    value[1500:1530, 0] += 6.0 * np.sign(np.arange(30) % 2 - 0.5)
    events = wide("q/a", clock(2000), value)
    rows = rows_of(fired(outcome_of(model, events, quiet_from(1490, 1505))))
    assert [row for row in rows if 1490 <= row < 1600] == [1505]


@pytest.mark.parametrize(("last", "told"), [(1900, False), (1502, True)])
def test_a_new_level_is_told_after_a_window_only_where_it_is_news_still(model: Weights, last: int, told: bool) -> None:
    value = noisy(2000)
    value[1500:, 0] += 4.0
    rows = rows_of(fired(outcome_of(model, wide("q/a", clock(2000), value), quiet_from(1490, last))))
    assert bool([row for row in rows if row >= 1490]) == told
