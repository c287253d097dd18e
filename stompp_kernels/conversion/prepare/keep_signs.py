"""Gives the activations whose signs binary layers read a form that keeps the sign of every input."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stompp_kernels.conversion.prepare.report import RefusedLayers
from stompp_kernels.conversion.prepare.split_activations import check_outputs, example_run, name_functions
from stompp_kernels.conversion.prepare.split_forward import split_block
from stompp_kernels.nn import BinaryLayer
from stompp_kernels.nn.sign_keeping import SIGN_KEEPING, loses_signs, sign_keeping_class
from stompp_kernels.progression import trace_calls
from stompp_kernels.progression.example_run import has_own_forward
from stompp_kernels.progression.execution import Call

_aten = torch.ops.aten
_OPS = {
    _aten.gelu: "gelu",
    _aten.silu: "silu",
    _aten.silu_: "silu",
    _aten.mish: "mish",
    _aten.mish_: "mish",
}


def _gelu(approximate: str = "none") -> nn.Module:
    return nn.GELU(approximate)


_FUNCTIONS: Mapping[Any, Any] = {F.gelu: _gelu, F.silu: nn.SiLU, F.mish: nn.Mish}


@dataclass(frozen=True)
class KeptSigns:
    """What was done with the activations that lose signs and whose output a layer binarizes.

    Attributes:
        kinds: the type before of each that keeps signs now, by name.
        left: why a function still loses signs, by the name of the layer that binarizes its output.
    """

    kinds: dict[str, str]
    left: dict[str, str]


def keep_signs(model: nn.Module, example_inputs: Any) -> KeptSigns:
    """Changes the class of each activation whose output a layer binarizes, see nn/sign_keeping.py.

    Functional ones first become modules of the module that calls them. Where torch.fx cannot read its forward they
    stay, with a warning.

    Args:
        model: of progressive layers; changed in place.
        example_inputs: as for :func:`stompp_kernels.progression.trace_calls`.
    """
    calls = _calls(model, example_inputs)
    left: dict[str, str] = {}
    if any(call.functional for call in calls):
        if name_functions(model, calls, _FUNCTIONS):
            calls = _calls(model, example_inputs)
        left = _make_modules(model, [call for call in calls if call.functional], example_inputs)
        calls = _calls(model, example_inputs)
    kinds: dict[str, str] = {}
    for name in dict.fromkeys(call.producer for call in calls if call.producer):
        activation = model.get_submodule(name)
        kind: Any = type(activation)
        kinds[name] = kind.__name__
        activation.__class__ = sign_keeping_class(kind)
    if left:
        warnings.warn(
            f"layers {sorted(left)} binarize what a function rounds to zero, differently by memory format and number "
            f"of threads; call nn.GELU, nn.SiLU or nn.Mish there: {next(iter(left.values()))}",
            stacklevel=4,
        )
    return KeptSigns(kinds, left)


def _calls(model: nn.Module, example_inputs: Any) -> list[Call]:
    """The calls of layers that binarize their own input, and the activations that lose signs which feed them."""
    # Copies, for a forward may keep what it saw.
    plain = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    own = [module for module in plain if not any(True for _ in (*module.children(), *module.parameters()))]
    losing = {
        m for m in own if not has_own_forward(m) and (type(m) in SIGN_KEEPING or loses_signs(copy.deepcopy(m).eval()))
    }
    calls, _ = trace_calls(
        model,
        example_inputs,
        lambda module: isinstance(module, BinaryLayer) and module.input_activation is not None,
        lambda module: module in losing,
        _OPS,
        signs=True,
    )
    return [call for call in calls if call.producer or call.functional]


def _make_modules(model: nn.Module, calls: list[Call], example_inputs: Any) -> dict[str, str]:
    """Makes modules of the functions that feed these calls; why not, by the layer's name, where torch.fx cannot."""
    left: dict[str, str] = {}
    for place in dict.fromkeys(call.place for call in calls):
        fed = [call for call in calls if call.place == place]
        block = model.get_submodule(place)
        original, children = type(block), dict(block._modules)
        before, constants = example_run(model, [place], example_inputs)
        try:
            split_block(block, constants[place], _FUNCTIONS)
            check_outputs(model, {place: fed}, before, example_inputs)
        except (ValueError, RefusedLayers) as error:
            block.__class__ = original
            block._modules.clear()
            block._modules.update(children)
            what = f"{place!r} of type {original.__name__}" if place else "the model itself"
            why = f"torch.fx cannot change {what}, whose forward calls F.{fed[0].functional}: {error}"
            left.update({call.name: why for call in fed})
    return left
