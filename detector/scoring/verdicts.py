"""What a stream's threshold learns from what people say of its alerts."""

from __future__ import annotations

MOST = 255  # STREAM.lift is a byte
EFFECT = {"false": 2, "right": -1, "": 0}  # steps of LIFT_STEP


def taught(lift: int, verdict: str, former: str) -> int:
    """Return the lift after a verdict, "false" or "right".

    `former` is what was said of the same alert before, "" nothing: what it did is taken back.
    """
    return min(max(lift + EFFECT[verdict] - EFFECT[former], 0), MOST)
