"""The network of categorical lanes: a distribution over a lane's own vocabulary, and the prior that it ships with.

    python -m training.symbols.network                    # makes the shipped prior again: minutes on one core

What a lane has counted (`kernels.py`) gives for each slot k the log-probabilities x_1..x_4 of four experts
(symbols slowly and quickly forgotten, pairs, triples) and x_5, minus half the log of the events since k was last seen.
An LSTM reads the sequence of slots; its hidden state h and statistics s of the counting (how much each expert has
seen, how well it did recently) say how far each is to be trusted:

    h_t = LSTM(E[place_t] + n [the symbol was new], h_(t-1))
    g = 2 sigmoid(G [h, s] + b)                                  weights of the experts
    z_k = g_1 x_1k + ... + g_5 x_5k + (O h)_k + [k = 0] v.[h, s]
    p = softmax(z) over slot 0 and the slots in use            surprise of the symbol at slot k: -log p_k

So a symbol never seen has a probability that was learnt, by whatever new symbols meant in lanes that were like this.
Slots are given in order of appearance, so in training each sequence has its own vocabulary, in any order.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from training.learn.one_cycle import train_one_cycle
from training.network.cells import LstmCell
from training.symbols.counts import EXPERTS, HIDDEN, LANE_SYMBOLS, SIZE, STATISTICS, Counts, replay_counts
from training.symbols.synthetic import KINDS, make_symbols
from training.symbols.weights import EMBEDDING, FILE

logger = logging.getLogger(__name__)

SEED = 1
LANES, ROWS, CHUNK = 48, 600, 200  # of a batch: lanes side by side, events of each that are learnt, events of a step
BATCHES = 2400  # 7,200 steps: five minutes on a quiet core; 700 reach a held-back NLL of 1.361
MAX_PAST = 30_000  # events that were counted before the first that is learnt
PEAK_RATE = 1e-2
HELD_BACK_SEED, HELD_BACK_BATCHES = 20_150_101, 20
EXPERT_NAMES = ("single symbols", "single symbols, quickly forgotten", "pairs", "triples")


class SymbolSequences(NamedTuple):
    """What counting makes of events [rows, lanes]; `found` is the slot an event had, `slot` that from then on."""

    x: Tensor  # float32 [rows, lanes, EXPERTS, SIZE]
    statistics: Tensor  # float32 [rows, lanes, STATISTICS]
    used: Tensor  # int64 [rows, lanes]
    found: Tensor  # int64 [rows, lanes]
    slot: Tensor  # int64 [rows, lanes]

    def part(self, first: int, last: int) -> SymbolSequences:
        """Return rows first..last of all lanes."""
        return SymbolSequences(*(tensor[first:last] for tensor in self))


class SymbolNetwork(nn.Module):
    """LSTM over slots, and how it mixes what was counted; `state` is [lanes, 2 * HIDDEN], the caller's to keep."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SIZE, EMBEDDING)
        self.is_new = nn.Parameter(torch.zeros(EMBEDDING))
        cell = LstmCell(EMBEDDING, HIDDEN, draw=False)
        self.rnn = cell.rnn
        self.mix = nn.Linear(HIDDEN + STATISTICS, EXPERTS + 1)
        self.out = nn.Linear(HIDDEN, SIZE, bias=False)
        cell.reset_parameters()
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.mix.weight)
        with torch.no_grad():  # to start from: pairs and triples share, the others hardly count
            self.mix.bias.copy_(torch.tensor([-3.0, -3.0, -1.0, -1.0, -4.0, 0.0]))

    def initial_state(self, batch: int) -> Tensor:
        """Return the state of lanes that have seen nothing: zeros [batch, 2 * HIDDEN]."""
        return torch.zeros(batch, 2 * HIDDEN)

    def forward(self, part: SymbolSequences, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p [rows, lanes, SIZE] of each event by what was known before it, and the state after the last."""
        hidden, cell = state[:, :HIDDEN], state[:, HIDDEN:]
        inputs = self.embedding(part.slot) + (part.found == 0)[..., None] * self.is_new
        outputs, (last, cell) = self.rnn(inputs, (hidden[None].contiguous(), cell[None].contiguous()))
        before = torch.cat([hidden[None], outputs[:-1]])
        mix = self.mix(torch.cat([before, part.statistics], dim=-1))
        logits = torch.einsum("rle,rlek->rlk", 2.0 * torch.sigmoid(mix[..., :EXPERTS]), part.x) + self.out(before)
        logits = logits + functional.pad(mix[..., EXPERTS:], (0, SIZE - 1))
        unused = torch.arange(SIZE) > part.used[..., None]
        return functional.log_softmax(logits.masked_fill(unused, -torch.inf), dim=-1), torch.cat([last[0], cell[0]], 1)


def surprise(log_p: Tensor, found: Tensor) -> Tensor:
    """Return -log p of what came, in nats, [rows, lanes]."""
    return -log_p.gather(-1, found[..., None])[..., 0]


def count_sequences(symbols: list[NDArray[np.int64]], from_row: int) -> SymbolSequences:
    """Count sequences of one length; return what the network sees of the events from a row on."""
    rows, lanes = len(symbols[0]) - from_row, len(symbols)
    found = Counts(
        x=np.zeros((rows, lanes, EXPERTS, SIZE), np.float32),
        statistics=np.zeros((rows, lanes, STATISTICS), np.float32),
        used=np.zeros((rows, lanes), np.int64),
        found=np.zeros((rows, lanes), np.int64),
        slot=np.zeros((rows, lanes), np.int64),
    )
    replay_counts(np.zeros(lanes, LANE_SYMBOLS), np.stack(symbols), from_row, found)
    return SymbolSequences(*map(torch.from_numpy, found))


def draw_sequences(rng: np.random.Generator, lanes: int, kind: str | None = None) -> SymbolSequences:
    """Draw sequences of any kind, after a past of any length: half of them short."""
    past = int(np.exp(rng.uniform(0.0, np.log(MAX_PAST)))) if rng.random() < 0.8 else 0
    return count_sequences([make_symbols(rng, past + ROWS, kind) for _ in range(lanes)], past)


def metrics(network: SymbolNetwork) -> dict[str, float]:
    """Return mean NLL in nats on held-back sequences, of the network and of each expert alone, in all and by kind."""
    found: dict[str, list[float]] = {}
    rng = np.random.default_rng(HELD_BACK_SEED)
    for number in range(HELD_BACK_BATCHES):
        kind = KINDS[number % len(KINDS)]
        part = draw_sequences(rng, LANES, kind)
        with torch.inference_mode():
            log_p, _ = network(part, network.initial_state(LANES))
        nll = float(surprise(log_p, part.found).mean())
        for name in ("nll", f"nll, {kind}"):
            found.setdefault(name, []).append(nll)
        for expert, called in enumerate(EXPERT_NAMES):
            alone = float(surprise(part.x[:, :, expert], part.found).mean())
            for name in (f"{called} alone", f"{called} alone, {kind}"):
                found.setdefault(name, []).append(alone)
    return {name: round(sum(values) / len(values), 4) for name, values in sorted(found.items())}


def loss_of(network: SymbolNetwork, part: SymbolSequences, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean surprise of a chunk, and the state after it."""
    log_p, state = network(part, state)
    return surprise(log_p, part.found).mean(), state


def train_symbols(seed: int, batches: int) -> SymbolNetwork:
    """Train a fresh network on the synthetic sequences of `seed`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = SymbolNetwork()
    drawn = (draw_sequences(rng, LANES) for _ in range(batches))
    steps = batches * (ROWS // CHUNK)
    name = f"symbols, seed {seed}"
    train_one_cycle(network, drawn, name, steps=steps, chunk=CHUNK, peak_rate=PEAK_RATE, loss=loss_of)
    return network


def main(arguments: list[str] | None = None) -> None:
    """Train, judge and write."""
    parser = argparse.ArgumentParser(prog="python -m training.symbols.network", description="Train the symbols' prior.")
    parser.add_argument("--seed", type=int, default=SEED, help=f"default {SEED}, as shipped")
    parser.add_argument("--batches", type=int, default=BATCHES, help=f"default {BATCHES}, as shipped")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / FILE)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)  # more would sum in another order
    began = time.monotonic()
    network = train_symbols(options.seed, options.batches)
    seconds = time.monotonic() - began
    about = {
        "seed": options.seed,
        "figures": metrics(network),
        "recipe": {"batches": options.batches, "lanes": LANES, "rows": ROWS, "chunk": CHUNK, "peak_rate": PEAK_RATE,
                   "longest_past": MAX_PAST},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }  # fmt: skip
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, options.output)
    options.output.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    logger.info("wrote %s after %.0f s: %s", options.output, seconds, about["figures"])


if __name__ == "__main__":
    main()
