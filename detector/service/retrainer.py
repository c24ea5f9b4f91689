"""Retraining in the background: one thread that learns while the daemon's loop scores.

It works on copies only (a model, windows of lanes) and hands back a `RetrainResult`; the loop alone changes the engine.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.learn.settings import Learning
from training.network.weights import Weights
from training.retrain.result import RetrainResult, eligible_lanes

logger = logging.getLogger(__name__)

NICENESS = 10  # above the daemon's own. Scoring comes first: at half of a core's load, this thread gets what is left
STOP_SECONDS = 2.0  # one step takes tens of milliseconds, the longest stretch between two questions about a second


class _StoppedError(Exception):
    """The daemon ends: nobody waits for the outcome."""


class Retrainer:
    """Runs one retraining at a time. Its methods are for one thread, the daemon's."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock  # s, of the thread that reads it: on a busy machine as much is learnt, only later
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._outcome: RetrainResult | None = None
        self._has_learned = False

    @property
    def running(self) -> bool:
        """Whether a retraining is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self,
        champion: Weights,
        histories: NDArray[np.void],
        stream: NDArray[np.int64],
        seed: int,
        budget_seconds: float,
        learning: Learning | None = None,
    ) -> None:
        """Begin with `retrain.retrain`, learning for at most `budget_seconds` of CPU time; `histories` must be copies.

        Raises RuntimeError while a retraining is under way.
        """
        if self.running:
            raise RuntimeError("a retraining is under way; ask `running` first")
        self._outcome = None
        self._stopping.clear()
        teach = partial(eligible_lanes, histories, stream, seed)
        retrain = partial(
            self._retrain, budget_seconds, champion, histories, stream, seed, learning=learning or Learning()
        )
        self._thread = threading.Thread(target=self._run, args=(teach, retrain), name="retraining", daemon=True)
        self._thread.start()

    def result(self) -> RetrainResult | None:
        """Return the outcome once there is one, and only once; None before and after."""
        if self.running:
            return None
        outcome, self._outcome = self._outcome, None
        if outcome is not None and outcome.outcome != "skipped" and not self._has_learned:
            self._has_learned = True
            gc.collect()
            gc.freeze()  # torch has come, 100,000 objects: a full collection, in the middle of a batch, leaves them out
        return outcome

    def stop(self) -> None:
        """End a retraining that is under way without an outcome; returns within STOP_SECONDS."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self, teach: Callable[[], NDArray[np.int64] | RetrainResult], learn: Callable[[], RetrainResult]) -> None:
        began = time.monotonic()
        try:
            outcome = found if isinstance(found := teach(), RetrainResult) else learn()
        except _StoppedError:
            logger.info("retraining was given up: the daemon stops")
            return
        except BaseException as error:
            logger.exception("retraining failed; scoring continues with the present model")
            outcome = RetrainResult("failed", f"{type(error).__name__}: {error}")
        outcome = replace(outcome, seconds=time.monotonic() - began)
        logger.info("retraining %s after %.1f s: %s", outcome.outcome, outcome.seconds, outcome.reason)
        self._outcome = outcome

    def _retrain(self, budget_seconds: float, *arguments: Any, learning: Learning) -> RetrainResult:
        """Do what `start` says; `arguments` are those of `challenger.retrain`."""
        # At full priority: while it is imported it holds Python's lock, and scoring would wait for us
        import torch  # noqa: PLC0415 - it takes seconds and 300 MB, which a fleet too small to learn from never needs

        from training.retrain.challenger import retrain  # noqa: PLC0415

        torch.set_num_threads(1)  # it gains nothing from more, and they would fight with the scans
        _give_way()
        worked = self._clock()

        def stop() -> bool:
            if self._stopping.is_set():
                raise _StoppedError
            return self._clock() - worked >= budget_seconds

        return retrain(*arguments, learning=learning, stop=stop)


def _give_way() -> None:
    """Lower this thread's priority below the daemon's own, where the system has one for each thread."""
    if sys.platform != "linux":  # elsewhere the number would be taken for a process's
        return
    thread = threading.get_native_id()
    try:
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
    except OSError as error:
        logger.debug("retraining runs at the daemon's own priority: %s", error)
