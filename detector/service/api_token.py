"""The token by which this machine's own command line changes things: a new one with each start, for the owner alone."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from connectors.common.private_files import open_private

logger = logging.getLogger(__name__)

TOKEN_FILE = "api.token"  # noqa: S105 - a file's name
TOKEN_BYTES = 32


def write_token(directory: Path) -> str:
    """Write a new token to `api.token` in the state directory, and return it; empty where it cannot be written.

    Who waits for the daemon to do what it is asked needs the file; scoring does not, so a full disk is only logged.
    """
    path, token = directory / TOKEN_FILE, secrets.token_urlsafe(TOKEN_BYTES)
    unfinished = path.with_name(f"{TOKEN_FILE}.new")
    try:
        unfinished.unlink(missing_ok=True)  # of a start that ended here; perhaps with other rights
        descriptor = open_private(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
        unfinished.replace(path)
    except OSError as error:
        logger.warning("%s cannot be written: %s; commands cannot reach this daemon", path, error.strerror or error)
        return ""
    return token
