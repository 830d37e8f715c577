"""Intervals for shares of counted samples: of one share, and of the difference between two of the same samples."""

import math

Z95 = 1.959963984540054


def wilson(count: int, total: int) -> tuple[float, float]:
    """Bounds of the 95 % score interval of `count / total` (Wilson 1927), for `total` above 0.

    It stays within 0 and 1, and has a width where the count is 0.
    """
    rate, z2 = count / total, Z95 * Z95
    middle = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 * math.sqrt(rate * (1 - rate) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    # At the ends the bound is the rate itself, which rounding may miss
    return 0.0 if count == 0 else middle - half, 1.0 if count == total else middle + half


def paired(gained: int, lost: int, total: int) -> tuple[float, float]:
    """Bounds of the 95 % interval of `(gained - lost) / total`: the difference of two shares of the same samples.

    As the samples are the same, only those that changed carry variance, as in McNemar's test. Half a sample is added to
    each cell of the 2 x 2 table (Agresti and Min 2005): without it, the interval of few changes is too narrow, and of
    none has no width.

    Args:
        gained: samples that have the property only afterwards. lost: only before. total: all samples, above 0.
    """
    to, fro, n = gained + 0.5, lost + 0.5, total + 2.0
    difference = (to - fro) / n
    half = Z95 * math.sqrt((to + fro) / n - difference * difference) / math.sqrt(n)
    return max(-1.0, difference - half), min(1.0, difference + half)
