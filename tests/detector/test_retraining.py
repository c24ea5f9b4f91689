"""Retraining beside the loop, the swap that follows it, and `longwatch train`."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from connectors.decode import Decoder
from connectors.files import FileError, FileSettings, FileSource
from detector import train_command
from detector.assembly import first_model
from detector.engine import Engine
from detector.retraining import NICENESS, STOP_SECONDS, Retrainer
from detector.settings import Settings
from detector.train_command import TrainError, train_files
from tests.fleets import noise, odd_waves, rings
from tests.streams import START, table
from training import retrain as retraining
from training.history import SCALE, WINDOW
from training.model import Forecaster, fingerprint
from training.prior import load_prior
from training.registry import Registry
from training.retrain import Outcome

LANES = 64
STREAM = np.arange(LANES)
DEADLINE = 60.0  # seconds, for what takes two
MINUTE = 60_000_000_000


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a retraining take two seconds and change much."""
    monkeypatch.setattr(retraining, "RINGS", replace(retraining.RINGS, steps=100))
    monkeypatch.setattr(retraining, "REPLAY_POOL", 64)
    monkeypatch.setattr(retraining, "REPLAY_JUDGES", 64)
    monkeypatch.setattr(retraining, "REPLAY_MARGIN", math.inf)


@pytest.fixture
def retrainer() -> Iterator[Retrainer]:
    made = Retrainer()
    yield made
    made.stop()
    assert not made.running


def outcome_of(retrainer: Retrainer) -> Outcome:
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
def test_an_outcome_comes_once_and_by_the_clock_that_was_handed_in(caplog: pytest.LogCaptureFixture) -> None:
    ticks = iter(np.arange(0.0, 1e6, 0.5))
    retrainer = Retrainer(clock=lambda: float(next(ticks)))
    assert retrainer.result() is None
    with caplog.at_level(logging.INFO, "detector.retraining"):
        retrainer.start(load_prior(), rings(odd_waves(LANES, 200))[0], STREAM, 0, budget_seconds=1e9)
        outcome = outcome_of(retrainer)
    assert outcome.outcome == "promoted", outcome.reason
    assert outcome.seconds == 0.5 * (outcome.steps + 1)  # the clock is read before each step, and around all
    assert retrainer.result() is None
    assert not retrainer.running
    assert any("retraining promoted" in line for line in caplog.messages)


@pytest.mark.usefixtures("quick")
def test_the_budget_ends_the_learning() -> None:
    ticks = iter(np.arange(0.0, 1e6, 0.5))
    retrainer = Retrainer(clock=lambda: float(next(ticks)))
    retrainer.start(load_prior(), rings(odd_waves(LANES, 200))[0], STREAM, 0, budget_seconds=10.0)
    assert outcome_of(retrainer).steps == 19


def test_only_one_retraining_runs_at_a_time_and_it_ends_within_two_seconds_when_told(retrainer: Retrainer) -> None:
    retrainer.start(load_prior(), rings(odd_waves(LANES, 200))[0], STREAM, 0, 3600.0)
    time.sleep(0.3)
    assert retrainer.running
    with pytest.raises(RuntimeError, match="under way"):
        retrainer.start(load_prior(), rings(noise(LANES, 200))[0], STREAM, 0, 3600.0)
    began = time.monotonic()
    retrainer.stop()
    assert time.monotonic() - began < STOP_SECONDS + 0.5
    while retrainer.running:
        assert time.monotonic() - began < DEADLINE
        time.sleep(0.01)
    assert retrainer.result() is None


def test_it_gives_way_to_scoring(retrainer: Retrainer) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has a priority for each thread")
    retrainer.start(load_prior(), rings(odd_waves(LANES, 200))[0], STREAM, 0, 3600.0)
    (thread,) = (t for t in threading.enumerate() if t.name == "retraining")
    deadline = time.monotonic() + DEADLINE
    while os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) != min(NICENESS, 19):
        assert time.monotonic() < deadline
        assert retrainer.running
        time.sleep(0.01)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < NICENESS
    assert thread.daemon


def test_an_exception_inside_is_an_outcome_and_a_log_line(
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
def tuned() -> Forecaster:
    """A model that expects odd waves."""
    patch = pytest.MonkeyPatch()
    patch.setattr(retraining, "REPLAY_MARGIN", math.inf)
    patch.setattr(retraining, "RINGS", replace(retraining.RINGS, steps=150))
    model = retraining.retrain(load_prior(), rings(odd_waves(LANES, 200))[0], STREAM, 0).model
    patch.undo()
    assert model is not None
    return model


def test_what_an_engine_has_seen_makes_its_next_forecasts_better(retrainer: Retrainer, quick: None) -> None:
    value = odd_waves(LANES, 400)
    engine, names = fleet_engine(value[:, :300])
    histories, stream = engine.histories(10_000, 0)
    before = histories.copy()
    retrainer.start(load_prior(), histories, stream, 0, 3600.0)
    outcome = outcome_of(retrainer)
    assert outcome.model is not None, outcome.reason
    stays, _ = fleet_engine(value[:, :300])
    engine.use(outcome.model)
    assert engine.version == fingerprint(outcome.model) != stays.version
    assert np.array_equal(engine.histories(10_000, 0)[0], before)
    batch = table(names, START + MINUTE * np.arange(300, 400), value.T[300:])
    after, without = (e.step(batch).scores.surprise.mean() for e in (engine, stays))
    assert after < without - 0.2


def test_at_a_swap_no_lane_loses_its_state(tuned: Forecaster) -> None:
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
    lanes = np.arange(len(unprimed.states.lanes.rows))
    unprimed.states.recurrent.write(lanes, np.zeros((len(lanes), tuned.state_size), np.float32))
    unprimed.states.lanes.rows["model"][:] = unprimed._model_number  # as if primed: from nothing

    wanted, primed, bare = (e.step(first).scores.surprise for e in (always, swapped, unprimed))
    far = np.abs(bare - wanted).mean()
    assert far > 0.5, "states do not matter here: this test shows nothing"
    assert np.abs(primed - wanted).mean() < far / 5
    assert primed.mean() < wanted.mean() + 0.05 < bare.mean()


# --- longwatch train --------------------------------------------------------------------------------------------------

ROWS = 3000


def write_csv(path: Path, value: np.ndarray, times: np.ndarray | None = None) -> str:
    """Write a stream of one feature, value [rows]."""
    times = np.arange(len(value)) * 60 + 1_700_000_000 if times is None else times
    rows = "".join(f"{t},{x!r}\n" for t, x in zip(times.tolist(), value.tolist(), strict=True))
    path.write_text("timestamp,value\n" + rows, encoding="utf-8")
    return str(path)


def settings(**sections: dict[str, object]) -> Settings:
    return Settings.model_validate(sections)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_command, "SERIES", replace(train_command.SERIES, steps=60))
    monkeypatch.setattr(retraining, "REPLAY_POOL", 32)
    monkeypatch.setattr(retraining, "REPLAY_JUDGES", 32)
    monkeypatch.setattr(retraining, "REPLAY_MARGIN", math.inf)


@pytest.mark.usefixtures("short")
def test_train_makes_a_model_that_the_next_start_begins_with(tmp_path: Path) -> None:
    paths = [write_csv(tmp_path / f"wave-{n}.csv", v) for n, v in enumerate(odd_waves(3, ROWS))]
    summary = train_files(paths, tmp_path / "models", settings(), progress=False, now=lambda: 5.0)
    assert summary.version is not None, str(summary)
    assert (summary.events, summary.dropped, summary.lanes, summary.lanes_used) == (3 * ROWS, 0, 3, 3)
    assert summary.outcome.validation_loss < summary.outcome.champion_loss - 0.1
    for text in (summary.version, f"{summary.outcome.champion_loss:.4f} before", "model.directory"):
        assert text in str(summary)

    registry = Registry(tmp_path / "models")
    about = registry.about(summary.version)
    assert (about.parent, about.trained_at) == (fingerprint(load_prior()), 5.0)
    begun = settings(model={"directory": str(tmp_path / "models")})
    assert fingerprint(first_model(begun)) == summary.version
    again = train_files(paths, tmp_path / "models", begun, progress=False)
    assert again.parent == summary.version


@pytest.mark.usefixtures("short")
def test_train_saves_nothing_that_did_not_prove_itself(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "noise.csv", noise(1, ROWS)[0])
    summary = train_files([path], tmp_path / "models", settings(), progress=False)
    assert (summary.outcome.outcome, summary.version) == ("rejected", None)
    assert "nothing was saved" in str(summary)
    assert not (tmp_path / "models").exists()


def test_train_learns_from_the_very_inputs_that_the_engine_scores(tmp_path: Path) -> None:
    """Two features, one of them missing now and then; late events and duplicates among them."""
    rng = np.random.default_rng(0)
    value = odd_waves(2, 600)
    times = np.arange(600) * 60 + 1_700_000_000
    times[rng.choice(600, 20, replace=False)] -= 120
    times[101] = times[100]
    lines = [
        f"{t},web,{a!r},{'' if k % 7 == 3 else repr(b)}\n"
        for k, (t, a, b) in enumerate(zip(times.tolist(), *value.tolist(), strict=True))
    ]
    path = tmp_path / "web.csv"
    path.write_text("timestamp,stream,cpu,memory\n" + "".join(lines), encoding="utf-8")

    read = train_command._read([str(path)], settings(), hidden=True)
    recorded, lanes = train_command._recorded(read, settings())
    engine, decoder = Engine(load_prior()), Decoder()
    source = FileSource(FileSettings(paths=(str(path),)), decoder)
    while not source.finished():
        engine.step(decoder.decode(source.poll(1.0))[0])
    histories, _ = engine.histories(10_000, 0)
    assert lanes == len(histories) == 2
    assert 0 < read.kept < 600
    for lane in range(2):
        count = int(histories["events"][lane])
        assert recorded.start[lane + 1] - recorded.start[lane] == count
        last = recorded.inputs[recorded.start[lane + 1] - WINDOW : recorded.start[lane + 1]]
        ring = np.roll(histories["inputs"][lane], -(count % WINDOW), axis=0)
        assert np.abs(last - ring / SCALE).max() < 1 / SCALE
    assert recorded.held.tolist() == [
        s + n - int(0.2 * n) for s, n in zip(recorded.start, np.diff(recorded.start), strict=False)
    ]


def test_train_says_what_is_wrong_with_the_files(tmp_path: Path) -> None:
    short = write_csv(tmp_path / "short.csv", noise(1, 50)[0])
    with pytest.raises(TrainError, match=r"short.csv: none of 1 features has 200 events"):
        train_files([short], tmp_path / "models", settings(), progress=False)
    flat = write_csv(tmp_path / "flat.csv", np.ones(500))
    with pytest.raises(TrainError, match="moves"):
        train_files([flat], tmp_path / "models", settings(), progress=False)
    (tmp_path / "none.csv").write_text("timestamp,value\nx,1\n", encoding="utf-8")
    with pytest.raises(TrainError, match=r"no event could be read; refused: .*bad_timestamp"):
        train_files([str(tmp_path / "none.csv")], tmp_path / "models", settings(), progress=False)
    with pytest.raises(FileError, match=r"missing.csv"):
        train_files([str(tmp_path / "missing.csv")], tmp_path / "models", settings(), progress=False)
