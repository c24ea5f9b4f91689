"""What a record's bytes say, before it is judged: JSON and CSV rows, fields by path, a name by template."""

from __future__ import annotations

import csv
import functools
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from connectors.batches import CsvLayout
from connectors.decode.settings import DEFAULT_TEMPLATE, TEMPLATE_FIELD

_SHOWN_CHARACTERS = 60  # of what was found, in a rejection's detail
_MAX_CODE_BITS = 200
_MAX_INTEGER_DIGITS = 400  # float64 ends at 309; Python does not convert beyond 4,300


class Event(msgspec.Struct, gc=False):
    """One event before it is checked.

    The types are what the quick parser lets through; values from the thorough one may be of any type of JSON.
    """

    stream: str | int | None = None
    timestamp: str | int | float | None = None
    values: dict[str, float | str | None] | None = None
    value: float | str | None = None
    code: str | int | None = None


class RejectionError(Exception):
    """A record or an event is rejected; `reason` is one of decode.REASONS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


Path = tuple[tuple[str, "Path | None"], ...]  # keys to look for, and where then in what is there; None: it is found


@functools.cache  # the paths within a path share their ends
def field_path(path: str) -> Path:
    """Return where a field is: dots lead into objects; a key that holds the dots itself wins, the longest first."""
    parts = path.split(".")
    cuts = range(len(parts), 0, -1)
    return tuple((".".join(parts[:cut]), field_path(".".join(parts[cut:])) if parts[cut:] else None) for cut in cuts)


def find(node: Any, path: Path) -> Any:
    """Return what is there, or None where nothing is, or null."""
    if type(node) is dict:
        for key, rest in path:
            found = node.get(key)
            if rest is not None:
                found = find(found, rest)
            if found is not None:
                return found
    return None


class NameTemplate:
    """A stream's name made of a record's fields.

    Each field that a template names must be present: without it, different streams would share a name.
    """

    def __init__(self, template: str) -> None:
        self.text, self.optional = template, template == DEFAULT_TEMPLATE
        pieces = TEMPLATE_FIELD.split(template)  # text, field, text, field, ..., text
        self._texts = pieces[0::2]
        self._fields = [(field, field_path(field)) for field in pieces[1::2]]

    def name(self, record: dict[str, Any]) -> str | None:
        """Return the name, None if it is optional and missing. Raises RejectionError."""
        return self._filled([(field, find(record, path)) for field, path in self._fields])

    def columns(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """Return where a CSV header has the template's fields, None where one is missing."""
        fields = [field for field, _ in self._fields]
        return tuple(map(names.index, fields)) if all(field in names for field in fields) else None

    def name_of_cells(self, cells: Sequence[str]) -> str | None:
        """Return the name made of the cells at the positions from `columns`; see `name`."""
        return self._filled([(field, cell) for (field, _), cell in zip(self._fields, cells, strict=True)])

    def _filled(self, parts: Sequence[tuple[str, Any]]) -> str | None:
        name = self._texts[0]
        for (field, found), text in zip(parts, self._texts[1:], strict=True):
            if found is None or found == "":
                if self.optional:
                    return None
                raise RejectionError("no_stream", f"`{field}`, of decode.stream, is missing or empty")
            if type(found) is not str and type(found) is not int:
                raise RejectionError("bad_name", f"`{field}`, of the stream's name, is {shown(found)}, expected text")
            name += f"{found}{text}"
        return name


def document(value: bytes) -> Any:
    """Return what a record's JSON holds. The strict parser first; if it fails, the lenient one says why."""
    if not value:
        raise RejectionError("empty", "no bytes")
    if value[0] == 0:
        raise RejectionError("unsupported", "begins with a zero byte, as schema-registry framing does; send plain JSON")
    try:
        try:
            return msgspec.json.decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError):  # NaN, a byte-order mark, a number beyond float64 ...
            return _LENIENT.decode(value.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RejectionError("not_utf8", f"{error.reason} (byte {error.start})") from None
    except RecursionError:
        raise RejectionError("too_deep", "nested too deeply") from None
    except ValueError as error:
        begin = shown(value[:_SHOWN_CHARACTERS].decode(errors="replace"))
        raise RejectionError("not_json", f"{error}; the record begins {begin}") from None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_INTEGER_DIGITS else math.inf


_LENIENT = json.JSONDecoder(parse_int=_integer)


def csv_layout(header: bytes, code: str, template: NameTemplate) -> CsvLayout:
    """Return how the rows under a CSV header are read; raises ValueError if it is unusable.

    The column named `code` holds symbols. The template's fields are columns, or else there is a column `stream`; with
    the default one there need not be.
    """
    try:
        names = [name.strip() for name in next(csv.reader([header.decode()], strict=True))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"expected JSON, or a CSV header, in UTF-8 ({error})") from None
    found = shown(", ".join(names))
    if "timestamp" not in names:
        raise ValueError(f"expected JSON, or a CSV header with a column `timestamp`; found {found}")
    times = Counter(names)
    for name in names:
        if not name or not name.isprintable() or times[name] > 1:
            raise ValueError(f"every column needs a unique, printable name; found {shown(name)} in {found}")
    name_cells = () if template.optional else template.columns(names)
    if name_cells is None:
        if "stream" not in names:
            raise ValueError(
                f"has no columns for {template.text}, decode.stream, and no column `stream`; found {found}; with"
                f" --set 'decode.stream={DEFAULT_TEMPLATE}' the file's own name serves"
            )
        name_cells = ()
    values = tuple(
        (cell, name)
        for cell, name in enumerate(names)
        if name not in ("timestamp", "stream", code) and cell not in name_cells
    )
    symbols = names.index(code) if code in names and code not in ("timestamp", "stream") else None
    if not values and symbols is None:
        raise ValueError(f"expected a column of values in addition to `timestamp`; found {found}")
    stream = names.index("stream") if "stream" in names and not name_cells else None
    return CsvLayout(len(names), names.index("timestamp"), stream, values, symbols, name_cells)


def csv_event(line: bytes, layout: CsvLayout, template: NameTemplate) -> Event:
    """Return the event in a CSV row. An empty cell is a missing value; a quoted one may hold commas, no line breaks."""
    try:
        text = line.decode()
        cells = text.split(",") if '"' not in text else next(csv.reader([text], strict=True))
    except UnicodeDecodeError as error:
        raise RejectionError("not_utf8", f"{error.reason} (byte {error.start})") from None
    except csv.Error as error:
        raise RejectionError("bad_row", f"{error}: {shown(text)}") from None
    if len(cells) != layout.cells:
        raise RejectionError("bad_row", f"{len(cells)} cells, where the header has {layout.cells}: {shown(text)}")
    stream = None if layout.stream is None else cells[layout.stream]
    if layout.name:
        stream = template.name_of_cells([cells[cell] for cell in layout.name])
    values: dict[str, float | str | None] = {name: cells[cell] or None for cell, name in layout.values}
    code = None if layout.code is None else cells[layout.code] or None
    return Event(stream, cells[layout.timestamp], values, code=code)


def shown(value: object) -> str:
    """Return a value for a person: short, and with everything escaped that could forge a log line."""
    if isinstance(value, str):
        return ascii(value[:_SHOWN_CHARACTERS]) + ("..." if len(value) > _SHOWN_CHARACTERS else "")
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    return "null" if value is None else str(value).lower()


def number_of(feature: str, value: object) -> float:
    """Return a feature's value; raises RejectionError if it is not a finite number."""
    try:
        if type(value) is str:
            # float() would also take digits of other scripts, and underscores between them
            number = float(value) if value.isascii() and "_" not in value else math.nan
        elif type(value) is int or type(value) is float:
            number = float(value)
        else:
            number = math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RejectionError("not_a_number", f"{shown(feature)} is {shown(value)}, expected a finite number")
    return number


def symbol_of(code: object) -> str:
    """Return the symbol that a code is, white space in one that cannot be printed made single blanks.

    Raises RejectionError if it is none.
    """
    if type(code) is int and code.bit_length() <= _MAX_CODE_BITS:
        return str(code)
    if type(code) is str:
        symbol = code if code.isprintable() else " ".join(code.split())
        # Control characters, line separators, direction marks and lone surrogates: none is printable.
        if symbol and symbol.isprintable():
            return symbol
    raise RejectionError("bad_code", f"the code is {shown(code)}, expected an integer or text that can be printed")


def key_name(key: bytes | None) -> str:
    """Return the stream's name that a record's key is; raises RejectionError if it is none."""
    if not key:
        raise RejectionError("no_stream", "neither the event nor the record's key names a stream")
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise RejectionError("no_stream", f"the event names none, and the key {key[:20]!r} is not UTF-8") from None
