"""The shipped network of categorical lanes made again, and judged: python -m tests.bench.make_symbols_prior.

Minutes on one core. `training/symbols/network.py` has the network and its training.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from training.symbols.network import (
    CHUNK,
    LANES,
    MAX_PAST,
    PEAK_RATE,
    ROWS,
    SymbolNetwork,
    draw_sequences,
    surprise,
    train_symbols,
)
from training.symbols.synthetic import KINDS
from training.symbols.weights import FILE

logger = logging.getLogger(__name__)

SEED = 1
BATCHES = 2400  # 7,200 steps: five minutes on a quiet core; 700 reach a held-back NLL of 1.361
HELD_BACK_SEED, HELD_BACK_BATCHES = 20_150_101, 20
EXPERT_NAMES = ("single symbols", "single symbols, quickly forgotten", "pairs", "triples")


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


def main(arguments: list[str] | None = None) -> None:
    """Train, judge and write."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.make_symbols_prior", description="Train the symbols' prior."
    )
    parser.add_argument("--seed", type=int, default=SEED, help=f"default {SEED}, as shipped")
    parser.add_argument("--batches", type=int, default=BATCHES, help=f"default {BATCHES}, as shipped")
    parser.add_argument("--output", type=Path, default=Path(str(resources.files("training") / FILE)))
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
