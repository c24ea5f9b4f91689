"""Work in a thread of its own, for what cannot be given a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")


def run_in_thread(work: Callable[[], _Result]) -> Future[_Result]:
    """Do something in a thread of its own, which does not keep the process from ending."""
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whoever waits for the future raises it
            future.set_exception(error)

    threading.Thread(target=run, name="apart", daemon=True).start()
    return future
