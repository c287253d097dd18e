"""Fused kernels of torch.nn that read the weights of a module's layers in place of running them.

In eval mode without gradients ``nn.TransformerEncoderLayer`` hands the weights of its linear layers to one kernel, and
``nn.TransformerEncoder`` gives its layers nested tensors for it. Of a binary layer that kernel would read the latent
weights. Each class keeps an attribute that says whether the kernel serves it: that is what is changed here, so that the
choice is copied, pickled and converted with the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

# The attribute that allows the fused kernel, and its value where it is not allowed.
_SWITCHES: tuple[tuple[type[nn.Module], str, int], ...] = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu", 0),
    (nn.TransformerEncoder, "use_nested_tensor", False),
)


def turn_off_fast_paths(model: nn.Module, is_layer: Callable[[nn.Module], bool]) -> list[str]:
    """Makes the modules that hold such a layer run it, in every mode; returns the names of those changed.

    What they compute stays the same but for rounding.
    """
    return [name for name, _, _, _ in _turn_off(model, is_layer)]


@contextmanager
def fast_paths_off(model: nn.Module) -> Iterator[None]:
    """Keeps modules of the model from fused kernels that stand for their layers, inside this block."""
    changed = _turn_off(model, lambda _: True)
    try:
        yield
    finally:
        for _, module, attribute, value in changed:
            setattr(module, attribute, value)


def _turn_off(model: nn.Module, is_layer: Callable[[nn.Module], bool]) -> list[tuple[str, nn.Module, str, int]]:
    changed = []
    for name, module in model.named_modules():
        for kind, attribute, off in _SWITCHES:
            value = getattr(module, attribute, off)
            if isinstance(module, kind) and value != off and any(map(is_layer, module.modules())):
                setattr(module, attribute, off)
                changed.append((name, module, attribute, value))
    return changed
