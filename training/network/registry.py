"""Versioned models on disk, written atomically, a bounded number of them; each can be loaded again.

A model is `<version>.safetensors` and `<version>.json`, its model card; the version is the weights' fingerprint. The
JSON is written last and deleted first: a model without one does not exist. The registry does not know which model is
in use; the daemon keeps that in its checkpoint, with the states that belong to the model.

Processes that write to the same registry wait for each other. Nothing is unpickled.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from training.errors import UserError
from training.network.shape import ModelError
from training.network.weights import Weights, load_weights, to_bytes

logger = logging.getLogger(__name__)

KEPT = 10  # models: ten retrainings back, half a megabyte
Opener = Callable[[str, int], int]  # path and flags to a file descriptor
UNFINISHED = ".unfinished"  # suffix of a file that is being written


class RegistryError(UserError):
    """A model that cannot be read or written; the text names the file and says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What is known about a model."""

    parent: str  # version of the model it was trained from; "" for none
    trained_at: float  # Unix time, s
    seed: int
    rows: int  # learnt from
    figures: dict[str, float]  # losses and other metrics, finite

    def __post_init__(self) -> None:
        """Refuse what JSON cannot hold."""
        if not all(map(math.isfinite, self.figures.values())):
            raise ValueError(f"figures must be finite: {self.figures}")


class Registry:
    """Models in a directory, which is created when the first is saved."""

    def __init__(self, directory: str | Path, opener: Opener | None = None) -> None:
        """Use a directory; files are written with `open(..., opener=opener)`."""
        self.directory, self._opener = Path(directory), opener

    def save(self, model: Weights, card: ModelCard) -> str:
        """Write a model and return its version; it is on the disk when this returns.

        Beyond KEPT models the oldest are deleted, but never this one, its parent (in use until the caller switches)
        or the parent's parent. Raises RegistryError, and then all former models are still there.
        """
        version = model.fingerprint()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._alone() as place:
                self._sweep()
                self._write(place, self._weights(version), to_bytes(model))
                self._write(place, self._card_path(version), msgspec.json.format(msgspec.json.encode(card)) + b"\n")
                self._prune(version)
        except OSError as error:
            raise RegistryError(
                f"model {version} cannot be written to {self.directory}: {error.strerror}; see to its rights and space"
            ) from error
        return version

    def load(self, version: str) -> Weights:
        """Return a model; raises RegistryError if it is missing, damaged or has another fingerprint."""
        self.card(version)
        try:
            model = load_weights(self._weights(version))
        except ModelError as error:
            raise RegistryError(f"{error}; {self._instead(version)}") from error
        if (found := model.fingerprint()) != version:
            raise RegistryError(
                f"{self._weights(version)}: holds the weights of {found}, not {version}; {self._instead(version)}"
            )
        return model

    def card(self, version: str) -> ModelCard:
        """Return a model's card; raises RegistryError."""
        try:
            return msgspec.json.decode(self._card_path(version).read_bytes(), type=ModelCard)
        except FileNotFoundError:
            raise RegistryError(f"model {version} is not in {self.directory.absolute()}") from None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RegistryError(
                f"{self._card_path(version)}: cannot be read ({error}); {self._instead(version)}"
            ) from error

    def trained_at(self, version: str) -> float:
        """Return when a model was trained, Unix time in s; NaN for "", the shipped prior."""
        return self.card(version).trained_at if version else math.nan

    def versions(self) -> list[str]:
        """Return the versions of all models, the oldest first; one whose JSON is damaged is logged and left out."""
        return list(self._all())

    def _weights(self, version: str) -> Path:
        return self.directory / f"{version}.safetensors"

    def _card_path(self, version: str) -> Path:
        return self.directory / f"{version}.json"

    def _instead(self, version: str) -> str:
        others = sorted(path.stem for path in self.directory.glob("*.json") if path.stem != version)
        if others:
            return f"restore it, or remove {version}.json, and one of the others is used: {', '.join(others)}"
        return f"restore it, or remove {version}.json and train another"

    def _all(self) -> dict[str, ModelCard]:
        found = []
        for path in self.directory.glob("*.json"):
            try:
                found.append((path.stem, self.card(path.stem)))
            except RegistryError as error:
                logger.warning("%s", error)
        return dict(sorted(found, key=lambda item: (item[1].trained_at, item[0])))

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Lock the folder against other writers; yield its descriptor."""
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _write(self, place: int, path: Path, content: bytes) -> None:
        """Write a file atomically and durably."""
        unfinished = path.with_name(path.name + UNFINISHED)
        with open(unfinished, "wb", opener=self._opener) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        os.fsync(place)

    def _sweep(self) -> None:
        """Delete what a process that ended during a save has left behind."""
        for left in self.directory.glob(f"*{UNFINISHED}"):
            left.unlink()
        for weights in self.directory.glob("*.safetensors"):
            if not weights.with_suffix(".json").exists():
                weights.unlink()

    def _prune(self, newest: str) -> None:
        models = self._all()
        needed, version = {newest}, newest
        for _ in range(2):  # its parent, and the parent's
            version = models[version].parent if version in models else ""
            needed.add(version)
        dispensable = [version for version in models if version not in needed]
        for version in dispensable[: max(len(models) - KEPT, 0)]:
            self._card_path(version).unlink()
            self._weights(version).unlink(missing_ok=True)
            logger.info("model %s was deleted: the registry keeps %d", version, KEPT)
