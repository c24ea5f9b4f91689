"""All settings, by section, and what must hold between sections.

`load_settings` reads them, in rising order, from: the defaults, longwatch.toml, the secrets directory, the environment
(LONGWATCH_SECTION__NAME) and `--set section.name=value`. docs/settings.md is made from these models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from connectors.common.section import Section, check_names
from connectors.decode.settings import DecodeSettings
from connectors.http_server.settings import HttpSettings
from connectors.kafka.settings import KafkaSettings, topic_problem
from connectors.notify.settings import MAX_RECEIVERS, ReceiverSettings
from detector.config import sections
from detector.config.calendars import MAX_CALENDARS, CalendarSettings
from detector.config.rules import MAX_RULES, RuleSettings, check_rules
from detector.config.sources import (
    Found,
    Layer,
    SettingsError,
    environment_variables,
    explain,
    secrets_directory,
    toml_file,
)

__all__ = ["Settings", "SettingsError", "load_settings"]


def _section(model: type[BaseModel]) -> Any:
    return Field(default_factory=lambda: model.model_validate({}))


class Settings(BaseSettings):
    """Everything that can be set. Made by itself it reads nothing: `load_settings` does."""

    model_config = cast(SettingsConfigDict, Section.model_config)

    def __init__(self, *sources: PydanticBaseSettingsSource, **values: Any) -> None:
        """Take values by name, and what sources hold: each wins over those after it."""
        super().__init__(_build_sources=((InitSettingsSource(type(self), values), *sources), values))

    source: sections.SourceSettings = _section(sections.SourceSettings)
    kafka: KafkaSettings = _section(KafkaSettings)
    decode: DecodeSettings = _section(DecodeSettings)
    model: sections.ModelSettings = _section(sections.ModelSettings)
    training: sections.TrainingSettings = _section(sections.TrainingSettings)
    state: sections.StateSettings = _section(sections.StateSettings)
    processing: sections.ProcessingSettings = _section(sections.ProcessingSettings)
    alerting: sections.AlertingSettings = _section(sections.AlertingSettings)
    rules: tuple[RuleSettings, ...] = Field((), max_length=MAX_RULES)
    """What holds for some streams instead of [alerting]: a table [[rules]] each; the first that matches holds."""
    incidents: sections.IncidentsSettings = _section(sections.IncidentsSettings)
    history: sections.HistorySettings = _section(sections.HistorySettings)
    output: sections.OutputSettings = _section(sections.OutputSettings)
    calendars: dict[str, CalendarSettings] = Field(default_factory=dict)
    """Windows of time that come again, as rules' quiet times: a section [calendars.NAME] each."""
    receivers: dict[str, ReceiverSettings] = Field(default_factory=dict)
    """Where incidents are told: a section [receivers.NAME] each."""
    http: HttpSettings = _section(HttpSettings)
    compute: sections.ComputeSettings = _section(sections.ComputeSettings)
    logging: sections.LoggingSettings = _section(sections.LoggingSettings)

    @field_validator("receivers")
    @classmethod
    def _receivers_are_named(cls, receivers: dict[str, ReceiverSettings]) -> dict[str, ReceiverSettings]:
        check_names("receivers", receivers, MAX_RECEIVERS)
        return receivers

    @field_validator("calendars")
    @classmethod
    def _calendars_are_named(cls, calendars: dict[str, CalendarSettings]) -> dict[str, CalendarSettings]:
        check_names("calendars", calendars, MAX_CALENDARS)
        return calendars

    @model_validator(mode="after")
    def _rules_fit(self) -> Settings:
        check_rules(self.rules, self.receivers, self.calendars)
        return self

    @model_validator(mode="after")
    def _exactly_once_is_possible(self) -> Settings:
        if self.exactly_once and self.source.type == "file":
            raise ValueError(
                'processing.guarantee is "exactly_once" and source.type is "file": leave it at "at_least_once", files'
                " are cut back to the last checkpoint after a crash, so that each event is in them once"
            )
        files = ("scores_file", "alerts_file", "dead_letter_file")
        if self.changelog and (named := [name for name in files if getattr(self.output, name)]):
            why = "state.changelog is true" if not self.exactly_once else 'processing.guarantee is "exactly_once"'
            raise ValueError(
                f"{why} and output.{named[0]} is set: a file has no part in Kafka's transactions and could lose lines"
                " that a commit covers; write to topics"
            )
        if self.exactly_once and self.state.changelog is False:
            raise ValueError(
                'processing.guarantee is "exactly_once" and state.changelog is false: scores and states must be'
                " committed together; leave state.changelog out"
            )
        if self.exactly_once and self.receivers and not self.kafka.alerts_topic:
            raise ValueError(
                'processing.guarantee is "exactly_once" and kafka.alerts_topic is empty: receivers are fed from there'
            )
        if self.state.changelog and self.source.type == "file":
            raise ValueError('state.changelog is true and source.type is "file": a changelog is a topic of Kafka')
        topics = self.kafka.topics if self.changelog and not self.kafka.topic_pattern else []
        for changelog in map(self.kafka.changelog_of, topics):
            if problem := topic_problem(changelog):
                raise ValueError(
                    f"kafka.changelog_topic {self.kafka.changelog_topic!r} makes {changelog!r:.60}, which is {problem}"
                )
        if self.state.standby and not self.changelog:
            raise ValueError("state.standby is true, but there is no changelog to follow: set state.changelog = true")
        if self.changelog and self.kafka.transaction_timeout_seconds <= self.state.checkpoint_interval_seconds:
            raise ValueError(
                f"kafka.transaction_timeout_seconds is {self.kafka.transaction_timeout_seconds:g}, expected more than"
                f" state.checkpoint_interval_seconds, {self.state.checkpoint_interval_seconds:g}"
            )
        return self

    @model_validator(mode="after")
    def _no_file_is_read_and_written(self) -> Settings:
        read = {os.path.realpath(path) for path in self.source.paths if self.source.type == "file"}
        for name in ("scores_file", "alerts_file", "dead_letter_file"):
            path = getattr(self.output, name)
            if path and os.path.realpath(path) in read:
                raise ValueError(
                    f"output.{name} {path!r} is also read from (source.paths): the daemon would feed on its own"
                    " output; rename one of them"
                )
        return self

    @property
    def exactly_once(self) -> bool:
        """Whether results, states and offsets are committed together."""
        return self.processing.guarantee == "exactly_once"

    @property
    def changelog(self) -> bool:
        """Whether states are written to a changelog."""
        return self.exactly_once if self.state.changelog is None else self.state.changelog

    @classmethod
    def _settings_log_debug(cls, states: Any) -> None:
        """Log nothing: theirs would show secrets."""

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def origin(self, name: str) -> str | None:
        """Return where "section.name" was set (file and line, environment variable, --set); None: the default holds."""
        return self._origins.get(name)


def load_settings(
    config: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    overrides: Sequence[str] = (),
    secrets: Path | None = None,
) -> Settings:
    """Return the settings, checked. `overrides` are the values of --set, "section.name=value".

    secrets: directory of files longwatch_section__name; None: /run/secrets, if it is there.
    Raises SettingsError with a line for each thing that is wrong, all of them at once.
    """
    layers = [toml_file(Settings, config)] if config is not None else []
    layers += secrets_directory(Settings, secrets), environment_variables(Settings, environment), Layer(Settings)
    layers[-1].add_options("--set", overrides, "section.name=value, such as kafka.topics=metrics")
    found: dict[tuple[str, ...], Found] = {}
    places: dict[tuple[str, ...], str] = {}
    errors: list[str] = []
    for layer in layers:  # each wins over those before it
        places = {path: place for path, place in places.items() if path[:1] not in layer.found} | layer.places
        found |= layer.found
        errors += layer.errors
    try:
        settings = Settings(*(InitSettingsSource(Settings, layer.tree()) for layer in reversed(layers)))
    except ValidationError as invalid:
        errors += explain(Settings, invalid, found, places)
    if errors:
        raise SettingsError(errors) from None  # pydantic's own text would show what was found, secrets included
    settings._origins = {".".join(path): value.origin for path, value in found.items()}
    settings._origins |= {".".join(path): place for path, place in places.items()}
    return settings
