"""What `longwatch config` shows: the effective settings, their JSON Schema, or what was found with --check."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pydantic import SecretStr

from detector.config.settings import Settings
from detector.observability.log_format import printable


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Print what was asked for; exits 2 where --check finds something amiss."""
    if options.schema:
        print(json.dumps(Settings.model_json_schema(), indent=2))
    elif options.check:
        from detector.commands.check import check  # noqa: PLC0415 - with Kafka's client

        failed = False
        for finding in check(settings):
            print(printable(str(finding)), flush=True)  # each as it is found: an unreachable broker takes seconds
            failed |= bool(finding.problem)
        if failed:
            sys.exit(2)
    else:
        print(effective(settings), end="")


def effective(settings: Settings) -> str:
    """Return the settings as TOML that can be read back; secrets are masked, what was set says where it came from."""
    lines = []
    sections = [(name, values) for name, values in settings if not isinstance(values, dict)]
    sections += [(f"receivers.{name}", values) for name, values in settings.receivers.items()]
    for section, values in sections:
        lines.append(f"[{section}]")
        for name, value in values:
            if value is None:
                line = f"# {name} = not set"
            elif isinstance(value, SecretStr) and value.get_secret_value():
                line = f"# {name} = hidden"
            else:
                line = f"{name} = {toml(value)}"
            origin = settings.origin(f"{section}.{name}")
            lines.append(f"{line}  # {origin}" if origin else line)
        lines.append("")
    return "\n".join(lines)


def toml(value: Any) -> str:
    """Return a setting's value as TOML: what JSON makes of finite numbers, texts and lists, but for DEL."""
    return json.dumps(value, ensure_ascii=False, default=str).replace("\x7f", "\\u007f")
