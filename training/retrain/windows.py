"""From recorded lanes to what a training draws: targets out of rings, windows at random places, losses of windows.

A ring gives inputs only. Their "value" column says what each event was in the unit of the normaliser *after* that
event; a target is in the unit of the row that makes the forecast. `history.undo_normaliser` turns one into the other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from training.learn.tbptt import Sequences, summed_nll, weighted_mean
from training.network.history import WINDOW, undo_normaliser, unroll
from training.network.horizons import HORIZONS
from training.network.inputs import INPUT_SIZE, LIMIT, VALUE, WARM_UP_EVENTS
from training.network.model import Forecaster

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

FORWARD_AT_ONCE = 512  # windows: some tens of milliseconds, after which `stop` can be asked again


class Recorded(NamedTuple):
    """Rows of many lanes, one lane after another, and where each lane's held-back time begins."""

    inputs: NDArray[np.float32]  # [rows, INPUT_SIZE]
    targets: NDArray[np.float32]  # [rows, horizons]
    known: NDArray[np.bool_]  # [rows, horizons] there is a target and it may be learnt from
    start: Int64  # [lanes + 1] first row of each lane
    held: Int64  # [lanes] first held-back row
    stream: Int64  # [lanes] number of the stream it belongs to
    horizons: tuple[int, ...] = HORIZONS  # of the targets

    @property
    def rows_to_learn(self) -> int:
        """Rows with a known next value before held-back time."""
        before = np.concatenate(([0], np.cumsum(self.known[:, 0])))
        return int((before[self.held] - before[self.start[:-1]]).sum())

    def draw(self, rng: np.random.Generator, count: int, length: int) -> Int64:
        """Return the first rows of windows drawn evenly over all places that end before held-back time.

        A lane with fewer rows before it than `length` has one place, its beginning.
        """
        places = np.maximum(self.held - self.start[:-1] - length + 1, 1)  # [lanes]
        ends = np.cumsum(places)
        drawn = rng.integers(0, ends[-1], count)
        lane = np.searchsorted(ends, drawn, "right")
        first: Int64 = self.start[lane] + drawn - (ends - places)[lane]
        return first

    def stretch(self, first: Int64, length: int) -> Int64:
        """Return first rows of stretches of `length` rows before windows, or near them, to warm states up with.

        All of them lie in their lanes, before held-back time, which must begin `length` rows in or later.
        """
        lane = np.searchsorted(self.start, first, "right") - 1
        return np.clip(first - length, self.start[lane], self.held[lane] - length)

    def held_back_windows(self, length: int, warm_up: int) -> tuple[Int64, Int64]:
        """Return windows that, after their warm-up, cover each lane's held-back time once: first rows and group.

        Windows of one stream with the same number in its held-back time form a group: they saw the same events.
        Lanes with fewer rows than a warm-up before held-back time have none.
        """
        first, group = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        most = int((self.start[1:] - self.held).max(initial=0)) + 1
        for lane in np.flatnonzero(self.held - self.start[:-1] >= warm_up).tolist():
            places = np.arange(self.held[lane], self.start[lane + 1], length - warm_up)
            first.append(places - warm_up)
            group.append(self.stream[lane] * most + np.arange(len(places)))
        return np.concatenate(first), np.concatenate(group)

    def part(self, first: Int64, length: int, *, held_back: bool, warm_up: int) -> Sequences:
        """Cut windows [length, windows]: rows from `first` [windows] on, past the lane's end nothing.

        A window's first `warm_up` rows only warm its state up. Of the others the mask keeps the known targets before
        held-back time or, with `held_back`, the rows within it.
        """
        lane = np.searchsorted(self.start, first, "right") - 1
        row = first[None] + np.arange(length)[:, None]  # [length, windows]
        inside = row < self.start[lane + 1]
        row = np.minimum(row, len(self.inputs) - 1)
        mask = inside & (np.arange(length)[:, None] >= warm_up)
        if held_back:
            known = self.known[row] & (mask & (row >= self.held[lane]))[..., None]
        else:
            ahead = row[..., None] + np.array(self.horizons) - 1  # [length, windows, horizons] the row that is forecast
            known = self.known[row] & mask[..., None] & (ahead < self.held[lane][:, None])
        inputs = np.where(inside[..., None], self.inputs[row], np.float32(0))
        return Sequences(torch.from_numpy(inputs), torch.from_numpy(self.targets[row]), torch.from_numpy(known))


_ROWS = np.zeros((0, 0), np.float32)
_LANES = np.zeros(0, np.int64)
NOTHING = Recorded(_ROWS, _ROWS, _ROWS.astype(np.bool_), _LANES, _LANES, _LANES, ())


def from_rings(
    histories: NDArray[np.void], stream: Int64, held_back: int, horizons: tuple[int, ...] = HORIZONS
) -> Recorded:
    """Make what can be learnt of full rings, INPUT_HISTORY [lanes], of streams [lanes].

    The last `held_back` rows of each are held-back time.

    Row t forecasts event t + horizon - 1. Nothing is learnt from forecasts of an event of an incident, forecasts made
    during an incident, or a lane's first WARM_UP_EVENTS events.
    """
    lanes = len(histories)
    inputs, masked, _ = unroll(histories)
    events = histories["events"].astype(np.int64)
    value, mean, deviation = undo_normaliser(inputs[..., VALUE], events)
    targets = np.zeros((lanes, WINDOW, len(horizons)))
    known = np.zeros(targets.shape, np.bool_)
    young = events[:, None] - WINDOW + np.arange(WINDOW) < WARM_UP_EVENTS  # [lanes, WINDOW]
    for h, horizon in enumerate(horizons):
        rows = WINDOW - horizon  # the last event's value is in no row
        ahead = slice(horizon - 1, horizon - 1 + rows)
        with np.errstate(all="ignore"):
            targets[:, :rows, h] = np.arcsinh((value[:, ahead] - mean[:, :rows]) / deviation[:, :rows])
        known[:, :rows, h] = ~(masked[:, :rows] | masked[:, ahead] | young[:, :rows])
    known &= np.isfinite(targets)
    start = np.arange(lanes + 1) * WINDOW
    return Recorded(
        inputs.reshape(-1, INPUT_SIZE),
        np.where(known, np.clip(targets, -LIMIT, LIMIT), 0.0).astype(np.float32).reshape(-1, len(horizons)),
        known.reshape(-1, len(horizons)),
        start,
        start[1:] - held_back,
        stream,
        horizons,
    )


def warmed_state(model: Forecaster, inputs: torch.Tensor, passes: int) -> torch.Tensor:
    """Return the states [lanes, state_size] of lanes that have long seen what `inputs` [rows, lanes, ...] show.

    After some tens of rows from zero a state is not yet that of a lane that has run for weeks, and what is learnt or
    judged from it does not last. Several passes over the same rows bring it close.
    """
    state = torch.zeros(inputs.shape[1], model.shape.state_size, device=inputs.device)
    with torch.no_grad():
        for _ in range(passes):
            _, state = model(inputs, state)
    return state


def window_losses(model: Forecaster, windows: Sequences, settle: int, passes: int) -> Float64:
    """Return the loss of each window, [windows], as `tbptt.loss_of` computes it; NaN where no target counts.

    A window begins with the state after `passes` passes over its first `settle` rows.
    """
    found = []
    device = model.from_hidden.weight.device
    with torch.no_grad():
        for first in range(0, windows.inputs.shape[1], FORWARD_AT_ONCE):
            part = Sequences(*(tensor[:, first : first + FORWARD_AT_ONCE].to(device) for tensor in windows))
            forecast, _ = model(part.inputs, warmed_state(model, part.inputs[:settle], passes))
            total, count = summed_nll(forecast, part, dim=0)  # [windows, horizons]
            found.append(torch.where(count[:, 0] > 0, weighted_mean(total.double(), count), torch.nan))
    return torch.cat(found).cpu().numpy() if found else np.empty(0)
