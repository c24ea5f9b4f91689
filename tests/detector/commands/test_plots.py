"""Plots: any stream can be drawn; without matplotlib, a line says what is missing."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from detector.commands.demo_report import Series
from detector.commands.outputs import PlotError, require_matplotlib
from detector.commands.plot_style import html_page, save_png
from detector.commands.plots import plot_overview, plot_stream

MINUTE_NS = 60 * 10**9
BEGIN_NS = 1_400_000_000 * 10**9


def series(events=400, alerts=(300,), windows=((250, 310),)):
    time = BEGIN_NS + MINUTE_NS * np.arange(events)
    value = np.sin(np.arange(events) / 20)
    return Series(
        stream="web-1/cpu",
        feature="user",
        time=time,
        value=value,
        lower=value - 0.3,
        upper=value + 0.3,
        score=np.linspace(0, 4, events),
        threshold=np.full(events, 3.0),
        alerts=time[list(alerts)],
        told=["observed 9.1, expected 2.3 [2.1 .. 2.5]; once in 11 days"] * len(alerts),
        windows=[(int(time[a]), int(time[b])) for a, b in windows],
    )


def drawn(figure, path):
    save_png(figure, path)
    with Image.open(path) as image:
        return image.size, len(image.getcolors(256))


def count(path, colour):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels - wanted).sum(2) < 30).sum())


@pytest.mark.parametrize(
    "one",
    [
        series(),
        series(alerts=(), windows=()),
        series(events=1, alerts=(0,), windows=()),
        series(events=2, alerts=(), windows=()),
        replace(series(), value=np.zeros(400), lower=np.full(400, np.nan), upper=np.full(400, np.nan)),
        replace(series(), time=np.where(np.arange(400) < 200, 0, 86_400 * 10**9) + series().time, alerts=np.zeros(0)),
    ],
    ids=["usual", "nothing to tell", "one event", "two events", "constant, no band", "a gap of a day"],
)
def test_any_stream_can_be_drawn(one, tmp_path):
    size, colours = drawn(plot_stream(one), tmp_path / "stream.png")
    assert size[0] > 1000
    assert colours > 3


def test_alerts_and_labelled_windows_are_drawn(tmp_path):
    from detector.commands.plot_style import ALERT, WINDOW

    plain, reported = tmp_path / "plain.png", tmp_path / "reported.png"
    save_png(plot_stream(series(alerts=(), windows=())), plain)
    save_png(plot_stream(series()), reported)
    assert count(reported, ALERT) > count(plain, ALERT) + 50
    assert count(reported, WINDOW) > count(plain, WINDOW) + 1000


def test_an_overview_has_a_row_for_each_stream(tmp_path):
    one, _ = drawn(plot_overview([series()], "one"), tmp_path / "one.png")
    three, _ = drawn(plot_overview([series()] * 3, "three"), tmp_path / "three.png")
    assert three[0] == one[0]
    assert three[1] > 2 * one[1] - 300


def test_names_are_escaped_in_the_page(tmp_path):
    save_png(plot_stream(series()), tmp_path / "a.png")
    text = html_page("<script>", ["a & b"], "<td>", [('"><script>', tmp_path / "a.png")])
    assert "<script>" not in text
    assert "a &amp; b" in text


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotError, match=r"pip install 'longwatch\[plots\]'"):
        require_matplotlib()
