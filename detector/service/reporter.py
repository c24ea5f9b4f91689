"""What the daemon says of its work: metrics and log lines, never a line for each event."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from connectors.batches import HELD_BACK, Alert, EventBatch, Rejected
from connectors.common.throttle import LogThrottle
from connectors.words import format_duration, format_time
from detector.config.settings import Settings
from detector.engine.engine import Step
from detector.observability.alert_text import log_alert
from detector.observability.counted_lines import RejectionLog, RunSummary, StreamWarnings
from detector.observability.metrics import Metrics
from detector.scoring.admission import BLOCKED
from detector.state.stream_cache import StreamCache
from training.retrain.result import RetrainResult

logger = logging.getLogger(__name__)

MAX_LOGGED_MOVES = 1_000  # streams on two partitions that are named in the log, over the daemon's life


class Reporter:
    """Counts and tells what came of batches, checkpoints and retrainings."""

    def __init__(
        self,
        metrics: Metrics,
        settings: Settings,
        streams: StreamCache,
        newest: float = 0.0,
        *,
        on_retraining: Callable[[RetrainResult], object] = lambda outcome: None,
    ) -> None:
        """Go on from a checkpoint, with the time of the newest event before it, s; 0: none.

        `on_retraining` is called with how each retraining ended.
        """
        self._on_retraining = on_retraining
        self._metrics, self._settings, self._streams = metrics, settings, streams
        self.newest = newest
        if newest:
            metrics.last_event_timestamp.set(newest)
        self._logged_moved: set[str] = set()
        self._moved_back = StreamWarnings("went back in time: their late events agree, so their clocks had been ahead")
        self._blocked = StreamWarnings(f"drop everything: the last {BLOCKED} events of each were late or duplicates")
        self._evictions = LogThrottle()  # for want of memory
        self.refusals = RejectionLog(settings)
        self.summary = RunSummary()

    def step(self, batch: EventBatch, step: Step, *, reset: bool = False) -> None:
        """Tell what a batch brought; `reset`: its one stream's state was given up for it."""
        self._count(batch, step)
        self._metrics.streams_begun_anew["engine_error"].inc(reset)
        if count := self._evictions.due(step.evicted_for_memory):
            logger.warning(
                "memory for states is full (%.2f GB, state.memory_bytes): the %d longest idle streams went to the"
                " state directory; %d are in memory",
                *(self._streams.memory_bytes / 1e9, count, len(self._streams)),
            )
        self.alerts(step.alerts)
        for back in step.moved_back:
            by, to = format_duration((back.former - back.time) * 1e-9), format_time(back.time)
            why = "its late events agree, so its clock had been ahead"
            self._moved_back.add(back.stream, f"stream {back.stream!r} went back in time by {by} to {to}: {why}")
        for name in step.blocked:
            self._blocked.add(
                name, f"stream {name!r} drops everything: its last {BLOCKED} events were late or duplicates"
            )
        self.look()
        for name in step.repartitioned[:10]:
            if name not in self._logged_moved and len(self._logged_moved) < MAX_LOGGED_MOVES:
                self._logged_moved.add(name)
                logger.warning("stream %r came on a second partition: its state is split; key records by stream", name)

    def alerts(self, alerts: Sequence[Alert]) -> None:
        """Tell of incidents that begin or end."""
        for alert in alerts:
            log_alert(logger, alert)
            if alert.status == "firing":
                self._metrics.alerts[alert.severity, alert.channel].inc()

    def look(self) -> None:
        """Tell what had to wait; to be called every second or so."""
        self._moved_back.flush()
        self._blocked.flush()

    def _count(self, batch: EventBatch, step: Step) -> None:
        m, scores = self._metrics, step.scores
        m.events.inc(len(batch))
        m.events_unsaved.inc(len(batch))
        m.observations.inc(len(batch.value))
        m.events_scored.inc(len(scores))
        m.events_duplicate.inc(step.duplicates)
        m.events_late.inc(step.late)
        firing = [alert for alert in step.alerts if alert.status == "firing"]
        self.summary.count(scored=len(scores), late=step.late, duplicate=step.duplicates, alerts=len(firing))
        processing = self._settings.processing
        m.events_dropped["duplicate"].inc(step.duplicates if processing.duplicates == "drop" else 0)
        m.events_dropped["late"].inc(step.late if processing.late == "drop" else 0)
        m.streams_on_two_partitions.inc(len(step.repartitioned))
        m.streams_moved_back.inc(len(step.moved_back))
        m.streams_evicted.inc(step.evicted)
        m.streams_evicted_for_memory.inc(step.evicted_for_memory)
        m.state_bytes.set(self._streams.nbytes)
        m.batch_events.observe([len(batch)])
        m.score.observe(scores.score)
        m.rank.observe(scores.rank)
        for code, reason in enumerate(HELD_BACK[1:], 1):
            m.events_held_back[reason].inc(int((scores.held_back == code).sum()))
        m.streams.set(len(self._streams))
        if len(batch):
            # a clock that is ahead must not hide that nothing comes any more
            self.newest = min(float(batch.time.max()) * 1e-9, time.time())
            m.last_event_timestamp.set(self.newest)
            m.end_to_end_latency.observe(np.maximum(time.time() - batch.received[scores.event] * 1e-9, 0.0))

    def rejected(self, rejected: list[Rejected], read: int) -> None:
        """Count and log what was rejected; `read` is how many records of the same batch could be read."""
        for refusal in rejected:
            self._metrics.events_rejected[refusal.reason].inc()
        self.summary.count(rejected=len(rejected))
        self.refusals.log(rejected, read)

    def retraining(self, outcome: RetrainResult) -> None:
        """Tell how a retraining ended."""
        m = self._metrics
        self._on_retraining(outcome)
        m.retrain[outcome.outcome].inc()
        m.retrain_seconds.observe([outcome.seconds])
        m.set_losses(outcome.losses)
        if outcome.steps:
            m.gradient_norm.set(outcome.gradient_norm)


class StageClock:
    """Measures the stages of a turn; each begins where the former ended."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._at = time.perf_counter()

    def begins(self) -> None:
        """Start with the first stage."""
        self._at = time.perf_counter()

    def ends(self, stage: str) -> None:
        """Note the stage that is over."""
        now = time.perf_counter()
        self._metrics.step_seconds[stage].observe(now - self._at)
        self._at = now
