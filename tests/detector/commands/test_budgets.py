"""What each budget would have cost: every column is what a backtest at that budget tells."""

import contextlib
import io
from pathlib import Path

import pytest

from detector.cli import main
from detector.commands.backtest import replay
from detector.commands.budgets import BUDGETS
from detector.config.settings import load_settings

DATA = Path(__file__).parents[3] / "detector" / "demo_data"
FILES = [str(DATA / f"{name}.csv.gz") for name in ("ec2_request_latency_system_failure", "rogue_agent_key_hold")]
WEEKS = {"ec2_request_latency_system_failure": 4031 / 2016}


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    """The table of two bundled series: its rows by name."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(["backtest", *FILES, "--budgets"])
    lines = printed.getvalue().splitlines()
    return {line[:42].strip(): line[42:].split() for line in lines if len(line) > 42}


def test_each_column_is_what_a_backtest_at_that_budget_tells(table: dict[str, list[str]]) -> None:
    assert table["alerting.alerts_per_stream_per_week"] == [f"{budget:g}" for budget in BUDGETS]
    for column, budget in enumerate(BUDGETS[:3]):
        settings = load_settings(overrides=[f"alerting.alerts_per_stream_per_week={budget}"])
        fired = [alert for alert in replay(FILES, settings, []).alerts if alert.status == "firing"]
        assert table["alerts in all"][column] == str(len(fired))
        channels = {alert.channel for alert in fired}
        for channel in channels:
            assert float(table[channel][column]) > 0.0
        assert float(table["a week, all streams"][column]) == pytest.approx(
            sum(float(table[channel][column]) for channel in channels), abs=0.02
        )


def test_a_larger_budget_never_costs_less_here_and_the_streams_rows_are_by_their_own_weeks(
    table: dict[str, list[str]],
) -> None:
    counts = [int(cell) for cell in table["alerts in all"]]
    assert counts == sorted(counts)
    assert counts[0] >= 1
    latency = [float(cell) for cell in table["ec2_request_latency_system_failure"]]
    settings = load_settings(overrides=["alerting.alerts_per_stream_per_week=3"])
    alerts = replay(FILES[:1], settings, []).alerts
    fired = sum(alert.status == "firing" for alert in alerts)
    assert latency[2] == pytest.approx(fired / WEEKS["ec2_request_latency_system_failure"], rel=0.01)
