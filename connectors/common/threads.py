"""Work in a separate thread, for calls that take no deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")


def run_in_thread(work: Callable[[], _Result]) -> Future[_Result]:
    """Run `work` in a daemon thread, which does not keep the process from ending."""
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            future.set_exception(error)

    threading.Thread(target=run, name="run-in-thread", daemon=True).start()
    return future
