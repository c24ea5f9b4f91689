"""Files that we make and go on with: nobody else reads them, nobody else writes them, and they are known again."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

PRIVATE = 0o600
MAX_FINGERPRINT_BYTES = 1 << 16  # a read of a file: a thousand lines


def open_private(path: str | Path, flags: int) -> int:
    """Open a file, made for its owner alone where there is none; return its descriptor.

    Raises OSError, also for a symbolic link, which may lead to what we must not write.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed", str(path)) from None
        raise


def make_private(path: Path) -> None:
    """See that a file is there, that nobody but its owner may read it, and that it is no symbolic link.

    Raises OSError.
    """
    descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        found = os.fstat(descriptor)
        if stat.S_IMODE(found.st_mode) & ~PRIVATE and found.st_uid == os.geteuid():  # made by an earlier version
            os.fchmod(descriptor, PRIVATE)
    finally:
        os.close(descriptor)


def make_database_private(path: Path) -> None:
    """Do so for an SQLite database and what SQLite puts beside it, which takes after it. Raises OSError."""
    make_private(path)
    for beside in (path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal")):
        if os.path.lexists(beside):
            make_private(beside)


def locked(descriptor: int) -> bool:
    """Take the file for this process until it is closed; return whether no other has it. Raises OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Fingerprint(NamedTuple):
    """What a file begins with: by it the file is known again under its name, also after it has grown."""

    size: int  # bytes
    digest: str


class FingerprintBuilder:
    """Takes a file's bytes as they come, and keeps what is needed to know its beginning again."""

    def __init__(self) -> None:
        self._size, self._digest = 0, hashlib.blake2b(digest_size=16)

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._size < MAX_FINGERPRINT_BYTES:
            data = data[: MAX_FINGERPRINT_BYTES - self._size]
            self._digest.update(data)
            self._size += len(data)

    def known(self) -> Fingerprint:
        """Return what the file begins with, as far as it has come."""
        return Fingerprint(self._size, self._digest.hexdigest())


def fingerprint_of(descriptor: int, size: int = MAX_FINGERPRINT_BYTES) -> Fingerprint:
    """Return what an open file begins with: its first `size` bytes, or all of fewer. Raises OSError."""
    found = FingerprintBuilder()
    found.add(os.pread(descriptor, size, 0))
    return found.known()
