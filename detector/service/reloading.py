"""Settings that change while the daemon runs: rules, receivers, what [alerting] asks; between two turns.

Asked for by SIGHUP, over the API, or by a file of settings that has changed. A checkpoint before and one after make the
change a point in the stream. What cannot be used changes nothing, and what needs a restart is named.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from detector.checkpointing.checkpointer import Checkpointer
from detector.config.changes import Changes, merge
from detector.config.settings import Settings, SettingsError
from detector.observability.metrics import Metrics
from detector.service.health import Notifier

logger = logging.getLogger(__name__)

_Mark = tuple[int, ...] | None
LOOK_SECONDS = 1.0  # between two looks at the file, and two tries where no checkpoint can be made


class Reloading:
    """Reads settings again, and lets what may change hold. For the daemon's thread."""

    def __init__(
        self,
        settings: Settings,
        hold: Callable[[Settings], None],
        checkpointer: Checkpointer,
        metrics: Metrics,
        notifier: Notifier,
    ) -> None:
        """Begin with `settings`; `hold` lets others hold, as far as they may."""
        self.load: Callable[[], Settings] | None = None  # reads the settings again; None: they cannot be
        self.file: Path | None = None  # that is looked at for changes
        self.settings = settings  # that hold; for any thread
        self._hold, self._checkpointer = hold, checkpointer
        self._metrics, self._notifier = metrics, notifier
        self._due = 0.0  # monotonic, s
        self._asked: list[Future[Changes]] = []  # also by other threads
        self._read: _Mark = None  # of the file as it was read
        self._seen: _Mark = None  # at the last look
        metrics.config_last_reload_successful.set(1.0)
        metrics.config_last_reload_success_timestamp.set_to_current_time()

    def watch(self, load: Callable[[], Settings], file: Path | None) -> None:
        """Read settings with `load` when asked, and when `file` has changed."""
        self.load, self.file, self._read = load, file, _mark(file)

    def ask(self) -> Future[Changes] | None:
        """Read the settings again within a turn, soon; for any thread. None: they cannot be read again.

        The future has SettingsError or ValueError where the settings are refused.
        """
        if self.load is None:
            return None
        self._asked.append(future := Future[Changes]())
        return future

    def advance(self) -> None:
        """Do what was asked for, within a turn; and see whether the file has changed."""
        if self.load is None or (now := time.monotonic()) < self._due:
            return
        before, self._seen = self._seen, _mark(self.file)
        # the same in two looks: it may be in the middle of being written, or of being replaced
        if self._seen is not None and self._seen == before != self._read and not self._asked:
            self.ask()
        if not self._asked:
            self._due = now + LOOK_SECONDS
            return
        self._notifier.reloading()
        asked, self._read = self._asked.copy(), self._seen
        if self._reload(self.load, asked):
            del self._asked[: len(asked)]
        else:
            self._due = now + LOOK_SECONDS
        self._notifier.ready()

    def _reload(self, load: Callable[[], Settings], asked: list[Future[Changes]]) -> bool:
        """Return whether that is done, with the new settings or the old ones; False: it has to be tried again."""
        try:
            new, changes = merge(self.settings, load())
        except (SettingsError, ValueError) as error:
            self._metrics.config_reloads["refused"].inc()
            self._metrics.config_last_reload_successful.set(0.0)
            logger.error("settings were read again and refused, the old ones hold: %s", error)  # noqa: TRY400
            for future in asked:
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
            return True
        if not self._checkpointer.commit():
            logger.warning("settings are read again once a checkpoint can be made")
            return False
        self._hold(new)
        self.settings = new
        self._checkpointer.commit()
        self._metrics.config_reloads["applied"].inc()
        self._metrics.config_last_reload_successful.set(1.0)
        self._metrics.config_last_reload_success_timestamp.set_to_current_time()
        changed = f"changed: {', '.join(changes.applied)}" if changes.applied else "nothing changed"
        logger.info("settings were read again: %s", changed)
        if changes.needs_restart:
            logger.warning("changed as well, and needs a restart: %s", ", ".join(changes.needs_restart))
        for future in asked:
            if future.set_running_or_notify_cancel():
                future.set_result(changes)
        return True


def _mark(file: Path | None) -> _Mark:
    """Return what changes as a file changes or is replaced, also behind links; None: there is none."""
    try:
        found = file.stat() if file is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
