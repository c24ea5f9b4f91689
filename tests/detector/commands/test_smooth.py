"""The bidirectional pass: what it says of outliers, shifts and noise, and what the command adds to its table."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from connectors.batches import Scores
from detector.cli import main
from detector.commands.smooth import EDGE, ScoredHistory, Smoothed, SmoothError, smooth, tail_share
from tests.streams import DAY, HOUR, MINUTE, START, WEEK, Event, batch_of, clock
from training.network.inputs import WARM_UP_EVENTS, Observations, inputs_of
from training.network.model import Forecaster
from training.network.weights import load_prior

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

ROWS = 700


@pytest.fixture(scope="module")
def prior() -> Forecaster:
    return Forecaster.of(load_prior())


def alone(prior: Forecaster, time: Int64, value: Float64) -> Smoothed:
    """Smooth one stream of one feature."""
    return smooth(prior, np.zeros(len(time), np.int64), time, value, np.arange(len(time) + 1))


@torch.inference_mode()
def causal(prior: Forecaster, time: Int64, value: Float64) -> tuple[Float64, Float64]:
    """Return expectation and score of each event by the forward pass alone, worked out by other means."""
    inputs, frames = inputs_of(Observations(np.zeros(len(time), np.int64), time, value, time))
    forecast, _ = prior(torch.from_numpy(inputs)[:, None], prior.initial_state(1))
    location, scale, freedom = (column[:, 0, 0].double().numpy() for column in forecast)
    mean, deviation = frames["mean"], frames["deviation"]
    z = (np.arcsinh((value - mean) / deviation) - location) / np.exp(scale)
    tail = 2.0 * stats.t.sf(np.abs(z), freedom)
    tail[:WARM_UP_EVENTS] = np.nan
    return mean + deviation * np.sinh(location), -np.log10(tail_share(tail))


def noisy_sine(rows: int = ROWS, noise: float = 0.3) -> tuple[Int64, Float64]:
    time = clock(rows, 30 * MINUTE)
    rng = np.random.default_rng(1)
    return time, 10.0 + np.sin(2 * np.pi * (time - START) / (17 * HOUR)) + noise * rng.standard_normal(rows)


def test_an_event_unexplained_by_past_and_future_is_the_most_odd(prior: Forecaster) -> None:
    time, value = noisy_sine()
    value[400] += 6.0
    score = alone(prior, time, value).score
    assert np.nanargmax(score) == 400
    assert score[400] == pytest.approx(math.log10(ROWS), abs=0.01)


def test_the_first_event_after_a_level_shift_is_explained_by_its_future(prior: Forecaster) -> None:
    time, value = noisy_sine(noise=0.1)
    value[400:] += 6.0
    _, forwards = causal(prior, time, value)
    smoothed = alone(prior, time, value)
    assert forwards[400] > 2.5  # one of the two oddest of 680
    assert smoothed.score[400] < forwards[400] - 1.5
    width = smoothed.upper - smoothed.lower
    assert width[400] > 3 * np.median(width)  # the directions disagree, and the band says so
    assert smoothed.lower[400] < value[400] < smoothed.upper[400]


def test_on_a_noisy_sine_smoothing_is_closer_than_forecasting(prior: Forecaster) -> None:
    time, value = noisy_sine()
    signal = 10.0 + np.sin(2 * np.pi * (time - START) / (17 * HOUR))
    expected, _ = causal(prior, time, value)
    judged = slice(100, -100)
    smoothed = alone(prior, time, value).expected
    for truth, gain in ((value, 0.99), (signal, 0.9)):  # the noise itself nobody can foresee
        causal_error, error = (np.abs(e[judged] - truth[judged]).mean() for e in (expected, smoothed))
        assert error < gain * causal_error


def test_a_reversed_history_gives_the_mirrored_result(prior: Forecaster) -> None:
    rng = np.random.default_rng(2)
    time = START // WEEK * WEEK + DAY * np.arange(300)  # at midnight: sine and cosine of the day are its own mirror
    value = np.cumsum(rng.standard_normal(300))
    forth = alone(prior, time, value)
    back = alone(prior, time[-1] + time[0] - time[::-1], value[::-1])
    for one, other in zip(forth, back, strict=True):
        np.testing.assert_allclose(one, other[::-1], rtol=1e-4, atol=1e-4)


def test_a_symmetric_history_is_scored_symmetrically(prior: Forecaster) -> None:
    time = START // WEEK * WEEK + DAY * np.arange(301)
    half = np.cumsum(np.random.default_rng(3).standard_normal(151))
    score, *columns = alone(prior, time, np.concatenate([half, half[-2::-1]]))
    for column in columns:
        np.testing.assert_allclose(column, column[::-1], rtol=1e-4, atol=1e-4)
    place = 301 * 10.0**-score
    assert np.abs(place - place[::-1]).max() < 1.01  # an event and its mirror stand side by side


def test_the_backward_pass_uses_the_true_time_of_day(prior: Forecaster, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def forward(inputs: torch.Tensor, state: torch.Tensor) -> object:
        seen.append(inputs[:, 0])
        return Forecaster.forward(prior, inputs, state)

    monkeypatch.setattr(prior, "forward", forward)
    time = clock(300, 25 * MINUTE)
    alone(prior, time, np.sin(np.arange(300.0)))
    past, future = seen
    np.testing.assert_allclose(future.flip(0)[1:-1, 8:10], past[1:-1, 8:10], atol=1e-6)
    np.testing.assert_allclose(future.flip(0)[1:-1, 8], np.sin(2 * np.pi * (time[1:-1] % DAY) / DAY), atol=1e-6)


def test_the_backward_pass_fills_the_same_day_slots_as_the_forward_one() -> None:
    time = START // DAY * DAY + 5 * MINUTE * np.arange(4 * 288)  # on the slots' edges, as real clocks are
    mirrored = (int(time.max()) // WEEK + 1) * WEEK - EDGE - time
    for slot_length, slots in ((15 * MINUTE, 96), (HOUR, 168)):
        pairs = {(a, b) for a, b in zip(time // slot_length % slots, mirrored // slot_length % slots, strict=True)}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_the_smoothed_band_covers_99_percent(prior: Forecaster) -> None:
    time, value = noisy_sine(1000)
    smoothed = alone(prior, time, value)
    inside = (smoothed.lower <= value) & (value <= smoothed.upper)
    assert inside.sum() == 990


def test_smoothing_does_not_depend_on_other_features_or_streams(prior: Forecaster) -> None:
    time, value = noisy_sine(300)
    other = np.random.default_rng(4).standard_normal((300, 2))
    lane = np.tile([0, 1, 2], 300)
    start = np.sort(np.concatenate([3 * np.arange(300), 3 * np.arange(300) + 2, [900]]))  # an event of two, one of one
    together = smooth(prior, lane, np.repeat(time, 3), np.column_stack([other, value]).ravel(), start)
    apart = alone(prior, time, value)
    np.testing.assert_allclose(together.expected[2::3], apart.expected, rtol=1e-6)
    np.testing.assert_allclose(together.score[1::2], apart.score, atol=1e-6)
    assert np.isfinite(together.expected).all()


def test_one_odd_feature_is_enough_corrected_for_their_number(prior: Forecaster) -> None:
    time, value = noisy_sine(400)
    both = np.column_stack([value, np.random.default_rng(5).standard_normal(400)])
    both[200, 1] = 30.0
    smoothed = smooth(prior, np.tile([0, 1], 400), np.repeat(time, 2), both.ravel(), 2 * np.arange(401))
    assert np.argmax(smoothed.score) == 200
    assert smoothed.score[200] == pytest.approx(-math.log10(1 - (1 - 1 / 400) ** 2), abs=1e-6)


def test_a_constant_lane_has_nothing_odd(prior: Forecaster) -> None:
    smoothed = alone(prior, clock(200), np.full(200, 5.0))
    np.testing.assert_allclose(smoothed.expected, 5.0, atol=1e-4)
    assert smoothed.score.max() == 0.0


def test_too_short_histories_have_no_smoothed_values(prior: Forecaster) -> None:
    for rows in (0, 1, 2, WARM_UP_EVENTS):
        smoothed = alone(prior, clock(rows), np.arange(float(rows)))
        assert len(smoothed.score) == rows
        assert np.isnan(smoothed.score).all()
        assert np.isnan(smoothed.expected).all()


def test_extreme_values_give_finite_smoothed_values(prior: Forecaster) -> None:
    time, value = noisy_sine(200)
    value[100], value[101] = 1e308, -1e308
    assert all(np.isfinite(column).all() for column in alone(prior, time, value))


def test_symbols_have_no_smoothed_values_and_change_none(prior: Forecaster) -> None:
    time, value = noisy_sine(200)
    mixed = np.insert(value, [0, 100, 200], np.nan)
    with_symbols, without = alone(prior, np.insert(time, [0, 100, 200], START), mixed), alone(prior, time, value)
    for one, other in zip(with_symbols, without, strict=True):
        np.testing.assert_array_equal(one[np.isfinite(mixed)], other)
        assert np.isnan(one[np.isnan(mixed)]).all()


def test_late_events_are_smoothed_in_their_time_order(prior: Forecaster) -> None:
    time, value = noisy_sine(200)
    mixed = np.random.default_rng(6).permutation(200)
    in_order, as_came = alone(prior, time, value), alone(prior, time[mixed], value[mixed])
    for one, other in zip(in_order, as_came, strict=True):
        np.testing.assert_array_equal(one[mixed], other)


def test_a_too_long_history_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.commands.smooth.MAX_OBSERVATIONS", 10)
    history = ScoredHistory()
    history.add(_scores(10))
    with pytest.raises(SmoothError, match=r"over 10 values.*--smooth.*a part of them"):
        history.add(_scores(1))


def _scores(events: int) -> Scores:
    batch = batch_of([Event("s", START + i, {"value": 1.0}) for i in range(events)])
    nothing, row = np.zeros(events), np.arange(events)
    return Scores(
        batch,
        row,
        nothing,
        nothing,
        nothing,
        nothing.astype(np.int8),
        nothing,
        nothing > 0,
        nothing > 0,
        nothing,
        np.arange(events + 1),
        row,
        nothing,
        nothing,
        nothing,
        nothing,
    )


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    """Restore logging: the command sets up its own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level


def _write(path: Path, streams: dict[str, NDArray[np.float64]], names: str) -> str:
    """Write JSON lines of streams that report together; NaN is a missing feature."""
    lines = [
        json.dumps(
            {
                "stream": name,
                "timestamp": time,
                "values": {f: x for f, x in zip(names.split(), values[row].tolist(), strict=True) if not math.isnan(x)},
            }
        )
        for row, time in enumerate(clock(len(next(iter(streams.values())))).tolist())
        for name, values in streams.items()
    ]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize("names", ["value", "a b"])
def test_smoothing_leaves_the_other_columns_unchanged(tmp_path: Path, names: str) -> None:
    values = np.random.default_rng(7).standard_normal((300, len(names.split())))
    if names == "a b":
        values[:50, 1] = np.nan  # a feature that comes later
    streams = {"one": values, 'a "name", quoted': values[::-1]}
    history = _write(tmp_path / "history.jsonl", streams, names)
    main(["backtest", history, "--output", str(tmp_path / "without.csv")])
    main(["backtest", history, "--output", str(tmp_path / "with.csv"), "--smooth"])
    with (tmp_path / "without.csv").open(newline="") as without, (tmp_path / "with.csv").open(newline="") as smoothed:
        plain, rows = list(csv.reader(without)), list(csv.reader(smoothed))
    assert len(plain) == 601
    width = len(plain[0])
    assert [row[:width] for row in rows] == plain
    assert {len(row) for row in rows} == {width + 1 + 3 * len(names.split())}
    assert all(name.startswith("lookahead_") for name in rows[0][width:])
    text = (tmp_path / "with.csv").read_bytes().splitlines()
    for whole, part in zip(text, (tmp_path / "without.csv").read_bytes().splitlines(), strict=True):
        assert whole.startswith(part)


def test_the_command_names_its_columns_and_warns_of_look_ahead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.random.default_rng(8).standard_normal((200, 2))
    values[120, 1] = 40.0
    history = _write(tmp_path / "history.jsonl", {"one": values}, "a b")
    output = tmp_path / "scores.csv"
    main(["backtest", history, "--output", str(output), "--smooth"])
    reported = capsys.readouterr().err
    assert "lookahead_" in reported
    assert "look ahead: for labelling and post-mortems, never for judging a detector" in reported
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    added = [name for name in rows[0] if name.startswith("lookahead_")]
    assert added == [
        "lookahead_score",
        *(f"lookahead_{kind}_{name}" for name in "ab" for kind in ("expected", "lower", "upper")),
    ]
    assert max(rows, key=lambda row: float(row["lookahead_score"])) is rows[120]
    assert float(rows[120]["lookahead_upper_b"]) < 40.0


def test_help_warns_of_look_ahead(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["backtest", "--help"])
    assert "never for judging a detector" in " ".join(capsys.readouterr().out.split())
