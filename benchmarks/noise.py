"""Item noise of scores of which only value and number of units are known, as published ones; points, 0 to 100.

Apart from `benchmarks.statistics`, as the paper's tables are printed without scipy's import.
"""

from __future__ import annotations

import math
from statistics import NormalDist

LEVEL = 0.95
NORMAL = NormalDist()


def detectable_from_counts(score: float, units: int, *, power: float = 0.8, level: float = 0.05) -> float:
    """The difference in points from a published score (0 to 100, of so many units) that two independent runs would show
    with this power, towards the middle of the scale; 100 where none would. Ignores pairing, as `difference_noise`.
    """
    from scipy.optimize import brentq

    _check_published(score, units)
    p = min(score, 100 - score) / 100

    def excess(delta: float) -> float:
        q, middle = p + delta, p + delta / 2
        apart = math.sqrt((p * (1 - p) + q * (1 - q)) / units)
        same = math.sqrt(2 * middle * (1 - middle) / units)
        return delta - NORMAL.inv_cdf(1 - level / 2) * same - NORMAL.inv_cdf(power) * apart

    most = 1 - p
    return 100 * float(brentq(excess, 1e-9, most)) if excess(most) > 0 else 100.0


def difference_noise(first: float, second: float, units: int) -> float:
    """Half the width, in points, of the 95 % interval of the difference of two published scores (0 to 100) on so many units.

    The two runs are taken as independent (Agresti and Caffo 2000): where they answered the same items, and mostly alike,
    the noise of the items is smaller than this. Spread over training seeds is not in it. ValueError for a score outside
    0 to 100 or no units.
    """
    variance = 0.0
    for score in (first, second):
        _check_published(score, units)
        p = (score / 100 * units + 1) / (units + 2)
        variance += p * (1 - p) / (units + 2)
    return 100 * NORMAL.inv_cdf((1 + LEVEL) / 2) * math.sqrt(variance)


def _check_published(score: float, units: int) -> None:
    if not 0 <= score <= 100 or units < 1:
        raise ValueError(f"a score lies between 0 and 100 and has units, not {score} of {units}")
