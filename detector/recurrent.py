"""The hidden and cell states of all lanes, on the device that steps them, and the step itself.

`KernelLanes` holds them in memory and steps with the compiled kernel; `TorchLanes` holds them on a GPU and steps with
torch, gathering and scattering by row. Measured (`longwatch bench`): on a CPU the kernel keeps up with torch's LSTM in
large batches, is far ahead in small ones, and is equal bit for bit however events are batched, which torch is not.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from detector.memory import Room
from training.compiled import compiled
from training.kernels import Network
from training.model import Forecaster

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


class RecurrentLanes(Protocol):
    """State rows by lane, and the network that steps them."""

    concurrent: bool  # `step` may run in several threads at once, for different lanes
    row_bytes: int  # of the machine's memory; 0: rows are on another device

    def resize(self, rows: int) -> None:
        """Make room for so many rows; the new ones are zero."""

    def read(self, lanes: Int64) -> Float32:
        """Return rows [lanes, state_size]."""

    def write(self, lanes: Int64, states: Float32) -> None:
        """Set rows."""

    def wipe(self, first: int, rows: int) -> None:
        """Zero rows; memory may be given back."""

    def step(self, lane: Int64, inputs: Float32, first: int, last: int, out: Float32) -> None:
        """Step the lanes of observations first..last in their order; write forecasts [observations, output_size]."""

    def use(self, model: Forecaster) -> None:
        """Step with these weights from now on."""

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""


class KernelLanes:
    """On a CPU: the compiled kernel on a numpy array."""

    concurrent = True

    def __init__(self, model: Forecaster) -> None:
        self._room = Room(np.dtype(np.float32), (model.state_size,))
        self.states: Float32 = self._room.rows
        self.row_bytes = self._room.row_bytes
        self.use(model)

    def use(self, model: Forecaster) -> None:
        """Step with these weights from now on."""
        self._network = Network(model)

    def resize(self, rows: int) -> None:
        """Make room for so many rows; the new ones are zero."""
        self._room.resize(rows)
        self.states = self._room.rows

    def read(self, lanes: Int64) -> Float32:
        """Return rows [lanes, state_size]."""
        return self.states[lanes]

    def write(self, lanes: Int64, states: Float32) -> None:
        """Set rows."""
        self.states[lanes] = states

    def wipe(self, first: int, rows: int) -> None:
        """Zero rows; their memory is given back."""
        self._room.wipe(first, rows)

    def step(self, lane: Int64, inputs: Float32, first: int, last: int, out: Float32) -> None:
        """Step the lanes of observations first..last in their order; write forecasts [observations, output_size]."""
        self._network.step(lane, inputs, self.states, first, last, out)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.states.nbytes


@compiled
def _ranks(lane: Int64, seen: Int64, rank: Int64) -> None:
    """Write how many earlier observations of the batch each one's lane has; `seen` [lanes] is zero before and after."""
    for j in range(len(lane)):
        rank[j] = seen[lane[j]]
        seen[lane[j]] += 1
    for j in range(len(lane)):
        seen[lane[j]] = 0


class TorchLanes:
    """On a GPU (or, for comparison, a CPU): torch on a device tensor, a dense sequence for each stretch of a batch."""

    concurrent = False
    row_bytes = 0

    def __init__(self, model: Forecaster, device: torch.device) -> None:
        torch.backends.cudnn.allow_tf32 = False  # ten bits of mantissa would not keep CPU and GPU within 1e-4
        torch.backends.cuda.matmul.allow_tf32 = False
        self._device = device
        self._states = torch.zeros(0, model.state_size, device=device)
        self._seen = np.zeros(0, np.int64)
        self.use(model)

    def use(self, model: Forecaster) -> None:
        """Step with these weights from now on."""
        twin = Forecaster(**model.shape)
        twin.load_state_dict(model.state_dict())
        self._model = twin.to(self._device).eval()

    def resize(self, rows: int) -> None:
        """Make room for so many rows; the new ones are zero."""
        grown = torch.zeros(rows, self._states.shape[1], device=self._device)
        grown[: len(self._states)] = self._states
        self._states = grown
        self._seen = np.zeros(rows, np.int64)

    def read(self, lanes: Int64) -> Float32:
        """Return rows [lanes, state_size]."""
        rows: Float32 = self._states[torch.from_numpy(lanes).to(self._device)].cpu().numpy()
        return rows

    def write(self, lanes: Int64, states: Float32) -> None:
        """Set rows."""
        self._states[torch.from_numpy(lanes).to(self._device)] = torch.from_numpy(states.copy()).to(self._device)

    def wipe(self, first: int, rows: int) -> None:
        """Zero rows."""
        self._states[first : first + rows] = 0

    @torch.inference_mode()
    def step(self, lane: Int64, inputs: Float32, first: int, last: int, out: Float32) -> None:
        """Step the lanes of observations first..last in their order; write forecasts [observations, output_size]."""
        if first == last:
            return
        part = lane[first:last]
        rank = np.empty_like(part)
        _ranks(part, self._seen, rank)
        length = np.bincount(part, minlength=0)[part]
        packed = np.lexsort((part, -length, rank))  # by rank; within it the lanes with most events first
        sizes = np.bincount(rank)  # lanes that have so many events or more
        lanes = torch.from_numpy(part[packed[: sizes[0]]]).to(self._device)
        data = torch.from_numpy(inputs[first:last][packed]).to(self._device)
        states = self._states[lanes]
        forecasts = []
        at = 0
        # stretches in which the same lanes go on: each is one dense sequence
        for stretch in np.split(sizes, np.flatnonzero(np.diff(sizes)) + 1):
            time, batch = len(stretch), int(stretch[0])
            sequence = data[at : at + time * batch].view(time, batch, -1)
            forecast, states[:batch] = self._model(sequence, states[:batch])
            forecasts.append(torch.cat(forecast, dim=-1).flatten(0, 1))
            at += time * batch
        self._states[lanes] = states
        out[first + packed] = torch.cat(forecasts).cpu().numpy()

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self._states.nbytes


def lanes_on(model: Forecaster, device: torch.device) -> RecurrentLanes:
    """Return the way of stepping that suits the device."""
    return KernelLanes(model) if device.type == "cpu" else TorchLanes(model, device)
