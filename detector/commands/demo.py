"""`longwatch demo`: the daemon over bundled real data, with its alerts in a readable form, a table and plots.

Nothing here scores. Events go from files through decode, engine, checkpoints and sinks as they do in production; only
retraining is off, since a replay of seconds has no place in a schedule of hours.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from connectors.batches import Scores
from connectors.common.private_files import locked
from connectors.files.labels import load_labels
from connectors.files.lines import FileError
from connectors.sink_group import SinkGroup
from detector.commands import demo_live
from detector.commands.demo_daemon import DemoTerminal, StatelessSink, demo_settings, page_address, quiet_log
from detector.commands.demo_report import COLUMNS, RULES, read_series, summary
from detector.commands.outputs import PlotError, check_folder, require_matplotlib
from detector.config.settings import Settings
from detector.service.daemon import Daemon
from detector.service.factory import build_daemon
from training.evaluate import incident_table

DATA = Path(__file__).parents[1] / "demo_data"
BATCH_EVENTS = 500  # small, so that alerts come as they fire; scores are the same however events are cut
SCRAPE_SECONDS = 5.0
IDLE_SECONDS = 0.2

INTRODUCTION = (
    "{streams} real series with {events:,} events are replayed through the daemon in order of time, as streams of one "
    'source. They are the whole set "realKnownCause" of the Numenta Anomaly Benchmark, chosen before any result was '
    "seen. The network was trained on synthetic series only."
)


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Replay the bundled series, print alerts and a table, write plots, scores, alerts and metrics to a folder.

    At a terminal the page stays open until CTRL+C. With `--live` this host is watched instead. Raises the daemon's own
    errors, FileError where another demo writes there, OSError where the folder cannot be written, KeyboardInterrupt
    after CTRL+C.
    """
    if options.live:
        demo_live.run(settings)
        return
    output: Path = options.output
    check_folder("--output", output)
    output.mkdir(parents=True, exist_ok=True)
    folder = os.open(output, os.O_RDONLY)
    try:
        if not locked(folder):
            raise FileError(f"--output {output}: another demo writes there; name another folder")
        with tempfile.TemporaryDirectory(prefix="longwatch-demo-") as state, quiet_log(settings):
            _run_alone(settings, output, Path(state))
    finally:
        os.close(folder)


def _run_alone(settings: Settings, output: Path, state: Path) -> None:
    paths = sorted(DATA.glob("*.csv.gz"))
    total = sum(_events(path) for path in paths)
    files = {name: output / f"{name}.jsonl" for name in ("scores", "alerts")}
    for file in files.values():
        file.unlink(missing_ok=True)
    chosen = _settings(demo_settings(settings, [*map(str, paths)], state), files)
    address = page_address(chosen)
    print(textwrap.fill(INTRODUCTION.format(streams=len(paths), events=total), COLUMNS))
    print(f"the page, live while it runs: {address}/\n")
    with tqdm(
        desc="starting", total=total, unit=" events", unit_scale=True,
        ncols=COLUMNS, leave=False, disable=None, file=sys.stderr,
    ) as bar:  # fmt: skip
        daemon = build_daemon(chosen, SinkGroup([_Progress(bar)], [DemoTerminal()], []))
        try:
            daemon.startup()
            began = time.perf_counter()
            while not daemon.ending and not daemon.source.finished():
                daemon.tick()
            seconds = time.perf_counter() - began
            daemon.checkpointer.commit()
            bar.close()
            _report(settings, daemon, total, seconds, files, output, address)
            _stay_open(daemon, address)
        except BaseException:
            daemon.shutdown(orderly=False)
            raise
        daemon.shutdown(orderly=True)


def _settings(settings: Settings, files: Mapping[str, Path]) -> Settings:
    """Return the demo's settings with files to write, and small batches."""
    named = {f"{name}_file": str(file) for name, file in files.items()}
    source = settings.source.model_copy(update={"max_poll_records": BATCH_EVENTS})
    return settings.model_copy(update={"source": source, "output": settings.output.model_copy(update=named)})


def _report(
    settings: Settings,
    daemon: Daemon,
    total: int,
    seconds: float,
    files: Mapping[str, Path],
    output: Path,
    address: str,
) -> None:
    """Print what was found and missed, and write plots and metrics. Raises KeyboardInterrupt where it was stopped."""
    count = daemon.metrics.registry.get_sample_value
    events, scored = (int(count(f"longwatch_{name}_total") or 0) for name in ("events", "events_scored"))
    if events < total:
        print(f"\nstopped after {events:,} of {total:,} events")
        raise KeyboardInterrupt
    metrics = output / "metrics.txt"
    metrics.write_bytes(_scraped(f"{address}/metrics"))
    series = read_series(files["scores"], files["alerts"], load_labels(DATA / "labels.json"))
    table = incident_table([one.judged for one in series])
    paragraphs = [
        f"{scored:,} events scored in {seconds:.1f} s; {events - scored} were dropped, since their stream "
        "already had an event of the same time.",
        *summary(series, settings.alerting.alerts_per_stream_per_week),
        RULES,
    ]
    print(f"\n{table}\n")
    for paragraph in paragraphs:
        print(textwrap.fill(paragraph, COLUMNS))
    print(f"\nalerts    {files['alerts']}\nscores    {files['scores']}\nmetrics   {metrics}")
    try:
        require_matplotlib()
        from detector.commands.plots import write_plots  # noqa: PLC0415 - with matplotlib

        plots = write_plots(series, paragraphs, table, output)
    except PlotError as error:
        plots = f"none: {error}"
    print(f"plots     {plots}")


def _stay_open(daemon: Daemon, address: str) -> None:
    """Let somebody at a terminal look at the page, until CTRL+C."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    print(f"\nopen      {address}/     every incident with its surroundings, every stream; CTRL+C ends it")
    while not daemon.ending:
        daemon.tick()
        time.sleep(IDLE_SECONDS)  # a file that has been read to its end gives nothing, at once


class _Progress(StatelessSink):
    """A score sink that moves the bar."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def write(self, scores: Scores) -> None:
        self._bar.set_description("replaying", refresh=False)
        self._bar.update(len(scores.batch))


def _scraped(url: str) -> bytes:
    """Return the metrics as Prometheus gets them."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says
    with direct.open(url, timeout=SCRAPE_SECONDS) as response:
        found: bytes = response.read()
    return found


def _events(path: Path) -> int:
    with gzip.open(path, "rb") as lines:
        return sum(1 for _ in lines) - 1
