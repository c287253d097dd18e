"""The float layers of a packed network that multiply bfloat16: ``float_layers="fast"``."""

from __future__ import annotations

import warnings

from torch import nn

from stompp_kernels import native
from stompp_kernels.conversion.packing.nodes import has_hooks
from stompp_kernels.nn import BFloat16Linear, BinaryLayer
from stompp_kernels.nn.bfloat16 import bfloat16_layers

_NAMED = 5  # layers in a warning
_PRODUCTS = (
    *(nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def round_linear_layers(network: nn.Module) -> None:
    """Puts a :class:`BFloat16Linear` in the place of each nn.Linear, of which it shares the parameters."""
    twins: dict[nn.Module, nn.Module] = {}
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear and not has_hooks(module):
                twins.setdefault(module, BFloat16Linear.of(module))
                setattr(parent, name, twins[module])


def warn_of_exact_layers(packed: nn.Module) -> None:
    """Warns of float layers that stay in float32 although they were to be fast."""
    fast = bfloat16_layers(packed)
    if fast and not native.multiplies_bfloat16():
        warnings.warn(
            "float_layers='fast' changes nothing here: the implementation "
            f"{native.active_implementation()!r} does not multiply bfloat16, so all float layers run in float32",
            stacklevel=3,
        )
        return
    exact = [
        f"{name} ({type(module).__name__})"
        for name, module in packed.named_modules()
        if isinstance(module, _PRODUCTS) and not isinstance(module, BinaryLayer) and name not in fast
    ]
    if exact:
        more = f" and {len(exact) - _NAMED} more" if len(exact) > _NAMED else ""
        warnings.warn(
            f"float_layers='fast' leaves these layers in float32, which it has no kernel for: "
            f"{', '.join(exact[:_NAMED])}{more}",
            stacklevel=3,
        )
