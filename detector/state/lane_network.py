"""The hidden and cell states of all lanes, on the device that steps them, and the step itself.

`KernelLanes` holds them in memory and steps with the compiled kernel; `torch_lanes.TorchLanes` holds them on a GPU and
steps with torch, gathering and scattering by row. Measured (`longwatch bench`): on a CPU the kernel keeps up with
torch's LSTM in large batches, is far ahead in small ones, and is equal bit for bit however events are batched, which
torch is not.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from detector.state.arena import GrowableArray
from training.network.kernels import Network
from training.network.weights import Weights

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

    def release(self, first: int, rows: int) -> None:
        """Zero rows; memory may be given back."""

    def step(self, lane: Int64, inputs: Float32, first: int, last: int, out: Float32) -> None:
        """Step the lanes of observations first..last in their order; write forecasts [observations, output_size]."""

    def use(self, weights: Weights) -> None:
        """Step with these weights from now on."""

    @property
    def device_bytes(self) -> int:
        """Bytes of the device's own memory that are taken; 0: it is the machine's."""


class KernelLanes:
    """On a CPU: the compiled kernel on a numpy array."""

    concurrent = True

    def __init__(self, weights: Weights) -> None:
        self._array = GrowableArray(np.dtype(np.float32), (weights.shape.state_size,))
        self.states: Float32 = self._array.rows
        self.row_bytes = self._array.row_bytes
        self.use(weights)

    def use(self, weights: Weights) -> None:
        """Step with these weights from now on."""
        self._network = Network(weights)

    def resize(self, rows: int) -> None:
        """Make room for so many rows; the new ones are zero."""
        self._array.resize(rows)
        self.states = self._array.rows

    def read(self, lanes: Int64) -> Float32:
        """Return rows [lanes, state_size]."""
        return self.states[lanes]

    def write(self, lanes: Int64, states: Float32) -> None:
        """Set rows."""
        self.states[lanes] = states

    def release(self, first: int, rows: int) -> None:
        """Zero rows; their memory is given back."""
        self._array.release(first, rows)

    def step(self, lane: Int64, inputs: Float32, first: int, last: int, out: Float32) -> None:
        """Step the lanes of observations first..last in their order; write forecasts [observations, output_size]."""
        self._network.step(lane, inputs, self.states, first, last, out)

    @property
    def device_bytes(self) -> int:
        """None: states are in the machine's memory."""
        return 0


def lanes_on(weights: Weights, device: str) -> RecurrentLanes:
    """Return the way of stepping that suits the device."""
    if device == "cpu":
        return KernelLanes(weights)
    from detector.state.torch_lanes import TorchLanes  # noqa: PLC0415 - torch takes seconds, which a CPU's daemon has no use for

    return TorchLanes(weights, device)
