"""The records that are kept of a stream and of a lane, and what stands before them where a stream leaves as one row."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from connectors.records import Alert
from detector.calibration import RETURN
from detector.scoring import lane_score
from training.history import HISTORY
from training.inputs import NORMALISER

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
        ("events", np.int64),  # judged
        ("arrived", np.int64),
        ("time", np.int64),  # of the last event, ns
        ("interval", np.float64),  # running mean time between events, seconds
        ("partition", np.int64),  # hash of the partition it was last seen on
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
            ("history", HISTORY),
        ],
        align=True,
    )


PRESENT, FORMER = 0, -1  # LANE.model in a packed row: hidden state belongs to the weights it names, or to others
HEADER = struct.Struct("<8sIIII")  # layout, state size, matrix numbers, lanes, bytes of notes
# of a packed row: version of the weights, features, an open incident's alert, each categorical lane's symbols, and a
# place without a use, which rows that are stored have
NOTES = msgspec.msgpack.Decoder(tuple[str, list[str], Alert | None, list[list[str]], bytes])
RESERVED = b""


def partition_of(row: bytes) -> int:
    """Return the hash of the partition that a packed stream was last seen on."""
    *_, length = HEADER.unpack_from(row)
    return int(np.frombuffer(row, STREAM, 1, HEADER.size + length)["partition"][0])
