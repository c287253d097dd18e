"""Committed layers swapped for packed ones in a model that keeps its own forward: one that torch.fx cannot trace."""

from __future__ import annotations

from torch import nn

from stompp_kernels.conversion.twins import binary_weight_twin, has_binary_weight, is_packable, own_affine, packed_twin
from stompp_kernels.nn import BinaryConv2d, BinaryLayer, PackedOnFloats, SharedSigns


def pack_modules(model: nn.Module) -> nn.Module:
    """The model, which is changed: each committed layer packs its own input and gives floats.

    Layers that are children of one module share the packing where they are given the same tensor, as an attention's
    query, key and value are.
    """
    names = {module: name for name, module in model.named_modules()}
    for parent in list(model.modules()):
        shared = {images: SharedSigns(images) for images in (False, True)}
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, BinaryLayer):
                continue
            if is_packable(layer):
                twin = packed_twin(layer, own_affine(layer), (names[layer],))
                setattr(parent, name, PackedOnFloats(twin, shared[isinstance(layer, BinaryConv2d)]))
            elif has_binary_weight(layer):
                setattr(parent, name, binary_weight_twin(layer, own_affine(layer), (names[layer],)))
    return model.eval().requires_grad_(False)
