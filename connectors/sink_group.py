"""All sinks of one daemon as one: written together, flushed together, taken back together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.batches import Alert, Rejected, Scores
from connectors.common.background import OngoingProblem
from connectors.kafka.alert_feed import AlertFeed
from connectors.kafka.writer import KafkaWriter
from connectors.protocols import AlertSink, DeadLetterSink, ScoreSink, Sink


@dataclass(frozen=True, slots=True)
class SinkGroup:
    """Where results go. Incidents are one of `alerts`, or are fed by `feed` with what has been committed."""

    scores: Sequence[ScoreSink]
    alerts: Sequence[AlertSink]
    dead_letters: Sequence[DeadLetterSink]
    writer: KafkaWriter | None = None  # of those that write to Kafka outside of transactions
    feed: AlertFeed | None = None

    def __iter__(self) -> Iterator[Sink[Any]]:
        """Yield every sink."""
        yield from self.scores
        yield from self.alerts
        yield from self.dead_letters

    @property
    def problems(self) -> dict[str, OngoingProblem]:
        """What fails in the feed's thread, by the name that metrics give it."""
        return {} if self.feed is None else {"alert_feed": self.feed.problem}

    def start(self) -> None:
        """Start the feed."""
        if self.feed is not None:
            self.feed.start()

    def check(self) -> None:
        """Raise what has ended the feed."""
        if self.feed is not None:
            self.feed.check()

    def write_scores(self, scores: Scores) -> None:
        """Hand a batch's scores to each sink of scores."""
        for sink in self.scores:
            sink.write(scores)

    def write_alerts(self, alerts: Sequence[Alert]) -> None:
        """Hand alerts to each sink of alerts."""
        for sink in self.alerts:
            sink.write(alerts)

    def write_dead_letters(self, rejected: Sequence[Rejected]) -> None:
        """Hand rejected records to each sink of dead letters."""
        for sink in self.dead_letters:
            sink.write(rejected)

    @property
    def full(self) -> bool:
        """Whether one of them holds so much for a full disk that no more should come."""
        return any(sink.full for sink in self)

    def flush(self) -> None:
        """Return when everything written is durable."""
        for sink in self:
            sink.flush()

    def position(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {name: place for sink in self for name, place in sink.position().items()}

    def restore(self, position: Mapping[str, Any]) -> None:
        """Take back what was written after `position`."""
        for sink in self:
            sink.restore(position)

    def close(self) -> None:
        """Close all; the first failure is raised at the end."""
        failure: Exception | None = None
        for part in (self.feed, *self) if self.feed else self:
            try:
                part.close()
            except Exception as error:  # noqa: BLE001 - each of them must be closed
                failure = failure or error
        if failure:
            raise failure
