"""When a case is slower: an interval of the median ratio that holds for any distribution of the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

LIMIT = 1.05  # HEAD's time by BASE's, from which on a case is slower
ERROR = 0.01  # probability that a run finds any case slower or faster of which both versions are the same

SAME, SLOWER, FASTER, UNDECIDED = "no slower", "slower", "faster", "undecided"


def median_interval(values: Sequence[float], error: float) -> tuple[float, float]:
    """An interval that holds the median of what the values are drawn from, with probability 1 - ``error`` at least.

    Each value lies below the median with probability 1/2, so that the number of those that do is binomial, and the
    k-th value from each end bounds the median unless fewer than k lie on its side. Infinite for too few values.
    """
    n, ordered = len(values), sorted(values)
    allowed = Fraction(error) / 2 * 2**n
    fewer, k = 0, 0  # fewer: of the 2**n outcomes, those with fewer than k + 1 values on one side
    while k < n // 2:
        fewer += math.comb(n, k)
        if fewer > allowed:
            break
        k += 1
    return (-math.inf, math.inf) if k == 0 else (ordered[k - 1], ordered[n - k])


def verdict(interval: tuple[float, float], limit: float = LIMIT) -> str:
    """What an interval of HEAD's time by BASE's says; undecided where it holds the limit."""
    low, high = interval
    if low > limit:
        return SLOWER
    if high > limit:
        return UNDECIDED
    return FASTER if high < 1 / limit else SAME


@dataclass(frozen=True)
class Plan:
    """How long a case is measured, and how sure a decision must be.

    Attributes:
        seconds: until the ratios are first looked at; then after twice as long, and so on.
        most_seconds: until the last look.
        cases: decided in this run.
    """

    seconds: float
    most_seconds: float
    cases: int

    @property
    def looks(self) -> int:
        return 1 + max(0, math.ceil(math.log2(self.most_seconds / self.seconds)))

    @property
    def error(self) -> float:
        """The error of one look at one case; those of all looks at all cases add up to at most ERROR."""
        return ERROR / (self.cases * self.looks)

    @property
    def least(self) -> int:
        """Ratios without which nothing can be decided."""
        return math.ceil(math.log2(2 / self.error))

    def end(self, look: int) -> float:
        """Seconds from the start to a look, counted from 0."""
        return min(self.seconds * 2**look, self.most_seconds)
