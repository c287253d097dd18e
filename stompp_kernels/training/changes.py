"""Values that are given beside a recipe: each is given once, and has an effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stompp_kernels.training.recipe import Recipe


_SURROGATES = ("surrogate", "surrogate_weights", "surrogate_activations")


def clash(one: str, other: str) -> bool:
    """Whether dotted keys name the same value, or one of them a section that holds the other."""
    return one == other or one.startswith(other + ".") or other.startswith(one + ".")


def keys_of(changes: Sequence[str]) -> list[str]:
    """The keys of "key=value" texts.

    Raises:
        ValueError: a value is given twice, so that one would be lost.
    """
    keys = [change.partition("=")[0].strip() for change in changes]
    for (key, change), (other, other_change) in combinations(zip(keys, changes, strict=True), 2):
        if clash(key.removeprefix("grid."), other.removeprefix("grid.")):
            raise ValueError(
                f"{min(key, other, key=len)} is given twice, as {change!r} and as {other_change!r}: give one"
            )
    return keys


def check_apart(what: str, keys: Iterable[str], other_what: str, others: Iterable[str]) -> None:
    """Raises ValueError if two sources give the same value: the first would be lost."""
    others = list(others)
    for key in keys:
        for other in others:
            if clash(key, other):
                raise ValueError(f"{key} is set by {what} and by {other_what}: only one of them may")


def check_used(keys: Iterable[str], recipes: Sequence[Recipe]) -> None:
    """Raises ValueError if a value that was given changes none of the recipes' runs."""
    reasons = [unused(recipe) for recipe in recipes]
    for key in keys:
        if reasons and all(key in of_recipe for of_recipe in reasons):
            raise ValueError(f"{key} has no effect {reasons[0][key]}: leave it out, or change that")


def unused(recipe: Recipe) -> Mapping[str, str]:
    """The values that a recipe's run does not look at, each with what makes it so."""
    progression = recipe.progression
    found: dict[str, str] = {}
    with_regime = f"with progression.regime={progression.regime}"
    if progression.regime == "ste_free":
        found |= dict.fromkeys((f"progression.{name}" for name in _SURROGATES), with_regime)
    else:
        found["progression.freeze_prefix"] = with_regime
    if recipe.model.binarize == "weights":
        of_activations = ("progression.activation_masks", "progression.surrogate_activations")
        found |= dict.fromkeys(of_activations, "with model.binarize=weights")
    elif None not in (progression.surrogate_weights, progression.surrogate_activations):
        found["progression.surrogate"] = "beside surrogate_weights and surrogate_activations"
    if progression.regime == "vanilla_ste":
        of_windows = ("shape", "order", "refresh", "overlap", "warmup", "cooldown", "activation_masks")
        found |= {f"progression.{name}": with_regime for name in of_windows}
    if recipe.model.binarize == "nothing":
        found |= {f"progression.{name}": "with model.binarize=nothing" for name in vars(progression)}
    if recipe.blockade is not None:
        with_rest = f"with blockade.rest={recipe.blockade.rest}"
        of_rest = [f"progression.{name}" for name in vars(progression)]
        found |= dict.fromkeys(of_rest if recipe.blockade.rest == "soft" else ["blockade.start"], with_rest)
    if not recipe.optimizer.weight_decay:
        found["optimizer.decay"] = "without optimizer.weight_decay"
    if recipe.optimizer.name != "sgd":
        found["optimizer.momentum"] = f"with optimizer.name={recipe.optimizer.name}"
    return found
