"""`longwatch completion`: a script by which a shell completes commands, options and files (docs/decisions/007)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "tcsh", "fish")

_TEXT = "Print a script by which your shell completes commands, options and files."
_EXAMPLES = """examples:
  longwatch completion bash > ~/.local/share/bash-completion/completions/longwatch
  longwatch completion zsh > ~/.zfunc/_longwatch     # a folder of $fpath
  longwatch completion fish > ~/.config/fish/completions/longwatch.fish"""


def add_completion(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], parser: argparse.ArgumentParser
) -> None:
    """Add the command to those of a parser."""

    class Complete(argparse.Action):
        """Prints the script and ends, as --help does: no settings are read."""

        def __call__(self, command: argparse.ArgumentParser, _: argparse.Namespace, shell: Any, *__: object) -> None:
            try:
                import shtab  # noqa: PLC0415 - nothing else needs it
            except ImportError:
                command.error("the package shtab is missing: pip install 'shtab>=1.13,<2'")
            for action in _actions(parser):
                if action.type is Path or action.metavar == "FILE":
                    action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own way of saying it
            sys.stdout.write(shtab.complete(parser, shell=shell))
            command.exit()

    sub = commands.add_parser(
        "completion", help=_TEXT, description=_TEXT, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sub.add_argument("shell", action=Complete, choices=SHELLS, help="your shell")


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
