"""Numbers, times, return periods and what an alert found, in words that a person reads. Pure functions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np

from connectors.batches import CHANNELS, Float64

FORECAST, LEVEL, STILL, COUPLING, NOVEL, SYMBOL = CHANNELS

DIGITS, MAX_DIGITS = 4, 17  # of a number; as many as tell any two apart
MINUTE, HOUR, DAY = 60, 3_600, 86_400
MONTH, YEAR = 30.44 * DAY, 365.25 * DAY
_UNITS = (  # of a rough time: one, several, its size in seconds, how many there are at least and at most
    ("second", "seconds", 1, 1, 59),
    ("minute", "minutes", MINUTE, 1, 59),
    ("hour", "hours", HOUR, 1, 47),
    ("day", "days", DAY, 2, 59),
    ("month", "months", MONTH, 2, 23),
    ("year", "years", YEAR, 2, 100),
)
MAX_EVENTS = 10**15  # of a return period in events: beyond it nobody counts


def _rough_times() -> tuple[list[float], list[str]]:
    sizes, texts = list[float](), list[str]()
    for one, several, size, least, most in _UNITS:
        for count in range(least, most + 1):
            sizes.append(count * size)
            texts.append(f"{count} {several}" if count > 1 else f"an {one}" if one == "hour" else f"a {one}")
    return sizes, texts


_SIZES, _TEXTS = _rough_times()
_BOUNDS = [0.5, *((a + b) / 2 for a, b in pairwise(_SIZES))]
_ONCE = ["all the time", *(f"once {text}" if text[0] == "a" else f"once in {text}" for text in _TEXTS)]
_COUNTS = [digit * 10**power for power in range(15) for digit in range(1, 10)] + [MAX_EVENTS]
_COUNT_BOUNDS = [(a + b) / 2 for a, b in pairwise(_COUNTS)]
_ONCE_EVENTS = ["all the time", *(f"once in {count:,} events" for count in _COUNTS[1:])]


def format_number(value: float, digits: int = DIGITS) -> str:
    """Return a number with the digits that matter to a reader."""
    return f"{value:,.0f}" if 10**digits <= abs(value) < MAX_EVENTS else f"{value:,.{digits}g}"


def format_value(found: float | str | None) -> str:
    """Return a number or a symbol for a reader."""
    return format_number(found) if isinstance(found, float | int) else "nothing" if found is None else repr(found)


def format_time(ns: int) -> str:
    """Return a time as people write it, in UTC and saying so."""
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def format_duration(seconds: float) -> str:
    """Return a time as people say it, in its two largest units."""
    units = ("d", DAY), ("h", HOUR), ("min", MINUTE), ("s", 1)
    for (unit, size), (below, part) in pairwise(units):
        if seconds >= size:
            whole, rest = divmod(round(seconds / part), size // part)
            return f"{whole} {unit} {rest} {below}" if rest else f"{whole} {unit}"
    return f"{format_number(seconds)} s"


def return_periods(score: Float64, interval: Float64) -> list[str]:
    """Return how rare scores are: "once in 11 days", "all the time"; at most "once in 100 years".

    score: [n] log10 of the return period in events; interval: [n] usual seconds between events, 0: not known, and it is
    said in events.
    """
    events = 10.0 ** np.minimum(score, 300.0)
    known = interval > 0.0
    codes = np.searchsorted(_BOUNDS, events * interval, "right")
    codes[score <= 0.0] = 0
    texts = [_ONCE[code] for code in codes.tolist()]
    if not known.all():
        rows = np.flatnonzero(~known)
        counts = np.searchsorted(_COUNT_BOUNDS, events[rows], "right").tolist()
        for row, code in zip(rows.tolist(), counts, strict=True):
            texts[row] = _ONCE_EVENTS[code]
    return texts


def summary(
    channel: str,
    feature: str,
    evidence: Mapping[str, float],
    observed: float | str | None = None,
    expected: float | str | None = None,
    *,
    several: bool = False,
) -> str:
    """Return what an alert found, as one sentence made of its evidence.

    `feature` leads; `several`: the event has others, so it is named. A symbol's evidence are probabilities: what was
    `observed` and `expected` are the symbols.
    """
    if channel == COUPLING:
        found, let_expect = told_apart(evidence["observed"], evidence["expected"])
        return f"{feature} does not follow the other features: {found} where they let expect {let_expect}"
    sentence = _sentence(channel, evidence, observed, expected)
    return f"{feature}: {sentence}" if several else sentence


def _sentence(
    channel: str, evidence: Mapping[str, float], observed: float | str | None, expected: float | str | None
) -> str:
    if channel == SYMBOL:
        p, likely_p = (f"{evidence[name]:.2g}" for name in ("observed_probability", "expected_probability"))
        return f"{format_value(observed)} (probability {p}), expected {format_value(expected)} ({likely_p})"
    if channel == LEVEL:
        level, usual = told_apart(evidence["level"], evidence["usual"])
        return f"level {level} where {usual} is usual at this hour"
    if channel == STILL:
        still = f"no change for {format_duration(evidence['seconds'])}"
        longest = evidence.get("usual_longest_seconds")
        return still if longest is None else f"{still}; the longest usual pause is {format_duration(longest)}"
    if channel == NOVEL and "nearest" in evidence:  # it remembers for some time, not for ever
        value, nearest = told_apart(evidence["observed"], evidence["nearest"])
        ago = evidence.get("nearest_seconds_ago")
        when = "" if ago is None else f", met within the last {_at_most(ago)}"
        return f"{value} is new: the nearest value remembered is {nearest}{when}"
    if channel == NOVEL:  # not the value is new but its distance from the forecast
        value, forecast = told_apart(evidence["observed"], evidence["expected"])
        if evidence["observed"] == evidence["expected"]:  # a counter's that stands still: it always grew
            return f"observed {value}, exactly as expected; that a forecast is right is new"
        return f"observed {value}, expected {forecast}; such an error is new"
    band = [evidence[name] for name in ("lower", "upper") if name in evidence]
    value, forecast, *ends = told_apart(evidence["observed"], evidence["expected"], *band)
    return f"observed {value}, expected {forecast}" + (f" [{' .. '.join(ends)}]" if ends else "")


def silence_summary(seconds: float, usual: float, longest: float) -> str:
    """Return for how long a stream has sent nothing, beside its usual interval and its longest pause; 0: not known."""
    found = f"no event for {_about(seconds)}"
    if usual > 0.0:
        found += f", usual {_about(usual)}"
    return found if longest < 2.0 * usual else f"{found}; the longest usual pause is {_about(longest)}"


def _about(seconds: float) -> str:
    """Return a time with a minute's precision where there are many."""
    return format_duration(MINUTE * round(seconds / MINUTE) if seconds >= 10 * MINUTE else seconds)


def _at_most(seconds: float) -> str:
    """Return a rough time that is no less, as it follows "the last": "hour", "3 days"."""
    text = _TEXTS[min(bisect_left(_SIZES, seconds), len(_TEXTS) - 1)]
    return text.removeprefix("an ").removeprefix("a ")


def told_apart(*values: float) -> list[str]:
    """Return numbers with as few digits as tell those apart that are not equal."""
    different = len(set(values))
    for digits in range(DIGITS, MAX_DIGITS):
        texts = [format_number(value, digits) for value in values]
        if len(set(texts)) >= different:
            return texts
    return [repr(value) for value in values]
