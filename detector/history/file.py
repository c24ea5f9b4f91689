"""`history.db` as it can be had: opened as it is needed, tried again where it fails, put aside where it is damaged."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from connectors.common.background import OngoingProblem
from connectors.common.sqlite import Fault, put_aside
from detector.history.store import HISTORY_FILE, HistoryError, HistoryStore

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0  # before a file that could not be opened is tried again


class HistoryFile:
    """The file. For the daemon's thread; `store` may be read from by any."""

    def __init__(self, directory: Path, on_new: Callable[[], object]) -> None:
        """`on_new` is called where another file has taken the place of a damaged one."""
        self.store: HistoryStore | None = None  # while it is open
        self.problem = OngoingProblem(math.inf)
        self._directory, self._on_new = directory, on_new
        self._retry_at = 0.0  # monotonic, s

    @property
    def is_there(self) -> bool:
        """Whether anything was ever written."""
        return self.store is not None or (self._directory / HISTORY_FILE).exists()

    def opened(self) -> HistoryStore | None:
        """Return the file, opened or made; one that is damaged is put aside. None: not at present."""
        if self.store is None and time.monotonic() >= self._retry_at:
            for _ in range(2):
                try:
                    self.store = HistoryStore(self._directory)
                    break
                except HistoryError as error:
                    self.fail(error)
                    if error.fault is not Fault.DAMAGED or self._retry_at > time.monotonic():
                        break
        return self.store

    def has(self, alert_id: str) -> bool:
        """Whether an alert is in it; False where that cannot be read."""
        store = self.opened() if self.is_there else None
        try:
            return store is not None and store.alert(alert_id) is not None
        except HistoryError as error:
            self.fail(error)
            return False

    def fail(self, error: HistoryError) -> None:
        """Say what is wrong once; put a damaged file aside, for a new one."""
        if error.fault is Fault.DAMAGED:
            self.close()
            aside = put_aside(self._directory / HISTORY_FILE)
            if aside is not None:
                logger.error("history: %s. It was put aside as %s; alerts are remembered anew", error, aside.name)
                self._on_new()
                return
            error = HistoryError(f"{error}, and cannot be renamed: move it away", error.fault)
        if self.store is None:
            self._retry_at = time.monotonic() + RETRY_SECONDS
        if self.problem.report(str(error)):
            logger.error("history: %s. Scoring continues; what alerts' streams do is kept in memory for a while", error)

    def mend(self) -> None:
        """Note that it was written."""
        if self.problem.current:
            logger.info("history: %s can be written again", self._directory / HISTORY_FILE)
            self.problem.clear()

    def close(self) -> None:
        """Close the file, if it is open."""
        if self.store is not None:
            with suppress(HistoryError):
                self.store.close()
            self.store = None
