"""Where a run stands, and the warning at the end of one that stopped too early."""

from __future__ import annotations

import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Tells where a run stands.

    Attributes:
        step: calls of :meth:`StoMPP.step` so far.
        frontier: units committed.
        units: units in all.
        active: names of the units in their windows.
        p: the frozen fraction that the first of them heads for; 0 when there is none.
        frozen: the fraction of its masks' entries that is frozen now, some ``refresh`` steps behind p; 0 when there is
            none.

    Example:
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32)), torch.randn(2, 1, 8, 8))
        >>> sk.StoMPP(model, total_steps=10).progress()
        Progress(step=0, frontier=0, units=1, active=(), p=0.0, frozen=0.0)
    """

    step: int
    frontier: int
    units: int
    active: tuple[str, ...]
    p: float
    frozen: float


class Run:
    """Holds what the end-of-training warning needs; it outlives the controller."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps, self.step, self.uncommitted = total_steps, 0, 0
        self.ended_early = False

    def warn(self) -> None:
        if self.step and self.uncommitted and not self.ended_early:
            warnings.warn(
                f"training ended at step {self.step} of {self.total_steps} with {self.uncommitted} units not "
                "committed: the network is not fully binary",
                RuntimeWarning,
                stacklevel=2,
            )
            self.step = 0  # once is enough, unless it goes on
