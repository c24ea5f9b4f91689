"""Two hours' worth of events at full speed: resident memory stays level once every stream has been seen for a while."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from tests.daemon.fleet import START
from tests.daemon.support import Longwatch
from tests.faults.limits import resident

STREAMS, SECONDS, EVERY = 2_000, 2 * 3_600, 5
SETTLED = 0.3  # of the events: then all windows have gone round and every table has its size
MAX_SLOPE = 0.01  # over the rest of the run, as a share of the mean


def write_events(path: Path, seed: int = 5) -> int:
    """Write events of STREAMS streams, some of several features, some with symbols; return how many."""
    rng = np.random.default_rng(seed)
    rows = SECONDS // EVERY
    phase = rng.uniform(0, 2 * np.pi, STREAMS)
    with path.open("w") as lines:
        for row in range(rows):
            values = np.sin(2 * np.pi * row * EVERY / 1_800 + phase) + 0.2 * rng.standard_normal(STREAMS)
            values[rng.random(STREAMS) < 0.0005] += 12.0  # so that alerts come and go
            for stream, value in enumerate(values.tolist()):
                if stream % 20 == 0:
                    what = f'"values": {{"a": {value:.4f}, "b": {-value:.4f}, "c": {value**2:.4f}}}'
                elif stream % 20 == 1:
                    what = f'"value": {value:.4f}, "code": "E{row * stream % 7}"'
                else:
                    what = f'"value": {value:.4f}'
                lines.write(f'{{"stream": "s{stream}", "timestamp": {START + row * EVERY}, {what}}}\n')
    return rows * STREAMS


@pytest.mark.faults
@pytest.mark.timeout(1_800)
def test_memory_is_constant_over_two_hours_at_full_speed(tmp_path: Path) -> None:
    events = write_events(tmp_path / "events.jsonl")
    settings = {
        "source.type": "file",
        "source.paths": [str(tmp_path / "events.jsonl")],
        "state.directory": str(tmp_path / "state"),
        "output.scores_file": str(tmp_path / "scores.jsonl"),
        "output.alerts_file": str(tmp_path / "alerts.jsonl"),
        "training.enabled": False,
    }
    done: list[tuple[float, float, float]] = []  # when, share of events scored, bytes resident
    with Longwatch(tmp_path, settings) as daemon:
        daemon.line("running on")
        began = time.monotonic()
        while daemon.process.poll() is None and (not done or done[-1][1] < 0.995):
            try:
                scored = daemon.metrics()("events_scored_total") / events
                done.append((time.monotonic(), scored, float(resident(daemon.process.pid))))
            except OSError:
                break
            time.sleep(0.2)
        assert daemon.wait() == 0, daemon.log
        seconds = time.monotonic() - began
    _, share, size = np.array([sample for sample in done if sample[1] >= SETTLED]).T
    slope = np.polyfit(share, size, 1)[0] * (share[-1] - share[0]) / size.mean()
    print(
        f"\n{events:,} events of {STREAMS} streams ({SECONDS // 3600} h) in {seconds:.0f} s, {events / seconds:.0f}/s:"
        f" {size.mean() / 1e6:.1f} MB resident (anonymous), from {size.min() / 1e6:.1f} to {size.max() / 1e6:.1f};"
        f" slope {100 * slope:+.2f} % over {len(size)} samples"
    )
    assert len(size) > 50
    assert abs(slope) < MAX_SLOPE
