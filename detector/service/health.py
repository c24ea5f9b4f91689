"""Whether the loop turns and gets anywhere: for /livez, and for systemd."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

ALIVE_SECONDS = 60.0  # without a turn of the loop, after which /livez says so


class Health:
    """`beat` is for the loop, and calls `on_beat`; `live` may be asked by any thread. Times are monotonic, s."""

    def __init__(self, stalled_after_seconds: float, on_beat: Callable[[], None]) -> None:
        self._stalled_after, self._on_beat = stalled_after_seconds, on_beat
        self._beat_at = self._moved_at = time.monotonic()
        self._progress: object = None

    def beat(self) -> None:
        """Note that the loop turns."""
        self._beat_at = time.monotonic()
        self._on_beat()

    def watch(self, progress: object, *, waiting: bool) -> None:
        """Note how far the work has come, anything that can be compared, and whether any waits that could be done."""
        if not waiting or progress != self._progress:
            self._moved_at = time.monotonic()
        self._progress = progress

    def live(self) -> tuple[bool, str]:
        """Return whether the process does what it is there for, and what tells so."""
        now = time.monotonic()
        idle, stalled = now - self._beat_at, now - self._moved_at
        if stalled >= self._stalled_after:
            return False, f"events wait, and none was processed for {stalled:.0f} s (processing.stalled_after_seconds)"
        return idle < ALIVE_SECONDS, f"the loop last turned {idle:.1f} s ago"


class Notifier:
    """Sends state to systemd (sd_notify's protocol), to nobody where systemd did not start us.

    All methods return at once and never fail: the daemon's work does not hang on it.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]  # a name in the abstract name space
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        self._failure_logged = False
        # Half the deadline, as systemd advises: one beat may come late.
        self.watchdog_interval_seconds = _watchdog_usec(environ) / 2e6
        self._next_beat = 0.0

    def ready(self) -> None:
        """Say that start-up is over: the state is restored, the model loaded."""
        self._send("READY=1\nSTATUS=scoring")

    def reloading(self) -> None:
        """Say that settings are read again; `ready` follows."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def beat(self) -> None:
        """Say that the processing loop has advanced; call it once a round, it sends no more often than needed."""
        now = time.monotonic()
        if self.watchdog_interval_seconds and now >= self._next_beat:
            self._next_beat = now + self.watchdog_interval_seconds
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the stop has begun."""
        self._send("STOPPING=1\nSTATUS=saving")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._failure_logged:
                logger.warning(
                    "systemd could not be notified of %r: %s; its watchdog may end the daemon", message, error
                )
                self._failure_logged = True


def _watchdog_usec(environ: Mapping[str, str]) -> int:
    """Return the watchdog's deadline in us, 0 where none is kept on this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) if text.isascii() and text.isdigit() else 0
