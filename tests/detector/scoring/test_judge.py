"""What `judge` says of each event: numbers, shares, ranks; and that cutting a batch changes nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.scoring.claims import CHANNELS, FORECAST, LEVEL, NOVEL, STILL
from tests.detector.scoring.support import (
    AT,
    DAY,
    HOUR,
    MINUTE,
    ROWS,
    SECOND,
    Streams,
    assert_same,
    calm,
    clocked,
    judged,
    several,
)

# --- What a verdict says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 6])
def test_no_alert_stands_inside_the_band_it_prints(features: int) -> None:
    rng = np.random.default_rng(5)
    seen = set()
    for seed in range(6):
        value = several(seed, features) if features > 1 else calm(seed)[:, None]
        value = np.round(value, 2)
        for row in rng.choice(np.arange(600, ROWS - 60), 12, replace=False):
            kind, feature = rng.integers(5), rng.integers(features)
            size = value[:, feature].std() * rng.uniform(2, 12)
            if kind == 0:
                value[row, feature] += size
            elif kind == 1:
                value[row : row + 40, feature] -= size
            elif kind == 2:
                value[row : row + 60, feature] = value[row, feature]
            elif kind == 3:
                value[row : row + 40, feature] += np.linspace(0, size, 40)
            else:
                value[row : row + 20, feature] += size * rng.standard_normal(20)
        v = judged(value).verdict
        v = v[v["alert"]]
        seen |= {CHANNELS[c] for c in v["channel"]}
        assert not ((v["lower"] <= v["observed"]) & (v["observed"] <= v["upper"])).any()
        still = v["channel"] == STILL
        assert (v["seconds"][still] > 0).all()
        assert np.isfinite(v["observed"]).all()
        assert np.isfinite(v["expected"][v["channel"] != NOVEL]).all()

    assert "forecast" in seen
    assert len(seen) >= 2  # of several features what recurs is the forecast's


@pytest.mark.parametrize("features", [1, 2, 3, 6, 25])
def test_contributions_add_up_to_one_and_name_the_guilty_feature(features: int) -> None:
    value = several(features, features, 1_200)
    guilty = {700: 0, 900: features - 1, 1_100: features // 2}
    for row, feature in guilty.items():
        value[row : row + 2, feature] += 40 * value[:, feature].std()

    found = judged(value)

    share = found.measured["contribution"].reshape(1_200, features)
    spoken = found.verdict["channel"] >= 0
    np.testing.assert_allclose(share[spoken].sum(axis=1), 1.0)
    assert not share[~spoken].any()
    assert spoken[100:].mean() > 0.3
    for row, feature in guilty.items():
        assert row in found.alerts
        assert share[row].argmax() == feature
        assert found.feature[found.verdict["lead"][row]] == feature


# --- Ranks ------------------------------------------------------------------------------------------------------------


def test_ranks_are_for_every_event_without_ties_and_without_an_end() -> None:
    value = calm()
    ranks = []
    for size in (0.0, 20.0, 200.0, 20_000.0):
        disturbed = value.copy()
        disturbed[AT] += size
        found = judged(disturbed).verdict["rank"]
        assert (found >= 0.0).all()
        assert len(np.unique(found[200:])) == len(found[200:])
        ranks.append(found[AT])

    assert ranks == sorted(set(ranks))


# --- The same, however it is cut --------------------------------------------------------------------------------------


def test_an_events_verdict_and_the_state_do_not_depend_on_how_the_scan_is_cut() -> None:
    """Bit for bit, with streams of one and of several features side by side, gaps, and features that are missing."""
    rows = 700
    rng = np.random.default_rng(7)
    parts = []
    for features in (1, 3, 2):
        time = clocked(rows) + rng.integers(0, 3) * HOUR
        time[400:] += 2 * DAY
        value = several(features, features, rows)
        value[rng.random(value.shape) < 0.05] = np.nan
        value[300:305] += 9 * np.nanstd(value, axis=0)
        value[500:560, 0] = 50.0
        parts.append((time, value))
    whole = Streams(1, 3, 2)
    at_once = whole.step(*parts)

    for seed in range(3):
        cut = Streams(1, 3, 2)
        ends = [np.sort(np.random.default_rng([seed, k]).choice(rows + 1, 9)) for k in range(3)]
        bounds = [np.concatenate(([0], end, [rows])) for end in ends]
        pieces = [
            cut.step(*[(t[b[k] : b[k + 1]], x[b[k] : b[k + 1]]) for (t, x), b in zip(parts, bounds, strict=True)])
            for k in range(10)
        ]
        for k, one in enumerate(at_once):
            verdicts = np.concatenate([piece[k].verdict for piece in pieces])
            one.verdict["lead"], verdicts["lead"] = 0, 0  # rows of their batch
            assert_same(one.verdict, verdicts)
            assert_same(one.measured, np.concatenate([piece[k].measured for piece in pieces]))
            np.testing.assert_array_equal(one.masked, np.concatenate([piece[k].masked for piece in pieces]))
        assert_same(whole.streams, cut.streams)
        assert_same(whole.lanes, cut.lanes)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_nothing_breaks_whatever_the_values(data: st.DataObject) -> None:
    """Finite scores, shares that add up, and a lead where a channel speaks."""
    features, rows = data.draw(st.integers(1, 4)), 150
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kinds = data.draw(st.lists(st.sampled_from([0.0, 1.0, -1.0, 1e30, -1e30, 1e-300, 5.0]), min_size=1, max_size=4))
    value = rng.choice(kinds, (rows, features)) * rng.choice([1.0, 1.0, rng.standard_normal()], (rows, features))
    value[rng.random(value.shape) < data.draw(st.floats(0.0, 0.9))] = np.nan
    step = rng.choice([0, SECOND, MINUTE, DAY, 400 * DAY], rows)

    found = judged(value, time=clocked(1)[0] + np.cumsum(step))

    v = found.verdict
    for name in ("score", "threshold", "rank", "surprise"):
        assert np.isfinite(v[name]).all()
    share = np.bincount(found.event, found.measured["contribution"], rows)
    np.testing.assert_allclose(share[v["channel"] >= 0], 1.0)
    assert ((v["lead"] >= 0) == (v["channel"] >= 0)).all()
    assert (v["channel"][v["alert"]] >= 0).all()


def test_channels_have_their_places() -> None:
    assert CHANNELS[FORECAST] == "forecast"
    assert CHANNELS[LEVEL] == "level"
    assert CHANNELS[NOVEL] == "novel"


def test_at_an_event_a_second_the_tail_remembers_more_events_than_at_slower_ones() -> None:
    """Noise of four hours, and eight hours without: at a second the first is not forgotten."""
    rng = np.random.default_rng(21)
    size = np.where(np.arange(45_000) < 15_000, 1.0 + 8.0 * rng.random(45_000), 1.0)
    value = 100.0 + size * rng.standard_normal(45_000)
    bounds = []
    for step in (SECOND, 10 * SECOND):
        streams = Streams(1)
        streams.step((clocked(len(value), step), value[:, None]))
        bounds.append(float(streams.streams["score"]["periods"]["bound"][0, 0]))

    assert bounds[0] > bounds[1] + 0.05
