"""What the settings ask of the engine: its limits and rules, and the device that it computes on."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path

from detector.config.settings import Settings, SettingsError
from detector.engine.engine import EngineSettings
from detector.scoring.incidents import AlertRules


def engine_settings(settings: Settings, memory_bytes: int = 0) -> EngineSettings:
    """Return what of the settings the engine must know; `memory_bytes` is what states may take, 0: no limit."""
    alerting, processing = settings.alerting, settings.processing
    return EngineSettings(
        max_streams=settings.state.max_streams,
        memory_bytes=memory_bytes,
        threads=settings.compute.threads or len(os.sched_getaffinity(0)),
        keep_late=processing.late == "score",
        keep_duplicates=processing.duplicates == "score",
        muted_streams=tuple(alerting.muted_streams),
        rules=AlertRules(
            alerts_per_stream_per_week=alerting.alerts_per_stream_per_week,
            fixed_threshold=math.nan if alerting.threshold is None else alerting.threshold,
            direction={"above": 1, "below": -1, "both": 0}[alerting.direction],
            min_deviation_absolute=alerting.min_deviation_absolute,
            min_deviation_relative=alerting.min_deviation_relative,
            min_duration_seconds=alerting.min_duration_seconds,
            critical_above_threshold=alerting.critical_above_threshold,
            flag_repeats=alerting.repeated_anomalies == "flag",
        ),
    )


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
