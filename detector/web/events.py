"""Server-sent events: what changes, once a second, made once and shared by all who listen."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from pydantic import BaseModel

from connectors.errors import UserError
from detector.web.parts import Parts, incident, status, window

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

TICK_SECONDS = 1.0
KEEP_ALIVE_TICKS = 15  # after which a comment shows proxies that the connection lives
MAX_CHANGES = 1_000  # of incidents that are kept for those who listen


class Reading(Protocol):
    """Runs what blocks on another thread."""

    def __call__(self, work: Callable[[], _Result]) -> Awaitable[_Result]:
        """Return what `work` returns."""


def event(name: str, data: BaseModel) -> bytes:
    """Return one event; JSON has no line breaks of its own."""
    return f"event: {name}\ndata: ".encode() + data.model_dump_json().encode() + b"\n\n"


class Events:
    """One for all who listen. For the HTTP port's loop; `reading` runs what blocks on another thread."""

    def __init__(self, parts: Parts, reading: Reading) -> None:
        self._parts, self._reading = parts, reading
        self._loop = asyncio.get_running_loop()
        self._listeners = 0
        self._ticking: asyncio.Task[None] | None = None
        self._tick = self._loop.create_future()
        self._status = b""
        self._changed: dict[str, None] = {}  # incidents since the last tick
        self._changes: deque[tuple[int, bytes]] = deque(maxlen=MAX_CHANGES)  # with their numbers
        self._number = 0
        self._points: dict[tuple[str, int], tuple[int, bytes]] = {}  # of this tick, by stream and what came before
        parts.incidents.on_change(self._on_change)

    async def listen(self, stream: str, *, writable: bool) -> AsyncIterator[bytes]:
        """Yield events for as long as they are asked for; `stream`: whose points come too, "": none."""
        number, after, quiet = self._number, 0, 0
        self._listeners += 1
        try:
            yield b"retry: 3000\n\n"
            if stream:  # from here on: what was before is a question of its own
                after, _ = self._parts.live.points(stream)
            while True:
                if self._ticking is None or self._ticking.done():
                    self._ticking = self._loop.create_task(self._run())
                await asyncio.shield(self._tick)
                # one who may write is told so: all else is the same for everyone
                parts = [self._status.replace(b'"writable":false', b'"writable":true', 1) if writable else self._status]
                parts += [change for at, change in self._changes if at > number]
                number = self._number
                if stream:
                    after, points = self._new_points(stream, after)
                    parts.append(points)
                quiet += 1
                if quiet >= KEEP_ALIVE_TICKS:
                    quiet = 0
                    parts.append(b": alive\n\n")
                yield b"".join(parts)
        finally:
            self._listeners -= 1

    def _new_points(self, stream: str, after: int) -> tuple[int, bytes]:
        """Return a stream's new points as an event, and the number to ask for next; made once for all who look."""
        key = (stream, after)
        if key not in self._points:
            number, points = self._parts.live.points(stream, after)
            self._points[key] = number, event("points", window(stream, points)) if points else b""
        return self._points[key]

    async def _run(self) -> None:
        """Make a tick a second while anyone listens."""
        while self._listeners:
            began = self._loop.time()
            changed, self._changed = list(self._changed), {}
            try:
                self._status, changes = await self._reading(partial(self._make, changed))
            except Exception:
                logger.exception("the page's live figures could not be read")
            else:
                for change in changes:
                    self._number += 1
                    self._changes.append((self._number, change))
            self._points.clear()
            tick, self._tick = self._tick, self._loop.create_future()
            tick.set_result(None)
            await asyncio.sleep(max(TICK_SECONDS - (self._loop.time() - began), TICK_SECONDS / 10))

    def _make(self, changed: Sequence[str]) -> tuple[bytes, list[bytes]]:
        records = []
        for name in changed:
            try:
                records.append(self._parts.incidents.get(name))
            except UserError as error:
                logger.debug("incident %s could not be read: %s", name, error)
        events = [event("incident", incident(self._parts, record)) for record in records if record is not None]
        return event("status", status(self._parts, writable=False)), events

    def changed(self, ids: Sequence[str]) -> None:
        """Note which incidents changed."""
        if self._listeners:
            self._changed.update(dict.fromkeys(ids[:MAX_CHANGES]))

    def _on_change(self, ids: Sequence[str]) -> None:
        """Note what changed, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self.changed, list(ids))
        except RuntimeError:  # the port is closed
            logger.debug("nobody is told of incidents any more")
