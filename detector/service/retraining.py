"""Retraining in the background while the daemon's loop scores; the new model is promoted where it proves better.

The thread works on copies only (a model, windows of lanes) and hands back a `RetrainResult`; the loop alone changes the
engine.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from connectors.common.background import OngoingProblem, run_in_thread
from detector.checkpointing.checkpointer import Checkpointer
from detector.config.settings import Settings
from detector.engine.engine import Engine
from detector.observability.metrics import Metrics
from detector.service.reporter import Reporter
from training.learn.settings import Learning
from training.network.registry import ModelCard, Registry, RegistryError
from training.network.weights import Weights
from training.retrain.result import MAX_LANES, RetrainResult, eligible_lanes

logger = logging.getLogger(__name__)

NICENESS = 10  # above the daemon's own. Scoring comes first: at half of a core's load, this thread gets what is left
CURVE_POINTS = 100  # of the losses that are shown, about
STOP_SECONDS = 2.0  # one step takes tens of milliseconds, the longest stretch between two questions about a second


class _StoppedError(Exception):
    """The daemon ends: nobody waits for the outcome."""


class Retrainer:
    """Runs one retraining at a time. Its methods are for one thread, the daemon's."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock  # s, of the thread that reads it: on a busy machine as much is learnt, only later
        self._outcome: Future[RetrainResult | None] | None = None
        self._stopping = threading.Event()
        self._has_learned = False

    @property
    def running(self) -> bool:
        """Whether a retraining is under way."""
        return self._outcome is not None and not self._outcome.done()

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

        def learn() -> RetrainResult:
            if isinstance(lanes := eligible_lanes(histories, stream, seed), RetrainResult):
                return lanes  # skipped
            # At full priority: while it is imported it holds Python's lock, and scoring would wait for us
            import torch  # noqa: PLC0415 - seconds and 300 MB, which a fleet too small to learn from never needs

            from training.retrain.challenger import retrain  # noqa: PLC0415

            torch.set_num_threads(1)  # it gains nothing from more, and they would fight with the scans
            _give_way()
            worked = self._clock()

            def stop() -> bool:
                if self._stopping.is_set():
                    raise _StoppedError
                return self._clock() - worked >= budget_seconds

            curve: list[float] = []
            result = retrain(
                *(champion, histories, stream, seed),
                learning=learning or Learning(),
                stop=stop,
                on_step=lambda step: curve.append(step.loss),
            )
            return replace(result, curve=tuple(curve[:: max(len(curve) // CURVE_POINTS, 1)]))

        self._stopping.clear()
        self._outcome = run_in_thread(partial(self._run, learn), "retraining")

    def result(self) -> RetrainResult | None:
        """Return the outcome once there is one, and only once; None before and after."""
        if self._outcome is None or not self._outcome.done():
            return None
        outcome, self._outcome = self._outcome.result(), None
        if outcome is not None and outcome.outcome != "skipped" and not self._has_learned:
            self._has_learned = True
            gc.collect()
            gc.freeze()  # torch has come, 100,000 objects: a full collection, in the middle of a batch, leaves them out
        return outcome

    def stop(self) -> None:
        """End a retraining that is under way without an outcome; returns within STOP_SECONDS."""
        self._stopping.set()
        if self._outcome is not None:
            wait([self._outcome], STOP_SECONDS)

    def _run(self, learn: Callable[[], RetrainResult]) -> RetrainResult | None:
        """Return what came of it, a failure too; None where it was given up."""
        began = time.monotonic()
        try:
            outcome = learn()
        except _StoppedError:
            logger.info("retraining was given up: the daemon stops")
            return None
        except BaseException as error:
            logger.exception("retraining failed; scoring continues with the present model")
            outcome = RetrainResult("failed", f"{type(error).__name__}: {error}")
        outcome = replace(outcome, seconds=time.monotonic() - began)
        logger.info("retraining %s after %.1f s: %s", outcome.outcome, outcome.seconds, outcome.reason)
        return outcome


def _give_way() -> None:
    """Lower this thread's priority below the daemon's own, where the system has one for each thread."""
    if sys.platform != "linux":  # elsewhere the number would be taken for a process's
        return
    thread = threading.get_native_id()
    try:
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
    except OSError as error:
        logger.debug("retraining runs at the daemon's own priority: %s", error)


class ModelPromotion:
    """Retrains `model`, the one that scores, and lets a better one take its place. For the daemon's thread."""

    def __init__(
        self,
        settings: Settings,
        model: Weights,
        registry: Registry,
        engine: Engine,
        checkpointer: Checkpointer,
        reporter: Reporter,
        metrics: Metrics,
    ) -> None:
        self.training = settings.training  # may be replaced at any time
        self._model, self._registry = model, registry
        self._engine, self._checkpointer = engine, checkpointer
        self._reporter, self._metrics = reporter, metrics
        self.retrainer = Retrainer()
        self._retrainings = 0
        self._retrained_at = time.monotonic()
        self.problem = OngoingProblem(calm_seconds=math.inf)  # until one does not fail
        metrics.set_model(engine.version, model.shape.cell, registry.trained_at(checkpointer.metadata["model"]))

    def advance(self) -> None:
        """Start a retraining when it is time; when one is over, promote its model if it is the better one."""
        training = self.training
        if (outcome := self.retrainer.result()) is not None:
            self._reporter.retraining(outcome)
            self.problem.clear()
            if outcome.outcome == "failed":
                self.problem.report(f"retraining fails: {outcome.reason}")
            if outcome.model is not None:
                self._promote(outcome.model, outcome.model_card(time.time()))
        due = time.monotonic() - self._retrained_at >= training.interval_seconds
        if training.enabled and due and not self.retrainer.running:
            self._retrained_at = time.monotonic()
            seed, self._retrainings = self._retrainings, self._retrainings + 1
            histories, stream = self._engine.streams.histories(MAX_LANES, seed)
            self.retrainer.start(self._model, histories, stream, seed, training.budget_seconds, training.learning())

    def _promote(self, model: Weights, about: ModelCard) -> None:
        """Score with new weights from here on; the checkpoint makes "here" the same point in any replay."""
        if not self._checkpointer.commit():
            logger.warning("the retrained model is left out: it would need a checkpoint now")
            return
        try:
            self._checkpointer.use_model(self._registry.save(model, about))
        except RegistryError as error:
            logger.warning("the retrained model is left out: %s", error)
            self.problem.report(f"the retrained model is left out: {error}")
            return
        self._model = model
        self._engine.use(model)
        self._metrics.set_model(self._engine.version, model.shape.cell, time.time())
        self._checkpointer.commit()
