"""Programs that some tests run and that Python's packages do not bring."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

NO_PROMTOOL = "promtool is neither in PATH nor in .tools/bin; tests/fetch_tools.sh fetches it where Debian is reached"

_FETCHED = Path(__file__).parent.parent / ".tools" / "bin"


def promtool() -> Path | None:
    """Return Prometheus' promtool: the one in PATH, else what tests/fetch_tools.sh has fetched, else None."""
    found = shutil.which("promtool", path=os.pathsep.join([os.environ.get("PATH", os.defpath), str(_FETCHED)]))
    return None if found is None else Path(found)
