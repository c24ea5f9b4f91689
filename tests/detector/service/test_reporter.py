"""What the daemon says of streams whose time was wrong: by name, and in one line where they are many."""

import logging

import pytest

from connectors.words import format_duration
from detector.checkpointing.checkpointer import observe_fleet
from detector.config.settings import Settings
from detector.engine.engine import Engine
from detector.observability.metrics import Metrics
from detector.service.reporter import Reporter
from tests.streams import HOUR, MINUTE, START, Event, batch_of
from training.network.weights import load_prior


class Reporting(Reporter):
    """A reporter and the engine that it reports on."""

    def __init__(self) -> None:
        self.engine = Engine(load_prior())
        self.metrics = Metrics("0.1.0")
        self.registry = self.metrics.registry
        super().__init__(self.metrics, Settings(), self.engine.streams)


@pytest.fixture
def reporter(caplog: pytest.LogCaptureFixture) -> Reporting:
    caplog.set_level(logging.INFO)
    return Reporting()


def come(reporter: Reporting, streams: int, first: int, rows: int, step: int = MINUTE) -> None:
    events = [
        Event(f"host-{k}", START + first * MINUTE + row * step, {"value": float(row * (k + 1) % 7.3)})
        for row in range(rows)
        for k in range(streams)
    ]
    batch = batch_of(events)
    reporter.step(batch, reporter.engine.step(batch))


def lines(caplog: pytest.LogCaptureFixture, about: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if about in record.getMessage()]


def test_a_stream_whose_clock_went_back_is_logged_by_name(
    reporter: Reporting, caplog: pytest.LogCaptureFixture
) -> None:
    come(reporter, 1, 0, 10)
    come(reporter, 1, 10 + 23 * 60, 1)
    come(reporter, 1, 10, 30)

    (line,) = lines(caplog, "went back in time")
    assert line.startswith("stream 'host-0' went back in time by 22 h 56 min to 2026-09-21 ")
    assert reporter.registry.get_sample_value("longwatch_streams_moved_back_total") == 1


def test_thousands_of_streams_with_clock_problems_are_one_line(
    reporter: Reporting, caplog: pytest.LogCaptureFixture
) -> None:
    come(reporter, 2000, 0, 10)
    come(reporter, 2000, -60, 30)
    (line,) = lines(caplog, "went back in time")
    assert line.startswith("2,000 streams went back in time")
    assert "'host-0', 'host-1', 'host-" in line

    come(reporter, 10, -200, 30)  # soon after: it waits
    assert len(lines(caplog, "went back in time")) == 1
    reporter._moved_back._throttle._seconds = 0.0
    reporter.look()
    assert lines(caplog, "went back in time")[1].startswith("10 streams went back in time")


def test_a_stream_with_every_event_dropped_is_logged_by_name(
    reporter: Reporting, caplog: pytest.LogCaptureFixture
) -> None:
    come(reporter, 3, 0, 10)
    come(reporter, 1, 0, 100, step=0)
    come(reporter, 1, 0, 100, step=0)
    observe_fleet(reporter.metrics, reporter.engine.streams)

    (line,) = lines(caplog, "drops everything")
    assert "stream 'host-0' drops everything: its last 20 events" in line
    assert reporter.registry.get_sample_value("longwatch_streams_blocked") == 1


def test_a_clock_ahead_does_not_hide_a_silent_stream(reporter: Reporting) -> None:
    ahead = 50 * 365 * 24 * 60
    come(reporter, 1, ahead, 1)

    reported = reporter.registry.get_sample_value("longwatch_last_event_timestamp_seconds")
    assert reported is not None
    assert reported < (START + ahead * MINUTE - 24 * HOUR) * 1e-9


@pytest.mark.parametrize(
    ("seconds", "reported"),
    [
        (82_560, "22 h 56 min"),
        (3600, "1 h"),
        (90_000, "1 d 1 h"),
        (59.4, "59.4 s"),
        (61, "1 min 1 s"),
    ],
)
def test_durations_are_formatted_in_their_two_largest_units(seconds: float, reported: str) -> None:
    assert format_duration(seconds) == reported
