"""A country's public holidays, or those of a part of it, as whole days of a time zone."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from detector.calendars.recurring import Spans, instant


def holiday_spans(code: str, zone: ZoneInfo) -> Spans:
    """Return the days that are holidays by a code of ISO 3166, such as "DE" or "DE-BY". Raises ValueError."""
    import holidays  # noqa: PLC0415 - 0.15 s, which only who asks for it pays

    known = holidays.list_supported_countries(include_aliases=False)
    country, _, part = code.partition("-")
    country = country.upper()
    if country not in known:
        raise ValueError('no country whose holidays are known: expected a code such as "DE" or "DE-BY"')
    parts = {name.upper(): name for name in known[country]}
    if part and part.upper() not in parts:
        near = difflib.get_close_matches(part.upper(), parts, n=1) or sorted(parts)[:1]
        hint = f"expected one such as {country}-{parts[near[0]]}" if near else f"write {country}"
        raise ValueError(f"no part of {country} whose holidays are known: {hint}")

    def spans(begin: int, end: int) -> Iterator[tuple[int, int]]:
        first, last = (datetime.fromtimestamp(at // 10**9, UTC).year for at in (begin, end))
        asked = range(first - 1, last + 2)  # at a year's ends it is another year elsewhere
        for day in holidays.country_holidays(country, subdiv=parts[part.upper()] if part else None, years=asked):
            midnight = datetime.combine(day, time())
            yield instant(midnight, zone), instant(midnight + timedelta(days=1), zone)

    return spans
