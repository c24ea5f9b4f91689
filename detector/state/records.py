"""The records that are kept of a stream and of a lane, and the header of a row into which a stream is packed.

Rows of the former layout are read, too: `stream_of` converts their STREAM record.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from connectors.batches import Alert
from detector.scoring.admission import ADMISSION
from detector.scoring.calibration import RETURN
from detector.scoring.judge import lane_score
from training.network.inputs import INPUT_HISTORY, LONG_PAUSE, NORMALISER

INCIDENT = np.dtype(
    [
        ("open", np.bool_),
        ("on", np.bool_),  # the last event was above the threshold
        ("recent", np.uint8),  # one bit for each of the last events: above the threshold or not
        ("calm", np.int64),  # events since the last one above
        ("peak", np.float64),
        ("since", np.int64),  # ns: when the present run above the threshold began
    ],
    align=True,
)

STREAM = np.dtype(
    [
        ("admission", ADMISSION),
        ("events", np.int64),  # judged
        ("muted", np.bool_),
        ("lanes", np.int32),
        ("capacity", np.int32),  # rows its block of lanes has
        ("first_lane", np.int64),
        ("single", np.int64),  # row in the table of streams of one feature, a number; -1: it has more, or a symbol
        ("first_many", np.int64),  # its lanes' rows in the table for streams of more; -1: it has one
        ("matrix", np.int64),  # place of its covariance and components; -1: none
        ("fit_at", np.int64),
        ("components", np.int32),
        ("severity", RETURN),
        ("slow_severity", RETURN),
        ("incident", INCIDENT),
    ],
    align=True,
)


def lane_row(horizons: Sequence[int]) -> np.dtype[Any]:
    """Return what is remembered of a lane, whatever else its stream has."""
    return np.dtype(
        [
            ("feature", np.int32),
            ("model", np.int32),  # number of the weights its hidden state belongs to
            ("symbols", np.int64),  # row in the table of categorical lanes, plus 1; 0: a lane of numbers
            ("input", NORMALISER),
            ("score", lane_score(horizons)),
            ("history", INPUT_HISTORY),
        ],
        align=True,
    )


FORMER_STREAM = np.dtype(
    [
        ("events", np.int64),
        ("arrived", np.int64),
        ("time", np.int64),
        ("interval", np.float64),
        ("partition", np.int64),
        *((name, STREAM.fields[name][0]) for name in STREAM.names[2:]),  # type: ignore[index]  # it has fields
    ],
    align=True,
)

PRESENT, FORMER = 0, -1  # LANE.model in a packed row: hidden state belongs to the weights it names, or to others
ROWS = b"row3"  # begins every row, before a digest of its records
HEADER = struct.Struct("<8sIIIIq?")  # layout, state size, matrix numbers, lanes, bytes of notes, and as in Head
FORMER_HEADER = struct.Struct("<8sIIII")
# of a packed row: version of the weights, features, an open incident's alert, each categorical lane's symbols; of the
# former layout one thing more, without a use
NOTES = msgspec.msgpack.Decoder(tuple[str, list[str], Alert | None, list[list[str]]])
FORMER_NOTES = msgspec.msgpack.Decoder(tuple[str, list[str], Alert | None, list[list[str]], bytes])


class Head(NamedTuple):
    """The header of a row."""

    layout: bytes
    state_size: int
    numbers: int  # of its matrix
    lanes: int
    notes: int  # bytes
    partition: int  # hash of the partition that the stream was last seen on
    incident: bool  # one is open
    begin: int = HEADER.size  # of the notes


def head_of(row: bytes) -> Head:
    """Return a row's head. Raises ValueError for a row that is too short to have one."""
    try:
        if row.startswith(ROWS):
            return Head(*HEADER.unpack_from(row))
        layout, state_size, numbers, lanes, notes = FORMER_HEADER.unpack_from(row)
    except struct.error as error:
        raise ValueError(f"{len(row)} bytes") from error
    begin = FORMER_HEADER.size
    stream = np.frombuffer(row, FORMER_STREAM, 1, begin + notes)[0]
    incident = bool(stream["incident"]["open"])
    return Head(layout, state_size, numbers, lanes, notes, int(stream["partition"]), incident, begin)


def incident_of(row: bytes) -> int | None:
    """Return the hash of the partition of a stream with an open incident; None where none is open, or it is no row."""
    try:
        head = head_of(row)
    except ValueError:
        return None
    return head.partition if head.incident else None


def layout_of(*records: np.dtype[Any]) -> bytes:
    """Return what a row of these records, STREAM's first, begins with."""
    digest = hashlib.sha256(repr(tuple(record.descr for record in records)).encode()).digest()
    return digest[:8] if records[0] == FORMER_STREAM else ROWS + digest[:4]


def stream_of(stored: np.void) -> np.void:
    """Return a STREAM record; `stored` may be one of the former layout."""
    if stored.dtype == STREAM:
        return stored
    stream = np.zeros(1, STREAM)[0]
    for name in FORMER_STREAM.names or ():
        (stream["admission"] if name in (ADMISSION.names or ()) else stream)[name] = stored[name]
    stream["admission"]["pause"] = LONG_PAUSE * stored["interval"]  # as far as can be known
    return stream
