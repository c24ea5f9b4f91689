"""The demo as its user runs it: the daemon over the bundled series, and what it prints and writes."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import signal
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from connectors.files.labels import load_labels
from detector.commands.demo import COLUMNS, DATA, run
from detector.config.settings import load_settings

EVENTS = 69_561
DUPLICATES = 23  # clocks that were set back; counted in the files themselves by the first test
DROPPED = DUPLICATES - 8  # of an hour that comes twice, from the fifth event on
SECONDS = 600


@dataclass
class Demo:
    output: Path
    text: str

    def lines(self, name):
        return [json.loads(line) for line in (self.output / name).read_text().splitlines()]

    def firing(self):
        return [alert for alert in self.lines("alerts.jsonl") if alert["status"] == "firing"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run, into a folder where an earlier run left its files."""
    output = tmp_path_factory.mktemp("demo")
    for name in ("scores.jsonl", "alerts.jsonl"):
        (output / name).write_text("left by an earlier run\n")
    text = io.StringIO()
    handler = signal.getsignal(signal.SIGINT)
    with contextlib.redirect_stdout(text):
        run(load_settings(environment={}), Namespace(output=output, live=False))
    assert signal.getsignal(signal.SIGINT) is handler, "CTRL+C still belongs to the daemon that has ended"
    return Demo(output, text.getvalue())


def test_the_bundled_series_have_labels_and_a_licence():
    files = {path.name.removesuffix(".gz"): path for path in DATA.glob("*.csv.gz")}
    assert set(files) == set(load_labels(DATA / "labels.json"))
    times = {
        name: re.findall(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),", gzip.decompress(path.read_bytes()).decode(), re.M)
        for name, path in files.items()
    }
    assert len(files) >= 5
    assert sum(map(len, times.values())) == EVENTS
    assert sum(len(each) - len(set(each)) for each in times.values()) == DUPLICATES
    assert "Numenta" in (DATA / "LICENSE.txt").read_text()


def test_every_event_is_scored_once(demo):
    scores = demo.lines("scores.jsonl")
    assert len(scores) == EVENTS - DROPPED
    assert len({(score["topic"], score["offset"]) for score in scores}) == len(scores)
    assert len({score["stream"] for score in scores}) == 7


def test_each_alert_is_printed_when_it_fires_with_what_was_found_and_how_rare_that_is(demo):
    words = " ".join(demo.text.split())
    rows = re.findall(r"^[! ] \d{4}-\d\d-\d\d \d\d:\d\d  .*$", demo.text, re.MULTILINE)
    firing = demo.firing()
    assert len(rows) == len(firing) > 0
    for row, alert in zip(rows, firing, strict=True):
        assert alert["started_at"][:16].replace("T", " ") in row
        assert alert["stream"] in row
        assert row.endswith(f"{alert['channel']:8}  {alert['return_period']}")
        assert f"{alert['channel']} {alert['return_period']} {alert['summary']}" in words
        assert row.startswith("!") == (alert["severity"] == "critical")


def test_most_labelled_incidents_are_found_with_few_false_alarms(demo):
    found, labelled = map(int, re.search(r"(\d+) of (\d+) labelled incidents found", demo.text).groups())
    assert labelled == sum(map(len, load_labels(DATA / "labels.json").values()))
    assert labelled == 19
    assert found >= 16
    assert float(re.search(r"([\d.]+) a stream and week", demo.text)[1]) < 1.0


def test_the_table_agrees_with_the_printed_alerts(demo):
    labels = load_labels(DATA / "labels.json")
    rows = dict(re.findall(r"^(\w+) +((?:\d+ +){4})", demo.text, re.MULTILINE))
    for name, windows in labels.items():
        stream = name.removesuffix(".csv")
        times = [_ns(alert["started_at"]) for alert in demo.firing() if alert["stream"] == stream]
        found = sum(any(start <= time <= end for time in times) for start, end in windows)
        false = sum(not any(start <= time <= end for start, end in windows) for time in times)
        assert list(map(int, rows[stream].split())) == [len(windows), found, len(windows) - found, false]


def test_the_text_fits_a_terminal(demo):
    reported = [line for line in demo.text.splitlines() if str(demo.output) not in line]
    assert max(map(len, reported)) <= COLUMNS


def test_metrics_are_served_until_the_end(demo):
    families = {
        family.name: family for family in text_string_to_metric_families((demo.output / "metrics.txt").read_text())
    }
    assert families["longwatch_events"].samples[0].value == EVENTS
    assert families["longwatch_events_scored"].samples[0].value == EVENTS - DROPPED
    assert sum(sample.value for sample in families["longwatch_alerts"].samples) == len(demo.firing())


def test_plots_are_embedded_in_a_self_contained_page(demo):
    streams = {score["stream"] for score in demo.lines("scores.jsonl")}
    for name in (*streams, "demo"):
        assert (demo.output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (demo.output / "demo.png").stat().st_size < 300_000
    page = (demo.output / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,22})', page)
    assert sources == ["data:image/png;base64,"] * len(streams)
    assert all(stream in page for stream in streams)


@pytest.mark.usefixtures("nothing_is_ignored")
def test_ctrl_c_ends_the_demo(tmp_path):
    command = [sys.executable, "-m", "detector", "demo", "--output", str(tmp_path), "--set", "source.speed=1000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if line.startswith("  2013-"):  # the first alert: it is in the middle of its work
                process.send_signal(signal.SIGINT)
                break
        text, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopped after" in text
    assert "Traceback" not in errors


def _ns(text):
    return int(np.datetime64(text.removesuffix("Z"), "ns").astype(np.int64))
