"""What commands write: checked before the work begins, and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, TextIO

from connectors.errors import UserError
from connectors.files.lines import FileError


class OutputFile:
    """A text file that appears whole or not at all; a pipe, a device or a link is written to in place.

    "-", or another name of it, is standard output. Raises FileError at once where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_standard_output = str(path) == "-" or _is_standard_output(path)
        self._open: TextIO | None = None  # what is written to in place
        try:
            if self.is_standard_output:
                self._open = sys.stdout
            elif os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):  # must not be replaced
                # not emptied before there is something to write
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
                self._open = os.fdopen(descriptor, "w", encoding="utf-8", newline="")
            elif path.exists() and not os.access(path, os.W_OK):
                raise PermissionError(0, "its rights do not allow it")
            self._draft_folder = None if self._open else path.parent
            self.draft().close()
        except OSError as error:
            raise self._error(error) from error

    def draft(self) -> IO[str]:
        """Return a file without a name, for what is not yet complete: nothing of it remains when the process ends."""
        return tempfile.TemporaryFile("w+", encoding="utf-8", newline="", dir=self._draft_folder)

    @contextlib.contextmanager
    def atomic_write(self) -> Iterator[TextIO]:
        """Give a file to write to; it takes its place at the end, unless something is raised.

        Raises FileError, but BrokenPipeError where nobody reads any more.
        """
        try:
            if self._open is not None:
                if self._open is not sys.stdout and stat.S_ISREG(os.fstat(self._open.fileno()).st_mode):
                    self._open.truncate(0)
                yield self._open
                self._open.flush()
                return
            part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
            try:
                with part.open("x", encoding="utf-8", newline="") as file:
                    yield file
                part.replace(self.path)
            finally:
                part.unlink(missing_ok=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> FileError:
        return FileError(f"--output {self.path}: cannot be written: {error.strerror}")


def _is_standard_output(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


def nearest_existing(path: Path) -> Path:
    """Return the path where it exists, else its nearest ancestor that does."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def check_folder(option: str, folder: Path) -> None:
    """Raise FileError where a folder cannot be written to or made; changes nothing."""
    place = nearest_existing(folder)
    if not place.is_dir():
        why = f"{place} is no directory"
    elif not os.access(place, os.W_OK | os.X_OK):
        why = f"user id {os.geteuid()} may not write to {place}"
    else:
        return
    raise FileError(f"{option} {folder}: cannot be written: {why}")


class PlotError(UserError):
    """No plot can be drawn; the text says what is missing."""


def require_matplotlib() -> None:
    """Raise PlotError without matplotlib."""
    try:
        import_module("matplotlib")  # an extra: only who draws must have it
    except ImportError as error:
        raise PlotError(f"plots need matplotlib ({error}): pip install 'longwatch[plots]'") from error
