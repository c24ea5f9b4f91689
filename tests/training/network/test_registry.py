"""The registry: saved models survive any crash; old models are deleted, needed ones kept."""

from __future__ import annotations

import fcntl
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import pytest
import torch

from training.network.model import Forecaster
from training.network.registry import KEPT, UNFINISHED, ModelCard, Registry, RegistryError
from training.network.shape import Shape

DEADLINE = 60.0  # s


def forecaster(seed: int, hidden_size: int = 4) -> Forecaster:
    torch.manual_seed(seed)
    return Forecaster(Shape(hidden_size=hidden_size)).weights


def card(parent: str = "", trained_at: float = 0.0) -> ModelCard:
    return ModelCard(parent=parent, trained_at=trained_at, seed=3, rows=1000, figures={"validation_loss": -0.5})


def test_a_saved_model_and_its_card_are_loaded(tmp_path: Path) -> None:
    registry, model = Registry(tmp_path / "new" / "models"), forecaster(0)
    assert registry.versions() == []
    version = registry.save(model, card("parent", 12.5))
    again = Registry(registry.directory)
    assert version == model.fingerprint() == again.load(version).fingerprint()
    assert again.card(version) == card("parent", 12.5)
    assert again.versions() == [version]
    assert again.trained_at(version) == 12.5
    assert math.isnan(again.trained_at(""))


def test_versions_are_listed_in_training_order(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    saved = [registry.save(forecaster(n), card(trained_at=at)) for n, at in enumerate((5.0, 1.0, 3.0))]
    assert registry.versions() == [saved[1], saved[2], saved[0]]


def test_saving_the_same_weights_twice_keeps_one_model(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    first, second = (registry.save(forecaster(0), card(trained_at=at)) for at in (1.0, 2.0))
    assert first == second
    assert registry.versions() == [first]
    assert registry.trained_at(first) == 2.0


def test_only_the_newest_models_are_kept(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    saved: list[str] = []
    for n in range(KEPT + 5):
        saved.append(registry.save(forecaster(n), card(saved[-1] if saved else "prior", float(n))))
    assert registry.versions() == saved[-KEPT:]
    assert len(list(tmp_path.iterdir())) == 2 * KEPT


def test_the_model_in_use_and_its_parent_are_never_deleted(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    old = registry.save(forecaster(0), card("prior", 0.0))
    in_use = registry.save(forecaster(1), card(old, 1.0))  # rolled back to, say: all that follow come from it
    for n in range(2, KEPT + 9):
        newest = registry.save(forecaster(n), card(in_use, float(n)))
        assert {old, in_use, newest} <= set(registry.versions())
        assert len(registry.versions()) <= KEPT
    assert registry.load(in_use).fingerprint() == in_use


def test_a_missing_model_is_an_error_that_lists_the_existing_ones(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with pytest.raises(RegistryError, match=r"model abc is not in "):
        registry.load("abc")
    registry.save(forecaster(0), card())
    with pytest.raises(RegistryError, match="model abc is not in "):
        registry.load("abc")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"parent": 1}', b"[]"])
def test_a_damaged_model_card_is_an_error_and_hides_no_other_model(tmp_path: Path, content: bytes) -> None:
    registry = Registry(tmp_path)
    good, bad = (registry.save(forecaster(n), card()) for n in range(2))
    (tmp_path / f"{bad}.json").write_bytes(content)
    with pytest.raises(RegistryError, match=f"{bad}.json: cannot be read"):
        registry.load(bad)
    assert registry.versions() == [good]
    registry.save(forecaster(2), card(bad))


def test_damaged_or_exchanged_weights_are_never_loaded(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    first, second = (registry.save(forecaster(n), card()) for n in range(2))
    path = tmp_path / f"{first}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(RegistryError, match=rf"{first}.safetensors.*damaged.*remove {first}.json, .*used: {second}"):
        registry.load(first)
    path.write_bytes(whole[:-4] + b"abcd")
    with pytest.raises(RegistryError, match=f"not {first}"):
        registry.load(first)
    path.unlink()
    with pytest.raises(RegistryError, match="no such model file"):
        registry.load(first)


def test_an_unwritable_model_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match=r"cannot be written to .*file"):
        Registry(tmp_path / "file").save(forecaster(0), card())


def test_figures_that_json_cannot_represent_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        ModelCard(parent="", trained_at=0.0, seed=0, rows=0, figures={"loss": float("nan")})


def save_killed_at(step: int, registry: Registry, model: Forecaster) -> bool:
    """Save in a process that is killed just before its step-th call that touches a file; was it killed?"""
    child = os.fork()
    if child == 0:
        steps = 0

        def kill(_: FrameType, event: str, called: object) -> None:
            nonlocal steps
            if event == "c_call" and getattr(called, "__name__", "") in {"open", "write", "fsync", "replace", "unlink"}:
                steps += 1
                if steps == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.setprofile(kill)
            registry.save(model, card(trained_at=time.time()))
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_after_kill_9_at_any_step_of_a_save_every_model_listed_can_be_loaded(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for number in range(KEPT):
        registry.save(forecaster(number), card())
    unfinished, step = 0, 1
    while save_killed_at(step, registry, forecaster(KEPT + 2 * step)):
        versions = registry.versions()
        assert KEPT <= len(versions) <= KEPT + 1  # killed between a save and what goes for it
        for version in versions:
            assert registry.load(version).fingerprint() == version
        unfinished += len(list(tmp_path.iterdir())) != 2 * len(versions)
        registry.save(forecaster(KEPT + 2 * step + 1), card(trained_at=time.time()))
        assert len(list(tmp_path.iterdir())) == 2 * len(registry.versions()) == 2 * KEPT  # nothing is left lying about
        step += 1
    assert unfinished >= 6, "hardly a kill came in the middle of a save: this test shows nothing"


def test_two_processes_that_save_wait_for_each_other(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    unfinished = tmp_path / f"other.safetensors{UNFINISHED}"
    unfinished.write_bytes(b"the other one's")
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    saving = threading.Thread(target=registry.save, args=(forecaster(0), card()))
    saving.start()
    saving.join(0.3)
    assert saving.is_alive()
    assert unfinished.exists(), "what another process writes is not swept away"
    os.close(other)
    saving.join(DEADLINE)
    assert registry.versions() == [forecaster(0).fingerprint()]


def test_model_files_are_created_through_the_given_opener(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        Registry(tmp_path / "mine").save(forecaster(0), card())
        Registry(tmp_path / "daemon", lambda path, flags: os.open(path, flags, 0o600)).save(forecaster(0), card())
    finally:
        os.umask(before)
    modes = {path.parent.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("*/*")}
    assert modes == {"mine": 0o644, "daemon": 0o600}
