"""What every section of settings has in common."""

from __future__ import annotations

import re
from collections.abc import Collection

from pydantic import BaseModel, ConfigDict

MAX_SECONDS = 9_000_000_000  # 285 years: what nanoseconds in 64 bits hold
MAX_DAYS = 100_000  # likewise
_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,30}[a-z0-9])?")


def check_names(section: str, names: Collection[str], most: int) -> None:
    """Raise ValueError where sections have names of their own, and these cannot be used, or are too many."""
    for name in names:
        if not _NAME.fullmatch(name) or "__" in name:
            raise ValueError(
                f"{section}.{name:.40}: expected small letters, digits, - and _, 32 at most, no two _ in a row"
            )
    if len(names) > most:
        raise ValueError(f"{section}: {len(names)} sections, at most {most} are expected")


class Section(BaseModel):
    """A section of settings: unknown names are errors, numbers are finite, nothing changes after the start.

    `training.learn.settings.Learning`, which may not know this class, has the same configuration; a test compares.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
