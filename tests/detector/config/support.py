"""Settings that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.config.settings import SettingsError, load_settings


def errors_of(config: Path | None = None, environment: dict[str, str] | None = None, *overrides: str) -> list[str]:
    with pytest.raises(SettingsError) as reported:
        load_settings(config, environment or {}, overrides)
    assert all("\n" not in line for line in reported.value.errors)
    assert str(reported.value) == "\n".join(reported.value.errors)
    return reported.value.errors
