"""Spans that begin by a cron expression or an RFC 5545 rule, by the clock of a time zone.

A clock that is set forward leaves times out: what would begin then begins as much later (02:30 at 03:30), as RFC 5545
asks. One that is set back shows times twice: the first counts, and both where a cron expression's hour begins with `*`,
so that what comes each hour comes in that one, too. A span lasts as long whatever clocks do meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

# Returns the spans that begin or last between two times, each from its begin to its end; all in ns. They may overlap.
Spans = Callable[[int, int], Iterable[tuple[int, int]]]

MAX_A_DAY = 24  # begins: each costs microseconds a year of events' time
EXAMPLE = "2026-01-01"  # a day from which a first begin is looked for
_FIELD = re.compile(r"(?![hr]\b)[0-9a-z*,/#-]+", re.IGNORECASE)  # croniter's h and r are drawn by chance
_RULE = re.compile(r"(?:RRULE:)?([A-Z]+=[A-Z0-9,+-]+(?:;[A-Z]+=[A-Z0-9,+-]+)*)")
_OFTEN = "BYHOUR", "BYMINUTE", "BYSECOND"
_NS = 10**9


def cron_spans(expression: str, seconds: float, zone: ZoneInfo) -> Spans:
    """Return the spans of so many seconds that begin by a cron expression of five fields. Raises ValueError."""
    from croniter import CroniterBadDateError, croniter  # noqa: PLC0415 - only who has a calendar pays for it

    such_as = 'expected minute, hour, day, month and day of the week, such as "0 2 * * sun"'
    fields = expression.split()
    if len(fields) != 5 or not all(map(_FIELD.fullmatch, fields)):
        raise ValueError(f"no cron expression: {such_as}")
    try:
        begins = croniter(expression, datetime.fromisoformat(EXAMPLE))
        begins.get_next(datetime)
    except CroniterBadDateError:
        raise ValueError("it names no day that there is") from None
    except ValueError as error:
        raise ValueError(f"no cron expression ({error}): {such_as}") from None
    minutes, hours = (range(most) if "*" in of else of for of, most in zip(begins.expanded, (60, 24), strict=False))
    _not_too_often(len(minutes) * len(hours))
    each_hour = fields[1].startswith("*")

    def spans(begin: int, end: int) -> Iterator[tuple[int, int]]:
        last = _shown(end, zone) + timedelta(days=1)
        found = croniter(expression, _shown(begin, zone) - timedelta(days=1, seconds=seconds))
        try:
            while (at := found.get_next(datetime)) <= last:
                yield from _lasting(at, seconds, zone, twice=each_hour)
        except CroniterBadDateError:
            return

    return spans


def rrule_spans(text: str, start: datetime, seconds: float, zone: ZoneInfo) -> Spans:
    """Return the spans of so many seconds that begin by an RRULE and its DTSTART, a local time. Raises ValueError."""
    from dateutil.rrule import rrulestr  # noqa: PLC0415 - only who has a calendar pays for it

    such_as = 'expected a rule of RFC 5545, such as "FREQ=MONTHLY;BYDAY=1SU"'
    parts = _RULE.fullmatch(text.strip().upper())
    if parts is None:
        raise ValueError(f"no RRULE: {such_as}")
    named = dict(part.split("=") for part in parts[1].split(";"))
    if named.get("FREQ") not in ("DAILY", "WEEKLY", "MONTHLY", "YEARLY"):
        raise ValueError("FREQ must be DAILY, WEEKLY, MONTHLY or YEARLY; for more, BYHOUR=0,6,12,18")
    if (until := named.get("UNTIL", "")).endswith("Z"):  # in UTC, as the RFC asks where a time zone is named
        try:
            ends = datetime.strptime(until, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).astimezone(zone)
        except ValueError:
            raise ValueError(f"UNTIL is {until}, expected such as 20261231T230000Z") from None
        named["UNTIL"] = ends.strftime("%Y%m%dT%H%M%S")
    often = 1
    for name in _OFTEN:
        often *= named.get(name, "").count(",") + 1
    _not_too_often(often)
    try:
        rule = rrulestr(";".join(f"{name}={value}" for name, value in named.items()), dtstart=start)
        first = next(iter(rule), None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"no RRULE ({error}): {such_as}") from None
    if first is None:
        raise ValueError(f"it never comes, from {start} on")

    def spans(begin: int, end: int) -> Iterator[tuple[int, int]]:
        since = _shown(begin, zone) - timedelta(days=1, seconds=seconds)
        for at in rule.between(since, _shown(end, zone) + timedelta(days=1)):
            yield from _lasting(at, seconds, zone)

    return spans


def instant(shown: datetime, zone: ZoneInfo, fold: int = 0) -> int:
    """Return when a clock shows a time, ns since 1970: the first or, with `fold` 1, the second time that it does."""
    return round(shown.replace(tzinfo=zone, fold=fold).timestamp()) * _NS


def _lasting(at: datetime, seconds: float, zone: ZoneInfo, *, twice: bool = False) -> Iterable[tuple[int, int]]:
    for fold in (0, 1) if twice else (0,):
        begin = instant(at, zone, fold)
        yield begin, begin + round(seconds * _NS)


def _shown(time: int, zone: ZoneInfo) -> datetime:
    """Return what a zone's clock shows at a time, ns."""
    return datetime.fromtimestamp(time // _NS, UTC).astimezone(zone).replace(tzinfo=None)


def _not_too_often(a_day: int) -> None:
    if a_day > MAX_A_DAY:
        raise ValueError(f"it begins up to {a_day} times a day, at most {MAX_A_DAY} are taken: let it last longer")
