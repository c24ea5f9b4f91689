"""systemd's side of the socket, played by a real datagram socket."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector.service.health import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A listening socket, and NOTIFY_SOCKET for it."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.settimeout(240)
    if request.param == "path":
        name = str(tmp_path / "notify")
        listening.bind(name)
    else:
        name = f"@longwatch-{uuid.uuid4().hex}"
        listening.bind("\0" + name[1:])
    yield listening, name
    listening.close()


def test_systemd_is_notified_from_start_to_stop(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    assert listening.recv(1000) == b"READY=1\nSTATUS=scoring"
    notifier.stopping()
    assert listening.recv(1000) == b"STOPPING=1\nSTATUS=saving"
    notifier.close()


def received(listening: socket.socket) -> list[bytes]:
    listening.setblocking(False)
    messages = []
    while True:
        try:
            messages.append(listening.recv(1000))
        except BlockingIOError:
            return messages


def test_the_watchdog_is_fed_at_half_its_interval(
    manager: tuple[socket.socket, str],
) -> None:
    listening, name = manager
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(environ)
    assert notifier.watchdog_interval_seconds == 0.2
    began = time.monotonic()
    beats: list[bytes] = []
    while len(beats) < 3:
        notifier.beat()
        beats += received(listening)
        time.sleep(0.002)
    assert set(beats) == {b"WATCHDOG=1"}
    assert time.monotonic() - began >= (len(beats) - 1) * 0.2
    notifier.close()


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}])
def test_a_watchdog_of_another_process_is_not_fed(manager: tuple[socket.socket, str], environ: dict[str, str]) -> None:
    listening, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name} | environ)
    for _ in range(3):
        notifier.beat()
    assert received(listening) == []
    notifier.close()


def test_without_systemd_nothing_happens() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "1"})
    notifier.ready()
    notifier.beat()
    notifier.stopping()
    notifier.close()


def test_an_unreachable_service_manager_is_logged_once_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    name = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(name)
        for _ in range(2000):  # more than its queue holds, and nobody makes room
            notifier.ready()
    assert len(caplog.records) == 1
    assert "its watchdog may end the daemon" in caplog.text
    notifier.close()
