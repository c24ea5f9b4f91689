"""The hidden and cell states of all lanes, on the device that steps them, and the step itself.

`KernelLanes` holds them in memory and steps with the compiled kernel; `torch_lanes.TorchLanes` holds them on a GPU and
steps with torch, gathering and scattering by row. Measured (`longwatch bench`): on a CPU the kernel keeps up with
torch's LSTM in large batches, is far ahead in small ones, and is equal bit for bit however events are batched, which
torch is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from detector.state.tables import GrowableArray
from training.network.kernels import Network
from training.network.weights import Weights

if TYPE_CHECKING:
    from detector.state.torch_lanes import TorchLanes

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


RecurrentLanes: TypeAlias = "KernelLanes | TorchLanes"  # state rows by lane, and the network that steps them


class KernelLanes(GrowableArray):
    """On a CPU: the compiled kernel on rows of memory."""

    concurrent = True  # `step` may run in several threads at once, for different lanes
    device_bytes = 0  # of a device's own memory

    def __init__(self, weights: Weights) -> None:
        super().__init__(np.dtype(np.float32), (weights.shape.state_size,))
        self.use(weights)

    def use(self, weights: Weights) -> None:
        """Step with these weights from now on."""
        self._network = Network(weights)

    def read(self, lanes: Int64) -> Float32:
        """Return rows [lanes, state_size]."""
        return self.rows[lanes]

    def write(self, lanes: Int64, states: Float32) -> None:
        """Set rows."""
        self.rows[lanes] = states

    def step(self, lane: Int64, inputs: Float32, first: int, last: int, out: Float32) -> None:
        """Step the lanes of observations first..last in their order; write forecasts [observations, output_size]."""
        self._network.step(lane, inputs, self.rows, first, last, out)


def lanes_on(weights: Weights, device: str) -> RecurrentLanes:
    """Return the way of stepping that suits the device."""
    if device == "cpu":
        return KernelLanes(weights)
    from detector.state.torch_lanes import TorchLanes  # noqa: PLC0415 - torch takes seconds, which a CPU's daemon has no use for

    return TorchLanes(weights, device)
