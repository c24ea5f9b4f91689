"""Workers of one group that are killed and started again."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from tests.daemon.support import EndedError, Longwatch
from tests.faults.support import (
    SESSION,
    Topics,
)


class Workers:
    """Workers of one group; "c" is not a static member, so it leaves at once when it stops. `more`: their settings."""

    def __init__(self, topics: Topics, **more: Any) -> None:
        self._topics, self._more = topics, more
        self.running: dict[str, Longwatch] = {}

    def start(self, name: str) -> None:
        static = {"kafka__group_instance_id": name} if name != "c" else {}
        self.running[name] = self._topics.worker(name, **static, **self._more)

    def kill(self, name: str) -> None:
        worker = self.running.pop(name)
        self._check(name, worker)
        worker.kill()
        self.start(name)

    def leave(self, name: str) -> None:
        worker = self.running.pop(name)
        self._check(name, worker)
        worker.line("running on")  # before, a signal ends it at once
        with contextlib.suppress(EndedError):
            assert worker.terminate()[0] == 0, worker.log[-3000:]

    def _check(self, name: str, worker: Longwatch) -> None:
        if worker.process.poll() is not None:
            worker.fail(f"worker {name} ended by itself with {worker.process.returncode}")

    def sleep(self, name: str) -> None:
        """Halt a worker, which wakes in the midst of a transaction whose partitions are others' by then."""
        with self.running[name].halted():
            time.sleep(SESSION + 3.0)

    def stop(self) -> None:
        for name in list(self.running):
            self.leave(name)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.running.values():
            if worker.process.poll() is None:
                worker.kill()
