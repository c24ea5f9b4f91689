"""What people tell the daemon, and where in the stream it holds.

An action is written to the journal, then applied between two turns: right after one checkpoint and right before
another, which names it. So it has one place in the stream: whatever is killed or rolled back, states are those of
before that place and the action is still to come, or those of after it. Where the second checkpoint cannot be made, all
goes back to the first, which lies at the same event, and the action waits.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from connectors.batches import Alert
from connectors.common.background import OngoingProblem
from connectors.common.sqlite import Fault
from detector.checkpointing.checkpointer import Checkpointer
from detector.checkpointing.state_directory import UnsavedError
from detector.engine.engine import Engine
from detector.engine.silence import silence_id
from detector.engine.verdicts import Said, is_of_a_kind, learn_false, learn_pause, learn_right, lift_of, reset
from detector.feedback.journal import (
    KINDS,
    VERDICTS,
    Action,
    AlertSpan,
    Entry,
    FeedbackError,
    Journal,
    UnavailableError,
    UnknownTargetError,
)
from detector.observability.log_format import printable
from detector.observability.metrics import Metrics
from detector.scoring.verdicts import taught
from detector.state.mutes import FOREVER

logger = logging.getLogger(__name__)

FEEDBACK = "feedback"  # the checkpoint's word for the last action that it covers
RETRY_SECONDS = 5.0  # before a journal that failed is tried again
MAX_MUTES = 1_000  # in force: each pattern is held against each stream that is loaded
MAX_TARGET, MAX_REASON, MAX_AUTHOR = 1_024, 1_000, 200  # characters


class Mute(NamedTuple):
    """Streams that are not to alert."""

    id: int
    pattern: str
    until: int | None  # event time, ns; None: for ever
    reason: str
    author: str
    created_at: float  # Unix time, s


class Applied(NamedTuple):
    """What was done, and has been made durable."""

    sequence: int
    kind: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What feedback asks of the rest of the daemon."""

    find_alert: Callable[[str], AlertSpan | None]  # any thread
    has_incident: Callable[[str], bool]  # any thread
    tell: Callable[[Sequence[Alert]], object]  # of alerts that end; the daemon's thread
    newest: Callable[[], float]  # time of the newest event, s; any thread
    stored: Callable[[], Mapping[str, object]]  # the last checkpoint's meta document; the daemon's thread


class Feedback:
    """Takes what people say. `submit` and what reads may be called from any thread; the rest is for the daemon's."""

    def __init__(
        self, directory: Path, engine: Engine, checkpointer: Checkpointer, around: Surroundings, metrics: Metrics
    ) -> None:
        """Open the journal in the state directory, and let the mutes hold that it knows. Raises FeedbackError."""
        self._engine, self._checkpointer, self._around, self._metrics = engine, checkpointer, around, metrics
        self._journal = Journal(directory)
        self._futures: dict[int, Future[Applied]] = {}
        self._lock = threading.Lock()  # for a moment
        self._mutes: dict[str, Mute] = {}  # by pattern; replaced, never changed
        self._done = 0  # the last action that is applied
        self._waiting = False  # whether there may be others
        self._stale = True  # `_done` and `_mutes` have to be read again
        self._retry_at = 0.0  # monotonic, s: when a journal that failed is tried again
        self._damage: UnavailableError | None = None  # of the journal
        self.problem = OngoingProblem(math.inf)
        self.rolled_back()
        metrics.mutes.set_function(lambda: len(self.mutes()))

    # -- any thread ----------------------------------------------------------------------------------------------------

    def submit(self, action: Action) -> Future[Applied]:
        """Write an action down, and return what will hold that it was applied, or why not.

        Raises FeedbackError, UnknownTargetError among them, where it cannot be; then nothing is written down.
        """
        action = _checked(action)
        span: AlertSpan | None = None
        if action.kind in VERDICTS:
            span = self._around.find_alert(action.target)
            if span is None:
                raise UnknownTargetError(f"there is no alert {action.target!r:.100}: it may have been forgotten")
        elif action.kind == "acknowledge" and not self._around.has_incident(action.target):
            raise UnknownTargetError(f"there is no incident {action.target!r:.100}: it may have been forgotten")
        elif action.kind == "unmute" and action.target not in self._mutes:
            raise UnknownTargetError(f"there is no mute {action.target!r:.100}: `longwatch mutes` lists them")
        elif action.kind == "mute" and action.target not in self._mutes and len(self.mutes()) >= MAX_MUTES:
            raise FeedbackError(f"{MAX_MUTES} mutes are in force, which is the most: end some, or use a wider pattern")
        future: Future[Applied] = Future()
        try:
            with self._lock:
                self._futures[self._journal.add(action, span)] = future
                self._waiting = True
        except UnavailableError as error:
            self._fail(error)
            raise
        return future

    def mutes(self) -> list[Mute]:
        """Return the mutes that are in force by the time of the newest event, the newest mute last."""
        newest = self._around.newest() * 1e9
        return [mute for mute in self._mutes.values() if mute.until is None or mute.until > newest]

    def verdicts(self, alert_id: str) -> Entry | None:
        """Return the last verdict on an alert; None: nobody gave one, or the journal cannot be read."""
        return self._said_of(alert_id, VERDICTS)

    def acknowledged(self, incident_id: str) -> Entry | None:
        """Return who has acknowledged an incident last; None: nobody has, or the journal cannot be read."""
        return self._said_of(incident_id, ("acknowledge",))

    def _said_of(self, target: str, kinds: Sequence[str]) -> Entry | None:
        try:
            return self._journal.said_of(target, kinds, self._done)
        except UnavailableError as error:  # what it is about can be shown all the same
            self._fail(error)
            return None

    def _fail(self, error: UnavailableError) -> None:
        """Note what is wrong with the journal; the daemon's thread sees to it."""
        if error.fault is Fault.DAMAGED:
            self._damage = error
        self._waiting = True
        if self.problem.report(str(error)):
            logger.error("feedback waits: %s. Scoring continues", error)

    # -- the daemon's thread -------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Apply what waits, between two checkpoints.

        Nothing is done while states are restored, no checkpoint can be made, or the journal fails. Raises what a
        checkpoint raises: then roll back, and call `rolled_back`.
        """
        checkpointer = self._checkpointer
        if not self._waiting or checkpointer.restoring or checkpointer.last_error is not None:
            return
        if time.monotonic() < self._retry_at or not checkpointer.commit():
            return
        try:
            waiting = self._found()
            if waiting:
                self._journal.try_to_write(waiting[0])  # rather than to find out in the middle of them
        except UnavailableError as error:
            self._put_off(error)
            return
        if self.problem.current:
            logger.info("feedback: its journal can be used again")
            self.problem.clear()
        try:
            outcomes = [self._apply(entry) for entry in waiting]
        except UnavailableError as error:  # in the middle of them
            self._put_off(error)
            checkpointer.roll_back(error)
            self.rolled_back()
            return
        if waiting:
            checkpointer.metadata[FEEDBACK] = self._done = waiting[-1].sequence
            if not checkpointer.commit():
                checkpointer.roll_back(checkpointer.last_error or UnsavedError("feedback could not be made durable"))
                self.rolled_back()
                return
        with self._lock:
            self._waiting = any(sequence > self._done for sequence in self._futures)
            futures = [self._futures.pop(entry.sequence, None) for entry in waiting]
        for entry, refused, future in zip(waiting, outcomes, futures, strict=True):
            self._tell(entry, refused)
            if future is not None and future.set_running_or_notify_cancel():
                if refused is None:
                    future.set_result(Applied(entry.sequence, entry.kind, entry.target))
                else:
                    future.set_exception(refused)

    def rolled_back(self) -> None:
        """Take note that all is as the last checkpoint left it: what it does not cover is applied again."""
        self._stale = self._waiting = True
        try:
            self._waiting = bool(self._found())
        except UnavailableError as error:  # what holds is what held, until it can be read again
            self._put_off(error)

    def _put_off(self, error: UnavailableError) -> None:
        self._fail(error)
        self._retry_at = time.monotonic() + RETRY_SECONDS

    def _found(self) -> list[Entry]:
        """Return what waits in the journal, which is mended and read again where that is due."""
        if self._damage is not None:
            self._begin_anew(self._damage)
        if self._stale:
            self._load()
            self._stale = False
        with self._lock:
            return self._journal.after(self._done)

    def _begin_anew(self, why: UnavailableError) -> None:
        """Put a damaged journal aside, and write the mutes that hold to a new one."""
        with self._lock:
            self._journal.begin_anew(why)
            self._journal.number_from(self._done)
            for mute in self._mutes.values():
                self._journal.add(Action("mute", mute.pattern, mute.until, mute.reason, mute.author), None)
            futures, self._futures, self._damage = self._futures, {}, None
        for future in futures.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(UnavailableError(f"{why}: what you asked for is lost; ask again"))

    def close(self) -> None:
        """Close the journal; what waits is applied after the next start, and whoever waits for it is told so."""
        with self._lock:
            futures, self._futures = self._futures, {}
        for future in futures.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(
                    UnavailableError("the daemon stops: this is written down, and done when it runs again")
                )
        self._journal.close()

    def _load(self) -> None:
        """Let what the last checkpoint covers hold."""
        found = self._around.stored().get(FEEDBACK, 0)
        done = self._done = self._checkpointer.metadata[FEEDBACK] = found if isinstance(found, int) else 0
        mutes: dict[str, Mute] = {}
        for entry in self._journal.mutes(done):
            mutes = _muted(mutes, entry)
        if self._journal.last() < done:  # another file than that of the checkpoint: what comes is not done yet
            self._journal.number_from(done)
        self._use(mutes)

    def _use(self, mutes: dict[str, Mute]) -> None:
        self._mutes = mutes
        self._engine.streams.mute(
            {pattern: FOREVER if mute.until is None else mute.until for pattern, mute in mutes.items()}
        )

    def _apply(self, entry: Entry) -> FeedbackError | None:
        """Do what was asked for; return why it cannot be done."""
        try:
            if entry.kind in ("mute", "unmute"):
                self._use(_muted(self._mutes, entry))
            elif entry.kind == "reset":
                ended = reset(self._engine, entry.target)
                if ended is None:
                    raise _unknown(entry.target)
                self._around.tell(ended)
            elif entry.kind in VERDICTS:
                self._judge(entry)
        except UnavailableError:
            raise
        except FeedbackError as error:
            self._journal.decide(entry, refused=str(error))
            return error
        return None

    def _judge(self, entry: Entry) -> None:
        lift = lift_of(self._engine, entry.stream)
        if lift is None:
            raise _unknown(entry.stream)
        if entry.target == silence_id(entry.stream, entry.started):  # it has nothing to do with a threshold
            if entry.kind == "false":
                seconds = ((entry.ended or entry.started) - entry.started) * 1e-9
                self._around.tell(learn_pause(self._engine, entry.stream, seconds))
            return
        if entry.lift is not None:  # a crash came between this and the checkpoint
            lift = entry.lift
        else:
            former = self._journal.said_of(entry.target, VERDICTS, entry.sequence - 1)
            of_a_kind = is_of_a_kind(self._engine, entry.stream, entry.error)
            lift = taught(lift, entry.kind, former.kind if former else "", of_a_kind=of_a_kind)
            self._journal.decide(entry, lift=lift)
        said = Said(entry.stream, entry.target, entry.ended, lift, entry.error)
        if entry.kind == "false":
            self._around.tell(learn_false(self._engine, said))
        else:
            learn_right(self._engine, said)

    def _tell(self, entry: Entry, refused: FeedbackError | None) -> None:
        what = f"{entry.kind} {entry.target!r} by {entry.author or 'somebody'}: {entry.reason or 'no reason given'}"
        if refused is not None:
            logger.warning("feedback refused: %s: %s", printable(what), refused)
            return
        self._metrics.feedback[entry.kind].inc()
        logger.info("feedback: %s", printable(what))


def _checked(action: Action) -> Action:
    """Return an action as it can be kept; raises FeedbackError."""
    kind, target, until, reason, author = action
    if kind not in KINDS:
        raise FeedbackError(f"there is no feedback of kind {kind!r:.50}: choose one of {', '.join(KINDS)}")
    if not target.strip():
        raise FeedbackError(f"{kind}: say of what: a name, a pattern or an id")
    for word, text, most in (
        ("target", target, MAX_TARGET),
        ("reason", reason, MAX_REASON),
        ("author", author, MAX_AUTHOR),
    ):
        if len(text) > most:
            raise FeedbackError(f"{kind}: the {word} has {len(text)} characters; at most {most} are kept")
        if "\0" in text or (not text.isascii() and any(0xD800 <= ord(c) < 0xE000 for c in text)):
            raise FeedbackError(f"{kind}: the {word} has a character that no text may have: leave it out")
    if until is not None and kind != "mute":
        raise FeedbackError(f"{kind}: only a mute has an end")
    if until is not None and not 0 < until < FOREVER:
        raise FeedbackError(f"mute: expected an end between 1970 and 2262, found {until!r:.50}")
    return action


def _muted(mutes: dict[str, Mute], entry: Entry) -> dict[str, Mute]:
    """Return the mutes after one is made or ended; of one pattern the last holds."""
    others = {pattern: mute for pattern, mute in mutes.items() if pattern != entry.target}
    if entry.kind == "mute":
        made = Mute(entry.sequence, entry.target, entry.until, entry.reason, entry.author, entry.created)
        if len(others) >= MAX_MUTES:  # one of them is over, as no more are taken that hold
            del others[min(others, key=lambda pattern: others[pattern].until or FOREVER)]
        others[entry.target] = made
    return others


def _unknown(stream: str) -> UnknownTargetError:
    return UnknownTargetError(
        f"there is no stream {stream!r:.100} here: its name is another, or another worker has its partition"
    )
