"""How far ahead is forecast, in events of a lane."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

HORIZONS = (1, 10)  # the next observation and the tenth, unless asked for others
SHIPPED_HORIZONS = (1, 2, 3, 5, 10, 20, 50)  # that the priors forecast
MAX_HORIZON = 64  # events: half of what a lane's window holds, so that there is something to learn it from


def check_horizons(horizons: Sequence[int]) -> None:
    """Raise ValueError for horizons that cannot be forecast: they rise, begin with 1 and end at MAX_HORIZON."""
    rising = all(a < b for a, b in pairwise(horizons))
    if not horizons or horizons[0] != 1 or not rising or horizons[-1] > MAX_HORIZON:
        raise ValueError(
            f"horizons {', '.join(map(str, horizons)) or 'none'}: expected rising numbers of events, "
            f"the first 1, none above {MAX_HORIZON}"
        )
