"""A whole history in memory: every number of a source's events, and of them the lanes that can be learnt from.

All rows are taken in order, through the same decoding, admission and inputs as the daemon's. Incidents are not left
out, since nobody has labelled them.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from connectors.batches import EventBatch, Float64, Int64, numbered
from connectors.decode.decoder import Decoder
from connectors.errors import UserError
from connectors.protocols import Source
from detector.config.settings import Settings
from detector.engine.local_time import local_time
from detector.scoring.admission import admitted_of
from training.network.inputs import VALUE, WARM_UP_EVENTS, Observations, inputs_of, targets
from training.retrain.result import MIN_MOVEMENT
from training.retrain.windows import Recorded

HELD_BACK = 0.2  # of each series, its end
MIN_EVENTS = 200  # of a feature: with fewer there is nothing to bring a state up and to judge it by
MAX_OBSERVATIONS = 20_000_000  # 3 GB of memory
EXCERPTS = 3  # lanes of which the values themselves are kept, to be looked at


class TrainError(UserError):
    """A history that cannot be trained on; the text says why and what to do."""


@dataclass(slots=True)
class EventColumns:
    """All events of a source and their numbers, a list of columns, one entry a batch; names are numbered over all."""

    streams: dict[str, int] = field(default_factory=dict)
    features: dict[str, int] = field(default_factory=dict)
    stream: list[Int64] = field(default_factory=list)  # [events]
    time: list[Int64] = field(default_factory=list)  # [events] ns
    count: list[Int64] = field(default_factory=list)  # [events] observations
    feature: list[Int64] = field(default_factory=list)  # [observations]
    value: list[Float64] = field(default_factory=list)  # [observations]
    observations: int = 0
    symbols: int = 0  # observations that are no numbers, left out
    rejected: Counter[str] = field(default_factory=Counter)  # records by reason

    def __len__(self) -> int:
        """Return the number of events."""
        return sum(map(len, self.time))

    def add(self, batch: EventBatch) -> None:
        """Take a batch in."""
        streams, features = numbered(batch.streams, self.streams), numbered(batch.features, self.features)
        if len(batch):
            number = np.isfinite(batch.value)  # [observations]; NaN: a symbol
            before = np.concatenate((np.zeros(1, np.int64), np.cumsum(number)))
            self.stream.append(streams[batch.stream])
            self.time.append(batch.time)
            self.count.append(np.diff(before[batch.start]))
            self.feature.append(features[batch.feature][number])
            self.value.append(batch.value[number])
            self.observations += int(before[-1])
            self.symbols += len(number) - int(before[-1])


class Excerpt(NamedTuple):
    """The values of one learnable lane as they were, to plot forecasts over; columns are [rows]."""

    name: str  # stream, and feature
    first: int  # its first row in Recorded
    time: Int64  # ns
    value: Float64
    frames: NDArray[np.void]  # FRAME: the unit in which each row's forecast is made


class TrainingData(NamedTuple):
    """The part of the events that can be learnt from."""

    recorded: Recorded  # the lanes that are long enough and move
    kept: int  # events that were neither late nor duplicates
    lanes: int  # all there were
    excerpts: list[Excerpt]


def read_events(source: Source, decoder: Decoder, name: str) -> EventColumns:
    """Read a source to its end; it is closed whatever happens. `name` is what errors call it.

    Raises TrainError where there is nothing to learn from, or too much to hold; and the source's own errors.
    """
    events = EventColumns()
    left = total = sum(source.lag().values())  # 0: the source does not know beforehand
    bar = tqdm(desc="reading", unit=" records", unit_scale=True, total=total or None, disable=None)
    with bar, closing(source):
        while not source.finished():
            raw = source.poll(1.0)
            batch, rejected = decoder.decode(raw)
            events.add(batch)
            events.rejected.update(refusal.reason for refusal in rejected)
            before, left = left, sum(source.lag().values())
            bar.update(before - left if total else len(raw))
            if events.observations > MAX_OBSERVATIONS:
                raise TrainError(f"{name}: over {MAX_OBSERVATIONS} values: train on a part of them")
    if not events.observations:
        raise TrainError(
            f"{name}: no event with a number could be read; rejected: {dict(events.rejected) or 'none'}, "
            f"symbols: {events.symbols}"
        )
    return events


def build_training_data(events: EventColumns, settings: Settings, horizons: tuple[int, ...]) -> TrainingData:
    """Make inputs and targets, one for each of `horizons`, of the lanes that are worth it."""
    stream, clock, count = (np.concatenate(column) for column in (events.stream, events.time, events.count))
    feature, value = np.concatenate(events.feature), np.concatenate(events.value)  # [observations]
    kept = admitted_of(
        *(stream, clock, np.concatenate((np.zeros(1, np.int64), np.cumsum(count))), value),
        duplicates=settings.processing.duplicates == "score",
        late=settings.processing.late == "score",
    )
    kept_value = np.repeat(kept, count)
    stream, clock = (np.repeat(column, count)[kept_value] for column in (stream, clock))  # [observations]
    feature, value = feature[kept_value], value[kept_value]

    numbers, lane = np.unique(stream * len(events.features) + feature, return_inverse=True)
    order = np.argsort(lane, kind="stable")
    lane, clock, value = lane[order], clock[order], value[order]
    inputs, frames = inputs_of(Observations(lane, clock, value, local_time(clock, settings.decode.timezone)))

    edges = np.searchsorted(lane, np.arange(len(numbers) + 1)).tolist()
    target = np.empty((len(horizons), len(lane)), np.float32)
    usable = np.zeros(len(numbers), np.bool_)  # [lanes]
    for number, (a, b) in enumerate(pairwise(edges)):
        usable[number] = b - a >= MIN_EVENTS and inputs[a:b, VALUE].std() > MIN_MOVEMENT
        if usable[number]:
            for h, horizon in enumerate(horizons):
                targets(value[a:b], frames[a:b], horizon, target[h, a:b])
    used, learnable = np.flatnonzero(usable), usable[lane]  # learnable: [observations]
    lengths = np.diff(edges)[used]
    start = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    target = np.ascontiguousarray(target.T[learnable])  # [rows, horizons]
    known = np.isfinite(target)
    known &= (np.arange(len(target)) - np.repeat(start[:-1], lengths) >= WARM_UP_EVENTS)[:, None]
    recorded = Recorded(
        inputs[learnable],
        np.nan_to_num(target),
        known,
        start,
        start[1:] - (lengths * HELD_BACK).astype(np.int64),
        numbers[used] // len(events.features),
        horizons,
    )
    streams, features = list(events.streams), list(events.features)
    excerpts = []
    for place in np.unique(np.linspace(0, len(used) - 1, EXCERPTS).astype(np.int64)).tolist() if len(used) else []:
        rows = slice(edges[used[place]], edges[used[place] + 1])
        stream_number, feature_number = divmod(int(numbers[used[place]]), len(features))
        name = f"{streams[stream_number]}, {features[feature_number]}"
        excerpts.append(Excerpt(name, int(start[place]), clock[rows].copy(), value[rows].copy(), frames[rows].copy()))
    return TrainingData(recorded, int(kept.sum()), len(numbers), excerpts)
