"""Whose turn it is with the engine: the daemon's loop, which changes it, or a reader on another thread.

First come, first served: under full load the loop hands the engine to whoever asked between two turns, and has it back
as soon as those who asked before it are done. So a reader waits for one turn at most, and the loop for readers that
take milliseconds each.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from detector.errors import BusyError

_Result = TypeVar("_Result")


class EndedError(Exception):
    """The loop has ended: nothing is done between its turns any more."""


class Turns:
    """A fair lock around the engine, and work for the thread that may change it.

    `alarming`: errors of that work that the loop must hear of too, because it has to go back to its last checkpoint.
    """

    def __init__(self, alarming: tuple[type[Exception], ...] = ()) -> None:
        self._alarming = alarming
        self._mutex = threading.Lock()  # for a moment
        self._waiting: deque[threading.Lock] = deque()  # each released as its turn comes
        self._taken = False
        self._owner = 0  # thread that has it
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._ended = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have the engine, to change it, however long that takes to get. For the loop's thread; may be nested."""
        with self._having(-1.0):
            yield

    @contextmanager
    def look(self, timeout: float = 2.0) -> Iterator[None]:
        """Have the engine, to read it, on any thread. Raises BusyError where it is not free within `timeout` s."""
        with self._having(max(timeout, 0.0)):
            yield

    def call(self, work: Callable[[], _Result]) -> Future[_Result]:
        """Have `work` done by the loop's thread between two turns, and return what will hold its outcome. Any thread.

        A loop that waits for events gets to it within its poll's time-out. Once the loop has ended, the outcome is
        EndedError; until it has begun, it waits.
        """
        future: Future[_Result] = Future()
        with self._mutex:
            if not self._ended:
                self._calls.append((future, work))
                return future
        future.set_exception(EndedError("the daemon stops: nothing is changed any more"))
        return future

    def run_calls(self) -> None:
        """Do what `call` was given. For the loop's thread, within a turn; raises what is alarming."""
        while self._calls:
            future, work = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except self._alarming as error:
                future.set_exception(error)
                raise
            except Exception as error:  # noqa: BLE001 - it is for whoever asked, and must not end the loop
                future.set_exception(error)
            else:
                future.set_result(result)

    def end(self) -> None:
        """Do no more work: what waits, and what comes, gets EndedError."""
        with self._mutex:
            self._ended = True
        while self._calls:
            future, _ = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(EndedError("the daemon stops: nothing is changed any more"))

    @contextmanager
    def _having(self, timeout: float) -> Iterator[None]:
        """Wait for one's turn, -1: for as long as it takes."""
        me = threading.get_ident()
        if self._owner == me:
            yield
            return
        if not self._take(timeout):
            raise BusyError(f"the daemon has been busy for {timeout:g} s: ask again")
        self._owner = me
        try:
            yield
        finally:
            self._owner = 0
            self._give()

    def _take(self, timeout: float) -> bool:
        with self._mutex:
            if not self._taken:
                self._taken = True
                return True
            ticket = threading.Lock()
            ticket.acquire()
            self._waiting.append(ticket)
        if ticket.acquire(timeout=timeout):
            return True
        with self._mutex:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                return False
        return True  # its turn came in the last moment

    def _give(self) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False
