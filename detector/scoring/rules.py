"""Which rule a stream gets, by its name, and all rules as columns that kernels read.

A stream's row has the number of its rule: 0 is what holds where none matches, the others count from 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fnmatch import translate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.calendars.windows import Calendar, Windows, merged
from detector.scoring.incidents import AlertRules

LOOKED_BACK = 14 * 86_400_000_000_000  # ns, for the last window of a rule
WINDOWS_LOOKED_AT = 1_000

RULE = np.dtype(
    [
        ("alerts_per_stream_per_week", np.float64),
        ("fixed_threshold", np.float64),  # NaN: from the budgets
        ("direction", np.int64),
        ("min_deviation_absolute", np.float64),
        ("min_deviation_relative", np.float64),
        ("min_duration_seconds", np.float64),
        ("silence", np.bool_),
        ("min_silence_seconds", np.float64),
        ("max_silence_seconds", np.float64),  # infinite: none
        ("muted", np.bool_),
    ],
    align=True,
)


class StreamRule(NamedTuple):
    """What holds for the streams whose names match one of `patterns`, and none of a rule before."""

    name: str
    patterns: tuple[str, ...]
    alerts: AlertRules = AlertRules()  # but for the fleet's budget, which is all streams'
    severity: str = ""  # "warning" | "critical": of every alert; "": by its score
    muted: bool = False  # scored, and never alerted on
    quiet: tuple[Calendar, ...] = ()  # while one has a window, no alert begins


class RuleTable(NamedTuple):
    """What `judge` goes by."""

    fleet_alerts_per_day: float
    fleet_events_per_day: float  # 0: not known
    of: NDArray[np.void]  # RULE [rules + 1], by a stream's rule


class StreamRules:
    """The rules in their order, after that which holds where none matches."""

    def __init__(self, default: AlertRules, rules: Sequence[StreamRule] = ()) -> None:
        self.all = (StreamRule("", (), default), *rules)
        self._quiet = {number: rule for number, rule in enumerate(self.all) if rule.quiet}
        # one alternative for each rule, in their order: the group that matched is the rule's number
        parts = [f"({'|'.join(map(translate, rule.patterns))})" for rule in rules]
        self._pattern = re.compile("|".join(parts)) if parts else None

    def numbers_of(self, streams: Sequence[str]) -> NDArray[np.uint8]:
        """Return the numbers of the rules that streams get, [streams]."""
        if self._pattern is None:
            return np.zeros(len(streams), np.uint8)
        found = map(self._pattern.match, streams)
        return np.array([match.lastindex if match else 0 for match in found], np.uint8)

    def quieten(self, muted: NDArray[np.bool_], number: NDArray[np.uint8], time: NDArray[np.int64]) -> None:
        """Mute those events, [events], that lie in a window of their streams' rules; `time` in ns."""
        for quiet, rule in self._quiet.items():
            here = number == quiet
            if here.any():
                for calendar in rule.quiet:
                    muted[here] |= calendar.hold(time[here])

    @property
    def with_quiet_times(self) -> list[int]:
        """Numbers of the rules that have windows."""
        return list(self._quiet)

    def awake_since(self, number: int, time: int) -> int:
        """Return since when a rule has no window, ns; `time` while it has one, 0 where it had none for two weeks."""
        windows = self._windows(number, time - LOOKED_BACK)
        return min(int(windows.end[windows.begin <= time].max(initial=0)), time)

    def longest_awake(self, number: int, first: int, last: int) -> float:
        """Return the longest time between two times, ns, in which a rule has no window; seconds."""
        windows = self._windows(number, first)
        begin, end = windows.begin[windows.begin < last], windows.end[windows.begin < last]
        since, until = np.append(first, end), np.append(begin, last)
        return float(max((until - since).max(), 0)) * 1e-9

    def _windows(self, number: int, first: int) -> Windows:
        """Return a rule's windows that end after a time, ns, the next ones."""
        found = [calendar.next(first, WINDOWS_LOOKED_AT) for calendar in self._quiet[number].quiet]
        return merged(span for some in found for span in zip(some.begin.tolist(), some.end.tolist(), strict=True))

    def critical_above(self, number: int) -> float:
        """Return how far above the threshold a score must be for an alert by a rule to be critical."""
        rule = self.all[number]
        return {"critical": -math.inf, "warning": math.inf}.get(rule.severity, rule.alerts.critical_above_threshold)

    @property
    def tell_silence(self) -> bool:
        """Whether any rule wants to know of streams that stop."""
        return any(rule.alerts.silence and not rule.muted for rule in self.all)

    def table(self, fleet_events_per_day: float = 0.0) -> RuleTable:
        """Return all rules for `judge`, at a rate of all streams' events; 0: not known."""
        rows = np.zeros(len(self.all), RULE)
        for row, rule in zip(rows, self.all, strict=True):
            row["muted"] = rule.muted
            for name in (RULE.names or ())[:-1]:
                row[name] = getattr(rule.alerts, name)
        return RuleTable(self.all[0].alerts.fleet_alerts_per_day, fleet_events_per_day, rows)
