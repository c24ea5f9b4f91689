"""Many copies of one forecaster learning side by side, each from the rows of its own stream (`model.scope = "stream"`).

Truncated back-propagation as in `tbptt.py`, a step of Adam every CHUNK rows, for all streams that are due in one
batched computation: `torch.func.vmap` over stacked weights of the textbook's step (`Forecaster.step`'s own parts; the
fused cells of torch have no batching rule). So every cell, layers and attention learn by the same lines. Of an echo
state network only the heads do.

What one stream learns must not depend on which others are due at the same time. The order of a batched product's sums
does depend on it; so a step is worked out in double precision and what is kept of it is rounded to single, which hides
differences in the sixteenth digit.

Chunk, rate, decay, clipping and clamp are a study's, which compared rates by likelihood: 1e-4 improved the median
series, 3e-4 and more made it worse. They are the same for every cell and were not chosen by any benchmark's score.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from training.cells import Cell
from training.model import Forecast, Forecaster, student_t_nll
from training.tbptt import weighted

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

CHUNK = 32  # rows between two steps, and that a gradient flows back: k1 = k2
RATE = 1e-4
DECAY, SQUARE_DECAY = 0.9, 0.99  # of Adam's moments: the square's memory is 100 steps, 3,200 rows
EPSILON = 1e-8
CLIP_NORM = 1.0  # of each stream's gradient
WORST_NLL = 8.0  # nats: the rows of one stream are few, and one wild row must not steer them
LANES_AT_ONCE = 256  # some 150 KB each while their gradient is worked out


class Chunks(NamedTuple):
    """The next rows of several streams' lanes. A lane that has fewer than CHUNK has them at the beginning."""

    inputs: Float32  # [streams, CHUNK, lanes, INPUT_SIZE]
    targets: Float32  # [streams, CHUNK, lanes, horizons], finite
    known: NDArray[np.bool_]  # [streams, CHUNK, lanes, horizons] there is a target and it may be learnt from
    rows: Int64  # [streams, lanes] that there are


class Copies(NamedTuple):
    """Weights of several streams, as one row of numbers each, and what Adam remembers of them."""

    weights: Float32  # [streams, size]
    first: Float32  # [streams, size] moments of the gradient
    second: Float32
    steps: Int64  # [streams] that were taken


class Learnt(NamedTuple):
    """What a step made of it. A stream with nothing to learn, or that was left out, has the weights it had."""

    copies: Copies
    states: Float32  # [streams, lanes, state_size] after the chunk
    left_out: NDArray[np.bool_]  # [streams] its loss, gradient or result was not finite


class OnlineLearner:
    """Takes steps with copies of `model`, on a device; it holds none of them."""

    def __init__(self, model: Forecaster, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._unrolled = _Unrolled(model).to(self._device, torch.float64)
        named = list(self._unrolled.model.named_parameters())
        self._names = [name for name, _ in named]
        self._shapes = [parameter.shape for _, parameter in named]
        self._sizes = [shape.numel() for shape in self._shapes]
        self._fixed = {name: buffer.detach().cpu().float() for name, buffer in self._unrolled.model.named_buffers()}

    @property
    def size(self) -> int:
        """Weights that are learnt."""
        return sum(self._sizes)

    def row_of(self, model: Forecaster) -> Float32:
        """Return a model's weights as one row of numbers [size]."""
        row: Float32 = torch.cat([parameter.detach().flatten().cpu() for parameter in model.parameters()]).numpy()
        return row

    def named(self, row: Float32) -> dict[str, Tensor]:
        """Return the state_dict that a row of numbers stands for."""
        return self._fixed | self._split(torch.from_numpy(row))

    def _split(self, row: Tensor) -> dict[str, Tensor]:
        parts = zip(self._names, torch.split(row, self._sizes), self._shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in parts}

    def learn(self, copies: Copies, states: Float32, chunks: Chunks) -> Learnt:
        """Take each stream's step on its chunk, on from `states` [streams, lanes, state_size]."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # at this size more threads wait for each other a hundred times as long as they work
        try:
            return self._learn(copies, states, chunks)
        finally:
            torch.set_num_threads(threads)

    def _learn(self, copies: Copies, states: Float32, chunks: Chunks) -> Learnt:
        weights, first, second = (self._double(of) for of in copies[:3])
        weights.requires_grad_()
        known = torch.from_numpy(chunks.known).to(self._device)
        count = torch.from_numpy(chunks.rows).to(self._device)
        loss, after = vmap(self._loss)(
            weights, self._double(states), self._double(chunks.inputs), self._double(chunks.targets), known, count
        )
        (gradient,) = torch.autograd.grad(loss.sum(), weights)  # streams have no weight in common
        with torch.no_grad():
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient = gradient * (CLIP_NORM / norm.clamp(min=CLIP_NORM))
            due = known[..., 0].any(dim=(1, 2))
            steps = torch.from_numpy(copies.steps).to(self._device) + due
            first = DECAY * first + (1 - DECAY) * gradient
            second = SQUARE_DECAY * second + (1 - SQUARE_DECAY) * gradient**2
            at = steps.clamp(min=1)[:, None]
            mean, square = first / (1 - DECAY**at), second / (1 - SQUARE_DECAY**at)
            stepped = weights - RATE * mean / (square.sqrt() + EPSILON)
            finite = torch.isfinite(loss) & torch.isfinite(norm[:, 0]) & torch.isfinite(stepped).all(dim=1)
            after = torch.where(torch.isfinite(after).all(dim=-1, keepdim=True), after, 0.0)
        taken = (due & finite).cpu().numpy()
        kept = taken[:, None]
        return Learnt(
            Copies(
                np.where(kept, _single(stepped), copies.weights),
                np.where(kept, _single(first), copies.first),
                np.where(kept, _single(second), copies.second),
                np.where(taken, copies.steps + 1, copies.steps),
            ),
            _single(after),
            (due & ~finite).cpu().numpy(),
        )

    def _double(self, array: Float32) -> Tensor:
        return torch.from_numpy(array).to(self._device, torch.float64)

    def _loss(
        self, row: Tensor, state: Tensor, inputs: Tensor, targets: Tensor, known: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One stream's loss, each horizon's mean clamped NLL over its lanes and rows, and the state after its rows."""
        parameters = {f"model.{name}": part for name, part in self._split(row).items()}
        forecast, after = functional_call(self._unrolled, parameters, (inputs, state, count))
        nll = student_t_nll(forecast, targets).clamp(max=WORST_NLL)  # [CHUNK, lanes, horizons]
        learnt = known.sum(dim=(0, 1)).clamp(min=1)
        return weighted(torch.where(known, nll, 0.0).sum(dim=(0, 1)) / learnt), after.detach()


class _Unrolled(nn.Module):
    """A forecaster run row by row with plain operations only, its heads over all rows at once."""

    def __init__(self, model: Forecaster) -> None:
        super().__init__()
        self.model = Forecaster(**model.shape)
        self.model.load_state_dict(model.state_dict())

    def forward(self, inputs: Tensor, state: Tensor, count: Tensor) -> tuple[Forecast, Tensor]:
        """Run `inputs` [rows, lanes, INPUT_SIZE]; a lane's state stays as it is after `count` [lanes] of them."""
        model = self.model
        carried, hidden = list(torch.split(state, model.state_sizes, dim=-1)), []
        for t, row in enumerate(inputs.unbind(0)):
            below, outputs, goes_on = row, [], (t < count)[:, None]
            for k, layer in enumerate(model.layers):
                assert isinstance(layer, Cell)  # noqa: S101 - for mypy: a ModuleList does not say what it holds
                after = layer.step(below, carried[k])
                below = after[..., : model.hidden_size]
                carried[k] = torch.where(goes_on, after, carried[k])
                if model.attention and k == len(model.layers) - 1:
                    below, window = model.attention.step(below, carried[-1])
                    carried[-1] = torch.where(goes_on, window, carried[-1])
                outputs.append(below)
            hidden.append(torch.cat(outputs, dim=-1))
        return model.heads(torch.stack(hidden), inputs), torch.cat(carried, dim=-1)


def _single(tensor: Tensor) -> Float32:
    rounded: Float32 = tensor.detach().float().cpu().numpy()
    return rounded


def streams_at_once(lanes: int) -> int:
    """Return how many streams of so many lanes a call of `learn` should have at most."""
    return max(LANES_AT_ONCE // lanes, 1)


def rows_needed(horizons: tuple[int, ...]) -> int:
    """Return how many of a lane's last rows its next chunk is made of: a row's targets come horizon - 1 rows later."""
    return CHUNK + max(horizons) - 1
