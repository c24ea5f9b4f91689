"""How records are read, as settings, and the reasons for which one is rejected."""

from __future__ import annotations

import re
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from connectors.common.section import MAX_DAYS, MAX_SECONDS, Section

TEMPLATE_FIELD = re.compile(r"\{([^{}]*)\}")
DEFAULT_TEMPLATE = "{stream}"  # the only one that a record need not have the field of: its key, or its file, names it
REASONS = (
    "empty",  # no bytes: a tombstone
    "too_large",
    "not_utf8",
    "not_json",
    "too_deep",  # nested beyond what a parser's stack holds
    "not_an_object",
    "bad_row",  # a CSV row that its header does not fit
    "no_stream",
    "bad_name",  # empty, not text, or with characters that could forge a log line
    "name_too_long",
    "bad_timestamp",
    "no_value",
    "not_a_number",
    "bad_code",  # no text, no integer, or with characters that could forge a log line; or a number of that name beside
    "code_too_long",
    "too_many_features",
    "too_many_events",  # in one record, where `batch` is set
    "unsupported",
)


class DecodeSettings(Section):
    """How records are read; the defaults are longwatch's own JSON.

    Telegraf's JSON: stream = "{tags.host}/{name}", values = "fields", batch = "metrics".
    prometheus-kafka-adapter: stream = "{labels.instance}/{name}".
    """

    stream: str = DEFAULT_TEMPLATE
    """Stream name, made of fields, such as "{tags.host}/{name}". A record without one of them is rejected; with the
    default, its key or the name of its file is used instead."""
    timestamp: str = Field(default="timestamp", min_length=1)
    """Path of the event's time; dots lead into objects."""
    values: str = Field(default="values", min_length=1)
    """Path of the object of numbers."""
    value: str = Field(default="value", min_length=1)
    """Path of the one number, if there is no object of numbers."""
    code: str = Field(default="code", min_length=1)
    """Path of a categorical event's symbol; in a CSV file, the column that holds symbols."""
    batch: str = ""
    """Key of the list of events, if one record holds many; empty: a record is one event."""
    exclude_features: tuple[str, ...] = ()
    """Patterns of features to leave out, such as "uptime_*"."""
    max_record_bytes: int = Field(default=1_048_576, ge=64, le=1 << 30)
    """Larger records are rejected (Kafka's own limit: 1 MiB)."""
    max_features: int = Field(default=1_000, ge=1, le=100_000)
    """Events with more features are rejected."""
    max_age_days: float = Field(default=10_950, gt=0, le=MAX_DAYS)
    """Events older than this, compared with the record's own time, are rejected."""
    max_ahead_seconds: float = Field(default=86_400, ge=0, le=MAX_SECONDS)
    """Events further ahead of the record's own time are rejected."""

    timezone: str = "UTC"
    """Time zone whose clock the streams' days and weeks follow, such as "Europe/Berlin": what is usual at an hour is
    kept by it, so that no rhythm moves as clocks change. Times in records and results are UTC, whatever it is."""

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        return check_timezone(name)

    @field_validator("stream")
    @classmethod
    def _fields_in_braces(cls, template: str) -> str:
        fields = TEMPLATE_FIELD.findall(template)
        if not fields or not all(fields) or re.search(r"[{}]", TEMPLATE_FIELD.sub("", template)):
            raise ValueError(f'{template!r} names no field; write paths in braces, such as "{{tags.host}}/{{name}}"')
        return template


def check_timezone(name: str) -> str:
    """Return the name of a time zone; raises ValueError where this machine knows none of that name."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f'{name!r} is no time zone that this machine knows, such as "Europe/Berlin"') from error
    return name
