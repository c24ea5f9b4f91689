"""`longwatch alerts`: what people ask of alerts, and whether they would be told."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from connectors.notify.trial import try_receivers
from detector.commands.client import Client, ClientError, NoDaemonError
from detector.commands.shown import alert_lines, show, table, window_lines
from detector.config.settings import Settings
from detector.errors import UsageError
from detector.observability.log_format import printable


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Do what `options.action` says."""
    {"test": _test, "list": _list, "show": _show}[options.action](settings, options)


def _list(settings: Settings, options: argparse.Namespace) -> None:
    """Print the alerts of the newest incidents, or those on disk where no daemon runs; a line each."""
    try:
        found = Client(settings, options.token_file).get("/incidents", state=options.state, limit=options.limit)
        alerts = [alert for incident in found["incidents"] for alert in incident["alerts"]]
    except NoDaemonError as error:
        _say_on_disk(error)
        alerts = _alerts_on_disk(settings, options)
    rows = [
        (one["id"], one["severity"], one["started_at"], "ended" if one["ended_at"] else "firing",
         f"{one['stream']}: {one.get('summary', '')}")
        for one in alerts
    ]  # fmt: skip
    show(table(("ALERT", "SEVERITY", "SINCE", "STATE", "STREAM"), rows) if rows else ["There is no alert."])


def _show(settings: Settings, options: argparse.Namespace) -> None:
    """Print an alert with its surroundings, from the daemon or, where none runs, from the disk."""
    try:
        found = Client(settings, options.token_file).get(f"/alerts/{_in_path(options.id)}")
    except NoDaemonError as error:
        _say_on_disk(error)
        found = _alert_on_disk(settings, options.id)
    alert, window = found["alert"], found["samples"]
    show(alert_lines(alert, found["incident"], found["verdict"]))
    if window is None:
        show(["What its stream did around it is not kept (any more): history.days, history.max_bytes."])
    else:
        show(["", *window_lines(window, alert.get("feature", ""))])
    if options.plot is not None:
        if window is None:
            raise ClientError(f"there is nothing to draw in {options.plot}")
        from detector.commands.outputs import require_matplotlib  # noqa: PLC0415 - a second, where it is asked for

        require_matplotlib()
        from detector.commands.window_plot import plot_window  # noqa: PLC0415 - likewise

        plot_window(window, f"{alert['stream']}: {alert.get('summary', '')}", options.plot)
        show([f"drawn: {options.plot}"])


def _in_path(name: str) -> str:
    if not (name.isascii() and name.isalnum()):
        raise UsageError(f"{printable(name)} is no alert's id: `longwatch alerts list` has them")
    return name


def _say_on_disk(error: Exception) -> None:
    print(printable(f"longwatch: {error} This is what is on disk."), file=sys.stderr)


def _alerts_on_disk(settings: Settings, options: argparse.Namespace) -> list[Any]:
    from detector.history.store import HistoryStore  # noqa: PLC0415 - with numpy

    store = HistoryStore(settings.state.directory, read_only=True)
    try:
        alerts = [json.loads(kept.record) for kept in store.alerts(options.limit)]
    finally:
        store.close()
    wanted = {"open": (False,), "resolved": (True,), "all": (False, True)}[options.state]
    return [alert for alert in alerts if bool(alert["ended_at"]) in wanted]


def _alert_on_disk(settings: Settings, alert_id: str) -> dict[str, Any]:
    from detector.history.columns import joined  # noqa: PLC0415 - with numpy
    from detector.history.history import window_of  # noqa: PLC0415 - likewise
    from detector.history.store import HistoryStore  # noqa: PLC0415 - likewise

    store = HistoryStore(settings.state.directory, read_only=True)
    try:
        found = store.surroundings(alert_id)
    finally:
        store.close()
    if found is None:
        raise ClientError(f"{store.path} has no alert {alert_id}: `longwatch alerts list` shows those it has")
    parts, gaps = found.decoded()
    kept = found.alert
    window = window_of(kept.stream, joined(parts), gaps=gaps, done=kept.done, changelog=settings.changelog)
    return {"alert": json.loads(kept.record), "incident": None, "verdict": None, "samples": window.document()}


def _test(settings: Settings, options: argparse.Namespace) -> None:
    """Send a test alert to each receiver, and print a line for each; exits 1 where one does not take it."""
    if not settings.receivers:
        raise UsageError("no receiver is set: write a section [receivers.NAME] (docs/how-to/receivers.md)")
    failed = False
    try:
        for tried in try_receivers(settings.receivers, options.receiver, settings.http.external_url):
            said = tried.problem or "took a test alert and its end"
            word = "failed" if tried.problem else "ok"
            print(printable(f"{word:6}  {tried.receiver}, {tried.place}: {said}"), flush=True)
            failed |= bool(tried.problem)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if failed:
        sys.exit(1)
