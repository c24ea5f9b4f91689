"""The kinds of the behaviour panel: made series of what people report of detectors, each with what an operator expects.

A kind is a small function that makes one series; KINDS names them all. In a series an alert is due in some rows (any of
them will do), false in others, allowed once in others, and in the rest (what follows an anomaly) not judged. The first
feature is the one that is wrong, unless the kind says otherwise; sizes are in units of the noise's deviation, 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from training.evaluate import Float64, Int64

HOUR, DAY = 3600, 86_400  # s
ROWS = {1: 140_000, 10: 26_000, 60: 16_000, 300: 10_000, 3600: 4_000}  # by step in s: from 39 hours to 24 weeks


class Made(NamedTuple):
    """A kind's series. Until the first row that is due or allowed an alert is false, afterwards it is not judged."""

    values: Float64  # [rows, features]
    due: slice | None = None
    once: slice | None = None  # one alert is allowed in these rows, any further is false
    unjudged: Sequence[
        slice
    ] = ()  # rows before the one that is due, or of a clean series, in which an alert may be right
    absent: slice | None = None  # rows that never arrive


@dataclass(frozen=True)
class Frame:
    """What a kind has to fill, and the patterns that many start from; the first row is at midnight on a Monday."""

    step: int  # s
    features: int
    rng: np.random.Generator = field(repr=False)

    @property
    def rows(self) -> int:
        return ROWS[self.step]

    @property
    def at(self) -> int:
        """The row in which something happens: four fifths of the series are known by then."""
        return int(0.8 * self.rows)

    @property
    def seconds(self) -> Int64:
        """Since the first row: [rows]."""
        return np.arange(self.rows) * self.step

    @property
    def hour(self) -> Float64:
        """Of the day: [rows], 0 to 24."""
        return self.seconds % DAY / HOUR

    @property
    def days(self) -> float:
        return self.rows * self.step / DAY

    def lasting(self, seconds: float) -> int:
        """Return the rows of a duration, at least one."""
        return max(1, round(seconds / self.step))

    def row_of(self, day: int, hour: float = 0.0) -> int:
        return round((day * DAY + hour * HOUR) / self.step)

    def noise(self, deviation: float = 1.0) -> Float64:
        return self.rng.normal(0.0, deviation, (self.rows, self.features))

    def wave(self, amplitude: float = 5.0, noise: float = 1.0) -> Float64:
        """Return a daily sine about 100 with noise: [rows, features]."""
        daily = np.sin(2 * np.pi * self.seconds / DAY + self.rng.uniform(0, 2 * np.pi))
        return 100.0 + amplitude * daily[:, None] + self.noise(noise)

    def counts(self, rate: Float64 | float) -> Float64:
        """Return Poisson counts of a rate [rows] in every feature."""
        return self.rng.poisson(np.broadcast_to(rate, self.rows)[:, None], (self.rows, self.features)).astype(float)

    def daily_counts(self) -> Float64:
        """Return counts that reach 50 at noon and hardly any at midnight."""
        return self.counts(50.0 * np.clip(0.5 - 0.5 * np.cos(2 * np.pi * self.hour / 24), 0.01, 1))

    def autoregressive(self, memory: float) -> Float64:
        """Return a slow walk that comes back to 0, with steps of deviation 1: [rows, features]."""
        walk = self.noise()
        for row in range(1, self.rows):
            walk[row] += memory * walk[row - 1]
        return walk

    def office(self, hour: Float64) -> Float64:
        """Return 20 at night and 100 from 8 to 18, with half an hour between them, by hour of the day: [rows, 1]."""
        open_ = np.clip((hour - 8.0) / 0.5, 0, 1) - np.clip((hour - 18.0) / 0.5, 0, 1)
        return 20.0 + 80.0 * open_[:, None]


# --- Clean: whatever is told is false --------------------------------------------------------------------------------


def flat_noise(f: Frame) -> Made:
    return Made(f.wave(amplitude=0))


def daily_wave(f: Frame) -> Made:
    return Made(f.wave())


def poisson_day(f: Frame) -> Made:
    return Made(f.daily_counts())


def low_counts(f: Frame) -> Made:
    return Made(f.counts(2.0))


def heavy_tail(f: Frame) -> Made:
    return Made(np.exp(f.rng.normal(3.0, 0.7, (f.rows, f.features))))


def percent_at_its_bounds(f: Frame) -> Made:
    return Made(np.clip(f.wave(30, 15), 0, 100))


def slow_walk(f: Frame) -> Made:
    return Made(100.0 + 0.9 * f.autoregressive(0.98))


def return_after_a_gap(f: Frame) -> Made:
    """Four hours are missing; what comes then is where the rhythm would have it."""
    return Made(f.wave(30, 3), absent=slice(f.at, f.at + max(2, f.lasting(4 * HOUR))))


def return_after_a_missing_day(f: Frame) -> Made:
    first = f.at if f.days > 4 else f.at - f.lasting(DAY)
    return Made(f.wave(30, 3), absent=slice(first, first + f.lasting(DAY)))


def one_ulp(f: Frame) -> Made:
    """A constant, and the same number as another sum has it."""
    values = np.full((f.rows, f.features), 0.3)
    values[f.at :, 0] = 0.1 + 0.2
    return Made(values)


def quiet_weekends(f: Frame) -> Made:
    """The first weekend and the return from it cannot be known; from the second on they are."""
    return Made(_weekly(f), unjudged=[slice(f.row_of(5), f.row_of(9))])


def _weekly(f: Frame) -> Float64:
    weekend = f.seconds // DAY % 7 >= 5
    return np.where(weekend[:, None], 20.0, f.office(f.hour)) + f.noise(3)


def daylight_saving(f: Frame) -> Made:
    """From some midnight on the whole rhythm comes an hour early: nobody wants to be told of that."""
    changed = f.seconds >= int(f.days * 0.8) * DAY
    return Made(f.office((f.hour + changed) % 24) + f.noise(3))


def two_states(f: Frame) -> Made:
    return Made(_on_and_off(f))


def _on_and_off(f: Frame) -> Float64:
    """Return 1 for 17 to 23 rows of 57 to 63, else 0, in every feature at once: a pump, a compressor."""
    on, row = np.zeros(f.rows), 0
    while row < f.rows:
        on[row : row + int(f.rng.integers(17, 24))] = 1.0
        row += int(f.rng.integers(57, 64))
    return np.repeat(on[:, None], f.features, axis=1)


def nightly_job(f: Frame, minutes: int) -> Made:
    """What comes at 02:00 each night is no anomaly; the first three nights have to be learnt."""
    return Made(_nightly(f, minutes), unjudged=_first_nights(f, minutes))


def _first_nights(f: Frame, minutes: int) -> list[slice]:
    return [slice(f.row_of(night, 2), f.row_of(night, 3 + minutes / 60)) for night in range(3)]


def _nightly(f: Frame, minutes: int, but: int = -1) -> Float64:
    """Return 10, and 60 during a job at 02:00 of each day `but` one."""
    running = (f.hour >= 2) & (f.hour < 2 + minutes / 60) & (f.seconds // DAY != but)
    return 10.0 + 50.0 * running[:, None] + f.noise()


def counter_resets(f: Frame) -> Made:
    """A count of all requests so far, set to zero by each restart of its process.

    A restart is what a deployment does, and who wants to be told of it watches the start time; so an operator mutes a
    detector that pages for each. The first reset cannot be told from a fault, and is not judged; all later ones are.
    """
    total = np.cumsum(f.counts(20.0), axis=0)
    first = row = f.rows // 5
    while row < f.rows:
        total[row:] -= total[row].copy()
        row += int(f.rng.integers(f.rows // 12, f.rows // 6))
    return Made(total, unjudged=[slice(first, first + 300)])


def deployment(f: Frame) -> Made:
    """A level changes over an hour and stays: worth one alert, which is not due, and no second one."""
    values = f.wave()
    values[f.at :, 0] += 8.0 * np.clip(np.arange(f.rows - f.at) / f.lasting(HOUR), 0, 1)
    return Made(values, once=slice(f.at, f.rows))


# --- Due: somebody has to be told -------------------------------------------------------------------------------------


def spike(f: Frame, size: float) -> Made:
    values = f.wave()
    values[f.at, 0] += size
    return Made(values, slice(f.at, f.at + 2))


def burst(f: Frame, size: float) -> Made:
    values = f.wave()
    values[f.at : f.at + 10, 0] += size
    return Made(values, slice(f.at, f.at + 12))


def shift(f: Frame, size: float) -> Made:
    values = f.wave()
    values[f.at :, 0] += size
    return Made(values, slice(f.at, f.at + 300))


def drift(f: Frame, size: float) -> Made:
    values = f.wave()
    values[f.at :, 0] += size * np.clip(np.arange(f.rows - f.at) / 500, 0, 1)
    return Made(values, slice(f.at, f.at + 800))


def noise(f: Frame, size: float) -> Made:
    """The noise is `size` times as large for 100 rows."""
    values = f.wave()
    values[f.at : f.at + 100, 0] += f.rng.normal(0.0, np.sqrt(size**2 - 1), 100)
    return Made(values, slice(f.at, f.at + 102))


def stuck(f: Frame) -> Made:
    values = f.wave()
    values[f.at : f.at + 200, 0] = values[f.at, 0]
    return Made(values, slice(f.at, f.at + 205))


def standstill(f: Frame, hour: float) -> Made:
    """Nothing comes for two days, in any feature."""
    values, day = f.daily_counts(), int(f.at * f.step / DAY)
    first = min(f.row_of(day, hour), f.rows - 60)
    stop = first + f.lasting(2 * DAY)
    values[first:stop] = 0
    return Made(values, slice(first, stop))


def low_rate_stops(f: Frame) -> Made:
    """Three events a row, then none, in any feature."""
    values = f.counts(3.0)
    values[f.at : f.at + 400] = 0
    return Made(values, slice(f.at, f.at + 400))


def excursion_after_a_wild_value(f: Frame) -> Made:
    """One 65,535 must not blind a stream; whether it is told itself is not judged."""
    values, wild = f.wave(), int(0.7 * f.rows)
    values[wild, 0] = 65_535
    values[f.at : f.at + 30, 0] += 20
    return Made(values, slice(f.at, f.at + 32), unjudged=[slice(wild, wild + 30)])


def spike_in_a_constant(f: Frame) -> Made:
    values = np.zeros((f.rows, f.features))
    values[f.at : f.at + 5, 0] = 10
    return Made(values, slice(f.at, f.at + 7))


def burst_after_a_shift(f: Frame) -> Made:
    values, second = f.wave(), int(0.95 * f.rows)
    values[f.at :, 0] += 25
    values[second : second + 10, 0] += 20
    return Made(values, slice(second, second + 12), unjudged=[slice(f.at, f.rows)])


def coupling_breaks(f: Frame) -> Made:
    """Features that move together, and one that for 200 rows moves as it did at another time."""
    common = f.autoregressive(0.97)[:, :1]
    values = 100.0 + 3.0 * common * np.linspace(1, 2, f.features) + f.noise(0.3)
    values[f.at : f.at + 200, 0] = 100.0 + 3.0 * np.roll(common[:, 0], 777)[f.at : f.at + 200]
    return Made(values, slice(f.at, f.at + 205))


def burst_beside_a_stray_field(f: Frame) -> Made:
    """A second feature was seen once, long ago, and the others never: the first is judged as if it were alone."""
    values = f.wave(amplitude=0)
    values[:, 1:] = np.nan
    values[f.rows // 2, 1] = 1.0
    values[f.at : f.at + 5, 0] += 30
    return Made(values, slice(f.at, f.at + 7))


def burst_at_night(f: Frame) -> Made:
    """For two hours of the night, in the first feature, what is usual by day."""
    values = f.counts(np.where(f.hour < 6, 0.2, 20.0))
    first = min(f.row_of(int(f.at * f.step / DAY), 2), f.rows - 40)
    stop = min(first + max(12, f.lasting(2 * HOUR)), f.rows)
    values[first:stop, 0] = f.rng.poisson(12, stop - first)
    return Made(values, slice(first, stop))


def weekday_on_a_sunday(f: Frame) -> Made:
    """The office hours of a Tuesday, on a Sunday; three weeks are known by then."""
    values, sunday = _weekly(f), int(f.days * 0.8) // 7 * 7 + 6
    day = slice(f.row_of(sunday), f.row_of(sunday + 1))
    values[day] = f.office(f.hour)[day] + f.noise(3)[day]
    return Made(values, slice(f.row_of(sunday, 8), day.stop), unjudged=[slice(f.row_of(5), f.row_of(9))])


def stuck_on(f: Frame) -> Made:
    """A state of two stays on for 400 rows; before the 24th of them nobody can know."""
    values = _on_and_off(f)
    first = f.at + int(np.argmax(np.diff(values[f.at :, 0]) > 0)) + 1
    values[first : first + 400] = 1.0
    return Made(values, slice(first + 24, first + 405))


def nightly_job_missing(f: Frame, minutes: int) -> Made:
    """The job of one night does not come. A long one is due before its end and an hour; a short one may be told."""
    night = int(f.days * 0.8)
    missing = slice(f.row_of(night, 2), f.row_of(night, 3 + minutes / 60))
    due = minutes >= 120
    return Made(
        _nightly(f, minutes, but=night),
        due=missing if due else None,
        once=None if due else slice(missing.start, f.rows),
        unjudged=_first_nights(f, minutes),
    )


class Kind(NamedTuple):
    """How a kind is made, and where it makes sense."""

    make: Callable[[Frame], Made]
    steps: tuple[int, ...] = tuple(ROWS)
    features: int = 1  # at least


_DAYS, _WEEKS = (60, 300, 3600), (300, 3600)  # steps whose series have eleven days, five weeks

KINDS: dict[str, Kind] = {
    "flat noise": Kind(flat_noise),
    "daily wave": Kind(daily_wave),
    "Poisson by day": Kind(poisson_day),
    "low counts": Kind(low_counts),
    "heavy tail": Kind(heavy_tail),
    "percent at its bounds": Kind(percent_at_its_bounds),
    "slow walk": Kind(slow_walk),
    "return after a gap": Kind(return_after_a_gap),
    "return after a missing day": Kind(return_after_a_missing_day, (10, *_DAYS)),
    "one ulp": Kind(one_ulp),
    "quiet weekends": Kind(quiet_weekends, _WEEKS),
    "daylight saving": Kind(daylight_saving, _DAYS),
    "two states": Kind(two_states),
    "nightly job, 10 min": Kind(partial(nightly_job, minutes=10), (60, 300)),
    "nightly job, 2 h": Kind(partial(nightly_job, minutes=120), _DAYS),
    "nightly job missing, 10 min": Kind(partial(nightly_job_missing, minutes=10), (60, 300)),
    "counter resets": Kind(counter_resets),
    "deployment over an hour": Kind(deployment),
    **{f"spike of {size}": Kind(partial(spike, size=size)) for size in (6, 10, 20)},
    **{f"burst of {size}": Kind(partial(burst, size=size)) for size in (3, 5, 8)},
    **{f"shift of {size}": Kind(partial(shift, size=size)) for size in (3, 5, 8)},
    **{f"drift of {size}": Kind(partial(drift, size=size)) for size in (8, 16)},
    **{f"noise times {size}": Kind(partial(noise, size=size)) for size in (3, 5)},
    "stuck": Kind(stuck),
    "stuck on": Kind(stuck_on),
    "standstill from night": Kind(partial(standstill, hour=1)),
    "standstill from noon": Kind(partial(standstill, hour=12)),
    "low rate stops": Kind(low_rate_stops),
    "burst at night": Kind(burst_at_night, (1, 10, 60, 300)),
    "nightly job missing, 2 h": Kind(partial(nightly_job_missing, minutes=120), _DAYS),
    "weekday on a Sunday": Kind(weekday_on_a_sunday, _WEEKS),
    "excursion after a wild value": Kind(excursion_after_a_wild_value),
    "spike in a constant": Kind(spike_in_a_constant),
    "burst after a shift": Kind(burst_after_a_shift),
    "coupling breaks": Kind(coupling_breaks, features=2),
    "burst beside a stray field": Kind(burst_beside_a_stray_field, features=2),
}
