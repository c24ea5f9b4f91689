"""The records that are kept of a stream and of a lane, and the header of a row into which a stream is packed."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec
import numpy as np

from connectors.batches import Alert
from detector.scoring.admission import ADMISSION
from detector.scoring.claims import STREAM_SCORE
from detector.scoring.incidents import INCIDENT
from detector.scoring.lane import lane_score
from training.network.history import INPUT_HISTORY
from training.network.inputs import NORMALISER

STREAM = np.dtype(
    [
        ("admission", ADMISSION),
        ("muted", np.bool_),
        ("rule", np.uint8),  # number of the rule that holds for the stream: the settings', whatever a stored row says
        ("lift", np.uint8),  # what verdicts have added to the threshold, in steps
        ("silent", np.bool_),  # it was told that the stream has stopped
        ("lanes", np.int32),
        ("capacity", np.int32),  # rows its block of lanes has
        ("first_lane", np.int32),
        ("score", STREAM_SCORE),
        ("incident", INCIDENT),
    ],
    align=True,
)

# Fields in what was padding, where 0 says what a row without them does: they make no other layout
ADDED = "rule", "lift", "silent", "pauses"


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


PRESENT, FORMER = 0, -1  # LANE.model in a packed row: hidden state belongs to the weights it names, or to others
ROWS = b"row4"  # begins every row, before a digest of its records
HEADER = struct.Struct("<8sIIIq?")  # as in Head
# of a packed row: version of the weights, features, an open incident's alert, each categorical lane's symbols
NOTES = msgspec.msgpack.Decoder(tuple[str, list[str], Alert | None, list[list[str]]])


class Head(NamedTuple):
    """The header of a row."""

    layout: bytes
    state_size: int
    lanes: int
    notes: int  # bytes
    partition: int  # hash of the partition that the stream was last seen on
    incident: bool  # one is open
    begin: int = HEADER.size  # of the notes


@cache  # 3 ms, which whoever looks at one stream would pay
def layout_of(*records: np.dtype[Any]) -> bytes:
    """Return what a row of these records begins with."""
    descriptions = tuple(_without_added(record).descr for record in records)
    return ROWS + hashlib.sha256(repr(descriptions).encode()).digest()[:4]


def _without_added(record: np.dtype[Any]) -> np.dtype[Any]:
    """Return a record, and those within it, as they were before there was what was ADDED."""
    fields = {name: field for name, field in (record.fields or {}).items() if name not in ADDED}
    if record.fields is None:
        return record
    return np.dtype(
        {
            "names": list(fields),
            "formats": [_without_added(field[0]) for field in fields.values()],
            "offsets": [field[1] for field in fields.values()],
            "itemsize": record.itemsize,
        }
    )
