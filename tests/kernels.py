"""Compiles numba's kernels into their cache on disk, where no clock is watched: `python -m tests.kernels`.

`make test` runs it beside the type checker: else three test processes, and the daemons that they start, would each
compile the same.
"""

from __future__ import annotations

from detector.engine.engine import Engine
from tests.streams import Event, clock, fleet, in_batches, interleaved, run
from training.network.cells import CELLS
from training.network.weights import load_prior


def compile_kernels(*cells: str) -> None:
    """Step events of every kind through an engine of each cell: half a minute where nothing is compiled yet."""
    words = [Event("words", time, {"code": f"E{row % 7}"}) for row, time in enumerate(clock(100).tolist())]
    events = interleaved([*fleet(), words], 0)[:1_500]
    for cell in cells:
        run(Engine(load_prior(cell)), in_batches(events, 500))


if __name__ == "__main__":
    compile_kernels(*CELLS)
