"""Streams that stop: told by the others' time, once, ended as they speak, and the same however batches are cut."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from connectors.batches import Alert, Partition
from detector.calendars.windows import Calendar
from detector.engine.engine import Engine, EngineSettings
from detector.scoring.incidents import AlertRules
from detector.scoring.rules import StreamRule
from tests.streams import DAY, HOUR, MINUTE, START, Event, in_batches, numbered
from training.network.weights import Weights

SECOND = MINUTE // 60
WEEK = 8 * DAY  # after which a stream is known
ALL = AlertRules(fixed_threshold=300.0, silence=True)


def beats(name: str, first: int, last: int, step: int = 10 * MINUTE, partition: Partition | None = None) -> list[Event]:
    """Return the events of a stream from `first` up to `last`, ns after START."""
    events = [Event(name, START + at, {"x": 1.0 + at % 7}) for at in range(first, last, step)]
    return [event._replace(partition=partition) for event in events] if partition else events


def merged(*streams: Iterable[Event]) -> list[Event]:
    return sorted((event for stream in streams for event in stream), key=lambda event: event.time)


class Watched:
    """An engine whose streams are watched as the daemon does it."""

    def __init__(self, model: Weights, rules: AlertRules = ALL, **settings: Any) -> None:
        self.stored: dict[str, bytes] = {}
        self.model, self.settings = model, EngineSettings(rules=rules, **settings)
        self.alerts: list[Alert] = []
        self.begin()

    def begin(self, document: Sequence[Any] = ()) -> None:
        """Start anew, with what is stored and the clocks of a checkpoint."""
        self.engine = Engine(self.model, self.settings, fetch=lambda names: [self.stored.get(name) for name in names])
        self.engine.streams.silence.restore(document)

    def save(self) -> list[list[Any]]:
        self.stored.update(self.engine.streams.drain())
        return self.engine.streams.silence.document()

    def look_through(self) -> None:
        names = self.engine.silence.wanted_of(sorted(self.stored))
        self.engine.silence.look_through(names, [self.stored[name] for name in names])

    def come(self, events: Sequence[Event], size: int = 500, *, look: bool = True) -> None:
        for batch in in_batches(numbered(events), size):
            self.alerts += self.engine.step(batch).alerts
            if look:
                self.alerts += self.engine.silence.stopped()

    def told(self, stream: str = "gone") -> list[tuple[str, str]]:
        return [(alert.status, alert.resolved_by) for alert in self.alerts if alert.stream == stream]


FIRES, BACK = ("firing", ""), ("resolved", "back")


def test_a_stream_that_stops_is_told_once_and_ends_as_it_speaks(model: Weights) -> None:
    w = Watched(model)
    w.come(merged(beats("gone", 0, WEEK), beats("other", 0, WEEK + 10 * HOUR)))
    assert w.told() == [FIRES]
    assert w.told("other") == []
    (fired,) = w.alerts
    assert (fired.channel, fired.severity, fired.offset) == ("silence", "warning", -1)
    assert fired.summary.startswith("no event for 2")
    assert fired.summary.endswith("min, usual 10 min")
    assert fired.started_at == START + WEEK - 10 * MINUTE
    assert len(w.engine.streams.silence) == 1

    w.come(
        merged(beats("gone", WEEK + 10 * HOUR, WEEK + 20 * HOUR), beats("other", WEEK + 10 * HOUR, WEEK + 20 * HOUR))
    )
    assert w.told() == [FIRES, BACK]
    ended = w.alerts[-1]
    assert ended.id == fired.id
    assert ended.ended_at == START + WEEK + 10 * HOUR
    assert ended.summary == "no event for 10 h 10 min, usual 10 min"
    assert len(w.engine.streams.silence) == 0


def test_nobody_is_told_unless_asked(model: Weights) -> None:
    w = Watched(model, ALL._replace(silence=False))
    w.come(merged(beats("gone", 0, WEEK), beats("other", 0, WEEK + 10 * HOUR)))
    assert w.alerts == []


def test_only_the_streams_of_the_rule_are_watched(model: Weights) -> None:
    rule = StreamRule("hosts", ("web-*",), ALL, "critical")
    w = Watched(model, ALL._replace(silence=False), by_pattern=(rule,))
    w.come(merged(beats("web-1", 0, WEEK), beats("gone", 0, WEEK), beats("other", 0, WEEK + 10 * HOUR)))
    assert w.told() == []
    assert w.told("web-1") == [FIRES]
    assert (w.alerts[0].rule, w.alerts[0].severity) == ("hosts", "critical")


@pytest.mark.parametrize("size", [1, 37, 100_000])
@pytest.mark.parametrize("look", [True, False])
def test_what_is_told_does_not_depend_on_how_events_are_cut_nor_on_looks(model: Weights, size: int, look: bool) -> None:
    events = merged(
        beats("gone", 0, WEEK), beats("gone", WEEK + 9 * HOUR, WEEK + 12 * HOUR),
        beats("gone", WEEK + 20 * HOUR, WEEK + 30 * HOUR), beats("other", 0, WEEK + 30 * HOUR),
        beats("third", 0, WEEK + 30 * HOUR, 7 * MINUTE),
    )  # fmt: skip
    w = Watched(model)
    w.come(events, size, look=look)
    assert w.told() == [FIRES, BACK, FIRES, BACK]
    assert [w.alerts[k].id == w.alerts[k + 1].id for k in range(3)] == [True, False, True]
    assert [alert.summary for alert in w.alerts] == [
        *("no event for 20 min, usual 10 min", "no event for 9 h 10 min, usual 10 min"),
        *("no event for 20 min, usual 10 min", "no event for 8 h 10 min, usual 10 min"),
    ]


EVER = AlertRules(fixed_threshold=300.0, silence=True, max_silence_seconds=3600.0)


def test_with_a_longest_time_a_young_stream_is_told_too(model: Weights) -> None:
    w = Watched(model, EVER)
    w.come(merged(beats("gone", 0, HOUR), beats("other", 0, 5 * HOUR)))
    assert w.told() == [FIRES]
    assert w.alerts[0].summary == "no event for 1 h, usual 10 min"
    assert Watched(model).come(merged(beats("gone", 0, HOUR), beats("other", 0, 5 * HOUR))) is None


def test_the_least_time_holds_whatever_the_rhythm(model: Weights) -> None:
    w = Watched(model, ALL._replace(min_silence_seconds=7200.0))
    w.come(merged(beats("gone", 0, WEEK), beats("other", 0, WEEK + HOUR)))
    assert w.told() == []
    w.come(beats("other", WEEK + HOUR, WEEK + 4 * HOUR))
    assert w.told() == [FIRES]


def test_a_gap_of_all_is_nobodys_silence(model: Weights) -> None:
    streams = [f"s{k}" for k in range(5)]
    w = Watched(model)
    w.come(merged(*(beats(name, 0, WEEK) for name in streams)))
    w.come(merged(*(beats(name, WEEK + 9 * HOUR, WEEK + 20 * HOUR) for name in streams)), 1)
    assert w.alerts == []


def test_a_stream_alone_does_not_tell_of_itself(model: Weights) -> None:
    w = Watched(model)
    w.come(merged(beats("alone", 0, WEEK), beats("alone", WEEK + 9 * HOUR, WEEK + 20 * HOUR)), 7)
    assert w.alerts == []


@pytest.mark.parametrize("wrong", [-3 * HOUR, -20 * MINUTE, 20 * MINUTE, DAY])
def test_clocks_that_differ_are_no_silence(model: Weights, wrong: int) -> None:
    good = [beats(name, 0, WEEK + DAY) for name in ("a", "b", "c", "gone")]
    bad = beats("wrong", 0, WEEK + DAY)
    order = merged(*good, bad)
    events = [event._replace(time=event.time + wrong * (event.stream == "wrong")) for event in order]
    events = [e for e in events if e.stream != "gone" or e.time < START + WEEK]
    w = Watched(model)
    w.come(events)
    assert {alert.stream for alert in w.alerts} <= {"gone"}
    assert w.told() == [FIRES]


def test_a_few_events_ahead_of_time_are_nobodys_silence(model: Weights) -> None:
    events = merged(beats("a", 0, WEEK + DAY), beats("b", 0, WEEK + DAY))
    ahead = [Event(f"odd-{k}", START + 400 * DAY, {"x": 1.0}) for k in range(9)]
    w = Watched(model)
    w.come([*events[:1200], *ahead, *events[1200:]], 11)
    assert w.alerts == []


def test_partitions_have_their_own_time(model: Weights) -> None:
    here, there = Partition("metrics", 0), Partition("metrics", 1)
    w = Watched(model)
    w.come(merged(beats("a", 0, WEEK, partition=here), beats("b", 0, WEEK, partition=there)))
    w.come(beats("b", WEEK, WEEK + 2 * DAY, partition=there))  # it is read ahead, as in a backlog
    w.come(beats("a", WEEK, WEEK + 2 * DAY, partition=here))
    assert w.alerts == []


@pytest.mark.parametrize("hours", [range(8, 18), range(2, 3), [5]], ids=["office hours", "a nightly job", "once a day"])
@pytest.mark.parametrize("days", [range(7), range(5)], ids=["every day", "on weekdays"])
def test_nights_and_weekends_are_no_silence_but_staying_away_is(
    model: Weights, hours: Sequence[int], days: Sequence[int]
) -> None:
    def works(last: int) -> list[Event]:
        step = DAY if len(hours) == 1 and hours[0] == 5 else 5 * MINUTE
        return [
            event for day in range(last) if day % 7 in days
            for event in beats("works", day * DAY + hours[0] * HOUR, day * DAY + (hours[-1] + 1) * HOUR, step)
        ]  # fmt: skip

    end = 50
    w = Watched(model)
    w.come(merged(works(end), beats("other", 0, end * DAY), beats("another", 0, end * DAY)), 5000)
    assert w.alerts == []
    w.come(merged(beats("other", end * DAY, (end + 16) * DAY), beats("another", end * DAY, (end + 16) * DAY)), 100)
    assert w.told("works")[:1] == [FIRES]


def test_a_stream_that_comes_at_random_is_told_late_but_told(model: Weights) -> None:
    rng = np.random.default_rng(3)
    times = START + np.cumsum(rng.exponential(600.0, 3000) * 1e9).astype(np.int64)
    random_events = [Event("gone", int(t), {"x": 1.0}) for t in times]
    end = int(times[-1]) - START
    w = Watched(model)
    w.come(merged(random_events, beats("other", 0, end), beats("another", 0, end)))
    assert w.alerts == []
    w.come(merged(beats("other", end, end + 2 * DAY), beats("another", end, end + 2 * DAY)))
    assert w.told() == [FIRES]


# -- restarts, memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False], ids=["looked through", "not looked through yet"])
@pytest.mark.parametrize("look", [True, False])
def test_after_a_crash_the_same_is_told(model: Weights, stored: bool, look: bool) -> None:
    """Killed at any time, what came since the last checkpoint comes again: no alert is lost, and none is another."""
    choose = random.Random(5)
    events = merged(
        beats("gone", 0, WEEK), beats("gone", WEEK + 9 * HOUR, WEEK + 12 * HOUR), beats("other", 0, WEEK + 14 * HOUR),
        beats("third", 0, WEEK + 14 * HOUR, 7 * MINUTE),
    )  # fmt: skip
    plain = Watched(model)
    plain.come(events)
    expected = [(alert.id, alert.status, alert.summary) for alert in plain.alerts]
    assert [status for _, status, _ in expected] == ["firing", "resolved", "firing"]

    w = Watched(model)
    cut = next(k for k, event in enumerate(events) if event.time > START + WEEK - HOUR)
    w.come(events[:cut])
    document, at, seen = w.save(), cut, set[tuple[str, str, str]]()
    for _ in range(12):
        reach = choose.randrange(at, len(events))
        w.come(events[at:reach], choose.randrange(1, 40), look=look)
        if choose.random() < 0.6:
            document, at = w.save(), reach
        seen |= {(alert.id, alert.status, alert.summary) for alert in w.alerts}
        w.begin(document)
        w.alerts = []
        if stored:
            w.look_through()
    w.come(events[at:], look=look)
    w.look_through()
    w.alerts += w.engine.silence.stopped()
    seen |= {(alert.id, alert.status, alert.summary) for alert in w.alerts}
    assert seen == set(expected)


def test_a_stream_that_was_evicted_is_watched_still(model: Weights) -> None:
    w = Watched(model, max_streams=3)
    w.come(merged(beats("gone", 0, WEEK), beats("other", 0, WEEK), beats("third", 0, WEEK)))
    w.come(merged(*(beats(f"new-{k}", WEEK, WEEK + 10 * MINUTE) for k in range(5))), 1)
    w.save()
    assert "gone" not in w.engine.streams.states.slots
    w.come(merged(beats("other", WEEK, WEEK + HOUR), beats("third", WEEK, WEEK + HOUR)), 1)
    assert w.told() == [FIRES]
    w.come(merged(*(beats(f"new-{k}", WEEK + HOUR, WEEK + HOUR + 10 * MINUTE) for k in range(5))), 1)
    w.save()
    assert len(w.engine.streams.silence) == 1
    w.come(merged(*(beats(name, WEEK + HOUR, WEEK + 3 * HOUR) for name in ("gone", "other", "third"))), 1)
    assert w.told() == [FIRES, BACK]
    assert len(w.engine.streams.silence) == 0


def test_what_was_told_before_a_restart_is_not_told_again_and_ends(model: Weights) -> None:
    w = Watched(model)
    w.come(merged(beats("gone", 0, WEEK), beats("other", 0, WEEK + 2 * HOUR)))
    w.begin(w.save())
    w.look_through()
    assert len(w.engine.streams.silence) == 1
    w.come(beats("other", WEEK + 2 * HOUR, WEEK + 3 * HOUR))
    assert w.told() == [FIRES]
    w.come(merged(beats("gone", WEEK + 3 * HOUR, WEEK + 4 * HOUR), beats("other", WEEK + 3 * HOUR, WEEK + 4 * HOUR)))
    assert w.told() == [FIRES, BACK]


def test_a_stream_that_stays_away_is_gone_and_not_told_again(model: Weights) -> None:
    w = Watched(model)
    w.come(merged(beats("gone", 0, WEEK), beats("other", 0, WEEK + 6 * DAY)))
    assert w.told() == [FIRES]
    w.begin(w.save())
    w.look_through()
    w.come(beats("other", WEEK + 6 * DAY, WEEK + 9 * DAY))
    assert w.told() == [FIRES, ("resolved", "gone")]
    w.begin(w.save())
    w.look_through()
    w.come(merged(beats("gone", WEEK + 10 * DAY, WEEK + 12 * DAY), beats("other", WEEK + 9 * DAY, WEEK + 12 * DAY)))
    assert w.told() == [FIRES, ("resolved", "gone")]
    w.come(beats("other", WEEK + 12 * DAY, WEEK + 13 * DAY))
    assert w.told() == [FIRES, ("resolved", "gone"), FIRES]  # it has sent again, at its usual rhythm


# -- what people and settings say ------------------------------------------------------------------------------------


def test_a_muted_stream_is_not_told_and_a_mute_ends_what_fires(model: Weights) -> None:
    w = Watched(model)
    w.engine.streams.mute({"gone": START + WEEK + 5 * HOUR})
    w.come(merged(beats("gone", 0, WEEK), beats("other", 0, WEEK + 4 * HOUR)))
    assert w.told() == []
    w.come(beats("other", WEEK + 4 * HOUR, WEEK + 7 * HOUR))
    assert w.told() == [FIRES]
    w.engine.streams.mute({"go*": START + WEEK + DAY})
    w.come(beats("other", WEEK + 7 * HOUR, WEEK + 8 * HOUR))
    assert w.told() == [FIRES, ("resolved", "muted")]
    w.come(beats("other", WEEK + 8 * HOUR, WEEK + 3 * DAY))
    assert w.told() == [FIRES, ("resolved", "muted")]


@pytest.mark.parametrize("look", [True, False])
def test_in_quiet_times_nobody_is_told_and_they_do_not_count(model: Weights, look: bool) -> None:
    """Office hours with quiet nights: told within the hour by day, never at night nor as the day begins."""
    nights = [(START + day * DAY + 17 * HOUR + 45 * MINUTE, START + day * DAY + 32 * HOUR) for day in range(-1, 20)]
    rule = StreamRule("office", ("office", "gone"), EVER, quiet=(Calendar("nights", lambda a, b: nights),))
    w = Watched(model, ALL._replace(silence=False), by_pattern=(rule,))
    days = [beats("office", d * DAY + 8 * HOUR + 20 * MINUTE, d * DAY + 18 * HOUR) for d in range(5)]
    gone = [*beats("gone", 8 * HOUR, 17 * HOUR), *beats("gone", DAY + 10 * HOUR, DAY + 12 * HOUR)]
    others = [beats(name, 0, 4 * DAY + 15 * HOUR) for name in ("other", "another")]
    w.come(merged(*days, gone, *others), 300, look=look)
    w.alerts += w.engine.silence.stopped()
    assert w.told("office") == []
    assert w.told() == [FIRES, BACK, FIRES]


def test_rules_may_begin_and_end_to_ask(model: Weights) -> None:
    off = ALL._replace(silence=False)
    w = Watched(model, off)
    w.come(merged(beats("before", 0, WEEK - DAY), beats("gone", 0, WEEK), beats("other", 0, WEEK)))
    w.engine.use_rules(ALL)
    w.come(beats("other", WEEK, WEEK + 2 * HOUR))
    assert w.told("before") == []  # it had stopped long before anybody asked
    assert w.told() == [FIRES]
    w.engine.use_rules(off)
    w.come(beats("other", WEEK + 2 * HOUR, WEEK + 3 * HOUR))
    assert w.told() == [FIRES, ("resolved", "muted")]
    assert len(w.engine.streams.silence) == 0
    w.engine.use_rules(ALL)
    w.come(beats("other", WEEK + 3 * HOUR, WEEK + 5 * HOUR))
    assert w.told() == [FIRES, ("resolved", "muted")]
