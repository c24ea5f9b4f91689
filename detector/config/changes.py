"""What changes as settings are read again while the daemon runs: which of it may hold at once, and which may not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel

from connectors.common.section import Section
from detector.config.rules import check_rules
from detector.config.settings import Settings

LIVE = "rules", "alerting", "calendars", "receivers", "training", "logging"  # what changes without a restart


class Changes(NamedTuple):
    """Names of settings that have changed."""

    applied: list[str]  # sections
    needs_restart: list[str]  # "section.name"


def merge(old: Settings, read: Settings) -> tuple[Settings, Changes]:
    """Return what holds once `read` is used in the place of `old`, and what has changed.

    Raises ValueError where a rule names a receiver that needs a restart to be there.
    """
    # with exactly_once a consumer of the alerts' topic feeds receivers, and is there only where they are
    held = {"receivers"} if old.exactly_once and bool(old.receivers) != bool(read.receivers) else set[str]()
    new = old.model_copy(update={name: getattr(read, name) for name in LIVE if name not in held})
    check_rules(new.rules, new.receivers, new.calendars)
    applied = [name for name in LIVE if getattr(new, name) != getattr(old, name)]
    return new, Changes(applied, sorted(_differences(new, read)))


def _differences(one: BaseModel, two: BaseModel, prefix: str = "") -> Iterator[str]:
    """Yield the names of settings that differ; of a receiver that only one has, its section's."""
    for name, value in one:
        other = getattr(two, name)
        if isinstance(value, Section):
            yield from _differences(value, other, f"{prefix}{name}.")
        elif isinstance(value, dict) and isinstance(other, dict):
            differ = (key for key in value.keys() | other.keys() if value.get(key) != other.get(key))
            yield from (f"{prefix}{name}.{key}" for key in differ)
        elif value != other:
            yield f"{prefix}{name}"
