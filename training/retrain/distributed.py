"""Training on several processes or GPUs, which torchrun starts: each takes a share of the lanes of every batch.

All hold the same weights and draw the same batches from the same seed; DistributedDataParallel averages their
gradients. A mean over masked targets is not the mean of its parts' means, so each divides the sums over its own lanes
by what all of them learn from: the average of `size` times such gradients is the gradient that one process would have
had, up to the order in which numbers are added.

Dropout is the exception: each process draws its own masks.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import UserError
from training.learn.tbptt import Loss, Sequences, loss_of

SHUTDOWN_SECONDS = 0.3

Columns = TypeVar("Columns", bound=tuple[Any, ...])  # a NamedTuple of arrays, and tuples of whole numbers


class ProcessesError(UserError):
    """The processes cannot train together; the text says why and what to do."""


class SingleProcess:
    """One process, which has all lanes: nothing has to be sent."""

    rank, size = 0, 1

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    @property
    def first(self) -> bool:
        """Whether this process is the one that reads, judges, writes and prints."""
        return self.rank == 0

    @property
    def lane_slice(self) -> slice:
        """Of a batch's lanes, those that this process learns from."""
        return slice(self.rank, None, self.size)

    def loss(self, model: nn.Module) -> Loss:
        """Return the loss by which `tbptt.train` is to train `model` on this process's share of each batch."""
        return loss_of

    def broadcast(self, answer: Callable[[], float]) -> float:
        """Return the first process's answer in all of them; only the first calls `answer`."""
        return answer()

    def broadcast_data(self, data: Columns | None, empty: Columns) -> Columns:
        """Return the first process's `data` in all of them; the others pass None.

        empty: the same without a row; its types are those sent, since nothing is unpickled.
        """
        assert data is not None  # noqa: S101 - for mypy: a single process is the first
        return data


SINGLE_PROCESS = SingleProcess()


class ProcessGroup(SingleProcess):
    """One process of several."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def loss(self, model: nn.Module) -> Loss:
        """Return the loss of all lanes, whose gradient is that of this process's share until it is averaged."""
        # buffers (the echo state's reservoir) are never changed: they are sent round once, not at every step
        wrapped: Any = DistributedDataParallel(model, forward_sync_buffers=False)

        def loss(_: nn.Module, part: Sequences, state: Tensor) -> tuple[Tensor, Tensor]:
            learnt = part.mask.sum(dim=(0, 1))  # [horizons]
            distributed.all_reduce(learnt)
            mine, state = loss_of(wrapped, part, state, learnt)
            whole = mine.detach().clone()
            distributed.all_reduce(whole)
            # the value is the whole's, so that all processes see a loss that is not finite; the gradient is ours
            return self.size * mine + (whole - self.size * mine).detach(), state

        return loss

    def broadcast(self, answer: Callable[[], float]) -> float:
        """Return the first process's answer."""
        value = torch.tensor(answer() if self.first else 0.0, dtype=torch.float64)
        distributed.broadcast(value, src=0)
        return float(value)

    def broadcast_data(self, data: Columns | None, empty: Columns) -> Columns:
        """Return the first process's `data`. Raises ProcessesError if that process has ended."""
        columns: list[Any] = []
        for value, like in zip(data or empty, empty, strict=True):
            kind = np.asarray(like, None if isinstance(like, np.ndarray) else np.int64).dtype
            mine = np.ascontiguousarray(value, kind)
            shape = torch.tensor(mine.shape)
            try:
                distributed.broadcast(shape, src=0)
            except RuntimeError as error:  # the connection broke
                raise ProcessesError(
                    "the first process ended before this one received its data: see its output"
                ) from error
            mine = mine if self.first else np.empty(shape.tolist(), kind)
            distributed.broadcast(torch.from_numpy(mine.view(np.uint8) if kind == np.bool_ else mine), src=0)
            columns.append(tuple(mine.tolist()) if isinstance(like, tuple) else mine)
        return type(empty)(*columns)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[SingleProcess]:
    """Join the processes that torchrun started, if it did, and leave them at the end.

    device: "cpu" or "cuda"; each process takes the GPU of its local rank.
    """
    if not distributed.is_torchelastic_launched():
        yield SingleProcess(device)
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
        distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        distributed.init_process_group("gloo")
    try:
        yield ProcessGroup(device)
    finally:
        distributed.destroy_process_group()
        # gloo's threads outlive this if DistributedDataParallel was used (torch 2.13), and free the last tensors a
        # little later; one that does so while the interpreter shuts down aborts the process
        time.sleep(SHUTDOWN_SECONDS)
