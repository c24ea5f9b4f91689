"""Rows that former versions left, brought into the present layout.

What is known of a lane's values, of the network's state and of symbols is taken over; what the former score knew means
nothing to the present one, which begins with the stream's next event. Only for the horizons that are the default.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import msgspec
import numpy as np

from connectors.batches import Alert
from detector.scoring.admission import SEEN_BITS
from detector.scoring.symbols import SYMBOL_ROW
from detector.state.former_lanes import FORMER_HISTORY, FORMER_NORMALISER, present_history, present_normaliser
from detector.state.records import HEADER, NOTES, STREAM, Head
from training.network.inputs import LONG_PAUSE

_ADMISSION = np.dtype(
    [
        ("arrived", np.int64),
        ("time", np.int64),
        ("interval", np.float64),
        ("pause", np.float64),
        ("partition", np.int64),
        ("dropped", np.int64),
        ("late", np.int64),
        ("agreement", np.int64),
        ("seen", np.uint8, (2, 256)),  # in turns of 512 events
    ],
    align=True,
)
_TURN = 512
_INCIDENT = np.dtype(
    [
        ("open", np.bool_),
        ("on", np.bool_),
        ("recent", np.uint8),
        ("calm", np.int64),
        ("peak", np.float64),
        ("since", np.int64),
    ],
    align=True,
)
_SINGLE_BYTES, _MANY_BYTES = 21_600, 4864  # what a score with two ways kept of a lone lane, and of each of several


class _Layout(NamedTuple):
    """Where a former row has what."""

    header: struct.Struct
    stream: np.dtype[Any]
    notes: msgspec.msgpack.Decoder[Any]


def _record(size: int, **fields: tuple[Any, int]) -> np.dtype[Any]:
    names = list(fields)
    return np.dtype(
        {
            "names": names,
            "formats": [fields[name][0] for name in names],
            "offsets": [fields[name][1] for name in names],
            "itemsize": size,
        }
    )


_LANE = _record(
    6104,
    feature=(np.int32, 0), model=(np.int32, 4), symbols=(np.int64, 8), input=(FORMER_NORMALISER, 16),
    history=(FORMER_HISTORY, 3152),
)  # fmt: skip
_LAYOUTS = {
    b"row3\x88\x9f\xfc\x88": _Layout(
        struct.Struct("<8sIIIIq?"),
        _record(
            3912,
            admission=(_ADMISSION, 0), muted=(np.bool_, 584), lanes=(np.int32, 588), capacity=(np.int32, 592),
            single=(np.int64, 608), first_many=(np.int64, 616), incident=(_INCIDENT, 3880),
        ),
        NOTES,
    ),
    b"{\tna\x96\xbe\xc7\xb5": _Layout(
        struct.Struct("<8sIIII"),
        _record(
            3368,
            arrived=(np.int64, 8), time=(np.int64, 16), interval=(np.float64, 24), partition=(np.int64, 32),
            muted=(np.bool_, 40), lanes=(np.int32, 44), capacity=(np.int32, 48),
            single=(np.int64, 64), first_many=(np.int64, 72), incident=(_INCIDENT, 3336),
        ),
        msgspec.msgpack.Decoder(tuple[str, list[str], Alert | None, list[list[str]], bytes]),
    ),
}  # fmt: skip
TAKEN_OVER = (  # what a log says of such rows
    "what their streams have shown, the network's states and open incidents are taken over; the score of each stream"
    " begins anew with its next event, as that of a young one"
)
LAYOUTS = tuple(layout.hex() for layout in _LAYOUTS)


def is_former(row: bytes) -> bool:
    """Whether a row has a former layout."""
    return row[:8] in _LAYOUTS


def _head_of_former(row: bytes) -> Head:
    """Return what the head of a former row says. Raises ValueError for a row that is too short."""
    layout = _LAYOUTS[row[:8]]
    try:
        name, state_size, *rest = layout.header.unpack_from(row)
    except struct.error as error:
        raise ValueError(f"{len(row)} bytes") from error
    lanes, notes, *place = rest[1:]  # after the size of the former score's matrix
    begin = layout.header.size
    stream = np.frombuffer(row, layout.stream, 1, begin + notes)[0]
    partition = place[0] if place else int(stream["partition"])
    return Head(name, state_size, lanes, notes, partition, bool(stream["incident"]["open"]), begin)


def converted(row: bytes, layout: bytes, lane: np.dtype[Any]) -> bytes:
    """Return a former row in the present `layout`, whose lanes are `lane`. Raises ValueError for a damaged row."""
    former = _LAYOUTS[row[:8]]
    head = _head_of_former(row)
    at = head.begin + head.notes
    try:
        notes = former.notes.decode(row[head.begin : at])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    stored = np.frombuffer(row, former.stream, 1, at)[0]
    at += former.stream.itemsize
    lanes = np.frombuffer(row, _LANE, head.lanes, at)
    at += lanes.nbytes
    states = row[at : at + 4 * head.state_size * head.lanes]
    at += len(states)
    at += _SINGLE_BYTES * (stored["single"] >= 0) + _MANY_BYTES * head.lanes * (stored["first_many"] >= 0)
    at += 4 * former.header.unpack_from(row)[2]
    symbols = row[at:]
    if len(symbols) != SYMBOL_ROW.itemsize * len(notes[3]):
        raise ValueError(f"{len(row)} bytes, expected {at + SYMBOL_ROW.itemsize * len(notes[3])}")
    stream, present = np.zeros(1, STREAM)[0], np.zeros(head.lanes, lane)
    if "admission" in (former.stream.names or ()):
        known = stored["admission"]
        for name in known.dtype.names[:-1]:
            stream["admission"][name] = known[name]
        # fewer bits now: of the present turn all that may have been seen
        turn = known["seen"][int(known["arrived"]) // _TURN % 2]
        stream["admission"]["seen"] = np.bitwise_or.reduce(turn.reshape(-1, SEEN_BITS // 8))
    else:
        for name in ("arrived", "time", "interval", "partition"):
            stream["admission"][name] = stored[name]
        stream["admission"]["pause"] = LONG_PAUSE * stored["interval"]  # as far as can be known
    for name in ("muted", "lanes", "capacity"):
        stream[name] = stored[name]
    stream["incident"]["begun"]["lead"] = -1  # where nobody knows any more
    for name in stored["incident"].dtype.names:
        stream["incident"][name] = stored["incident"][name]
    for name in ("feature", "model", "symbols"):
        present[name] = lanes[name]
    present["input"] = present_normaliser(lanes["input"])
    present["history"] = present_history(lanes["history"])
    text = msgspec.msgpack.encode(notes[:4])
    header = HEADER.pack(layout, head.state_size, head.lanes, len(text), head.partition, head.incident)
    return b"".join([header, text, stream.tobytes(), present.tobytes(), states, symbols])


def head_of(row: bytes) -> Head:
    """Return a row's head, whatever its layout. Raises ValueError for a row that is too short to have one."""
    if is_former(row):
        return _head_of_former(row)
    try:
        return Head(*HEADER.unpack_from(row))
    except struct.error as error:
        raise ValueError(f"{len(row)} bytes") from error


def incident_of(row: bytes) -> int | None:
    """Return the hash of the partition of a stream with an open incident; None where none is open, or it is no row."""
    try:
        head = head_of(row)
    except ValueError:
        return None
    return head.partition if head.incident else None
