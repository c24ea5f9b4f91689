"""A flood of new names: states are evicted to the store, memory stays below its limit, no process is killed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from detector.service.engine_setup import BASE_BYTES
from tests.daemon.fleet import START
from tests.daemon.support import Longwatch
from tests.faults.limits import IN_CGROUP, resident

MIB = 1 << 20
NAMES = 20_000  # of the short form: more than three times what fits into 64 MiB


def write_flood(path: Path, names: int, settled: int = 100) -> int:
    """Write `names` streams of one event each, among `settled` ones that continue; return how many events that is."""
    events = 0
    with path.open("w") as lines:
        for number in range(names):
            record = {"stream": f"flood-{number}", "timestamp": START + number // 100, "value": float(number % 7)}
            lines.write(json.dumps(record) + "\n")
            if number % 100 == 0:
                for k in range(settled):
                    record = {
                        "stream": f"settled-{k}",
                        "timestamp": START + number // 100,
                        "value": float(k + number % 3),
                    }
                    lines.write(json.dumps(record) + "\n")
                    events += 1
            events += 1
    return events


class Watch:
    """Samples a number until stopped; `highest` is the largest."""

    def __init__(self, sample: Callable[[], int], every: float = 0.05) -> None:
        self.samples: list[tuple[float, int]] = []
        self._sample, self._every, self._stop = sample, every, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self.samples.append((time.monotonic(), self._sample()))
            except OSError:
                return

    def stop(self) -> None:
        """Sample no more."""
        self._stop.set()
        self._thread.join()

    @property
    def highest(self) -> int:
        """The largest sample."""
        return max(number for _, number in self.samples)


def settings(folder: Path, events: Path, **more: object) -> dict[str, object]:
    return {
        "source.type": "file",
        "source.paths": [str(events)],
        "state.directory": str(folder / "state"),
        "training.enabled": False,
        "compute.threads": 1,
        "output.dead_letter_file": str(folder / "rejected.jsonl"),
        **{name.replace("__", "."): value for name, value in more.items()},
    }


def test_a_flood_of_stream_names_evicts_and_memory_stays_below_the_limit(tmp_path: Path) -> None:
    write_flood(tmp_path / "events.jsonl", NAMES)
    with Longwatch(tmp_path, settings(tmp_path, tmp_path / "events.jsonl", state__memory_bytes=64 * MIB)) as daemon:
        reported = daemon.line(
            r"states may take 0\.07 GB of memory \(state\.memory_bytes\): some (\d+) streams of one feature"
        )
        assert 9_000 < int(reported[1]) < 13_000
        watch = Watch(lambda: resident(daemon.process.pid))
        assert daemon.wait() == 0, daemon.log
        watch.stop()
        assert "memory for states is full (0.07 GB, state.memory_bytes)" in daemon.log
        assert watch.highest < BASE_BYTES + 64 * MIB
        print(f"\n{NAMES} names, 64 MiB for states: at most {watch.highest / 1e6:.0f} MB resident")
    assert (tmp_path / "rejected.jsonl").stat().st_size == 0


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_flood_of_stream_names_in_a_small_cgroup_is_not_killed(tmp_path: Path, cgroup: Path) -> None:
    """200,000 names, 2 GB of states, in a container of 1.6 GB."""
    most = 1_500 * MIB
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (cgroup / name).exists():
            (cgroup / name).write_text(str(most))
    events = write_flood(tmp_path / "events.jsonl", 200_000)
    program = ("-c", IN_CGROUP, str(cgroup))
    made = settings(tmp_path, tmp_path / "events.jsonl", state__checkpoint_interval_seconds=5)
    began = time.monotonic()
    with Longwatch(tmp_path, made, program=program) as daemon:
        assert "its cgroup has (1.6 GB)" in daemon.line(r"states may take.*")[0]
        watch = Watch(lambda: resident(daemon.process.pid))
        assert daemon.wait(800) == 0, daemon.log
        watch.stop()
    seconds = time.monotonic() - began
    print(
        f"\n200,000 names in a cgroup of {most / 1e6:.0f} MB: at most {watch.highest / 1e6:.0f} MB resident,"
        f" {seconds:.0f} s"
    )
    peak = next(
        (int((cgroup / n).read_text()) for n in ("memory.peak", "memory.max_usage_in_bytes") if (cgroup / n).exists()),
        0,
    )
    print(f"the cgroup's peak, with the pages of files: {peak / 1e6:.0f} MB; {events / seconds:.0f} events/s")
    assert watch.highest < most
