"""`longwatch streams`: streams by how anomalous they are, one as it is now, and to let one begin anew."""

from __future__ import annotations

import argparse
from typing import Any

from detector.commands.client import Client, ClientError, signature
from detector.commands.shown import as_json, show, show_done, table, window_lines
from detector.config.settings import Settings

EVENTS = 300  # of the chart


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Do what `options.action` says, of the running daemon."""
    client = Client(settings, options.token_file)
    {"list": _list, "show": _show, "reset": _reset}[options.action](client, options)


def _list(client: Client, options: argparse.Namespace) -> None:
    """Print streams, a line each."""
    found = client.get("/streams", q=options.search, sort=options.sort, limit=options.limit)
    if options.json:
        as_json(found)
        return
    rows = [
        (_number(one["score"]), _number(one["threshold"]), _state(one), one["last_event_at"] or "", one["name"])
        for one in found["streams"]
    ]
    show(table(("SCORE", "THRESHOLD", "STATE", "LAST EVENT", "STREAM"), rows) if rows else ["There is no such stream."])
    if found["total"] > len(rows):
        show([f"These are {len(rows)} of {found['total']:,}: --search TEXT and --limit N show others."])
    if found["note"]:
        show([found["note"]])


def _show(client: Client, options: argparse.Namespace) -> None:
    """Print what is known of a stream, and a chart of one of its features."""
    one = client.get("/stream", name=options.name)
    window = client.get("/stream/window", name=options.name, events=EVENTS)
    features = one["feature_names"]
    if options.feature is not None and options.feature not in features:
        raise ClientError(f"{options.name} has no feature {options.feature!r:.100}; it has {', '.join(features[:20])}")
    if options.json:
        as_json({"stream": one, "window": window})
        return
    said = {
        "state": _state(one), "last event": one["last_event_at"], "events": one["events"],
        "usual gap": None if one["interval_seconds"] is None else f"{one['interval_seconds']:.3g} s",
        "score": _number(one["score"]), "threshold": _number(one["threshold"]), "rule": one["rule"],
        "alert": one["firing"],
    }  # fmt: skip
    show([one["name"], *(f"{name}: {value}" for name, value in said.items() if value not in {None, ""})])
    feature = options.feature or next(iter(features), "")
    show(["", *window_lines(window, feature)])
    if others := [name for name in features if name != feature]:
        more = f" and {len(others) - 20:,} more" if len(others) > 20 else ""
        show([f"other features, for --feature: {', '.join(others[:20])}{more}"])


def _reset(client: Client, options: argparse.Namespace) -> None:
    done = client.post("/stream/reset", signature(options), name=options.name)
    show_done(done, f"{options.name} is reset: it begins anew with its next event", as_document=options.json)


def _state(one: dict[str, Any]) -> str:
    words = {"firing": one["firing"], "muted": one["muted"], "warming": one["warming"]}
    return ", ".join(word for word, holds in words.items() if holds) or ("usual" if one["score"] is not None else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
