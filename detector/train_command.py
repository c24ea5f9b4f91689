"""What `longwatch train` does: refine a model on files, and put it into a registry if it proves itself.

All rows are read in order, through the same decoding, admission and inputs as the daemon's. Where the daemon learns
from windows of 128 events, here the whole series are there: long windows at random places, the state carried on from
chunk to chunk, and the last fifth of each series held back. Incidents are not left out: nobody has told them yet.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from connectors.decode import Decoder
from connectors.files import FileSettings, FileSource
from connectors.records import EventBatch
from detector.assembly import first_model
from detector.settings import Settings
from training.inputs import FRAME, INPUT_SIZE, NORMALISER, SETTLED, featurise, targets
from training.model import HORIZONS, fingerprint
from training.registry import Registry
from training.retrain import STILL, Outcome, Recipe, fine_tune
from training.tbptt import Step
from training.windows import VALUE, Recorded

Int64 = NDArray[np.int64]

SERIES = Recipe(window=512, chunk=128, warm_up=64, settle=160, passes=4, judge=32, least_groups=16, steps=1000)
HELD_BACK = 0.2  # of each series, its end
LEAST_EVENTS = 200  # of a feature: with fewer there is nothing to bring a state up and to judge it by
MOST_OBSERVATIONS = 20_000_000  # 3 GB of memory


class TrainError(Exception):
    """The files cannot be trained on; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of `train_files`."""

    outcome: Outcome
    parent: str  # version of the model that was refined
    version: str | None  # of the new model; None: it did not prove itself, and nothing was saved
    directory: Path
    events: int  # learnt from or held back
    dropped: int  # late and duplicate ones
    rejected: dict[str, int]  # records by reason
    lanes: int
    lanes_used: int  # those that are long enough and move

    def __str__(self) -> str:
        """Return what a person wants to know, some lines."""
        refused = "".join(f", {count} refused ({reason})" for reason, count in self.rejected.items())
        lines = [f"{self.events} events{refused}, {self.dropped} late or twice; {self.lanes} features, of which "
                 f"{self.lanes_used} have {LEAST_EVENTS} events and move"]  # fmt: skip
        if self.outcome.steps:
            lines.append(
                f"loss on the held-back last {HELD_BACK:.0%}: {self.outcome.champion_loss:.4f} before, "
                f"{self.outcome.validation_loss:.4f} after"
            )
        lines.append(f"{self.outcome.outcome}: {self.outcome.reason}")
        if self.version:
            lines.append(f"saved as {self.version} in {self.directory}; use it with model.directory")
        else:
            lines.append(f"nothing was saved; {self.parent} stays the better model")
        return "\n".join(lines)


def train_files(
    paths: Sequence[str],
    output: str | Path,
    settings: Settings,
    *,
    progress: bool = True,
    now: Callable[[], float] = time.time,
) -> Summary:
    """Refine model.directory's latest model, or the prior, on files, and save the result into Registry(output).

    progress: show bars where standard error is a terminal. now: Unix time, s.
    Raises FileError, TrainError, ModelError and RegistryError.
    """
    torch.set_num_threads(1)  # more are slower at this size
    hidden = None if progress else True
    champion = first_model(settings)
    parent = fingerprint(champion)
    read = _read(paths, settings, hidden)
    recorded, lanes = _recorded(read, settings)
    if not len(recorded.held):
        raise TrainError(
            f"{', '.join(paths)}: none of {lanes} features has {LEAST_EVENTS} events in order and moves; "
            "train on longer series"
        )
    with tqdm(total=SERIES.steps, desc="training", unit="step", disable=hidden) as bar:

        def on_step(step: Step) -> None:
            bar.update()
            if step.number % 20 == 0:
                bar.set_postfix(loss=f"{step.loss:.3f}")

        outcome = fine_tune(champion, recorded, SERIES, settings.compute.seed, on_step=on_step)
    version = None
    if outcome.model is not None:
        version = Registry(output).save(outcome.model, outcome.about(now()))
    return Summary(
        outcome=outcome,
        parent=parent,
        version=version,
        directory=Path(output),
        events=read.kept,
        dropped=sum(map(len, read.time)) - read.kept,
        rejected=dict(read.rejected),
        lanes=lanes,
        lanes_used=len(recorded.held),
    )


@dataclass(slots=True)
class _Read:
    """What the files hold, a list of columns with one entry a batch; names are numbered over all of them."""

    streams: dict[str, int] = field(default_factory=dict)
    features: dict[str, int] = field(default_factory=dict)
    stream: list[Int64] = field(default_factory=list)  # [events]
    time: list[Int64] = field(default_factory=list)  # [events] ns
    count: list[Int64] = field(default_factory=list)  # [events] observations
    feature: list[Int64] = field(default_factory=list)  # [observations]
    value: list[NDArray[np.float64]] = field(default_factory=list)  # [observations]
    observations: int = 0
    kept: int = 0  # events that were neither late nor duplicates
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, batch: EventBatch) -> None:
        streams = np.array([self.streams.setdefault(name, len(self.streams)) for name in batch.streams], np.int64)
        features = np.array([self.features.setdefault(name, len(self.features)) for name in batch.features], np.int64)
        if len(batch):
            self.stream.append(streams[batch.stream])
            self.time.append(batch.time)
            self.count.append(np.diff(batch.start))
            self.feature.append(features[batch.feature])
            self.value.append(batch.value)
            self.observations += len(batch.value)


def _read(paths: Sequence[str], settings: Settings, hidden: bool | None) -> _Read:
    decoder = Decoder(settings.decode)
    source = FileSource(FileSettings(paths=tuple(paths)), decoder)
    read = _Read()
    with tqdm(desc="reading", unit=" records", unit_scale=True, disable=hidden) as bar:
        try:
            while not source.finished():
                raw = source.poll(1.0)
                batch, rejected = decoder.decode(raw)
                read.add(batch)
                read.rejected.update(refusal.reason for refusal in rejected)
                bar.update(len(raw))
                if read.observations > MOST_OBSERVATIONS:
                    raise TrainError(f"the files hold over {MOST_OBSERVATIONS} values: train on a part of them")
        finally:
            source.close()
    if not read.observations:
        raise TrainError(f"{', '.join(paths)}: no event could be read; refused: {dict(read.rejected) or 'none'}")
    return read


def _recorded(read: _Read, settings: Settings) -> tuple[Recorded, int]:
    """Make inputs and targets of the lanes that are worth it; return also how many there were."""
    stream, clock, count = (np.concatenate(column) for column in (read.stream, read.time, read.count))
    kept = _admitted(stream, clock, settings)
    read.kept = int(kept.sum())
    kept_value = np.repeat(kept, count)
    stream, clock = (np.repeat(column, count)[kept_value] for column in (stream, clock))  # [observations]
    feature, value = np.concatenate(read.feature)[kept_value], np.concatenate(read.value)[kept_value]

    names, lane = np.unique(stream * len(read.features) + feature, return_inverse=True)
    order = np.argsort(lane, kind="stable")
    lane, clock, value = lane[order], clock[order], value[order]
    inputs, frames = np.empty((len(lane), INPUT_SIZE), np.float32), np.empty(len(lane), FRAME)
    featurise(np.zeros(len(names), NORMALISER), lane, clock, value, 0, len(lane), inputs, frames)

    edges = np.searchsorted(lane, np.arange(len(names) + 1))
    parts = []
    for number in range(len(names)):
        rows = slice(int(edges[number]), int(edges[number + 1]))
        if rows.stop - rows.start >= LEAST_EVENTS and inputs[rows, VALUE].std() > STILL:
            target = np.empty((len(HORIZONS), rows.stop - rows.start), np.float32)
            for h, horizon in enumerate(HORIZONS):
                targets(value[rows], frames[rows], horizon, target[h])
            parts.append((number, rows, target.T))
    lengths = np.array([len(target) for _, _, target in parts], np.int64)
    start = np.concatenate(([0], np.cumsum(lengths)))
    if not parts:
        none = np.zeros((0, len(HORIZONS)))
        return Recorded(inputs[:0], none.astype(np.float32), none > 0, start, start[1:], start[1:]), len(names)
    target = np.concatenate([target for _, _, target in parts])
    known = np.isfinite(target)
    known &= (np.arange(len(target)) - np.repeat(start[:-1], lengths) >= SETTLED)[:, None]
    return Recorded(
        np.concatenate([inputs[rows] for _, rows, _ in parts]),
        np.nan_to_num(target),
        known,
        start,
        start[1:] - (lengths * HELD_BACK).astype(np.int64),
        names[[number for number, _, _ in parts]] // len(read.features),
    ), len(names)


def _admitted(stream: Int64, clock: Int64, settings: Settings) -> NDArray[np.bool_]:
    """Return which events the engine would score, [events]: by default those later than all before in their stream."""
    order = np.argsort(stream, kind="stable")
    starts = np.flatnonzero(np.diff(stream[order], prepend=-1))
    kept = np.ones(len(stream), np.bool_)
    for rows in np.split(order, starts[1:]):
        newest = np.maximum.accumulate(clock[rows])[:-1]
        later, same = clock[rows[1:]] > newest, clock[rows[1:]] == newest
        duplicates, late = settings.processing.duplicates == "score", settings.processing.late == "score"
        kept[rows[1:]] = later | (same & duplicates) | (~later & ~same & late)
    return kept
