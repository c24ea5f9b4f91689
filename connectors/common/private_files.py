"""Files that the daemon creates and continues: private, written by one process, recognised after a restart."""

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
    """Open a file, created for its owner alone if missing; return its descriptor.

    Raises OSError, also for a symbolic link, which may lead to what we must not write.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed", str(path)) from None
        raise


def make_private(path: Path) -> None:
    """Ensure that a file exists, that only its owner may read it, and that it is no symbolic link.

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
    """Do so for an SQLite database and its companion files, whose mode SQLite copies from it. Raises OSError."""
    make_private(path)
    for companion in (path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal")):
        if os.path.lexists(companion):
            make_private(companion)


def locked(descriptor: int) -> bool:
    """Lock the file until it is closed; return False if another process holds the lock. Raises OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Fingerprint(NamedTuple):
    """A hash of a file's beginning: recognises the file under its name, also after it has grown."""

    size: int  # bytes
    digest: str


def fingerprint_of(beginning: bytes) -> Fingerprint:
    """Return the fingerprint of a file that begins so; what follows MAX_FINGERPRINT_BYTES does not count."""
    beginning = beginning[:MAX_FINGERPRINT_BYTES]
    return Fingerprint(len(beginning), hashlib.blake2b(beginning, digest_size=16).hexdigest())
