"""The forecaster: one recurrent network that every lane runs through, and what it says of the next observations.

`Forecaster` is the torch module that learns, and that scores on a GPU; `kernels.py` steps the same equations on a CPU.

LSTM (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000), for the inputs x_t and the hidden state h:

    i_t = sigmoid(W_i x_t + U_i h_(t-1) + b_i)        input gate
    f_t = sigmoid(W_f x_t + U_f h_(t-1) + b_f)        forget gate
    C~_t = tanh(W_c x_t + U_c h_(t-1) + b_c)          candidate
    o_t = sigmoid(W_o x_t + U_o h_(t-1) + b_o)        output gate
    C_t = f_t * C_(t-1) + i_t * C~_t                  cell state
    h_t = o_t * tanh(C_t)                             hidden state

Heads: for each horizon a Student-t distribution of the target (`inputs.targets`), so that surprise is a negative
log-likelihood: location mu = w.h + k.x, log sigma = w.h + k.x (inputs clipped at +-3), degrees of freedom
nu = 1.5 + 4 softplus(w.h).
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from training.inputs import INPUT_SIZE, LIMIT

CELLS = ("lstm",)
HORIZONS = (1, 10)  # the next observation and the tenth
PARAMETERS_OF_T = 3  # location, log scale, degrees of freedom
SCALE_INPUT_LIMIT = 3.0  # a wild input may move the location freely, the scale only so far
LEAST_FREEDOM = 1.5  # below, a Student-t's tails hold so much that nothing is a surprise
FORMAT = "longwatch-forecaster-1"


class ModelError(Exception):
    """A model file that cannot be used, with the file's name, what is wrong and what to do."""


class Forecast(NamedTuple):
    """Student-t distributions of the observations ahead; each array is [..., horizons]."""

    location: Tensor
    log_scale: Tensor
    freedom: Tensor


class Forecaster(nn.Module):
    """A recurrent cell and its heads; the same weights for every lane.

    `state` is a Tensor [batch, 2 * hidden_size]: hidden state, then cell state. It is the caller's to keep.
    """

    def __init__(self, cell: str = "lstm", hidden_size: int = 48) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ModelError(f"model.cell: {cell!r} is not known; known is: {', '.join(CELLS)}")
        self.cell = cell
        self.hidden_size = hidden_size
        self.rnn = nn.LSTM(INPUT_SIZE, hidden_size)
        count = len(HORIZONS)
        self.from_hidden = nn.Linear(hidden_size, PARAMETERS_OF_T * count)  # location, log scale, freedom
        self.from_input = nn.Linear(INPUT_SIZE, 2 * count, bias=False)  # location, log scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the literature does against vanishing gradients: orthogonal recurrence, forget bias 1."""
        size = self.hidden_size
        rnn = {name: parameter.data for name, parameter in self.rnn.named_parameters()}
        for gate in range(4):
            nn.init.orthogonal_(rnn["weight_hh_l0"][gate * size : (gate + 1) * size])
            nn.init.xavier_uniform_(rnn["weight_ih_l0"][gate * size : (gate + 1) * size])
        nn.init.zeros_(rnn["bias_hh_l0"])
        nn.init.zeros_(rnn["bias_ih_l0"])
        rnn["bias_ih_l0"][size : 2 * size] = 1.0  # torch's order of gates: input, forget, candidate, output
        nn.init.normal_(self.from_hidden.weight, std=0.1 / math.sqrt(size))
        nn.init.zeros_(self.from_hidden.bias)
        nn.init.zeros_(self.from_input.weight)
        self.from_input.weight.data[: len(HORIZONS), 0] = 1.0  # a forecast of "as last time" to start from

    @property
    def state_size(self) -> int:
        """Numbers a lane carries: hidden state and cell state."""
        return 2 * self.hidden_size

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Forecast, Tensor]:
        """Run the sequence `inputs` [time, batch, INPUT_SIZE] on from `state`; return forecasts and the new state."""
        hidden, cell = state[:, : self.hidden_size], state[:, self.hidden_size :]
        outputs, (hidden, cell) = self.rnn(inputs, (hidden[None].contiguous(), cell[None].contiguous()))
        return self.heads(outputs, inputs), torch.cat([hidden[0], cell[0]], dim=1)

    def heads(self, hidden: Tensor, inputs: Tensor) -> Forecast:
        """Return the distributions that hidden states [..., hidden_size] and their inputs [..., INPUT_SIZE] give."""
        location, log_scale, freedom = self.from_hidden(hidden).chunk(PARAMETERS_OF_T, dim=-1)
        skip_location, _ = self.from_input(inputs).chunk(2, dim=-1)
        _, skip_scale = self.from_input(inputs.clamp(-SCALE_INPUT_LIMIT, SCALE_INPUT_LIMIT)).chunk(2, dim=-1)
        return Forecast(
            location + skip_location,
            (log_scale + skip_scale).clamp(-8.0, 4.0),
            LEAST_FREEDOM + 4.0 * functional.softplus(freedom),
        )

    def initial_state(self, batch: int) -> Tensor:
        """Return the state of lanes that have seen nothing: zeros [batch, state_size]."""
        return torch.zeros(batch, self.state_size, device=self.from_hidden.weight.device)


def student_t_nll(forecast: Forecast, target: Tensor) -> Tensor:
    """Return -log p of `target` [..., horizons] in nats, elementwise; NaN targets give NaN."""
    nu = forecast.freedom
    z = (target - forecast.location) * torch.exp(-forecast.log_scale)
    return (
        torch.lgamma(nu / 2)
        - torch.lgamma((nu + 1) / 2)
        + 0.5 * torch.log(math.pi * nu)
        + forecast.log_scale
        + (nu + 1) / 2 * torch.log1p(z * z / nu)
    )


def parameter_count(hidden_size: int, input_size: int = INPUT_SIZE) -> dict[str, int]:
    """Work the number of parameters out as the theory does: 4 ((d + H) H + H) for the cell, then the heads.

    torch keeps two bias vectors a gate (one beside W, one beside U; their sum is the theory's one): 4 H more.
    """
    d, size, count = input_size, hidden_size, len(HORIZONS)
    return {
        "cell": 4 * ((d + size) * size + size),
        "second_bias": 4 * size,
        "heads": size * PARAMETERS_OF_T * count + PARAMETERS_OF_T * count + d * 2 * count,
    }


def to_bytes(model: Forecaster, notes: dict[str, str] | None = None) -> bytes:
    """Serialise to safetensors, with what is needed to build the module again; equal models give equal bytes."""
    about = {"format": FORMAT, "cell": model.cell, "hidden_size": model.hidden_size, "inputs": INPUT_SIZE}
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # one entry of metadata: safetensors writes several in random order
    return bytes(save(tensors, metadata={"longwatch": json.dumps(about | {"notes": notes or {}}, sort_keys=True)}))


def load_model(path: Path) -> Forecaster:
    """Read a model that `to_bytes` wrote.

    Raises ModelError for a file that is missing, damaged, or made for other inputs.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("longwatch", "{}"))
            if about.get("format") != FORMAT:
                raise ModelError(f"{path}: not a longwatch model of this version (format {about.get('format')!r})")
            if about["inputs"] != INPUT_SIZE:
                raise ModelError(f"{path}: made for {about['inputs']} inputs, not {INPUT_SIZE}: train anew")
            if about["cell"] not in CELLS:
                raise ModelError(f"{path}: its cell {about['cell']!r} is not known; known is: {', '.join(CELLS)}")
            model = Forecaster(about["cell"], about["hidden_size"])
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such model file") from None
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: damaged or foreign model file ({error})") from error
    return model.eval()


def fingerprint(model: Forecaster) -> str:
    """Return a short name for these exact weights: scores are only comparable under the same one."""
    digest = hashlib.sha256(model.cell.encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


assert LIMIT > SCALE_INPUT_LIMIT  # noqa: S101 (a slip here would be silent)
