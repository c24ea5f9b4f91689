"""Every Prometheus metric of the daemon, declared once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from connectors.batches import ALERT_CHANNELS, HELD_BACK, Partition
from connectors.decode.settings import REASONS
from connectors.notify.courier import OUTCOMES
from detector.observability.metric_kinds import ArrayHistogram, AskedGauge, OptionalGauge

ENGINE_ERROR = "engine_error"  # the reason for rejecting an event on which the engine raised
REJECTED_REASONS = (*REASONS, ENGINE_ERROR)

# log10 of a return period in events: 3 is once in a thousand. Alerts live between 4 and 7.
SCORE_BUCKETS = (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8)
# how far from usual, in sizes that one event in a hundred exceeds
RANK_BUCKETS = (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)
BATCH_BUCKETS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)
STEP_BUCKETS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
# from a batch that is waited for (ms) to a backlog that is worked off (a day)
LATENCY_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 300, 900, 3_600, 21_600, 86_400)
CHECKPOINT_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
RETRAIN_BUCKETS = (1, 3, 10, 30, 60, 180, 600, 1_800, 3_600)


_Metric = TypeVar("_Metric", Counter, Gauge, Histogram)


def _children(parent: _Metric, values: Iterable[str]) -> dict[str, _Metric]:
    """Return the children by the values of the one label, all there from the start."""
    return {value: parent.labels(value) for value in values}


class Metrics:
    """The daemon's metrics on one registry. Attributes that are dicts hold a child for each known label.

    Hot paths call `inc` and `observe` on an attribute once for each batch, not for each event.
    """

    def __init__(self, version: str, receivers: Sequence[str] = ()) -> None:
        """Declare everything on a registry of its own; `version` is longwatch's, `receivers` the names in settings."""
        self.registry = registry = CollectorRegistry(auto_describe=True)  # so that a scrape can ask for any by `name[]`

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"longwatch_{name}", documentation, labels, registry=registry)

        def counters(name: str, documentation: str, **values: Sequence[str]) -> dict[str, Counter]:
            (label,) = values
            return _children(counter(name, documentation, label), values[label])

        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"longwatch_{name}", documentation, labels, registry=registry)

        def optional_gauge(name: str, documentation: str) -> OptionalGauge:
            return OptionalGauge(f"longwatch_{name}", documentation, registry)

        def histogram(name: str, documentation: str, buckets: Sequence[float]) -> ArrayHistogram:
            return ArrayHistogram(f"longwatch_{name}", documentation, registry, buckets)

        # Else each counter has a gauge with its creation time, which nobody asks for: half as many series again.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves this one without types
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Info("longwatch_build", "The version that runs.", registry=registry).info({"version": version})

        # In: what came from the source
        self.events = counter("events_total", "Events that were read and decoded.")
        self.observations = counter("observations_total", "Feature values in the events that were read.")
        self.events_rejected = counters(
            "events_rejected_total",
            "Records that could not be decoded or scored and went to the dead-letter sink, by reason.",
            reason=REJECTED_REASONS,
        )
        self.events_duplicate = counter(
            "events_duplicate_total", "Events with the same stream and time as one before, dropped or not."
        )
        self.events_late = counter(
            "events_late_total", "Events older than the newest one of their stream, dropped or not."
        )
        self.events_dropped = counters(
            "events_dropped_total", "Decoded events that were not scored, by reason.", reason=("duplicate", "late")
        )
        self.streams_on_two_partitions = counter(
            "streams_on_two_partitions_total",
            "Times a stream was found on a second partition, which splits its state: key records by stream.",
        )
        self.streams_moved_back = counter(
            "streams_moved_back_total",
            "Times a stream went back to the earlier time of its late events: its clock had been ahead.",
        )
        self.streams_blocked = gauge(
            "streams_blocked",
            "Streams held in memory that drop everything: their latest events were all late or duplicates.",
        )
        self.last_event_timestamp = optional_gauge(
            "last_event_timestamp_seconds",
            "Time of the newest event read, by the events' own clock, at most this machine's; absent before the first.",
        )
        self._lag = gauge(
            "consumer_lag", "Records in an assigned partition that have not been read yet.", "topic", "partition"
        )
        self._lag_partitions: set[Partition] = set()

        # The engine
        self.events_scored = counter("events_scored_total", "Events that were scored.")
        self.score = histogram(
            "score", "Scores: log10 of how many events come between two as surprising as this.", SCORE_BUCKETS
        )
        self.rank = histogram(
            "rank",
            "Ranks: how far events are from what is usual, in sizes that one in a hundred exceeds.",
            RANK_BUCKETS,
        )
        alerts = counter(
            "alerts_total", "Alerts that fired, by severity and by the channel that found them.", "severity", "channel"
        )
        self.alerts = {labels: alerts.labels(*labels) for labels in product(("warning", "critical"), ALERT_CHANNELS)}
        self.events_held_back = counters(
            "events_held_back_total",
            "Events above the threshold of their stream's budget that were no alert, by reason.",
            reason=HELD_BACK[1:],
        )
        self.fleet_events_per_day = gauge(
            "fleet_events_per_day",
            "Events a day of the whole fleet, estimated, that alerting.fleet_alerts_per_day goes by; 0: not known yet.",
        )
        self.alerts_firing = gauge("alerts_firing", "Alerts that have fired and not resolved.")
        self.incidents = counters(
            "incidents_total", "Incidents over streams that began, by the severity of the first alert.",
            severity=("warning", "critical"),
        )  # fmt: skip
        self.feedback = counters(
            "feedback_total", "What people have told the daemon, by kind.",
            kind=("mute", "unmute", "acknowledge", "false", "right", "reset"),
        )  # fmt: skip
        self.mutes = gauge("mutes", "Mutes that people have made and that are in force.")
        self.incidents_open = gauge("incidents_open", "Incidents over streams that are open.")
        self.incident_firing = AskedGauge(
            "longwatch_incident_firing",
            "1 for the streams of incidents that fire, 10 of each and 200 in all at most.",
            registry,
            ("incident", "stream", "severity"),
        )
        self.stream_score = AskedGauge(
            "longwatch_stream_score",
            "Score of the last event of the streams that http.stream_scores names; absent before a stream's first.",
            registry,
            ("stream",),
        )
        self.streams = gauge("streams", "Streams held in memory.")
        self.streams_warming = gauge("streams_warming", "Streams held in memory that are too young to be judged.")
        self.streams_evicted = counter(
            "streams_evicted_total", "Streams moved from memory to the store, to make room for others."
        )
        self.streams_evicted_for_memory = counter(
            "streams_evicted_for_memory_total", "Of those, streams moved because states took too much memory."
        )
        self.streams_begun_anew = counters(
            "streams_begun_anew_total",
            "Streams whose state was reset, so that they learn from the start, by reason.",
            reason=("damaged", "engine_error"),
        )
        self.state_bytes = gauge("state_bytes", "Memory that the states of streams take.")
        self.state_limit_bytes = gauge(
            "state_limit_bytes",
            "Memory that the states of streams may take: state.memory_bytes, or what is derived for it.",
        )
        self.lanes = gauge("lanes", "Features of streams held in memory; each has a hidden and a cell state.")
        self.batch_events = histogram("batch_events", "Events in a micro-batch.", BATCH_BUCKETS)
        step = Histogram(
            "longwatch_step_seconds",
            "Time a micro-batch spent in each stage.",
            ["stage"],
            registry=registry,
            buckets=STEP_BUCKETS,
        )
        self.step_seconds = _children(step, ("decode", "admit", "features", "forecast", "score", "results", "emit"))
        self.end_to_end_latency = histogram(
            "end_to_end_latency_seconds", "Time from the record's arrival at the broker to its score.", LATENCY_BUCKETS
        )
        self.device_memory = gauge("device_memory_bytes", "Memory allocated on the compute device; 0 on the CPU.")

        # The loop and its checkpoints
        self.last_loop_timestamp = gauge(
            "last_loop_timestamp_seconds", "When the processing loop last ran, with events or without; 0 before."
        )
        self.checkpoint_seconds = histogram(
            "checkpoint_seconds",
            "Time a checkpoint took, from flushing outputs to committing offsets.",
            CHECKPOINT_BUCKETS,
        )
        self.last_checkpoint_timestamp = gauge(
            "last_checkpoint_timestamp_seconds", "When the last checkpoint was completed; 0 before the first."
        )
        self.events_unsaved = gauge(
            "events_unsaved", "Events read since the last checkpoint, those that were read again included."
        )
        self.checkpoint_failures = counter(
            "checkpoint_failures_total",
            "Checkpoints that failed (a full disk, say) and are tried again; nothing is lost meanwhile.",
        )

        self.history_dropped = counter(
            "history_alerts_dropped_total",
            "Alerts of whose surroundings something is not kept: a full disk, or too many alerts at once.",
        )

        self._failing = gauge(
            "part_failing",
            "1 while a part that works in the background fails and tries again; the log says why.",
            "part",
        )
        parts = ("alert_feed", "changelog", "feedback", "history", "incidents", "kafka", "retraining")
        self.part_failing = _children(self._failing, parts)

        # States that follow their partitions
        self.partitions_restoring = gauge(
            "partitions_restoring", "Assigned partitions whose states are still being read from the changelog."
        )
        self.restore_seconds = histogram(
            "restore_seconds", "Time from a partition's assignment until its states were restored.", RETRAIN_BUCKETS
        )
        self.restored_streams = counter("restored_streams_total", "States that were read back from the changelog.")
        self.transactions = counters(
            "transactions_total",
            "Kafka transactions, by outcome: committed; aborted (its span is scored again).",
            outcome=("committed", "aborted"),
        )

        # Learning
        self.retrain = counters(
            "retrain_total", "Retrainings, by outcome.", outcome=("promoted", "rejected", "failed", "skipped")
        )
        self.config_reloads = counters(
            "config_reloads_total",
            "Times that settings were read again while running, by outcome; refused: the old ones hold.",
            outcome=("applied", "refused"),
        )
        self.config_last_reload_successful = gauge(
            "config_last_reload_successful", "1: the settings last read are in effect; 0: they were refused."
        )
        self.config_last_reload_success_timestamp = gauge(
            "config_last_reload_success_timestamp_seconds", "Unix time at which settings were last taken."
        )
        self.model_fallbacks = counters(
            "model_fallbacks_total",
            "Starts with another model than the last checkpoint's, by reason: unreadable; unfit (model.* has changed).",
            reason=("unreadable", "unfit"),
        )
        self.retrain_seconds = histogram("retrain_seconds", "Time a retraining took.", RETRAIN_BUCKETS)
        self._training_loss = gauge(
            "training_loss",
            "Mean negative log-likelihood of the last retraining, in nats, by split; absent before.",
            "split",
        )
        self.gradient_norm = optional_gauge(
            "gradient_norm", "Norm of the last training step's gradient, before clipping; absent before."
        )
        self.model_trained_timestamp = optional_gauge(
            "model_trained_timestamp_seconds",
            "When the model that scores was trained; absent for the one that is shipped.",
        )
        self._model = Info("longwatch_model", "The model that scores.", registry=registry)

        # Out
        self.records_too_large = counters(
            "records_too_large_total",
            "Results and rejected records larger than their topic takes: cut to what fits, or left out, by outcome.",
            outcome=("cut", "left_out"),
        )
        self._deliveries = counter(
            "deliveries_total",
            "Attempts to tell a receiver, by outcome: delivered; retried (receiver away); failed (receiver refused); "
            "dropped (given up).",
            "receiver",
            "outcome",
        )
        self.deliveries: dict[tuple[str, str], Counter] = {}
        self._pending = gauge(
            "outbox_pending", "Messages that wait in the outbox to be delivered, by receiver.", "receiver"
        )
        self.outbox_pending: dict[str, Gauge] = {}
        self.use_receivers(receivers)

    def use_receivers(self, names: Collection[str]) -> None:
        """Have series for these receivers; those of others disappear, but for what was delivered."""
        for name in self.outbox_pending.keys() - names:
            self._pending.remove(name)
            self._failing.remove(part := f"receiver {name}")
            del self.outbox_pending[name], self.part_failing[part]
        for name in names:
            self.outbox_pending[name] = self._pending.labels(name)
            self.part_failing[f"receiver {name}"] = self._failing.labels(f"receiver {name}")
            self.deliveries |= {(name, outcome): self._deliveries.labels(name, outcome) for outcome in OUTCOMES}

    def set_pending(self, receiver: str, messages: int) -> None:
        """Set how many messages wait for a receiver, where it is one still; from any thread."""
        if (pending := self.outbox_pending.get(receiver)) is not None:
            pending.set(messages)

    def set_model(self, version: str, cell: str, trained_at: float) -> None:
        """Set which model scores from now on; `trained_at` is a Unix time in s, NaN for the model that is shipped."""
        self._model.info({"version": version, "cell": cell})
        self.model_trained_timestamp.set(trained_at)

    def set_losses(self, losses: Mapping[str, float]) -> None:
        """Set the losses of a retraining, in nats, by split."""
        for split, loss in losses.items():
            self._training_loss.labels(split).set(loss)

    def set_lag(self, lag: Mapping[Partition, int]) -> None:
        """Set the lag of the partitions that are assigned now; those that no longer are disappear."""
        for partition in self._lag_partitions - lag.keys():
            self._lag.remove(partition.topic, str(partition.partition))
        for partition, records in lag.items():
            self._lag.labels(partition.topic, str(partition.partition)).set(records)
        self._lag_partitions = set(lag)
