"""What a stream's threshold learns from what people say of its alerts."""

from __future__ import annotations

MOST = 255  # STREAM.lift is a byte
EFFECT = {"false": 2, "right": -1, "": 0}  # steps of LIFT_STEP


def taught(lift: int, verdict: str, former: str, *, of_a_kind: bool) -> int:
    """Return the lift after a verdict, "false" or "right".

    `former` is what was said of the same alert before, "" nothing: what it did is taken back. `of_a_kind`: its error is
    of a kind that can be called false (called_false.py), which then does instead of a lift.
    """
    effect = EFFECT | {"false": 0} if of_a_kind else EFFECT
    return min(max(lift + effect[verdict] - effect[former], 0), MOST)
