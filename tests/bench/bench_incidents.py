"""Notifications for each true incident, where a machine's features are fed as streams of one feature each.

    python -m tests.bench.bench_incidents [smd] [asd] [--machines 6] [--window 300]

Each machine of a set is a fleet of its own, scored by an engine with the default settings; what its alerts are grouped
to is held against the labelled spans of its test part. A notification is an incident that opens. It belongs to a span
if it lasts into it, from one window before to one window behind.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from connectors.batches import Alert, EventBatch
from detector import Engine, EngineSettings
from detector.config.sections import IncidentsSettings
from detector.incidents.grouping import Grouping, Incident, Member
from tests.bench.data import DataMissing, LabelledSeries, data_folder, labelled_series

ROWS = 200  # of a machine in one batch
NS = 1_000_000_000


class Found(NamedTuple):
    """What came of a machine, or of several."""

    spans: int  # labelled
    met: int  # of them, by one incident or more
    notifications: int  # within spans
    alerts: int  # of single streams, within spans
    outside: int  # incidents outside of all spans
    days: float  # that are not labelled

    @staticmethod
    def sum(found: Sequence[Found]) -> Found:
        return Found(*(sum(values) for values in zip(*found, strict=True)))

    def line(self, name: str) -> str:
        """Return a row of the table."""
        each = self.notifications / self.met if self.met else float("nan")
        alone = self.alerts / self.met if self.met else float("nan")
        return (
            f"{name:16} {self.spans:6} {self.met:6} {each:14.2f} {alone:12.2f} {self.outside:10}"
            f" {self.outside / max(self.days, 1e-9):12.2f}"
        )


def alerts_of(machine: LabelledSeries) -> Iterator[Alert]:
    """Score a machine's features as streams of their own, and yield their alerts as they come."""
    features = machine.values.shape[1]
    streams = [f"{machine.stream}/{feature}" for feature in range(features)]
    engine = Engine(settings=EngineSettings(threads=1))
    try:
        for first in range(0, len(machine.times), ROWS):
            values = np.asarray(machine.values[first : first + ROWS], np.float64)
            rows, stream = np.nonzero(np.isfinite(values))
            time = machine.times[first : first + ROWS][rows]
            batch = EventBatch.of_table(streams, ["value"], stream, time, values[rows, stream][:, None])
            yield from sorted(engine.step(batch).alerts, key=lambda alert: alert.ended_at or alert.started_at)
    finally:
        engine.close()


def grouped(alerts: Iterator[Alert], window: float) -> tuple[list[Incident], list[Alert]]:
    """Return the incidents, and the alerts that fired."""
    grouping, incidents, fired = Grouping(window), list[Incident](), dict[str, Alert]()
    of: dict[str, Incident] = {}
    for alert in alerts:
        member = Member(*(getattr(alert, name) for name in Member._fields))
        grouping.pass_time(alert.ended_at or alert.started_at)
        if alert.id in of:
            of[alert.id].resolve(member)
        else:
            joined = grouping.joined(member)
            if joined is None:
                joined = grouping.begin(member)
                incidents.append(joined)
            else:
                joined.take(member)
            of[alert.id], fired[alert.id] = joined, alert
        for over in grouping.over():
            del grouping.open[over.id]
    return incidents, list(fired.values())


def judge(machine: LabelledSeries, window: float) -> Found:
    """Score and judge one machine."""
    incidents, fired = grouped(alerts_of(machine), window)
    label = np.zeros(len(machine.times), np.bool_)
    label[machine.judged_from :] = machine.label
    edges = np.flatnonzero(np.diff(np.concatenate(([0], label.astype(np.int8), [0]))))
    first, last = machine.times[edges[::2]], machine.times[edges[1::2] - 1]
    margin = round(window * NS)
    since = machine.times[machine.judged_from] if machine.judged_from < len(machine.times) else np.int64(0)

    def within(began: int, ended: int) -> np.ndarray:
        return (began <= last + margin) & (ended >= first - margin)

    met, notifications, outside = np.zeros(len(first), np.bool_), 0, 0
    for incident in incidents:
        if (ends := max(incident.ended_at, incident.last_start)) < since:
            continue
        hit = within(incident.started_at, ends)
        met |= hit
        notifications += bool(hit.any())
        outside += not hit.any()
    alerts = sum(bool(within(alert.started_at, alert.started_at).any()) for alert in fired)
    step = float(np.median(np.diff(machine.times))) / NS
    return Found(
        len(first), int(met.sum()), notifications, alerts, outside, float((~machine.label).sum()) * step / 86_400
    )


def main() -> None:
    """Print a table for each set."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_incidents")
    parser.add_argument("sets", nargs="*", metavar="SET", help="smd, asd (default: both)")
    parser.add_argument("--machines", type=int, default=0, help="only so many of each set; 0: all")
    parser.add_argument("--window", type=float, default=IncidentsSettings.model_validate({}).window_seconds)
    options = parser.parse_args()
    for name in options.sets or ("smd", "asd"):
        print(
            f"{'':16} {'spans':>6} {'met':>6} {'notifications':>14} {'alerts each':>12} {'outside':>10} {'a day':>12}"
        )
        try:
            machines = list(labelled_series(data_folder(name)))
        except DataMissing as missing:
            print(missing)
            continue
        found = []
        for machine in machines[: options.machines or None]:
            found.append(judge(machine, options.window))
            print(found[-1].line(machine.stream), flush=True)
        print(Found.sum(found).line(name), flush=True)


if __name__ == "__main__":
    main()
