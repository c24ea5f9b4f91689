"""What commands write with --output: whole or not at all, nothing but files replaced, and one line where it fails."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from detector.cli import main

EVENTS = 60
HEADER = "timestamp,stream,score,threshold,alert,rank,channel,return_period,expected,lower,upper"


@pytest.fixture
def history(tmp_path: Path) -> str:
    path = tmp_path / "history.csv"
    path.write_text("timestamp,value\n" + "".join(f"{1_700_000_000 + i},{i % 7}\n" for i in range(EVENTS)))
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def backtest(*arguments: object) -> None:
    main(["backtest", *map(str, arguments), "--set", "compute.device=cpu"])


def failure(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Return the exit code and the last line of standard error."""
    with pytest.raises(SystemExit) as ended:
        backtest(*arguments)
    reported = [line for line in capfd.readouterr().err.splitlines() if line.startswith("longwatch:")]
    assert len(reported) == 1, reported
    return int(ended.value.code or 0), reported[0]


def test_output_to_a_named_pipe_keeps_the_pipe(history: str, folder: Path) -> None:
    pipe, link = folder / "pipe", folder / "stdout"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for name in (pipe, link):
        found: list[str] = []
        reader = threading.Thread(target=lambda into=found: into.append(pipe.read_text()), daemon=True)
        reader.start()
        backtest(history, "--output", name)
        reader.join(60)
        assert found, f"nothing came through {name}"
        assert (found[0].splitlines()[0], found[0].count("\n")) == (HEADER, EVENTS + 1)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert link.is_symlink()
    assert names(folder) == ["pipe", "stdout"]


def test_output_follows_a_symbolic_link(history: str, folder: Path, tmp_path: Path) -> None:
    target, link = tmp_path / "target.csv", folder / "link.csv"
    target.write_text("something longer than the table\n" * 1000)
    link.symlink_to(target)
    backtest(history, "--output", link)
    assert link.is_symlink()
    assert (target.read_text().splitlines()[0], target.read_text().count("\n")) == (HEADER, EVENTS + 1)
    device = folder / "null"
    device.symlink_to("/dev/null")
    backtest(history, "--output", device)
    assert device.is_symlink()
    assert names(folder) == ["link.csv", "null"]


@pytest.mark.parametrize("name", ["-", "stdout"])
def test_standard_output_has_only_the_table(
    name: str, history: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    Path("stdout").symlink_to("/proc/self/fd/1")  # as /dev/stdout is
    backtest(history, "--output", name)
    out, err = capfd.readouterr()
    assert (out.splitlines()[0], out.count("\n")) == (HEADER, EVENTS + 1)
    assert f"{EVENTS} events scored" in err
    assert names(folder) == ["stdout"]
    assert Path("stdout").is_symlink()


def test_the_output_is_optional(history: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = names(Path(history).parent)
    backtest(history)
    assert f"{EVENTS} events scored" in capfd.readouterr().out
    assert names(Path(history).parent) == before
    code, line = failure(capfd, history, "--smooth")
    assert (code, "--smooth" in line, "--output" in line) == (2, True, True)


def test_an_aborted_backtest_leaves_no_file(history: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = folder / "scores.csv"
    output.write_text("the former table\n")

    def ends(*_: object) -> None:
        raise KeyboardInterrupt

    for place in (
        "detector.commands.score_table.ScoreTable.add",
        "detector.commands.score_table.feature_columns",
    ):  # midway, and at the end
        with monkeypatch.context() as patch:
            patch.setattr(place, ends)
            with pytest.raises(SystemExit) as ended:
                backtest(history, "--output", output)
        assert ended.value.code == 130
        assert names(folder) == ["scores.csv"]
        assert output.read_text() == "the former table\n"
    backtest(history, "--output", output)
    assert output.read_text().startswith(HEADER)
    assert names(folder) == ["scores.csv"]


def test_the_table_is_created_with_the_umask(history: str, folder: Path) -> None:
    before = os.umask(0o027)
    try:
        backtest(history, "--output", folder / "scores.csv")
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "scores.csv").stat().st_mode) == 0o640


def test_an_unwritable_path_is_a_one_line_error_before_scoring(
    history: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in (folder / "no" / "such" / "scores.csv", folder, Path(history) / "scores.csv"):
        code, line = failure(capfd, history, "--output", path)
        assert code == 1
        assert line.startswith(f"longwatch: --output {path}: cannot be written: ")
    full = folder / "full"
    full.symlink_to("/dev/full")  # never named itself: who breaks the code would break the machine
    code, line = failure(capfd, history, "--output", full)
    assert (code, "No space left" in line) == (1, True)
    assert full.is_symlink()


@pytest.mark.parametrize(
    "content",
    ["timestamp,value\n", "timestamp,value\nnoon,1\nnoon,2\n", "timestamp,value\n1700000000,one\n"],
    ids=["empty", "no times", "no numbers"],
)
def test_the_exit_code_says_when_nothing_was_scored(
    content: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output, history = folder / "scores.csv", tmp_path / "history.csv"
    output.write_text("the former table\n")
    history.write_text(content)
    code, line = failure(capfd, history, "--output", output)
    assert (code, "no event was scored" in line) == (1, True)
    assert output.read_text() == "the former table\n"
    with pytest.raises(SystemExit) as ended:
        main(["train", str(history), "--output", str(folder / "models")])
    assert ended.value.code == 1
    assert names(folder) == ["scores.csv"]


def test_labels_without_a_matching_stream_are_an_error_naming_both(
    history: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"other": [["2023-11-14 22:13:20", "2023-11-14 22:14:20"]]}))
    code, line = failure(capfd, history, "--labels", labels, "--output", tmp_path / "scores.csv")
    assert code == 1
    assert "they name 'other', scored were 'history'" in line


@pytest.mark.parametrize("command", ["train", "demo"])
def test_an_unwritable_folder_is_a_one_line_error(
    command: str, history: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for place in (Path(history), Path(history) / "below"):
        with pytest.raises(SystemExit) as ended:
            main([command, *([history] if command == "train" else []), "--output", str(place)])
        assert ended.value.code == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"longwatch: --output {place}: cannot be written: ")
    if command == "train":
        with pytest.raises(SystemExit):
            main(["train", history, "--output", str(tmp_path / "m"), "--diagnose", f"{history}/page.html"])
        assert "--diagnose" in capfd.readouterr().err
        assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("arguments", [["config"], ["config", "--schema"]])
def test_a_full_output_device_is_an_error_without_a_traceback(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "detector", *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "No space left on device" in line
    reading, writing = os.pipe()
    os.close(reading)  # `| true`
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
