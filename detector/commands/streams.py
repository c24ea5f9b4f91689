"""`longwatch streams`: streams by how anomalous they are, and one as it is now."""

from __future__ import annotations

import argparse
from typing import Any

from detector.commands.client import Client
from detector.commands.shown import show, table, window_lines
from detector.config.settings import Settings

EVENTS = 300  # of the chart


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Do what `options.action` says, of the running daemon."""
    client = Client(settings, options.token_file)
    {"list": _list, "show": _show}[options.action](client, options)


def _list(client: Client, options: argparse.Namespace) -> None:
    """Print streams, a line each."""
    found = client.get("/streams", q=options.search, sort=options.sort, limit=options.limit)
    rows = [
        (_number(one["score"]), _number(one["threshold"]), _state(one), one["last_event_at"] or "", one["name"])
        for one in found["streams"]
    ]
    show(table(("SCORE", "THRESHOLD", "STATE", "LAST EVENT", "STREAM"), rows) if rows else ["There is no such stream."])
    if found["total"] > len(rows):
        show([f"{len(rows)} of {found['total']:,}"])
    if found["note"]:
        show([found["note"]])


def _show(client: Client, options: argparse.Namespace) -> None:
    """Print what is known of a stream, and a chart of each of its first features."""
    one = client.get("/stream", name=options.name)
    window = client.get("/stream/window", name=options.name, events=EVENTS)
    said = {
        "state": _state(one), "last event": one["last_event_at"], "events": one["events"],
        "interval": None if one["interval_seconds"] is None else f"{one['interval_seconds']:.3g} s",
        "score": _number(one["score"]), "threshold": _number(one["threshold"]), "rule": one["rule"],
    }  # fmt: skip
    show([one["name"], *(f"{name}: {value}" for name, value in said.items() if value not in {None, ""})])
    wanted = [options.feature] if options.feature else window["features"][:1]
    for feature in wanted:
        show(["", *window_lines(window, feature)])
    if others := [name for name in window["features"] if name not in wanted]:
        show([f"also (--feature NAME): {', '.join(others[:20])}"])


def _state(one: dict[str, Any]) -> str:
    words = {"firing": one["firing"], "muted": one["muted"], "warming": one["warming"]}
    return ", ".join(word for word, holds in words.items() if holds) or "usual"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
