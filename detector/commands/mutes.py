"""`longwatch mutes`: which streams are not to alert, and until when."""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from detector.commands.client import Client, ClientError, NotFoundError, signature
from detector.commands.shown import as_json, show, show_done, table
from detector.config.settings import Settings
from detector.errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}  # s
MOST = timedelta(days=36_500)


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Do what `options.action` says, of the running daemon."""
    until = end_of(options, datetime.now(UTC)) if options.action == "add" else None
    client = Client(settings, options.token_file)
    if options.action == "list":
        _list(client, options)
    elif options.action == "add":
        _add(client, options, until)
    else:
        _remove(client, options)


def end_of(options: argparse.Namespace, now: datetime) -> str | None:
    """Return when a mute ends, RFC 3339 in UTC; None: never. Raises UsageError."""
    try:
        if options.lasting is not None:
            found = re.fullmatch(r"([0-9]{1,9})([smhdw])", options.lasting)
            if found is None or not (lasting := timedelta(seconds=int(found[1]) * _UNITS[found[2]])) or lasting > MOST:
                raise UsageError(f"--for {options.lasting}: expected a number and s, m, h, d or w, such as 30m, 2h, 7d")
            end = now + lasting
        elif options.until is not None:
            end = datetime.fromisoformat(options.until).astimezone(UTC)  # without a zone: the machine's
        else:
            return None
    except (ValueError, OverflowError):
        raise UsageError(f"--until {options.until}: expected a time such as 2026-12-24T18:00 or 2026-12-24") from None
    return end.isoformat(timespec="seconds").replace("+00:00", "Z")


def _list(client: Client, options: argparse.Namespace) -> None:
    found = client.get("/mutes")
    if options.json:
        as_json(found)
        return
    rows = [
        (str(one["id"]), one["pattern"], _end(one), one["author"] or "somebody", one["reason"])
        for one in found["mutes"]
    ]
    show(table(("MUTE", "PATTERN", "HOLDS", "BY", "WHY"), rows) if rows else ["No mute is in force."])


def _add(client: Client, options: argparse.Namespace, until: str | None) -> None:
    """Mute, and see whether it holds: it does not where its end is older than the streams' newest event."""
    done = client.post("/mutes", {"pattern": options.pattern, "until": until, **signature(options)})
    made = next((one for one in client.get("/mutes")["mutes"] if one["pattern"] == options.pattern), None)
    if made is None:
        raise ClientError(f"{options.pattern} is not muted: by the events' own time {until} is over already")
    show_done(done, f"mute {made['id']}: {made['pattern']} alerts no more {_end(made)}", as_document=options.json)


def _remove(client: Client, options: argparse.Namespace) -> None:
    mutes = client.get("/mutes")["mutes"]
    found = [one for one in mutes if str(one["id"]) == options.mute] or [
        one for one in mutes if one["pattern"] == options.mute
    ]
    if not found:
        raise NotFoundError(f"there is no mute {options.mute!r:.100}: `longwatch mutes list` has those in force")
    done = client.delete(f"/mutes/{found[0]['id']}", **signature(options))
    show_done(done, f"the mute of {found[0]['pattern']} has ended", as_document=options.json)


def _end(mute: dict[str, Any]) -> str:
    return f"until {mute['until']}" if mute["until"] else "until it is removed"
