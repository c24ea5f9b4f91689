"""Events of one stream in columns: in memory, as bytes on disk, and as the API and the command line show them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from connectors.batches import CHANNELS, numbered

Int64 = NDArray[np.int64]

MAX_CHUNK_BYTES = 256 << 20  # that a chunk may unpack to: 300 events of 1024 features are 15 MB
NOT_KNOWN = -1  # a code: nothing claimed, no symbol, a model that is not known

# what is kept of an event and of an observation, by name; both in memory and on disk
EVENT: dict[str, np.dtype[Any]] = {
    "time": np.dtype(np.int64),  # ns
    "score": np.dtype(np.float32),  # NaN: not known
    "threshold": np.dtype(np.float32),
    "channel": np.dtype(np.int8),  # index into CHANNELS
    "alert": np.dtype(np.bool_),
    "model": np.dtype(np.int16),  # index into `models`
}
OBSERVATION: dict[str, np.dtype[Any]] = {
    "feature": np.dtype(np.int32),  # index into `features`
    "symbol": np.dtype(np.int32),  # index into `symbols`; NOT_KNOWN: it is a number
    "expected_symbol": np.dtype(np.int32),  # likewise
    "observed": np.dtype(np.float64),
    "expected": np.dtype(np.float64),
    "lower": np.dtype(np.float64),
    "upper": np.dtype(np.float64),
    "contribution": np.dtype(np.float32),
}
COLUMNS = EVENT | OBSERVATION


class DamagedChunkError(ValueError):
    """Bytes that are no columns."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Events in the order in which they were scored; the observations of event i are `start[i]:start[i+1]`."""

    features: list[str]
    symbols: list[str]
    models: list[str]
    start: Int64  # [events + 1]
    values: dict[str, NDArray[Any]]  # by COLUMNS' names: [events] or [observations]

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.start) - 1

    @property
    def observations(self) -> int:
        """Return the number of observations."""
        return int(self.start[-1])

    def rows(self, first: int, last: int) -> Columns:
        """Return events first..last, with all names."""
        a, b = int(self.start[first]), int(self.start[last])
        values = {n: c[first:last] if n in EVENT else c[a:b] for n, c in self.values.items()}
        return replace(self, start=self.start[first : last + 1] - a, values=values)


def no_events() -> Columns:
    """Return columns of no event."""
    return Columns([], [], [], np.zeros(1, np.int64), {name: np.zeros(0, dtype) for name, dtype in COLUMNS.items()})


def joined(parts: Sequence[Columns]) -> Columns:
    """Return the events of all parts, one after the other, with the names that occur."""
    features, symbols, models = dict[str, int](), dict[str, int](), dict[str, int]()
    values: dict[str, list[NDArray[Any]]] = {name: [] for name in COLUMNS}
    starts, observations = [np.zeros(1, np.int64)], 0
    for part in parts or [no_events()]:
        for name, found in part.values.items():
            values[name].append(found)
        for known, own, columns in zip(
            (features, symbols, models),
            (part.features, part.symbols, part.models),
            (("feature",), ("symbol", "expected_symbol"), ("model",)),
            strict=True,
        ):
            used = np.unique(np.concatenate([part.values[column] for column in columns]))
            codes = np.full(len(own) + 1, NOT_KNOWN)  # the last for NOT_KNOWN
            used = used[used >= 0]
            codes[used] = numbered([own[code] for code in used.tolist()], known)
            for column in columns:
                values[column][-1] = codes[part.values[column]].astype(COLUMNS[column])
        starts.append(part.start[1:] + observations)
        observations += part.observations
    return Columns(
        features=list(features),
        symbols=list(symbols),
        models=list(models),
        start=np.concatenate(starts),
        values={name: np.concatenate(columns) for name, columns in values.items()},
    )


# -- as bytes ---------------------------------------------------------------------------------------------------------


class _Chunk(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    features: list[str]
    symbols: list[str]
    models: list[str]
    events: int
    observations: int
    columns: dict[str, bytes]


_DECODER = msgspec.msgpack.Decoder(_Chunk)
_COUNT = "count"  # observations of each event


def to_bytes(columns: Columns) -> bytes:
    """Return events as compressed bytes: of each column first all lowest bytes, then the next: these are alike."""
    values = columns.values | {
        _COUNT: np.diff(columns.start).astype(np.int32),
        "time": np.diff(columns.values["time"], prepend=0),
    }
    packed = {
        name: np.ascontiguousarray(column).view(np.uint8).reshape(-1, column.itemsize).T.tobytes()
        for name, column in values.items()
    }
    names = columns.features, columns.symbols, columns.models
    chunk = _Chunk(*names, events=len(columns), observations=columns.observations, columns=packed)
    return zlib.compress(msgspec.msgpack.encode(chunk), 6)


def of_bytes(data: bytes) -> Columns:
    """Return what `to_bytes` made. Raises DamagedChunkError."""
    try:
        unpacking = zlib.decompressobj()
        raw = unpacking.decompress(data, MAX_CHUNK_BYTES)
        if not unpacking.eof:
            raise DamagedChunkError("it breaks off, or is too large")
        chunk = _DECODER.decode(raw)
        rows = {_COUNT: chunk.events} | {n: chunk.events if n in EVENT else chunk.observations for n in COLUMNS}
        types = COLUMNS | {_COUNT: np.dtype(np.int32)}
        if chunk.columns.keys() != types.keys() or min(chunk.events, chunk.observations) < 0:
            raise DamagedChunkError("it has other columns")
        values = {name: _unpacked(chunk.columns[name], types[name], rows[name]) for name in types}
    except (zlib.error, msgspec.MsgspecError, ValueError) as error:
        raise DamagedChunkError(str(error)) from error
    start = np.concatenate(([0], np.cumsum(values.pop(_COUNT), dtype=np.int64)))
    values["time"] = np.cumsum(values["time"])
    limits = {"feature": chunk.features, "symbol": chunk.symbols, "expected_symbol": chunk.symbols,
              "model": chunk.models, "channel": CHANNELS}  # fmt: skip
    fits = all(
        values[name].min(initial=0) >= (0 if name == "feature" else NOT_KNOWN)
        and values[name].max(initial=NOT_KNOWN) < len(names)
        for name, names in limits.items()
    )
    if not fits or start[-1] != chunk.observations or np.diff(start).min(initial=0) < 0:
        raise DamagedChunkError("its parts do not fit each other")
    return Columns(chunk.features, chunk.symbols, chunk.models, start, values)


def _unpacked(data: bytes, dtype: np.dtype[Any], rows: int) -> NDArray[Any]:
    if len(data) != rows * dtype.itemsize:
        raise DamagedChunkError("a column has another length")
    raw = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, rows).T
    if dtype == np.bool_:
        return np.ascontiguousarray(raw).reshape(rows) != 0
    column: NDArray[Any] = np.ascontiguousarray(raw).reshape(rows * dtype.itemsize).view(dtype)
    return column


# -- as it is shown ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StreamWindow:
    """Events of a stream, and what is to be said of them."""

    stream: str
    columns: Columns
    complete: bool  # nothing is missing from it
    note: str  # for a person: what is not known, or not here; "": all is

    def document(self) -> dict[str, Any]:
        """Return it as JSON can hold it, as the API does: docs/history.md. null stands for what is not known."""
        columns = self.columns
        values = columns.values
        shown: dict[str, dict[str, list[Any]]] = {}
        event = np.repeat(np.arange(len(columns)), np.diff(columns.start))
        for code, feature in enumerate(columns.features):
            here = np.flatnonzero(values["feature"] == code)
            symbolic = values["symbol"][here].max(initial=NOT_KNOWN) > NOT_KNOWN
            by_column: dict[str, list[Any]] = {}
            for name in ("observed", "expected", "lower", "upper", "contribution"):
                column: list[Any] = [None] * len(columns)
                found = _known(values[name][here])
                for at, value in zip(event[here].tolist(), found, strict=True):
                    column[at] = value
                by_column[name] = column
            if symbolic:
                for name, codes in (("observed", "symbol"), ("expected", "expected_symbol")):
                    for at, symbol in zip(event[here].tolist(), values[codes][here].tolist(), strict=True):
                        if symbol > NOT_KNOWN:
                            by_column[name][at] = columns.symbols[symbol]
            shown[feature] = by_column
        channels = [*CHANNELS, ""]  # the last for NOT_KNOWN
        return {
            "stream": self.stream,
            "features": columns.features,
            "time": (values["time"] * 1e-9).tolist(),
            "score": _known(values["score"]),
            "threshold": _known(values["threshold"]),
            "channel": [channels[code] for code in values["channel"].tolist()],
            "alert": values["alert"].tolist(),
            "models": self.models(),
            "by_feature": shown,
            "complete": self.complete,
            "note": self.note,
        }

    def models(self) -> list[dict[str, Any]]:
        """Return from when on, in Unix seconds, which network scored: one where there was no swap."""
        code, time = self.columns.values["model"], self.columns.values["time"]
        scored = np.flatnonzero(code > NOT_KNOWN)
        swapped = scored[np.flatnonzero(np.diff(code[scored], prepend=NOT_KNOWN))]
        return [{"time": float(time[i] * 1e-9), "version": self.columns.models[code[i]]} for i in swapped.tolist()]


def _known(column: NDArray[Any]) -> list[float | None]:
    """Return numbers, None for those that are not finite."""
    finite = np.isfinite(column)
    return [value if known else None for value, known in zip(column.tolist(), finite.tolist(), strict=True)]


def counts_of(columns: Columns) -> dict[str, int]:
    """Return how many numbers there are of each feature."""
    values = columns.values
    number = values["feature"][values["symbol"] < 0]
    counts = np.bincount(number, minlength=len(columns.features))
    return dict(zip(columns.features, counts.tolist(), strict=True))
