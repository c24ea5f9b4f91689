"""Any stream's recent events, forecast and hidden state, whether it is in memory or in the store.

`look_at` copies what it needs, in a fraction of a millisecond; the work on the copy disturbs nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from detector.engine.engine import Engine
from detector.history.columns import Columns, StreamWindow, counts_of, joined
from detector.history.notes import older_note
from detector.history.replay import Band, HiddenStates, StreamCopy
from detector.history.ring import Ring
from training.network.weights import Weights

MAX_EVENTS = 2_000  # of a window
MAX_REPLAYED_LANES = 256  # features of a stream whose windows are replayed: a third of a second


def look_at(
    engine: Engine, ring: Ring, name: str, saved: Callable[[str], bytes | None] = lambda name: None
) -> Look | None:
    """Return what there is of a stream; None for one that nobody knows. Nothing changes; nobody may, meanwhile.

    `saved` returns the row that the store has of a stream that is not in memory.
    """
    row = engine.pack(name)
    if row is None:
        row = saved(name)
    if row is None:
        return None
    (numbers,) = ring.find([hash(name)], MAX_EVENTS)
    return Look(name, row, ring.columns(numbers), engine.weights, engine.settings.timezone)


class Look:
    """A stream at one moment. For one thread."""

    def __init__(self, name: str, row: bytes, recent: Columns, weights: Weights, timezone: str) -> None:
        self._name, self._row, self._recent, self._weights, self._timezone = name, row, recent, weights, timezone

    @cached_property
    def _copy(self) -> StreamCopy:
        return StreamCopy(self._name, self._row, self._weights, self._timezone)

    def window(self, events: int) -> StreamWindow:
        """Return the last `events` events, at most MAX_EVENTS: as scored, and what was before as the row has it.

        Raises StateError for a row that is damaged.
        """
        recent = joined([self._recent])
        recent = recent.rows(max(len(recent) - events, 0), len(recent))
        notes = list[str]()
        if len(recent) < events:
            if len(self._copy.features) > MAX_REPLAYED_LANES:
                notes.append("It has too many features for what came before to be restored from its windows.")
            else:
                recent = joined([self._copy.older(counts_of(recent), events - len(recent)), recent])
                notes.append(older_note(recent))
        return StreamWindow(self._name, recent, len(recent) == events, " ".join(filter(None, notes)))

    def forecast(self) -> dict[str, Band]:
        """Return what is expected next of each feature that is a number. Raises StateError."""
        return self._copy.forecast()

    def hidden(self, feature: str) -> HiddenStates:
        """Return the hidden states over the window of a feature that is a number.

        Raises KeyError where the stream has no such feature, StateError for a row that is damaged.
        """
        return self._copy.hidden(feature)
