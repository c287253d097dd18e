"""The settings of a progression: what they may be, and how those of a saved state compare with a run's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from stompp_kernels.ops.checks import SURROGATES, check_choice
from stompp_kernels.progression.schedule import ORDERS, SHAPES, check_fractions, refresh_of

REGIMES = ("ste_free", "ste", "vanilla_ste")
BINARIZE = ("both", "weights")
ACTIVATION_MASKS = ("shared", "per_element")

# The defaults of versions whose states hold no surrogate_weights.
_FORMER = {"refresh": 100.0, "surrogate": "identity"}
_SURROGATES = ("surrogate_weights", "surrogate_activations")


def former_defaults(saved: Mapping[str, Any], by_default: Collection[str]) -> dict[str, Any]:
    """Returns the former defaults that a state was saved with, of the arguments that were left at today's default."""
    if "surrogate_weights" in saved:
        return {}
    return {key: value for key, value in _FORMER.items() if key in by_default and saved.get(key) == value}


def difference(saved: Mapping[str, Any], own: Mapping[str, Any], former: Mapping[str, Any]) -> str:
    """Says which setting differs, where ``former`` takes the place of ``own``; "" if none does."""
    saved = {**dict.fromkeys(_SURROGATES, saved.get("surrogate")), **saved}
    for key, value in own.items():
        replaced = former.get("surrogate", value) if key in _SURROGATES else former.get(key, value)
        if saved.get(key) != replaced:
            return f"{key} must be what the state was saved with: {saved.get(key)!r}, got {value!r}"
    return ""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Checks arguments of :class:`stompp_kernels.StoMPP` by name, as far as they can be without a model.

    Raises:
        ValueError: one is out of range; the message names it.
    """
    check_choice("shape", settings["shape"], tuple(SHAPES))
    check_choice("regime", settings["regime"], REGIMES)
    check_choice("surrogate", settings["surrogate"], SURROGATES[1:])
    for name in _SURROGATES:
        check_choice(name, settings[name], (None, *SURROGATES[1:]))
    check_choice("activation_masks", settings["activation_masks"], ACTIVATION_MASKS)
    if isinstance(settings["order"], str):
        check_choice("order", settings["order"], ORDERS)
    refresh_of(settings["refresh"], 1)
    check_fractions(settings["warmup"], settings["cooldown"], settings["overlap"])
