"""One activation treated apart from all others, to ask what the gradient blockade does to accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from stompp_kernels.nn import ProgressiveActivation
from stompp_kernels.progression import Unit
from stompp_kernels.progression.units import linked_operations, make_units
from stompp_kernels.training.no_progression import NoProgression
from stompp_kernels.training.recipe import BlockadeRecipe


class Blockade(NoProgression):
    """Stands in a progression's place: commits one activation, and leaves everything else soft to the end.

    Latent weights are clipped to [-1, 1] after each step, as by a progression.

    Args:
        model: prepared by ``sk.prepare``.
        recipe: which activation, when, and its gradient from then on.
        total_steps: of the run.

    Raises:
        ValueError: as by :func:`set_apart`.
    """

    def __init__(self, model: nn.Module, recipe: BlockadeRecipe, total_steps: int) -> None:
        super().__init__()
        operations = linked_operations(model)
        self.units = tuple(make_units(operations, [range(total_steps, total_steps)] * len(operations)))  # no window
        self.start = round(recipe.start * total_steps)
        self._activation = set_apart(self.units, recipe)
        self._advance()

    def step(self) -> None:
        """Counts a step, and commits the activation when it is time."""
        super().step()
        for unit in self.units:
            if unit.weights is not None:
                unit.weights.clip_latent_()
        self._advance()

    def _advance(self) -> None:
        if self._activation is not None and self._step == self.start:
            self._activation.commit()


def set_apart(units: Sequence[Unit], recipe: BlockadeRecipe) -> ProgressiveActivation | None:
    """Gives the activation of the recipe's unit its surrogate, and returns it; None for unit 0.

    Raises:
        ValueError: there is no such unit, its activation belongs to an earlier one, or it is a product of two.
    """
    if recipe.unit == 0:
        return None
    if recipe.unit > len(units):
        raise ValueError(f"blockade.unit must be at most {len(units)} for this model, got {recipe.unit}")
    activation = units[recipe.unit - 1].activation
    if activation is None:
        raise ValueError(f"blockade.unit must have one activation of its own, which unit {recipe.unit} has not")
    activation.set_surrogate(recipe.surrogate)
    return activation
