"""What the quick answers of the command line cost: none of them loads what only the daemon needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.brokers import CHECKOUT

HEAVY = {"numba", "torch", "scipy", "kafka"}


def longwatch(*arguments: str, importtime: bool = False) -> subprocess.CompletedProcess[str]:
    more = ["-X", "importtime"] if importtime else []
    command = [sys.executable, *more, "-m", "detector.cli", *arguments]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["config"], ["completion", "bash"]], ids=" ".join)
def test_an_answer_is_not_kept_waiting_by_what_it_does_not_need(arguments: list[str]) -> None:
    done = longwatch(*arguments, importtime=True)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & HEAVY


def test_bash_completes_commands_options_and_files() -> None:
    script = longwatch("completion", "bash").stdout
    ask = """
COMP_WORDS=(longwatch "$@"); COMP_CWORD=$#
_shtab_longwatch
echo "${COMPREPLY[@]}"
"""

    def completed(*words: str) -> list[str]:
        command = ["bash", "-c", script + ask, "bash", *words]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.split()

    assert completed("ba") == ["backtest"]
    assert completed("backtest", "--la") == ["--labels"]
    assert completed("completion", "z") == ["zsh"]
    assert "pyproject.toml" in completed("run", "--config", "pyproj")


def test_a_shell_that_is_not_known_is_refused_with_those_that_are() -> None:
    done = longwatch("completion", "csh")
    assert done.returncode == 2
    assert "bash" in done.stderr.splitlines()[-1]
