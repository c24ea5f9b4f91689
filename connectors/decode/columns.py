"""The columns of a batch of events, built event by event, or all at once if every record has the default form."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import msgspec
import numpy as np

from connectors.batches import EventBatch, Int32, RawBatch, recode
from connectors.decode.payload import Event, RejectionError, key_name, number_of, shown, symbol_of
from connectors.decode.settings import DecodeSettings
from connectors.decode.timestamps import NS_PER_MILLISECOND, parse_time

MAX_PLAIN_BYTES = 8 << 20  # all parsed at once they take some 25 times as much; what is more goes record by record
CODE = "code"  # the name of the feature that a categorical event's symbol is
MAX_NAME_BYTES = 255  # of a stream or feature, in UTF-8: each state, score and alert holds the name
MAX_CODE_BYTES = 1_024  # of a symbol, in UTF-8: likewise
MS_PER_DAY = 86_400_000
MAX_MS = 2**63 // NS_PER_MILLISECOND - 1  # what ns in 64 bits can hold

_Name = TypeVar("_Name")


class Columns:
    """The columns of a batch while they grow."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._max_age_ms = round(settings.max_age_days * MS_PER_DAY)
        self._max_ahead_ms = round(settings.max_ahead_seconds * 1_000)
        self._times: dict[str | int | float, int] = {}  # streams report at the same times: each is read once a batch
        self._stream_codes: dict[str, int] = {}
        self._feature_codes: dict[str, int] = {}  # -1: excluded
        self._features: list[str] = []
        self._row: list[int] = []
        self._stream: list[int] = []
        self._time: list[int] = []
        self._start: list[int] = [0]
        self._feature: list[int] = []
        self._value: list[float] = []
        self._symbols: dict[str, int] = {}
        self._codes: dict[str | int, int] = {}  # as `_symbols`, by what was met
        self._symbol_at: list[int] = []  # observations that are symbols ...
        self._symbol: list[int] = []  # ... and which

    def add(self, row: int, event: Event, key: bytes | None, received_ms: int) -> None:
        """Append an event; if it is rejected, `undo` must follow."""
        values = event.values
        if values is None:
            if event.value is not None:
                self._observe("value", event.value)
        else:
            if len(values) > self._settings.max_features:
                limit = self._settings.max_features
                raise RejectionError("too_many_features", f"{len(values)}; decode.max_features is {limit}")
            codes, add_code, add_value = self._feature_codes, self._feature.append, self._value.append
            for feature, value in values.items():
                code = codes.get(feature, -1)
                # The common case is handled here, for speed: a known feature, a finite float
                if code >= 0 and type(value) is float and -math.inf < value < math.inf:
                    add_code(code)
                    add_value(value)
                elif value is not None:
                    self._observe(feature, value)
        if event.code is not None:
            self._observe_code(event.code)
        end = len(self._value)
        if end == self._start[-1]:
            raise RejectionError("no_value", "every feature is missing")

        stamp = event.timestamp
        if stamp is None:
            if not 0 <= received_ms <= MAX_MS:
                raise RejectionError("bad_timestamp", "no timestamp, neither in the event nor on the record")
            time = received_ms * NS_PER_MILLISECOND
        else:
            time = self._times.get(stamp) or self._read_time(stamp)
            if received_ms >= 0:
                ahead_ms = time // NS_PER_MILLISECOND - received_ms
                if not self.in_time(ahead_ms):
                    raise RejectionError("bad_timestamp", self._out_of_range(stamp, ahead_ms))

        name = event.stream
        if type(name) is not str or not name:
            name = str(name) if type(name) is int else key_name(key)
        stream = self._stream_codes.get(name)
        if stream is None:
            self.check_name("stream", name)
            stream = self._stream_codes[name] = len(self._stream_codes)

        self._row.append(row)
        self._stream.append(stream)
        self._time.append(time)
        self._start.append(end)

    def undo(self) -> None:
        """Take back the observations of an event that was rejected."""
        first = self._start[-1]
        del self._feature[first:], self._value[first:]
        if self._symbol_at and self._symbol_at[-1] >= first:
            del self._symbol_at[-1], self._symbol[-1]

    def batch(self, raw: RawBatch, *, compact: bool) -> EventBatch:
        """Return the batch; `compact` drops names that only rejected events had."""
        row = np.array(self._row, np.intp)
        time = np.array(self._time, np.int64)
        received_ms = np.array(raw.received, np.int64)[row]
        stream, streams = np.array(self._stream, np.int32), list(self._stream_codes)
        feature, features = np.array(self._feature, np.int32), self._features
        partition, partitions = np.array(raw.partition, np.int32)[row], list(raw.partitions)
        codes, symbols = np.array(self._symbol, np.int32), list(self._symbols)
        if compact:
            stream, streams = recode(stream, streams)
            feature, features = recode(feature, features)
            partition, partitions = recode(partition, partitions)
            codes, symbols = recode(codes, symbols)
        symbol = np.full(len(feature) if symbols else 0, -1, np.int32)
        symbol[self._symbol_at] = codes
        return EventBatch(
            streams=streams,
            features=features,
            partitions=partitions,
            stream=stream,
            time=time,
            received=np.where(received_ms < 0, time, received_ms * NS_PER_MILLISECOND),
            partition=partition,
            offset=np.array(raw.offset, np.int64)[row],
            start=np.array(self._start, np.int64),
            feature=feature,
            value=np.array(self._value, np.float64),
            symbols=symbols,
            symbol=symbol,
        )

    def _observe_code(self, code: object) -> None:
        feature = self._feature_codes.get(CODE)
        if feature is None:
            feature = self._add_feature(CODE)
        if feature < 0:
            return
        if feature in self._feature[self._start[-1] :]:
            raise RejectionError("bad_code", f"a symbol and a number, both named {CODE!r}; exclude or rename one")
        symbol = self._codes.get(code, -1) if type(code) is str or type(code) is int else -1
        if symbol < 0:
            symbol = self.add_symbol(code)
        self._symbol_at.append(len(self._value))
        self._symbol.append(symbol)
        self._value.append(math.nan)
        self._feature.append(feature)

    def add_symbol(self, code: Any) -> int:
        """Return the number of a code's symbol; rejects what is no symbol."""
        name = symbol_of(code)
        if (size := len(name.encode())) > MAX_CODE_BYTES:
            raise RejectionError("code_too_long", f"the code {shown(name)} has {size} bytes, at most {MAX_CODE_BYTES}")
        symbol = self._codes[code] = self._symbols.setdefault(name, len(self._symbols))
        return symbol

    @property
    def symbols(self) -> list[str]:
        """The symbols so far, by number."""
        return list(self._symbols)

    def _observe(self, feature: str, value: object) -> None:
        code = self._feature_codes.get(feature)
        if code is None:
            code = self._add_feature(feature)
        if code >= 0:
            self._value.append(number_of(feature, value))
            self._feature.append(code)

    def _add_feature(self, feature: str) -> int:
        if any(fnmatchcase(feature, pattern) for pattern in self._settings.exclude_features):
            code = -1
        else:
            self.check_name("feature", feature)
            code = len(self._features)
            self._features.append(feature)
        self._feature_codes[feature] = code
        return code

    def _read_time(self, stamp: str | float) -> int:
        try:
            time = self._times[stamp] = parse_time(stamp)
        except ValueError as error:
            raise RejectionError("bad_timestamp", str(error)) from None
        return time

    def _out_of_range(self, stamp: str | float, ahead_ms: int) -> str:
        days = ahead_ms / MS_PER_DAY
        if days < 0:
            limit = f"decode.max_age_days is {self._settings.max_age_days:g}"
        else:
            limit = f"decode.max_ahead_seconds is {self._settings.max_ahead_seconds:g}"
        where = "before" if days < 0 else "after"
        return f"{shown(stamp)} lies {abs(days):.1f} days {where} the record's own time; {limit}"

    def in_time(self, ahead_ms: int) -> bool:
        """Return whether an event may lie so far ahead of its record's own time."""
        return -self._max_age_ms <= ahead_ms <= self._max_ahead_ms

    def check_name(self, kind: str, name: str) -> None:
        """Raise RejectionError for a name that is too long, or could forge a line of a log."""
        # Control characters, line separators, direction marks and lone surrogates: none is printable.
        if not name or not name.isprintable():
            raise RejectionError("bad_name", f"the {kind}'s name {shown(name)} must be printable and not empty")
        if (size := len(name.encode())) > MAX_NAME_BYTES:
            name = f"the {kind}'s name {shown(name)}"
            raise RejectionError("name_too_long", f"{name} has {size} bytes, at most {MAX_NAME_BYTES} are expected")


def plain_batch(
    raw: RawBatch, parser: msgspec.json.Decoder[Event], settings: DecodeSettings, *, codes: bool
) -> EventBatch | None:
    """Return the events of records that all have the default form, column by column; None if one of them has not.

    The result is that of `Columns`, in half the time; unusual records are left to that.
    Without `codes` the parser fails on records that have one, so that numbers do not pay for them.
    """
    sizes = list(map(len, raw.value))
    if not sizes or settings.exclude_features or max(sizes) > settings.max_record_bytes or sum(sizes) > MAX_PLAIN_BYTES:
        return None
    try:
        events = list(map(parser.decode, raw.value))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    values: list[dict[str, Any]]
    if codes:
        values = [{"value": e.value} if e.values is None and e.value is not None else e.values or {} for e in events]
    else:
        values = [{"value": event.value} if event.values is None else event.values for event in events]
    numbers = [number for event in values for number in event.values()]
    names: list[Any] = [event.stream for event in events]
    stamps: list[Any] = [event.timestamp for event in events]
    if not set(map(type, numbers)) <= {float} or set(map(type, names)) != {str} or None in stamps:
        return None
    value = np.array(numbers, np.float64)
    start = np.zeros(len(events) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), out=start[1:])
    counts = np.diff(start)
    if not np.isfinite(value).all() or counts.max() > settings.max_features or (counts.min() == 0 and not codes):
        return None
    columns = Columns(settings)
    symbol = np.zeros(0, np.int32)
    try:
        stream, streams = _coded(names)
        feature, features = _coded([name for event in values for name in event])
        for name in streams:
            columns.check_name("stream", name)
        for name in features:
            columns.check_name("feature", name)
        if codes:
            coded = [event.code for event in events]
            if CODE in features:
                return None
            distinct_codes = {code: columns.add_symbol(code) for code in dict.fromkeys(coded) if code is not None}
            which = np.array([-1 if code is None else distinct_codes[code] for code in coded], np.int32)
            has = which >= 0
            if (counts + has).min() == 0:
                return None
            ends = start[1:][has]  # an event's symbol comes after its numbers
            value, feature = np.insert(value, ends, math.nan), np.insert(feature, ends, len(features))
            features.append(CODE)
            start[1:] += np.cumsum(has)
            symbol = np.full(len(value), -1, np.int32)
            symbol[start[1:][has] - 1] = which[has]
        stamp, distinct = _coded(stamps)
        time = np.array([parse_time(text) for text in distinct], np.int64)[stamp]
    except (RejectionError, ValueError):
        return None
    received_ms = np.array(raw.received, np.int64)
    ahead_ms = np.where(received_ms < 0, 0, time // NS_PER_MILLISECOND - received_ms)
    if not columns.in_time(ahead_ms.min()) or not columns.in_time(ahead_ms.max()):
        return None
    return EventBatch(
        streams=streams,
        features=features,
        partitions=list(raw.partitions),
        stream=stream,
        time=time,
        received=np.where(received_ms < 0, time, received_ms * NS_PER_MILLISECOND),
        partition=np.array(raw.partition, np.int32),
        offset=np.array(raw.offset, np.int64),
        start=start,
        feature=feature,
        value=value,
        symbols=columns.symbols,
        symbol=symbol,
    )


def _coded(column: list[_Name]) -> tuple[Int32, list[_Name]]:
    """Return codes [n], and the distinct names in the order of their first occurrence."""
    codes = {name: code for code, name in enumerate(dict.fromkeys(column))}
    return np.fromiter(map(codes.__getitem__, column), np.int32, len(column)), list(codes)
