"""What `longwatch config --check` finds."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One check: what was checked, and the problem with its remedy, or a note."""

    what: str
    problem: str = ""  # empty: none
    note: str = ""

    def __str__(self) -> str:
        """Return the line to print."""
        said = self.problem or self.note
        return f"{'failed' if self.problem else 'ok':6}  {self.what}{f': {said}' if said else ''}"
