"""What was last said of each stream: for those who look at the fleet between two batches.

A stream's row keeps what its next score depends on, which its last score is no part of. So it is kept here, by slot,
and neither stored nor restored: after a start nothing is known of a stream before its next event.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LATEST = np.dtype(
    [
        ("time", np.int64),  # ns, of the event; tells what is said of a stream from what was of a former in its slot
        ("score", np.float32),
        ("threshold", np.float32),
        ("channel", np.int8),  # index into CHANNELS; -1: nothing is claimed
    ],
    align=True,
)


class Latest:
    """The last score of each stream in memory, LATEST by slot."""

    def __init__(self) -> None:
        self._rows = np.zeros(0, LATEST)

    def note(self, slots: int, slot: NDArray[np.int64], time: NDArray[np.int64], verdicts: NDArray[np.void]) -> None:
        """Take a batch's verdicts in: VERDICT [events], sorted by stream and within it in order of time.

        `slots`: how many there are by now; `slot`, `time` (ns): [events].
        """
        if slots > len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros(slots - len(self._rows), LATEST)])
        # where a stream has several events, the last one stays
        last = np.flatnonzero(np.append(slot[1:] != slot[:-1], [True])) if len(slot) else slot
        of_last, rows = slot[last], self._rows
        rows["time"][of_last] = time[last]
        for column in ("score", "threshold", "channel"):
            rows[column][of_last] = verdicts[column][last]

    def of(self, slot: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.void]:
        """Return what was last said of streams, LATEST [n], by their slots and the times of their last scored events.

        Score and threshold are NaN where nothing was said of that event here.
        """
        found = np.zeros(len(slot), LATEST)
        known = slot < len(self._rows)
        found[known] = self._rows[slot[known]]
        unknown = (found["time"] != time) | (time == 0)
        found["score"][unknown] = found["threshold"][unknown] = np.nan
        found["channel"][unknown] = -1
        return found
