"""The peers look at no row before its turn, find what anything would find, and are left out with the reason."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.data import Series, SymbolSeries
from tests.bench.peers import BUDGET, PEERS, SLOW, ewma_z

MINUTE = 60_000_000_000


def noise(rows: int, features: int = 1, at: int | None = None) -> Series:
    """Return noise of one event a minute, with thirty deviations in row `at`."""
    values = np.random.default_rng(7).normal(size=(rows, features))
    if at is not None:
        values[at, 0] += 30.0
    return Series("s", MINUTE * np.arange(rows), values)


def peer_or_skip(name: str) -> None:
    why = PEERS[name].lacks([])
    if why is not None:
        pytest.skip(why)


@pytest.mark.parametrize("name", [name for name in PEERS if name not in SLOW])
def test_a_row_is_scored_by_it_and_those_before_it(name: str) -> None:
    peer_or_skip(name)
    whole, part = noise(500, at=450), noise(500, at=450)
    part = Series("s", part.times[:400], part.values[:400])
    long, short = PEERS[name].score(whole), PEERS[name].score(part)
    np.testing.assert_allclose(long.score[:400], short.score)
    assert long.score[450] == long.score[300:].max()
    assert long.rank is long.score


@pytest.mark.parametrize("name", [name for name in PEERS if name not in SLOW])
def test_a_missing_value_is_the_last_one_again(name: str) -> None:
    peer_or_skip(name)
    one = noise(300, features=2)
    holes = one.values.copy()
    holes[0, 1] = np.nan
    holes[200, 0], one.values[200, 0] = np.nan, one.values[199, 0]
    one.values[0, 1] = 0.0
    np.testing.assert_array_equal(PEERS[name].score(Series("s", one.times, holes)).score, PEERS[name].score(one).score)


def test_an_ewma_alerts_beyond_the_budgets_share() -> None:
    scored = ewma_z(noise(20_000, at=15_000))
    assert scored.alert[15_000]
    assert scored.threshold[0] == pytest.approx(np.log10(10_080 / BUDGET))
    clean = ewma_z(noise(20_000))
    assert not clean.alert[:100].any(), "nothing is known yet"


def test_what_a_peer_cannot_take_is_said() -> None:
    codes = SymbolSeries("h", np.arange(2), np.zeros((2, 0)), 0, np.zeros(2, np.bool_), np.arange(2))
    assert PEERS["ewma-z"].lacks([codes]) == "takes no symbols"
    assert PEERS["ewma-z"].lacks([noise(3, features=2)]) is None
    alone = PEERS["wald"]._replace(package=None)
    assert alone.lacks([noise(3, features=2)]) == "takes one feature"
    absent = PEERS["rcf3"]._replace(package="no_such_package_here")
    assert absent.lacks([]) == "no_such_package_here is not installed: pip install -r tests/bench/requirements.txt"


def test_streams_are_scored_each_on_its_own() -> None:
    one, other = noise(200), Series("other", MINUTE * np.arange(200), np.ones((200, 1)))
    scored = PEERS["ewma-z"]([one, other])
    assert list(scored) == ["s", "other"]
    np.testing.assert_array_equal(scored["s"].score, ewma_z(one).score)
