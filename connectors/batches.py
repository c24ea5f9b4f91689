"""What crosses the border between connectors and engine: columns of events, of scores, and alerts.

Every array says its shape. `events` is the number of events in the batch, `observations` the number of feature
values in it; the observations of event i are rows `start[i]:start[i+1]`. Names are coded: `stream[i]` is an index
into `streams`, and so on, so that no column holds Python objects. An observation is a number or, in a categorical
stream, a symbol.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
_Name = TypeVar("_Name")

# Scores.channel counts them: what can claim that an event is rare; docs/scoring.md
CHANNELS = ("forecast", "level", "still", "coupling", "novel", "symbol")
# An alert's channel: besides those of events, that there are none
SILENT = "silence"
ALERT_CHANNELS = *CHANNELS, SILENT
# Alert.resolved_by: the old level came back, the new one was taken as normal, the stream sends nothing any more; a
# person called it false, or had the stream begin anew. A stream that stopped sends again ("back"), is taken to be gone
# for good, or nobody wants to know any more
BACK, ACCEPTED, SILENCE, FALSE, RESET = "back", "accepted", "silence", "false", "reset"
GONE, MUTED = "gone", "muted"
# Scores.held_back counts them: why an event above its stream's threshold is no alert. The stream is too young to know
# what is so rare, or it is not rare enough among those of the whole fleet, or a person has called one like it false
HELD_BACK = ("", "young", "fleet", "false")

_no_codes = lambda: np.zeros(0, np.int32)
_no_numbers = lambda: np.zeros(0)
_no_numbers8, _no_numbers64 = (lambda: np.zeros(0, np.int8)), (lambda: np.zeros(0, np.int64))


def numbered(names: Iterable[str], numbers: dict[str, int]) -> Int64:
    """Return the number of each name, [names]; new ones are added to `numbers` as they come."""
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


class Partition(NamedTuple):
    """Where events come from: a Kafka topic's partition, or a file (topic is its path, partition 0)."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class EventBatch:
    """A micro-batch of events, in the order in which they were read.

    `time` is the event's own time and `received` the record's (the broker's for Kafka), both in ns since
    1970-01-01 UTC. `offset` is the record's offset in its partition (files: the record's number, from 0).
    A feature that is missing from an event has no observation. A feature may be a number in one event and a symbol in
    another; these have nothing to do with each other.
    """

    streams: list[str]  # names that occur in this batch, each once
    features: list[str]  # likewise
    partitions: list[Partition]  # likewise
    stream: Int32  # [events] index into streams
    time: Int64  # [events] ns
    received: Int64  # [events] ns
    partition: Int32  # [events] index into partitions
    offset: Int64  # [events]
    start: Int64  # [events + 1] first observation of each event
    feature: Int32  # [observations] index into features
    value: Float64  # [observations] finite; NaN for a symbol
    symbols: list[str] = field(default_factory=list)  # symbols that occur in this batch, each once
    symbol: Int32 = field(default_factory=_no_codes)  # [observations] index into symbols, -1: a number; [0] if all are

    @classmethod
    def of(cls, events: Iterable[tuple[str, Any, Mapping[str, float | str]]]) -> EventBatch:
        """Make a batch of events in their order: stream, time, values by feature, of which text is a symbol.

        A time is in ns since 1970-01-01 UTC, or what numpy takes for a datetime64 in UTC. Raises ValueError for a
        number that is not finite or a time that cannot be read.
        """
        streams, features, symbols = dict[str, int](), dict[str, int](), dict[str, int]()
        stream, time, start, feature = list[int](), list[Any](), [0], list[int]()
        value, symbol = list[float](), list[int]()
        for name, at, values in events:
            stream.append(streams.setdefault(name, len(streams)))
            time.append(at)
            for key, found in values.items():
                feature.append(features.setdefault(key, len(features)))
                value.append(math.nan if isinstance(found, str) else float(found))
                symbol.append(symbols.setdefault(found, len(symbols)) if isinstance(found, str) else -1)
            start.append(len(value))
        batch = cls._of_one_source(
            list(streams), list(features), np.array(stream, np.int32), time,
            np.array(start, np.int64), np.array(feature, np.int32), np.array(value, np.float64),
        )  # fmt: skip
        codes = np.array(symbol, np.int32)
        if not np.isfinite(batch.value[codes < 0]).all():
            raise ValueError("numbers must be finite; leave out a feature that is missing")
        return replace(batch, symbols=list(symbols), symbol=codes) if symbols else batch

    @classmethod
    def of_columns(cls, stream: str, time: ArrayLike, features: Mapping[str, ArrayLike]) -> EventBatch:
        """Make a batch of one stream's events: times [events], and a column [events] of numbers for each feature.

        NaN stands for a feature that is missing from an event; a row of nothing else is left out, and `offset` is the
        row. Times are as in `of`. Raises ValueError for an infinite number, a time that cannot be read, and columns of
        unequal length.
        """
        table = np.column_stack([np.asarray(column, np.float64) for column in features.values()])  # [events, features]
        if np.isinf(table).any():
            raise ValueError("numbers must be finite; NaN stands for a feature that is missing")
        known = ~np.isnan(table)
        kept = np.flatnonzero(known.any(axis=1))
        batch = cls._of_one_source(
            [stream], list(features), np.zeros(len(kept), np.int32), np.asarray(time)[kept],
            np.concatenate(([0], np.cumsum(known[kept].sum(axis=1)))),
            np.nonzero(known)[1].astype(np.int32), table[known],
        )  # fmt: skip
        return replace(batch, offset=kept)

    @classmethod
    def of_table(
        cls, streams: Sequence[str], features: Sequence[str], stream: ArrayLike, time: ArrayLike, value: ArrayLike
    ) -> EventBatch:
        """Make a batch of events of several streams that each have a number of every feature.

        `stream` [events] is an index into `streams`, `value` [events, features]; an event's offset is its number. Times
        are as in `of`; numbers are finite, which is not checked.
        """
        table = np.asarray(value, np.float64)
        events, width = table.shape
        return cls._of_one_source(
            list(streams), list(features), np.asarray(stream, np.int32), time, width * np.arange(events + 1),
            np.tile(np.arange(width, dtype=np.int32), events), table.ravel(),
        )  # fmt: skip

    @classmethod
    def _of_one_source(
        cls,
        streams: list[str],
        features: list[str],
        stream: Int32,
        time: ArrayLike,
        start: Int64,
        feature: Int32,
        value: Float64,
    ) -> EventBatch:
        """Make a batch of events that come from no topic or file; an event's offset is its number."""
        ns = np.asarray(time, "datetime64[ns]").astype(np.int64)
        if np.isnat(ns.view("datetime64[ns]")).any():
            raise ValueError("every event needs a time")
        events = len(ns)
        return cls(
            streams=streams,
            features=features,
            partitions=[Partition("", 0)],
            stream=stream,
            time=ns,
            received=ns,
            partition=np.zeros(events, np.int32),
            offset=np.arange(events),
            start=start,
            feature=feature,
            value=value,
        )

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.stream)

    def slice(self, first: int, last: int) -> EventBatch:
        """Return events first..last as a batch, with the names that occur in them."""
        rows = slice(int(self.start[first]), int(self.start[last]))
        stream, streams = recode(self.stream[first:last], self.streams)
        feature, features = recode(self.feature[rows], self.features)
        symbol, symbols = recode(self.symbol[rows], self.symbols)
        return replace(
            self,
            streams=streams,
            features=features,
            stream=stream,
            time=self.time[first:last],
            received=self.received[first:last],
            partition=self.partition[first:last],
            offset=self.offset[first:last],
            start=self.start[first : last + 1] - rows.start,
            feature=feature,
            value=self.value[rows],
            symbols=symbols,
            symbol=symbol if symbols else symbol[:0],
        )


def recode(codes: Int32, names: Sequence[_Name]) -> tuple[Int32, list[_Name]]:
    """Return codes [n] of the names that occur, and those names; a code of -1 stays."""
    used, recoded = np.unique(codes, return_inverse=True)
    negative = int((used < 0).sum())
    return (recoded - negative).astype(np.int32), [names[code] for code in used[negative:].tolist()]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that could not be decoded or scored, with the reason; goes to the dead-letter sink."""

    topic: str
    partition: int
    offset: int
    reason: str  # one of decode.REASONS, or "engine_error": a metric label
    detail: str  # for a person: what was found, what was expected
    raw: bytes


@dataclass(frozen=True, slots=True)
class Scores:
    """The engine's result for an EventBatch: one row per scored event, in the batch's order.

    `event[i]` is the row of the batch that row i scores (late and duplicate events may have been dropped, so there
    can be fewer rows than events). Observation rows: `observation[j]` is the row of the batch's observations.
    """

    batch: EventBatch
    event: Int64  # [scored] index into the batch's events, ascending
    score: Float64  # [scored] log10 of the return period in events, >= 0
    threshold: Float64  # [scored] score above which this stream may alert
    rank: Float64  # [scored] how unusual it is now, >= 0, no ties: to sort and to draw by
    channel: NDArray[np.int8]  # [scored] index into CHANNELS of what claims most; -1: nothing is claimed
    interval: Float64  # [scored] usual time between the stream's events, seconds; 0: not known yet
    alert: Bool  # [scored] the event is part of an alert
    warming: Bool  # [scored] the stream is too young to be judged: score is 0
    surprise: Float64  # [scored] mean negative log-likelihood of the event's features, in nats
    start: Int64  # [scored + 1] first observation row of each scored event
    observation: Int64  # [scored observations] index into the batch's observations
    expected: Float64  # [scored observations] in the data's own unit; NaN before the first forecast
    lower: Float64  # [scored observations] band that the model allowed
    upper: Float64  # [scored observations]
    contribution: Float64  # [scored observations] share in the channel, sums to 1 over an event (or all 0)
    model_version: str = ""
    symbols: list[str] = field(default_factory=list)  # that were expected, each once; the next three: [0] without them
    expected_symbol: Int32 = field(default_factory=_no_codes)  # [scored observations] index into symbols; -1: none
    observed_probability: Float64 = field(default_factory=_no_numbers)  # [scored observations] NaN for a number
    expected_probability: Float64 = field(default_factory=_no_numbers)  # [scored observations] likewise
    held_back: NDArray[np.int8] = field(default_factory=_no_numbers8)  # [scored] index into HELD_BACK; [0]: none is
    missing: Int64 = field(default_factory=_no_numbers64)  # [scored] events that a young stream lacks; [0]: none does

    def __len__(self) -> int:
        """Return the number of scored events."""
        return len(self.event)

    @staticmethod
    def concat(batch: EventBatch, edges: Sequence[int], parts: Sequence[Scores]) -> Scores:
        """Return the scores of a batch's parts, which begin at the events `edges`, as those of the batch."""
        symbols: dict[str, int] = {}
        columns: dict[str, list[NDArray[Any]]] = {name: [] for name in SCORE_COLUMNS}
        starts = [np.zeros(1, np.int64)]
        mixed = any(len(part.expected_symbol) for part in parts)
        for first, part in zip(edges, parts, strict=False):
            for name in SCORE_COLUMNS:
                columns[name].append(getattr(part, name))
            columns["event"][-1] = part.event + first
            columns["observation"][-1] = part.observation + batch.start[first]
            starts.append(part.start[1:] + starts[-1][-1])
            if mixed and len(part.expected_symbol):
                codes = np.array([symbols.setdefault(name, len(symbols)) for name in part.symbols] + [-1], np.int32)
                columns["expected_symbol"][-1] = codes[part.expected_symbol]
            elif mixed:
                columns["expected_symbol"][-1] = np.full(len(part.observation), -1, np.int32)
                for name in ("observed_probability", "expected_probability"):
                    columns[name][-1] = np.full(len(part.observation), np.nan)
        return Scores(
            batch=batch,
            start=np.concatenate(starts),
            model_version=parts[0].model_version,
            symbols=list(symbols),
            **{name: np.concatenate(arrays) for name, arrays in columns.items()},
        )


SCORE_COLUMNS = tuple(
    column.name for column in fields(Scores) if column.name not in {"batch", "start", "model_version", "symbols"}
)


@dataclass(frozen=True, slots=True)
class Alert:
    """One incident of one stream, when it fires and again when it resolves.

    Times are ns since 1970-01-01 UTC, by the events' clock. `observed`, `expected`, `lower`, `upper` and
    `contributions` are by feature and belong to the event with the highest score so far. For a symbol, `expected` is
    the likeliest (None: the stream knew none yet), there is no band, and both have probabilities. The leading feature
    has a band only if it lies outside; else NaN.
    """

    id: str  # the same for an incident's firing and resolved, and after any restart
    stream: str
    status: str  # "firing" | "resolved"
    severity: str  # "warning" | "critical"
    started_at: int
    ended_at: int | None
    score: float
    threshold: float
    observed: dict[str, float | str]
    expected: dict[str, float | str | None]
    lower: dict[str, float]
    upper: dict[str, float]
    contributions: dict[str, float]
    model_version: str
    topic: str
    partition: int
    offset: int  # -1: of no event, but of silence
    observed_probability: dict[str, float] = field(default_factory=dict)  # by feature that is a symbol
    expected_probability: dict[str, float] = field(default_factory=dict)  # likewise
    resolved_by: str = ""  # BACK | ACCEPTED | SILENCE | FALSE | RESET | GONE | MUTED: what ended it; "" while it fires
    features_left_out: int = 0  # for which the record had no room
    channel: str = ""  # of ALERT_CHANNELS; "" and so on: an incident that began before alerts had it
    feature: str = ""  # that leads
    rank: float = 0.0
    return_period: str = ""  # in words
    summary: str = ""  # one sentence, made of `evidence`
    evidence: dict[str, float] = field(default_factory=dict)  # the channel's own numbers, by their names
    rule: str = ""  # name of the rule that the stream had; "": none, what holds for all


class CsvLayout(NamedTuple):
    """How the rows of a CSV file are read, as its header says. Cells are counted from 0."""

    cells: int  # in every row
    timestamp: int
    stream: int | None  # None: `name` does, or the record's key
    values: tuple[tuple[int, str], ...]  # cell and feature
    code: int | None = None  # the cell that holds a symbol
    name: tuple[int, ...] = ()  # cells that the stream's name is made of, in the order of decode.stream


@dataclass(slots=True)
class RawBatch:
    """Undecoded records from a source: parallel lists, cheap to append to.

    A file's records carry their line numbers, and the rows of a CSV file its layout; Kafka's have neither.
    """

    partitions: list[Partition] = field(default_factory=list)
    partition: list[int] = field(default_factory=list)  # index into partitions
    offset: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)  # ms since 1970 UTC; -1 unknown
    key: list[bytes | None] = field(default_factory=list)
    value: list[bytes] = field(default_factory=list)
    line: list[int] = field(default_factory=list)  # files: from 1; else empty
    csv: dict[int, CsvLayout] = field(default_factory=dict)  # by index into partitions; others hold JSON
    # the next offset, if it is beyond the last record's: a transaction marker or aborted records follow
    passed: dict[Partition, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.offset)
