"""From an event's measures to what each channel claims."""

import math
from typing import Any

import numpy as np
import pytest

from connectors.batches import CHANNELS
from detector.scoring.batch import MEASURED
from detector.scoring.claims import (
    CALM_SEVERITY,
    COUPLING,
    COUPLING_WEIGHT,
    FAR_OUT,
    FORECAST,
    LEVEL,
    LEVEL_WARM_UP_EVENTS,
    LONE,
    NETWORK,
    NETWORK_PRICE,
    NOVEL,
    NOVEL_WARM_UP_EVENTS,
    PERIODS,
    PRICES,
    RANK_WEIGHT,
    SEVERAL_PRICE,
    SEVERE,
    SEVERITY_GAIN,
    STILL,
    STREAM_SCORE,
    STRETCH,
    SUM_WARM_UP_EVENTS,
    SYMBOL,
    WARM_UP_EVENTS,
    WITNESS,
    claim,
    severity_of,
)
from detector.scoring.return_period import return_period
from detector.scoring.units import COUPLING as COUPLED
from detector.scoring.units import ERROR, FAR, SMOOTHED
from detector.scoring.units import LEVEL as LEVELLED
from tests.detector.scoring.support import assert_same

SETTLED = 1_000


def event(*errors: float, **fields: Any) -> np.ndarray:
    """Return MEASURED of known numbers with these error units; fields hold for all of them or one each."""
    rows = np.zeros(len(errors), MEASURED)
    rows["known"], rows["levelled"] = True, True
    rows["units"][:, ERROR] = errors
    for name, values in fields.items():
        rows[name] = values
    return rows


def stream(events: int = SETTLED) -> np.ndarray:
    """Return STREAM_SCORE of a stream whose every severity was about 1 so far."""
    record = np.zeros(1, STREAM_SCORE)
    record["events"] = events
    rng = np.random.default_rng(1)
    if events > WARM_UP_EVENTS:
        for _ in range(SETTLED):
            calm = event(*rng.exponential(0.3, 2), tail=float(rng.exponential(0.3)), slow_units=0.5)
            calm["units"][:, [LEVELLED, COUPLED]] = rng.exponential(0.3, (2, 2))
            claim(record[0], calm, True, False, np.zeros(len(CHANNELS)), np.zeros(len(CHANNELS), np.int64))
    return record


@pytest.fixture(scope="module")
def settled() -> np.ndarray:
    return stream()


def claimed(
    record: np.ndarray, rows: np.ndarray, *, several: bool = True, gap: bool = False
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return claims, leads and the limit; the record stays as it is."""
    claims, leads = np.zeros(len(CHANNELS)), np.zeros(len(CHANNELS), np.int64)
    limit = claim(record.copy()[0], rows, several, gap, claims, leads)
    return claims, leads, limit


def stretched(claim: float) -> float:
    """Return what a claim of the forecast counts as, where it is far out."""
    return claim + STRETCH * max(claim - FAR_OUT, 0.0)


def asked(record: np.ndarray, period: int, y: float) -> float:
    return float(return_period(record["periods"][0].copy()[period], y))


def test_severities_are_what_each_channel_measures() -> None:
    row = np.zeros(1, MEASURED)
    row["units"] = np.arange(1.0, 7.0)
    row["still"], row["novel"], row["symbol"], row["known"] = 7.0, 8.0, 9.0, True
    largest = max(row["units"][0, [ERROR, SMOOTHED, FAR]])

    found = [severity_of(row[0], channel, math.inf) for channel in range(len(CHANNELS))]

    coupling = row["units"][0, COUPLED]
    wanted = [
        largest**2 + (COUPLING_WEIGHT * coupling) ** 2,
        row["units"][0, LEVELLED] ** 2,
        7.0,
        coupling**2,
        8.0,
        0.0,
    ]
    assert found == pytest.approx(wanted)
    assert severity_of(row[0], FORECAST, 2.0) == pytest.approx(2.0**2 + (COUPLING_WEIGHT * coupling) ** 2)


def test_a_symbol_is_nothing_to_the_channels_of_numbers() -> None:
    """Their fields are not written for it."""
    row = np.zeros(1, MEASURED)
    row["units"], row["still"], row["novel"], row["symbol"] = math.nan, math.nan, math.nan, 9.0

    found = [severity_of(row[0], channel, math.inf) for channel in range(len(CHANNELS))]

    assert found == [9.0 if channel == SYMBOL else 0.0 for channel in range(len(CHANNELS))]


def test_one_features_excess_over_the_second_is_limited_where_more_than_three_are(settled: np.ndarray) -> None:
    assert claimed(settled, event(20.0, 1.0, 2.0))[2] == math.inf
    assert claimed(settled, event(20.0, 1.0, 2.0, 0.5))[2] == 2.0 + LONE
    lone, alone = (claimed(settled, event(x, 1.0, 2.0, 0.5))[0][FORECAST] for x in (20.0, 2.0 + LONE))
    assert lone == pytest.approx(alone)
    assert claimed(settled, event(20.0, 19.0, 2.0, 0.5))[0][FORECAST] > lone


def test_a_claim_is_the_return_period_of_the_severity_less_the_channels_price(settled: np.ndarray) -> None:
    rows = event(3.0, 4.0)
    rows["units"][:, LEVELLED], rows["units"][:, COUPLED] = [0.6, 0.8], [1.5, 2.0]

    claims, leads, _ = claimed(settled, rows)

    forecast = math.sqrt(25.0 + COUPLING_WEIGHT**2 * 6.25)
    for channel, severity in ((FORECAST, forecast), (LEVEL, 1.0), (COUPLING, 2.5)):
        wanted = asked(settled, PERIODS[channel], math.log(severity + CALM_SEVERITY)) - PRICES[channel]
        assert claims[channel] == pytest.approx(stretched(wanted) if channel == FORECAST else wanted)
        assert leads[channel] == 1


def test_severities_beyond_ten_add_two_for_each_decade(settled: np.ndarray) -> None:
    severities = (SEVERE, 10 * SEVERE)
    claims = [claimed(settled, event(x))[0][FORECAST] for x in severities]

    periods = [asked(settled, PERIODS[FORECAST], math.log(x + CALM_SEVERITY)) for x in severities]
    assert claims[0] == pytest.approx(stretched(periods[0] - PRICES[FORECAST]))
    assert claims[1] == pytest.approx(stretched(periods[1] - PRICES[FORECAST] + SEVERITY_GAIN))


def test_far_out_a_larger_error_always_claims_more(settled: np.ndarray) -> None:
    """And below that, as much as its return period says."""
    claims = [claimed(settled, event(x))[0][FORECAST] for x in (1.2, 8.0, 40.0, 400.0, 1e6)]

    near = asked(settled, PERIODS[FORECAST], math.log(1.2 + CALM_SEVERITY)) - PRICES[FORECAST]
    assert claims[0] == pytest.approx(near)
    assert claims[0] < FAR_OUT < claims[1]
    assert (np.diff(claims) > 0.5).all()


def test_a_stream_of_one_feature_hears_the_networks_own_word_too(settled: np.ndarray) -> None:
    quiet, loud = (claimed(settled, event(4.0, tail=tail), several=False)[0][FORECAST] for tail in (0.3, 9.0))
    errors = asked(settled, PERIODS[FORECAST], math.log(4.0 + CALM_SEVERITY)) - PRICES[FORECAST]

    own = asked(settled, NETWORK, 9.0) - NETWORK_PRICE
    assert loud == pytest.approx(stretched(errors + WITNESS * (own - errors)))
    assert quiet < loud
    several = claimed(settled, event(4.0, tail=9.0))[0][FORECAST]
    assert several == pytest.approx(stretched(errors))  # the errors alone


def test_still_and_novel_are_their_worst_feature_less_the_number_of_features(settled: np.ndarray) -> None:
    rows = event(0.0, 0.0, 0.0, 0.0, still=[1.0, 5.0, 2.0, 0.0], novel=[4.0, 0.0, 6.0, 1.0])

    claims, leads, _ = claimed(settled, rows)

    assert claims[STILL] == pytest.approx(5.0 - math.log10(4) - PRICES[STILL])
    assert claims[NOVEL] == pytest.approx(6.0 - math.log10(4) - SEVERAL_PRICE - PRICES[NOVEL])
    assert [leads[STILL], leads[NOVEL]] == [1, 2]
    alone = claimed(settled, event(0.0, still=5.0, novel=6.0), several=False)[0]
    assert [alone[STILL], alone[NOVEL]] == pytest.approx([5.0 - PRICES[STILL], 6.0 - PRICES[NOVEL]])


def test_a_symbol_claims_what_it_measured(settled: np.ndarray) -> None:
    rows = event(1.0, 0.0, known=[True, False], symbol=[0.0, 4.0])

    claims, leads, _ = claimed(settled, rows)

    assert claims[SYMBOL] == pytest.approx(4.0 - PRICES[SYMBOL])
    assert leads[SYMBOL] == 1
    assert leads[FORECAST] == 0


def test_at_a_gaps_end_only_novelty_and_symbols_speak_and_nothing_learns(settled: np.ndarray) -> None:
    rows = event(40.0, 1.0, still=9.0, novel=9.0, tail=9.0, slow_units=9.0)
    rows["units"][:, [LEVELLED, COUPLED]] = 40.0
    record = settled.copy()
    claims = np.zeros(len(CHANNELS))

    claim(record[0], rows, False, True, claims, np.zeros(len(CHANNELS), np.int64))

    assert claims[NOVEL] > 5.0
    for channel in (FORECAST, LEVEL, STILL, COUPLING):
        assert claims[channel] <= 0.0
    assert_same(record, settled)


def test_what_is_not_known_teaches_nothing(settled: np.ndarray) -> None:
    """Neither a lane's first event nor, for the level, a lane whose hours are not known."""
    record = settled.copy()
    claims = np.zeros(len(CHANNELS))
    claim(record[0], event(9.0, known=False), True, False, claims, np.zeros(len(CHANNELS), np.int64))
    assert_same(record["periods"], settled["periods"])
    assert (claims <= 0.0).all()

    rows = event(1.0, levelled=False)
    rows["units"][:, LEVELLED] = 40.0
    claim(record[0], rows, True, False, claims, np.zeros(len(CHANNELS), np.int64))
    assert_same(record["periods"][:, PERIODS[LEVEL]], settled["periods"][:, PERIODS[LEVEL]])
    assert claims[LEVEL] <= 0.0


def test_a_young_stream_claims_nothing_but_what_needs_no_units() -> None:
    rows = event(40.0, 1.0, still=9.0, novel=9.0, symbol=0.0)

    at_first, _, _ = claimed(stream(NOVEL_WARM_UP_EVENTS), rows)
    then, _, _ = claimed(stream(NOVEL_WARM_UP_EVENTS + 1), rows)

    assert (np.delete(at_first, STILL) <= 0.0).all()
    assert then[NOVEL] > 5.0
    assert (then[[FORECAST, LEVEL, COUPLING]] <= 0.0).all()


def test_a_level_claims_nothing_before_its_own_warm_up() -> None:
    record, claims = stream(0), np.zeros(len(CHANNELS))
    record["events"] = SETTLED
    loud = []
    for k in range(LEVEL_WARM_UP_EVENTS + 50):
        rows = event(0.1)
        rows["units"][:, LEVELLED] = 0.1 if k % 7 else 5.0 * (k + 1)
        claim(record[0], rows, True, False, claims, np.zeros(len(CHANNELS), np.int64))
        loud.append(claims[LEVEL] > 0.0)

    assert not any(loud[: LEVEL_WARM_UP_EVENTS - 1])
    assert any(loud)


def test_a_sum_over_features_claims_nothing_before_it_has_a_past() -> None:
    """Units say what is usual of a feature, not how often features are unusual together."""
    leads = np.zeros(len(CHANNELS), np.int64)
    first = {}
    for several in (False, True):
        record, claims = stream(WARM_UP_EVENTS), np.zeros(len(CHANNELS))
        record["events"] = SETTLED
        for k in range(2 * SUM_WARM_UP_EVENTS):
            claim(record[0], event(9.0, 9.0, tail=9.0), several, False, claims, leads)
            if claims[FORECAST] > 0.0:
                first.setdefault(several, k)

    assert first == {False: 0, True: SUM_WARM_UP_EVENTS - 1}


def test_coupling_is_for_streams_of_several_features(settled: np.ndarray) -> None:
    rows = event(0.1, 0.1)
    rows["units"][:, COUPLED] = 30.0

    assert claimed(settled, rows)[0][COUPLING] > 3.0
    assert claimed(settled, rows, several=False)[0][COUPLING] <= 0.0


def test_the_rank_is_a_running_mean_of_all_units_by_the_slow_memory(settled: np.ndarray) -> None:
    record = settled.copy()
    before = float(record["rank"][0])

    rows = event(0.0, 0.0, slow_units=[3.0, 4.0])
    claim(record[0], rows, True, False, np.zeros(len(CHANNELS)), np.zeros(len(CHANNELS), np.int64))

    assert record["rank"][0] == pytest.approx(before + RANK_WEIGHT * (5.0 - before), rel=1e-5)


def test_a_symbol_counts_for_the_rank_by_its_claim() -> None:
    record = stream(events=0)

    claim(record[0], event(0.0, known=False, symbol=4.0), False, False, np.zeros(len(CHANNELS)), np.zeros(9, np.int64))

    assert record["rank"][0] == pytest.approx(RANK_WEIGHT * 4.0, rel=1e-5)
