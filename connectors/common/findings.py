"""What a check of something finds."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that was looked at: what, and what is wrong with it and how to mend that, or else a word on it."""

    what: str
    problem: str = ""  # empty: nothing
    note: str = ""

    def __str__(self) -> str:
        """Return the line for a person."""
        said = self.problem or self.note
        return f"{'failed' if self.problem else 'ok':6}  {self.what}{f': {said}' if said else ''}"
