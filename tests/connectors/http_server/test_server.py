"""The HTTP server over real sockets."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pydantic import ValidationError

from connectors.http_server.server import HttpError, HttpServer, HttpSettings


class Daemon:
    """What the server asks."""

    def __init__(self) -> None:
        self.live: tuple[bool, str] = (True, "")
        self.ready: tuple[bool, str] = (False, "restoring 3 of 7 partitions")


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("requests_total", 'Things\nthat "happened" \\ so far.', registry=registry).inc(3)
    Counter("others_total", "Other things.", registry=registry)
    return registry


@pytest.fixture
def server(daemon: Daemon, registry: CollectorRegistry) -> Iterator[HttpServer]:
    server = HttpServer(HttpSettings(port=0), registry, lambda: daemon.live, lambda: daemon.ready)
    server.start()
    yield server
    server.close()


def ask(
    server: HttpServer, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=240)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def test_metrics_are_served_in_the_text_format(server: HttpServer) -> None:
    status, headers, body = ask(server, "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in parse_text(body.decode())}
    assert families["requests"].samples[0].value == 3


def test_openmetrics_and_gzip_are_used_when_accepted(server: HttpServer) -> None:
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "Accept-Encoding": "gzip"}
    _, headers, body = ask(server, "/metrics", headers=accept)
    assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert headers["content-encoding"] == "gzip"
    text = gzip.decompress(body).decode()
    assert text.endswith("# EOF\n")
    assert "requests" in {family.name for family in parse_openmetrics(text)}


def test_a_scrape_can_select_metrics_by_name(server: HttpServer) -> None:
    _, _, body = ask(server, "/metrics?name[]=requests_total")
    assert b"requests_total 3.0" in body
    assert b"others" not in body


@pytest.mark.parametrize("wanted", ["application/openmetrics-text", "text/plain"])
@pytest.mark.parametrize("version", ["1.0.0-rc1", "x", "1.x", '"1.0.0"', "1..0", "99.0", "²", "1.0.0.0"])
def test_an_openmetrics_version_we_do_not_write_falls_back_to_text(
    server: HttpServer, wanted: str, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, headers, body = ask(server, "/metrics", headers={"Accept": f"{wanted};version={version}, */*"})
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "requests" in {family.name for family in parse_text(body.decode())}
    assert not caplog.records


def test_every_accept_header_is_considered(server: HttpServer) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\nAccept: application/openmetrics-text\r\n\r\n"
    assert b"content-type: application/openmetrics-text; version=1.0.0" in raw(server, request)


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:9464/livez", "HTTP://longwatch.example/livez?x=y", "https://[::1]/livez", "//livez", "/%6civez"],
)
def test_every_form_of_request_target_is_accepted(server: HttpServer, target: str) -> None:
    assert b" 200 OK\r\n" in raw(server, f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def test_a_target_without_path_is_the_index_and_a_malformed_one_is_400(server: HttpServer) -> None:
    assert b"<h1>longwatch</h1>" in raw(server, b"GET http://localhost:9464 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 400 Bad Request\r\n" in raw(server, b"GET http://[::1/livez HTTP/1.1\r\nHost: x\r\n\r\n")


def test_health_pages_say_ok_or_the_reason(server: HttpServer, daemon: Daemon) -> None:
    assert ask(server, "/livez")[::2] == (200, b"ok\n")
    status, headers, body = ask(server, "/readyz")
    assert (status, body) == (503, b"restoring 3 of 7 partitions\n")
    assert headers["cache-control"] == "no-store"
    daemon.ready = (True, "")
    daemon.live = (False, "the loop has not come round for 61 s")
    assert ask(server, "/readyz")[0] == 200
    assert ask(server, "/livez")[::2] == (503, b"the loop has not come round for 61 s\n")


def test_a_health_check_that_raises_fails_with_the_traceback_only_in_the_log(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> tuple[bool, str]:
        raise RuntimeError("secret detail")

    server = HttpServer(HttpSettings(port=0), registry, broken, broken)
    server.start()
    try:
        status, _, body = ask(server, "/livez")
        assert status == 500
        assert b"secret detail" not in body
        assert "secret detail" in caplog.text
        assert ask(server, "/metrics")[0] == 200
    finally:
        server.close()


def test_the_index_links_every_page_and_other_paths_are_404(server: HttpServer) -> None:
    _, headers, body = ask(server, "/")
    assert headers["content-type"].startswith("text/html")
    for page in ("metrics", "livez", "readyz"):
        assert f'<a href="{page}">'.encode() in body
        assert ask(server, f"/{page}")[0] != 404
    assert ask(server, "/nothing")[0] == 404
    assert ask(server, "/../etc/passwd")[0] == 404


def test_head_answers_like_get_without_the_body(server: HttpServer) -> None:
    status, headers, body = ask(server, "/livez", "HEAD")
    assert (status, body) == (200, b"")
    assert headers["content-length"] == "3"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_only_get_and_head_are_allowed(server: HttpServer, method: str) -> None:
    status, headers, _ = ask(server, "/metrics", method)
    assert status == 405
    assert headers["allow"] == "GET, HEAD"


def test_answers_do_not_reveal_the_server_software(server: HttpServer) -> None:
    for path, method in (("/", "GET"), ("/nothing", "GET"), ("/metrics", "PUT")):
        _, headers, body = ask(server, path, method)
        assert "server" not in headers
        assert b"Python" not in body


def raw(server: HttpServer, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=240) as client:
        answer = b""
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while some := client.recv(65_536):
                answer += some
        except TimeoutError:
            raise
        except OSError:  # reset, broken or no longer connected: the server may close while we still talk
            pass
        return answer


@pytest.mark.parametrize(
    "data", [b"", b"\r\n\r\n", b"\x16\x03\x01\x02\x00" * 50, b"GET", b"GET /\r\n\r\n", b"A B C D\r\n\r\n"]
)
def test_malformed_requests_do_not_harm_the_server(server: HttpServer, data: bytes) -> None:
    raw(server, data)
    assert ask(server, "/livez")[0] == 200


def test_an_endless_request_is_cut_off(server: HttpServer) -> None:
    answer = raw(server, b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n")
    assert not answer or answer.startswith(b"HTTP/1.1 400 "), "it may be hung up on before it reads why"
    assert ask(server, "/livez")[0] == 200


Hold = Callable[[int], list[socket.socket]]


@pytest.fixture
def hold(server: HttpServer) -> Iterator[Hold]:
    """Opens connections and holds them; the server may have hung up on some of them."""
    held: list[socket.socket] = []

    def open_more(count: int) -> list[socket.socket]:
        more = [socket.create_connection(("127.0.0.1", server.port), timeout=240) for _ in range(count)]
        held.extend(more)
        return more

    yield open_more
    for client in held:
        client.close()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def send(clients: list[socket.socket], data: bytes) -> None:
    for client in clients:
        with contextlib.suppress(OSError):  # one that has lost its place
            client.sendall(data)


# What is sent at once, and what comes later, a byte now and then
FLOODS = {
    "half-open": (b"", b""),
    "slow": (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n"),
    "unread": (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b""),
    "kept alive": (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n", b""),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_probes_are_answered_when_all_connections_are_busy(
    server: HttpServer, registry: CollectorRegistry, hold: Hold, flood: str
) -> None:
    many = Counter("many_total", "Makes a page that fits into no socket's buffer.", ["label"], registry=registry)
    for number in range(6_000 if flood == "unread" else 0):
        many.labels("x" * 1_000 + str(number))
    first, later = FLOODS[flood]
    flooding: list[socket.socket] = []
    for _ in range(20):
        flooding += (more := hold(20))  # 40 of them were enough
        send(more, first)
        send(flooding, later)
        for path in ("/livez", "/readyz"):
            assert ask(server, path)[0] in {200, 503}


def test_clients_that_send_slowly_are_disconnected(
    server: HttpServer, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.http_server.protocol.REQUEST_SECONDS", 0.5)
    slow = hold(8)
    send(slow, b"GET /livez HTTP/1.1\r\n")
    for client in slow:
        assert client.recv(1) == b"", "within its 20 s"


def test_clients_that_do_not_read_their_answer_are_disconnected(
    server: HttpServer, registry: CollectorRegistry, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.http_server.protocol.REPLY_SECONDS", 0.5)
    many = Counter("many_total", "Makes a page that fits into no socket's buffer.", ["label"], registry=registry)
    for number in range(6_000):
        many.labels("x" * 1_000 + str(number))
    before = descriptors()
    unread = hold(8)
    send(unread, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    deadline = time.monotonic() + 240
    while descriptors() > before + len(unread):  # its own ends are still open
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_many_concurrent_requests_are_answered(server: HttpServer) -> None:
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(server, "/metrics")[0])) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert answers == [200] * 16


def test_a_port_in_use_is_a_one_line_error(server: HttpServer, registry: CollectorRegistry) -> None:
    second = HttpServer(HttpSettings(port=server.port), registry, lambda: (True, ""), lambda: (True, ""))
    with pytest.raises(HttpError) as refused:
        second.start()
    expected = f"cannot listen on http.host = 127.0.0.1, http.port = {server.port}: Address already in use; set them"
    assert str(refused.value).startswith(expected)
    assert "\n" not in str(refused.value)
    second.close()


def test_an_address_of_another_machine_is_a_one_line_error(registry: CollectorRegistry) -> None:
    server = HttpServer(HttpSettings(host="192.0.2.1", port=0), registry, lambda: (True, ""), lambda: (True, ""))
    with pytest.raises(HttpError, match=r"http\.host = 192\.0\.2\.1, http\.port = 0: Cannot assign"):
        server.start()


def test_close_frees_the_port_and_ends_all_threads(registry: CollectorRegistry) -> None:
    before = threading.active_count()
    server = HttpServer(HttpSettings(port=0), registry, lambda: (True, ""), lambda: (True, ""))
    server.start()
    port = server.port
    ask(server, "/livez")
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=240)
    again = HttpServer(HttpSettings(port=port), registry, lambda: (True, ""), lambda: (True, ""))
    again.start()
    again.close()
    deadline = time.monotonic() + 240
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ipv6_is_served(registry: CollectorRegistry) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    server = HttpServer(HttpSettings(host="::1", port=0), registry, lambda: (True, ""), lambda: (True, ""))
    try:
        server.start()
    except HttpError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    try:
        connection = http.client.HTTPConnection("::1", server.port, timeout=240)
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        server.close()


def test_requests_are_not_logged(server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    caplog.clear()
    ask(server, "/metrics")
    ask(server, "/nothing")
    raw(server, b"A B C D\r\n\r\n")
    assert caplog.text == ""


@pytest.mark.parametrize("wrong", [{"port": 70_000}, {"port": -1}, {"host": ""}, {"prot": 9464}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HttpSettings(**wrong)
