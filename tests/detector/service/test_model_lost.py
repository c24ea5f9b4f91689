"""A retrained model that is missing or damaged costs what it had learnt, and stops nothing."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detector.config.settings import load_settings
from detector.service.daemon import Daemon
from detector.service.factory import build_daemon
from training.network.model import Forecaster
from training.network.registry import ModelCard, Registry, RegistryError
from training.network.shape import ModelError
from training.network.weights import Weights, load_prior
from training.symbols import weights

EVENTS = 100


def model(seed: int) -> Weights:
    found = Forecaster.of(load_prior())
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(1e-4 * torch.randn_like(parameter))
    return found.weights


def lines(first: int = 0) -> str:
    events = ({"stream": "a", "timestamp": 1_700_000_000 + i, "value": i % 7} for i in range(first, first + EVENTS))
    return "".join(json.dumps(event) + "\n" for event in events)


def daemon(folder: Path, **more: object) -> Daemon:
    names = {
        "source.type": "file", "source.paths": json.dumps([str(folder / "events.jsonl")]),
        "state.directory": folder / "state", "output.scores_file": folder / "scores.jsonl", "http.port": 0,
        "compute.device": "cpu", **more,
    }  # fmt: skip
    return build_daemon(load_settings(None, {}, [f"{name}={value}" for name, value in names.items()]))


def meta(folder: Path) -> dict[str, object]:
    with sqlite3.connect(folder / "state" / "state.db") as db:
        found: dict[str, object] = json.loads(db.execute("SELECT document FROM meta").fetchone()[0])
    db.close()
    return found


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a state whose last checkpoint names the second of two retrained models."""
    folder = tmp_path_factory.mktemp("retrained")
    (folder / "events.jsonl").write_text(lines())
    daemon(folder).run()
    registry = Registry(folder / "state" / "models")
    for at in (1.0, 2.0):
        registry.save(model(int(at)), ModelCard(parent="", trained_at=at, seed=0, rows=1, figures={}))
    document = json.dumps(meta(folder) | {"model": model(2).fingerprint()}, sort_keys=True)
    with sqlite3.connect(folder / "state" / "state.db") as db:
        db.execute("UPDATE meta SET document = ?, crc = ?", (document, zlib.crc32(document.encode())))
    db.close()
    return folder


@pytest.fixture
def work(retrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in its own folder, with more events than were scored."""
    shutil.copytree(retrained, tmp_path / "work")
    text = (retrained / "events.jsonl").read_text() + lines(EVENTS)
    (tmp_path / "work" / "events.jsonl").write_text(text)
    return tmp_path / "work"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_kind(path: Path) -> None:
    path.write_text("{}")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", [Path.unlink, truncate, flip, make_folder, empty, other_kind])
def test_a_damaged_model_falls_back_to_another_retained_one(
    work: Path, suffix: str, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    lost, other = model(2).fingerprint(), model(1).fingerprint()
    damage(work / "state" / "models" / (lost + suffix))
    if damage is flip and suffix == ".json":
        (work / "state" / "models" / f"{lost}.json").write_bytes(b"\xff\xfe")
    with caplog.at_level(logging.INFO):
        one = daemon(work)
        one.run()
    (reported,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR)
    assert lost in reported
    assert reported.endswith(f"Scoring continues with model {other}")
    assert "\n" not in reported
    count = one.metrics.registry.get_sample_value("longwatch_model_fallbacks_total", {"reason": "unreadable"})
    assert count == 1
    assert meta(work)["model"] == other, "the next start has nothing to complain of"
    assert (work / "scores.jsonl").read_text().count(f'"model_version":"{other}"') == EVENTS


def test_without_retained_models_the_first_model_is_used(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(work / "state" / "models")
    daemon(work).run()
    assert "Scoring continues with the first model" in caplog.text
    assert meta(work)["model"] == ""
    assert (work / "scores.jsonl").read_text().count("\n") == 2 * EVENTS


def test_with_only_damaged_models_the_first_model_is_used(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (work / "state" / "models").iterdir():
        path.write_bytes(b"not what it was")
    daemon(work).run()
    assert "Scoring continues with the first model" in caplog.text


def test_a_model_replaced_by_a_change_of_settings_has_its_own_reason(work: Path) -> None:
    one = daemon(work, **{"model.cell": "gru"})
    one.run()
    value = one.metrics.registry.get_sample_value
    assert value("longwatch_model_fallbacks_total", {"reason": "unfit"}) == 1
    assert value("longwatch_model_fallbacks_total", {"reason": "unreadable"}) == 0


def test_a_damaged_model_named_by_the_operator_is_a_one_line_error(work: Path, tmp_path: Path) -> None:
    directory = work / "state" / "models"
    named = tmp_path / "named"
    shutil.copytree(directory, named)
    lost, other = model(2).fingerprint(), model(1).fingerprint()
    truncate(named / f"{lost}.safetensors")
    (tmp_path / "events.jsonl").write_text(lines())
    with pytest.raises(RegistryError, match=rf"damaged.*remove {lost}\.json, .*is used: {other}") as reported:
        daemon(tmp_path, **{"model.directory": named})
    assert "\n" not in str(reported.value)
    (named / f"{lost}.json").unlink()
    (tmp_path / "state").rename(tmp_path / "former")  # its lock is held by this process still
    daemon(tmp_path, **{"model.directory": named}).run()
    assert other in (tmp_path / "scores.jsonl").read_text()


def test_a_missing_symbols_network_is_not_blamed_on_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detector.scoring import symbols

    symbols.network.cache_clear()
    monkeypatch.setattr(weights, "FILE", "priors/none.safetensors")
    events = [{"stream": "a", "timestamp": 1_700_000_000 + i, "code": "E1"} for i in range(10)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    with pytest.raises(ModelError, match=r"none\.safetensors: missing or damaged .*install longwatch again"):
        daemon(tmp_path, **{"output.dead_letter_file": tmp_path / "dead.jsonl"}).run()
    assert (tmp_path / "dead.jsonl").read_text() == ""
