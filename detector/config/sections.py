"""The sections of the settings that are not a connector's: each class is one section, checked by itself."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from connectors.common.section import MAX_DAYS, MAX_SECONDS, Section
from connectors.files.settings import FileSettings
from detector.config.sources import Layer, SettingsError, explain
from training.learn.settings import Learning
from training.network.horizons import HORIZONS, check_horizons

MIN_STATE_BYTES = 64 << 20  # for states: two streams of the widest, and room to turn around


class SourceSettings(FileSettings):
    """Section [source]: where events come from; `paths` and `speed` are about files."""

    type: Literal["kafka", "file"] = "kafka"
    """Read events from a Kafka cluster (section [kafka]) or from files."""

    max_poll_records: int | None = Field(None, ge=1, le=1_000_000)
    """Most records in one micro-batch; not set: 5,000 from Kafka, 10,000 from files."""

    @model_validator(mode="after")
    def _files_are_named(self) -> SourceSettings:
        if self.type == "file" and not self.paths:
            raise ValueError('source.type is "file" and source.paths is empty: name the files to read ("-": stdin)')
        return self


class ModelSettings(Section):
    """Section [model]: the network that forecasts."""

    cell: Literal["rnn", "lstm", "gru", "esn"] = "lstm"
    """Recurrent cell: rnn (vanilla), lstm, gru, or esn (an echo state network's reservoir)."""
    horizons: tuple[int, ...] = HORIZONS
    """How many events ahead to forecast, rising from 1; each forecast is scored when its event arrives."""
    directory: str = ""
    """Folder written by `longwatch train`: start with its newest model; empty: the one that ships."""

    @field_validator("horizons")
    @classmethod
    def _horizons_rise(cls, horizons: tuple[int, ...]) -> tuple[int, ...]:
        check_horizons(horizons)
        return horizons


class TrainingSettings(Section):
    """Section [training]: when and how fast the daemon learns."""

    enabled: bool = True
    """Retrain the network on recent events while scoring."""
    learning_rate: float = Field(5e-4, gt=0, le=10)
    """How far each step of a retraining changes the network; higher learns faster and is less stable."""
    interval_seconds: float = Field(3600.0, ge=60, le=MAX_SECONDS)
    """Time between the starts of two retrainings."""
    budget_seconds: float = Field(120.0, ge=1, le=MAX_SECONDS)
    """CPU time after which a retraining stops learning and is evaluated."""

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

    directory: Path = Path("/var/lib/longwatch")
    """Folder for checkpoints, models and undelivered alerts; an absolute path."""
    checkpoint_interval_seconds: float = Field(5.0, ge=0.1, le=3600)
    """Time between checkpoints; after a crash, at most this much is scored again."""
    max_streams: int = Field(100_000, ge=1, le=10_000_000)
    """Streams kept in memory; the longest idle ones above that are kept in the directory only."""
    memory_bytes: int = Field(0, ge=0, le=1 << 50)
    """Memory for the states of streams, 64 MiB or more; the longest idle ones above that are kept in the directory
    only. 0: 60 % of what the machine or its cgroup leaves beside the program's own 900 MB."""
    changelog: bool | None = None
    """Also write states to a compacted Kafka topic, so that they follow their partition to other workers; not set: with
    exactly_once."""
    standby: bool = False
    """Follow the changelog of all partitions, to take over any of them within seconds."""

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

    guarantee: Literal["at_least_once", "exactly_once"] = "at_least_once"
    """at_least_once: after a crash, events since the last checkpoint are scored again, with equal results.
    exactly_once: Kafka consumers with read_committed see each score and alert once."""
    stalled_after_seconds: float = Field(300.0, ge=5, le=86_400)
    """/livez fails if events are there and the broker answers, but none has been scored for this long."""
    late: Literal["drop", "score"] = "drop"
    """What to do with an event older than the last one of its stream: leave it out, or score it too. Five late events
    in a row that agree set the stream's time back."""
    duplicates: Literal["drop", "score"] = "drop"
    """What to do with a second event at the last timestamp of its stream: likewise."""


class AlertingSettings(Section):
    """Section [alerting]: when a score becomes an alert."""

    alerts_per_stream_per_week: float = Field(3.0, gt=0, le=100_000)
    """Alert budget of one stream: its threshold is the score that about this many events a week exceed."""
    fleet_alerts_per_day: float = Field(50.0, gt=0, le=1_000_000)
    """Alert budget of all streams together, those of other workers included; the stricter of the two budgets holds."""
    threshold: float | None = Field(None, gt=0, le=300)
    """A fixed score to alert at, instead of the budgets; 6 is once in a million events."""
    direction: Literal["both", "above", "below"] = "both"
    """Alert on values above what was expected, below it, or both; by the feature that contributes most."""
    min_deviation_absolute: float = Field(0.0, ge=0)
    """Alert only if observed and expected differ by at least this, in the unit of the data."""
    min_deviation_relative: float = Field(0.0, ge=0)
    """Alert only if observed and expected differ by at least this share of the expected value."""
    min_duration_seconds: float = Field(0.0, ge=0, le=MAX_SECONDS)
    """Alert only once an anomaly has lasted this long, in event time."""
    critical_above_threshold: float = Field(1.0, ge=0, le=300)
    """An alert is critical if its score is this far above the threshold; 1 is ten times as rare."""
    silence: bool = False
    """Whether to tell that a stream has stopped, once its rhythm makes that likely. Known for a week, it is told after
    two to five of its longest pauses."""
    min_silence_seconds: float = Field(300.0, gt=0, le=MAX_SECONDS)
    """With silence: the least time without events after which a stream may have stopped, whatever its rhythm."""
    max_silence_seconds: float | None = Field(None, gt=0, le=MAX_SECONDS)
    """With silence: the time without events after which any stream has stopped, however young and whatever its
    rhythm."""


class IncidentsSettings(Section):
    """Section [incidents]: which alerts are one incident, and how long incidents are remembered."""

    window_seconds: float = Field(300.0, gt=0, le=86_400)
    """Alerts of streams with related names that begin within this time of each other, by the events' clock, are one
    incident; it is over once none of them has fired for as long."""
    wait_seconds: float = Field(10.0, ge=0, le=3600)
    """How long to wait for more alerts before an incident is told, so that what breaks together is one notification."""
    max_age_days: float = Field(30.0, gt=0, le=MAX_DAYS)
    """Incidents that are over are forgotten after this time."""


class HistorySettings(Section):
    """Section [history]: what is remembered of each alert's surroundings, in `history.db` in state.directory."""

    days: float = Field(30.0, gt=0, le=MAX_DAYS)
    """An alert's surroundings are forgotten this long after the last of them came."""
    max_bytes: int = Field(512 << 20, ge=0, le=1 << 50)
    """Disk that they may take, some 10 KB an alert of one feature; the oldest are forgotten above that. 0: none are
    kept."""
    events_before: int = Field(300, ge=0, le=2000)
    """Events of its stream that are kept from before an alert."""


class OutputSettings(Section):
    """Section [output]: files to write, beside Kafka's topics or instead of them; JSON lines."""

    scores_file: str = ""
    """File for every score, about 400 bytes an event; empty: none."""
    alerts_file: str = ""
    """File for alerts, when they fire and when they resolve; empty: none."""
    dead_letter_file: str = ""
    """File for rejected records, with the reason; empty: none."""

    @model_validator(mode="after")
    def _each_its_own(self) -> OutputSettings:
        named = [path for path in (self.scores_file, self.alerts_file, self.dead_letter_file) if path]
        if len({os.path.realpath(path) for path in named}) < len(named):
            raise ValueError("output.scores_file, output.alerts_file and output.dead_letter_file must differ")
        return self


class ComputeSettings(Section):
    """Section [compute]: what the network runs on."""

    device: str = "auto"
    """Compute on cpu, cuda or cuda:N; auto: cuda if there is one."""
    threads: int = Field(0, ge=0, le=1024)
    """Threads for computing; 0: as many as the process may use."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError('expected "auto", "cpu", "cuda" or "cuda:N"')
        return device


class LoggingSettings(Section):
    """Section [logging]: what is logged on standard error, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Log messages of this level and above."""
    format: Literal["text", "json"] = "text"
    """text: lines for people. json: one JSON object a line."""
