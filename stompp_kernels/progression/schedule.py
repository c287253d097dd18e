"""p(t) and the windows in which each unit advances: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from stompp_kernels.ops.checks import check_choice

SHAPES: dict[str, Callable[[float], float]] = {
    "cubic": lambda t: t**3,
    "linear": lambda t: t,
    "quadratic": lambda t: t**2,
    "cosine": lambda t: (1 - math.cos(math.pi * t)) / 2,
    "flipped_quadratic": lambda t: 1 - (1 - t) ** 2,
}

ORDERS = ("forward", "reverse", "global")
AUTO = "auto"

# With r a twentieth of a window a cubic mask ends at 86 % before its commitment, with a fifth at 59 %.
_AUTO_WINDOW, _SHORT_WINDOW, _AUTO_MOST = 20, 5, 100.0


def frozen_probability(shape: str, t: float) -> float:
    """Returns p(t), the fraction that a unit's masks head for at t of its window; t is clipped to [0, 1].

    Example:
        >>> from stompp_kernels.progression.schedule import frozen_probability
        >>> frozen_probability("cubic", 0.5)
        0.125
    """
    return SHAPES[shape](min(max(t, 0.0), 1.0))


def refresh_of(refresh: float | str, window: int) -> float:
    """Returns r, or what "auto" stands for in windows of so many steps: a twentieth of them, from 1 to 100.

    Raises:
        ValueError: it is neither "auto" nor a number of at least 1.
    """
    if isinstance(refresh, str):
        if refresh != AUTO:
            raise ValueError(f"refresh must be {AUTO!r} or a number of at least 1, got {refresh!r}")
        return min(max(window / _AUTO_WINDOW, 1.0), _AUTO_MOST)
    if not refresh >= 1:
        raise ValueError(f"refresh must be at least 1, got {refresh}")
    return float(refresh)


def reached_fraction(shape: str, window: int, refresh: float) -> float:
    """Returns the expected frozen fraction of a mask in the last step of its window, before it is committed.

    Example:
        >>> from stompp_kernels.progression.schedule import reached_fraction
        >>> round(reached_fraction("cubic", window=78, refresh=100), 2), round(reached_fraction("cubic", 78, 3.9), 2)
        (0.16, 0.86)
    """
    frozen = 0.0
    for step in range(1, window):
        frozen += (frozen_probability(shape, step / window) - frozen) / refresh
    return frozen


def short_windows(shape: str, window: int, refresh: float) -> str:
    """Says what is wrong with windows of so many steps for this r; "" if they are long enough, 5 r or more.

    With an r of 1 masks are drawn anew in each step, and follow p in windows of any length.
    """
    if refresh == 1 or window >= _SHORT_WINDOW * refresh:
        return ""
    reached, most = 100 * reached_fraction(shape, window, refresh), max(1.0, window / _SHORT_WINDOW)
    return (
        f"windows of {window} steps are short for refresh={refresh:g}: masks reach some {reached:.0f} % in them, and "
        f"the rest is committed in one step; give refresh={AUTO!r} or at most {most:g}, or train longer"
    )


def check_fractions(warmup: float, cooldown: float, overlap: float) -> None:
    """Checks the fractions of a run that windows leave out or share.

    Raises:
        ValueError: one is out of range.
    """
    for name, value in (("warmup", warmup), ("cooldown", cooldown), ("overlap", overlap)):
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} must be in [0, 1), got {value}")
    if warmup + cooldown >= 1.0:
        raise ValueError(f"warmup and cooldown must leave room for the windows, got {warmup} + {cooldown}")


def order_units(names: Sequence[str], order: str | Sequence[str]) -> list[int]:
    """Returns the place of each unit's window: units share a place only in the order "global".

    Args:
        names: the units in order of execution.
        order: "forward", "reverse", "global", or every name once in the order wanted.

    Raises:
        ValueError: the order is none of these, or does not name every unit once.
    """
    if isinstance(order, str):
        check_choice("order", order, ORDERS)
        if order == "global":
            return [0] * len(names)
        places = list(range(len(names)))
        return places if order == "forward" else places[::-1]
    if sorted(order) != sorted(names):
        raise ValueError(f"order must name every unit once: {sorted(names)}, got {list(order)}")
    return [list(order).index(name) for name in names]


def windows(places: Sequence[int], total_steps: int, warmup: float, cooldown: float, overlap: float) -> list[range]:
    """Returns each unit's window of steps: it is partly frozen inside and committed from ``stop`` on.

    Windows of equal length follow each other in the order of their places and fill the run between ``warmup`` and
    ``cooldown``, fractions of it. With an overlap each begins when the one before has ``overlap`` of its length left.

    Raises:
        ValueError: a value is out of range, or the run is too short to give every window a step.

    Example:
        >>> from stompp_kernels.progression.schedule import windows
        >>> windows([0, 1], total_steps=100, warmup=0.1, cooldown=0.1, overlap=0.0)
        [range(10, 50), range(50, 90)]
    """
    check_fractions(warmup, cooldown, overlap)
    count = max(places) + 1
    first, last = warmup * total_steps, (1.0 - cooldown) * total_steps
    length = (last - first) / (1.0 + (count - 1) * (1.0 - overlap))
    result = []
    for place in places:
        # Without an overlap a window's stop and the next one's start are the same expression, rounded alike.
        begin = place * (1.0 - overlap)
        result.append(range(round(first + begin * length), round(first + (begin + 1.0) * length)))
    if min(len(window) for window in result) < 1:
        raise ValueError(
            f"total_steps must give each of {count} windows at least one step, got {total_steps} "
            f"with warmup {warmup} and cooldown {cooldown}"
        )
    return result
