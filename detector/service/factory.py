"""Settings -> parts: the engine, the source and the sinks that they ask for."""

from __future__ import annotations

import ctypes
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from connectors.batches import Partition
from connectors.common.private_files import Fingerprint
from connectors.common.problem import OngoingProblem
from connectors.decode.decoder import Decoder
from connectors.files.sinks import FileAlertSink, FileDeadLetterSink, FileScoreSink
from connectors.files.source import FileSource
from connectors.kafka.alert_feed import AlertFeed
from connectors.kafka.sinks import KafkaAlertSink, KafkaDeadLetterSink, KafkaScoreSink
from connectors.kafka.source import DEFERRED, KafkaSource
from connectors.kafka.writer import KafkaWriter
from connectors.protocols import AlertSink, DaemonSource, DeadLetterSink, ScoreSink, Sink
from connectors.webhook.sink import WebhookSink
from detector.config.sections import ModelSettings
from detector.config.settings import Settings, SettingsError
from detector.engine.engine import EngineSettings
from detector.observability.metrics import Metrics
from detector.scoring.incidents import AlertRules
from training.network.horizons import SHIPPED_HORIZONS
from training.network.registry import Registry, RegistryError
from training.network.shape import ModelError, Shape
from training.network.weights import Weights, load_prior

logger = logging.getLogger(__name__)

MODELS_DIR = "models"  # folder of the state directory
FILES_AND_HOOKS = (FileScoreSink, FileAlertSink, FileDeadLetterSink, WebhookSink)  # sinks that write to a local disk
Notice = Callable[[list[Partition]], None]


def engine_settings(settings: Settings, memory_bytes: int = 0) -> EngineSettings:
    """Return what of the settings the engine must know; `memory_bytes` is what states may take, 0: no limit."""
    alerting, processing = settings.alerting, settings.processing
    return EngineSettings(
        max_streams=settings.state.max_streams,
        memory_bytes=memory_bytes,
        threads=settings.compute.threads or len(os.sched_getaffinity(0)),
        keep_late=processing.late == "score",
        keep_duplicates=processing.duplicates == "score",
        muted_streams=tuple(alerting.muted_streams),
        rules=AlertRules(
            alerts_per_stream_per_week=alerting.alerts_per_stream_per_week,
            fixed_threshold=math.nan if alerting.threshold is None else alerting.threshold,
            direction={"above": 1, "below": -1, "both": 0}[alerting.direction],
            min_deviation_absolute=alerting.min_deviation_absolute,
            min_deviation_relative=alerting.min_deviation_relative,
            min_duration_seconds=alerting.min_duration_seconds,
            critical_above_threshold=alerting.critical_above_threshold,
            flag_repeats=alerting.repeated_anomalies == "flag",
        ),
    )


def device_of(settings: Settings) -> str:
    """Return the device to compute on. Raises SettingsError for one that is not there."""
    wanted = settings.compute.device
    if wanted == "cpu" or (wanted == "auto" and not _driver_is_there()):
        return "cpu"
    import torch  # noqa: PLC0415 - it takes seconds, which a machine without a GPU must not pay for the answer

    if torch.cuda.is_available():
        return "cuda" if wanted == "auto" else wanted
    if wanted == "auto":
        return "cpu"
    raise SettingsError([f"compute.device is {wanted!r}, but torch finds no CUDA device: set it to auto or cpu"])


def _driver_is_there() -> bool:
    """Whether this machine has what torch needs before anything else: NVIDIA's driver, or AMD's."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def first_model(settings: Settings) -> Weights:
    """Return the model to begin with: the newest of model.directory, or the cell's prior that ships.

    Raises SettingsError where it does not fit the settings.
    """
    wanted, model = settings.model, None
    if wanted.directory:
        registry = Registry(Path(wanted.directory))
        versions = registry.versions()
        if not versions:
            raise SettingsError([f"model.directory {wanted.directory}: holds no model; make one: longwatch train"])
        model = registry.load(versions[-1])
    try:
        model = model or load_prior(wanted.cell, SHIPPED_HORIZONS)
        return reshape(model, wanted)
    except ModelError as error:
        where = wanted.directory or "the prior that ships"
        raise SettingsError([f"{error} ({where}): change the setting, or train another model"]) from None


class Resumed(NamedTuple):
    """The model to go on with."""

    model: Weights
    version: str  # in the registry; "": the first model
    fallback: str = ""  # one of metrics.FALLBACK_REASONS, where it is not that of the last checkpoint


def resumed_model(settings: Settings, registry: Registry, version: str) -> Resumed:
    """Return the model of the last checkpoint, `version`; "": there is none, and the first one is returned.

    Where it is missing or damaged, the newest other one of the registry that can be used takes its place, or else the
    first; where model.* has changed, the first. Streams keep all but their hidden states, which are primed from their
    recent windows. Raises what `first_model` does.
    """
    if not version:
        return Resumed(first_model(settings), "")
    try:
        return Resumed(reshape(registry.load(version), settings.model), version)
    except ModelError as error:
        logger.warning("model %s of the last checkpoint does not fit (%s): beginning with another", version, error)
        return Resumed(first_model(settings), "", "unfit")
    except RegistryError as error:
        why = error
    for other in reversed(registry.versions()):
        try:
            resumed = Resumed(reshape(registry.load(other), settings.model), other, "unreadable")
        except (ModelError, RegistryError):
            continue
        break
    else:
        resumed = Resumed(first_model(settings), "", "unreadable")
    named = f"model {resumed.version}" if resumed.version else "the first model"
    logger.error("the model of the last checkpoint cannot be read: %s. Scoring goes on with %s", why, named)
    return resumed


def reshape(model: Weights, wanted: ModelSettings) -> Weights:
    """Return a model in the shape of the settings; raises ModelError where that is not to be had."""
    return model.reshape(
        Shape(wanted.cell, wanted.hidden_size, wanted.layers, wanted.dropout, wanted.attention_window, wanted.horizons)
    )


@dataclass(frozen=True, slots=True)
class RebalanceCallbacks:
    """What is called as the group gives partitions and takes them away."""

    assigned: Notice
    revoked: Notice
    lost: Notice
    placed: Callable[[dict[Partition, int]], None]


def make_source(
    settings: Settings,
    decoder: Decoder,
    offsets: Mapping[Partition, int],
    fingerprints: Mapping[str, Sequence[Any]],
    changes: RebalanceCallbacks,
) -> DaemonSource:
    """Return the source, which goes on at `offsets`, or where `place` says where there is a changelog.

    `fingerprints` is what the last checkpoint says of files.
    """
    if settings.source.type == "file":
        known = {path: Fingerprint(*begins) for path, begins in fingerprints.items()}
        most = settings.source.max_poll_records
        return FileSource(settings.source, decoder, offsets, known, max_poll_records=most)
    return KafkaSource(
        settings.kafka,
        start=(lambda _: DEFERRED) if settings.changelog else offsets.get,
        on_assigned=changes.assigned,
        on_revoked=changes.revoked,
        on_lost=changes.lost,
        on_placed=changes.placed,
        read_committed=settings.exactly_once,
        max_poll_records=settings.source.max_poll_records,
        topics_read={partition.topic for partition in offsets},
    )


@dataclass(frozen=True, slots=True)
class Sinks:
    """Where results go. The webhook stands among `alerts`."""

    scores: Sequence[ScoreSink]
    alerts: Sequence[AlertSink]
    dead_letters: Sequence[DeadLetterSink]
    writer: KafkaWriter | None = None  # of those that write to Kafka
    feed: AlertFeed | None = None  # with exactly-once it brings the webhook committed alerts
    problems: Mapping[str, OngoingProblem] = field(default_factory=dict)  # of those that work in threads of their own

    def __iter__(self) -> Iterator[Sink]:
        """Yield every sink."""
        yield from (*self.scores, *self.alerts, *self.dead_letters)

    def flush(self) -> None:
        """Return when everything written is durable."""
        for sink in self:
            sink.flush()

    def full(self) -> bool:
        """Whether one of them keeps so much for a full disk that no more should come."""
        return any(sink.full for sink in self if isinstance(sink, FILES_AND_HOOKS))

    def position(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {name: place for sink in self for name, place in sink.position().items()}

    def restore(self, position: Mapping[str, Any]) -> None:
        """Take back what was written after `position`."""
        for sink in self:
            sink.restore(position)

    def close(self) -> None:
        """Let go of all; the first failure is raised at the end."""
        failure: Exception | None = None
        for part in (self.feed, *self) if self.feed else self:
            try:
                part.close()
            except Exception as error:  # noqa: BLE001 - each of them must be closed
                failure = failure or error
        if failure:
            raise failure


def make_sinks(
    settings: Settings, metrics: Metrics, writer: KafkaWriter | None = None, extra_sinks: Sinks | None = None
) -> Sinks:
    """Return the sinks that the settings name, and those of `extra_sinks`; `writer` writes what goes to Kafka."""
    output, kafka = settings.output, settings.kafka
    scores: list[ScoreSink] = []
    alerts: list[AlertSink] = []
    dead_letters: list[DeadLetterSink] = []
    if output.scores_file:
        scores.append(FileScoreSink(output.scores_file))
    if output.alerts_file:
        alerts.append(FileAlertSink(output.alerts_file))
    if output.dead_letter_file:
        dead_letters.append(FileDeadLetterSink(output.dead_letter_file))
    feed: AlertFeed | None = None
    problems: dict[str, OngoingProblem] = {}

    def too_large(outcome: str) -> None:
        metrics.records_too_large[outcome].inc()

    if writer is not None:
        if kafka.scores_topic:
            scores.append(KafkaScoreSink(writer, too_large))
        if kafka.alerts_topic:
            alerts.append(KafkaAlertSink(writer, too_large))
        if kafka.dead_letter_topic:
            dead_letters.append(KafkaDeadLetterSink(writer, too_large))
    if settings.webhook.url.get_secret_value():
        webhook = WebhookSink(
            settings.webhook,
            settings.state.directory,
            on_delivery=lambda outcome: metrics.webhook_deliveries[outcome].inc(),
            on_pending=metrics.outbox_pending.set,
        )
        problems["webhook"] = webhook.problem
        if settings.exactly_once:
            feed = AlertFeed(kafka, webhook)
            problems["alert_feed"] = feed.problem
        else:
            alerts.append(webhook)
    if extra_sinks:
        scores, alerts = [*scores, *extra_sinks.scores], [*alerts, *extra_sinks.alerts]
        dead_letters = [*dead_letters, *extra_sinks.dead_letters]
    return Sinks(scores, alerts, dead_letters, writer, feed, problems)
