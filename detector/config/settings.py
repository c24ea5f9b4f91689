"""The whole of the settings, by section. Each connector's section stands beside the connector; the rest is here.

`load_settings` reads them, in rising order, from: the defaults below, longwatch.toml, the environment
(LONGWATCH_SECTION__NAME) and `--set section.name=value`. docs/settings.md is made from these models.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from connectors.common.section import MAX_SECONDS, Section
from connectors.decode.settings import DecodeSettings
from connectors.files.settings import FileSettings
from connectors.http_server.settings import HttpSettings
from connectors.kafka.names import topic_problem
from connectors.kafka.settings import KafkaSettings
from connectors.webhook.settings import WebhookSettings
from detector.config.sources import (
    Environment,
    Found,
    Layer,
    Overrides,
    SecretsDirectory,
    SettingsError,
    Texts,
    TomlFile,
    explain,
)
from training.learn.settings import Learning
from training.network.horizons import HORIZONS, check_horizons

__all__ = ["Settings", "SettingsError", "load_settings"]

MIN_STATE_BYTES = 64 << 20  # for states: two streams of the widest, and room to turn around


class SourceSettings(FileSettings):
    """Section [source]: where events come from; all but `type` is about files."""

    type: Literal["kafka", "file"] = Field("kafka", description="A Kafka cluster (section [kafka]) or files.")

    @model_validator(mode="after")
    def _files_are_named(self) -> SourceSettings:
        if self.type == "file" and not self.paths:
            raise ValueError('source.type is "file" and source.paths is empty: name the files to read ("-": stdin)')
        return self


class ModelSettings(Section):
    """Section [model]: the network that forecasts."""

    cell: Literal["rnn", "lstm", "gru", "esn"] = Field(
        "lstm", description="The recurrent cell: vanilla, LSTM, GRU, or an echo state network's reservoir."
    )
    hidden_size: int = Field(
        48, ge=1, le=1024, description="Width of the hidden state; 48 is what the priors that ship have."
    )
    layers: int = Field(
        1, ge=1, le=8, description="Recurrent layers; those above the first say nothing until a training uses them."
    )
    dropout: float = Field(
        0.0, ge=0, le=0.9, description="Share of hidden units left out in training, one mask a sequence."
    )
    attention_window: int = Field(
        0, ge=0, le=64, description="Hidden states that each lane keeps to attend to, 4 bytes times hidden_size each."
    )
    horizons: tuple[int, ...] = Field(
        HORIZONS, description="Events ahead that are forecast, each scored when its time comes; the first is 1."
    )
    directory: str = Field(
        "", description="A model that `longwatch train --output` wrote; empty: begin with the prior that ships."
    )

    @field_validator("horizons")
    @classmethod
    def _horizons_rise(cls, horizons: tuple[int, ...]) -> tuple[int, ...]:
        check_horizons(horizons)
        return horizons

    @model_validator(mode="after")
    def _the_prior_fits(self) -> ModelSettings:
        shipped = ModelSettings.model_fields["hidden_size"].default
        if self.hidden_size != shipped and not self.directory:
            raise ValueError(
                f"model.hidden_size is {self.hidden_size}, the prior that ships has {shipped}: leave it at "
                f"{shipped}, or name a directory in model.directory that holds a model of that size"
            )
        return self


class TrainingSettings(Section):
    """Section [training]: when and how fast the daemon learns."""

    enabled: bool = Field(True, description="Whether the daemon retrains the network on what it sees.")
    learning_rate: float = Field(
        5e-4, gt=0, le=10, description="How far each step of a retraining changes the network; higher is less stable."
    )
    interval_seconds: float = Field(3600.0, ge=60, le=MAX_SECONDS, description="Time from one retraining to the next.")
    budget_seconds: float = Field(
        120.0, ge=1, le=MAX_SECONDS, description="CPU time after which a retraining learns no more."
    )

    def learning(self, options: Sequence[str] = ()) -> Learning:
        """Return how a network learns: at this rate, but for `longwatch train --learning` options, "name=value".

        Raises SettingsError.
        """
        layer = Layer(Learning)
        layer.add_options("--learning", options, "clip=value")
        chosen = {name: found.value for (name,), found in layer.found.items()}
        try:
            learning = Learning.model_validate({"learning_rate": self.learning_rate} | chosen)
        except ValidationError as invalid:
            layer.errors += explain(Learning, invalid, layer.found)
        if layer.errors:
            raise SettingsError(layer.errors) from None
        return learning


class StateSettings(Section):
    """Section [state]: what survives a restart."""

    directory: Path = Field(
        Path("/var/lib/longwatch"), description="Where checkpoints, models and undelivered alerts are kept; absolute."
    )
    checkpoint_interval_seconds: float = Field(
        5.0, ge=0.1, le=3600, description="Time between checkpoints: what is scored twice after a crash, at most."
    )
    max_streams: int = Field(
        100_000, ge=1, le=10_000_000, description="Streams in memory; beyond, the longest idle rest in the directory."
    )
    memory_bytes: int = Field(
        0,
        ge=0,
        le=1 << 50,
        description="Memory for the states of streams, 64 MiB or more; beyond, the longest idle rest in the directory."
        " 0: 60 % of what the machine or its cgroup leaves beside the program's own 900 MB.",
    )
    changelog: bool | None = Field(
        None,
        description="Whether states are also written to a compacted Kafka topic and follow their partition to other"
        " workers; not set: with exactly_once.",
    )
    standby: bool = Field(
        False, description="Follow the changelog of all partitions, so as to take over any of them within seconds."
    )

    @field_validator("memory_bytes")
    @classmethod
    def _enough(cls, memory_bytes: int) -> int:
        if 0 < memory_bytes < MIN_STATE_BYTES:
            raise ValueError(f"expected 0, or {MIN_STATE_BYTES} (64 MiB) or more: one stream may have 32 MB")
        return memory_bytes

    @field_validator("directory")
    @classmethod
    def _absolute(cls, directory: Path) -> Path:
        if not directory.is_absolute():
            raise ValueError("a path from the root is expected, such as /var/lib/longwatch")
        return directory


class ProcessingSettings(Section):
    """Section [processing]: what is promised about each event."""

    guarantee: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description="at_least_once: after a crash, what follows the last checkpoint is scored again, equally."
        " exactly_once: readers of Kafka with read_committed see each score and alert once.",
    )
    stalled_after_seconds: float = Field(
        300.0,
        ge=5,
        le=86_400,
        description="With events to read and a broker that answers, but none scored for so long, /livez fails.",
    )
    late: Literal["drop", "score"] = Field(
        "drop", description="An event older than its stream's last one; five in a row that agree set its time back."
    )
    duplicates: Literal["drop", "score"] = Field("drop", description="A second event with its stream's last timestamp.")


class AlertingSettings(Section):
    """Section [alerting]: when a score becomes an alert."""

    alerts_per_stream_per_week: float = Field(
        7.0, gt=0, le=100_000, description="Budget of one stream: its threshold is what so many events exceed."
    )
    fleet_alerts_per_day: float = Field(
        50.0,
        gt=0,
        le=1_000_000,
        description="Budget of all streams together. Not in effect yet: only the budget per stream is.",
    )
    threshold: float | None = Field(
        None, gt=0, le=300, description="A fixed score instead of the budgets: 6 is once in a million events."
    )
    repeated_anomalies: Literal["learn", "flag"] = Field(
        "learn", description="A repeated anomaly becomes normal (learn), or each repetition is told (flag)."
    )
    direction: Literal["both", "above", "below"] = Field(
        "both", description="Which side of the expectation may alert, by the feature that contributes most."
    )
    min_deviation_absolute: float = Field(
        0.0, ge=0, description="Observed and expected must differ by so much, in the data's own unit."
    )
    min_deviation_relative: float = Field(
        0.0, ge=0, description="Observed and expected must differ by so much, as a share of the expected value."
    )
    min_duration_seconds: float = Field(
        0.0, ge=0, le=MAX_SECONDS, description="An anomaly must last so long, in event time, before it alerts."
    )
    muted_streams: tuple[str, ...] = Field((), description='Streams that never alert, by name pattern: "test-*/*".')
    critical_above_threshold: float = Field(
        1.0, ge=0, le=300, description="A score so far above the threshold is critical: 1 is ten times as rare."
    )


class OutputSettings(Section):
    """Section [output]: files to write, beside Kafka's topics or instead of them; JSON lines."""

    scores_file: str = Field("", description="File for every score, some 400 bytes an event; empty: none.")
    alerts_file: str = Field("", description="File for alerts, as they fire and as they resolve; empty: none.")
    dead_letter_file: str = Field("", description="File for refused records, with the reason; empty: none.")

    @model_validator(mode="after")
    def _each_its_own(self) -> OutputSettings:
        named = [path for path in (self.scores_file, self.alerts_file, self.dead_letter_file) if path]
        if len({os.path.realpath(path) for path in named}) < len(named):
            raise ValueError("output.scores_file, output.alerts_file and output.dead_letter_file must differ")
        return self


class ComputeSettings(Section):
    """Section [compute]: what the network runs on."""

    device: str = Field("auto", description="auto (cuda where there is one), cpu, cuda or cuda:N.")
    threads: int = Field(0, ge=0, le=1024, description="Threads for computing; 0: as many as the process may use.")

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError('expected "auto", "cpu", "cuda" or "cuda:N"')
        return device


class LoggingSettings(Section):
    """Section [logging]: what is told on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is told.")
    format: Literal["text", "json"] = Field("text", description="Lines for people, or one JSON object a line.")


def _section(model: type[BaseModel]) -> Any:
    return Field(default_factory=lambda: model.model_validate({}))


class Settings(BaseSettings):
    """Everything that can be set. Made by itself it reads nothing: `load_settings` does."""

    model_config = cast(SettingsConfigDict, Section.model_config)

    def __init__(self, *sources: PydanticBaseSettingsSource, **values: Any) -> None:
        """Take values by name, and what sources hold: each wins over those after it."""
        super().__init__(_build_sources=((InitSettingsSource(type(self), values), *sources), values))

    source: SourceSettings = _section(SourceSettings)
    kafka: KafkaSettings = _section(KafkaSettings)
    decode: DecodeSettings = _section(DecodeSettings)
    model: ModelSettings = _section(ModelSettings)
    training: TrainingSettings = _section(TrainingSettings)
    state: StateSettings = _section(StateSettings)
    processing: ProcessingSettings = _section(ProcessingSettings)
    alerting: AlertingSettings = _section(AlertingSettings)
    output: OutputSettings = _section(OutputSettings)
    webhook: WebhookSettings = _section(WebhookSettings)
    http: HttpSettings = _section(HttpSettings)
    compute: ComputeSettings = _section(ComputeSettings)
    logging: LoggingSettings = _section(LoggingSettings)

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
        if self.exactly_once and self.webhook.url.get_secret_value() and not self.kafka.alerts_topic:
            raise ValueError(
                'processing.guarantee is "exactly_once" and kafka.alerts_topic is empty: the webhook is fed from there'
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
    sources: list[TomlFile | Texts] = [TomlFile(Settings, config)] if config is not None else []
    sources += SecretsDirectory(Settings, secrets), Environment(Settings, environment), Overrides(Settings, overrides)
    found: dict[tuple[str, ...], Found] = {}
    errors: list[str] = []
    for source in sources:  # each wins over those before it
        found |= source.layer.found
        errors += source.layer.errors
    try:
        settings = Settings(*reversed(sources))
    except ValidationError as invalid:
        errors += explain(Settings, invalid, found)
    if errors:
        raise SettingsError(errors) from None  # pydantic's own text would show what was found, secrets included
    settings._origins = {".".join(path): value.origin for path, value in found.items()}
    return settings
