"""`longwatch train`: what it learns from, what it saves and says, by one process and by two, and its page."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from connectors.decode.decoder import Decoder
from connectors.files.settings import FileSettings
from connectors.files.source import FileError, FileSource
from detector.cli import main
from detector.commands import train as train_command
from detector.commands.train import TrainError, TrainingSource, TrainReport, train
from detector.commands.training_data import build_training_data, read_events
from detector.config.settings import Settings, SettingsError
from detector.engine.engine import Engine
from detector.service.model_choice import first_model
from tests.detector.commands import short_train
from tests.fleets import RING_ERROR, noise, odd_waves
from training.network.history import WINDOW, unroll
from training.network.horizons import HORIZONS
from training.network.model import Forecaster
from training.network.registry import ModelCard, Registry
from training.network.shape import ModelError, Shape
from training.network.weights import load_prior
from training.retrain import challenger

CHECKOUT = Path(__file__).resolve().parents[3]
DEADLINE = 400  # seconds, for what takes 20 on two idle cores

ROWS = 3000


def write_csv(path: Path, value: np.ndarray, times: np.ndarray | None = None) -> str:
    """Write a stream of one feature, value [rows]."""
    times = np.arange(len(value)) * 60 + 1_700_000_000 if times is None else times
    rows = "".join(f"{t},{x!r}\n" for t, x in zip(times.tolist(), value.tolist(), strict=True))
    path.write_text("timestamp,value\n" + rows, encoding="utf-8")
    return str(path)


def settings(**sections: dict[str, object]) -> Settings:
    return Settings.model_validate(sections)


def train_on_files(paths: list[str], output: Path, chosen: Settings, **options: Any) -> TrainReport:
    return train(TrainingSource.of_files(paths), output, chosen, **options)


@pytest.fixture
def command_line() -> Iterator[None]:
    """Whoever calls main() sets up logging for the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Let a training take seconds."""
    patch.setattr(train_command, "SERIES_PLAN", short_train.SERIES_PLAN)
    for name, value in short_train.QUICK.items():
        patch.setattr(challenger, name, value)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


@pytest.mark.usefixtures("short")
def test_a_trained_model_is_used_at_the_next_start(tmp_path: Path) -> None:
    paths = [write_csv(tmp_path / f"wave-{n}.csv", v) for n, v in enumerate(odd_waves(3, ROWS))]
    began = time.time()
    summary = train_on_files(paths, tmp_path / "models", settings())
    assert summary.version is not None, str(summary)
    assert (summary.recording.kept, len(summary.events)) == (3 * ROWS, 3 * ROWS)
    assert (summary.recording.lanes, len(summary.recording.recorded.held)) == (3, 3)
    assert "9,000 events, 0 late or duplicate; 3 of 3 features can be learnt from" in str(summary)
    assert summary.outcome.validation_loss < summary.outcome.champion_loss - 0.1
    for text in (summary.version, f"{summary.outcome.champion_loss:.4f} before", "model.directory"):
        assert text in str(summary)

    registry = Registry(tmp_path / "models")
    about = registry.card(summary.version)
    assert about.parent == load_prior().fingerprint()
    assert began <= about.trained_at <= time.time()
    begun = settings(model={"directory": str(tmp_path / "models")})
    assert first_model(begun).fingerprint() == summary.version
    again = train_on_files(paths, tmp_path / "models", begun)
    assert again.parent == summary.version


@pytest.mark.usefixtures("short")
def test_train_saves_no_model_that_is_not_better(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "noise.csv", noise(1, ROWS)[0])
    summary = train_on_files([path], tmp_path / "models", settings())
    assert (summary.outcome.outcome, summary.version) == ("rejected", None)
    assert "nothing was saved" in str(summary)
    assert not (tmp_path / "models").exists()


def test_train_and_engine_compute_the_same_inputs(tmp_path: Path) -> None:
    """Two features, one of them missing now and then; late events and duplicates among them."""
    rng = np.random.default_rng(0)
    value = odd_waves(2, 600)
    times = np.arange(600) * 60 + 1_700_000_000
    times[rng.choice(600, 20, replace=False)] -= 120
    times[101] = times[100]
    lines = [
        f"{t},web,{a!r},{'' if k % 7 == 3 else repr(b)}\n"
        for k, (t, a, b) in enumerate(zip(times.tolist(), *value.tolist(), strict=True))
    ]
    path = tmp_path / "web.csv"
    path.write_text("timestamp,stream,cpu,memory\n" + "".join(lines), encoding="utf-8")

    decoder = Decoder()
    source = FileSource(FileSettings(paths=(str(path),)), decoder)
    recording = build_training_data(read_events(source, decoder, "web"), settings(), HORIZONS)
    recorded = recording.recorded
    engine, decoder = Engine(load_prior()), Decoder()
    source = FileSource(FileSettings(paths=(str(path),)), decoder)
    while not source.finished():
        engine.step(decoder.decode(source.poll(1.0))[0])
    histories, _ = engine.streams.histories(10_000, 0)
    assert recording.lanes == len(histories) == 2
    assert 0 < recording.kept < 600
    for lane in range(2):
        count = int(histories["events"][lane])
        assert recorded.start[lane + 1] - recorded.start[lane] == count
        last = recorded.inputs[recorded.start[lane + 1] - WINDOW : recorded.start[lane + 1]]
        assert (np.abs(last - unroll(histories)[0][lane]) <= RING_ERROR).all()
    assert recorded.held.tolist() == [
        s + n - int(0.2 * n) for s, n in zip(recorded.start, np.diff(recorded.start), strict=False)
    ]


def test_symbols_are_skipped_with_a_message(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    lines = [{"stream": "a", "timestamp": 1_700_000_000 + n, "value": n} for n in range(3)]
    lines += [{"stream": "b", "timestamp": 1_700_000_000 + n, "code": "ok"} for n in range(5)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    decoder = Decoder()
    events = read_events(FileSource(FileSettings(paths=(str(path),)), decoder), decoder, "mixed")
    assert (events.observations, events.symbols, sum(events.rejected.values())) == (3, 5, 0)
    recording = build_training_data(events, settings(), HORIZONS)
    assert (recording.kept, recording.lanes) == (8, 1)


def test_train_reports_what_is_wrong_with_the_files(tmp_path: Path) -> None:
    short = write_csv(tmp_path / "short.csv", noise(1, 50)[0])
    with pytest.raises(TrainError, match=r"short.csv: none of 1 features has 200 events"):
        train_on_files([short], tmp_path / "models", settings())
    flat = write_csv(tmp_path / "flat.csv", np.ones(500))
    with pytest.raises(TrainError, match="moves"):
        train_on_files([flat], tmp_path / "models", settings())
    (tmp_path / "none.csv").write_text("timestamp,value\nx,1\n", encoding="utf-8")
    with pytest.raises(TrainError, match=r"no event with a number could be read; rejected: .*bad_timestamp"):
        train_on_files([str(tmp_path / "none.csv")], tmp_path / "models", settings())
    with pytest.raises(FileError, match=r"missing.csv"):
        train_on_files([str(tmp_path / "missing.csv")], tmp_path / "models", settings())


def small(directory: Path, **shape: object) -> Settings:
    """Return settings whose model.directory holds a small untrained network."""
    torch.manual_seed(0)
    model = Forecaster(Shape(hidden_size=8, **shape)).weights
    Registry(directory).save(model, ModelCard(parent="", trained_at=1.0, seed=0, rows=0, figures={}))
    return settings(model={"directory": str(directory), "cell": model.shape.cell, "horizons": model.shape.horizons})


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "shape",
    [
        {"cell": "rnn"},
        {"cell": "lstm", "layers": 2, "dropout": 0.2},
        {"cell": "gru", "attention_window": 3},
        {"cell": "esn", "horizons": (1, 2, 5)},
    ],
    ids=lambda shape: shape["cell"],
)
def test_every_cell_and_shape_can_be_trained_saved_and_used(shape: dict[str, object], tmp_path: Path) -> None:
    paths = [write_csv(tmp_path / f"wave-{n}.csv", v) for n, v in enumerate(odd_waves(2, ROWS))]
    chosen = small(tmp_path / "models", **shape)
    summary = train_on_files(paths, tmp_path / "models", chosen)
    assert summary.version is not None, str(summary)
    assert summary.outcome.validation_loss < summary.outcome.champion_loss
    begun = first_model(chosen)
    assert begun.fingerprint() == summary.version
    assert begun.shape == Shape(hidden_size=8, **shape)


@pytest.mark.usefixtures("short")
def test_a_model_gains_layers_and_attention_by_options_and_the_daemon_takes_its_shape(tmp_path: Path) -> None:
    paths = [write_csv(tmp_path / f"wave-{n}.csv", v) for n, v in enumerate(odd_waves(2, ROWS))]
    chosen = small(tmp_path / "models")
    summary = train_on_files(paths, tmp_path / "models", chosen, shape={"layers": 2, "attention_window": 3})
    assert summary.version is not None, str(summary)
    begun = first_model(chosen)
    assert begun.fingerprint() == summary.version
    assert begun.shape == Shape(hidden_size=8, layers=2, attention_window=3)
    with pytest.raises(ModelError, match="layers is 1, the model has 2"):
        train_on_files(paths, tmp_path / "more", chosen, shape={"layers": 1})


def test_a_model_of_another_cell_than_the_settings_is_refused(tmp_path: Path) -> None:
    small(tmp_path / "models")
    with pytest.raises(SettingsError, match=r"model.cell is gru, the model has lstm .*models"):
        first_model(settings(model={"directory": str(tmp_path / "models"), "cell": "gru"}))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("screen", [Terminal(), io.StringIO()])
def test_progress_is_shown_on_a_terminal_only(
    screen: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_csv(tmp_path / "wave.csv", odd_waves(1, ROWS)[0])
    monkeypatch.setattr(sys, "stderr", screen)
    train_on_files([path], tmp_path / "models", small(tmp_path / "small"))
    if screen.isatty():
        assert re.search(r"training: 100%.*60/60.*loss \d\.\d+, [\d,]+ events/s", screen.getvalue())
        assert "reading: " in screen.getvalue()
    else:
        assert screen.getvalue() == ""


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run over a stream with an unpleasant name."""
    directory = tmp_path_factory.mktemp("page")
    path = write_csv(directory / "<b>wave.csv", odd_waves(1, ROWS)[0])
    target = directory / "new" / "page.html"
    chosen = small(directory / "small", cell="gru")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        train(TrainingSource.of_files([path]), directory / "models", chosen, diagnosis=target)
    return target.read_text(encoding="utf-8")


def test_the_report_is_self_contained_and_explains_every_plot(page: str) -> None:
    titles = ["How far back a gradient reaches", "Gradients before and after clipping", "Training and validation loss",
              "Forecasts against the data, by the new model", "Parameters of this gru", "Settings"]  # fmt: skip
    assert re.findall("<h2>(.*?)</h2>", page) == titles
    assert page.count('src="data:image/svg+xml;base64,') == 4
    assert len(re.findall(r"</h2>\n<p>[A-Z][^<]{40,}</p>", page)) == len(titles)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<b>" not in page


def test_the_report_counts_parameters_gate_by_gate(page: str) -> None:
    for gate in ("reset gate", "update gate", "candidate"):
        assert re.search(rf'{gate}</th><td>.*?</td><td>\(11 \+ 8\) 8 \+ 8</td><td class="number">160<', page)
    assert "as torch counts" in page


@pytest.mark.usefixtures("command_line")
def test_without_matplotlib_a_report_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as ended:
        main(["train", "missing.csv", "--output", str(tmp_path / "models"), "--diagnose"])
    assert ended.value.code == 1
    assert "pip install 'longwatch[plots]'" in capsys.readouterr().err


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("command_line")
@pytest.mark.parametrize(
    ("given", "reported"),
    [
        ([], "name the files to train on, or give --from-kafka"),
        (["a.csv", "--from-kafka"], "one of the two"),
        (["--from-kafka", "--diagnose", "a.csv"], "a name that ends in .html is expected"),
    ],
)
def test_contradicting_options_are_refused(
    given: list[str], reported: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", *given, "--output", str(tmp_path)])
    assert ended.value.code == 2
    assert reported in capsys.readouterr().err


def test_torchrun_with_two_processes_trains_like_one(tmp_path: Path) -> None:
    """The whole command: one reads, saves, draws and prints; the loss is that of one process."""
    paths = [write_csv(tmp_path / f"wave-{n}.csv", v) for n, v in enumerate(odd_waves(3, ROWS))]
    small(tmp_path / "small")
    begin = ["--set", f"model.directory={tmp_path / 'small'}", "--learning", "clip_limit=2", "--seed", "3"]
    said, abouts = [], []
    for number, start in enumerate(([], ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"])):
        output = tmp_path / f"models-{number}"
        command = [
            *start,
            "tests.detector.commands.short_train",
            "train",
            *paths,
            "--output",
            str(output),
            "--diagnose",
            *begin,
        ]
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=CHECKOUT, capture_output=True, text=True, timeout=DEADLINE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        page = (tmp_path / f"models-{number}.html").read_text(encoding="utf-8")
        assert "training.clip_limit</th><td>2.0<" in page
        assert "training.seed</th><td>3<" in page
        said.append(done.stdout)
        abouts.append([json.loads(path.read_text()) for path in output.glob("*.json")])
    assert [len(about) for about in abouts] == [1, 1]
    assert [text.count("saved as") for text in said] == [1, 1]
    one, two = (about[0]["figures"] for about in abouts)
    assert two == pytest.approx(one, rel=1e-3)  # 60 steps of Adam magnify what rounding leaves


def test_under_torchrun_only_the_first_process_reports_errors(tmp_path: Path) -> None:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "detector"]
    done = subprocess.run(
        [sys.executable, *start, "train", str(tmp_path / "missing.csv"), "--output", str(tmp_path / "models")],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("missing.csv: cannot be read") == 1
    assert "[rank1]: Traceback" not in done.stderr
