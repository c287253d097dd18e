"""Gives the activations whose signs binary layers read a form that keeps the sign of every input."""

from __future__ import annotations

from typing import Any

from torch import nn

from stompp_kernels.nn import BinaryLayer
from stompp_kernels.nn.sign_keeping import SIGN_KEEPING
from stompp_kernels.progression import trace_calls


def keep_signs(model: nn.Module, example_inputs: Any) -> list[str]:
    """Changes the class of each nn.GELU, nn.SiLU and nn.Mish whose output a layer binarizes, see nn/sign_keeping.py.

    Args:
        model: of progressive layers; changed in place.
        example_inputs: as for :func:`stompp_kernels.progression.trace_calls`.

    Returns:
        Names of the activations.
    """
    calls, _ = trace_calls(
        model,
        example_inputs,
        lambda module: isinstance(module, BinaryLayer) and module.input_activation is not None,
        lambda module: type(module) in SIGN_KEEPING,
    )
    names = list(dict.fromkeys(call.producer for call in calls if call.producer))
    for name in names:
        activation = model.get_submodule(name)
        activation.__class__ = SIGN_KEEPING[type(activation)]
    return names
