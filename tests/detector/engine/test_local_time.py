"""Days and weeks by a local clock: where clocks change, no rhythm moves."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from connectors.batches import EventBatch
from connectors.decode.settings import DecodeSettings
from detector.engine.engine import Engine, EngineSettings
from detector.engine.local_time import local_time
from training.network.weights import Weights

SECOND, HOUR, DAY = 1_000_000_000, 3_600_000_000_000, 86_400_000_000_000
STEP = HOUR // 6
ZONES = "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia"


def ns(year: int, month: int, day: int, hour: int = 0) -> int:
    return int(datetime(year, month, day, hour, tzinfo=UTC).timestamp()) * SECOND


@settings(deadline=None)  # a zone's changes are looked up once
@given(st.sampled_from(ZONES), st.integers(0, 4_000_000_000))
def test_local_time_is_what_the_zones_clock_shows(zone: str, seconds: int) -> None:
    there = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).astimezone(ZoneInfo(zone))
    shown = there.replace(tzinfo=UTC)

    found = local_time(np.array([seconds * SECOND]), zone)

    assert found[0] == int(shown.timestamp()) * SECOND


def test_each_hour_of_a_change_has_its_own_offset() -> None:
    change = ns(2026, 10, 25, 1)  # 3:00 in Berlin becomes 2:00
    time = change + np.array([-1, 0])

    assert (local_time(time, "Europe/Berlin") - time).tolist() == [2 * HOUR, HOUR]
    assert local_time(time, "UTC") is time


def test_an_unknown_zone_is_refused_by_name() -> None:
    for name in ("Europe/Atlantis", "../etc/passwd", ""):
        with pytest.raises(ValidationError, match="no time zone"):
            DecodeSettings(timezone=name)
    assert DecodeSettings(timezone="Europe/Berlin").timezone == "Europe/Berlin"


def office(time: np.ndarray, seed: int) -> np.ndarray:
    """Return what follows Berlin's clock: from eight to six a plateau of 100, at night 20."""
    hours = local_time(time, "Europe/Berlin") % DAY / HOUR
    busy = 1.0 / (1.0 + np.exp(-3.0 * (hours - 8.0))) - 1.0 / (1.0 + np.exp(-3.0 * (hours - 18.0)))
    return 20.0 + 80.0 * busy + np.random.default_rng(seed).standard_normal(len(time))


def day_after(model: Weights, chosen: EngineSettings, change: int) -> tuple[int, float]:
    """Return alerts and mean rank of the day after clocks changed, of streams of 20 days; a restart just before."""
    time = change - 20 * DAY + STEP * np.arange(21 * DAY // STEP)
    cut, alerts, ranks = 20 * DAY // STEP - 3, 0, []
    for seed in range(4):
        value, name = office(time, seed), f"office-{seed}"
        engine = Engine(model, chosen)
        engine.step(EventBatch.of_columns(name, time[:cut], {"load": value[:cut]}))
        state = engine.pack(name)
        assert state
        engine = Engine(model, chosen)
        engine.unpack(name, state)
        scores = engine.step(EventBatch.of_columns(name, time[cut:], {"load": value[cut:]})).scores
        after = time[cut:] >= change
        alerts += int(scores.alert[after].sum())
        ranks.append(scores.rank[after].mean())
    return alerts, float(np.mean(ranks))


@pytest.mark.parametrize(("change", "told"), [(ns(2026, 3, 29, 1), 0), (ns(2026, 10, 25, 1), 8)])
def test_days_follow_the_clock_where_it_changes(model: Weights, change: int, told: int) -> None:
    """By UTC the level excuses an hour's shift, but for the morning that comes an hour late each stream is told."""
    alerts, rank = day_after(model, EngineSettings(timezone="Europe/Berlin"), change)
    by_utc, rank_by_utc = day_after(model, EngineSettings(), change)

    assert alerts <= 1  # a new value of the noise
    assert by_utc >= told
    assert rank_by_utc > rank
