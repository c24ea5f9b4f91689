"""Copies that learn side by side learn what each would learn alone, and what torch's own modules and Adam would."""

from typing import Any

import numpy as np
import pytest
import torch

from training import online
from training.inputs import INPUT_SIZE
from training.model import Forecaster, student_t_nll
from training.online import (
    CHUNK,
    CLIP_NORM,
    DECAY,
    EPSILON,
    RATE,
    SQUARE_DECAY,
    WORST_NLL,
    Chunks,
    Copies,
    Learnt,
    OnlineLearner,
    streams_at_once,
)
from training.tbptt import weighted

SHAPES: list[dict[str, Any]] = [
    {"cell": "rnn"},
    {"cell": "lstm"},
    {"cell": "gru"},
    {"cell": "esn"},
    {"cell": "lstm", "layers": 2},
    {"cell": "gru", "attention_window": 4},
    {"cell": "lstm", "layers": 2, "attention_window": 3, "horizons": (1, 3, 20)},
]


def forecaster(shape: dict[str, Any]) -> Forecaster:
    torch.manual_seed(1)
    model = Forecaster(**{"hidden_size": 7} | shape)
    for parameter in model.parameters():  # heads that read, attention that looks back
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def drawn(model: Forecaster, streams: int, lanes: int, seed: int = 0) -> tuple[np.ndarray, Chunks]:
    """Make states and chunks: some targets unknown, some lanes with fewer rows, and one of each stream with none."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((streams, CHUNK, lanes, INPUT_SIZE)).astype(np.float32)
    targets = rng.standard_normal((streams, CHUNK, lanes, len(model.horizons))).astype(np.float32)
    rows = np.full((streams, lanes), CHUNK)
    rows[:, 1:] = rng.integers(1, CHUNK, (streams, lanes - 1))
    rows[:, 2:3] = 0
    known = (rng.random(targets.shape) < 0.9) & (np.arange(CHUNK)[:, None] < rows[:, None])[..., None]
    states = (0.3 * rng.standard_normal((streams, lanes, model.state_size))).astype(np.float32)
    if model.attention:
        states[..., -1] = rng.integers(0, model.attention.window + 1, (streams, lanes))
    return states, Chunks(inputs, targets, known, rows)


def beginning(learner: OnlineLearner, model: Forecaster, streams: int) -> Copies:
    """Return copies that are not all alike."""
    rng = np.random.default_rng(5)
    row = learner.row_of(model)
    weights = (row + 0.02 * rng.standard_normal((streams, len(row)))).astype(np.float32)
    return Copies(weights, np.zeros_like(weights), np.zeros_like(weights), np.zeros(streams, np.int64))


def learn(model: Forecaster, streams: int = 3, lanes: int = 4, steps: int = 1, **changed: Any) -> Learnt:
    learner = OnlineLearner(model)
    copies, states, learnt = beginning(learner, model, streams), drawn(model, streams, lanes)[0], None
    for step in range(steps):
        learnt = learner.learn(copies, states, drawn(model, streams, lanes, step)[1]._replace(**changed))
        copies, states = learnt.copies, learnt.states
    assert learnt
    return learnt


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_stream_learns_what_torchs_own_modules_and_adam_would_make_of_its_rows(shape: dict[str, Any]) -> None:
    model, streams, lanes, steps = forecaster(shape), 2, 4, 2
    learner = OnlineLearner(model)
    found = learn(model, streams, lanes, steps)

    for s in range(streams):
        alone = Forecaster(**model.shape).double()
        alone.load_state_dict(learner.named(beginning(learner, model, streams).weights[s]))
        adam = torch.optim.Adam(alone.parameters(), lr=RATE, betas=(DECAY, SQUARE_DECAY), eps=EPSILON)
        state = torch.from_numpy(drawn(model, streams, lanes)[0][s]).double()
        for step in range(steps):
            inputs, targets, known, rows = (part[s] for part in drawn(model, streams, lanes, step)[1])
            by_horizon, after = 0.0, state.clone()
            count = torch.from_numpy(known).sum(dim=(0, 1)).clamp(min=1)
            for lane in range(lanes):  # each lane as long as it is, alone
                if not (length := rows[lane]):
                    continue
                here = (slice(None, length), slice(lane, lane + 1))
                forecast, end = alone(torch.from_numpy(inputs[here]).double(), state[lane : lane + 1])
                after[lane] = end[0].detach()
                nll = student_t_nll(forecast, torch.from_numpy(targets[here])).clamp(max=WORST_NLL)
                by_horizon = by_horizon + torch.where(torch.from_numpy(known[here]), nll, 0.0).sum(dim=(0, 1)) / count
            adam.zero_grad()
            weighted(by_horizon).backward()  # type: ignore[no-untyped-call, arg-type]
            torch.nn.utils.clip_grad_norm_(alone.parameters(), CLIP_NORM)
            adam.step()
            state = after
        np.testing.assert_allclose(found.copies.weights[s], learner.row_of(alone), rtol=0, atol=2e-7)
        np.testing.assert_allclose(found.states[s], state.numpy(), rtol=0, atol=1e-5)
    assert found.copies.steps.tolist() == [steps] * streams
    assert not found.left_out.any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lanes", [1, 3])
def test_who_else_is_due_changes_not_one_bit(shape: dict[str, Any], lanes: int) -> None:
    model, streams = forecaster({"hidden_size": 48} | shape), 9
    learner = OnlineLearner(model)
    states, chunks = drawn(model, streams, lanes)
    copies = beginning(learner, model, streams)
    wanted = learner.learn(copies, states, chunks)

    for some in ([0], [8, 4], [7, 5, 3, 1, 0]):
        found = learner.learn(
            Copies(*(of[some] for of in copies)), states[some], Chunks(*(part[some] for part in chunks))
        )
        for name, one, other in zip(Copies._fields, found.copies, wanted.copies, strict=True):
            assert np.array_equal(one, other[some]), name
        assert np.array_equal(found.states, wanted.states[some])


def test_of_an_echo_state_network_only_the_heads_learn() -> None:
    model = forecaster({"cell": "esn"})
    learner = OnlineLearner(model)
    heads = sum(parameter.numel() for name, parameter in model.named_parameters() if name.startswith("from_"))
    learnt = learner.named(learn(model).copies.weights[0])

    assert learner.size == heads
    assert torch.equal(learnt["layers.0.U"], model.state_dict()["layers.0.U"])
    assert set(learnt) == set(model.state_dict())


def test_a_stream_whose_loss_is_not_finite_is_left_out_and_the_others_do_not_notice() -> None:
    model = forecaster({"cell": "lstm"})
    learner = OnlineLearner(model)
    states, chunks = drawn(model, 3, 4)
    copies = beginning(learner, model, 3)
    wanted = learner.learn(copies, states, chunks)
    chunks.inputs[1, 5, 0, 0] = np.nan
    found = learner.learn(copies, states, chunks)

    assert found.left_out.tolist() == [False, True, False]
    assert found.copies.steps.tolist() == [1, 0, 1]
    for name, one, before, other in zip(Copies._fields, found.copies, copies, wanted.copies, strict=True):
        assert np.array_equal(one[1], before[1]), name
        assert np.array_equal(one[[0, 2]], other[[0, 2]]), name
    assert np.isfinite(found.states).all()


def test_a_step_whose_result_is_not_finite_is_left_out() -> None:
    model = forecaster({"cell": "rnn"})
    learner = OnlineLearner(model)
    states, chunks = drawn(model, 2, 1)
    copies = beginning(learner, model, 2)
    copies.first[0, 3] = np.inf
    found = learner.learn(copies, states, chunks)

    assert found.left_out.tolist() == [True, False]
    assert np.isfinite(found.copies.weights).all()


def test_without_a_known_target_there_is_no_step_but_the_state_goes_on() -> None:
    model = forecaster({"cell": "lstm"})
    learner = OnlineLearner(model)
    states, chunks = drawn(model, 2, 4)
    wanted = learner.learn(beginning(learner, model, 2), states, chunks)
    chunks.known[0] = False
    copies = beginning(learner, model, 2)._replace(first=np.full_like(wanted.copies.first, 0.1))
    found = learner.learn(copies, states, chunks)

    assert found.copies.steps.tolist() == [0, 1]
    assert np.array_equal(found.copies.weights[0], copies.weights[0])
    assert np.array_equal(found.copies.first[0], copies.first[0])
    assert not found.left_out.any()
    assert np.array_equal(found.states, wanted.states)


def test_each_streams_gradient_is_clipped_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = forecaster({"cell": "lstm"})
    norms = np.linalg.norm(learn(model).copies.first, axis=1) / (1 - DECAY)
    monkeypatch.setattr(online, "CLIP_NORM", float(np.median(norms)))
    clipped = np.linalg.norm(learn(model).copies.first, axis=1) / (1 - DECAY)

    assert (norms < CLIP_NORM + 1e-5).all()
    np.testing.assert_allclose(clipped, np.minimum(norms, np.median(norms)), rtol=1e-5)


def test_a_wild_row_steers_nothing() -> None:
    model = forecaster({"cell": "lstm"})
    learner = OnlineLearner(model)
    states, chunks = drawn(model, 1, 1)
    without = chunks.known.copy()
    without[0, 9, 0] = False
    chunks.targets[0, 9, 0] = 1e30
    chunks.known[0, 9, 0] = True
    counted = [chunks.known[0, ..., h].sum() for h in range(2)]
    wild = learner.learn(beginning(learner, model, 1), states, chunks)
    never = learner.learn(beginning(learner, model, 1), states, chunks._replace(known=without))

    assert np.isfinite(wild.copies.weights).all()
    # a mean over one row more: the same direction, and Adam's first step is of its sign
    assert counted[0] == without[0, ..., 0].sum() + 1
    agree = np.sign(wild.copies.first) == np.sign(never.copies.first)
    assert agree.mean() > 0.98


def test_a_call_has_streams_for_a_bounded_number_of_lanes() -> None:
    assert streams_at_once(1) * 1 == online.LANES_AT_ONCE
    assert streams_at_once(24) * 24 <= online.LANES_AT_ONCE
    assert streams_at_once(1024) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gpu_learns_the_same(shape: dict[str, Any]) -> None:
    model = forecaster(shape)
    learner, other = OnlineLearner(model), OnlineLearner(model, "cuda")
    states, chunks = drawn(model, 3, 4)
    wanted = learner.learn(beginning(learner, model, 3), states, chunks)
    found = other.learn(beginning(learner, model, 3), states, chunks)

    np.testing.assert_allclose(found.copies.weights, wanted.copies.weights, rtol=0, atol=2e-7)
    np.testing.assert_allclose(found.states, wanted.states, rtol=0, atol=1e-5)
