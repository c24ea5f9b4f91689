"""What the quick answers of the command line cost: none of them loads what only the daemon needs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from connectors.errors import UserError
from detector.cli import main
from detector.config import CONFIG_VARIABLE
from detector.service.engine_setup import _driver_is_there
from tests.brokers import CHECKOUT
from training.errors import UserError as TrainingUserError
from training.learn.settings import Learning

HEAVY = {"numba", "torch", "scipy", "kafka", "numpy"}


def longwatch(*arguments: str, importtime: bool = False) -> subprocess.CompletedProcess[str]:
    more = ["-X", "importtime"] if importtime else []
    command = [sys.executable, *more, "-m", "detector", *arguments]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["config"], ["completion", "bash"]], ids=" ".join)
def test_short_commands_do_not_import_heavy_modules(arguments: list[str]) -> None:
    done = longwatch(*arguments, importtime=True)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & (HEAVY if arguments == ["config"] else HEAVY | {"pydantic", "pydantic_settings"})


def test_a_variable_names_the_file_where_the_command_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for port in (1, 2):
        (tmp_path / f"{port}.toml").write_text(f"http.port = {port}\n")
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "1.toml"))
    main(["config"])
    assert f"port = 1  # {tmp_path}/1.toml:1\n" in capsys.readouterr().out
    main(["config", "--config", str(tmp_path / "2.toml")])
    assert "port = 2" in capsys.readouterr().out
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "none.toml"))
    with pytest.raises(SystemExit):
        main(["config"])
    assert "none.toml" in capsys.readouterr().err


def test_trains_help_lists_every_learning_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"Names: {', '.join(Learning.model_fields)} (docs/settings.md)" in text


@pytest.mark.parametrize("seed", ["-1", "4294967296", "x"])
def test_an_invalid_seed_is_refused(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "x.csv", "--output", "models", f"--seed={seed}"])
    assert ended.value.code == 2
    assert "--seed" in capsys.readouterr().err


def test_bash_completes_commands_options_and_files() -> None:
    script = longwatch("completion", "bash").stdout
    ask = """
COMP_WORDS=(longwatch "$@"); COMP_CWORD=$#
_shtab_longwatch
echo "${COMPREPLY[@]}"
"""

    def completed(*words: str) -> list[str]:
        command = ["bash", "-c", script + ask, "bash", *words]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=True)
        return done.stdout.split()

    assert completed("ba") == ["backtest"]
    assert completed("backtest", "--la") == ["--labels"]
    assert completed("completion", "z") == ["zsh"]
    assert "pyproject.toml" in completed("run", "--config", "pyproj")
    assert completed("streams", "sh") == ["show"]
    assert "pyproject.toml" in completed("alerts", "show", "--token-file", "pyproj")


def test_an_unknown_shell_is_an_error_that_lists_the_known_ones() -> None:
    done = longwatch("completion", "csh")
    assert done.returncode == 2
    assert "bash" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "name",
    [
        "connectors.http_server.settings.HttpError",
        "connectors.kafka.errors.KafkaConnectorError",
        "connectors.files.labels.LabelsError",
        "connectors.files.lines.FileError",
        "connectors.notify.outbox.OutboxError",
        "detector.config.sources.SettingsError",
        "detector.errors.StateError",
        "detector.commands.outputs.PlotError",
        "detector.commands.smooth.SmoothError",
        "detector.commands.training_data.TrainError",
        "training.retrain.distributed.ProcessesError",
        "training.network.shape.ModelError",
        "training.network.registry.RegistryError",
    ],
)
def test_user_errors_are_printed_by_the_command_line(name: str) -> None:
    module, _, error = name.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), error), (UserError, TrainingUserError))


# `longwatch` in this process, which then says what of torch it has loaded
AND_TORCH = """
import sys
from detector.cli import main
from detector.config import CONFIG_VARIABLE
main(sys.argv[1:])
print("loaded:", [name for name in sys.modules if name.partition(".")[0] == "torch"])
"""


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Numbers of one feature and of three, and symbols: 120 events of each."""
    values = {"one": {"x": 1.5}, "many": {"x": 1.0, "y": 2.0, "z": 3.0}, "words": {}}
    records = [
        {"stream": stream, "timestamp": 1_700_000_000 + 60 * row, "values": {k: v * (row % 7) for k, v in each.items()}}
        | ({} if each else {"code": f"E{row % 3}"})
        for row in range(120)
        for stream, each in values.items()
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_daemon_without_training_or_gpu_never_imports_torch(events: Path, tmp_path: Path, device: str) -> None:
    if device == "auto" and _driver_is_there():
        pytest.skip("this machine has a GPU's driver: torch is asked whether there is a GPU")
    settings = {
        "source.type": "file",
        "source.paths": str(events),
        "state.directory": str(tmp_path / "state"),
        "output.scores_file": str(tmp_path / "scores.jsonl"),
        "http.port": "0",
        "compute.device": device,
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-c", AND_TORCH, "run", *options]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 360


def test_backtest_never_imports_torch(events: Path, tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    command = [sys.executable, "-c", AND_TORCH, "backtest", str(events), "--output", str(table)]
    command += ["--set", "compute.device=cpu"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert len(table.read_text().splitlines()) == 361
