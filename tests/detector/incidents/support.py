"""Alerts, and a dispatcher that keeps what it is told."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from connectors.batches import Alert
from connectors.common.background import OngoingProblem
from connectors.json_records import IncidentRecord
from connectors.notify.dispatcher import Told
from detector.incidents.grouping import Member
from tests.faults.support import alert as an_alert

NS = 1_000_000_000
START = 1_790_000_000


def member(number: int, stream: str, at: float = 0.0, ended: float | None = None, **values: object) -> Member:
    found = {
        "id": f"a{number}", "stream": stream, "status": "firing" if ended is None else "resolved",
        "severity": "warning", "started_at": round((START + at) * NS),
        "ended_at": None if ended is None else round((START + ended) * NS), "score": 5.0, "channel": "forecast",
        "summary": "observed 9, expected 1",
    }  # fmt: skip
    return Member(**(found | values))


def alert(number: int, stream: str, at: float = 0.0, ended: float | None = None, **values: object) -> Alert:
    one = member(number, stream, at, ended)
    return replace(an_alert(number), **(one._asdict() | values))


class Kept:
    """What a dispatcher was told; like the outbox it takes each revision once."""

    def __init__(self) -> None:
        self.incidents: list[IncidentRecord] = []
        self.alerts: list[Alert] = []
        self.known: set[tuple[str, int]] = set()
        self.only: list[Collection[str] | None] = []  # who is told of each of `incidents`
        self.full, self.problems = False, dict[str, OngoingProblem]()

    def tell(self, told: Sequence[Told]) -> None:
        for record, streams, only in told:
            assert len(streams) == record.streams
            if (record.id, record.revision) not in self.known:
                self.known.add((record.id, record.revision))
                self.incidents.append(record)
                self.only.append(only)

    def write(self, alerts: Sequence[Alert], only: object = None) -> None:
        self.alerts += alerts

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
