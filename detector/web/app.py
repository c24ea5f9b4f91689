"""The app behind the HTTP port: the API under /api/v1, its description, and the page's files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.staticfiles import StaticFiles

from connectors.errors import UserError
from connectors.http_server.access import Access, Caller
from connectors.http_server.server import index
from connectors.notify.trial import try_receivers
from detector.config.settings import SettingsError
from detector.errors import BusyError
from detector.history.recent import MAX_EVENTS, Look
from detector.web import models
from detector.web.commands import Commands, mute_of
from detector.web.events import Events
from detector.web.parts import (
    Parts,
    fleet_series,
    forecast,
    hidden,
    incident,
    model_cards,
    said,
    status,
    stream_fields,
    verdict_on,
)
from detector.web.streams import MAX_OFFSET, StreamPage

API = "/api/v1"
STATIC = Path(__file__).with_name("static")
THREADS = 4  # that read what blocks
TRIAL_SECONDS = 8.0  # within the port's own time for a reply
ALERTS_OF_ONE = 1_000  # of an incident that is asked for by itself
INCIDENTS_CHANGE = {"acknowledge", "false", "right"}  # by these kinds of feedback

_Result = TypeVar("_Result")
_StreamName = Annotated[str, Query(min_length=1, max_length=4096, description="the stream's name")]
_Id = Annotated[str, "as alerts and incidents have it"]


class Reader:
    """Runs what blocks on threads of its own, so that the port's loop never waits."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "http-api")

    async def __call__(self, work: Callable[[], _Result]) -> _Result:
        """Return what `work` returns."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


class Api:
    """The API's answers."""

    def __init__(self, parts: Parts, access: Access) -> None:
        self._parts, self._access, self._read = parts, access, Reader()
        self._events: Events | None = None
        refusals: dict[int | str, dict[str, Any]] = {
            code: {"model": models.Error} for code in (400, 401, 403, 404, 405, 413, 422, 503, 504)
        }
        self.router = router = APIRouter(prefix=API, responses=refusals)
        get, writer = router.get, [Depends(self._may_write)]
        get("/status", response_model=models.Status)(self.status)
        get("/fleet", response_model=models.FleetSeries)(self.fleet)
        get("/incidents", response_model=models.Incidents)(self.incidents)
        get("/incidents/{id}", response_model=models.Incident)(self.incident)
        get("/alerts/{id}", response_model=models.AlertDetail)(self.alert)
        get("/streams", response_model=models.Streams)(self.streams)
        get("/stream", response_model=models.StreamDetail)(self.stream)
        get("/stream/window", response_model=models.Window)(self.stream_window)
        get("/stream/forecast", response_model=models.Forecast)(self.stream_forecast)
        get("/stream/hidden", response_model=models.Hidden)(self.stream_hidden)
        get("/models", response_model=models.Models)(self.kept_models)
        get(
            "/events",
            response_class=StreamingResponse,
            responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
        )(self.events)
        Commands(parts.feedback, router, writer, self._read, self._done)
        router.post("/reload", response_model=models.Reloaded, dependencies=writer)(self.reload)
        router.post("/receivers/test", response_model=models.ReceiversTried, dependencies=writer)(self.try_receivers)

    # -- how the daemon is ---------------------------------------------------------------------------------------------

    async def status(self, request: Request) -> Response:
        """How the daemon is: ready or not, its model, figures, and the last retraining."""
        writable = self._is_writable(request)
        return _json(await self._read(lambda: status(self._parts, writable=writable)))

    async def fleet(self) -> Response:
        """Figures of the last hour, a point every ten seconds."""
        return _json(fleet_series(self._parts.fleet))

    async def kept_models(self) -> Response:
        """List the networks that are kept."""
        return _json(await self._read(lambda: model_cards(self._parts)))

    # -- what happened -------------------------------------------------------------------------------------------------

    async def incidents(
        self,
        state: Literal["open", "resolved", "all"] = "all",
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$", description="`next` of the page before")] = None,
    ) -> Response:
        """Incidents, newest first."""
        page = await self._read(lambda: self._parts.incidents.recent(limit, before, state))
        found = await self._read(lambda: [incident(self._parts, one) for one in page.incidents])
        return _json(models.Incidents(incidents=found, next=page.next))

    async def incident(self, id: _Id) -> Response:  # noqa: A002 - its name in the path
        """One incident, with all its alerts, a thousand at most."""
        record = await self._read(lambda: self._parts.incidents.get(id))
        if record is None:
            raise HTTPException(404, f"there is no incident {id!r:.100}: it may have been forgotten")
        return _json(await self._read(lambda: incident(self._parts, record, ALERTS_OF_ONE)))

    async def alert(self, id: _Id) -> Response:  # noqa: A002 - its name in the path
        """One alert, with its evidence and what its stream did around it."""
        parts = self._parts

        def work() -> models.AlertDetail | None:
            found = parts.incidents.alert(id)
            record = (None if found is None else found.record) or parts.history.record(id)
            if record is None:
                return None
            samples = parts.history.samples(id)
            return models.AlertDetail(
                alert=msgspec.json.decode(record),
                incident=None if found is None else found.incident,
                verdict=verdict_on(parts, id),
                judged=said(parts.feedback.verdicts(id)),
                samples=None if samples is None else models.Window(**samples.document()),
            )

        if (detail := await self._read(work)) is None:
            raise HTTPException(404, f"there is no record of alert {id!r:.100}: it may have been forgotten")
        return _json(detail)

    # -- streams -------------------------------------------------------------------------------------------------------

    async def streams(
        self,
        q: Annotated[str, Query(max_length=4096, description="a part of the name, whatever its case")] = "",
        sort: Literal["anomalous", "name"] = "anomalous",
        offset: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> Response:
        """Streams, those that fire and are least usual first, or by name."""
        return _encoded(await self._read(lambda: _stream_page(self._parts.streams.page(q, sort, offset, limit))))

    async def stream(self, name: _StreamName) -> Response:
        """One stream and its features."""
        found = await self._read(lambda: self._parts.streams.one(name))
        if found is None:
            raise _unknown(name)
        row, features = found
        mutes = [mute_of(mute) for mute in self._parts.feedback.mutes() if fnmatchcase(name, mute.pattern)]
        return _json(
            models.StreamDetail.model_validate({**stream_fields(row), "feature_names": features, "mutes": mutes})
        )

    async def stream_window(
        self, name: _StreamName, events: Annotated[int, Query(ge=1, le=MAX_EVENTS, description="at most")] = 300
    ) -> Response:
        """Recent events of a stream: as they were scored, and before that as its own window has them."""
        return _json(await self._looked_at(name, lambda look: models.Window(**look.window(events).document())))

    async def stream_forecast(self, name: _StreamName) -> Response:
        """Forecast each of its features that is a number, at the model's horizons."""
        return _json(await self._looked_at(name, forecast))

    async def stream_hidden(
        self, name: _StreamName, feature: Annotated[str, Query(min_length=1, max_length=4096)]
    ) -> Response:
        """Show what the network remembered of a feature, over its window."""
        try:
            return _json(await self._looked_at(name, lambda look: hidden(look, feature)))
        except KeyError:
            raise HTTPException(404, f"stream {name!r:.200} has no feature {feature!r:.200} that is a number") from None

    async def _looked_at(self, name: str, work: Callable[[Look], models.Model]) -> models.Model:
        """Look at a stream between two turns, and do some work on what was found."""

        def looking() -> models.Model | None:
            look = self._parts.look(name)
            return None if look is None else work(look)

        if (found := await self._read(looking)) is None:
            raise _unknown(name)
        return found

    async def events(
        self, request: Request, stream: Annotated[str, Query(max_length=4096, description="whose points to send")] = ""
    ) -> StreamingResponse:
        """Server-sent events: `status` each second, `incident` as one changes, `points` of the stream asked for."""
        if stream and not await self._read(lambda: self._parts.streams.exists(stream)):
            raise _unknown(stream)
        self._events = self._events or Events(self._parts, self._read)
        listening = self._events.listen(stream, writable=self._is_writable(request))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(listening, media_type="text/event-stream", headers=headers)

    # -- changes -------------------------------------------------------------------------------------------------------

    async def _done(self, done: models.Done) -> Response:
        """Answer that something was done, and tell those who look at an incident that this changes."""
        if self._events is not None and done.kind in INCIDENTS_CHANGE:
            name: str | None = done.target
            if done.kind != "acknowledge":
                found = await self._read(lambda: self._parts.incidents.alert(done.target))
                name = None if found is None else found.incident
            if name is not None:
                self._events.changed([name])
        return _json(done)

    async def try_receivers(self, asked: models.ReceiverTest) -> Response:
        """Send a test alert, and its end, to a receiver or all, and say how it went."""
        parts = self._parts

        def work() -> list[models.ReceiverTried]:
            tried = try_receivers(parts.receivers(), asked.receiver, parts.external_url)
            return [models.ReceiverTried(receiver=t.receiver, place=t.place, problem=t.problem) for t in tried]

        try:
            async with asyncio.timeout(TRIAL_SECONDS):
                return _json(models.ReceiversTried(receivers=await self._read(work)))
        except TimeoutError:
            raise HTTPException(
                504, f"no receiver's answer within {TRIAL_SECONDS:.0f} s: longwatch alerts test waits for longer"
            ) from None
        except ValueError as error:
            raise HTTPException(404, str(error)) from None

    async def reload(self) -> Response:
        """Read the settings again, as SIGHUP does; 422 with a line for each thing that is wrong: the old ones hold."""
        if (asked := self._parts.reload()) is None:
            raise HTTPException(503, "this daemon was started without settings that can be read again: restart it")
        try:
            async with asyncio.timeout(TRIAL_SECONDS):
                changes = await asyncio.shield(asyncio.wrap_future(asked))
        except TimeoutError:
            raise HTTPException(
                504, "settings are read again once a checkpoint can be made: /readyz says what that waits for"
            ) from None
        except (SettingsError, ValueError) as error:
            raise HTTPException(422, str(error)) from None
        return _json(models.Reloaded(applied=changes.applied, needs_restart=changes.needs_restart))

    def _is_writable(self, request: Request) -> bool:
        caller: Caller = request.state.caller
        return caller is not Caller.ANYONE

    async def _may_write(self, request: Request) -> None:
        """Refuse whoever may change nothing."""
        if refused := self._access.refusal(request.state.caller, request.headers):
            raise HTTPException(*refused)


def make_app(parts: Parts, access: Access) -> FastAPI:
    """Return the app; it answers errors as {"error": ...}."""
    app = FastAPI(
        title="longwatch",
        version="1",
        summary="Incidents, streams and figures of a longwatch daemon",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,  # they load a page's parts from elsewhere
        redoc_url=None,
        exception_handlers={
            AnyHTTPException: _refused,
            RequestValidationError: _invalid,
            BusyError: _busy,
            UserError: _unavailable,
        },
    )
    app.include_router(Api(parts, access).router)
    if (STATIC / "index.html").exists():
        app.mount("/", _Files(directory=STATIC, html=True))
    else:
        app.add_api_route("/", index, include_in_schema=False, methods=["GET", "HEAD"])
    return app


class _Files(StaticFiles):
    """The page's files, asked for anew after an upgrade."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """Return a file that a browser may keep but must ask about."""
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _json(answer: models.Model) -> Response:
    """Return an answer; it was checked as it was made. NaN becomes null."""
    return _encoded(answer.model_dump_json())


def _encoded(answer: str) -> Response:
    return Response(answer, media_type="application/json", headers={"Cache-Control": "no-store"})


@lru_cache(maxsize=16)
def _stream_page(page: StreamPage) -> str:
    """Return a page of streams as JSON; once for all who look at the same one."""
    rows = [models.Stream.model_validate(stream_fields(row)) for row in page.streams]
    return models.Streams(streams=rows, total=page.total, note=page.note).model_dump_json()


def _unknown(name: str) -> HTTPException:
    return HTTPException(404, f"there is no stream {name!r:.200}: /api/v1/streams?q= finds names by any part of them")


def _error(code: int, text: str, headers: Any = None) -> Response:
    return JSONResponse({"error": text}, code, headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException)  # noqa: S101 - as it is registered, and for mypy
    text = str(error.detail)
    if error.status_code == 404 and text == "Not Found":
        text = f"nothing here; {API}/openapi.json says what there is"
    return _error(error.status_code, text, error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - likewise
    found = [f"{'.'.join(str(part) for part in one['loc'][1:]) or 'the body'}: {one['msg']}" for one in error.errors()]
    return _error(422, "; ".join(found[:5]))


async def _busy(_: Request, error: Exception) -> Response:
    return _error(503, str(error), {"Retry-After": "1"})


async def _unavailable(_: Request, error: Exception) -> Response:
    return _error(503, str(error))
