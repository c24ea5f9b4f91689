"""What every section of settings has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

MAX_SECONDS = 9_000_000_000  # 285 years: what nanoseconds in 64 bits hold
MAX_DAYS = 100_000  # likewise


class Section(BaseModel):
    """A section of settings: unknown names are errors, numbers are finite, nothing changes after the start.

    `training.learn.settings.Learning`, which may not know this class, has the same configuration; a test compares.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
