"""How rare an error is under the network's own forecast, a Student-t: its tail, and its 99 % band."""

from __future__ import annotations

import math

from training.network.compiled import compiled

LN_10 = math.log(10.0)
ASYMPTOTIC = 20.0  # deviates from which on the tail's asymptotic series is exact to 1e-5, and erfc near underflow
BAND_DEVIATE = 2.576  # normal deviates that hold 99 %


@compiled
def normal_deviate(t: float, nu: float) -> float:
    """Return the size of the normal deviate that is as rare as |t| is under Student's t (Wallace 1959, eq. 3.1)."""
    return math.sqrt(nu * math.log1p(t * t / nu)) * (8.0 * nu + 1.0) / (8.0 * nu + 3.0)


@compiled
def student_deviate(z: float, nu: float) -> float:
    """Return |t| that is as rare as the normal deviate |z|: the inverse of `normal_deviate`."""
    y = z * (8.0 * nu + 3.0) / (8.0 * nu + 1.0)
    return math.sqrt(nu * math.expm1(min(y * y / nu, 100.0)))


@compiled
def rarity(z: float) -> float:
    """Return -log10 of the two-sided tail of the normal distribution beyond z >= 0."""
    if z < ASYMPTOTIC:
        return -math.log10(math.erfc(z * math.sqrt(0.5)))
    return (0.5 * z * z + math.log(z) + 0.5 * math.log(0.5 * math.pi) + 1.0 / (z * z)) / LN_10
