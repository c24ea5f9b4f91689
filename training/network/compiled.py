"""numba's decorator as it is used here, with a cache on disk that sees every change of a kernel.

numba's cache checks only the file of a function, but kernels call kernels of other files: the old value of a constant
would survive in the cached code of the others. So the cache's folder is named by a digest of all their sources.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

PACKAGES = ("training", "detector")  # where kernels are


def _digest() -> str:
    """Return a name for the present sources of all kernels."""
    digest = hashlib.blake2b(numba.__version__.encode(), digest_size=8)
    here = Path(__file__).parents[2]
    for source in sorted(path for package in PACKAGES for path in (here / package).rglob("*.py")):
        text = source.read_bytes()
        if b"@compiled" in text:
            digest.update(str(source.relative_to(here)).encode() + text)
    return digest.hexdigest()


def _cache_folder() -> Path | None:
    """Return a writable folder for compiled code, or None: NUMBA_CACHE_DIR, or next to the sources, or the user's."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - Path.home() may raise
    places = [Path(given)] if given else [Path(__file__).parent / "__pycache__", Path(home) / "longwatch"]
    for place in places:
        folder = place / f"kernels-{_digest()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None


_FOLDER = _cache_folder()
if _FOLDER is not None:
    setattr(numba.config, "CACHE_DIR", str(_FOLDER))  # noqa: B010 - numba declares it at run time


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function that touches arrays, records and numbers only; it releases the GIL while it runs.

    `connectors.kafka.record_parser` has a second one, since connectors and training may not import each other.
    """
    return numba.njit(function, nogil=True, cache=_FOLDER is not None, **options)
