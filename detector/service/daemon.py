"""The daemon: poll, decode, step, emit, checkpoint; swap models; stop.

`Daemon.run` is the table of contents. A checkpoint is numbered where it is written: whatever is killed at whatever
moment, what is on disk and in Kafka is one point in the stream, and going on from it gives the scores that an
undisturbed run would have given.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import wait

from prometheus_client import CollectorRegistry

from connectors.batches import Partition, RawBatch, Rejected
from connectors.common.private_files import open_private
from connectors.common.threads import run_in_thread
from connectors.decode.decoder import Decoder
from connectors.http_server.server import HttpServer
from connectors.kafka.names import transactional_id
from connectors.kafka.source import KafkaSource
from connectors.kafka.transactions import TransactionalWriter
from connectors.kafka.writer import KafkaWriter, UndeliveredError
from detector import __version__
from detector.checkpointing.changelog_checkpoint import ChangelogCheckpointer
from detector.checkpointing.checkpoint import Checkpoints, Parts, check_layout
from detector.checkpointing.deadlines import BrokerWait
from detector.checkpointing.store import DamagedRowError, SqliteStore
from detector.config.settings import Settings
from detector.engine.engine import Engine, Step
from detector.engine.open_incidents import OpenIncidents
from detector.observability.metrics import Metrics
from detector.service.factory import (
    MODELS_DIR,
    RebalanceCallbacks,
    Sinks,
    device_of,
    engine_settings,
    make_sinks,
    make_source,
    resumed_model,
)
from detector.service.health import Health
from detector.service.memory_budget import log_capacity, memory_limit
from detector.service.model_promotion import ModelPromotion
from detector.service.poison_events import FaultError, PoisonGuard
from detector.service.reporter import Reporter, StageClock
from detector.service.signals import Signals
from detector.service.systemd import Notifier
from detector.state.arena import SpillBuffer
from detector.state.stream_cache import PORTION
from training.network.registry import Registry

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # the loop turns at least so often, so that checkpoints and stops are in time
RESTORING_POLL_SECONDS = 0.05  # so soon what has been restored is read on
LAG_SECONDS = 1.0  # between two looks at the lag, also while nothing comes: it costs microseconds a partition
# A stop must be over in 10 s, broker or not: half a second for the turn under way, then 2 for a retraining, and these
STOP_SAVING_SECONDS = 4.0
STOP_CLOSING_SECONDS = 3.0
# What a partition's owner has to commit is done in a fraction of a second; meanwhile the group goes on without waiting
REVOKE_SECONDS = 20.0


class Daemon:
    """One worker: a source, an engine, sinks, a store. `run` returns when the source ends or a signal says so."""

    def __init__(self, settings: Settings, extra_sinks: Sinks | None = None) -> None:
        """Open everything; results go to the sinks of the settings and to those of `extra_sinks`.

        Raises the settings', store's, model's and connectors' own errors, each a clear line.
        """
        self._settings = settings
        self.metrics = Metrics(CollectorRegistry(auto_describe=True), __version__)
        self._notifier = Notifier()
        self._stop = threading.Event()
        self._signals = Signals(self.stop)
        self._broker_wait = BrokerWait(self._beat)
        self._health = Health(settings.processing.stalled_after_seconds)
        self._http = HttpServer(settings.http, self.metrics.registry, self._health.live, self._ready)
        self._assigned = settings.source.type == "file"

        self._store = SqliteStore(settings.state.directory, is_cache=settings.changelog)
        meta = self._store.meta()
        registry = Registry(settings.state.directory / MODELS_DIR, open_private)
        model, stored_model, fallback = resumed_model(settings, registry, meta["model"] if meta else "")
        if fallback:
            self.metrics.model_fallbacks[fallback].inc()
        offsets = {Partition(topic, number): at for topic, number, at in meta["offsets"]} if meta else {}
        device = device_of(settings)
        self._clock = StageClock(self.metrics)
        limit = memory_limit(settings.state.memory_bytes, changelog=settings.changelog)
        self._engine = Engine(
            model,
            engine_settings(settings, limit.state_bytes),
            device,
            self._stored,
            self._clock.ends,
            SpillBuffer(settings.state.directory, round(PORTION * limit.state_bytes)),
        )
        self._reporter = Reporter(self.metrics, settings, self._engine.streams)
        if meta:
            check_layout(meta, settings, self._engine.streams.states.layouts, __version__)
            self._reporter.begin(meta.get("newest", 0.0))
        self._store.upgrade()
        self.metrics.state_limit_bytes.set(limit.state_bytes)
        log_capacity(limit, self._engine.streams.states, 1 - 3 * PORTION, settings.state.max_streams)
        self._decoder = Decoder(settings.decode)
        self._member = meta.get("member", "") if meta else ""
        writer = self._make_writer()
        results: KafkaWriter | None = writer if settings.exactly_once else None
        if results is None and settings.source.type == "kafka":
            results = KafkaWriter(settings.kafka, self._broker_wait.check)
        self._sinks = make_sinks(settings, self.metrics, results, extra_sinks)
        if meta:
            self._sinks.restore(meta["sinks"])
        changes = RebalanceCallbacks(self._on_assigned, self._on_revoked, self._on_lost, self._on_placed)
        fingerprints = meta.get("beginnings", {}) if meta else {}
        self._source = make_source(settings, self._decoder, offsets, fingerprints, changes)
        self._poison_guard = PoisonGuard(self._engine, always=not self._source.rewinds)
        self._full = False  # nothing is read, since no more can be kept without a checkpoint
        self._partitions: ChangelogCheckpointer | None = None
        self._moves = 0  # times that reading has got on
        self._former = dict(offsets)  # of a time without a changelog
        if writer is not None:
            self._partitions = ChangelogCheckpointer(
                settings.kafka,
                self._engine.streams,
                self._store,
                writer,
                self.metrics,
                version=__version__,
                standby=settings.state.standby,
                stored=self._stored,
            )
            offsets = self._partitions.offsets
        elif self._store.positions():
            self._store.clear(None)  # what is saved from now on is not in the changelog
        self._lag_due = 0.0  # monotonic, s
        self._incidents = OpenIncidents()
        if self._partitions is None:
            self._incidents.found(self._store.open_incidents())
        parts = Parts(self._engine, self._store, self._sinks, self._source, self._incidents, self._partitions)
        self._checkpoints = Checkpoints(
            settings,
            parts,
            self._broker_wait,
            self._reporter,
            offsets,
            {"longwatch": __version__, "member": self._member, "model": stored_model},
        )
        self._promotion = ModelPromotion(
            settings, model, registry, parts, self._checkpoints, self._reporter, self.metrics
        )
        self._problems = {"retraining": self._promotion.problem, **self._sinks.problems}
        if isinstance(self._source, KafkaSource):
            self._problems["kafka"] = self._source.problem
        if self._partitions is not None:
            self._problems["changelog"] = self._partitions.recovery.problem
        logger.info(
            "longwatch %s: %s on %s, %d threads; state in %s (%s); model %s",
            *(__version__, settings.model.cell, device, self._engine.settings.threads, settings.state.directory),
            *(f"{self._store.count()} streams, going on" if meta else "new", self._engine.version),
        )

    # -- five verbs ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the source ends or a signal says so; the second signal does not wait."""
        try:
            self._startup()
            while not self._stop.is_set() and not self._source.finished():
                self._tick()
        except BaseException:
            self._shutdown(orderly=False)
            raise
        self._shutdown(orderly=True)

    def _startup(self) -> None:
        self._signals.take()
        self._http.start()
        if self._partitions is not None:
            self._partitions.recovery.start()
        if self._sinks.feed is not None:
            self._sinks.feed.start()
        self._promotion.begin()
        # an empty one first, which tells file sinks where this run began
        if not self._checkpoints.commit() and self._checkpoints.last_error is not None:
            raise self._checkpoints.last_error  # nothing has been read yet: better told at once than when it has been
        gc.collect()
        gc.freeze()  # all that is loaded: to look through it again and again took a sixth of all CPU time
        self._notifier.ready("scoring")
        source = self._settings.source
        place = ", ".join(source.paths) if source.type == "file" else self._settings.kafka.bootstrap_servers
        logger.info("running on %s; stop with SIGTERM or CTRL+C", place)

    def _tick(self) -> None:
        self._beat()
        for name in self._signals.noted():
            logger.info("%s changes nothing: stop with SIGTERM", name)
        self.metrics.last_loop_timestamp.set_to_current_time()
        try:
            self._turn()
        except FaultError as error:
            logger.exception("the engine raised: the event will be found")
            self._checkpoints.roll_back(error)
        except (DamagedRowError, UndeliveredError) as error:
            self._checkpoints.roll_back(error)

    def _turn(self) -> None:
        raw = self._poll()
        self._bring()
        if len(raw):
            self._checkpoints.record_start(raw)
            self._clock.begins()
            batch, rejected = self._decoder.decode(raw)
            self._clock.ends("decode")
            for part, step, refused, anew in self._poison_guard.step_all(batch, raw):
                if step is not None:
                    self._emit(step)
                    self._incidents.step(part, step)
                    self._reporter.step(part, step, anew=anew)
                rejected += refused
            self._reject(rejected, len(batch))
            self._clock.ends("emit")
        if len(raw) or raw.passed:
            self._moves += 1
            self._checkpoints.record_offsets(raw)
        if time.monotonic() >= self._lag_due:
            self._watch(self._source.lag())
            self._reporter.look()
            self._lag_due = time.monotonic() + LAG_SECONDS
        self._resolve_silent()
        if self._checkpoints.due:
            self._checkpoints.commit()
        self._promotion.advance()

    def _shutdown(self, *, orderly: bool) -> None:
        self._notifier.stopping("saving")
        logger.info("stopping")
        began = time.monotonic()
        self._promotion.stop()
        try:
            if orderly and time.monotonic() < self._broker_wait.shutdown_deadline:
                try:
                    self._checkpoints.commit()
                except UndeliveredError as error:
                    logger.warning("what came since the last checkpoint will be scored again: %s", error)
        finally:
            parts = (self._source, self._sinks, self._partitions, self._engine, self._store)
            closing = [run_in_thread(part.close) for part in parts if part is not None]
            ended, left = wait(closing, STOP_CLOSING_SECONDS)
            if left:
                logger.warning("Kafka did not let go within %.0f s and is left behind", STOP_CLOSING_SECONDS)
            for part in ended:
                if orderly and (failure := part.exception()):
                    logger.error("while stopping: %s", failure)
            self._http.close()  # last: until then metrics tell how the stop goes
            self._notifier.close()
            self._signals.give_back()
        self._reporter.stopped()
        logger.info("stopped in %.1f s", time.monotonic() - began)

    def stop(self) -> None:
        """Ask the loop to end after its present turn."""
        self._broker_wait.shutdown_deadline = time.monotonic() + STOP_SAVING_SECONDS
        self._stop.set()

    # -- a turn's parts ------------------------------------------------------------------------------------------------

    def _poll(self) -> RawBatch:
        """Return the next records; none while there is no checkpoint and no more can be kept without one."""
        full = self._checkpoints.last_error is not None and self._checkpoints.backlog_full
        source = self._source
        if full != self._full:
            self._full = full
            logger.warning("reading waits for a checkpoint" if full else "reading goes on")
            if isinstance(source, KafkaSource):
                (source.pause if full else source.resume)()
        if full and not isinstance(source, KafkaSource):
            time.sleep(POLL_SECONDS)
            return RawBatch()
        return source.poll(POLL_SECONDS if not self._restoring else RESTORING_POLL_SECONDS)

    def _emit(self, step: Step) -> None:
        for sink in self._sinks.scores:
            sink.write(step.scores)
        for alert_sink in self._sinks.alerts:
            alert_sink.write(step.alerts)
        if self._partitions is not None:
            self._partitions.note_repartitioned(step.repartitioned)

    def _resolve_silent(self) -> None:
        """End the incidents of streams that have fallen silent: a part of the next checkpoint, as what events bring."""
        if silent := self._incidents.silent():
            alerts, patient = self._engine.resolve_silent(silent)
            self._incidents.resolved(silent, patient)
            for sink in self._sinks.alerts:
                sink.write(alerts)
            self._reporter.alerts(alerts)
            self._checkpoints.dirty |= len(alerts) > 0
        self.metrics.alerts_firing.set(len(self._incidents))

    def _reject(self, rejected: list[Rejected], read: int) -> None:
        for sink in self._sinks.dead_letters:
            sink.write(rejected)
        self._reporter.rejected(rejected, read)

    def _stored(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """Yield streams' rows one by one: of a batch that brings many back not all may fit into memory at once."""
        for name in names:
            try:
                yield from self._store.load([name])
            except DamagedRowError as error:
                if self._partitions is not None and self._partitions.discard_local_copy(name):
                    raise  # the way back brings the row from the changelog
                self._reporter.damaged(error)
                yield None

    # -- partitions ---------------------------------------------------------------------------------------------------

    def _on_assigned(self, partitions: list[Partition]) -> None:
        if not self._assigned and self._sinks.writer is not None:
            # a topic that cannot be written is told now, not at the first alert
            self._broker_wait.until_brokers_answer(self._sinks.writer.open)
        self._assigned = True
        if self._partitions is not None:
            # it ends the transaction that a former life has left open
            self._broker_wait.until_brokers_answer(self._partitions.open)
            self._partitions.assign(partitions)

    def _on_revoked(self, partitions: list[Partition]) -> None:
        """Save what was done, then forget where these partitions stand: the next owner moves them on."""
        self._broker_wait.revoke_deadline = (
            time.monotonic() + REVOKE_SECONDS if self._partitions is not None else math.inf
        )
        failure: UndeliveredError | None = None
        try:
            self._checkpoints.commit()
        except UndeliveredError as error:
            failure = error
        finally:
            self._broker_wait.revoke_deadline = math.inf
        if self._partitions is not None:
            self._partitions.revoke(partitions)
            self._incidents.revoke(partitions)
        if failure is not None:
            self._checkpoints.roll_back(failure)
        self._let_go(partitions)

    def _let_go(self, partitions: list[Partition]) -> None:
        self._poison_guard.revoke(partitions)
        self._checkpoints.revoke(partitions)

    def _on_lost(self, partitions: list[Partition]) -> None:
        """Others may have these already: nothing of them can be committed any more."""
        if self._partitions is None:
            self._on_revoked(partitions)
            return
        self._partitions.revoke(partitions)
        self._let_go(partitions)
        self._checkpoints.roll_back(UndeliveredError("partitions were lost: this worker was not heard of for too long"))

    def _on_placed(self, offsets: dict[Partition, int]) -> None:
        if self._partitions is None:
            self._checkpoints.on_placed(offsets)
        else:
            for partition in offsets:
                self._incidents.found(self._store.open_incidents(partition))
            # what was decided holds from now on, also for whoever has these partitions next
            self._checkpoints.dirty = True
            if self._partitions.on_placed(offsets):
                self._checkpoints.commit_soon()

    def _bring(self) -> None:
        """Let reading begin in partitions whose states have come."""
        if self._partitions is not None and isinstance(self._source, KafkaSource):
            self._partitions.resume_restored(self._source, self._former)
        if self._sinks.feed is not None:
            self._sinks.feed.check()

    def _make_writer(self) -> TransactionalWriter | None:
        """Return what writes states, where there is a changelog, under a name that outlives this process."""
        kafka = self._settings.kafka
        if not self._settings.changelog:
            return None
        self._member = kafka.group_instance_id or self._member or uuid.uuid4().hex[:12]
        return TransactionalWriter(kafka, transactional_id(kafka.group_id, self._member), self._broker_wait.check)

    @property
    def _restoring(self) -> int:
        return 0 if self._partitions is None else len(self._partitions.restoring)

    # -- health -------------------------------------------------------------------------------------------------------

    def _watch(self, lag: dict[Partition, int]) -> None:
        """Tell the lag, and see whether there is progress, nothing to do, or nobody to ask."""
        self.metrics.set_lag(lag)
        for part, problem in self._problems.items():
            self.metrics.part_failing[part].set(bool(problem.current))
        self._reporter.watch(sum(lag.values()))
        source = self._source
        if isinstance(source, KafkaSource):
            progress = self._moves, 0 if self._partitions is None else self._partitions.recovery.progress
            waiting = (any(lag.values()) or bool(self._restoring)) and not source.outage and not self._full
            self._health.watch(progress, waiting=waiting)
            self._incidents.look(lag, reading=not source.outage and not self._full)
        else:
            self._incidents.look(dict.fromkeys(self._checkpoints.offsets, 0), reading=not self._full)

    def _beat(self) -> None:
        self._health.beat()
        self._notifier.beat()

    def _ready(self) -> tuple[bool, str]:
        if self._stop.is_set():
            return False, "stopping"
        if overdue := self._checkpoints.overdue():
            return False, overdue
        if self._restoring:
            return False, f"restoring the states of {self._restoring} partitions"
        problems = {part: problem.persistent() for part, problem in self._problems.items()}
        if told := "; ".join(text for part, text in problems.items() if text and part != "retraining"):
            return False, told
        if self._partitions is not None and self._settings.state.standby and not self._checkpoints.offsets:
            ready = self._partitions.recovery.standby_ready
            return ready, "standing by" if ready else "reading the changelog, to stand by"
        if not self._assigned:
            return False, "waiting for partitions"
        # ready all the same: a restart would not help, and others would get no more of what cannot be read; without a
        # retraining scoring goes on with the model as it is
        return True, "; ".join(filter(None, (self._reporter.nothing_read or "scoring", problems["retraining"])))
