"""Rules: what holds for the alerts of some streams, by the patterns of their names, instead of what [alerting] says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from pydantic import Field

from connectors.common.section import MAX_SECONDS, Section
from detector.config.sections import AlertingSettings

MAX_RULES = 200  # a stream's row has the number of its rule in one byte
SHARED = (  # what a rule may set instead of [alerting]
    "alerts_per_stream_per_week",
    "threshold",
    "direction",
    "min_deviation_absolute",
    "min_deviation_relative",
    "min_duration_seconds",
    "silence",
    "min_silence_seconds",
    "max_silence_seconds",
)
DEFAULT_RULE = "default"  # the name of what [alerting] says


class RuleSettings(Section):
    """A table of [[rules]]: for the streams that it matches and no rule above it; what is not set is [alerting]'s."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The rule's name, in alerts and in what `longwatch config` shows."""
    streams: tuple[str, ...] = Field(min_length=1)
    """Patterns of names of streams, such as "web-*/cpu"; the first rule that matches a stream holds for it."""
    alerts_per_stream_per_week: float | None = Field(None, gt=0, le=100_000)
    """As alerting.alerts_per_stream_per_week."""
    threshold: float | None = Field(None, gt=0, le=300)
    """As alerting.threshold: instead of the budgets."""
    direction: Literal["both", "above", "below"] | None = None
    """As alerting.direction."""
    min_deviation_absolute: float | None = Field(None, ge=0)
    """As alerting.min_deviation_absolute."""
    min_deviation_relative: float | None = Field(None, ge=0)
    """As alerting.min_deviation_relative."""
    min_duration_seconds: float | None = Field(None, ge=0, le=MAX_SECONDS)
    """As alerting.min_duration_seconds."""
    silence: bool | None = None
    """As alerting.silence: whether to tell that one of these streams has stopped."""
    min_silence_seconds: float | None = Field(None, gt=0, le=MAX_SECONDS)
    """As alerting.min_silence_seconds."""
    max_silence_seconds: float | None = Field(None, gt=0, le=MAX_SECONDS)
    """As alerting.max_silence_seconds."""
    severity: Literal["score", "warning", "critical"] = "score"
    """Of these streams' alerts: by their score, or always the same."""
    receivers: tuple[str, ...] = ()
    """Names of the receivers that are told; empty: those that take all."""
    quiet: tuple[str, ...] = ()
    """Names of calendars: by their own events' time, no alert of these streams begins in one of their windows."""
    mute: bool = False
    """Score these streams, and never alert on them."""


def check_rules(rules: Sequence[RuleSettings], receivers: Collection[str], calendars: Collection[str]) -> None:
    """Raise ValueError where names are given twice, or a receiver or calendar is named that there is not."""
    seen = {DEFAULT_RULE}
    for number, rule in enumerate(rules):
        if rule.name in seen:
            raise ValueError(f"rules.{number}.name {rule.name!r} is taken already: give each rule its own name")
        seen.add(rule.name)
        for field, section, known in (("receivers", "receivers", receivers), ("quiet", "calendars", calendars)):
            if unknown := sorted(set(getattr(rule, field)) - set(known)):
                raise ValueError(
                    f"rules.{number}.{field} names {unknown[0]!r}, and there is no section [{section}.{unknown[0]}]"
                )


def in_effect(rule: RuleSettings, alerting: AlertingSettings) -> AlertingSettings:
    """Return what holds for a rule's streams: what the rule sets, and else what [alerting] says.

    A rule that sets a budget does not have [alerting]'s fixed threshold, which would win over it.
    """
    given = {name: value for name in SHARED if (value := getattr(rule, name)) is not None}
    if "alerts_per_stream_per_week" in given:
        given.setdefault("threshold", None)
    return alerting.model_copy(update=given)
