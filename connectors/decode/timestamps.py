"""Times as people and programs write them, read into nanoseconds since 1970-01-01 UTC."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from decimal import Decimal

NS_PER_MILLISECOND = 1_000_000
NS_PER_SECOND = 1_000_000_000
SECONDS_PER_DAY = 86_400

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  a time without offset means UTC, so it is measured from here
_INT64_MAX = 2**63 - 1  # in the year 2262

# A Unix time's unit follows from its size: from 1973-03-03 to the year 5138 the ranges of s, ms, us and ns do not meet.
_UNITS = ((10**11, NS_PER_SECOND), (10**14, NS_PER_MILLISECOND), (10**17, 1_000))

# What datetime.fromisoformat does not read, or would cut short: more than six digits, leap seconds, "z", " UTC".
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:)(\d\d)(?:[.,](\d{1,30}))?\s*(?:(Z|z|UTC|GMT)|([+-]\d\d(?::?\d\d)?))?", re.ASCII
)
_NUMBER = re.compile(r"[+-]?\d{1,30}(?:\.\d{0,30})?(?:[eE][+-]?\d{1,2})?", re.ASCII)


def parse_time(value: float | str) -> int:
    """Return a time in ns since 1970-01-01 UTC.

    `value` is RFC 3339 (any offset; "T" or a space; any number of digits, cut after the ninth; a leap second is the
    second after; no offset means UTC; a date alone is its midnight), or a Unix time in s, ms, us or ns, as a number or
    as text. A fraction in text is read exactly; a float is rounded to the microsecond, which is what 64 bits hold.
    Raises ValueError, with what was found, where it is none of these or outside the years 1677 to 2262.
    """
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, int):
        return _within(value * _unit(value), value)
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a time")
    unit = _unit(value)
    return _within(round(value * unit / 1_000) * 1_000, value)


def _from_text(text: str) -> int:
    # The commonest layouts first: without offset or with "Z", and at most the six digits that datetime keeps.
    if text[4:5] == "-" and (len(text) <= 26 or (len(text) == 27 and text[26] == "Z")):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            pass  # a leap second, say: the patterns below decide
        else:
            if 1678 <= moment.year <= 2261:
                return _since_epoch(moment)
    text = text.strip()
    if len(text) <= 19 and text.isascii() and text.isdigit():
        return parse_time(int(text))
    if _NUMBER.fullmatch(text):
        number = Decimal(text)
        return _within(int(number * _unit(number)), text)
    return _within(_from_rfc3339(text), text)


def _from_rfc3339(text: str) -> int:
    match = _RFC3339.fullmatch(text)
    try:
        if match is None:
            moment, nanoseconds = datetime.fromisoformat(text), 0
        else:
            minute, second, fraction, _, offset = match.groups()
            leap = second == "60"
            moment = datetime.fromisoformat(f"{minute}{'59' if leap else second}{offset or ''}")
            nanoseconds = int((fraction or "0").ljust(9, "0")[:9]) + leap * NS_PER_SECOND
        return _since_epoch(moment) + nanoseconds
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text[:60]!r} is neither an RFC 3339 time such as 2026-11-20T08:15:00Z nor a Unix time"
        ) from None


def _since_epoch(moment: datetime) -> int:
    since = moment - (_NAIVE_EPOCH if moment.tzinfo is None else _EPOCH)
    return (since.days * SECONDS_PER_DAY + since.seconds) * NS_PER_SECOND + since.microseconds * 1_000


def _unit(number: float | Decimal) -> int:
    """Return the ns in one unit of a Unix time of this size."""
    for limit, unit in _UNITS:
        if -limit < number < limit:
            return unit
    return 1


def _within(time: int, value: object) -> int:
    if not -_INT64_MAX <= time <= _INT64_MAX:
        raise ValueError(f"{str(value)[:60]!r} lies outside the years 1677 to 2262")
    return time
