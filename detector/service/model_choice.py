"""Which model scores: that of the last checkpoint, or the first one of the settings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from detector.config.sections import ModelSettings
from detector.config.settings import Settings, SettingsError
from training.network.horizons import SHIPPED_HORIZONS
from training.network.registry import Registry, RegistryError
from training.network.shape import ModelError
from training.network.weights import Weights, load_prior

logger = logging.getLogger(__name__)

MODELS_DIR = "models"  # folder of the state directory


def first_model(settings: Settings) -> Weights:
    """Return the model to begin with: the newest of model.directory, or the cell's prior that ships.

    Raises SettingsError where it does not fit the settings.
    """
    wanted, model = settings.model, None
    if wanted.directory:
        registry = Registry(Path(wanted.directory))
        versions = registry.versions()
        if not versions:
            raise SettingsError([f"model.directory {wanted.directory}: holds no model; make one: longwatch train"])
        model = registry.load(versions[-1])
    try:
        model = model or load_prior(wanted.cell, SHIPPED_HORIZONS)
        return _fitted(model, wanted)
    except ModelError as error:
        where = wanted.directory or "the prior that ships"
        raise SettingsError([f"{error} ({where}): change the setting, or train another model"]) from None


class Resumed(NamedTuple):
    """The model to go on with."""

    model: Weights
    version: str  # in the registry; "": the first model
    fallback: str = ""  # "unreadable" or "unfit", where it is not that of the last checkpoint


def resumed_model(settings: Settings, registry: Registry, version: str) -> Resumed:
    """Return the model of the last checkpoint, `version`; "": there is none, and the first one is returned.

    Where it is missing or damaged, the newest other one of the registry that can be used takes its place, or else the
    first; where model.* has changed, the first. Streams keep all but their hidden states, which are primed from their
    recent windows. Raises what `first_model` does.
    """
    if not version:
        return Resumed(first_model(settings), "")
    try:
        return Resumed(_fitted(registry.load(version), settings.model), version)
    except ModelError as error:
        logger.warning("model %s of the last checkpoint does not fit (%s): beginning with another", version, error)
        return Resumed(first_model(settings), "", "unfit")
    except RegistryError as error:
        why = error
    for other in reversed(registry.versions()):
        try:
            resumed = Resumed(_fitted(registry.load(other), settings.model), other, "unreadable")
        except (ModelError, RegistryError):
            continue
        break
    else:
        resumed = Resumed(first_model(settings), "", "unreadable")
    named = f"model {resumed.version}" if resumed.version else "the first model"
    logger.error("the model of the last checkpoint cannot be read: %s. Scoring continues with %s", why, named)
    return resumed


def _fitted(model: Weights, wanted: ModelSettings) -> Weights:
    """Return a model with the horizons of the settings; raises ModelError if its cell or its horizons are others."""
    if model.shape.cell != wanted.cell:
        raise ModelError(f"model.cell is {wanted.cell}, the model has {model.shape.cell}")
    return model.select(wanted.horizons)
