"""What the network sees: causal, the same however a batch is cut, and steady under odd series and clocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.network.inputs import (
    FRAME,
    GAP_LIMIT,
    INPUT_SIZE,
    INPUTS,
    LIMIT,
    NORMALISER,
    Observations,
    deviation_of,
    featurise,
    targets,
    to_unit,
)

SECOND = 1_000_000_000
MINUTES_5 = 300 * SECOND
START = 1_577_836_800 * SECOND  # 2020-01-01, a Wednesday
COLUMN = {name: number for number, name in enumerate(INPUTS)}


def clock(rows: int, step: int = MINUTES_5) -> np.ndarray:
    return START + np.arange(rows, dtype=np.int64) * step


def noise(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(50.0, 4.0, rows)


def seen(
    value: np.ndarray,
    time: np.ndarray | None = None,
    lane: np.ndarray | None = None,
    cuts: tuple[int, ...] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Featurise in pieces that end at `cuts`; return inputs [rows, INPUT_SIZE], frames [rows] and the lanes."""
    value = np.asarray(value, np.float64)
    rows = len(value)
    time = clock(rows) if time is None else time
    lane = np.zeros(rows, np.int64) if lane is None else lane
    lanes = np.zeros(int(lane.max()) + 1, NORMALISER)
    inputs, frames = np.full((rows, INPUT_SIZE), np.nan, np.float32), np.zeros(rows, FRAME)
    for first, last in zip((0, *cuts), (*cuts, rows), strict=True):
        featurise(lanes, Observations(lane, time, value, time), first, last, inputs, frames)
    return inputs, frames, lanes


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=6), seed=st.integers(0, 1000))
def test_inputs_do_not_depend_on_batch_cuts(cuts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    value, lane = rng.standard_t(2, 400) * 10, rng.integers(0, 3, 400)
    time = START + np.cumsum(rng.integers(0, 600, 400)) * SECOND
    whole, parts = seen(value, time, lane), seen(value, time, lane, tuple(sorted(cuts)))
    for a, b in zip(whole, parts, strict=True):
        assert a.tobytes() == b.tobytes()


def test_lanes_are_independent() -> None:
    lane = np.tile([0, 1], 200)
    value, time = np.where(lane == 0, noise(400), 1e9 * noise(400, 1)), clock(400)
    mixed, frames, _ = seen(value, time, lane)
    alone, frames_alone, _ = seen(value[lane == 0], time[lane == 0])
    assert mixed[lane == 0].tobytes() == alone.tobytes()
    assert frames[lane == 0].tobytes() == frames_alone.tobytes()


def test_a_rows_inputs_and_frame_do_not_depend_on_its_own_value_or_later_ones() -> None:
    value = noise(300)
    other = value.copy()
    other[200:] = -1e6
    (a, frames_a, _), (b, frames_b, _) = seen(value), seen(other)
    assert a[:201].tobytes() == b[:201].tobytes()
    assert frames_a[:201].tobytes() == frames_b[:201].tobytes()
    assert a[201, 0] != b[201, 0]


def test_the_first_event_cannot_be_forecast() -> None:
    inputs, frames, _ = seen(noise(5))
    assert not inputs[0].any()
    assert np.isnan(frames["mean"][0])
    assert np.isfinite(frames["mean"][1:]).all()
    target = np.empty(5, np.float32)
    targets(noise(5), frames, 1, target)
    assert np.isnan(target[0])


def test_row_t_forecasts_event_t_plus_horizon_minus_1_in_its_own_unit() -> None:
    value = noise(50)
    _, frames, _ = seen(value)
    for horizon in (1, 10):
        target = np.empty(50, np.float32)
        targets(value, frames, horizon, target)
        for t in range(1, 50 - horizon + 1):
            ahead = value[t + horizon - 1]
            expected = np.arcsinh((ahead - frames["mean"][t]) / frames["deviation"][t])
            assert target[t] == pytest.approx(np.clip(expected, -LIMIT, LIMIT), abs=1e-5)
        assert np.isnan(target[50 - horizon + 1 :]).all()


def test_the_next_rows_value_equals_this_rows_target_up_to_the_normalisers_update() -> None:
    value = noise(1000)
    inputs, frames, _ = seen(value)
    target = np.empty(1000, np.float32)
    targets(value, frames, 1, target)
    assert np.abs(inputs[501:, 0] - target[500:-1]).max() < 0.05


def test_normalising_and_inverting_round_trips() -> None:
    for x in (-7.0, 0.0, 3.5, 800.0):
        unit = to_unit(x, 2.0, 4.0)
        assert 2.0 + 4.0 * np.sinh(unit) == pytest.approx(x)
    assert to_unit(1e300, 0.0, 1.0) == LIMIT
    assert to_unit(-1e300, 0.0, 1.0) == -LIMIT


def test_mean_and_deviation_converge_to_the_series() -> None:
    _, frames, _ = seen(noise(6000))
    assert frames["mean"][-1] == pytest.approx(50, abs=0.5)
    assert frames["deviation"][-1] == pytest.approx(4, rel=0.1)


def test_scale_and_offset_of_a_series_do_not_matter() -> None:
    value = noise(500)
    plain, moved = seen(value)[0], seen(3e7 + 1e5 * value)[0]
    np.testing.assert_allclose(plain[5:], moved[5:], atol=2e-3)


def test_outliers_do_not_spoil_the_normaliser() -> None:
    value = noise(1000)
    struck = value.copy()
    struck[[300, 500, 501, 700]] = [1e9, -1e12, 1e12, 1e300]
    (clean, frames, _), (inputs, frames_struck, _) = seen(value), seen(struck)
    assert np.isfinite(inputs).all()
    assert frames_struck["deviation"][-1] == pytest.approx(frames["deviation"][-1], rel=0.2)
    assert np.abs(inputs[800:, 0] - clean[800:, 0]).max() < 0.3


def distance(value: np.ndarray, frames: np.ndarray) -> np.ndarray:
    return np.abs(value - frames["mean"]) / frames["deviation"]


def test_the_normaliser_follows_a_lasting_level_shift_and_hardly_a_brief_one() -> None:
    lasting = np.concatenate([noise(2000), 1000 + noise(6000)])
    _, frames, _ = seen(lasting)
    assert (distance(lasting, frames)[2000 + 200 :] < 5).all()
    assert frames["mean"][-1] == pytest.approx(1050, rel=0.1)
    passing = noise(4000)
    passing[2000:2040] += 1000
    _, frames, _ = seen(passing)
    assert frames["mean"][2100] == pytest.approx(50, abs=5)
    assert frames["deviation"][2100] < 8


@pytest.mark.parametrize(("level", "constant"), [(0.0, 300), (0.0, 5000), (100.0, 5000), (-1e9, 1000)])
def test_a_constant_series_that_starts_to_vary_is_rescaled_within_hours(level: float, constant: int) -> None:
    """A fixed clip of outliers would leave it off the scale for 3,500 events: 12 days of 5-minute data."""
    size = max(abs(level), 1.0)
    value = np.concatenate([np.full(constant, level), level + size * (1 + 0.05 * noise(500))])
    _, frames, _ = seen(value)
    far = distance(value, frames)[constant:]
    assert far[0] > 1e3
    assert (far[75:] < 200).all()
    assert (far[150:] < 6).all()


def test_an_outlier_does_not_dominate_its_time_of_day_profile() -> None:
    value, time = noise(288 * 8), clock(288 * 8)
    struck = value.copy()
    struck[288] = 1e12
    (clean, _, _), (inputs, _, _) = seen(value, time), seen(struck, time)
    later = np.abs(inputs[:, COLUMN["day_profile"]] - clean[:, COLUMN["day_profile"]])[288 * 5 :]
    assert later.max() < 2


@pytest.mark.parametrize("level", [0.0, 1.0, -3e12, 5e-9])
def test_a_constant_series_is_normalised_to_zeros_and_its_first_change_is_large(level: float) -> None:
    value = np.full(500, level)
    value[400] = level + max(abs(level), 1.0)
    inputs, frames, _ = seen(value)
    assert np.isfinite(inputs).all()
    assert not inputs[:401, :4].any()
    target = np.empty(500, np.float32)
    targets(value, frames, 1, target)
    assert target[399] == 0
    assert target[400] == LIMIT
    assert inputs[401, COLUMN["value"]] > 2
    assert (frames["deviation"][1:] > 0).all()


def test_a_constant_series_has_a_positive_deviation() -> None:
    assert deviation_of(0.0, 0.0) > 0
    assert deviation_of(1e9, 0.0) == pytest.approx(1e3)


@pytest.mark.parametrize("value", [1e-300, 1.7e308, -1.7e308])
def test_extreme_numbers_give_finite_inputs(value: float) -> None:
    with np.errstate(all="ignore"):
        inputs, _, _ = seen(np.array([0.0, value, 0.0, -value, 1.0] * 10))
    assert np.isfinite(inputs).all()
    assert np.abs(inputs).max() <= LIMIT


def test_day_and_week_profiles_hold_what_was_seen_at_this_time() -> None:
    rows = 288 * 15
    time = clock(rows)
    day = np.sin(2 * np.pi * np.arange(rows) / 288)
    inputs, frames, _ = seen(100 + 10 * day, time)
    known = inputs[:, COLUMN["day_known"]]
    np.testing.assert_array_equal(known[:7], [0, 1, 1, 0, 1, 1, 0])  # on the first day each quarter of an hour is new
    assert known[288:].all()
    assert inputs[: 7 * 288, COLUMN["week_known"]].mean() < 0.95
    assert inputs[7 * 288 :, COLUMN["week_known"]].all()
    target = np.empty(rows, np.float32)
    targets(100 + 10 * day, frames, 1, target)
    for column in ("day_profile", "week_profile"):
        assert np.abs(inputs[10 * 288 :, COLUMN[column]] - target[10 * 288 :]).max() < 0.3, column


def test_an_unknown_profile_is_zero() -> None:
    inputs, _, _ = seen(noise(288 * 2))
    for profile, known in (("day_profile", "day_known"), ("week_profile", "week_known")):
        assert not inputs[inputs[:, COLUMN[known]] == 0][:, COLUMN[profile]].any()


def test_time_of_day_is_the_next_events() -> None:
    inputs, _, _ = seen(noise(100), clock(100, 3600 * SECOND))
    hours = 2 * np.pi * np.arange(100) / 24
    np.testing.assert_allclose(inputs[1:, COLUMN["sin_day"]], np.sin(hours)[1:], atol=1e-5)
    np.testing.assert_allclose(inputs[1:, COLUMN["cos_day"]], np.cos(hours)[1:], atol=1e-5)


def test_a_regular_series_has_no_gap_and_a_missing_row_is_a_small_gap() -> None:
    time = clock(200)
    time[150:] += MINUTES_5
    inputs, _, _ = seen(noise(200), time)
    gap = inputs[:, COLUMN["gap"]]
    assert np.abs(gap[:150]).max() < 1e-6
    assert gap[150] == pytest.approx(np.log(2), abs=1e-3)
    assert np.abs(gap[151:]).max() < 0.05


def test_a_gap_of_a_week_shows_once_and_changes_no_other_input() -> None:
    value, time = noise(600), clock(600)
    late = time.copy()
    late[300:] += 7 * 86_400 * SECOND
    (inputs, _, _), (gone, _, lanes) = seen(value, time), seen(value, late)
    assert np.isfinite(gone).all()
    assert gone[300, COLUMN["gap"]] == np.float32(GAP_LIMIT)
    assert np.abs(gone[301:, COLUMN["gap"]]).max() < 0.05
    assert lanes["interval"][0] == pytest.approx(300, rel=0.05)
    unaffected = [COLUMN[name] for name in ("value", "change", "average_fast", "average_slow", "day_known", "sin_day")]
    np.testing.assert_array_equal(gone[:, unaffected], inputs[:, unaffected])


def test_irregular_timestamps_fall_into_their_time_slots() -> None:
    rng = np.random.default_rng(4)
    time = clock(288 * 3)
    value = 100 + 10 * np.sin(2 * np.pi * np.arange(len(time)) / 288)
    jittered = time + rng.integers(0, 60 * SECOND, len(time))
    (even, _, _), (odd, _, _) = seen(value, time), seen(value, jittered)
    assert np.abs(even[288:, COLUMN["day_profile"]] - odd[288:, COLUMN["day_profile"]]).max() < 0.2
    assert np.abs(odd[50:, COLUMN["gap"]]).max() < 0.5


@pytest.mark.parametrize(
    "time",
    [
        np.zeros(50, np.int64),  # all at once
        -clock(50)[::-1].copy(),  # before 1970
        clock(50)[::-1].copy(),  # backwards
        np.array([0, 2**62, -(2**62), 2**62, 1], np.int64),
    ],
    ids=["equal", "before 1970", "backwards", "far apart"],
)
def test_odd_clocks_give_finite_inputs(time: np.ndarray) -> None:
    inputs, _, lanes = seen(noise(len(time)), time)
    assert np.isfinite(inputs).all()
    assert lanes["interval"][0] > 0
