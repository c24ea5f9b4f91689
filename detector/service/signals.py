"""What signals mean to the daemon, from the first moment of `longwatch run` on. Nothing heavy is imported here.

| signal                              | its sender says                | what follows                   |
|-------------------------------------|--------------------------------|--------------------------------|
| TERM, INT, QUIT, PWR                | end                            | the orderly end                |
| ALRM, VTALRM, PROF, XCPU            | a limit from outside is passed | the orderly end                |
| every other one that would end it   | nothing that is known here     | the orderly end                |
| HUP                                 | read the settings again        | that, between two turns        |
| USR1, USR2                          | nothing that is known here     | a line of the log              |
| PIPE, XFSZ                          | what was written was not taken | Python raises where it happens |
| ABRT, SEGV and other faults, KILL   | it is broken, or must go now   | what the system does           |
| TSTP, TTIN, TTOU, STOP, CONT        | wait, go on                    | what the system does           |

A signal that was ignored when the process began stays ignored (nohup, a script's background job), as does one that
somebody else handles (a profiler): only what is as it was by default is taken over.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

FAULTS = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")
LEFT = (*FAULTS, "SIGKILL", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCONT")
WITHOUT_EFFECT = ("SIGCHLD", "SIGURG", "SIGWINCH", "SIGPIPE", "SIGXFSZ")
NOTED = frozenset({signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
ENDING = frozenset(
    number
    for number in signal.valid_signals()
    if number not in NOTED and number not in {getattr(signal, name, None) for name in (*LEFT, *WITHOUT_EFFECT)}
)
LAST_WORDS_SECONDS = 1.0  # a log that nobody reads must not hold up the end


class Signals:
    """Calls `end` at the first signal that means the end; another ends the process at once.

    For the main thread; on any other, which hears no signals, `take` and `give_back` do nothing.
    """

    def __init__(self, end: Callable[[], object]) -> None:
        self._end = end
        self._former: dict[int, Any] = {}  # handlers, by signal
        self._noted: list[str] = []

    def take(self) -> None:
        """Begin to hear signals, also those that another one of this class hears till now."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (*ENDING, *NOTED):
            handler = signal.getsignal(number)
            ours = isinstance(getattr(handler, "__self__", None), Signals)
            if ours or handler in {signal.SIG_DFL, signal.default_int_handler}:
                former = signal.signal(number, self._note if number in NOTED else self._on_end)
                self._former.setdefault(number, former)

    def give_back(self) -> None:
        """Let signals mean what they meant before."""
        while self._former:
            signal.signal(*self._former.popitem())

    def noted(self) -> list[str]:
        """Return the names of signals that came and stop nothing, since this was last asked."""
        noted, self._noted = self._noted, []
        return noted

    def _on_end(self, *_: object) -> None:
        """Say nothing: it may have come in the middle of a line of the log."""
        for number in ENDING & set(self._former):
            # the first process of a container: the system keeps from it what it does not handle
            signal.signal(number, _at_once if os.getpid() == 1 else signal.SIG_DFL)
        self._end()

    def _note(self, number: int, _: object) -> None:
        self._noted.append(signal.Signals(number).name)


def _at_once(number: int, _: object) -> None:
    os._exit(128 + number)


def end_as_any_process() -> None:
    """Let signals end a container's first process as they end any other, which the system spares it by default."""
    if os.getpid() == 1:
        for number in ENDING | NOTED:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _at_once)


def leave() -> None:
    """End the process in the middle of its start: nothing has been read yet, what is on disk is the last checkpoint."""
    last_words = threading.Thread(target=logger.info, args=("stopped while starting",), daemon=True)
    last_words.start()
    last_words.join(LAST_WORDS_SECONDS)
    os._exit(0)
