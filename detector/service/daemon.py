"""The daemon: poll, decode, step, emit, checkpoint; swap models; stop.

`Daemon.run` is the table of contents. A checkpoint is numbered where it is written: whatever is killed at whatever
moment, what is on disk and in Kafka is one point in the stream, and going on from it gives the scores that an
undisturbed run would have given.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from connectors.batches import Alert, Partition, RawBatch
from connectors.common.background import OngoingProblem, run_in_thread
from connectors.decode.decoder import Decoder
from connectors.http_server.access import Access
from connectors.http_server.server import Check, HttpServer
from connectors.http_server.settings import HttpSettings
from connectors.kafka.writer import UndeliveredError
from connectors.protocols import DaemonSource, RebalanceCallbacks
from connectors.sink_group import SinkGroup
from detector.checkpointing.checkpointer import Checkpointer
from detector.checkpointing.deadlines import BrokerWait
from detector.checkpointing.store import DamagedRowError, SqliteStore
from detector.engine.engine import Engine
from detector.engine.open_incidents import OpenIncidents
from detector.feedback.feedback import Feedback
from detector.history.history import History
from detector.incidents.incidents import Incidents
from detector.observability.metrics import Metrics
from detector.service.fleet_rate import FleetRate
from detector.service.health import Health, Notifier
from detector.service.poison_events import FaultError, PoisonGuard
from detector.service.reloading import Reloading
from detector.service.reporter import Reporter, StageClock
from detector.service.retraining import ModelPromotion
from detector.service.signals import Signals
from detector.service.silence_watch import SilenceWatch
from detector.service.turns import Turns
from detector.web.fleet import Fleet
from detector.web.live import LiveStreams

if TYPE_CHECKING:
    from starlette.types import ASGIApp

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # the loop turns at least so often, so that checkpoints and stops are in time
RESTORING_POLL_SECONDS = 0.05  # so soon what has been restored is read on
LAG_SECONDS = 1.0  # between two looks at the lag, also while nothing comes: it costs microseconds a partition
# A stop must be over in 10 s, broker or not: half a second for the turn under way, then 2 for a retraining, and these
STOP_SAVING_SECONDS = 4.0
STOP_CLOSING_SECONDS = 3.0
SIDE_PARTS = ("retraining", "history", "feedback")  # scoring and alerts go on without them


@dataclass(kw_only=True)
class Daemon:
    """One worker: a source, an engine, sinks, a store. `run` returns when the source ends or a signal says so.

    `service.factory.build_daemon` makes it from settings.
    """

    place: str  # where it reads, for the log
    source: DaemonSource
    decoder: Decoder
    engine: Engine
    sinks: SinkGroup
    store: SqliteStore
    checkpointer: Checkpointer
    fleet_rate: FleetRate
    broker_wait: BrokerWait
    incidents: OpenIncidents  # of single streams: alerts that fire
    silence: SilenceWatch
    incident_store: Incidents  # over streams: what people are told of
    history: History  # of alerts' surroundings; one of `sinks`
    guard: PoisonGuard
    promotion: ModelPromotion
    reloading: Reloading
    feedback: Feedback
    metrics: Metrics
    reporter: Reporter
    clock: StageClock
    health: Health
    http_settings: HttpSettings
    make_page: Callable[
        [Check, Access], ASGIApp
    ]  # of `ready` and of who may do what; not called before it is looked at
    api_token: str
    turns: Turns
    live: LiveStreams
    fleet: Fleet
    notifier: Notifier

    def __post_init__(self) -> None:
        """Begin with nothing read."""
        self.signals = Signals(self.stop)
        self.http = HttpServer(
            *(self.http_settings, self.metrics.registry, self.health.live, self.ready),
            app=lambda access: self.make_page(self.ready, access),
            own_token=self.api_token,
        )
        self.assigned = not self.source.grouped  # whether there has ever been something to read
        self.source.subscribe(
            RebalanceCallbacks(
                start=self.checkpointer.start_offset,
                on_assigned=self._on_assigned,
                on_revoked=self._on_revoked,
                on_lost=self._on_lost,
                on_placed=self._on_placed,
            )
        )
        self._paused = False  # nothing is read, since no more can be kept without a checkpoint
        self._moves = 0  # times that reading has got on
        self._lag_due = 0.0  # monotonic, s

    @property
    def problems(self) -> dict[str, OngoingProblem]:
        """What fails in parts with threads of their own, by the names that metrics give them."""
        parts = self.incident_store, self.sinks, self.source, self.checkpointer
        found = {name: problem for part in parts for name, problem in part.problems.items()}
        aside = self.promotion.problem, self.history.problem, self.feedback.problem
        return {**dict(zip(SIDE_PARTS, aside, strict=True)), **found}

    # -- from outside --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the source ends or a signal says so; the second signal does not wait."""
        try:
            self.startup()
            while not self.ending and not self.source.finished():
                self.tick()
        except BaseException:
            self.shutdown(orderly=False)
            raise
        self.shutdown(orderly=True)

    def startup(self) -> None:
        """Start threads, and make a first checkpoint."""
        self.signals.take()
        self.http.start()
        self.checkpointer.start()
        self.sinks.start()
        # an empty one first, which tells file sinks where this run began
        with self.turns.turn():
            if not self.checkpointer.commit() and self.checkpointer.last_error is not None:
                raise self.checkpointer.last_error  # nothing has been read yet: better to fail at once than later
            self.feedback.advance()  # what a crash left to be done, at the event at which it was to be done
        gc.collect()
        gc.freeze()  # all that is loaded: to look through it again and again took a sixth of all CPU time
        self.notifier.ready()
        logger.info("running on %s; stop with SIGTERM or CTRL+C", self.place)

    def tick(self) -> None:
        """Take one turn; where it fails for now, go back to the last checkpoint."""
        self.health.beat()
        for name in self.signals.noted():
            if name != "SIGHUP" or self.reloading.ask() is None:
                logger.info("%s is ignored: stop with SIGTERM", name)
        self.metrics.last_loop_timestamp.set_to_current_time()
        try:
            raw = self._poll()
            with self.turns.turn():
                self._turn(raw)
        except FaultError as error:
            logger.exception("the engine raised: the event will be found")
            self._roll_back(error)
        except (DamagedRowError, UndeliveredError) as error:
            self._roll_back(error)

    def shutdown(self, *, orderly: bool) -> None:
        """Make a last checkpoint where the end is orderly, and close everything."""
        self.notifier.stopping()
        logger.info("stopping")
        began = time.monotonic()
        self.turns.end()
        self.promotion.retrainer.stop()
        try:
            if orderly and not self.broker_wait.given_up:
                try:
                    with self.turns.turn():
                        self.checkpointer.commit()
                except UndeliveredError as error:
                    logger.warning("events since the last checkpoint will be scored again: %s", error)
        finally:
            self.feedback.close()
            parts = (self.source, self.sinks, self.checkpointer, self.engine, self.store)
            ended, left = wait([run_in_thread(part.close) for part in parts], STOP_CLOSING_SECONDS)
            if left:
                logger.warning("Kafka client did not close within %.0f s; abandoned", STOP_CLOSING_SECONDS)
            for part in ended:
                if orderly and (failure := part.exception()):
                    logger.error("while stopping: %s", failure)
            self.http.close()  # last: until then metrics tell how the stop goes
            self.notifier.close()
            self.signals.give_back()
        self.reporter.summary.log_total()
        logger.info("stopped in %.1f s", time.monotonic() - began)

    @property
    def ending(self) -> bool:
        """Whether the loop was asked to end."""
        return self.broker_wait.shutting_down

    def stop(self) -> None:
        """Ask the loop to end after its present turn."""
        self.broker_wait.shut_down_within(STOP_SAVING_SECONDS)

    def ready(self) -> tuple[bool, str]:
        """Return whether events are scored, and why not, or a word on its state. For any thread."""
        if self.broker_wait.shutting_down:
            return False, "stopping"
        if overdue := self.checkpointer.overdue():
            return False, overdue
        if restoring := len(self.checkpointer.restoring):
            return False, f"restoring the states of {restoring} partitions"
        problems = {part: problem.persistent() for part, problem in self.problems.items()}
        if failing := "; ".join(text for part, text in problems.items() if text and part not in SIDE_PARTS):
            return False, failing
        if (standby := self.checkpointer.standby) is not None:
            return standby
        if not self.assigned:
            return False, "waiting for partitions"
        # ready all the same: a restart would not help, and others would get no more of what cannot be read
        aside = [problems.get(part) for part in SIDE_PARTS]
        return True, "; ".join(filter(None, (self.reporter.refusals.nothing_read or "scoring", *aside)))

    # -- a turn's parts ------------------------------------------------------------------------------------------------

    def _turn(self, raw: RawBatch) -> None:
        self.checkpointer.resume_restored()
        self.sinks.check()
        if len(raw):
            self.checkpointer.record_start(raw)
            self.clock.begins()
            batch, rejected = self.decoder.decode(raw)
            self.clock.ends("decode")
            for part, step, refused, reset in self.guard.step_all(batch, raw):
                if step is not None:
                    self.sinks.write_scores(step.scores)
                    self.sinks.write_alerts(step.alerts)
                    self.checkpointer.record_repartitioned(step.repartitioned)
                    self.history.step(part, step, self.engine)
                    self.incidents.step(part, step)
                    self.silence.step(part)
                    self.live.step(step.scores, step.slot, self.engine.streams.states.slots)
                    self.reporter.step(part, step, reset=reset)
                rejected += refused
            self.sinks.write_dead_letters(rejected)
            self.reporter.rejected(rejected, len(batch))
            self.clock.ends("emit")
        if len(raw) or raw.passed:
            self._moves += 1
            self.checkpointer.record_offsets(raw, self.reporter.newest)
        if time.monotonic() >= self._lag_due:
            self._watch(self.source.lag())
            self.reporter.look()
            self._lag_due = time.monotonic() + LAG_SECONDS
        self._resolve_silent()
        self.feedback.advance()
        self.turns.run_calls()  # here all that was polled is accounted for: a call may make a checkpoint
        self.reloading.advance()
        if self.checkpointer.due:
            self.fleet_rate.commit()
        self.promotion.advance()

    def _roll_back(self, why: Exception) -> None:
        with self.turns.turn():
            self.checkpointer.roll_back(why)
            self.feedback.rolled_back()

    def _poll(self) -> RawBatch:
        """Return the next records; none while there is no checkpoint and no more can be kept without one."""
        if self.checkpointer.stalled != self._paused:
            self._paused = not self._paused
            logger.warning("paused reading: checkpoint backlog is full" if self._paused else "resumed reading")
            (self.source.pause if self._paused else self.source.resume)()
        return self.source.poll(RESTORING_POLL_SECONDS if self.checkpointer.restoring else POLL_SECONDS)

    def _resolve_silent(self) -> None:
        """End the incidents of streams that have fallen silent, and tell of those that have stopped.

        That is a part of the next checkpoint, as what events bring.
        """
        alerts: list[Alert] = []
        if silent := self.incidents.silent():
            alerts, patient = self.engine.resolve_silent(silent)
            self.incidents.resolved(silent, patient)
        if stopped := self.silence.advance():
            alerts += stopped
            self.checkpointer.commit_soon()  # until then a crash has another worker tell it once more
        if alerts:
            self.sinks.write_alerts(alerts)
            self.reporter.alerts(alerts)
            self.checkpointer.dirty = True
        self.metrics.alerts_firing.set(len(self.incidents) + len(self.engine.streams.silence))

    def _watch(self, lag: dict[Partition, int]) -> None:
        """Show the lag, and see whether there is progress, nothing to do, or nobody to ask."""
        self.metrics.set_lag(lag)
        self.fleet.look(sum(lag.values()))
        for part, problem in self.problems.items():
            self.metrics.part_failing[part].set(bool(problem.current))
        self.reporter.summary.log_hourly(len(self.engine.streams), sum(lag.values()))
        reading = not self.source.outage and not self._paused
        waiting = reading and (any(lag.values()) or bool(self.checkpointer.restoring))
        self.health.watch((self._moves, self.checkpointer.progress), waiting=waiting)
        # nothing of a file waits: it is read as fast as it goes
        waits = lag if self.source.grouped else dict.fromkeys(self.checkpointer.offsets, 0)
        self.incidents.look(waits, reading=reading)
        if self.source.grouped:  # of a file nobody knows whether it has ended
            self.silence.look(lag, reading=reading and not self.checkpointer.restoring)

    # -- as the group gives partitions and takes them away -------------------------------------------------------------

    # These come within a poll, which is no turn.

    def _on_assigned(self, partitions: list[Partition]) -> None:
        if not self.assigned and self.sinks.writer is not None:
            # a topic that cannot be written fails now, not at the first alert
            self.broker_wait.until_brokers_answer(self.sinks.writer.open)
        with self.turns.turn():
            self.assigned = True
            self.fleet_rate.assigned()
            self.checkpointer.assign(partitions)

    def _on_revoked(self, partitions: list[Partition]) -> None:
        with self.turns.turn():
            self.checkpointer.revoke(partitions)
            self.guard.revoke(partitions)

    def _on_lost(self, partitions: list[Partition]) -> None:
        with self.turns.turn():
            self.checkpointer.lost(partitions)
            self.guard.revoke(partitions)

    def _on_placed(self, offsets: dict[Partition, int]) -> None:
        with self.turns.turn():
            self.checkpointer.on_placed(offsets)
