"""When windows begin and end: by cron, RFC 5545 and holidays, as clocks are set forward and back."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from detector.calendars.public_holidays import holiday_spans
from detector.calendars.recurring import Spans, cron_spans, rrule_spans
from detector.calendars.windows import Calendar

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
HOUR = 3600.0


def ns(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp()) * 10**9


def begins(spans: Spans, after: str, count: int, zone: ZoneInfo) -> list[str]:
    """The next windows' begins by a zone's clock, with its offset."""
    found = Calendar("c", spans).next(ns(after), count)
    return [datetime.fromtimestamp(at // 10**9, zone).isoformat() for at in found.begin.tolist()]


def lengths(spans: Spans, after: str, count: int) -> list[float]:
    found = Calendar("c", spans).next(ns(after), count)
    return ((found.end - found.begin) / 3.6e12).tolist()


def test_a_window_keeps_to_the_clock_when_that_changes() -> None:
    spans = cron_spans("0 2 * * *", HOUR, NEW_YORK)
    assert begins(spans, "2026-03-06T12:00Z", 4, NEW_YORK) == [
        "2026-03-07T02:00:00-05:00",
        "2026-03-08T03:00:00-04:00",  # there is no two o'clock
        "2026-03-09T02:00:00-04:00",
        "2026-03-10T02:00:00-04:00",
    ]
    assert begins(spans, "2026-10-31T12:00Z", 3, NEW_YORK) == [
        "2026-11-01T02:00:00-05:00",
        "2026-11-02T02:00:00-05:00",
        "2026-11-03T02:00:00-05:00",
    ]
    assert lengths(spans, "2026-03-06T12:00Z", 4) == [1.0] * 4


@pytest.mark.parametrize("kind", ["cron", "rrule"])
def test_a_time_that_the_clock_leaves_out_comes_later_and_one_that_it_shows_twice_comes_once(kind: str) -> None:
    spans = (
        cron_spans("30 2 * * *", 600.0, BERLIN)
        if kind == "cron"
        else rrule_spans("FREQ=DAILY", datetime.fromisoformat("2020-01-01T02:30"), 600.0, BERLIN)
    )
    assert begins(spans, "2026-03-28T12:00Z", 2, BERLIN) == ["2026-03-29T03:30:00+02:00", "2026-03-30T02:30:00+02:00"]
    assert begins(spans, "2026-10-24T12:00Z", 2, BERLIN) == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]


def test_what_comes_each_hour_comes_in_the_hour_that_is_shown_twice_too() -> None:
    spans = cron_spans("15 * * * *", 60.0, BERLIN)
    found = Calendar("c", spans).next(ns("2026-10-24T23:00Z"), 5)
    assert ((found.begin[1:] - found.begin[:-1]) / 3.6e12).tolist() == [1.0] * 4
    found = Calendar("c", spans).next(ns("2026-03-28T23:00Z"), 5)
    assert ((found.begin[1:] - found.begin[:-1]) / 3.6e12).tolist() == [1.0] * 4


def test_an_rrule_counts_from_its_start_and_ends_where_it_says() -> None:
    start = datetime.fromisoformat("2026-01-13T22:00")
    spans = rrule_spans("FREQ=MONTHLY;BYDAY=2TU;COUNT=3", start, HOUR, BERLIN)
    assert begins(spans, "2026-03-11T00:00Z", 9, BERLIN) == []
    assert begins(spans, "2025-12-01T00:00Z", 9, BERLIN) == [
        "2026-01-13T22:00:00+01:00",
        "2026-02-10T22:00:00+01:00",
        "2026-03-10T22:00:00+01:00",
    ]
    until = rrule_spans("rrule:freq=weekly;byday=sa;until=20260131T210000Z", start, HOUR, BERLIN)
    assert begins(until, "2026-01-01T00:00Z", 9, BERLIN)[-1] == "2026-01-31T22:00:00+01:00"
    earlier = rrule_spans("FREQ=WEEKLY;BYDAY=SA;UNTIL=20260131T205959Z", start, HOUR, BERLIN)
    assert begins(earlier, "2026-01-01T00:00Z", 9, BERLIN)[-1] == "2026-01-24T22:00:00+01:00"


def test_a_leap_day_is_found_and_a_window_over_new_year_is_one() -> None:
    assert begins(cron_spans("0 0 29 2 *", HOUR, BERLIN), "2026-01-01T00:00Z", 1, BERLIN) == [
        "2028-02-29T00:00:00+01:00"
    ]
    spans = cron_spans("0 12 31 12 *", 24 * HOUR, BERLIN)
    assert lengths(spans, "2026-06-01T00:00Z", 2) == [24.0, 24.0]
    calendar = Calendar("c", spans)
    inside = [ns("2026-12-31T11:00Z"), ns("2027-01-01T10:59:59Z")]
    outside = [ns("2026-12-31T10:59:59Z"), ns("2027-01-01T11:00Z")]
    assert calendar.hold(np.array(inside + outside)).tolist() == [True, True, False, False]


def test_holidays_are_the_whole_days_of_their_place() -> None:
    bavaria, berlin = holiday_spans("DE-BY", BERLIN), holiday_spans("de-be", BERLIN)
    epiphany = "2026-01-06T00:00:00+01:00"
    assert epiphany in begins(bavaria, "2026-01-01T12:00Z", 3, BERLIN)
    assert epiphany not in begins(berlin, "2026-01-01T12:00Z", 3, BERLIN)
    merged = Calendar("c", bavaria).next(ns("2026-12-20T00:00Z"), 1)  # 25 and 26 December are one window
    assert (merged.end - merged.begin)[0] == 48 * 3600 * 10**9
    eve = Calendar("c", holiday_spans("DE", ZoneInfo("Pacific/Kiritimati"))).next(ns("2026-12-31T00:00Z"), 1)
    assert datetime.fromtimestamp(int(eve.begin[0]) // 10**9, UTC) == datetime(2026, 12, 31, 10, tzinfo=UTC)


def test_a_day_on_which_clocks_change_is_as_long_as_it_is() -> None:
    easter = date(2024, 3, 31)  # Easter Sunday, a holiday in Brandenburg, when clocks were set forward
    found = Calendar("c", holiday_spans("DE-BB", BERLIN)).next(ns("2024-03-30T12:00Z"), 1)
    assert datetime.fromtimestamp(int(found.begin[0]) // 10**9, BERLIN).date() == easter
    end = datetime.fromtimestamp(int(found.end[0]) // 10**9, BERLIN)
    assert (end.date(), end.hour) == (easter + timedelta(days=2), 0)
    assert (found.end - found.begin)[0] == 47 * 3600 * 10**9


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "no cron expression"),
        ("0 2 * *", "no cron expression"),
        ("0 0 2 * * *", "no cron expression"),
        ("@daily", "no cron expression"),
        ("60 2 * * *", "out of range"),
        ("0 2 * * someday", "no cron expression"),
        ("H 2 * * *", "no cron expression"),
        ("0 R(1-3) * * *", "no cron expression"),
        ("0 2 30 2 *", "names no day"),
        ("*/10 * * * *", "up to 144 times a day"),
    ],
)
def test_a_cron_expression_that_cannot_be_used_is_refused(expression: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        cron_spans(expression, HOUR, BERLIN)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("", "no RRULE"),
        ("every tuesday", "no RRULE"),
        ("BYDAY=TU", "FREQ must be"),
        ("FREQ=HOURLY", "FREQ must be"),
        ("FREQ=DAILY;BYDAY=XX", "no RRULE"),
        ("FREQ=DAILY;SOMETIMES=1", "no RRULE"),
        ("FREQ=DAILY\nEXDATE:20260101", "no RRULE"),
        ("FREQ=DAILY;UNTIL=20209999T000000Z", "UNTIL is"),
        ("FREQ=DAILY;UNTIL=20200101", "it never comes"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "it never comes"),
        ("FREQ=DAILY;BYHOUR=1,2,3,4,5;BYMINUTE=0,10,20,30,40", "up to 25 times a day"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused(rule: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        rrule_spans(rule, datetime.fromisoformat("2026-01-01"), HOUR, BERLIN)


@pytest.mark.parametrize("code", ["", "Germany", "XX", "DE-XX", "AD-B"])
def test_a_place_whose_holidays_are_not_known_is_refused(code: str) -> None:
    with pytest.raises(ValueError, match=r"expected|write"):
        holiday_spans(code, BERLIN)
