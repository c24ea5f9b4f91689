"""What both demos run on: the user's settings on a state of their own, the page's address, readable alerts."""

from __future__ import annotations

import logging
import socket
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from connectors.batches import Alert
from connectors.decode.decoder import DecodeSettings
from connectors.http_server.settings import HttpSettings
from connectors.words import format_time
from detector.commands.demo_report import COLUMNS
from detector.config.settings import Settings

BOLD, PLAIN = "\033[1m", "\033[0m"


def demo_settings(settings: Settings, paths: Sequence[str], state: Path) -> Settings:
    """Return the user's settings with the demo's source and state; nothing is retrained, or written to files."""
    host, port = settings.http.host, settings.http.port
    if port == 0 or (settings.origin("http.port") is None and not _is_free(host, port)):
        port = _free_port(host)

    def section(name: str, **values: Any) -> Any:
        return getattr(settings, name).model_copy(update=values)

    return settings.model_copy(
        update={
            "decode": DecodeSettings(),
            "source": section("source", type="file", paths=tuple(paths)),
            "state": section("state", directory=state),
            "training": section("training", enabled=False),
            # without the password and the certificate that may be set there: the demo reads its own metrics
            "http": HttpSettings(host=host, port=port),
        }
    )


def page_address(settings: Settings) -> str:
    """Return where the page is, as a browser on this machine writes it; without the last slash."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.http.host, settings.http.host)  # noqa: S104 - not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.http.port}"


@contextmanager
def quiet_log(settings: Settings) -> Iterator[None]:
    """Leave the terminal to the demo, unless a level of logging was asked for."""
    if settings.origin("logging.level") is None:
        logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _is_free(host: str, port: int) -> bool:
    try:
        _listen(host, port).close()
    except OSError:
        return False
    return True


def _free_port(host: str) -> int:
    with _listen(host, 0) as listener:
        return int(listener.getsockname()[1])


def _listen(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


class StatelessSink:
    """A sink that keeps nothing, and so has nothing to restore."""

    full = False

    def flush(self) -> None:
        """Do nothing."""

    def position(self) -> dict[str, int]:
        """Return nothing."""
        return {}

    def restore(self, position: Mapping[str, int]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class DemoTerminal(StatelessSink):
    """An alert sink that prints alerts as they fire, two lines each, within COLUMNS."""

    def __init__(self) -> None:
        self._form = "{:1} {:16}  {:40}  {:8}  {:25}"
        head = self._form.format("", "when (UTC)", "stream", "channel", "so rare")
        tqdm.write(f"{head}\n{'-' * len(head)}", file=sys.stdout)

    def write(self, alerts: Sequence[Alert]) -> None:
        """Print those that fire."""
        for alert in alerts:
            if alert.status == "firing":
                tqdm.write(self._row(alert), file=sys.stdout)

    def _row(self, alert: Alert) -> str:
        critical = alert.severity == "critical" and sys.stdout.isatty()
        row = self._form.format(
            "!" if alert.severity == "critical" else "",
            format_time(alert.started_at)[:16],
            alert.stream,
            alert.channel,
            alert.return_period,
        ).rstrip()
        found = textwrap.fill(alert.summary, COLUMNS, initial_indent=20 * " ", subsequent_indent=20 * " ")
        return f"{BOLD if critical else ''}{row}{PLAIN if critical else ''}\n{found}"
