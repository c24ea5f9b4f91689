"""Each stream its own weights, learning online: `model.scope = "stream"`.

A stream begins with the model that all would share and takes a step on every CHUNK of its own events, at the same
places of its sequence however these are cut into batches: the engine lets a batch through in segments that end there.
A row is learnt once the targets of all horizons have come, and not if it belongs to an incident. The states that
gradients start from are carried on from chunk to chunk beside those that score.

Weights and Adam's moments are kept with the stream's row; they are what this costs, in memory and at each checkpoint.
Lanes are stepped by the compiled kernel on the CPU, wherever the learning is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.memory import Room, machine_bytes
from detector.passage import Sorted
from training.compiled import compiled
from training.history import SCALE, WINDOW
from training.inputs import LIMIT, SETTLED
from training.kernels import Network
from training.model import Forecaster
from training.online import CHUNK, Chunks, Copies, OnlineLearner, rows_needed, streams_at_once

logger = logging.getLogger(__name__)

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

FIRST_COPIES = 16
MOST_OF_MEMORY = 0.5  # of the machine's: a fleet that may come to need more is warned of at the start


def _stream_row(size: int) -> np.dtype[Any]:
    """Return what is remembered of a stream."""
    return np.dtype(
        [
            ("events", np.int64),  # that went through
            ("steps", np.int64),  # taken
            ("weights", np.float32, (size,)),
            ("first", np.float32, (size,)),  # Adam's moments
            ("second", np.float32, (size,)),
        ]
    )


def _lane_row(state_size: int, rows: int) -> np.dtype[Any]:
    """Return what is remembered of a lane: its state, which comes first, and what the next chunk will need."""
    return np.dtype(
        [
            ("state", np.float32, (state_size,)),
            ("before", np.float32, (state_size,)),  # the state before the first row that is not learnt yet
            ("seen", np.int64),  # rows written; row r is at r % rows
            ("learnt", np.int64),  # rows learnt
            ("value", np.float64, (rows,)),
            ("mean", np.float64, (rows,)),  # and deviation: the unit in which the row's forecast was made
            ("deviation", np.float64, (rows,)),
        ],
        align=True,
    )


class OwnLanes:
    """State rows by lane, and weights by slot: RecurrentLanes whose rows hold more than the state."""

    concurrent = True

    def __init__(self, model: Forecaster, device: str, most: int) -> None:
        self._model = model
        self._learner = OnlineLearner(model, device)
        self._rows_needed = rows_needed(model.horizons)
        self._far = np.array(model.horizons, np.int64) - 1
        lane = _lane_row(model.state_size, self._rows_needed)
        self.row_size = lane.itemsize // 4  # numbers of float32
        self._room = Room(np.dtype(np.float32), (self.row_size,))
        self.row_bytes = self._room.row_bytes
        self._words: Float32 = self._room.rows
        self._lanes = self._words.view(lane)[:, 0]
        self._slot = np.zeros(0, np.int64)  # by lane
        self._prior = self._learner.row_of(model)
        self._network = Network(model, 0)
        # by slot: what is stored, and the weights again as the kernel takes them
        self._copies = Room(_stream_row(self._learner.size))
        self._streams = self._copies.rows
        self._laid_out = [Room(np.dtype(np.float32), shape) for shape in self._network.shapes]
        self._left_out = 0  # steps whose loss, gradient or result was not finite
        self._told = False
        _tell(self.bytes_a_stream, most)

    @property
    def stored_bytes(self) -> int:
        """Bytes of a stream's weights and moments in its stored row."""
        return self._streams.itemsize

    @property
    def bytes_a_stream(self) -> int:
        """Bytes of a stream's weights and moments in memory, where the kernel has the weights again in its order."""
        return self._streams.itemsize + self._prior.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self._words.nbytes + len(self._streams) * self.bytes_a_stream

    # -- rows of lanes: see RecurrentLanes ---------------------------------------------------------------------------

    def resize(self, rows: int) -> None:
        """Make room for so many rows; the new ones are zero."""
        self._room.resize(rows)
        self._words = self._room.rows
        self._lanes = self._words.view(self._lanes.dtype)[:, 0]
        self._slot = np.concatenate([self._slot, np.zeros(rows - len(self._slot), np.int64)])

    def read(self, lanes: Int64) -> Float32:
        """Return rows [lanes, row_size]."""
        return self._words[lanes]

    def write(self, lanes: Int64, states: Float32) -> None:
        """Set rows."""
        self._words[lanes] = states

    def wipe(self, first: int, rows: int) -> None:
        """Zero rows; their memory is given back."""
        self._room.wipe(first, rows)

    def assign(self, lane: Int64, slot: Int64) -> None:
        """Say which stream each lane is of, for `step`."""
        self._slot[lane] = slot

    def step(self, lane: Int64, inputs: Float32, first: int, last: int, out: Float32) -> None:
        """Step the lanes of observations first..last in their order; write forecasts [observations, output_size]."""
        self._network.step(self._slot[lane], lane, inputs, self._words, first, last, out)

    def use(self, model: Forecaster) -> None:
        """Raise ValueError: there is no one model to exchange."""
        raise ValueError('every stream has weights of its own (model.scope is "stream"): none can take their place')

    # -- rows of streams ---------------------------------------------------------------------------------------------

    def begin(self, slot: int) -> None:
        """Give the stream of a slot the model that all begin with."""
        if slot >= len(self._streams):
            copies = max(FIRST_COPIES, slot + 1, len(self._streams) * 3 // 2)
            for room in (self._copies, *self._laid_out):
                room.resize(copies)
            self._streams = self._copies.rows
            self._network.hold([room.rows for room in self._laid_out])
        self._streams["weights"][slot] = self._prior
        self._lay_out(slot)

    def end(self, slot: int) -> None:
        """Forget the stream of a slot."""
        for room in (self._copies, *self._laid_out):
            room.wipe(slot, 1)

    def pack(self, slot: int) -> bytes:
        """Return a stream's row."""
        return self._streams[slot].tobytes()

    def unpack(self, slot: int, row: bytes) -> None:
        """Give the stream of a slot what `pack` gave."""
        self._streams[slot] = np.frombuffer(row, self._streams.dtype)[0]
        self._lay_out(slot)

    def _lay_out(self, slot: int) -> None:
        self._network.put(slot, self._model, self._learner.named(self._streams["weights"][slot]))

    # -- learning ----------------------------------------------------------------------------------------------------

    def segments(self, slot: Int64) -> Iterator[Int64]:
        """Yield the events [events], sorted by `slot`, in turns at whose ends streams may be due: indices of each."""
        first = np.flatnonzero(np.diff(slot, prepend=-1))
        rank = np.arange(len(slot)) - np.repeat(first, np.diff(first, append=len(slot)))
        turn = (self._streams["events"][slot] % CHUNK + rank) // CHUNK
        order = np.argsort(turn, kind="stable")
        yield from np.split(order, np.flatnonzero(np.diff(turn[order])) + 1)

    def keep(self, numbers: Sorted, frames: NDArray[np.void]) -> None:
        """Remember what the targets of these observations will be worked out from."""
        _keep(self._lanes, numbers.lane, numbers.value, frames)

    def learn(self, slot: Int64, streams: NDArray[np.void], lanes: NDArray[np.void]) -> None:
        """Count events that went through, of streams `slot` [events], and take the step of each stream that is due.

        streams: STREAM by slot. lanes: those of detector.rows by lane; a row is of an incident where `history`
        says so.
        """
        slots, events = np.unique(slot, return_counts=True)
        self._streams["events"][slots] += events
        due = slots[self._streams["events"][slots] % CHUNK == 0]
        widths = streams["capacity"][due]
        for width in np.unique(widths[streams["lanes"][due] > 0]).tolist():
            alike = due[widths == width]
            for at in range(0, len(alike), streams_at_once(width)):
                self._step_weights(alike[at : at + streams_at_once(width)], width, streams, lanes)

    def take_left_out(self) -> int:
        """Return how many steps were left out since this was last asked."""
        count, self._left_out = self._left_out, 0
        return count

    def _step_weights(self, slots: Int64, width: int, streams: NDArray[np.void], lanes: NDArray[np.void]) -> None:
        place = np.arange(width)
        lane = streams["first_lane"][slots][:, None] + place  # [streams, width]
        here = (place < streams["lanes"][slots][:, None]) & (lanes["symbols"][lane] == 0)
        chunks = self._chunks(lane, here, lanes["history"])
        rows = self._streams[slots]
        copies = Copies(*(rows[name].copy() for name in Copies._fields))
        learnt = self._learner.learn(copies, self._lanes["before"][lane], chunks)
        for name, value in zip(Copies._fields, learnt.copies, strict=True):
            self._streams[name][slots] = value
        self._lanes["before"][lane[here]] = learnt.states[here]
        for slot in slots.tolist():
            self._lay_out(slot)
        self._left_out += int(learnt.left_out.sum())
        if learnt.left_out.any() and not self._told:
            self._told = True
            logger.warning("a stream's step without a finite loss, gradient or result was left out; told once")

    def _chunks(self, lane: Int64, here: NDArray[np.bool_], histories: NDArray[np.void]) -> Chunks:
        """Gather the next rows of lanes [streams, width], and count them as learnt."""
        own, needed = self._lanes, self._rows_needed
        seen, events = own["seen"][lane], histories["events"][lane]
        end = seen - int(self._far.max())  # rows whose targets have all come
        begin = np.maximum(np.maximum(own["learnt"][lane], end - CHUNK), 0)
        count = np.where(here, np.maximum(end - begin, 0), 0)
        own["learnt"][lane[here]] = np.maximum(end, own["learnt"][lane])[here]
        row = begin[:, None] + np.arange(CHUNK)[:, None]  # [streams, CHUNK, width]
        lane = np.broadcast_to(lane[:, None], row.shape)
        inside = np.arange(CHUNK)[:, None] < count[:, None]
        event = (events - seen)[:, None] + row  # the same row's number in the ring of inputs
        inputs = histories["inputs"][lane, event % WINDOW] / np.float32(SCALE)
        masked = histories["masked"][lane, event % WINDOW] != 0
        mean, deviation = own["mean"][lane, row % needed], own["deviation"][lane, row % needed]
        targets = np.zeros((*row.shape, len(self._far)), np.float32)
        known = np.zeros(targets.shape, np.bool_)
        for h, ahead in enumerate(self._far.tolist()):
            with np.errstate(all="ignore"):
                target = np.arcsinh((own["value"][lane, (row + ahead) % needed] - mean) / deviation)
            off = masked | (histories["masked"][lane, (event + ahead) % WINDOW] != 0)
            known[..., h] = inside & ~off & (event >= SETTLED) & ~np.isnan(target)
            targets[..., h] = np.where(known[..., h], np.clip(target, -LIMIT, LIMIT), 0.0)
        return Chunks(np.where(inside[..., None], inputs, np.float32(0)), targets, known, count)


@compiled
def _keep(
    lanes: NDArray[np.void],
    lane: Int64,  # [observations]
    value: NDArray[np.float64],  # [observations]
    frames: NDArray[np.void],  # FRAME [observations]
) -> None:
    for j in range(len(lane)):
        r = lanes[lane[j]]
        at = r.seen % len(r.value)
        r.value[at], r.mean[at], r.deviation[at] = value[j], frames[j].mean, frames[j].deviation
        r.seen += 1


def _tell(size: int, most: int) -> None:
    memory = machine_bytes()
    logger.info(
        'model.scope is "stream": %d KB of weights a stream, %.1f GB for as many as state.max_streams, %d',
        *(size // 1000, size * most / 1e9, most),
    )
    if size * most > MOST_OF_MEMORY * memory:
        logger.warning(
            "the weights of state.max_streams = %d streams may come to %.1f GB, of %.1f GB that this machine has: "
            "set it to %d or less, the longest idle then rest in the state directory",
            *(most, size * most / 1e9, memory / 1e9, int(MOST_OF_MEMORY * memory / size)),
        )
