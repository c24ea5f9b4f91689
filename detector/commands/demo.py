"""`longwatch demo`: the daemon over bundled real data, with its alerts in a readable form, a table and plots.

Nothing here scores. Events go from files through decode, engine, checkpoints and sinks as they do in production; only
retraining is off, since a replay of seconds has no place in a schedule of hours.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import os
import socket
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from connectors.batches import Alert, Scores
from connectors.common.private_files import locked
from connectors.decode.decoder import DecodeSettings
from connectors.files.labels import load_labels
from connectors.files.lines import FileError
from connectors.http_server.settings import HttpSettings
from connectors.sink_group import SinkGroup
from connectors.words import format_time
from detector.commands.demo_report import COLUMNS, RULES, read_series, summary
from detector.commands.outputs import PlotError, check_folder, require_matplotlib
from detector.config.settings import Settings
from detector.service.factory import build_daemon
from training.evaluate import incident_table

DATA = Path(__file__).parents[1] / "demo_data"
BATCH_EVENTS = 500  # small, so that alerts come as they fire; scores are the same however events are cut
SCRAPE_SECONDS = 5.0
BOLD, PLAIN = "\033[1m", "\033[0m"

INTRODUCTION = (
    "{streams} real series with {events:,} events are replayed through the daemon in order of time, as streams of one "
    'source. They are the whole set "realKnownCause" of the Numenta Anomaly Benchmark, chosen before any result was '
    "seen. The network was trained on synthetic series only."
)


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Replay the bundled series, print alerts and a table, write plots, scores, alerts and metrics to a folder.

    Raises the daemon's own errors, FileError where another demo writes there, OSError where the folder cannot be
    written, KeyboardInterrupt after CTRL+C.
    """
    output: Path = options.output
    check_folder("--output", output)
    output.mkdir(parents=True, exist_ok=True)
    folder = os.open(output, os.O_RDONLY)
    try:
        if not locked(folder):
            raise FileError(f"--output {output}: another demo writes there; name another folder")
        _run_alone(settings, output)
    finally:
        os.close(folder)


def _run_alone(settings: Settings, output: Path) -> None:
    paths = sorted(DATA.glob("*.csv.gz"))
    total = sum(_events(path) for path in paths)
    scores, alerts, metrics = (output / name for name in ("scores.jsonl", "alerts.jsonl", "metrics.txt"))
    for file in (scores, alerts, metrics):
        file.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="longwatch-demo-") as state:
        chosen = _demo_settings(settings, paths, Path(state), scores, alerts)
        url = _url(chosen)
        print(textwrap.fill(INTRODUCTION.format(streams=len(paths), events=total), COLUMNS))
        print(f"metrics while it runs: {url}/metrics\n")
        events, scored, seconds = _replay(chosen, total, f"{url}/metrics", metrics)
    if events < total:
        print(f"\nstopped after {events:,} of {total:,} events")
        raise KeyboardInterrupt

    series = read_series(scores, alerts, load_labels(DATA / "labels.json"))
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
    print(f"\nalerts    {alerts}\nscores    {scores}\nmetrics   {metrics}")
    try:
        require_matplotlib()
        from detector.commands.plots import write_plots  # noqa: PLC0415 - with matplotlib

        plots = write_plots(series, paragraphs, table, output)
    except PlotError as error:
        plots = f"none: {error}"
    print(f"plots     {plots}")


def _demo_settings(settings: Settings, paths: Sequence[Path], state: Path, scores: Path, alerts: Path) -> Settings:
    """Return the user's settings with the demo's source, outputs and state."""
    port = settings.http.port
    if port == 0 or settings.origin("http.port") is None:
        port = _free_port(settings.http.host)

    def section(name: str, **values: Any) -> Any:
        return getattr(settings, name).model_copy(update=values)

    named = tuple(map(str, paths))
    return settings.model_copy(
        update={
            "decode": DecodeSettings(),
            "source": section("source", type="file", paths=named, max_poll_records=BATCH_EVENTS),
            "state": section("state", directory=state),
            "output": section("output", scores_file=str(scores), alerts_file=str(alerts)),
            "training": section("training", enabled=False),
            # without the password and the certificate that may be set there: the demo reads its own metrics
            "http": HttpSettings(host=settings.http.host, port=port),
        }
    )


def _replay(settings: Settings, total: int, metrics_url: str, metrics: Path) -> tuple[int, int, float]:
    """Run the daemon to the end of its files; return the events read, those scored, and the seconds it took."""
    if settings.origin("logging.level") is None:
        logging.disable(logging.WARNING)  # leaves the terminal to the demo, unless a level was asked for
    try:
        with tqdm(
            desc="starting", total=total, unit=" events", unit_scale=True,
            ncols=COLUMNS, leave=False, disable=None, file=sys.stderr,
        ) as bar:  # fmt: skip
            daemon = build_daemon(settings, SinkGroup([_Progress(bar, metrics_url, metrics)], [_Terminal()], []))
            began = time.perf_counter()
            daemon.run()
    finally:
        logging.disable(logging.NOTSET)
    seconds = time.perf_counter() - began
    count = daemon.metrics.registry.get_sample_value
    events, scored = (int(count(f"longwatch_{name}_total") or 0) for name in ("events", "events_scored"))
    return events, scored, seconds


class _StatelessSink:
    """A sink that keeps nothing, and so has nothing to restore."""

    full = False

    def flush(self) -> None:
        """Do nothing."""

    def position(self) -> dict[str, int]:
        return {}

    def restore(self, position: Mapping[str, int]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Terminal(_StatelessSink):
    """An alert sink that prints alerts as they fire, two lines each, within COLUMNS."""

    def __init__(self) -> None:
        self._form = "{:1} {:16}  {:40}  {:8}  {:25}"
        head = self._form.format("", "when (UTC)", "stream", "channel", "so rare")
        tqdm.write(f"{head}\n{'-' * len(head)}", file=sys.stdout)

    def write(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            if alert.status == "firing":
                tqdm.write(self._row(alert), file=sys.stdout)

    def _row(self, alert: Alert) -> str:
        critical = alert.severity == "critical" and sys.stdout.isatty()
        row = self._form.format(
            "!" if alert.severity == "critical" else "",
            format_time(alert.started_at)[:16],
            alert.stream,
            alert.channel,
            alert.return_period,
        ).rstrip()
        found = textwrap.fill(alert.summary, COLUMNS, initial_indent=20 * " ", subsequent_indent=20 * " ")
        return f"{BOLD if critical else ''}{row}{PLAIN if critical else ''}\n{found}"


class _Progress(_StatelessSink):
    """A score sink that moves the bar, and at the end asks for the metrics as Prometheus would."""

    def __init__(self, bar: Any, metrics_url: str, metrics: Path) -> None:
        self._bar, self._url, self._metrics = bar, metrics_url, metrics

    def write(self, scores: Scores) -> None:
        self._bar.set_description("replaying", refresh=False)
        self._bar.update(len(scores.batch))

    def close(self) -> None:
        """Scrape: the last checkpoint is over, and the daemon closes its sinks before it ends its server."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says
        with direct.open(self._url, timeout=SCRAPE_SECONDS) as response:
            self._metrics.write_bytes(response.read())


def _events(path: Path) -> int:
    with gzip.open(path, "rb") as lines:
        return sum(1 for _ in lines) - 1


def _free_port(host: str) -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        return int(listener.getsockname()[1])


def _url(settings: Settings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.http.host, settings.http.host)  # noqa: S104 - not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.http.port}"
