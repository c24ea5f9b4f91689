"""An app behind the HTTP port: loaded as it is asked for, bounded like everything else, and never in a probe's way."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from connectors.http_server import connections
from connectors.http_server.access import Access, Caller
from connectors.http_server.protocol import SECURITY_HEADERS
from connectors.http_server.server import HttpServer
from connectors.http_server.settings import HttpSettings

PATIENCE = 240.0
OWN, TOKEN, PASSWORD = "the-daemon's-own-token", "a-token-of-the-settings", "a-long-password"


class App:
    """What tests ask for: an echo, a page that never comes, a stream."""

    def __init__(self) -> None:
        self.made = 0
        self.hang = threading.Event()
        self.streams = 0

    def __call__(self, access: Access) -> Starlette:
        self.made += 1
        self.access = access
        return Starlette(
            routes=[
                Route("/echo", self.echo, methods=["GET", "POST"]),
                Route("/hang", self.hanging),
                Route("/stream", self.stream),
                Route("/fail", self.fail),
            ]
        )

    async def echo(self, request: Request) -> JSONResponse:
        return JSONResponse({"caller": request.state.caller.value, "body": (await request.body()).decode()})

    async def hanging(self, _: Request) -> JSONResponse:
        await asyncio.to_thread(self.hang.wait, PATIENCE)
        return JSONResponse({})

    async def stream(self, request: Request) -> StreamingResponse:
        async def events() -> Any:
            self.streams += 1
            try:
                while True:
                    yield b"data: " + b"x" * int(request.query_params.get("size", "1")) + b"\n\n"
                    await asyncio.sleep(0.01)
            finally:
                self.streams -= 1

        return StreamingResponse(events(), media_type="text/event-stream")

    async def fail(self, _: Request) -> JSONResponse:
        raise RuntimeError("secret detail")


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def server(app: App) -> Iterator[HttpServer]:
    yield from served(app)


def served(app: App, **settings: Any) -> Iterator[HttpServer]:
    chosen = HttpSettings.model_validate({"port": 0} | settings)
    fine = lambda: (True, "")
    server = HttpServer(chosen, CollectorRegistry(), fine, fine, app=app, own_token=OWN)
    server.start()
    yield server
    app.hang.set()
    server.close()


def connected(server: HttpServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)


def ask(server: HttpServer, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Any:
    connection = connected(server)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_the_app_is_loaded_once_and_not_before_it_is_asked_for(server: HttpServer, app: App) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert ask(server, path)[0] == 200
    assert app.made == 0
    threads = [threading.Thread(target=ask, args=(server, "/echo")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert app.made == 1


def test_probes_and_metrics_are_answered_while_the_app_hangs(server: HttpServer, app: App) -> None:
    waiting = [connected(server) for _ in range(20)]
    for connection in waiting:
        connection.request("GET", "/hang")
    for path in ("/livez", "/readyz", "/metrics"):
        assert ask(server, path)[0] == 200
    app.hang.set()
    for connection in waiting:
        assert connection.getresponse().status == 200
        connection.close()


def test_a_connection_carries_one_request_after_another(server: HttpServer) -> None:
    connection, sockets = connected(server), set()
    for number in range(5):
        connection.request("POST", "/echo", f"body {number}")
        answer = connection.getresponse()
        assert json.loads(answer.read())["body"] == f"body {number}"
        sockets.add(connection.sock)
    connection.close()
    assert len(sockets) == 1


def test_requests_that_are_sent_at_once_are_answered_in_their_order(server: HttpServer) -> None:
    paths = ("/echo", "/livez", "/nothing")
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(b"".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths))
        answer = b""
        while b"404" not in answer:
            answer += client.recv(65_536)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"200", b"404"]


def test_a_body_that_comes_slowly_is_cut_off(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.http_server.protocol.REQUEST_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        deadline = time.monotonic() + PATIENCE
        client.settimeout(0.05)
        while time.monotonic() < deadline:
            try:
                client.sendall(b"x")
                if client.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("it was served for as long as it sent a byte now and then")
    assert ask(server, "/livez")[0] == 200


def test_a_reply_that_takes_too_long_is_given_up(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.http_server.protocol.REPLY_SECONDS", 0.5)
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(server, "/hang")


def test_a_stream_outlives_the_time_of_a_reply_while_its_client_reads(
    server: HttpServer, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.http_server.protocol.REPLY_SECONDS", 0.2)
    connection = connected(server)
    connection.request("GET", "/stream")
    answer = connection.getresponse()
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        assert answer.read1(100)
    connection.close()
    deadline = time.monotonic() + PATIENCE
    while app.streams:
        assert time.monotonic() < deadline, "its end is noticed"
        time.sleep(0.01)


def test_a_stream_whose_client_does_not_read_is_cut_off(
    server: HttpServer, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.http_server.protocol.REPLY_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(b"GET /stream?size=100000 HTTP/1.1\r\nHost: x\r\n\r\n")
        deadline = time.monotonic() + PATIENCE
        while not app.streams:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        while app.streams:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_streams_have_places_of_their_own_and_the_oldest_gives_way(
    server: HttpServer, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_STREAMS", 3)
    held = []
    for _ in range(5):
        held.append(connected(server))
        held[-1].request("GET", "/stream")
        assert held[-1].getresponse().read1(10)
    deadline = time.monotonic() + PATIENCE
    while app.streams != 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    for _ in range(5):  # streams take none of the others' places, nor lose their own to them
        assert ask(server, "/livez")[0] == 200
    assert app.streams == 3
    for connection in held:
        connection.close()


def test_closing_ends_streams_and_hanging_requests_at_once(app: App) -> None:
    serving = served(app)
    server = next(serving)
    stream, hanging = connected(server), connected(server)
    stream.request("GET", "/stream")
    assert stream.getresponse().read1(10)
    hanging.request("GET", "/echo")
    hanging.getresponse().read()
    with pytest.raises(StopIteration):
        next(serving)
    assert app.streams == 0


def test_every_answer_has_the_security_headers(server: HttpServer) -> None:
    for path, status in {"/livez": 200, "/metrics": 200, "/echo": 200, "/nothing": 404, "/fail": 500}.items():
        found, headers, body = ask(server, path)
        assert found == status, path
        assert b"secret detail" not in body
        for name, value in SECURITY_HEADERS:
            assert headers[name.decode()] == value.decode(), path
        assert "server" not in headers
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(b"nothing that is HTTP\r\n\r\n")
        answer = client.recv(65_536).lower()
    assert all(name in answer for name, _ in SECURITY_HEADERS)


# -- who asks ----------------------------------------------------------------------------------------------------------


def test_the_app_is_told_who_asks(app: App, caplog: pytest.LogCaptureFixture) -> None:
    for server in served(app, token=TOKEN):
        for token, caller in ((OWN, "token"), (TOKEN, "token"), ("wrong", "anyone"), ("", "anyone")):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            assert json.loads(ask(server, "/echo", **headers)[2])["caller"] == caller
    assert "requests with a wrong token, the last from 127.0.0.1" in caplog.text
    assert OWN not in caplog.text
    for server in served(app, username="u", password=PASSWORD):
        assert ask(server, "/echo")[0] == 401
        assert json.loads(ask(server, "/api/v1/status")[2]) == {"error": "a user name and password are needed here"}
        basic = "Basic dTphLWxvbmctcGFzc3dvcmQ="
        assert json.loads(ask(server, "/echo", Authorization=basic)[2])["caller"] == "password"
        assert json.loads(ask(server, "/echo", Authorization=f"Bearer {OWN}")[2])["caller"] == "token"


SAME = {"x-longwatch": "1", "host": "h:1"}


@pytest.mark.parametrize(
    ("caller", "headers", "status"),
    [
        (Caller.ANYONE, SAME, 401),
        (Caller.TOKEN, {}, None),
        (Caller.PASSWORD, {}, 403),
        (Caller.PASSWORD, {"x-longwatch": "0"}, 403),
        (Caller.PASSWORD, SAME, None),
        (Caller.PASSWORD, SAME | {"sec-fetch-site": "same-origin", "origin": "http://h:1"}, None),
        (Caller.PASSWORD, SAME | {"sec-fetch-site": "same-site"}, 403),
        (Caller.PASSWORD, SAME | {"sec-fetch-site": "cross-site"}, 403),
        (Caller.PASSWORD, SAME | {"sec-fetch-site": "none"}, 403),
        (Caller.PASSWORD, SAME | {"origin": "http://h:2"}, 403),
        (Caller.PASSWORD, SAME | {"origin": "null"}, 403),
        (Caller.PASSWORD, SAME | {"origin": "https://watch.example.com"}, None),
        (Caller.PASSWORD, SAME | {"origin": "https://evil.example.com"}, 403),
    ],
)
def test_who_may_change_something(caller: Caller, headers: dict[str, str], status: int | None) -> None:
    settings = HttpSettings.model_validate(
        {"username": "u", "password": PASSWORD, "external_url": "https://watch.example.com"}
    )
    refused = Access(settings, OWN).refusal(caller, Headers(headers))
    assert (refused[0] if refused else None) == status
