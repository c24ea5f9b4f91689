"""What `longwatch config` shows: the effective settings, their JSON Schema, or what was found with --check."""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import SecretStr

from connectors.common.section import Section
from detector.config.rules import RuleSettings, in_effect
from detector.config.settings import Settings
from detector.observability.log_format import printable

WINDOWS_SHOWN = 3  # of each calendar


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
    elif options.stream is not None:
        print(of_stream(settings, options.stream), end="")
    else:
        print(effective(settings), end="")


def of_stream(settings: Settings, stream: str) -> str:
    """Return which rule a stream gets and what holds for its alerts by it, as TOML."""
    from detector.scoring.rules import StreamRules  # noqa: PLC0415 - with numba
    from detector.service.engine_setup import alert_rules, stream_rules  # noqa: PLC0415 - likewise

    number = int(StreamRules(alert_rules(settings.alerting), stream_rules(settings)).numbers_of([stream])[0])
    rule = settings.rules[number - 1] if number else None
    held = settings.alerting if rule is None else in_effect(rule, settings.alerting)
    lines = [f"# stream {toml(stream)} gets " + (f"the rule {rule.name}" if rule else "no rule: [alerting] holds")]
    if rule is not None and (place := settings.origin(f"rules.{number - 1}")):
        lines[0] += f"  # {place}"
    for name, value in held:
        line = f"# {name} = not set" if value is None else f"{name} = {toml(value)}"
        by_rule = rule is not None and getattr(rule, name, None) is not None
        lines.append(f"{line}  # by the rule" if by_rule else line)
    if rule is not None:
        lines += [f"{name} = {toml(getattr(rule, name))}" for name in ("severity", "receivers", "quiet", "mute")]
        lines += _quiet_times(settings, rule)
    return "\n".join(lines) + "\n"


def _quiet_times(settings: Settings, rule: RuleSettings) -> list[str]:
    """Return the next windows in which a rule's streams are quiet, as comments."""
    lines = []
    for name in rule.quiet:
        of = settings.calendars[name]
        timezone = of.timezone or settings.decode.timezone
        windows = of.calendar(name, settings.decode.timezone).next(time.time_ns(), WINDOWS_SHOWN)
        for begin, end in zip(windows.begin.tolist(), windows.end.tolist(), strict=True):
            shown = (datetime.fromtimestamp(at // 10**9, ZoneInfo(timezone)).isoformat() for at in (begin, end))
            lines.append(f"# quiet from {' to '.join(shown)}  # calendars.{name}")
    return lines


def effective(settings: Settings) -> str:
    """Return the settings as TOML that can be read back; secrets are masked, what was set says where it came from."""
    lines = []
    sections = [(name, f"[{name}]", values) for name, values in settings if isinstance(values, Section)]
    sections += [(f"receivers.{name}", f"[receivers.{name}]", of) for name, of in settings.receivers.items()]
    sections += [(f"calendars.{name}", f"[calendars.{name}]", of) for name, of in settings.calendars.items()]
    sections += [(f"rules.{number}", "[[rules]]", rule) for number, rule in enumerate(settings.rules)]
    for section, header, values in sections:
        lines.append(header)
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
