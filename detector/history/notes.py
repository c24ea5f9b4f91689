"""What is to be said of events around an alert, or of a stream: what is not known, or not here."""

from __future__ import annotations

import numpy as np

from connectors.encode import rfc3339_of
from detector.history.columns import Columns, StreamWindow

ELSEWHERE = "Kept by the worker that recorded it: what another worker scored of the stream is not here."


def window_of(stream: str, columns: Columns, *, gaps: bool, done: bool, changelog: bool) -> StreamWindow:
    """Return an alert's surroundings with what is to be said of them."""
    notes = [older_note(columns)]
    if gaps:
        notes.append("Some events are missing: the disk took none, there were too many, or the alert lasted too long.")
    elif not done:
        notes.append("What follows is added as it comes.")
    if changelog:
        notes.append(ELSEWHERE)
    return StreamWindow(stream, columns, done and not gaps, " ".join(filter(None, notes)))


def older_note(columns: Columns) -> str:
    """Return what is to be said of events whose scores are not known; "": there are none."""
    known = np.flatnonzero(~np.isnan(columns.values["score"]))
    if len(known) == len(columns):
        return ""
    since = f"Before {rfc3339_of(int(columns.values['time'][known[0]]))} " if len(known) else "Of these events "
    return (
        f"{since}scores are not known: values are restored from the stream's own window, what was expected is what the"
        " present model says, and times are estimates."
    )
