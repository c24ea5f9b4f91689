"""Waiting for brokers while the loop is seen to be alive: work in another thread, abandoned after a deadline."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager

from connectors.common.background import run_in_thread
from connectors.kafka.writer import UndeliveredError

logger = logging.getLogger(__name__)

CHECK_SECONDS = 0.1


class BrokerWait:
    """How long may be waited; `beat` is called meanwhile. Deadlines are monotonic, s."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._shutdown_deadline = math.inf  # when a stop waits no longer
        self._revoke_deadline = math.inf  # when partitions that are taken away wait no longer

    def shut_down_within(self, seconds: float) -> None:
        """Wait no longer than this from now on. For any thread, and for handlers of signals."""
        self._shutdown_deadline = time.monotonic() + seconds

    @property
    def shutting_down(self) -> bool:
        """Whether a stop was asked for."""
        return self._shutdown_deadline < math.inf

    @property
    def given_up(self) -> bool:
        """Whether a stop was asked for and waits no longer."""
        return time.monotonic() > self._shutdown_deadline

    @contextmanager
    def revoking_within(self, seconds: float) -> Iterator[None]:
        """Wait no longer than this in a block: partitions are taken away."""
        self._revoke_deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._revoke_deadline = math.inf

    def run(self, work: Callable[[], None]) -> bool:
        """Do what waits for brokers while the loop is seen to be alive: `work` has its own deadline.

        Returns whether it was over; False where a stop was asked for and cannot wait any longer. Raises
        UndeliveredError where a partition that is taken away cannot wait any longer.
        """
        future = run_in_thread(work)
        while not wait([future], CHECK_SECONDS).done:
            self._beat()
            if self.given_up:
                return False
            if time.monotonic() > self._revoke_deadline:
                raise UndeliveredError("not committed in time, and a partition was taken away meanwhile")
        future.result()
        return True

    def until_brokers_answer(self, work: Callable[[], None]) -> None:
        """Do what brokers are needed for, however long they are away; it is given up only for a stop."""
        while not self.shutting_down:
            try:
                self.run(work)
            except UndeliveredError as error:
                logger.warning("%s; trying again", error)
            else:
                return

    def check(self) -> None:
        """For what waits on the loop's own thread: see that it is alive. UndeliveredError where a stop cannot wait."""
        self._beat()
        if self.given_up:
            raise UndeliveredError("not written in time, and a stop was asked for meanwhile")
