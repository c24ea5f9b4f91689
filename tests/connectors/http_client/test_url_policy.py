"""Which addresses a webhook may be sent to: the allow-list, and the check when the connection is made."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from connectors.http_client.post import HttpPoster
from connectors.http_client.url_policy import TargetRefusedError, Targets, parse_url
from connectors.notify.dispatcher import Dispatcher
from connectors.notify.settings import ReceiverSettings
from tests.connectors.notify.support import alert

METADATA = "169.254.169.254"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def taken(server: socket.socket) -> bool:
    """Whether somebody has connected."""
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::127.0.0.1", "loopback"),
        ("2002:7f00:1::", "loopback"),
        ("10.1.2.3", "private"),
        ("172.16.0.1", "private"),
        ("192.168.1.1", "private"),
        ("100.64.1.1", "private"),
        ("fd00::1", "private"),
        ("64:ff9b::10.1.2.3", "private"),
        (METADATA, "link-local"),
        ("::ffff:169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("0.1.2.3", "reserved"),
        ("192.0.0.170", "reserved"),
        ("192.0.2.1", "reserved"),
        ("192.88.99.1", "reserved"),
        ("198.18.0.1", "private"),
        ("198.51.100.1", "reserved"),
        ("203.0.113.1", "reserved"),
        ("240.0.0.1", "reserved"),
        ("::ffff:0:10.1.2.3", "private"),
        ("::ffff:0:8.8.8.8", "reserved"),
        ("::8.8.8.8", "reserved"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("64:ff9b:1::10.1.2.3", "reserved"),
        ("64:ff9b:1:a9fe:a9:fe00::", "reserved"),
        ("100::1", "reserved"),
        ("100:0:0:1::1", "reserved"),
        ("2001::1", "reserved"),
        ("2001:0:4136:e378:8000:63bf:f5fe:fdfc", "reserved"),
        ("2001:2::1", "reserved"),
        ("2001:10::1", "reserved"),
        ("2001:20::1", "reserved"),
        ("2001:1ff::1", "reserved"),
        ("2001:db8::1", "reserved"),
        ("2002:a9fe:a9fe::", "link-local"),
        ("2002:808:808::", "reserved"),
        ("3ffe::1", "reserved"),
        ("3fff::1", "reserved"),
        ("3fff:fff:ffff::1", "reserved"),
        ("5f00::1", "reserved"),
        ("4000::1", "reserved"),
        ("fec0::1", "private"),
        ("feff::1", "private"),
        ("100.100.100.200", "a cloud's metadata service"),
        ("168.63.129.16", "a cloud's metadata service"),
        ("192.0.0.192", "a cloud's metadata service"),
        ("fd00:ec2::254", "a cloud's metadata service"),
        ("fd20:ce::254", "a cloud's metadata service"),
        ("::ffff:168.63.129.16", "a cloud's metadata service"),
    ],
)
def test_private_and_loopback_addresses_are_refused_unless_listed(address: str, kind: str) -> None:
    refusal = Targets(()).refuses("hook.example", ip_address(address))
    assert refusal is not None
    assert f"hook.example at {ip_address(address)} is {kind}: refused unless" in refusal
    assert "allowed_hosts" in refusal
    assert Targets((address,)).refuses("hook.example", ip_address(address)) is None
    by_name = Targets(("hook.example",)).refuses("hook.example", ip_address(address))
    assert (by_name is None) == (kind in {"loopback", "private"})


@pytest.mark.parametrize(
    "address",
    [
        "93.184.215.14",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "100.128.0.1",
        "192.31.196.1",
        "2001:200::1",
    ],
)
def test_public_addresses_are_allowed_when_nothing_is_listed(address: str) -> None:
    assert Targets(()).refuses("hook.example", ip_address(address)) is None


def test_once_something_is_listed_everything_else_is_refused() -> None:
    targets = Targets(("hooks.example.com", "10.1.2.0/24"))
    public, inside, outside = map(ip_address, ("93.184.215.14", "10.1.2.200", "10.1.3.1"))
    assert targets.refuses("hooks.example.com", public) is None
    assert targets.refuses("HOOKS.example.com.", public) is None
    assert targets.refuses("other.example.com", inside) is None
    for host, address in (("other.example.com", public), ("other.example.com", outside), ("example.com", public)):
        assert "neither is listed in allowed_hosts" in str(targets.refuses(host, address))


@pytest.mark.parametrize(
    "entry", ["http://example.com", "example.com:443", "example.com/hook", "", "*.example.com", "10.0.0.1/8", "1.2.3"]
)
def test_an_invalid_list_entry_is_refused_at_start(entry: str) -> None:
    with pytest.raises(
        ValidationError, match=r"receivers\.NAME\.allowed_hosts: .* is no host name, address or network"
    ):
        ReceiverSettings.model_validate({"allowed_hosts": [entry]})


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "localhost", "LOCALHOST.", "a.localhost", "192.168.0.7", METADATA, "[::ffff:10.0.0.1]"],
)
def test_a_url_of_a_private_address_is_refused_at_start_unless_listed(host: str) -> None:
    with pytest.raises(
        ValidationError, match=r"receivers\.NAME\.url: .* refused unless .* listed in receivers\.NAME\.allowed_hosts"
    ) as refused:
        ReceiverSettings.model_validate({"url": f"http://{host}/T0KEN"})
    assert "T0KEN" not in str(refused.value)
    ReceiverSettings.model_validate({"url": f"http://{host}/T0KEN", "allowed_hosts": [host.strip("[]")]})


def test_a_url_whose_host_is_not_listed_is_refused_at_start() -> None:
    with pytest.raises(
        ValidationError, match=r"the host hooks\.example is not listed in receivers\.NAME\.allowed_hosts"
    ):
        ReceiverSettings.model_validate({"url": "https://hooks.example/x", "allowed_hosts": ["other.example"]})


@pytest.mark.parametrize("host", ["2130706433", "0x7f.0.0.1", "127.1", "0177.0.0.1"])
def test_a_name_that_resolves_to_loopback_is_refused_when_connecting(
    host: str, listening: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: list[str] = []
    settings = {"tell": "alerts", "url": f"http://{host}:{listening.getsockname()[1]}/", "retry_base_seconds": 0.01}
    sink = Dispatcher(
        {"hook": ReceiverSettings.model_validate(settings)},
        tmp_path,
        on_delivery=lambda name, outcome: outcomes.append(outcome),
    )
    sink.write([alert()])
    deadline = time.monotonic() + 240
    while len(outcomes) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    sink.close()
    assert set(outcomes) == {"retried"}  # it waits in the outbox: the name, or the list, may be mended
    assert not taken(listening)
    assert caplog.text.count(f"{host} at 127.0.0.1 is loopback: refused") == 1


def connect(targets: Targets, host: str, port: int) -> socket.socket:
    poster = HttpPoster(host, port, None, lambda address: targets.refuses(host, address))
    return poster.connect(time.monotonic() + 240.0)


def test_a_name_is_resolved_once_and_the_checked_address_is_used(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = listening.getsockname()
    answers = [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", place)]]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: answers.pop())  # a second question fails
    connect(Targets(("rebinding.example",)), "rebinding.example", 1).close()
    assert taken(listening)


def test_only_the_allowed_ones_of_several_addresses_are_tried(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = listening.getsockname()[1]

    def answer(*hosts: str) -> None:
        found: Any = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: found)

    answer(METADATA, "127.0.0.1")
    connect(Targets(("127.0.0.0/8",)), "two.example", port).close()
    assert taken(listening)
    answer(METADATA, "127.0.0.1")
    with pytest.raises(TargetRefusedError, match=r"169\.254\.169\.254.*127\.0\.0\.1"):
        connect(Targets(()), "two.example", port)
    assert not taken(listening)


def test_urls_of_many_forms_are_parsed() -> None:
    assert str(parse_url("https://example.org/x")) == "https://example.org:443"
    assert str(parse_url("http://[::1]:8080/x?y=z")) == "http://[::1]:8080"
    assert parse_url("http://bücher.example").host == "xn--bcher-kva.example"
    assert parse_url("http://h/a b".replace(" ", "%20") + "/ü?q=ä&r=1").target == "/a%20b/%C3%BC?q=%C3%A4&r=1"
    assert parse_url("http://h").target == "/"
