"""What the settings ask of the engine: its limits and rules, the device that it computes on, the memory for states.

Memory is what is set, or a share of what the machine or the process's cgroup has. The process needs some more
(docs/limits.md): the interpreter with torch and compiled kernels, a batch on its way, a retraining.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
from pathlib import Path
from typing import NamedTuple

from detector.config.rules import in_effect
from detector.config.sections import MIN_STATE_BYTES, AlertingSettings
from detector.config.settings import Settings, SettingsError
from detector.engine.engine import EngineSettings
from detector.scoring.incidents import AlertRules
from detector.scoring.rules import StreamRule
from detector.state.stream_states import StreamStates
from detector.state.tables import machine_bytes

logger = logging.getLogger(__name__)

# What a daemon has without a stream, 340 MB, and what comes on top while it retrains and takes in the largest batches
BASE_BYTES = 900_000_000
SHARE = 0.6  # of the rest; what is left is for the page cache under the store, and what the allocator keeps
CHANGELOG_SHARE = 0.4  # a transaction's states are held compressed, at 30 % of their size, until it is committed
# A cgroup without a limit says the largest number that it has
UNLIMITED = 1 << 60


def engine_settings(settings: Settings, memory_bytes: int = 0) -> EngineSettings:
    """Return what of the settings the engine must know; `memory_bytes` is what states may take, 0: no limit."""
    alerting, processing = settings.alerting, settings.processing
    return EngineSettings(
        max_streams=settings.state.max_streams,
        memory_bytes=memory_bytes,
        threads=settings.compute.threads or len(os.sched_getaffinity(0)),
        keep_late=processing.late == "score",
        keep_duplicates=processing.duplicates == "score",
        timezone=settings.decode.timezone,
        rules=alert_rules(alerting),
        by_pattern=stream_rules(settings),
    )


def alert_rules(alerting: AlertingSettings) -> AlertRules:
    """Return what section [alerting] asks of every stream's alerts."""
    return AlertRules(
        alerts_per_stream_per_week=alerting.alerts_per_stream_per_week,
        fleet_alerts_per_day=alerting.fleet_alerts_per_day,
        fixed_threshold=math.nan if alerting.threshold is None else alerting.threshold,
        direction={"above": 1, "below": -1, "both": 0}[alerting.direction],
        min_deviation_absolute=alerting.min_deviation_absolute,
        min_deviation_relative=alerting.min_deviation_relative,
        min_duration_seconds=alerting.min_duration_seconds,
        critical_above_threshold=alerting.critical_above_threshold,
        silence=alerting.silence,
        min_silence_seconds=alerting.min_silence_seconds,
        max_silence_seconds=math.inf if alerting.max_silence_seconds is None else alerting.max_silence_seconds,
    )


def stream_rules(settings: Settings) -> tuple[StreamRule, ...]:
    """Return the rules as the engine takes them, each with all that holds for its streams."""
    timezone = settings.decode.timezone
    calendars = {name: of.calendar(name, timezone) for name, of in settings.calendars.items()}
    return tuple(
        StreamRule(
            rule.name,
            rule.streams,
            alert_rules(in_effect(rule, settings.alerting)),
            "" if rule.severity == "score" else rule.severity,
            rule.mute,
            tuple(calendars[name] for name in rule.quiet),
        )
        for rule in settings.rules
    )


def routes(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return the receivers that are told of a rule's alerts, by its name; empty: all that take them."""
    return {rule.name: rule.receivers for rule in settings.rules}


def device_of(settings: Settings) -> str:
    """Return the device to compute on. Raises SettingsError for one that is not there."""
    wanted = settings.compute.device
    if wanted == "cpu" or (wanted == "auto" and not _driver_is_there()):
        return "cpu"
    import torch  # noqa: PLC0415 - it takes seconds, which a machine without a GPU must not pay for the answer

    if torch.cuda.is_available():
        return "cuda" if wanted == "auto" else wanted
    if wanted == "auto":
        return "cpu"
    raise SettingsError([f"compute.device is {wanted!r}, but torch finds no CUDA device: set it to auto or cpu"])


def _driver_is_there() -> bool:
    """Whether this machine has what torch needs before anything else: NVIDIA's driver, or AMD's."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


class MemoryLimit(NamedTuple):
    """What states may take, and why."""

    state_bytes: int
    reason: str


def memory_limit(setting: int, *, changelog: bool, root: Path = Path("/")) -> MemoryLimit:
    """Return the limit: the setting where there is one, else what the machine and the cgroup allow.

    `root` is where /proc and /sys/fs/cgroup are looked for.
    """
    if setting:
        return MemoryLimit(setting, "state.memory_bytes")
    whole, of = machine_bytes(), "this machine"
    for limit in _cgroup_limits(root):
        if limit < whole:
            whole, of = limit, "its cgroup"
    share = CHANGELOG_SHARE if changelog else SHARE
    rest = round(share * (whole - BASE_BYTES))
    reason = f"{share:.0%} of what {of} has ({whole / 1e9:.1f} GB) beyond {BASE_BYTES / 1e9:.1f} GB"
    if rest < MIN_STATE_BYTES:
        return MemoryLimit(MIN_STATE_BYTES, f"the least that is possible: {of} has {whole / 1e9:.1f} GB")
    return MemoryLimit(rest, reason)


def log_capacity(limit: MemoryLimit, states: StreamStates, usable: float, most: int) -> None:
    """Log how many streams fit; `usable` is the share of the limit that streams fill before some are evicted."""
    one, four = (int(usable * limit.state_bytes / states.stream_bytes(lanes)) for lanes in (1, 4))
    logger.info(
        "states may take %.2f GB of memory (%s): some %d streams of one feature or %d of four; state.max_streams is %d",
        *(limit.state_bytes / 1e9, limit.reason, one, four, most),
    )


def _cgroup_limits(root: Path) -> list[int]:
    """Return the memory limits of the cgroups that the process is in, of version 1 and 2, up to the topmost."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts, name = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"], "memory.max"
        elif "memory" in controllers.split(","):
            mounts, name = [root / "sys/fs/cgroup/memory"], "memory.limit_in_bytes"
        else:
            continue
        for mount in mounts:
            # in a container the path may be the host's, and the mount the container's own cgroup
            folder = mount / path.lstrip("/")
            for place in {mount, folder, *(parent for parent in folder.parents if mount in parent.parents)}:
                try:
                    text = (place / name).read_text().strip()
                except OSError:
                    continue
                if text.isdigit() and int(text) < UNLIMITED:
                    limits.append(int(text))
    return limits
