"""SQLite files that can be done without: one that is damaged is put aside, and another takes its place."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, NamedTuple

from connectors.common.sqlite import ERRORS, Fault, FileError, explain, open_database, put_aside

logger = logging.getLogger(__name__)

WAIT_SECONDS = 1.0  # for another process that has the file


class Kind(NamedTuple):
    """What a file is."""

    what: str  # "file of incidents"
    lost: str  # what is said of what was in it: "incidents are remembered anew"
    application_id: int
    version: int
    schema: str
    error: type[FileError]  # that is raised


class RenewableDatabase:
    """A file, which this process has for itself. A base of those who read and write it, from any thread.

    They hold `_lock` and are within `_errors` while they use `_db`.
    """

    kind: ClassVar[Kind]

    def __init__(self, path: Path) -> None:
        """Open or make the file; one that is damaged is put aside. Raises the kind's error."""
        self.path = path
        self._lock = threading.RLock()
        try:
            self._open()
        except FileError as error:
            if error.fault is not Fault.DAMAGED:
                raise
            self.begin_anew(error)

    def begin_anew(self, why: FileError) -> None:
        """Put the file aside and make another. Raises the kind's error, then again."""
        with self._lock:
            if self.path.exists():  # as it does not where this has failed in the middle
                if (aside := put_aside(self.path)) is None:
                    raise self.kind.error(f"{why}, and cannot be renamed: move it away", why.fault)
                logger.error("%s. It was put aside as %s: %s", why, aside.name, self.kind.lost)
            with suppress(AttributeError, *ERRORS):  # there is none where it could not be opened
                self._db.close()
            self._open()

    def _open(self) -> None:
        header = self.kind.application_id, self.kind.version
        try:
            with self._errors():
                self._db, _ = open_database(
                    self.path, header, self.kind.schema, self._refuse, timeout_seconds=WAIT_SECONDS
                )
        except OSError as error:
            raise self.kind.error(f"{self.path} cannot be made: {error.strerror}; see state.directory") from error

    def _refuse(self, application_id: int, version: int) -> None:
        kind = self.kind
        if (application_id, version) != (kind.application_id, kind.version):
            what = f"has version {version}" if application_id == kind.application_id else f"is no {kind.what}"
            raise kind.error(f"{self.path} {what}, expected version {kind.version}: move it away, and {kind.lost}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into the kind's."""
        try:
            yield
        except ERRORS as error:
            fault, why = explain(error)
            raise self.kind.error(f"{self.path} {why}", fault) from error
