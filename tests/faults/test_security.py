"""Hostile or awkward names and settings are shown as they are and break nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from detector.commands.demo_daemon import demo_settings
from detector.commands.demo_report import Series
from detector.commands.diagnosis import _draw_forecast
from detector.commands.plot_style import html_page, save_png
from detector.commands.plots import plot_overview, plot_stream
from detector.config.settings import load_settings
from detector.observability.alert_text import describe
from detector.observability.log_format import TextLines
from tests.faults.decoders import alert

NAMES = [
    "a$b$",
    "$\\frac$",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "=cmd|' /C calc'!A0",
    "{x}%s%n",
]


def series(name: str) -> Series:
    time = 1_400_000_000 * 10**9 + 60 * 10**9 * np.arange(50)
    value = np.sin(np.arange(50) / 5)
    return Series(
        stream=name,
        feature=name,
        time=time,
        value=value,
        lower=value - 0.3,
        upper=value + 0.3,
        score=np.linspace(0, 4, 50),
        threshold=np.full(50, 3.0),
        alerts=time[[30]],
        told=[name],
        windows=[],
    )


@pytest.mark.parametrize("name", NAMES)
def test_plots_and_pages_escape_any_name(tmp_path: Path, name: str) -> None:
    save_png(plot_stream(series(name)), tmp_path / "stream.png")
    save_png(plot_overview([series(name)], name), tmp_path / "overview.png")
    figure, value = Figure(figsize=(6, 3)), np.arange(9.0)
    _draw_forecast(figure.subplots(), name, 10**18 + np.arange(9), value, value, value - 1, value + 1)
    figure.savefig(tmp_path / "forecast.svg")
    text = html_page(name, [name], name, [(name, tmp_path / "stream.png")])
    for mark in ("<script", "<img src=x"):
        assert mark not in text


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_is_one_log_line_for_any_stream_name(name: str) -> None:
    import logging

    record = logging.LogRecord(
        "d", logging.WARNING, __file__, 1, "%s", (describe(replace(alert(), stream=name)),), None
    )
    line = TextLines().format(record)
    assert name in line
    assert line.isprintable()


def test_the_demo_reads_its_own_metrics_whatever_the_http_settings(tmp_path: Path) -> None:
    set_for_the_daemon = [
        "http.username=u",
        "http.password=correct-horse",
        "http.ssl_certfile=/no",
        "http.ssl_keyfile=/no",
    ]
    settings = load_settings(None, {}, set_for_the_daemon)
    http = demo_settings(settings, [], tmp_path).http
    assert (http.username, http.password.get_secret_value(), http.ssl_certfile) == ("", "", "")
    assert http.host == settings.http.host
