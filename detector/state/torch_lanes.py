"""Lanes stepped by torch: does what lane_network.KernelLanes does."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from training.network.compiled import compiled
from training.network.model import Forecaster
from training.network.weights import Weights

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


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
    row_bytes = 0  # of the machine's memory

    def __init__(self, weights: Weights, device: str) -> None:
        torch.backends.cudnn.allow_tf32 = False  # ten bits of mantissa would not keep CPU and GPU within 1e-4
        torch.backends.cuda.matmul.allow_tf32 = False
        self._device = torch.device(device)
        self._states = torch.zeros(0, weights.shape.state_size, device=self._device)
        self._seen = np.zeros(0, np.int64)
        self.use(weights)

    def use(self, weights: Weights) -> None:
        """Step with these weights from now on."""
        self._model = Forecaster.of(weights).to(self._device)

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

    def populate(self, first: int, rows: int) -> None:
        """Do nothing: the device's memory is there."""

    def release(self, first: int, rows: int) -> int:
        """Zero rows; none of the machine's memory is given back."""
        self._states[first : first + rows] = 0
        return 0

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
        # stretches in which the same lanes continue: each is one dense sequence
        for stretch in np.split(sizes, np.flatnonzero(np.diff(sizes)) + 1):
            time, batch = len(stretch), int(stretch[0])
            sequence = data[at : at + time * batch].view(time, batch, -1)
            forecast, states[:batch] = self._model(sequence, states[:batch])
            forecasts.append(torch.cat(forecast, dim=-1).flatten(0, 1))
            at += time * batch
        self._states[lanes] = states
        out[first + packed] = torch.cat(forecasts).cpu().numpy()

    @property
    def device_bytes(self) -> int:
        """Bytes that torch has taken of the GPU's memory; 0 on a CPU."""
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0
