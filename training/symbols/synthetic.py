"""Synthetic sequences of symbols: what the prior of categorical lanes learns from.

Random Markov chains of order 0 to 3, noisy loops, interleaved workflows, bursts, drifting vocabularies, and symbols
that come only once. A symbol is an integer from 1; sequences of a batch share nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.network.compiled import compiled

Int64 = NDArray[np.int64]
KINDS = ("memoryless", "chain", "loop", "workflows", "bursts")
STRANGE = 1_000_000  # one-off symbols are numbered from here


@compiled
def _chain(cumulative: NDArray[np.float64], order: int, uniform: NDArray[np.float64], out: Int64) -> None:
    """Draw from rows of cumulative probabilities [rows, size], one for each context of `order` symbols (hashed)."""
    rows, size = cumulative.shape
    for t in range(len(out)):
        row = 0
        for k in range(1, order + 1):
            row = row * 1_000_003 + (out[t - k] if t >= k else 0) + k
        row %= rows
        out[t] = min(np.searchsorted(cumulative[row], uniform[t], side="right"), size - 1)


@compiled
def _workflows(
    paths: Int64,  # [kinds, length], -1 past the end
    weights: NDArray[np.float64],  # [kinds] cumulative
    width: int,  # running at the same time
    sticky: float,  # probability that the same one continues
    uniform: NDArray[np.float64],  # [rows, 3]
    out: Int64,
) -> None:
    kind, step = np.full(width, -1, np.int64), np.zeros(width, np.int64)
    now = 0
    for t in range(len(out)):
        if uniform[t, 0] > sticky:
            now = int(uniform[t, 1] * width)
        if kind[now] < 0 or step[now] >= paths.shape[1] or paths[kind[now], step[now]] < 0:
            kind[now] = min(np.searchsorted(weights, uniform[t, 2], side="right"), len(weights) - 1)
            step[now] = 0
        out[t] = paths[kind[now], step[now]]
        step[now] += 1


def _skewed(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Return probabilities [size]: from equal to steeply falling."""
    p = (1.0 + np.arange(size)) ** -rng.uniform(0.0, 2.5)
    return p / p.sum()


def _base(rng: np.random.Generator, kind: str, rows: int) -> Int64:
    size = int(np.exp(rng.uniform(np.log(2), np.log(48))))
    out = np.zeros(rows, np.int64)
    if kind == "memoryless":
        return rng.choice(size, rows, p=_skewed(rng, size))
    if kind == "chain":
        order = int(rng.integers(1, 4))
        contexts = size if order == 1 else int(min(size**order, rng.integers(4, 400)))
        p = rng.dirichlet(np.full(size, np.exp(rng.uniform(np.log(0.02), np.log(1.0)))) * 1.0, contexts)
        p = p * (1.0 - 1e-3) + 1e-3 * _skewed(rng, size) if rng.random() < 0.5 else p + 1e-12
        cumulative = np.cumsum(p / p.sum(axis=1, keepdims=True), axis=1)
        _chain(cumulative, order, rng.random(rows), out)
        return out
    if kind == "loop":
        length = int(rng.integers(2, 60))
        loop = rng.integers(0, size, length)
        steps = np.ones(rows, np.int64)
        odd = rng.random(rows) < 10.0 ** rng.uniform(-4, -1)
        steps[odd] = rng.integers(-1, 3, int(odd.sum()))  # steps back, repeats, skips
        return loop[np.cumsum(steps) % length]
    if kind == "workflows":
        kinds, length = int(rng.integers(1, 8)), int(rng.integers(2, 25))
        paths = rng.integers(0, size, (kinds, length))
        if rng.random() < 0.5:  # variants of one another, as code paths are
            paths[:] = paths[0]
            changed = rng.random(paths.shape) < 0.25
            paths[changed] = rng.integers(0, size, int(changed.sum()))
        for row in paths:
            row[int(rng.integers(1, length + 1)) :] = -1
        weights = np.cumsum(_skewed(rng, kinds))
        _workflows(paths, weights, int(rng.integers(1, 7)), rng.uniform(0, 0.95), rng.random((rows, 3)), out)
        return out
    p = _skewed(rng, size)  # bursts: the rare for a while
    out = rng.choice(size, rows, p=p)
    bursting = np.cumsum(rng.random(rows) < 1.0 / rng.uniform(50, 2000)) % 2 == 1
    few = rng.choice(size, max(size // 4, 1), replace=False)
    out[bursting] = rng.choice(few, int(bursting.sum()))
    return out


def make_symbols(rng: np.random.Generator, rows: int, kind: str | None = None) -> Int64:
    """Return one sequence [rows] of a kind of KINDS, or any."""
    kind = kind or str(rng.choice(KINDS))
    out = _base(rng, kind, rows) + 1
    if rng.random() < 0.5:  # noise: now and then any of the vocabulary
        noisy = rng.random(rows) < 10.0 ** rng.uniform(-4, -1)
        out[noisy] = rng.choice(np.unique(out), int(noisy.sum()))
    if rng.random() < 0.25:  # drift: a symbol gives way to a new one
        top = int(out.max())
        begins = np.flatnonzero(rng.random(rows) < 10.0 ** rng.uniform(-4, -2.3))
        for fresh, t in enumerate(begins[:200], 1):
            after = out[t:]
            after[after == out[t]] = top + fresh
    if rng.random() < 0.25:  # another behaviour from some point on, of which parts are known
        t = int(rng.integers(0, rows))
        out[t:] = _base(rng, str(rng.choice(KINDS)), rows - t) + 1
    if rng.random() < 0.5:  # never seen before, never again
        strange = np.flatnonzero(rng.random(rows) < 10.0 ** rng.uniform(-4.5, -1))
        out[strange] = STRANGE + np.arange(len(strange))
    return out
