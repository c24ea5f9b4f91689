"""The model that scores: retrained from time to time, and promoted where the new one proves better."""

from __future__ import annotations

import logging
import math
import time

from connectors.common.background import OngoingProblem
from detector.checkpointing.checkpointer import Checkpointer
from detector.config.settings import Settings
from detector.engine.engine import Engine
from detector.observability.metrics import Metrics
from detector.service.reporter import Reporter
from detector.service.retrainer import Retrainer
from training.network.registry import ModelCard, Registry, RegistryError
from training.network.weights import Weights
from training.retrain.result import MAX_LANES

logger = logging.getLogger(__name__)


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
        self._settings, self._model, self._registry = settings, model, registry
        self._engine, self._checkpointer = engine, checkpointer
        self._reporter, self._metrics = reporter, metrics
        self._retrainer = Retrainer()
        self._retrainings = 0
        self._retrained_at = time.monotonic()
        self.problem = OngoingProblem(calm_seconds=math.inf)  # until one does not fail

    def begin(self) -> None:
        """Tell which model it begins with."""
        trained_at = self._registry.trained_at(self._checkpointer.metadata["model"])
        self._metrics.set_model(self._engine.version, self._model.shape.cell, trained_at)

    def advance(self) -> None:
        """Start a retraining when it is time; when one is over, promote its model if it is the better one."""
        training = self._settings.training
        if (outcome := self._retrainer.result()) is not None:
            self._reporter.retraining(outcome)
            self.problem.clear()
            if outcome.outcome == "failed":
                self.problem.report(f"retraining fails: {outcome.reason}")
            if outcome.model is not None:
                self._promote(outcome.model, outcome.model_card(time.time()))
        due = time.monotonic() - self._retrained_at >= training.interval_seconds
        if training.enabled and due and not self._retrainer.running:
            self._retrained_at = time.monotonic()
            seed, self._retrainings = self._retrainings, self._retrainings + 1
            histories, stream = self._engine.streams.histories(MAX_LANES, seed)
            self._retrainer.start(self._model, histories, stream, seed, training.budget_seconds, training.learning())

    def stop(self) -> None:
        """Give up a retraining that is under way."""
        self._retrainer.stop()

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
