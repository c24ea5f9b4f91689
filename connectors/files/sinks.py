"""Files as sinks: scores, alerts and rejected records as JSON lines."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from connectors.batches import Alert, Rejected, Scores
from connectors.common.private_files import MAX_FINGERPRINT_BYTES, Fingerprint, fingerprint_of, locked, open_private
from connectors.encode import alert_record, rejected_record, score_records
from connectors.files.lines import FileError
from connectors.protocols import NotWrittenError

logger = logging.getLogger(__name__)

_SINK_BUFFER_BYTES = 1 << 20
_FULL_BYTES = 16 << 20  # lines that wait for a full disk: 40,000 scores, a second's worth at full speed
# Errors that may pass by themselves
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileFullError(FileError, NotWrittenError):
    """A file can take nothing more at present."""


class _JsonLines:
    """A file that grows by lines, locked against other processes.

    Raises FileError where it cannot be opened or written. If the disk is full, lines are kept in memory and
    every further write tries again; `flush` raises FileFullError.
    """

    setting = ""  # that names the file

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            new = not self._path.exists()
            # a pipe would wait for its reader; pipes are rejected below
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
            self._file = FileIO(open_private(self._path, flags), "ab")
            os.set_blocking(self._file.fileno(), True)
            if new:
                _sync_directory(self._path.parent)
            self._regular = self._taken()
        except OSError as error:
            raise self._error(error) from error
        self._kept = bytearray()  # lines, and perhaps the end of one, not yet in the file
        self._begins = Fingerprint(0, "")

    def _taken(self) -> bool:
        """Lock the file; return whether it can be truncated: a device cannot. Raises FileError, OSError."""
        mode = os.fstat(self._file.fileno()).st_mode
        if stat.S_ISCHR(mode):
            return False
        what = ""
        if not stat.S_ISREG(mode):
            what = "is no regular file, and what follows the last checkpoint could not be taken back from it"
        elif not locked(self._file.fileno()):
            what = "is written by another longwatch: give each worker a separate file"
        if what:
            self._file.close()
            raise FileError(f"{self.setting} {self._path}: {what}")
        return True

    @property
    def full(self) -> bool:
        """Whether so much waits for a full disk that no more should be written."""
        return len(self._kept) > _FULL_BYTES

    def flush(self) -> None:
        """Return when all lines are on the disk; FileFullError where there is no room for them."""
        try:
            self._write_out()
            # the state after a failed fsync is unknown, so it is not retried: the restart truncates the file
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._error(error) from error

    def position(self) -> dict[str, tuple[int, int, str]]:
        """Return, by path, how many bytes have been written, and the fingerprint: no other file is truncated."""
        if not self._regular:
            return {}
        size, descriptor = self._size(), self._file.fileno()
        if self._begins.size < min(size, MAX_FINGERPRINT_BYTES):
            self._begins = fingerprint_of(os.pread(descriptor, MAX_FINGERPRINT_BYTES, 0))
        return {str(self._path): (size + len(self._kept), *self._begins)}

    def restore(self, position: Mapping[str, Any]) -> None:
        """Truncate what was written after `position`; a file that `position` does not name stays as it is.

        So does one with another fingerprint: somebody has replaced ours.
        """
        if (place := position.get(str(self._path))) is None or not self._regular:
            return
        # a whole number in stores of earlier versions
        size, *begins = (place, 0, "") if isinstance(place, int) else place
        self._kept.clear()
        found, before = self._size(), Fingerprint(*begins)
        if before.size and before != fingerprint_of(os.pread(self._file.fileno(), before.size, 0)):
            logger.warning("%s: has been replaced by another file; appending to it", self._path)
        elif found < size:
            logger.warning("%s: holds %d bytes, but %d were written before; appending to it", self._path, found, size)
        elif found > size:
            logger.info("%s: taking back %d bytes written after the last checkpoint", self._path, found - size)
            self._file.truncate(size)
            self._begins = Fingerprint(0, "")  # what comes in its place may differ
            self.flush()

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Flush and close the file."""
        if not self._file.closed:
            try:
                self.flush()
            finally:
                self._file.close()

    def _append(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._kept += line
            self._kept += b"\n"
        if len(self._kept) >= _SINK_BUFFER_BYTES:
            try:
                self._write_out()
            except OSError as error:
                if error.errno not in _PASSING:
                    raise self._error(error) from error

    def _write_out(self) -> None:
        written = 0
        try:
            while written < len(self._kept):
                with memoryview(self._kept) as kept:
                    written += self._file.write(kept[written:]) or 0
        finally:
            del self._kept[:written]

    def _error(self, error: OSError) -> FileError:
        kind = FileFullError if error.errno in _PASSING else FileError
        return kind(
            f"{self.setting} {self._path}: cannot be written: {error.strerror};"
            " check its directory, permissions and free space"
        )


class FileScoreSink(_JsonLines):
    """Every score as a JSON line."""

    setting = "output.scores_file"

    def write(self, scores: Scores) -> None:
        """Append a batch's scores, one line an event."""
        self._append(record for _, record in score_records(scores))


class FileAlertSink(_JsonLines):
    """Alerts as JSON lines, as they fire and as they resolve."""

    setting = "output.alerts_file"

    def write(self, alerts: Sequence[Alert]) -> None:
        """Append alerts in their order."""
        self._append(alert_record(alert)[1] for alert in alerts)


class FileDeadLetterSink(_JsonLines):
    """What could not be decoded, as JSON lines with the record's bytes."""

    setting = "output.dead_letter_file"

    def write(self, rejected: Sequence[Rejected]) -> None:
        """Append rejected records in their order."""
        self._append(rejected_record(record) for record in rejected)


def _sync_directory(directory: Path) -> None:
    """Make a new file's name in its directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
