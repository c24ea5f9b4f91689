"""Which files are read and how fast, as settings."""

from __future__ import annotations

from pydantic import Field, field_validator

from connectors.common.section import Section


class FileSettings(Section):
    """Which files are read, and how fast."""

    paths: tuple[str, ...] = ()
    """Files to read: CSV or JSON lines, plain or gzipped (.gz); "-": standard input."""
    speed: float = Field(default=0.0, ge=0, le=1_000_000)
    """Replay at this multiple of real time, by the events' timestamps; 0: as fast as possible."""

    @field_validator("paths")
    @classmethod
    def _each_once(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if not path or not path.isprintable():
                raise ValueError(f"{path!r} is not the name of a file that can be printed")
            if paths.count(path) > 1:
                raise ValueError(f"{path!r} is named twice")
        return paths
