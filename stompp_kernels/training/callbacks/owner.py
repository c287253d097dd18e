"""What the callbacks share: a progression that is built when training begins and saved with its checkpoints."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from stompp_kernels.progression import StoMPP


class ProgressionOwner:
    """Base of the callbacks: builds a progression when training begins, and saves it with the trainer's checkpoints.

    Attributes:
        progression: None until training begins.
    """

    def __init__(self, total_steps: int | None, options: dict[str, Any]) -> None:
        self.total_steps, self.options = total_steps, options
        self.progression: StoMPP | None = None
        self._saved: dict[str, Any] = {}
        self._frontier = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the progression's state; empty before training."""
        return dict(self._saved) if self.progression is None else self.progression.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state of a checkpoint for the training that goes on from it."""
        self._saved, self.progression = state_dict, None

    def begin(self, model: nn.Module, total_steps: int, step: int) -> None:
        """Builds the progression of a run that has done ``step`` optimizer steps; the model is loaded already.

        Raises:
            ValueError: the run goes on from a checkpoint without a progression or with one of other settings; or as
                :class:`stompp_kernels.StoMPP` raises it.
        """
        saved = self.state_dict()
        if step and not saved:
            raise ValueError(f"training goes on at step {step}, but the checkpoint holds no progression's state")
        self.progression = None  # one of an earlier run on this model is over
        progression = StoMPP(model, total_steps, **self.options)
        if step:
            progression.load_state_dict(saved)
        self.progression, self._frontier = progression, progression.frontier

    def advance(self, model: nn.Module, trained: nn.Module) -> bool:
        """Steps the progression once, after the optimizer, and returns whether anything that is trained can learn on.

        Args:
            model: the progression's.
            trained: what the optimizer has: the model, or what holds it.
        """
        assert self.progression is not None
        self.progression.step()
        if self.progression.frontier == self._frontier:
            return True
        self._frontier = self.progression.frontier
        without_gradient = set(self.progression.without_gradient())
        cut_off = {id(parameter) for name, parameter in model.named_parameters() if name in without_gradient}
        if any(parameter.requires_grad and id(parameter) not in cut_off for parameter in trained.parameters()):
            return True
        # A loss that requires no grad would raise in the library's backward.
        warnings.warn("training stops: no gradient reaches a parameter any more", RuntimeWarning, stacklevel=2)
        return False

    def finish(self) -> None:
        """Warns at the end of training if units are not committed: it was shorter than the progression."""
        if self.progression is not None:
            self.progression.warn_if_uncommitted()

    def figures(self) -> dict[str, float]:
        """Returns figures for logs: units committed, p and frozen fraction of the active unit, and of all masks."""
        assert self.progression is not None
        progress = self.progression.progress()
        return {
            "stompp/frontier": progress.frontier,
            "stompp/p": progress.p,
            "stompp/frozen": progress.frozen,
            "stompp/frozen_fraction": self.progression.frozen_fraction(),
        }
