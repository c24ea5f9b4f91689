"""A stream with an incident, recorded as the daemon does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from connectors.batches import Alert
from detector.config.sections import HistorySettings
from detector.engine.engine import Engine, EngineSettings
from detector.history.history import History
from tests.streams import MINUTE, START, Event, in_batches

ROWS, FIRED, LASTED = 1_500, 1_200, 15


def values_of(rows: int = ROWS, seed: int = 1, fired: int = FIRED, lasted: int = LASTED) -> np.ndarray:
    """A slow wave that jumps by 60 deviations at a row, and comes back."""
    rng = np.random.default_rng(seed)
    value = 10 + np.sin(np.arange(rows) / 20) + rng.normal(0, 0.1, rows)
    value[fired : fired + lasted] += 6
    return value


def events_of(name: str = "a/b", *, features: Sequence[str] = ("x",), rows: int = ROWS, **more: int) -> list[Event]:
    columns = [values_of(rows, seed, **more) for seed in range(1, len(features) + 1)]
    return [
        Event(name, START + i * MINUTE, {f: float(c[i]) for f, c in zip(features, columns, strict=True)}, offset=i)
        for i in range(rows)
    ]


@dataclass
class Recorded:
    """A history beside the engine whose batches it is given."""

    directory: Path
    settings: HistorySettings = field(default_factory=HistorySettings)
    engine: Engine = field(default_factory=Engine)
    alerts: list[Alert] = field(default_factory=list)
    dropped: int = 0
    clock: float = 1e9

    def __post_init__(self) -> None:
        self.history = self.opened()

    def opened(self) -> History:
        def drop(alerts: int) -> None:
            self.dropped += alerts

        history = History(self.directory, self.settings, on_dropped=drop, clock=lambda: self.clock)
        history.restore({})
        return history

    def feed(self, events: Sequence[Event], size: int = 100, *, flushed: bool = True) -> None:
        for batch in in_batches(events, size):
            step = self.engine.step(batch)
            self.history.write(step.alerts)
            self.history.step(batch, step, self.engine)
            self.alerts += step.alerts
            if flushed:
                self.history.flush()

    @property
    def fired(self) -> list[str]:
        return list(dict.fromkeys(alert.id for alert in self.alerts if alert.status == "firing"))


def small_engine(streams: int) -> Engine:
    return Engine(settings=EngineSettings(max_streams=streams))


def rows(document: dict) -> list[int]:
    """Rows of `events_of` that a window has, by its times."""
    return [round((at * 1e9 - START) / MINUTE) for at in document["time"]]
