"""Workers of one group that are killed and started again."""

from __future__ import annotations

import contextlib
import http.client
import signal
import time
from typing import Any

from tests.daemon.support import EndedError, Longwatch, until
from tests.faults.support import SESSION, Topics

READ_AGAIN = "settings were read again: changed: rules"


class Workers:
    """Workers of one group; "c" is not a static member, so it leaves at once when it stops. `more`: their settings."""

    def __init__(self, topics: Topics, **more: Any) -> None:
        self._topics, self._more = topics, more
        self.running: dict[str, Longwatch] = {}
        self.told = self.muted = self.reloaded = 0  # times that it was asked, and that it was done

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

    def tell(self, name: str) -> None:
        """Let a worker read its settings again, with another rule, and mute streams; neither concerns a stream here."""
        worker = self.running[name]
        worker.line("running on")  # before, a signal ends it at once
        before = worker.log.count(READ_AGAIN)
        self.told += 1
        self._topics.write_rules(self.told)
        with contextlib.suppress(EndedError):
            worker.process.send_signal(signal.SIGHUP)
            mute = {"pattern": f"elsewhere-{self.told}-*", "until": None, "reason": "chaos", "author": "tests"}
            status, answer = 504, ""
            with contextlib.suppress(http.client.RemoteDisconnected):  # the port's own bound, where much else is done
                status, answer = worker.post("/api/v1/mutes", mute)
            assert status in {200, 201, 503, 504}, answer  # refused while states are restored
            self.muted += status < 300
            until(lambda: worker.process.poll() is not None or worker.log.count(READ_AGAIN) > before, "a reload")
        self.reloaded += worker.log.count(READ_AGAIN) > before

    def stop(self) -> None:
        for name in list(self.running):
            self.leave(name)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.running.values():
            if worker.process.poll() is None:
                worker.kill()
