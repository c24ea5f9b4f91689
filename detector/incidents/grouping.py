"""Which alerts belong together: by the events' own time, and by what the names of their streams share. Pure.

An alert joins an open incident if it belongs to it. Streams of one parent ("web-1/cpu" and "web-1/memory") do as long
as it is open, since a host that is failing fails in several ways, one after another; streams whose names share a word
("rack-3/web-1/cpu" and "rack-3/web-2/disk") within one window of the last that joined; all others within UNRELATED of
one of the incident's beginning. So a rack's failure is one incident, and two hosts that happen to fail in the same
minutes mostly are two.

An incident is over once none of its alerts fires and a window has passed: what flaps stays one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from connectors.batches import SILENT

RELATED_SECONDS = 86_400.0  # an alert that fires for days must not swallow all that its host does later
UNRELATED = 0.2  # windows
MAX_MEMBERS = 100_000  # alerts of one incident; then another begins
MAX_WORDS = 1_000  # of names, that an incident remembers to compare with
MAX_OPEN = 10_000  # incidents; then the oldest is over

_SEPARATOR = re.compile(r"[/:|.]")
_BETWEEN_WORDS = re.compile(r"[\W_]+")
_SEVERITIES = ("warning", "critical")  # in rising order


class Member(NamedTuple):
    """What an incident knows of an alert."""

    id: str
    stream: str
    status: str  # "firing" | "resolved"
    severity: str  # "warning" | "critical"
    started_at: int  # ns
    ended_at: int | None  # ns
    score: float
    channel: str
    summary: str
    topic: str = ""


def parent_of(stream: str) -> str:
    """Return the name without its last part, "web-1" of "web-1/cpu"; empty where it has one part."""
    ends = [found.start() for found in _SEPARATOR.finditer(stream)]
    return stream[: ends[-1]] if ends else ""


def words_of(stream: str) -> set[str]:
    """Return the words of a name that may say what it belongs to; numbers and single letters say nothing."""
    return {word for word in _BETWEEN_WORDS.split(stream.casefold()) if len(word) > 1 and not word.isdigit()}


def common_start(streams: Iterable[str]) -> str:
    """Return the leading parts that all names share, without the separator at their end."""
    names = list(streams)
    first, last = min(names), max(names)
    end = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    ends = [found.start() for found in _SEPARATOR.finditer(first[:end])]
    return first[: ends[-1]] if ends else ""


@dataclass(slots=True, eq=False)
class Incident:
    """One incident and what decides who joins it. Times are ns since 1970 UTC, by the events' clock."""

    id: str  # that of its first alert
    stream: str  # of its first alert
    first_severity: str
    started_at: int
    last_start: int
    ended_at: int = 0  # of the alerts that have resolved, the last
    severity: str = "warning"
    score: float = 0.0
    worst: str = ""  # stream
    finding: str = ""  # its summary
    members: int = 0
    firing: int = 0
    silent: int = 0  # members that tell of silence
    streams: set[str] = field(default_factory=set)
    parents: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    topics: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, member: Member) -> Incident:
        """Begin with an alert."""
        begun = cls(member.id, member.stream, member.severity, member.started_at, member.started_at)
        begun.take(member)
        return begun

    def take(self, member: Member) -> None:
        """Take in an alert."""
        self.members += 1
        self.firing += member.status == "firing"
        self.silent += member.channel == SILENT
        if member.topic and len(self.topics) < MAX_WORDS:
            self.topics.add(member.topic)
        self.started_at = min(self.started_at, member.started_at)
        self.last_start = max(self.last_start, member.started_at)
        if member.stream not in self.streams:
            self.streams.add(member.stream)
            if len(self.words) < MAX_WORDS:
                self.words |= words_of(member.stream)
            if (parent := parent_of(member.stream)) and len(self.parents) < MAX_WORDS:
                self.parents.add(parent)
        self._judge(member)

    def resolve(self, member: Member) -> None:
        """Note that an alert has resolved."""
        self.firing -= 1
        self._judge(member)

    def _judge(self, member: Member) -> None:
        """Keep the worst: its score is that of its peak, known only as it resolves."""
        if member.ended_at is not None:
            self.ended_at = max(self.ended_at, member.ended_at)
        if _SEVERITIES.index(member.severity) > _SEVERITIES.index(self.severity):
            self.severity = member.severity
        if member.score >= self.score:
            self.score, self.worst, self.finding = member.score, member.stream, member.summary

    def summary(self) -> str:
        """Return one sentence: which streams, and what is worst."""
        if len(self.streams) == 1:
            return f"{self.worst}: {self.finding}" if self.finding else self.worst
        start = common_start(self.streams)
        if not start and len(self.topics) == 1:
            start = f"topic {next(iter(self.topics))}"
        which = f"{len(self.streams):,} streams" + (f" of {start}" if start else "")
        if self.silent == self.members:
            return f"{which} send nothing any more, such as {self.worst}"
        return f"{which}; worst: {self.worst}" + (f": {self.finding}" if self.finding else "")


class Grouping:
    """The open incidents, and which of them an alert joins."""

    def __init__(self, window_seconds: float) -> None:
        """`window_seconds`: how far apart, by the events' time, what breaks together may begin."""
        self._window = round(window_seconds * 1e9)
        # the farthest by kind: of one parent, with a word in common, not related
        self._farthest = round(RELATED_SECONDS * 1e9), self._window, round(UNRELATED * self._window)
        self.open: dict[str, Incident] = {}  # by id, oldest first
        self._newest = 0  # ns, of the alerts' times

    def begin(self, member: Member) -> Incident:
        """Begin an incident."""
        begun = self.open[member.id] = Incident.of(member)
        return begun

    def joined(self, member: Member) -> Incident | None:
        """Return the open incident that an alert belongs to, None for one of its own; of several the nearest."""
        parent, words = parent_of(member.stream), words_of(member.stream)
        best: tuple[int, int, Incident] | None = None
        for incident in self.open.values():
            if incident.members >= MAX_MEMBERS:
                continue
            at = member.started_at
            if not incident.firing and at > incident.ended_at + self._window:
                continue  # it is over, though nobody has noticed yet
            same = member.stream in incident.streams or (parent and parent in incident.parents)
            kind = 0 if same else 1 if words & incident.words else 2
            if kind == 2:  # what is not related joins only what begins with it, not all that keeps growing
                distance = abs(at - incident.started_at)
            elif same and not incident.firing:  # what flaps
                distance = max(incident.started_at - at, at - max(incident.last_start, incident.ended_at), 0)
            else:
                distance = max(incident.started_at - at, at - incident.last_start, 0)
            if distance <= self._farthest[kind] and (best is None or (kind, distance) < best[:2]):
                best = kind, distance, incident
        return None if best is None else best[2]

    def pass_time(self, time: int) -> None:
        """Note the time of an alert, ns."""
        self._newest = max(self._newest, time)

    def over(self) -> list[Incident]:
        """Return the open incidents that are over by the events' time, and those too many."""
        quiet = [i for i in self.open.values() if not i.firing and self._newest > i.ended_at + self._window]
        excess = len(self.open) - len(quiet) - MAX_OPEN
        kept = [i for i in self.open.values() if i not in quiet] if excess > 0 else []
        return quiet + kept[: max(excess, 0)]
