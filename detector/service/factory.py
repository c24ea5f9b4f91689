"""Settings -> daemon: every part is built here, from the bottom up, and handed over finished."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from connectors.batches import Alert, Partition
from connectors.common.private_files import Fingerprint, open_private
from connectors.decode.decoder import Decoder
from connectors.files.sinks import FileAlertSink, FileDeadLetterSink, FileScoreSink
from connectors.files.source import FileSource
from connectors.json_records import AlertRecord
from connectors.kafka.alert_feed import AlertFeed
from connectors.kafka.sinks import KafkaAlertSink, KafkaDeadLetterSink, KafkaScoreSink
from connectors.kafka.source import KafkaSource
from connectors.kafka.transactions import TransactionalWriter
from connectors.kafka.writer import KafkaWriter, UndeliveredError
from connectors.notify.dispatcher import Dispatcher
from connectors.protocols import AlertSink, DaemonSource, DeadLetterSink, ScoreSink
from connectors.sink_group import SinkGroup
from detector import __version__
from detector.checkpointing.changelog_checkpoint import ChangelogCheckpointer
from detector.checkpointing.checkpointer import CLOCKS, Checkpointer, CheckpointParts, check_layout
from detector.checkpointing.deadlines import BrokerWait
from detector.checkpointing.store import DamagedRowError, SqliteStore, StoredRows
from detector.config.settings import Settings
from detector.engine.engine import Engine
from detector.engine.open_incidents import OpenIncidents
from detector.engine.verdicts import ToldError
from detector.feedback.feedback import Feedback, Surroundings
from detector.feedback.journal import AlertSpan
from detector.history.history import History
from detector.history.recent import Look, look_at
from detector.incidents.incidents import Incidents
from detector.observability.log_format import set_up_logging
from detector.observability.metrics import Metrics
from detector.service.api_token import write_token
from detector.service.daemon import Daemon
from detector.service.engine_setup import (
    alert_rules,
    device_of,
    engine_settings,
    log_capacity,
    memory_limit,
    routes,
    stream_rules,
)
from detector.service.fleet_rate import FLEET_EVENTS, FleetRate
from detector.service.health import Health, Notifier
from detector.service.model_choice import MODELS_DIR, resumed_model
from detector.service.poison_events import FaultError, PoisonGuard
from detector.service.reloading import Reloading
from detector.service.reporter import Reporter, StageClock
from detector.service.retraining import ModelPromotion
from detector.service.silence_watch import SilenceWatch
from detector.service.turns import Turns
from detector.state.spill_buffer import SpillBuffer
from detector.state.stream_cache import PORTION
from detector.web.fleet import Fleet
from detector.web.live import LiveStreams
from detector.web.streams import Streams, stream_scores
from training.network.registry import Registry
from training.network.weights import Weights

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from connectors.http_server.access import Access
    from connectors.http_server.server import Check

logger = logging.getLogger(__name__)


def build_daemon(settings: Settings, extra_sinks: SinkGroup | None = None) -> Daemon:
    """Open everything; results go to the sinks of the settings and to those of `extra_sinks`.

    Raises the settings', store's, model's and connectors' own errors, each a clear line.
    """
    metrics = Metrics(__version__, list(settings.receivers))
    notifier, incidents, decoder = Notifier(), OpenIncidents(), Decoder(settings.decode)
    health = Health(settings.processing.stalled_after_seconds, notifier.beat)
    broker_wait = BrokerWait(health.beat)
    store = SqliteStore(settings.state.directory, is_cache=settings.changelog)
    meta = store.meta() or {}
    registry = Registry(settings.state.directory / MODELS_DIR, open_private)
    model, stored_model, fallback = resumed_model(settings, registry, meta.get("model", ""))
    if fallback:
        metrics.model_fallbacks[fallback].inc()
    stored, clock = StoredRows(store, metrics), StageClock(metrics)
    device = device_of(settings)
    engine = _build_engine(settings, model, device, stored, clock, metrics)
    check_layout(meta, settings, engine.streams.states.layouts, __version__)
    engine.streams.silence.restore(meta.get(CLOCKS, ()))
    newest = meta.get("newest", 0.0)
    turns, live, fleet = Turns(alarming=(FaultError, DamagedRowError, UndeliveredError)), LiveStreams(), Fleet(metrics)
    reporter = Reporter(metrics, settings, engine.streams, newest, on_retraining=fleet.retrained)
    store.upgrade()
    member = _member(settings, meta)
    metadata = {"longwatch": __version__, "member": member, "model": stored_model, "newest": newest}
    metadata[FLEET_EVENTS] = meta.get(FLEET_EVENTS, 0.0)
    transactions: TransactionalWriter | None = None
    if settings.changelog:
        transactions = TransactionalWriter(settings.kafka, settings.kafka.transactional_id(member), broker_wait.check)
    writer: KafkaWriter | None = None
    if settings.source.type == "kafka" and not settings.exactly_once:
        writer = KafkaWriter(settings.kafka, broker_wait.check)
    dispatcher: Dispatcher | None = None
    if settings.receivers or not settings.exactly_once:  # else nothing feeds them, until there are some at a start
        dispatcher = _make_dispatcher(settings, metrics)
    incident_store = Incidents(
        settings.state.directory,
        settings.incidents,
        dispatcher,
        routes=routes(settings),
        on_opened=lambda severity: metrics.incidents[severity].inc(),
    )
    metrics.incidents_open.set_function(incident_store.open_count)
    metrics.incident_firing.set_function(lambda: [(labels, 1.0) for labels in incident_store.firing])
    history = History(
        *(settings.state.directory, settings.history),
        changelog=settings.changelog,
        on_dropped=metrics.history_dropped.inc,
    )
    sinks = _make_sinks(settings, metrics, writer, transactions, extra_sinks, (incident_store, history))
    sinks.restore(meta.get("sinks", {}))
    offsets = {Partition(topic, number): at for topic, number, at in meta.get("offsets", ())}
    source: DaemonSource
    if settings.source.type == "file":
        known = {path: Fingerprint(*begins) for path, begins in meta.get("beginnings", {}).items()}
        source = FileSource(settings.source, decoder, offsets, known, max_poll_records=settings.source.max_poll_records)
    else:
        source = KafkaSource(
            settings.kafka,
            read_committed=settings.exactly_once,
            owned=offsets,
            max_poll_records=settings.source.max_poll_records,
        )
    parts = CheckpointParts(engine.streams, store, sinks, source, incidents, broker_wait, metrics)
    checkpointer: Checkpointer
    if transactions is not None and isinstance(source, KafkaSource):
        checkpointer = ChangelogCheckpointer(settings, parts, metadata, source, transactions, stored, former=offsets)
    else:
        checkpointer = Checkpointer(settings, parts, offsets, metadata)
    guard = PoisonGuard(engine, always=not source.rewinds)
    promotion = ModelPromotion(settings, model, registry, engine, checkpointer, reporter, metrics)
    feedback = Feedback(
        settings.state.directory,
        engine,
        checkpointer,
        Surroundings(
            find_alert=lambda alert: _span_of(incident_store, alert),
            has_incident=lambda incident: incident_store.get(incident) is not None,
            tell=lambda alerts: _tell(alerts, sinks, incidents, reporter),
            newest=lambda: reporter.newest,
            stored=lambda: store.meta() or {},
        ),
        metrics,
    )
    streams = Streams(engine, store, turns.look, follows_changelog=settings.changelog)
    if settings.http.stream_scores:
        metrics.stream_score.set_function(stream_scores(streams, settings.http.stream_scores))

    def hold(new: Settings) -> None:
        metrics.use_receivers(new.receivers)  # first: receivers say at once what waits for them
        if dispatcher is not None:
            dispatcher.use(new.receivers)
        set_up_logging(new.logging.level, new.logging.format)
        engine.use_rules(alert_rules(new.alerting), stream_rules(new))
        incident_store.routes = routes(new)
        promotion.training = new.training

    reloading = Reloading(settings, hold, checkpointer, metrics, notifier)

    def look(name: str) -> Look | None:
        with turns.look():
            return look_at(
                engine, history.ring, name, lambda name: None if settings.changelog else store.load([name])[0]
            )

    def make_page(ready: Check, access: Access) -> ASGIApp:
        from detector.web.app import make_app  # noqa: PLC0415 - a fifth of a second, which nobody may ever look at
        from detector.web.parts import Parts as PageParts  # noqa: PLC0415 - likewise

        page_parts = PageParts(
            version=__version__,
            engine=engine,
            streams=streams,
            live=live,
            fleet=fleet,
            incidents=incident_store,
            feedback=feedback,
            history=history,
            look=look,
            registry=registry,
            reload=reloading.ask,
            ready=ready,
            receivers=lambda: reloading.settings.receivers,
            external_url=settings.http.external_url,
            cell=settings.model.cell,
            state_limit_bytes=engine.settings.memory_bytes,
            changelog=settings.changelog,
        )
        return make_app(page_parts, access)

    logger.info(
        "longwatch %s: %s on %s, %d threads; state in %s (%s); model %s",
        *(__version__, settings.model.cell, device, engine.settings.threads, settings.state.directory),
        *(f"{store.count()} streams, resumed" if meta else "new", engine.version),
    )
    return Daemon(
        place=", ".join(settings.source.paths) if not source.grouped else settings.kafka.bootstrap_servers,
        source=source,
        decoder=decoder,
        engine=engine,
        sinks=sinks,
        store=store,
        checkpointer=checkpointer,
        fleet_rate=FleetRate(engine, checkpointer, source, store, metrics),
        broker_wait=broker_wait,
        incidents=incidents,
        silence=SilenceWatch(engine, store.names_after, store.load, checkpointer.commit),
        incident_store=incident_store,
        history=history,
        guard=guard,
        promotion=promotion,
        reloading=reloading,
        feedback=feedback,
        metrics=metrics,
        reporter=reporter,
        clock=clock,
        health=health,
        http_settings=settings.http,
        make_page=make_page,
        api_token=write_token(settings.state.directory),
        turns=turns,
        live=live,
        fleet=fleet,
        notifier=notifier,
    )


def _span_of(incidents: Incidents, alert_id: str) -> AlertSpan | None:
    """Return what an alert was about; None for one that is not known."""
    found = incidents.alert(alert_id)
    if found is None:
        return None
    error = ToldError("", "", 0.0)
    if found.record is not None:
        told = msgspec.json.decode(found.record, type=AlertRecord)
        observed, expected = told.observed.get(told.feature), told.expected.get(told.feature)
        if isinstance(observed, float | int) and isinstance(expected, float | int):
            error = ToldError(told.channel, told.feature, observed - expected)
    return AlertSpan(found.stream, found.started_at, found.ended_at, error)


def _tell(alerts: Sequence[Alert], sinks: SinkGroup, incidents: OpenIncidents, reporter: Reporter) -> None:
    """Let all hear of alerts that people have ended."""
    sinks.write_alerts(alerts)
    incidents.ended(alerts)
    reporter.alerts(alerts)


def _build_engine(
    settings: Settings, model: Weights, device: str, stored: StoredRows, clock: StageClock, metrics: Metrics
) -> Engine:
    limit = memory_limit(settings.state.memory_bytes, changelog=settings.changelog)
    engine = Engine(
        model,
        engine_settings(settings, limit.state_bytes),
        device,
        stored.load,
        clock.ends,
        SpillBuffer(settings.state.directory, round(PORTION * limit.state_bytes)),
    )
    metrics.state_limit_bytes.set(limit.state_bytes)
    log_capacity(limit, engine.streams.states, 1 - 3 * PORTION, settings.state.max_streams)
    return engine


def _make_sinks(
    settings: Settings,
    metrics: Metrics,
    writer: KafkaWriter | None,
    transactions: TransactionalWriter | None,
    extra_sinks: SinkGroup | None,
    memory: tuple[Incidents, History],
) -> SinkGroup:
    """Return the sinks that the settings name, and those of `extra_sinks`.

    What goes to Kafka is written by `writer`, or with exactly-once as a part of `transactions`.
    """
    output, kafka = settings.output, settings.kafka
    incident_store, history = memory
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

    def too_large(outcome: str) -> None:
        metrics.records_too_large[outcome].inc()

    if (results := transactions if settings.exactly_once else writer) is not None:
        if kafka.scores_topic:
            scores.append(KafkaScoreSink(results, too_large))
        if kafka.alerts_topic:
            alerts.append(KafkaAlertSink(results, too_large))
        if kafka.dead_letter_topic:
            dead_letters.append(KafkaDeadLetterSink(results, too_large))
    if settings.exactly_once and settings.receivers:  # people are told of what is committed only
        feed = AlertFeed(kafka, incident_store)
    else:
        alerts.append(incident_store)
    alerts.append(history)
    if extra_sinks:
        scores, alerts = [*scores, *extra_sinks.scores], [*alerts, *extra_sinks.alerts]
        dead_letters = [*dead_letters, *extra_sinks.dead_letters]
    return SinkGroup(scores, alerts, dead_letters, writer, feed)


def _make_dispatcher(settings: Settings, metrics: Metrics) -> Dispatcher:
    return Dispatcher(
        settings.receivers,
        settings.state.directory,
        settings.http.external_url,
        on_delivery=lambda receiver, outcome: metrics.deliveries[receiver, outcome].inc(),
        on_pending=metrics.set_pending,
    )


def _member(settings: Settings, meta: Mapping[str, Any]) -> str:
    """Return this worker's name in transactions, which outlives the process; where there are none, what it was."""
    former = str(meta.get("member", ""))
    if not settings.changelog:
        return former
    return settings.kafka.group_instance_id or former or uuid.uuid4().hex[:12]
