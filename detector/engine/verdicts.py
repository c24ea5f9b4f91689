"""What people tell the engine of a stream: its alert was false, or right; or it is to begin anew."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from connectors.batches import CHANNELS, FALSE, RESET, Alert
from detector.engine.engine import Engine
from detector.engine.results import resolved
from detector.scoring.called_false import call_false, has_kinds, take_back
from detector.scoring.claims import SEVERAL
from detector.scoring.incidents import end_incident
from training.network.history import WINDOW, clear_masked


class ToldError(NamedTuple):
    """The error that an alert told."""

    channel: str  # of CHANNELS
    feature: str
    size: float  # observed - expected; 0: it has none, as a symbol's


class Said(NamedTuple):
    """A verdict on an alert of a stream."""

    stream: str
    alert: str  # id
    ended_at: int | None  # ns; None: it may fire still
    lift: int  # what becomes of the stream's
    error: ToldError


def lift_of(engine: Engine, stream: str) -> int | None:
    """Return what verdicts have added to a stream's threshold, in LIFT_STEPs; None: it was never seen."""
    slot = engine.streams.known(stream)
    return None if slot < 0 else int(engine.streams.states.streams.rows["lift"][slot])


def is_of_a_kind(engine: Engine, stream: str, error: ToldError) -> bool:
    """Whether such an error can be called false by itself: it has a size, and the stream one feature."""
    slot = engine.streams.known(stream)
    return slot >= 0 and _kind(engine, slot, error) is not None


def learn_false(engine: Engine, said: Said) -> list[Alert]:
    """Take an alert's span as normal, end it if it fires, and tell no more of its kind; return how it ended.

    Once more comes to the same: the lift is what it is to be, not what is added.
    """
    slot = _teach(engine, said)
    states = engine.streams.states
    if (kind := _kind(engine, slot, said.error)) is not None:
        call_false(*kind, int(states.streams.rows["admission"]["time"][slot]))
    stream, alert = states.streams.rows[slot], states.open_alerts.get(slot)
    ended: list[Alert] = []
    rows = states.lanes.rows["history"]
    lanes = np.arange(stream["lanes"]) + stream["first_lane"]
    if alert is not None and alert.id == said.alert:
        ended.append(resolved(states.open_alerts.pop(slot), int(stream["admission"]["time"]), FALSE))
        end_incident(stream)
        back = 0
    elif said.ended_at is not None and stream["admission"]["interval"] > 0.0:
        # rows have no times: the run of masked ones whose end is nearest to where the alert's must be
        back = round((int(stream["admission"]["time"]) - said.ended_at) * 1e-9 / float(stream["admission"]["interval"]))
    else:
        return ended
    if 0 <= back < WINDOW:
        clear_masked(rows, lanes, back)
    return ended


def learn_pause(engine: Engine, stream: str, seconds: float) -> list[Alert]:
    """Take a pause that was told as silence for a usual one; return how its alert ended, if it fired."""
    slot = engine.streams.known(stream)
    return [] if slot < 0 else engine.silence.learn_false(slot, seconds)


def learn_right(engine: Engine, said: Said) -> None:
    """Let the stream's threshold be what a verdict makes of it; the alert's span stays out of what is learnt."""
    slot = _teach(engine, said)
    if (kind := _kind(engine, slot, said.error)) is not None:
        take_back(*kind)


def reset(engine: Engine, stream: str) -> list[Alert] | None:
    """Let a stream begin anew, as one never seen; return how its open alert ended. None: it was never seen."""
    slot = engine.streams.known(stream)
    if slot < 0:
        return None
    states = engine.streams.states
    before = states.streams.rows["admission"][slot].copy()
    alert = states.open_alerts.pop(slot, None)
    ended = [] if alert is None else [resolved(alert, int(before["time"]), RESET)]
    ended += engine.silence.begin_anew(slot)
    engine.streams.replace(stream, None)
    # its place stays what it is: a checkpoint saves it with its partition
    states.streams.rows["admission"]["partition"][states.slots[stream]] = before["partition"]
    return ended


def _kind(engine: Engine, slot: int, error: ToldError) -> tuple[np.void, int, float, int] | None:
    """Return what names a kind of errors to called_false.py; None: this one is of none."""
    states = engine.streams.states
    score, features = states.streams.rows["score"][slot], states.features_of(slot)
    if error.channel not in CHANNELS or error.feature not in features or score["width"] >= SEVERAL:
        return None
    channel = CHANNELS.index(error.channel)
    kind = score["recurrence"], features.index(error.feature), error.size, channel
    return kind if has_kinds(channel, error.size) else None


def _teach(engine: Engine, said: Said) -> int:
    slot = engine.streams.known(said.stream)
    engine.streams.states.streams.rows["lift"][slot] = said.lift
    engine.streams.mark_changed(np.array([slot]))
    return slot
