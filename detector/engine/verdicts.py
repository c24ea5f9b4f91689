"""What people tell the engine of a stream: its alert was false, or right; or it is to begin anew."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from connectors.batches import FALSE, RESET, Alert
from detector.engine.engine import Engine
from detector.engine.results import resolved
from detector.scoring.incidents import end_incident
from training.network.history import WINDOW, clear_masked


class Said(NamedTuple):
    """A verdict on an alert of a stream."""

    stream: str
    alert: str  # id
    ended_at: int | None  # ns; None: it may fire still
    lift: int  # what becomes of the stream's


def lift_of(engine: Engine, stream: str) -> int | None:
    """Return what verdicts have added to a stream's threshold, in LIFT_STEPs; None: it was never seen."""
    slot = engine.streams.known(stream)
    return None if slot < 0 else int(engine.streams.states.streams.rows["lift"][slot])


def learn_false(engine: Engine, said: Said) -> list[Alert]:
    """Take an alert's span as normal, end it if it fires, and lift the stream's threshold; return how it ended.

    Once more comes to the same: the lift is what it is to be, not what is added.
    """
    slot = _teach(engine, said)
    states = engine.streams.states
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


def learn_right(engine: Engine, said: Said) -> None:
    """Let the stream's threshold be what a verdict makes of it; the alert's span stays out of what is learnt."""
    _teach(engine, said)


def reset(engine: Engine, stream: str) -> list[Alert] | None:
    """Let a stream begin anew, as one never seen; return how its open alert ended. None: it was never seen."""
    slot = engine.streams.known(stream)
    if slot < 0:
        return None
    states = engine.streams.states
    before = states.streams.rows["admission"][slot].copy()
    alert = states.open_alerts.pop(slot, None)
    ended = [] if alert is None else [resolved(alert, int(before["time"]), RESET)]
    engine.streams.replace(stream, None)
    # its place stays what it is: a checkpoint saves it with its partition
    states.streams.rows["admission"]["partition"][states.slots[stream]] = before["partition"]
    return ended


def _teach(engine: Engine, said: Said) -> int:
    slot = engine.streams.known(said.stream)
    engine.streams.states.streams.rows["lift"][slot] = said.lift
    engine.streams.mark_changed(np.array([slot]))
    return slot
