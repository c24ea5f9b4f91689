"""Lines of a file, a pipe or standard input, gzipped or not, never waiting longer than asked."""

from __future__ import annotations

import os
import select
import stat
import zlib

from connectors.common.private_files import MAX_FINGERPRINT_BYTES, Fingerprint, fingerprint_of
from connectors.errors import UserError

STANDARD_INPUT = "-"

_STANDARD_INPUT_DESCRIPTOR = 0
# A read, of which the first identifies the file: some thousand lines, so that thousands of files may be open together
_CHUNK_BYTES = MAX_FINGERPRINT_BYTES
_GZIP_BEGIN = b"\x1f"  # a pipe may hand over its first byte alone; one is enough, since text does not begin with it
_GZIP_WINDOW = 16 + zlib.MAX_WBITS  # zlib's way to say "with gzip's header and check"


class FileError(UserError):
    """A file cannot be read or written; the text names it and says what to do."""


class LineReader:
    """Reads a file's lines, without line ends and without blank ones, with their numbers from 1.

    Of a line longer than `max_line_bytes` the end may be missing, but never so much that it is not longer any more.
    Raises FileError where the path cannot be opened.
    """

    def __init__(self, path: str, max_line_bytes: int) -> None:
        self._path = path
        self._max_line_bytes = max_line_bytes
        try:
            self._descriptor = _STANDARD_INPUT_DESCRIPTOR if path == STANDARD_INPUT else os.open(path, os.O_RDONLY)
            mode = os.fstat(self._descriptor).st_mode
        except OSError as error:
            raise FileError(f"{path}: cannot be read: {error.strerror}") from error
        if stat.S_ISDIR(mode):
            self.close()
            raise FileError(f"{path}: is a directory; name the files in it")
        self.waits = not stat.S_ISREG(mode)  # a pipe, say: it may have nothing yet
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        self.fingerprint: Fingerprint | None = None  # once something has been read
        self._gzip: zlib._Decompress | None = None
        self._line = 0  # read so far
        self._rest = b""  # the beginning of an unfinished line
        self._cutting = False  # the rest of an overlong line is being skipped

    def matches(self, before: Fingerprint) -> bool:
        """Return whether the file begins as `before` says. Raises FileError."""
        try:
            return fingerprint_of(os.pread(self._descriptor, before.size, 0)) == before
        except OSError as error:
            raise FileError(f"{self._path}: cannot be read: {error.strerror}") from error

    def read(self, timeout_seconds: float) -> list[tuple[int, bytes]] | None:
        """Return the next lines, empty after the time-out, None at the end.

        Raises FileError where the file breaks off or is damaged; all lines before that have been returned, and the
        incomplete last line is dropped.
        """
        if self.waits and not self._poll.poll(timeout_seconds * 1_000):
            return []
        try:
            data = os.read(self._descriptor, _CHUNK_BYTES)
        except OSError as error:
            raise FileError(f"{self._path}: reading failed after line {self._line}: {error.strerror}") from error
        if not data:
            if self._gzip is not None and not self._gzip.eof:
                raise FileError(
                    f"{self._path}: the gzip stream breaks off after line {self._line}; copy the file again in full"
                )
            # the last line may lack its line feed
            return self._split(b"\n") or None if self._rest else None
        if self.fingerprint is None:
            self.fingerprint = fingerprint_of(data)
            if data.startswith(_GZIP_BEGIN):
                self._gzip = zlib.decompressobj(_GZIP_WINDOW)
        return self._split(data if self._gzip is None else self._inflate(data))

    def close(self) -> None:
        """Close the file, unless it is standard input."""
        if self._path != STANDARD_INPUT and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _inflate(self, data: bytes) -> bytes:
        text = []
        try:
            while data and self._gzip is not None:
                if self._gzip.eof:
                    data = data.lstrip(b"\0")  # padding, as tapes and block devices add
                    if not data:
                        break
                    self._gzip = zlib.decompressobj(_GZIP_WINDOW)  # members may follow each other
                text.append(self._gzip.decompress(data))
                data = self._gzip.unused_data
        except zlib.error as error:
            raise FileError(
                f"{self._path}: the gzip stream is damaged after line {self._line} ({error}); copy the file again"
            ) from error
        return b"".join(text)

    def _split(self, text: bytes) -> list[tuple[int, bytes]]:
        if self._cutting:
            end = text.find(b"\n")
            if end < 0:
                return []
            text = text[end:]
            self._cutting = False
        *lines, self._rest = (self._rest + text).split(b"\n")
        limit = self._max_line_bytes + 1
        if len(self._rest) > limit:
            self._rest = self._rest[:limit]
            self._cutting = True
        first = self._line + 1
        self._line += len(lines)
        return [
            (number, line[:-1] if line[-1] == ord("\r") else line)
            for number, line in enumerate(lines, first)
            if line and not line.isspace()
        ]
