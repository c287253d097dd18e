"""Where a run stands, and the warning at the end of one that stopped too early."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True)
class Progress:
    """Tells where a run stands.

    Attributes:
        step: calls of :meth:`StoMPP.step` so far.
        frontier: the number of units committed; at the end it is ``units``.
        units: units in all.
        active: names of the units in their windows.
        p: the frozen fraction that the first of them heads for. When there is none it is 1 once all units are
            committed, and else 0: before the first window, and between two.
        frozen: the fraction of its masks' entries that is frozen now, some ``refresh`` steps behind p; as p when there
            is none.

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
        self.trained = False  # an optimizer of the model stepped
        self._rivals: list[Run] = []
        self._made_at = _caller()

    def join(self, others: list[Run]) -> None:
        """Shares the warning at the end with those of other progressions on the model: one for all is enough."""
        for other in others:
            self._rivals.append(other)
            other._rivals.append(self)

    def warn(self) -> None:
        if (self.step or self.trained) and self.uncommitted and not self.ended_early:
            why = "" if self.step else ". progression.step() was never called: call it after each optimizer.step()"
            warnings.warn_explicit(  # it may be the garbage collector that calls
                f"training ended at step {self.step} of {self.total_steps} with {self.uncommitted} units not "
                f"committed: the network is not fully binary{why}",
                RuntimeWarning,
                *self._made_at,
            )
            for run in (self, *self._rivals):
                run.step, run.trained = 0, False  # once is enough, unless it goes on


def _caller() -> tuple[str, int]:
    """Returns the file and the line outside this package that called into it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("stompp_kernels."):
        frame = frame.f_back
    return ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
