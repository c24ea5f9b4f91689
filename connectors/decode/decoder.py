"""Records to events: JSON and CSV rows in, columns out, and a reason for every rejection.

The default contract: a record is a JSON object in UTF-8 (a byte-order mark is skipped) with
`stream`, `timestamp` and `values` (an object of numbers) or `value` (one number, the feature `value`). If both are
present, `values` counts; of duplicate keys the last counts, as in every JSON parser. Null means missing, and an event
without any feature is rejected: there would be nothing to score. A number may be written as text; NaN, infinity and
booleans are rejected. If `decode.stream` names other fields than `stream`, all of them must be present.

A categorical event has `code`, alone or with numbers: a string or an integer, a symbol that is the event's feature
`code`. 404 and "404" are the same symbol.
"""

from __future__ import annotations

from typing import Any

import msgspec

from connectors.batches import CsvLayout, EventBatch, RawBatch, Rejected
from connectors.decode.columns import Columns, plain_batch
from connectors.decode.payload import (
    Event,
    NameTemplate,
    RejectionError,
    csv_event,
    csv_layout,
    document,
    field_path,
    find,
    shown,
)
from connectors.decode.settings import REASONS, TEMPLATE_FIELD, DecodeSettings
from connectors.decode.timestamps import parse_time

__all__ = ["REASONS", "DecodeSettings", "Decoder"]

# With `decode.batch`: a mebibyte has room for 80,000 events, and one poll brings thousands of records
MAX_BATCH_EVENTS = 10_000


class Decoder:
    """Decodes batches of records; holds settings only, so that what it makes of a record depends on that record alone.

    Default schema, one value: about 0.9 us a record on one core; 2 us if any record of the batch is unusual
    (tests/bench/bench_decode.py).
    """

    def __init__(self, settings: DecodeSettings | None = None) -> None:
        self._settings = settings = settings or DecodeSettings()
        self.max_record_bytes = settings.max_record_bytes
        self._template = NameTemplate(settings.stream)
        self._timestamp = field_path(settings.timestamp)
        self._values = field_path(settings.values)
        self._value = field_path(settings.value)
        self._code = field_path(settings.code)
        self._numbers, self._quick = _quick_decoder(settings, type(None)), _quick_decoder(settings, str | int | None)
        self._batch = msgspec.json.Decoder(dict[str, msgspec.Raw]) if settings.batch else None

    def decode(self, raw: RawBatch) -> tuple[EventBatch, list[Rejected]]:
        """Return the records' events, in order, and the rejections, in order; raises nothing for what a record holds.

        Every record is one event or one rejection; with the setting `batch`, every event in it is. A rejection holds
        the record's own bytes (of a batch: those of the rejected event).
        """
        if self._batch is None and not raw.csv:
            for parser in filter(None, (self._numbers, self._quick)):
                batch = plain_batch(raw, parser, self._settings, codes=parser is self._quick)
                if batch is not None:
                    return batch, []
        columns = Columns(self._settings)
        rejected = []
        for row, (value, partition, received, key) in enumerate(
            zip(raw.value, raw.partition, raw.received, raw.key, strict=True)
        ):
            layout = raw.csv.get(partition) if raw.csv else None
            pieces = [value] if self._batch is None or layout is not None else self._pieces(value)
            if len(pieces) > MAX_BATCH_EVENTS:
                detail = f"{len(pieces)} events, at most {MAX_BATCH_EVENTS} are expected; send fewer in one record"
                rejected.append(_rejected(raw, row, value, RejectionError("too_many_events", detail)))
                continue
            for piece in pieces:
                try:
                    columns.add(row, self._event(piece, layout), key, received)
                except RejectionError as rejection:
                    columns.undo()
                    rejected.append(_rejected(raw, row, piece, rejection))
        return columns.batch(raw, compact=bool(rejected)), rejected

    def csv_layout(self, header: bytes) -> CsvLayout:
        """Return how the rows under a CSV header are read; raises ValueError if it is unusable."""
        return csv_layout(header, self._settings.code, self._template)

    def time_of(self, value: bytes, layout: CsvLayout | None = None) -> int | None:
        """Return a record's time in ns (of a batch: its first event's), or None if it has none that can be read."""
        if self._batch is not None and layout is None:
            value = self._pieces(value)[0]
        try:
            if layout is not None and layout.timestamp == 0 and b'"' not in value:
                return parse_time(value.partition(b",")[0].decode())  # as the whole row would say, but for less
            stamp = self._event(value, layout).timestamp
            return None if stamp is None else parse_time(stamp)
        except (RejectionError, ValueError):
            return None

    def _pieces(self, value: bytes) -> list[bytes]:
        """Return the events' own bytes, or the record itself where it holds no list of them."""
        if self._batch is None or len(value) > self._settings.max_record_bytes:
            return [value]
        try:
            found = self._batch.decode(value).get(self._settings.batch)
            pieces = [] if found is None else msgspec.json.decode(found, type=list[msgspec.Raw])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return [value]
        return [bytes(piece) for piece in pieces] or [value]

    def _event(self, value: bytes, layout: CsvLayout | None) -> Event:
        if len(value) > self._settings.max_record_bytes:
            limit = self._settings.max_record_bytes
            raise RejectionError("too_large", f"{len(value)} bytes; decode.max_record_bytes is {limit}")
        if layout is not None:
            return csv_event(value, layout, self._template)
        if self._quick is not None:
            try:
                event = self._quick.decode(value)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                pass  # unusual or broken: `_thorough` finds out which
            else:
                something = event.values is not None or event.value is not None or event.code is not None
                if something and (event.stream or self._template.optional):
                    return event
        return self._thorough(value)

    def _thorough(self, value: bytes) -> Event:
        record = document(value)
        if type(record) is not dict:
            raise RejectionError("not_an_object", f"found {shown(record)}, expected a JSON object")
        settings = self._settings
        values, one = find(record, self._values), find(record, self._value)
        stamp, code = find(record, self._timestamp), find(record, self._code)
        if values is None and one is None and code is None:
            raise RejectionError(
                "no_value",
                f"neither `{settings.values}` nor `{settings.value}` holds a number, nor `{settings.code}` a symbol",
            )
        if values is not None and type(values) is not dict:
            raise RejectionError("not_an_object", f"`{settings.values}` is {shown(values)}, expected an object")
        if stamp is not None and type(stamp) not in (str, int, float):
            raise RejectionError("bad_timestamp", f"`{settings.timestamp}` is {shown(stamp)}, expected a time")
        return Event(self._template.name(record), stamp, values, one, code)


def _quick_decoder(settings: DecodeSettings, code: Any) -> msgspec.json.Decoder[Event] | None:
    """Return a typed parser for settings that name five different top-level fields; None for others.

    `code` is the type that a code may have: with that of None the parser fails on records that have one.
    """
    field = TEMPLATE_FIELD.fullmatch(settings.stream)
    names = [field[1] if field else ".", settings.timestamp, settings.values, settings.value, settings.code]
    if any("." in name for name in names) or len(set(names)) < len(names):
        return None
    rename = dict(zip(Event.__struct_fields__, names, strict=True))
    fields = [("code", code, None)]
    return msgspec.json.Decoder(msgspec.defstruct("_Renamed", fields, bases=(Event,), gc=False, rename=rename))


def _rejected(raw: RawBatch, row: int, value: bytes, rejection: RejectionError) -> Rejected:
    topic, partition = raw.partitions[raw.partition[row]]
    detail = f"{topic}, line {raw.line[row]}: {rejection}" if raw.line else str(rejection)
    return Rejected(topic, partition, raw.offset[row], rejection.reason, detail, value)
