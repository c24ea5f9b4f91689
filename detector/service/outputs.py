"""Settings -> sinks."""

from __future__ import annotations

from connectors.common.background import OngoingProblem
from connectors.files.sinks import FileAlertSink, FileDeadLetterSink, FileScoreSink
from connectors.kafka.alert_feed import AlertFeed
from connectors.kafka.sinks import KafkaAlertSink, KafkaDeadLetterSink, KafkaScoreSink
from connectors.kafka.transactions import TransactionalWriter
from connectors.kafka.writer import KafkaWriter
from connectors.protocols import AlertSink, DeadLetterSink, ScoreSink
from connectors.sink_group import SinkGroup
from connectors.webhook.sink import WebhookSink
from detector.config.settings import Settings
from detector.observability.metrics import Metrics


def make_sinks(
    settings: Settings,
    metrics: Metrics,
    writer: KafkaWriter | None = None,
    transactions: TransactionalWriter | None = None,
    extra_sinks: SinkGroup | None = None,
) -> SinkGroup:
    """Return the sinks that the settings name, and those of `extra_sinks`.

    What goes to Kafka is written by `writer`, or with exactly-once as a part of `transactions`.
    """
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

    if (results := transactions if settings.exactly_once else writer) is not None:
        if kafka.scores_topic:
            scores.append(KafkaScoreSink(results, too_large))
        if kafka.alerts_topic:
            alerts.append(KafkaAlertSink(results, too_large))
        if kafka.dead_letter_topic:
            dead_letters.append(KafkaDeadLetterSink(results, too_large))
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
    return SinkGroup(scores, alerts, dead_letters, writer, feed, problems)
