"""Programs that some tests run and that Python's packages do not bring."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_NOT_FOUND = "is neither in PATH nor in .tools/bin; tests/fetch_tools.sh fetches it where Debian is reached"
NO_PROMETHEUS = f"prometheus {_NOT_FOUND}"
NO_ALERTMANAGER = f"prometheus-alertmanager {_NOT_FOUND}"
NO_PROMTOOL = f"promtool {_NOT_FOUND}"
NO_CHROMIUM = f"chromium {_NOT_FOUND}"
NO_AXE = "axe-core is not in .tools/axe; tests/fetch_tools.sh fetches it where npm is"

_FETCHED = Path(__file__).parent.parent / ".tools" / "bin"
ALERTMANAGER_FOLDER = _FETCHED.parent / "share"  # where a fetched Alertmanager has to be started


def promtool() -> Path | None:
    """Return Prometheus' promtool: the one in PATH, else what tests/fetch_tools.sh has fetched, else None."""
    return _found("promtool")


def prometheus() -> Path | None:
    """Return the Prometheus server, likewise."""
    return _found("prometheus")


def alertmanager() -> Path | None:
    """Return Alertmanager, by the name that Debian gives it, likewise."""
    return _found("prometheus-alertmanager")


def chromium() -> Path | None:
    """Return a browser, likewise."""
    return _found("chromium") or _found("chromium-browser") or _found("google-chrome")


def axe() -> Path | None:
    """Return axe-core, one file of JavaScript, else None."""
    path = _FETCHED.parent / "axe" / "axe.min.js"
    return path if path.exists() else None


def _found(name: str) -> Path | None:
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), str(_FETCHED)]))
    return None if found is None else Path(found)
