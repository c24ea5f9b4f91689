"""`longwatch alerts`: what people ask of alerts, and whether they would be told."""

from __future__ import annotations

import argparse
import sys

from connectors.notify.trial import try_receivers
from detector.config.settings import Settings
from detector.errors import UsageError
from detector.observability.log_format import printable


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Do what `options.action` says."""
    {"test": _test}[options.action](settings, options)


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
