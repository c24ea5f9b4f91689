"""A forecaster's shape: cell, sizes and horizons, and the number of its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from training.errors import UserError
from training.network.horizons import HORIZONS, check_horizons
from training.network.inputs import INPUT_SIZE

GATES = {"rnn": 1, "lstm": 4, "gru": 3, "esn": 0}  # that are trained, by cell
LEAK_RATE = 0.3  # of the echo state network's reservoir: the share that is new at each step
PARAMETERS_OF_T = 3  # location, log scale, degrees of freedom
SCALE_INPUT_LIMIT = 3.0  # an extreme input may move the location freely, the scale only this far
MIN_LOG_SCALE, MAX_LOG_SCALE = -8.0, 4.0  # of the forecast; targets are clipped to +-6
MIN_DEGREES_OF_FREEDOM = 1.5  # below, a Student-t's tails hold so much that nothing is a surprise
FREEDOM_SLOPE = 4.0  # nu = MIN_DEGREES_OF_FREEDOM + FREEDOM_SLOPE * softplus of the heads' number


class ModelError(UserError):
    """A model that cannot be used; the text names the file or the setting and says what to do."""


class Shape(NamedTuple):
    """A forecaster's form.

    horizons: events ahead that are forecast, rising, the first 1. attention_window: hidden states to look back on; 0
    is no attention. dropout: share of the hidden units that a training leaves out.
    """

    cell: str = "lstm"
    hidden_size: int = 48
    layers: int = 1
    dropout: float = 0.0
    attention_window: int = 0
    horizons: tuple[int, ...] = HORIZONS

    def checked(self) -> Shape:
        """Return it with its horizons as a tuple; raises ModelError for an impossible one."""
        if self.cell not in GATES:
            raise ModelError(f"model.cell: {self.cell!r} is not known; known are: {', '.join(GATES)}")
        if self.hidden_size < 1 or self.layers < 1 or self.attention_window < 0 or not 0 <= self.dropout < 1:
            raise ModelError("hidden_size and layers are at least 1, attention_window 0, dropout from 0 to below 1")
        try:
            check_horizons(self.horizons)
        except ValueError as error:
            raise ModelError(str(error)) from None
        return self._replace(horizons=tuple(self.horizons))

    @property
    def state_sizes(self) -> list[int]:
        """Numbers a lane carries: for each layer, and for the attention where there is one."""
        layer = self.hidden_size * (2 if self.cell == "lstm" else 1)
        window = [self.attention_window * self.hidden_size + 1] if self.attention_window else []
        return [layer] * self.layers + window

    @property
    def state_size(self) -> int:
        """Numbers a lane carries."""
        return sum(self.state_sizes)

    @property
    def output_size(self) -> int:
        """Numbers of a forecast: locations [horizons], log scales, degrees of freedom."""
        return PARAMETERS_OF_T * len(self.horizons)

    def arrays(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and the shape of each of its arrays, as torch's modules name them."""
        size, count = self.hidden_size, len(self.horizons)
        gates = GATES[self.cell] * size
        for k in range(self.layers):
            below = INPUT_SIZE if k == 0 else size
            if self.cell == "esn":
                yield from (
                    (f"layers.{k}.W", (size, below)),
                    (f"layers.{k}.U", (size, size)),
                    (f"layers.{k}.b", (size,)),
                )
                continue
            yield f"layers.{k}.rnn.weight_ih_l0", (gates, below)
            yield f"layers.{k}.rnn.weight_hh_l0", (gates, size)
            yield f"layers.{k}.rnn.bias_ih_l0", (gates,)
            yield f"layers.{k}.rnn.bias_hh_l0", (gates,)
        if self.attention_window:
            yield "attention.query.weight", (size, size)
            yield "attention.out.weight", (size, size)
        yield "from_hidden.weight", (self.output_size, self.layers * size)
        yield "from_hidden.bias", (self.output_size,)
        yield "from_input.weight", (2 * count, INPUT_SIZE)


def cell_parameter_count(cell: str, input_size: int, hidden_size: int) -> int:
    """Return the trained numbers of a layer as the theory counts them, one bias a gate.

    rnn (d + H) H + H; lstm four times that; gru three times; esn none: its reservoir is not trained.
    """
    return GATES[cell] * ((input_size + hidden_size) * hidden_size + hidden_size)


def parameter_count(shape: Shape) -> dict[str, int]:
    """Compute the number of trained parameters as the theory does, for d inputs, H units, L layers and n horizons.

    Cells: gates ((d + H) H + H) for the first layer, gates ((H + H) H + H) for those above, with 1 gate (rnn), 4
    (lstm), 3 (gru) or none that is trained (esn). torch keeps two bias vectors a gate (beside W, beside U; their sum
    is the theory's one, but for the gru's candidate): gates H more a layer. Heads: 3 n (L H + 1) + 2 n d.
    """
    d, size, layers, count = INPUT_SIZE, shape.hidden_size, shape.layers, len(shape.horizons)
    first, above = (cell_parameter_count(shape.cell, below, size) for below in (d, size))
    return {
        "cells": first + (layers - 1) * above,
        "second_biases": GATES[shape.cell] * size * layers,
        "attention": 2 * size * size if shape.attention_window else 0,
        "heads": PARAMETERS_OF_T * count * (layers * size + 1) + 2 * count * d,
    }
