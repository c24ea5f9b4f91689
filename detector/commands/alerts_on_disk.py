"""Alerts as `history.db` has them, in the API's words: what can be shown where no daemon runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detector.commands.client import NotFoundError
from detector.config.settings import Settings
from detector.history.columns import joined
from detector.history.notes import window_of
from detector.history.store import HistoryStore

_SHOWN = ("id", "stream", "severity", "started_at", "ended_at", "score", "channel", "summary")


def incidents_on_disk(directory: Path, state: str, limit: int) -> dict[str, Any]:
    """Return alerts, newest first, each as an incident of its own. Raises HistoryError."""
    with _opened(directory) as store:
        kept = store.alerts(limit + 1)
    alerts = [json.loads(one.record) for one in kept[:limit]]
    wanted = {"open": (False,), "resolved": (True,), "all": (False, True)}[state]
    shown = [
        {
            "id": alert["id"],
            "state": "resolved" if alert["ended_at"] else "open",
            "streams": 1,
            "alerts": [{name: alert.get(name) for name in _SHOWN} | {"verdict": None}],
            "acknowledged": None,
        }
        for alert in alerts
        if bool(alert["ended_at"]) in wanted
    ]
    return {"incidents": shown, "next": str(limit) if len(kept) > limit else None}


def alert_on_disk(settings: Settings, alert_id: str) -> dict[str, Any]:
    """Return an alert with its surroundings. Raises HistoryError, NotFoundError."""
    with _opened(settings.state.directory) as store:
        found = store.surroundings(alert_id)
    if found is None:
        raise NotFoundError(f"{store.path} has no alert {alert_id}: `longwatch alerts list` shows those it has")
    parts, gaps = found.decoded()
    kept = found.alert
    window = window_of(kept.stream, joined(parts), gaps=gaps, done=kept.done, changelog=settings.changelog)
    return {"alert": json.loads(kept.record), "incident": None, "verdict": None, "samples": window.document()}


@contextmanager
def _opened(directory: Path) -> Iterator[HistoryStore]:
    store = HistoryStore(directory, read_only=True)
    try:
        yield store
    finally:
        store.close()
