"""Resident memory, and a cgroup that bounds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.support import until

IN_CGROUP = """
import os, sys
with open(os.path.join(sys.argv[1], "cgroup.procs"), "w") as procs:
    procs.write(str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "detector", "run", *sys.argv[2:]])
"""


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has, without the pages of files that it maps."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Yield a cgroup of this test's own, below the one that it runs in; skip where that is not to be had."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        mount = "/sys/fs/cgroup/memory" if "memory" in controllers.split(",") else "/sys/fs/cgroup"
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = Path(mount + path) / f"longwatch-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if any((folder / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
            yield folder
            procs = folder / "cgroup.procs"
            until(lambda procs=procs: not procs.read_text(), "the daemon has left its cgroup")
            folder.rmdir()
            return
        folder.rmdir()
    pytest.skip("no cgroup with a memory limit can be made here (needs root, or delegation)")
