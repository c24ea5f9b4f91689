"""docs/settings.md: every setting, grouped by who needs it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from detector.commands.config import toml
from detector.config.names import NAME, named_section, table_list
from detector.config.settings import Settings
from training.learn.settings import Learning

_HEAD = """# Settings

Every setting of longwatch, made from the code (`make references`; a test compares). `longwatch config` prints them with
the values in effect and checks them.

A setting's value comes from, each winning over those before it: its default; the file that `--config`, or the variable
`LONGWATCH_CONFIG`, names; the secrets directory, files named `longwatch_section__name`; the environment,
`LONGWATCH_SECTION__NAME`; the command line, `--set section.name=value`. Lists are written `["a", "b"]`, and outside the
file also `a,b`. A name that does not exist is an error. `[receivers.NAME]` is a section for each receiver, by any name
of small letters: `[receivers.pager]`, `LONGWATCH_RECEIVERS__PAGER__TYPE`; `[calendars.NAME]` is one for each calendar.
`[[rules]]` is a table for each rule, in their order, and outside the file a list of tables:
`LONGWATCH_RULES=[{name = "tests", streams = ["test-*"], mute = true}]`.

The secrets directory is `/run/secrets`, where Docker puts secrets, or what `--secrets` names: the file
`longwatch_http__password` holds `http.password`. Files that do not begin with `longwatch_` are left alone. A secret
can also be in any other file: its name with `_file` appended takes the path, as in
`LONGWATCH_HTTP__PASSWORD_FILE=/etc/longwatch/password`.
"""

# Who needs a setting, by section; those named in neither are for operators
EVERYBODY = {
    "source": "type paths",
    "kafka": "bootstrap_servers topics group_id scores_topic alerts_topic security_protocol sasl_mechanism"
    " sasl_username sasl_password ssl_cafile",
    "decode": "stream timestamp values value",
    "state": "directory",
    "alerting": "alerts_per_stream_per_week fleet_alerts_per_day",
    "receivers": "type url secret routing_key token channel",
    "http": "host port",
}
RARE = {
    "source": "speed max_poll_records",
    "kafka": "transaction_timeout_seconds delivery_timeout_seconds session_timeout_seconds max_poll_interval_seconds"
    " changelog_topic sasl_oauth_scope sasl_oauth_ssl_cafile sasl_oauth_extensions ssl_check_hostname",
    "decode": "max_record_bytes max_features max_age_days max_ahead_seconds",
    "model": "cell horizons",
    "training": "learning_rate interval_seconds budget_seconds",
    "processing": "stalled_after_seconds",
    "receivers": "timeout_seconds retry_base_seconds max_age_seconds",
}
_GROUPS = {
    "What everybody sets": "Where events come from, how they look, and where alerts go.",
    "What operators adjust": "Which alerts are wanted, what else is written, logins, certificates, guarantees, memory.",
    "What is rarely changed": "Limits, time-outs and the network itself: the defaults fit nearly everywhere.",
}
_TRAIN = """## Options of `longwatch train`

How a network learns: `--learning NAME=VALUE`, may be repeated. `learning_rate` is `training.learning_rate` unless given
here; the daemon's retraining uses the other defaults.
"""


def reference() -> str:
    """Return docs/settings.md."""
    parts = [_HEAD]
    for heading, text in _GROUPS.items():
        parts.append(f"\n## {heading}\n\n{text}\n")
        for section, setting in Settings.model_fields.items():
            named, of_list = named_section(setting.annotation), table_list(setting.annotation)
            model = named or of_list or cast(type[BaseModel], setting.annotation)
            fields = {n: field for n, field in model.model_fields.items() if _group(section, n) == heading}
            if fields:
                title = f"[[{section}]]" if of_list else f"[{section}{f'.{NAME}' if named else ''}]"
                parts.append(f"\n### {title}\n\n{_table(fields)}")
    parts.append(f"\n{_TRAIN}\n{_table(Learning.model_fields)}")
    return "".join(parts)


def _group(section: str, name: str) -> str:
    everybody, operators, rare = _GROUPS
    if name in EVERYBODY.get(section, "").split():
        return everybody
    return rare if name in RARE.get(section, "").split() else operators


def _table(fields: Mapping[str, FieldInfo]) -> str:
    lines = ["| name | values | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        shown = "required" if field.is_required() else "not set" if default is None else f"`{toml(default)}`"
        cells = (f"`{name}`", _values(field), shown, " ".join((field.description or "").split()).replace("<", "&lt;"))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _values(field: FieldInfo) -> str:
    """Return the values that a setting takes: "text", "number, > 0, <= 60", ..."""
    text = _kind(field.annotation)
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {bound:,}"
        for item in field.metadata
        for at, sign in signs.items()
        if (bound := getattr(item, at, None)) is not None
    ]
    return ", ".join([text, *bounds])


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (list, tuple):
        return "list of " + _kind(get_args(annotation)[0])
    kinds: dict[Any, str] = {bool: "true, false", int: "whole number", float: "number", str: "text"}
    kinds |= {Path: "path", SecretStr: "secret", datetime: "date and time"}
    if annotation in kinds:
        return kinds[annotation]
    return " or ".join(_kind(part) for part in get_args(annotation) if part is not type(None)) or str(annotation)
