"""The network of categorical lanes: a distribution, learnt, and the same from the kernel as from torch."""

import json
from importlib import resources

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench import make_symbols_prior
from training.symbols.counts import EXPERTS, HIDDEN, LANE_SYMBOLS, RECENT, SIZE, SLOTS, STATISTICS, count, slot_of
from training.symbols.kernels import PREDICTION, distribution, predict, warm_up
from training.symbols.network import (
    SymbolNetwork,
    count_sequences,
    draw_sequences,
    surprise,
    train_symbols,
)
from training.symbols.synthetic import KINDS, make_symbols
from training.symbols.weights import FILE, kernel_weights, shipped_arrays


@pytest.fixture(scope="module")
def network():
    network = SymbolNetwork()
    network.load_state_dict({name: torch.tensor(value) for name, value in shipped_arrays().items()})
    return network.eval()


@pytest.fixture(scope="module")
def weights(network):
    return kernel_weights(shipped_arrays())


def learnt(symbols):
    """Return a lane that has counted symbols."""
    lanes = np.zeros(1, LANE_SYMBOLS)
    for symbol in symbols:
        count(lanes[0], symbol, slot_of(lanes[0], symbol))
    return lanes


def distribution_of(weights, lane):
    x, statistics = np.zeros((EXPERTS, SIZE), np.float32), np.zeros(STATISTICS, np.float32)
    mix, p = np.zeros(EXPERTS + 1, np.float32), np.full(SIZE, np.nan, np.float32)
    distribution(weights, lane, x, statistics, mix, p)
    return p[: int(lane["used"]) + 1], x[:, : int(lane["used"]) + 1]


def seen_by(weights, symbols):
    """Return PREDICTION of one lane's events."""
    symbols = np.asarray(symbols, np.int64)
    out = np.zeros(len(symbols), PREDICTION)
    predict(np.zeros(1, LANE_SYMBOLS), weights, np.zeros(len(symbols), np.int64), symbols, 0, len(symbols), out)
    return out


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), length=st.integers(0, 400), size=st.integers(1, 200))
def test_symbol_probabilities_sum_to_one_for_any_history(weights, seed, length, size):
    lanes = learnt(np.random.default_rng(seed).zipf(1.3, length) % size + 1)
    p, x = distribution_of(weights, lanes[0])
    assert p.sum() == pytest.approx(1.0, abs=1e-5)
    assert (p > 0).all()
    assert np.exp(x[: EXPERTS - 1]).sum(axis=1) == pytest.approx(np.ones(EXPERTS - 1), abs=1e-4)


def test_the_symbol_kernel_equals_torch(network, weights):
    rng = np.random.default_rng(3)
    symbols = [make_symbols(rng, 500, kind) for kind in KINDS]
    part = count_sequences(symbols, 0)
    with torch.inference_mode():
        wanted = surprise(network(part, torch.zeros(len(symbols), 2 * HIDDEN))[0], part.found).numpy()
    for lane, sequence in enumerate(symbols):
        np.testing.assert_allclose(seen_by(weights, sequence)["surprise"], wanted[:, lane], atol=1e-4)


def test_the_state_is_carried_across_chunks(network):
    part = count_sequences([make_symbols(np.random.default_rng(4), 60)], 0)
    with torch.inference_mode():
        whole, last = network(part, torch.zeros(1, 2 * HIDDEN))
        state, pieces = torch.zeros(1, 2 * HIDDEN), []
        for first in range(0, 60, 20):
            log_p, state = network(type(part)(*(tensor[first : first + 20] for tensor in part)), state)
            pieces.append(log_p)
    torch.testing.assert_close(torch.cat(pieces), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("length", [20, 3000])
def test_symbol_names_do_not_matter(weights, length):
    symbols = make_symbols(np.random.default_rng(5), length)
    renamed = np.random.default_rng(6).integers(-(2**62), 2**62, symbols.max() + 1)[symbols]
    np.testing.assert_array_equal(seen_by(weights, symbols)["surprise"], seen_by(weights, renamed)["surprise"])


def test_the_order_of_first_appearance_matters_little(weights):
    """Places are handed out in that order: after it, one source should be as surprising by any vocabulary."""
    rng = np.random.default_rng(7)
    steady = rng.choice(12, 3000, p=np.arange(1, 13) / 78) + 1
    nll = [
        seen_by(weights, np.concatenate([rng.permutation(12) + 1, steady]))["surprise"][500:].mean() for _ in range(6)
    ]
    assert max(nll) - min(nll) < 0.02


def test_a_full_vocabulary_evicts_the_least_recently_seen_symbol(weights):
    lanes = learnt([*range(1, SLOTS + 1), 1, 2, 3])
    assert slot_of(lanes[0], 4) == 4
    assert count(lanes[0], 1000, 0) == 4
    assert (slot_of(lanes[0], 4), slot_of(lanes[0], 1000), int(lanes[0]["used"])) == (0, 4, SLOTS)
    assert lanes[0]["pairs"][5].sum() == lanes[0]["pair_mass"][5]
    p, _ = distribution_of(weights, lanes[0])
    assert p.sum() == pytest.approx(1.0, abs=1e-5)


def test_counts_stay_exact_over_a_long_changing_history():
    rng = np.random.default_rng(8)
    lanes = learnt(np.concatenate([make_symbols(rng, 20_000), rng.integers(1, 300, 3000), np.ones(20_000, np.int64)]))
    lane = lanes[0]
    np.testing.assert_array_equal(lane["pairs"].sum(axis=1), lane["pair_mass"])
    np.testing.assert_array_equal(lane["follower_count"].sum(axis=1), lane["context_mass"])
    assert lane["slow"].sum() == pytest.approx(lane["slow_mass"], rel=1e-3)
    assert lane["quick"].sum() == pytest.approx(lane["quick_mass"], rel=1e-3)
    assert len(set(lane["symbol"][1 : lane["used"] + 1].tolist())) == lane["used"]


def test_a_new_symbol_is_more_surprising_the_longer_a_stream_has_been_settled(weights):
    surprises = []
    for length in (30, 300, 3000, 30_000):
        symbols = np.random.default_rng(9).integers(1, 9, length)
        surprises.append(seen_by(weights, [*symbols, 99])["surprise"][-1])
    assert surprises == sorted(surprises)
    assert surprises[-1] > 9.0


def test_where_every_symbol_is_new_a_new_one_is_expected(weights):
    assert seen_by(weights, np.arange(1, 2000))["surprise"][100:].mean() < 0.7


def test_a_loop_that_pair_counts_cannot_predict_is_learnt(weights):
    loop = np.array([1, 2, 3, 1, 2, 4, 1, 5, 6, 2, 3, 7, 8, 9, 1, 2, 3, 4, 4, 5, 2, 1, 6])
    assert seen_by(weights, np.tile(loop, 40))["surprise"][-len(loop) :].mean() < 0.25


@pytest.mark.parametrize("kind", ["loop", "workflows", "chain"])
def test_a_primed_lane_predicts_like_one_that_was_never_evicted(weights, kind):
    symbols = make_symbols(np.random.default_rng(10), 600, kind)
    row, found = np.zeros(len(symbols), np.int64), []
    for warmed in (False, True):
        lanes, out = np.zeros(1, LANE_SYMBOLS), np.zeros(len(symbols), PREDICTION)
        predict(lanes, weights, row, symbols, 0, 500, out)
        if warmed:
            lanes["hidden"] = lanes["cell"] = 0.5
            warm_up(weights, lanes[0])
        predict(lanes, weights, row, symbols, 500, 550, out)
        found.append(out["surprise"][500:550].mean())
    assert abs(found[1] - found[0]) < 0.05


def test_other_weights_warm_up_a_lane_before_its_next_event(weights):
    symbols = make_symbols(np.random.default_rng(11), 2 * RECENT, "loop")
    row = np.zeros(len(symbols), np.int64)
    torch.manual_seed(0)
    other = kernel_weights({name: value.numpy() for name, value in SymbolNetwork().state_dict().items()})
    lanes, out = np.zeros(1, LANE_SYMBOLS), np.zeros(len(symbols), PREDICTION)
    predict(lanes, other, row, symbols, 0, len(symbols) - 1, out)
    assert lanes["network"] == other.network != weights.network
    warmed = lanes.copy()
    warm_up(weights, warmed[0])
    for start in (lanes, warmed):
        predict(start, weights, row, symbols, len(symbols) - 1, len(symbols), out)
    assert lanes["network"] == weights.network
    np.testing.assert_array_equal(lanes["hidden"], warmed["hidden"])


def test_the_shipped_symbols_prior_beats_counting_on_held_out_sequences(network):
    shipped = json.loads((resources.files("training") / FILE.replace("safetensors", "json")).read_text())["figures"]
    for kind in KINDS:
        alone = min(value for name, value in shipped.items() if name.endswith(f"alone, {kind}"))
        assert shipped[f"nll, {kind}"] < alone - 0.05
    rng = np.random.default_rng(12)
    part = draw_sequences(rng, 16)
    with torch.inference_mode():
        nll = surprise(network(part, torch.zeros(16, 2 * HIDDEN))[0], part.found).mean()
    for expert in range(EXPERTS - 1):
        assert nll < surprise(part.x[:, :, expert], part.found).mean()


def test_the_shipped_prior_is_small():
    assert len((resources.files("training") / FILE).read_bytes()) < 100_000


def test_training_is_reproducible_and_learns(monkeypatch):
    monkeypatch.setattr("training.symbols.network.MAX_PAST", 100)
    monkeypatch.setattr("training.symbols.network.LANES", 8)
    monkeypatch.setattr(make_symbols_prior, "LANES", 8)
    monkeypatch.setattr(make_symbols_prior, "HELD_BACK_BATCHES", make_symbols_prior.HELD_BACK_BATCHES // 4)
    torch.manual_seed(1)
    untrained = make_symbols_prior.metrics(SymbolNetwork())
    first, second = train_symbols(1, 6), train_symbols(1, 6)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert make_symbols_prior.metrics(first)["nll"] < untrained["nll"]


@pytest.mark.parametrize("kind", KINDS)
def test_synthetic_sequences_are_symbols_numbered_from_one(kind):
    rng = np.random.default_rng(13)
    made = [make_symbols(rng, 300, kind) for _ in range(40)]
    assert all(sequence.shape == (300,) and sequence.min() >= 1 for sequence in made)
    again = np.random.default_rng(13)
    assert all(np.array_equal(make_symbols(again, 300, kind), sequence) for sequence in made)
