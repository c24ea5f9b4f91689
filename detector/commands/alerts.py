"""`longwatch alerts`: what people ask of alerts and say of them, and whether they would be told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from connectors.notify.trial import try_receivers
from detector.commands.client import Client, ClientError, NoDaemonError, NotFoundError, signature
from detector.commands.shown import alert_lines, as_json, show, show_done, table, window_lines
from detector.config.settings import Settings
from detector.errors import UsageError
from detector.observability.log_format import printable


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Do what `options.action` says."""
    said: dict[str, Callable[[Settings, argparse.Namespace], None]] = {
        "test": _test, "list": _list, "show": _show, "acknowledge": _acknowledge, "false": _judge, "right": _judge
    }  # fmt: skip
    said[options.action](settings, options)


def _list(settings: Settings, options: argparse.Namespace) -> None:
    """Print the newest incidents' alerts, or those on disk where no daemon runs; a line each."""
    try:
        found = Client(settings, options.token_file).get("/incidents", state=options.state, limit=options.limit)
    except NoDaemonError as error:
        from detector.commands.alerts_on_disk import incidents_on_disk  # noqa: PLC0415 - with numpy

        _say_on_disk(error)
        found = incidents_on_disk(settings.state.directory, options.state, options.limit)
    if options.json:
        as_json(found)
        return
    heads, rows = list[str](), list[tuple[str, ...]]()
    for incident in found["incidents"]:
        heads += [_incident_line(incident), *([""] * (len(incident["alerts"]) - 1))]
        rows += _alert_rows(incident)
    if not rows:
        show(["There is no alert." if options.state == "all" else f"There is no alert of this state: {options.state}."])
        return
    first, *lines = table(("ALERT", "SEVERITY", "SINCE", "STATE", "STREAM"), rows)
    show([first, *(text for both in zip(heads, lines, strict=True) for text in both if text)])
    if found["next"]:
        show([f"There are more: --limit N has the last N incidents, 200 at most (now {options.limit})."])


def _incident_line(incident: dict[str, Any]) -> str:
    """Return what is said of an incident before its alerts; nothing where it is one alert's."""
    alerts, streams = incident["alerts"], incident["streams"]
    if len(alerts) < 2 and streams < 2:
        return ""
    until = f" to {incident['ended_at']}" if incident["state"] == "resolved" else ", open"
    which = f"its worst {len(alerts)} alerts" if streams > len(alerts) else f"{len(alerts)} alerts"
    return f"incident {incident['id']}, {incident['started_at']}{until}: {streams} streams, {which}:"


def _alert_rows(incident: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    taken = incident["acknowledged"]
    for alert in incident["alerts"]:
        words = ["ended" if alert["ended_at"] else "firing"]
        words += [f"called {alert['verdict']}"] if alert["verdict"] else []
        words += [f"taken by {taken['by'] or 'somebody'}"] if taken else []
        since, severity = alert["started_at"], alert["severity"]
        yield alert["id"], severity, since, ", ".join(words), f"{alert['stream']}: {alert['summary']}"


def _show(settings: Settings, options: argparse.Namespace) -> None:
    """Print an alert with its surroundings, from the daemon or, where none runs, from the disk."""
    if options.plot is not None:
        from detector.commands.outputs import require_matplotlib  # noqa: PLC0415 - a second, where it is asked for

        require_matplotlib()
    try:
        found = Client(settings, options.token_file).get(f"/alerts/{_in_path(options.id)}")
    except NoDaemonError as error:
        from detector.commands.alerts_on_disk import alert_on_disk  # noqa: PLC0415 - with numpy

        _say_on_disk(error)
        found = alert_on_disk(settings, options.id)
    alert, window = found["alert"], found["samples"]
    if options.json:
        as_json(found)
    else:
        show(alert_lines(alert, found["incident"], found["verdict"]))
        if window is None:
            show(["What its stream did around it is not kept (any more): history.days, history.max_bytes."])
        else:
            show(["", *window_lines(window, alert.get("feature", ""))])
    if options.plot is not None:
        _draw(alert, window, options.plot)


def _draw(alert: dict[str, Any], window: dict[str, Any] | None, path: Path) -> None:
    if window is None or not window["time"]:
        raise ClientError(f"there is nothing to draw in {path}: no event around this alert is kept")
    from detector.commands.window_plot import plot_window  # noqa: PLC0415 - matplotlib takes a second

    plot_window(window, f"{alert['stream']}: {alert.get('summary', '')}", path)
    print(printable(f"longwatch: drawn in {path}"), file=sys.stderr)


def _acknowledge(settings: Settings, options: argparse.Namespace) -> None:
    """Acknowledge an incident, named by its own id or by that of one of its alerts."""
    client, incident = Client(settings, options.token_file), _in_path(options.id)
    try:
        done = client.post(f"/incidents/{incident}/acknowledge", signature(options))
    except NotFoundError:
        incident = client.get(f"/alerts/{incident}")["incident"]
        done = client.post(f"/incidents/{incident}/acknowledge", signature(options))
    show_done(done, f"incident {incident} is acknowledged", as_document=options.json)


def _judge(settings: Settings, options: argparse.Namespace) -> None:
    client, verdict = Client(settings, options.token_file), options.action
    body = {"verdict": verdict, **signature(options)}
    done = client.post(f"/alerts/{_in_path(options.id)}/verdict", body)
    learnt = {
        "false": "its span counts as normal, and its stream's threshold has risen a little",
        "right": "its span stays out of what is learnt, and its stream's threshold has sunk a little",
    }[verdict]
    show_done(done, f"alert {options.id} is called {verdict}: {learnt}", as_document=options.json)


def _in_path(name: str) -> str:
    if not (name.isascii() and name.isalnum()):
        raise UsageError(f"{printable(name)!r:.100} is no id: `longwatch alerts list` has them")
    return name


def _say_on_disk(error: Exception) -> None:
    print(printable(f"longwatch: {error} This is what is on disk."), file=sys.stderr)


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
