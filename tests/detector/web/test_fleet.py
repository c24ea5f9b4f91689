"""The fleet's figures, from metrics that really count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detector.observability.metrics import Metrics
from detector.web.fleet import POINTS, Fleet
from training.retrain.result import RetrainResult


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_there_is_a_point_every_ten_seconds_for_an_hour() -> None:
    metrics, clock = Metrics("0"), Clock()
    fleet = Fleet(metrics, clock)
    for second in range(4_000):
        metrics.events.inc(50)
        metrics.end_to_end_latency.observe(np.full(50, 0.2))
        fleet.look(lag=second)
        clock.now += 1
    points = fleet.points()
    assert len(points) == POINTS
    assert {point.events_per_second for point in points} == {50.0}
    assert np.diff([point.time for point in points]).tolist() == [10.0] * (POINTS - 1)
    assert points[-1].lag > points[0].lag
    assert all(0.1 <= point.latency_p99 <= 0.3 for point in points if point.latency_p99 is not None)
    now = fleet.now()
    assert now.events_per_second == pytest.approx(50.0)
    assert now.lag == 3_999


def test_quantiles_lie_in_the_values_bucket() -> None:
    metrics, clock = Metrics("0"), Clock()
    fleet = Fleet(metrics, clock)
    fleet.look(0)
    assert fleet.now().latency is None
    metrics.end_to_end_latency.observe(np.concatenate([np.full(980, 0.02), np.full(20, 45.0)]))
    median, high = fleet.now().latency or (math.nan, math.nan)
    assert 0.01 <= median <= 0.03
    assert 30 <= high <= 60
    metrics.end_to_end_latency.observe(np.full(1_000_000, 1e9))  # beyond every bound
    assert fleet.now().latency == (86_400.0, 86_400.0)


def test_shares_are_of_all_that_was_read() -> None:
    metrics = Metrics("0")
    fleet = Fleet(metrics, Clock())
    assert (fleet.now().rejected_share, fleet.now().late_share) == (0.0, 0.0)
    metrics.events.inc(75)
    metrics.events_late.inc(15)
    metrics.events_rejected["bad_name"].inc(25)
    assert fleet.now().rejected_share == pytest.approx(0.25)
    assert fleet.now().late_share == pytest.approx(0.2)
    assert fleet.now().resident_bytes > 1_000_000


def test_the_last_retraining_is_kept() -> None:
    clock = Clock()
    fleet = Fleet(Metrics("0"), clock)
    assert fleet.last_retraining is None
    fleet.retrained(RetrainResult("skipped", "too few"))
    fleet.retrained(RetrainResult("rejected", "no better"))
    assert fleet.last_retraining is not None
    assert (fleet.last_retraining.at, fleet.last_retraining.result.outcome) == (clock.now, "rejected")
