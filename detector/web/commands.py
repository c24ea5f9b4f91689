"""What people may have the daemon do: mute, acknowledge, judge and reset."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import Response

from detector.feedback.feedback import Feedback, Mute
from detector.feedback.journal import Action, FeedbackError, UnavailableError, UnknownTargetError
from detector.web import models

APPLY_SECONDS = 8.0  # within the port's own time for a reply; what is written down is done all the same
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Commands:
    """The API's writing half. `read` runs what blocks on a thread; `done` answers for what was done."""

    def __init__(
        self,
        feedback: Feedback,
        router: APIRouter,
        writer: list[Any],
        read: Callable[[Callable[[], Any]], Awaitable[Any]],
        done: Callable[[models.Done], Awaitable[Response]],
    ) -> None:
        self._feedback, self._read, self._answer = feedback, read, done
        router.get("/mutes", response_model=models.Mutes)(self.mutes)
        post: dict[str, Any] = {"response_model": models.Done, "dependencies": writer}
        router.post("/mutes", **post)(self.mute)
        router.delete("/mutes/{id}", **post)(self.unmute)
        router.post("/incidents/{id}/acknowledge", **post)(self.acknowledge)
        router.post("/alerts/{id}/verdict", **post)(self.verdict)
        router.post("/stream/reset", **post)(self.reset)

    async def mutes(self, response: Response) -> models.Mutes:
        """List the mutes that people have made and that are in force."""
        response.headers["Cache-Control"] = "no-store"
        return models.Mutes(mutes=[mute_of(mute) for mute in self._feedback.mutes()])

    async def mute(self, asked: models.MuteRequest) -> Response:
        """Let streams of a pattern not alert until a time of their own events; of one pattern the last mute holds."""
        until: int | None = None
        if asked.until is not None:
            if asked.until.tzinfo is None:
                raise HTTPException(422, "until: say which time zone, such as 2026-12-24T18:00:00Z")
            until = round((asked.until - _EPOCH).total_seconds()) * 1_000_000_000
        return await self._done(Action("mute", asked.pattern, until, asked.reason, asked.author))

    async def unmute(
        self,
        id: Annotated[int, "as the list of mutes has it"],  # noqa: A002 - its name in the path
        reason: Annotated[str, Query(max_length=1_000)] = "",
        author: Annotated[str, Query(max_length=200)] = "",
    ) -> Response:
        """End a mute."""
        found = next((mute for mute in self._feedback.mutes() if mute.id == id), None)
        if found is None:
            raise HTTPException(404, f"there is no mute {id}: /api/v1/mutes lists those in force")
        return await self._done(Action("unmute", found.pattern, None, reason, author))

    async def acknowledge(self, id: str, asked: models.Signed) -> Response:  # noqa: A002 - as in the path
        """Let others see who has taken an incident on."""
        return await self._done(Action("acknowledge", id, None, asked.reason, asked.author))

    async def verdict(self, id: str, asked: models.VerdictRequest) -> Response:  # noqa: A002 - as in the path
        """Call an alert false or right: the stream's threshold learns from it."""
        return await self._done(Action(asked.verdict, id, None, asked.reason, asked.author))

    async def reset(
        self, name: Annotated[str, Query(min_length=1, max_length=4096, description="the stream's name")],
        asked: models.Signed,
    ) -> Response:  # fmt: skip
        """Forget all of a stream: it begins anew with its next event."""
        return await self._done(Action("reset", name, None, asked.reason, asked.author))

    async def _done(self, action: Action) -> Response:
        """Write an action down, and answer once it is applied and durable."""
        try:
            future = await self._read(lambda: self._feedback.submit(action))
            async with asyncio.timeout(APPLY_SECONDS):
                applied = await asyncio.shield(asyncio.wrap_future(future))
        except UnknownTargetError as error:
            raise HTTPException(404, str(error)) from None
        except UnavailableError:
            raise
        except FeedbackError as error:
            raise HTTPException(400, str(error)) from None
        except TimeoutError:
            raise HTTPException(
                504, "it is written down, and will be done at the next checkpoint: /readyz says what that waits for"
            ) from None
        return await self._answer(models.Done(sequence=applied.sequence, kind=applied.kind, target=applied.target))


def mute_of(mute: Mute) -> models.Mute:
    """Return a mute as the API has it."""
    return models.Mute(
        id=mute.id,
        pattern=mute.pattern,
        until=None if mute.until is None else _text(mute.until / 1e9),
        reason=mute.reason,
        author=mute.author,
        created_at=_text(mute.created_at),
    )


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
