"""`longwatch reload`: have the running daemon read its settings again, and say what came of it."""

from __future__ import annotations

import argparse

from detector.commands.client import Client
from detector.config.settings import Settings


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Print what has changed, and what needs a restart. Raises ClientError where the daemon refuses its file."""
    done = Client(settings, options.token_file).post("/reload", {})
    print("changed: " + ", ".join(done["applied"]) if done["applied"] else "nothing changed")
    if done["needs_restart"]:
        print("needs a restart: " + ", ".join(done["needs_restart"]))
