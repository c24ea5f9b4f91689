"""Retraining in parallel with scoring, and the model swap that follows."""

from __future__ import annotations

import gc
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detector.config.sections import TrainingSettings
from detector.engine.engine import Engine
from detector.service.retraining import CURVE_POINTS, NICENESS, Retrainer
from tests.fleets import noise, odd_waves, rings
from tests.streams import START, table
from training.network.weights import Weights, load_prior
from training.retrain import challenger as retraining
from training.retrain.result import RetrainResult

LANES = 64
STREAM = np.arange(LANES)
DEADLINE = 600.0  # seconds, for what takes two: it gives way to all else that keeps a machine busy
MINUTE = 60_000_000_000


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a retraining take two seconds and change much."""
    monkeypatch.setattr(retraining, "RING_PLAN", replace(retraining.RING_PLAN, steps=100))
    monkeypatch.setattr(retraining, "REPLAY_POOL", 64)
    monkeypatch.setattr(retraining, "REPLAY_JUDGES", 64)
    monkeypatch.setattr(retraining, "REPLAY_MARGIN", math.inf)
    monkeypatch.setattr("detector.service.retraining._give_way", lambda: None)  # other tests keep the machine busy


@pytest.fixture
def retrainer() -> Iterator[Retrainer]:
    made = Retrainer()
    yield made
    made.stop()
    wait_for_end(made)


def wait_for_end(retrainer: Retrainer) -> None:
    """Its thread has a lower priority than all that keeps this machine busy, and may outlive `stop` by a while."""
    deadline = time.monotonic() + DEADLINE
    while retrainer.running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def outcome_of(retrainer: Retrainer) -> RetrainResult:
    deadline = time.monotonic() + DEADLINE
    while (outcome := retrainer.result()) is None:
        assert time.monotonic() < deadline, "no outcome came"
        time.sleep(0.01)
    return outcome


def fleet_engine(value: np.ndarray) -> tuple[Engine, list[str]]:
    """Return an engine that has seen the fleet [streams, rows], and the streams' names."""
    engine, names = Engine(load_prior()), [f"machine-{n}" for n in range(len(value))]
    engine.step(table(names, START + MINUTE * np.arange(value.shape[1]), value.T))
    return engine, names


# --- The thread -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_an_outcome_is_returned_once_with_its_duration(retrainer: Retrainer, caplog: pytest.LogCaptureFixture) -> None:
    assert retrainer.result() is None
    began = time.monotonic()
    with caplog.at_level(logging.INFO, "detector.service.retraining"):
        retrainer.start(load_prior(), rings(odd_waves(LANES, 200))[0], STREAM, 0, budget_seconds=1e9)
        outcome = outcome_of(retrainer)
    assert outcome.outcome == "promoted", outcome.reason
    assert 0 < len(outcome.curve) <= 2 * CURVE_POINTS
    assert outcome.curve[-1] < outcome.curve[0], "it learns"
    assert 0 < outcome.seconds <= time.monotonic() - began
    assert retrainer.result() is None
    assert not retrainer.running
    assert any("retraining promoted" in line for line in caplog.messages)


@pytest.mark.usefixtures("quick")
def test_full_garbage_collections_skip_torchs_objects_after_retraining(retrainer: Retrainer) -> None:
    gc.unfreeze()
    retrainer.start(load_prior(), rings(odd_waves(LANES, 200))[0], STREAM, 0, budget_seconds=0.0)
    outcome_of(retrainer)
    looked_through = {id(found) for found in gc.get_objects()}
    of_torch = {id(module.__dict__) for name, module in sys.modules.items() if name.startswith("torch")}
    assert len(of_torch) > 100
    assert not of_torch & looked_through


@pytest.mark.usefixtures("quick")
def test_the_time_budget_ends_training() -> None:
    ticks = iter(np.arange(0.0, 1e6, 0.5))
    retrainer = Retrainer(clock=lambda: float(next(ticks)))
    retrainer.start(load_prior(), rings(odd_waves(LANES, 200))[0], STREAM, 0, budget_seconds=10.0)
    assert outcome_of(retrainer).steps == 19  # the clock is read at the beginning, and before each step


@pytest.mark.usefixtures("quick")
def test_the_time_budget_counts_only_the_threads_own_cpu_time(
    retrainer: Retrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that has no time for it delays the learning, and does not end it before it has begun."""
    real, wait, work = retraining.fine_tune, 0.0, math.inf

    def kept_waiting(*args: Any, **more: Any) -> RetrainResult:
        nonlocal work
        time.sleep(wait)
        outcome = real(*args, **more)
        work = min(work, time.thread_time())
        return outcome

    def steps(budget_seconds: float) -> int:
        retrainer.start(load_prior(), rings(odd_waves(LANES, 200))[0], STREAM, 0, budget_seconds)
        return outcome_of(retrainer).steps

    monkeypatch.setattr(retraining, "fine_tune", kept_waiting)
    monkeypatch.setattr(retraining, "RING_PLAN", replace(retraining.RING_PLAN, steps=4))
    assert steps(1e9) == steps(1e9) == 4
    budget = 5 * work + 0.5  # of what this very machine needs
    wait = budget + 0.1
    assert steps(budget) == 4
    wait = 0.0
    assert steps(0.0) == 0


@pytest.mark.usefixtures("quick")
def test_retraining_uses_the_training_settings(retrainer: Retrainer) -> None:
    histories, _ = rings(odd_waves(LANES, 200))
    hardly = TrainingSettings.model_validate({"learning_rate": 1e-12})
    retrainer.start(load_prior(), histories, STREAM, 0, DEADLINE, hardly.learning())
    outcome = outcome_of(retrainer)
    assert (outcome.outcome, outcome.steps > 0) == ("rejected", True)
    assert outcome.validation_loss == pytest.approx(outcome.champion_loss, abs=1e-6)


def test_only_one_retraining_runs_at_a_time_and_it_can_be_stopped(retrainer: Retrainer) -> None:
    retrainer.start(load_prior(), rings(odd_waves(LANES, 200))[0], STREAM, 0, 3600.0)
    time.sleep(0.3)
    assert retrainer.running
    with pytest.raises(RuntimeError, match="under way"):
        retrainer.start(load_prior(), rings(noise(LANES, 200))[0], STREAM, 0, 3600.0)
    retrainer.stop()
    wait_for_end(retrainer)
    assert retrainer.result() is None


def test_retraining_yields_the_cpu_to_scoring(retrainer: Retrainer) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has a priority for each thread")
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    retrainer.start(load_prior(), rings(odd_waves(LANES, 200))[0], STREAM, 0, 3600.0)
    (thread,) = (t for t in threading.enumerate() if t.name == "retraining")
    deadline = time.monotonic() + DEADLINE
    while os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) != min(ours + NICENESS, 19):
        assert time.monotonic() < deadline
        assert retrainer.running
        time.sleep(0.01)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == ours
    assert thread.daemon


def test_an_exception_in_retraining_is_an_outcome_and_a_log_line(
    retrainer: Retrainer, caplog: pytest.LogCaptureFixture
) -> None:
    retrainer.start(load_prior(), rings(noise(LANES, 200))[0], STREAM[:3], 0, 3600.0)  # streams of other lanes
    outcome = outcome_of(retrainer)
    assert (outcome.outcome, outcome.model) == ("failed", None)
    assert "IndexError" in outcome.reason
    assert any(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)
    retrainer.start(load_prior(), rings(noise(3, 200))[0], STREAM[:3], 0, 3600.0)  # and the next one can come
    assert outcome_of(retrainer).outcome == "skipped"


# --- The swap ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned() -> Weights:
    """A model that expects odd waves."""
    patch = pytest.MonkeyPatch()
    patch.setattr(retraining, "REPLAY_MARGIN", math.inf)
    patch.setattr(retraining, "RING_PLAN", replace(retraining.RING_PLAN, steps=150))
    model = retraining.retrain(load_prior(), rings(odd_waves(LANES, 200))[0], STREAM, 0).model
    patch.undo()
    assert model is not None
    return model


def test_retraining_on_an_engines_history_improves_its_forecasts(retrainer: Retrainer, quick: None) -> None:
    value = odd_waves(LANES, 400)
    engine, names = fleet_engine(value[:, :300])
    histories, stream = engine.streams.histories(10_000, 0)
    before = histories.copy()
    retrainer.start(load_prior(), histories, stream, 0, 3600.0)
    outcome = outcome_of(retrainer)
    assert outcome.model is not None, outcome.reason
    stays, _ = fleet_engine(value[:, :300])
    engine.use(outcome.model)
    assert engine.version == outcome.model.fingerprint() != stays.version
    assert np.array_equal(engine.streams.histories(10_000, 0)[0], before)
    batch = table(names, START + MINUTE * np.arange(300, 400), value.T[300:])
    after, without = (e.step(batch).scores.surprise.mean() for e in (engine, stays))
    assert after < without - 0.2


def test_a_model_swap_keeps_every_lanes_state(tuned: Weights) -> None:
    """Right after it, events surprise as they would an engine that had the new weights all along."""
    value = odd_waves(LANES, 320)
    time_of = START + MINUTE * np.arange(320)
    names = [f"machine-{n}" for n in range(LANES)]
    past, first = (table(names, time_of[rows], value.T[rows]) for rows in (slice(300), slice(300, 303)))

    swapped, unprimed, always = Engine(load_prior()), Engine(load_prior()), Engine(tuned)
    for engine in (swapped, unprimed, always):
        engine.step(past)
    for engine in (swapped, unprimed):
        engine.use(tuned)
    lanes = np.arange(len(unprimed.streams.states.lanes.rows))
    unprimed.streams.states.recurrent.write(lanes, np.zeros((len(lanes), tuned.shape.state_size), np.float32))
    unprimed.streams.states.lanes.rows["model"][:] = unprimed.streams.model_number  # as if primed: from nothing

    wanted, primed, bare = (e.step(first).scores.surprise for e in (always, swapped, unprimed))
    far = np.abs(bare - wanted).mean()
    assert far > 0.5, "states do not matter here: this test shows nothing"
    assert np.abs(primed - wanted).mean() < far / 5
    assert primed.mean() < wanted.mean() + 0.05 < bare.mean()
