"""`longwatch demo --live`: the daemon over this very host, a sample of its load each second, until CTRL+C.

Nothing here scores: samples go through a pipe into the daemon as lines of any file do.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from connectors.errors import UserError
from connectors.sink_group import SinkGroup
from detector.commands.demo_daemon import DemoTerminal, demo_settings, page_address, quiet_log
from detector.commands.demo_report import COLUMNS
from detector.config.settings import Settings
from detector.scoring.claims import WARM_UP_EVENTS
from detector.service.factory import build_daemon

SAMPLE_SECONDS = 1.0
# Three an hour and stream: with three a week nobody would wait for a demonstration's first alert
ALERTS_PER_STREAM_PER_WEEK, FLEET_ALERTS_PER_DAY = 500.0, 500.0
LEARNING_SECONDS = 3 * WARM_UP_EVENTS  # after which a load of some seconds is found

INTRODUCTION = (
    "This host is sampled once a second: processor, memory, disks, network. It is learnt for {minutes:.0f} minutes; "
    "then cause some load and see it found, for instance in another terminal:"
)
LOAD = "timeout 30 sh -c 'yes > /dev/null & yes > /dev/null & wait'"


class HostSampler:
    """Writes samples of this host as JSON lines into a pipe, once a second, in a thread of its own."""

    def __init__(self, host: str) -> None:
        """Open the pipe. Raises UserError where psutil is not installed."""
        try:
            import psutil  # noqa: PLC0415 - an extra that nothing else needs
        except ImportError:
            raise UserError("longwatch demo --live needs psutil: pip install 'longwatch[demo]'") from None
        self._psutil, self._host = psutil, host
        self._read, self._write = os.pipe()
        self.path = f"/dev/fd/{self._read}"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="host-sampler", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and end the pipe."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._write)
        os.close(self._read)

    def _run(self) -> None:
        self._psutil.cpu_times_percent()  # the first call has nothing to compare with
        before, since = self._counters(), time.monotonic()
        due = since + SAMPLE_SECONDS
        while not self._stopping.wait(max(due - time.monotonic(), 0.0)):
            counters, now = self._counters(), time.monotonic()
            lines = b"".join(
                json.dumps({"stream": f"{self._host}/{name}", "timestamp": time.time(), "values": values}).encode()
                + b"\n"
                for name, values in self._sample(before, counters, now - since)
            )
            before, since, due = counters, now, max(due + SAMPLE_SECONDS, now)
            with contextlib.suppress(BrokenPipeError):
                os.write(self._write, lines)  # some 500 bytes: at once or not at all

    def _counters(self) -> dict[str, dict[str, float]]:
        """Return what only counts up, by stream; a host may lack some of it."""
        disk, network = self._psutil.disk_io_counters(), self._psutil.net_io_counters(pernic=True)
        found: dict[str, dict[str, float]] = {}
        if disk is not None:
            found["disk"] = {"read_bytes": disk.read_bytes, "write_bytes": disk.write_bytes}
        if cards := [card for name, card in (network or {}).items() if name != "lo"]:
            found["network"] = {
                "received_bytes": sum(card.bytes_recv for card in cards),
                "sent_bytes": sum(card.bytes_sent for card in cards),
            }
        return found

    def _sample(
        self, before: dict[str, dict[str, float]], counters: dict[str, dict[str, float]], seconds: float
    ) -> Iterator[tuple[str, dict[str, float]]]:
        times = self._psutil.cpu_times_percent()
        yield "cpu", {"busy_percent": round(100.0 - times.idle, 2)}
        yield "memory", {"used_percent": self._psutil.virtual_memory().percent}
        for name, now in counters.items():
            if name in before:
                rates = {key: max(value - before[name][key], 0.0) / seconds for key, value in now.items()}
                yield name, {f"{key}_per_second": round(rate, 1) for key, rate in rates.items()}


def run(settings: Settings) -> None:
    """Watch this host until CTRL+C. Raises UserError without psutil, and the daemon's own errors."""
    sampler = HostSampler(socket.gethostname() or "localhost")
    try:
        with tempfile.TemporaryDirectory(prefix="longwatch-live-") as state:
            chosen = _live_settings(settings, sampler.path, Path(state))
            with quiet_log(settings):
                daemon = build_daemon(chosen, SinkGroup([], [DemoTerminal()], []))
            minutes = LEARNING_SECONDS * SAMPLE_SECONDS / 60
            print(textwrap.fill(INTRODUCTION.format(minutes=minutes), COLUMNS))
            print(f"\n  {LOAD}\n\nthe page: {page_address(chosen)}/     CTRL+C ends it\n", flush=True)
            sampler.start()
            with quiet_log(settings):
                daemon.run()
    finally:
        sampler.close()


def _live_settings(settings: Settings, path: str, state: Path) -> Settings:
    """Return the user's settings with the demo's source, state and, where none is asked for, its budgets."""
    chosen = demo_settings(settings, [path], state)
    budgets: dict[str, Any] = {
        "alerts_per_stream_per_week": ALERTS_PER_STREAM_PER_WEEK,
        "fleet_alerts_per_day": FLEET_ALERTS_PER_DAY,
    }
    unset = {name: value for name, value in budgets.items() if settings.origin(f"alerting.{name}") is None}
    return chosen.model_copy(update={"alerting": settings.alerting.model_copy(update=unset)})
