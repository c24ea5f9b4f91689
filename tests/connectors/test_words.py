"""What people read: numbers, times, how rare it is, and what an alert found, which is what its evidence says."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.batches import CHANNELS
from connectors.words import format_duration, format_number, return_periods, summary, told_apart

numbers = st.floats(-1e12, 1e12, allow_subnormal=False) | st.integers(-1000, 1000).map(float)
seconds = st.floats(1.0, 1e8)
DAY, YEAR = 86_400.0, 365.25 * 86_400.0


def numbers_in(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", text)]


def seconds_in(text: str) -> float:
    units = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}
    return sum(float(count) * units[unit] for count, unit in re.findall(r"([\d.]+) (d|h|min|s)\b", text))


def is_about(shown: float, value: float) -> bool:
    return math.isclose(shown, value, rel_tol=6e-4, abs_tol=1e-300)


@given(numbers, numbers, st.none() | st.tuples(numbers, numbers).map(sorted))
def test_a_forecasts_sentence_has_its_numbers(observed: float, expected: float, band: list[float] | None) -> None:
    evidence = {"observed": observed, "expected": expected}
    if band:
        evidence |= {"lower": band[0], "upper": band[1]}
    text = summary("forecast", "x", evidence)
    assert re.fullmatch(r"observed \S+, expected \S+( \[\S+ \.\. \S+\])?", text)
    shown = numbers_in(text)
    assert len(shown) == len(evidence)
    assert all(map(is_about, shown, evidence.values()))


@given(numbers, numbers, numbers)
def test_no_sentence_shows_an_observation_on_its_band_that_lies_outside(a: float, b: float, c: float) -> None:
    lower, upper, observed = sorted((a, b, c))
    if upper < observed:
        shown = numbers_in(
            summary("forecast", "x", {"observed": observed, "expected": lower, "lower": lower, "upper": upper})
        )
        assert shown[0] > shown[-1]


@given(numbers, numbers)
def test_a_levels_sentence_has_its_numbers(level: float, usual: float) -> None:
    text = summary("level", "x", {"level": level, "usual": usual, "lower": usual - 1, "upper": usual + 1})
    assert re.fullmatch(r"level \S+ where \S+ is usual at this hour", text)
    assert all(map(is_about, numbers_in(text), (level, usual)))


@given(seconds, st.none() | seconds)
def test_a_standstills_sentence_has_its_times(still: float, usual: float | None) -> None:
    evidence = {"seconds": still} | ({} if usual is None else {"usual_longest_seconds": usual})
    parts = summary("still", "x", evidence).split("; the longest usual pause is ")
    assert parts[0].startswith("no change for ")
    assert len(parts) == len(evidence)
    for part, value in zip(parts, evidence.values(), strict=True):
        assert seconds_in(part) == pytest.approx(value, rel=0.05)  # two units: 1 min 3 s, 1 d 1 h


@given(numbers, numbers)
def test_a_couplings_sentence_has_its_numbers_and_names_the_feature(observed: float, expected: float) -> None:
    text = summary("coupling", "cpu", {"observed": observed, "expected": expected}, several=True)
    head, _, rest = text.partition(": ")
    assert head == "cpu does not follow the other features"
    assert re.fullmatch(r"\S+ where they let expect \S+", rest)
    assert all(map(is_about, numbers_in(rest), (observed, expected)))


@given(numbers, numbers, st.none() | st.floats(0, 1e8))
def test_a_new_values_sentence_has_its_numbers(observed: float, nearest: float, ago: float | None) -> None:
    evidence = {"observed": observed, "nearest": nearest} | ({} if ago is None else {"nearest_seconds_ago": ago})
    text = summary("novel", "x", evidence)
    value, _, rest = text.partition(" is new: the nearest value remembered is ")
    shown, within, when = rest.partition(", met within the last ")
    assert is_about(numbers_in(value)[0], observed)
    assert is_about(numbers_in(shown)[0], nearest)
    assert bool(within) == (ago is not None)
    if ago is not None:
        assert re.fullmatch(r"(\d+ )?(second|minute|hour|day|month|year)s?", when)


@given(numbers, numbers)
def test_a_new_errors_sentence_has_its_numbers(observed: float, expected: float) -> None:
    text = summary("novel", "x", {"observed": observed, "expected": expected})
    assert text.endswith("; such an error is new" if observed != expected else "that a forecast is right is new")
    assert all(map(is_about, numbers_in(text), (observed, expected)))


@given(st.floats(1e-12, 1), st.floats(1e-12, 1), st.sampled_from(["E17", "it's", "\n"]))
def test_a_symbols_sentence_has_its_probabilities(p: float, likely: float, symbol: str) -> None:
    evidence = {"observed_probability": p, "expected_probability": likely}
    text = summary("symbol", "code", evidence, symbol, None)
    assert text.startswith(f"{symbol!r} (probability ")
    shown = [float(found) for found in re.findall(r"[( ]([\d.e-]+)\)", text)]
    assert shown == [pytest.approx(p, rel=0.06), pytest.approx(likely, rel=0.06)]
    assert ", expected nothing (" in text


def test_the_sentences_are_plain_english() -> None:
    band = {"lower": 38.9, "upper": 41.7}
    assert summary("forecast", "cpu", {"observed": 92.1, "expected": 40.3} | band) == (
        "observed 92.1, expected 40.3 [38.9 .. 41.7]"
    )
    assert summary("level", "cpu", {"level": 80.0, "usual": 20.0} | band) == "level 80 where 20 is usual at this hour"
    assert summary("still", "cpu", {"seconds": 11_520.0, "usual_longest_seconds": 840.0}, several=True) == (
        "cpu: no change for 3 h 12 min; the longest usual pause is 14 min"
    )
    assert summary("coupling", "cpu", {"observed": 92.0, "expected": 41.0}, several=True) == (
        "cpu does not follow the other features: 92 where they let expect 41"
    )
    assert summary("novel", "cpu", {"observed": 12.7, "nearest": 9.1, "nearest_seconds_ago": 3 * DAY}) == (
        "12.7 is new: the nearest value remembered is 9.1, met within the last 3 days"
    )
    assert summary("novel", "cpu", {"observed": 12.7, "nearest": 9.1, "nearest_seconds_ago": 3_601.0}).endswith(
        "met within the last 2 hours"
    )
    assert summary("novel", "counter", {"observed": 97_001.0, "expected": 97_001.0}) == (
        "observed 97,001, exactly as expected; that a forecast is right is new"
    )
    probabilities = {"observed_probability": 0.0012, "expected_probability": 0.98}
    assert summary("symbol", "code", probabilities, "E17", "E12") == "'E17' (probability 0.0012), expected 'E12' (0.98)"


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_feature_among_others_is_named(channel: str) -> None:
    names = "observed expected level usual seconds nearest observed_probability expected_probability"
    evidence = dict.fromkeys(names.split(), 1.0)
    assert summary(channel, "cpu", evidence, several=True).startswith("cpu")


@pytest.mark.parametrize(
    ("events", "interval", "words"),
    [
        (11 * 1440, 60.0, "once in 11 days"),
        (5_000, 0.0, "once in 5,000 events"),
        (1, 60.0, "all the time"),
        (100, 1.0, "once in 2 minutes"),
        (60, 60.0, "once an hour"),
        (1440 * 365.25, 60.0, "once in 12 months"),
        (1e9, 3600.0, "once in 100 years"),
        (1e300, 0.0, "once in 1,000,000,000,000,000 events"),
        (1.2, 0.001, "all the time"),
    ],
)
def test_a_return_period_is_said_in_words(events: float, interval: float, words: str) -> None:
    assert return_periods(np.array([math.log10(events)]), np.array([interval])) == [words]


UNITS = {"second": 1.0, "minute": 60.0, "hour": 3_600.0, "day": DAY, "month": YEAR / 12, "year": YEAR}


@given(st.floats(0.01, 320), st.floats(1e-3, 1e6))
def test_a_return_periods_words_are_that_long(score: float, interval: float) -> None:
    (text,) = return_periods(np.array([score]), np.array([interval]))
    period = 10.0 ** min(score, 300.0) * interval
    if text == "all the time":
        assert period < 1.0
        return
    _, count, unit = re.fullmatch(r"once (in )?(an?|\d+) (\w+?)s?", text).groups()  # type: ignore[union-attr]
    shown = (float(count) if count.isdigit() else 1.0) * UNITS[unit]
    assert abs(shown - min(period, 100 * YEAR)) < 0.51 * UNITS[unit]


def test_a_return_period_does_not_depend_on_the_batch() -> None:
    random = np.random.default_rng(0)
    score, interval = random.uniform(0, 12, 1_001), random.choice([0.0, 1.0, 60.0, 3600.0], 1_001)
    alone = [return_periods(score[i : i + 1], interval[i : i + 1])[0] for i in range(len(score))]
    assert return_periods(score, interval) == alone


@given(st.lists(numbers, min_size=2, max_size=4))
def test_numbers_that_differ_look_different(values: list[float]) -> None:
    texts = told_apart(*values)
    assert len(set(texts)) >= len(set(values))


def test_numbers_have_the_digits_that_matter() -> None:
    assert [format_number(value) for value in (39_197.3, 0.123456, 9_999.4, 1e308, -1e-7)] == [
        "39,197", "0.1235", "9,999", "1e+308", "-1e-07",
    ]  # fmt: skip
    assert told_apart(100.01, 100.0) == ["100.01", "100"]
    assert format_duration(11_520) == "3 h 12 min"
