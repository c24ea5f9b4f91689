"""The daemon as a process, and the world around it. Every wait has a deadline.

`Longwatch.work_until` is the one that matters most: it fails not only late, but as soon as the daemon is alive and
scores nothing although there is something to score.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.brokers import CHECKOUT

PATIENCE = 240.0  # s, of any wait: a start takes 3 s on an idle machine, and minutes on one with much else to do
STALLED = 120.0  # s without a score while there are events to score: alive, but not processing
RUN = ("-m", "detector", "run")
# The settings' shortest interval between two retrainings is a minute, which is long for a test.
RUN_RETRAINING = (
    "-c",
    """
import sys
from detector.service.factory import build_daemon
from detector.config.settings import load_settings
from detector.observability.log_format import set_up_logging
settings = load_settings(overrides=[word for word in sys.argv[1:] if word != "--set"])
training = settings.training.model_copy(update={"interval_seconds": 3.0})
set_up_logging("info", "text")
build_daemon(settings.model_copy(update={"training": training})).run()
""",
)


def until(
    condition: Callable[[], Any], what: str = "the condition holds", seconds: float = PATIENCE, every: float = 0.02
) -> Any:
    """Return what `condition` returns once it is true; fail after so long. It is asked again `every` so many s."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        time.sleep(every)
    return found


class Samples:
    """What /metrics said once, parsed by Prometheus' own client."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """Return the value of longwatch_<name> with exactly these labels; KeyError where there is none."""
        return self._samples[f"longwatch_{name}", frozenset(labels.items())]

    def sum(self, name: str) -> float:
        """Return the sum over all labels of longwatch_<name>."""
        return sum(value for (found, _), value in self._samples.items() if found == f"longwatch_{name}")

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the values of longwatch_<name> by one label's value, over all others' values."""
        sums: dict[str, float] = defaultdict(float)
        for (found, labels), value in self._samples.items():
            if found == f"longwatch_{name}":
                sums[dict(labels)[label]] += value
        return dict(sums)


class EndedError(Exception):
    """The daemon's process has ended."""


class Longwatch:
    """`longwatch run` as a process; settings by name, {"kafka.topics": ["metrics"]}.

    Use as a context: what still runs at the end is killed.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        program: Sequence[str] = RUN,
        environ: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.log_path = folder / f"longwatch-{time.monotonic_ns()}.log"
        self.settings = {"http.port": 0, "compute.device": "cpu", **settings}
        texts = {n: value if isinstance(value, str) else json.dumps(value) for n, value in self.settings.items()}
        own = {name: value for name, value in os.environ.items() if not name.startswith(("LONGWATCH_", "NOTIFY_"))}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    *program,
                    *(part for name, text in texts.items() for part in ("--set", f"{name}={text}")),
                ],
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=CHECKOUT,
                env={**own, **(environ or {})},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()

    @property
    def log(self) -> str:
        """All that it has said."""
        return self.log_path.read_text(errors="replace")

    def fail(self, what: str) -> None:
        """Fail the test, with the end of the log."""
        pytest.fail(f"{what}\nThe daemon's log ends:\n" + "\n".join(self.log.splitlines()[-30:]))

    def line(self, pattern: str, seconds: float = PATIENCE) -> re.Match[str]:
        """Wait for a line of the log in which `pattern` is found."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.log, re.MULTILINE)):
            if self.process.poll() is not None and not re.search(pattern, self.log, re.MULTILINE):
                self.fail(f"it ended with {self.process.returncode} and never said {pattern!r}")
            if time.monotonic() > deadline:
                self.fail(f"it did not say {pattern!r} within {seconds:.0f} s")
            time.sleep(0.02)
        return found

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a page; EndedError where the process has ended."""
        return self._ask("GET", path, None, {})

    def post(self, path: str, body: object) -> tuple[int, str]:
        """Change something by the API, with the daemon's own token; as `get`."""
        token = (Path(self.settings["state.directory"]) / "api.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return self._ask("POST", path, json.dumps(body), headers)

    def _ask(self, method: str, path: str, body: str | None, headers: Mapping[str, str]) -> tuple[int, str]:
        port = int(self.line(r"served on http://127\.0\.0\.1:(\d+)/")[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException):
            if self.stops():
                raise EndedError from None
            raise
        finally:
            connection.close()

    @contextlib.contextmanager
    def halted(self) -> Iterator[None]:
        """Let it not get on while the block runs: what comes in its middle cannot come too late then."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stops(self, seconds: float = 5.0) -> bool:
        """Whether the process ends by itself within so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode is not None

    def metrics(self) -> Samples:
        """Scrape."""
        return Samples(self.get("/metrics")[1])

    def work_until(
        self, condition: Callable[[Samples], Any], what: str, seconds: float = PATIENCE, stalled: float = STALLED
    ) -> Samples:
        """Scrape until a condition holds and return what was scraped; EndedError where the process ends before.

        Fails after `seconds`, and as soon as nothing has been read, scored or refused for `stalled` seconds.
        """
        deadline = time.monotonic() + seconds
        moved_at, before = time.monotonic(), -1.0
        while True:
            samples = self.metrics()
            if condition(samples):
                return samples
            now = time.monotonic()
            done = samples("events_scored_total") + samples.sum("events_rejected_total")
            if done != before:
                moved_at, before = now, done
            if now - moved_at > stalled:
                self.fail(f"alive, but not processing: {done:.0f} events done, none in {stalled:.0f} s; wanted: {what}")
            if now > deadline:
                self.fail(f"not within {seconds:.0f} s: {what} ({done:.0f} events done)")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def terminate(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal and return the exit status and how long it took, in s."""
        began = time.monotonic()
        self.process.send_signal(number)
        return self.wait(), time.monotonic() - began

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return the exit status once it has ended by itself."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.fail(f"it did not end within {seconds:.0f} s")
            raise
