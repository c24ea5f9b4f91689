"""Calendars: named spans of time that come again, which rules take as quiet times."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from connectors.common.section import Section
from connectors.decode.settings import check_timezone
from detector.calendars.public_holidays import holiday_spans
from detector.calendars.recurring import Spans, cron_spans, rrule_spans

if TYPE_CHECKING:
    from detector.calendars.windows import Calendar

MAX_CALENDARS = 50
LONGEST = 31 * 86_400.0  # s, of one window
_ANY_START = datetime(2026, 1, 1)  # noqa: DTZ001 - a clock's, for a rule that is only read


class CalendarSettings(Section):
    """A section [calendars.NAME]: set one of cron, rrule and holidays. Rules name it, as `quiet`."""

    cron: str = ""
    """When a window begins: minute, hour, day, month and day of the week, such as "0 2 * * sun"."""
    rrule: str = ""
    """When a window begins, by RFC 5545, such as "FREQ=MONTHLY;BYDAY=1SU"; from `start` on."""
    start: datetime | None = None
    """The first window of rrule, by the clock of timezone, such as 2026-01-04T02:00:00."""
    duration_seconds: float | None = Field(None, gt=0, le=LONGEST)
    """How long a window of cron or rrule lasts."""
    holidays: str = ""
    """The public holidays of a country or a part of it, by ISO 3166, such as "DE" or "DE-BY": whole days."""
    timezone: str = ""
    """Time zone of all that, such as "Europe/Berlin"; empty: decode.timezone."""

    @field_validator("cron")
    @classmethod
    def _check_cron(cls, cron: str) -> str:
        if cron:
            cron_spans(cron, 1.0, ZoneInfo("UTC"))
        return cron

    @field_validator("rrule")
    @classmethod
    def _check_rrule(cls, rrule: str) -> str:
        if rrule:
            rrule_spans(rrule, _ANY_START, 1.0, ZoneInfo("UTC"))
        return rrule

    @field_validator("holidays")
    @classmethod
    def _check_holidays(cls, holidays: str) -> str:
        if holidays:
            holiday_spans(holidays, ZoneInfo("UTC"))
        return holidays

    @field_validator("start")
    @classmethod
    def _by_a_clock(cls, start: datetime | None) -> datetime | None:
        if start is not None and start.tzinfo is not None:
            raise ValueError("expected a time without a zone: it is by the clock of timezone")
        return start

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, timezone: str) -> str:
        return check_timezone(timezone) if timezone else timezone

    @model_validator(mode="after")
    def _one_of_them(self) -> CalendarSettings:
        given = [name for name in ("cron", "rrule", "holidays") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"calendars.NAME has {found} of cron, rrule and holidays: set one of them")
        if (self.start is not None) != (given == ["rrule"]):
            raise ValueError("calendars.NAME.start is where an rrule begins: set it with rrule, and only then")
        if (self.duration_seconds is None) != (given == ["holidays"]):
            raise ValueError(
                "calendars.NAME.duration_seconds is how long a window lasts: set it with cron or rrule, and only then"
            )
        self._spans(ZoneInfo("UTC"))  # an rrule may have no window from its start on
        return self

    def calendar(self, name: str, timezone: str) -> Calendar:
        """Return the windows; `timezone` holds where none is set. Raises ValueError."""
        from detector.calendars.windows import Calendar  # noqa: PLC0415 - with numpy

        return Calendar(name, self._spans(ZoneInfo(self.timezone or timezone)))

    def _spans(self, zone: ZoneInfo) -> Spans:
        if self.holidays:
            return holiday_spans(self.holidays, zone)
        seconds = self.duration_seconds or 0.0
        if self.start is not None:
            return rrule_spans(self.rrule, self.start, seconds, zone)
        return cron_spans(self.cron, seconds, zone)
