"""Committed layers swapped for packed ones in a model that keeps its own forward: one that torch.fx cannot trace."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from stompp_kernels.conversion.twins import binary_weight_twin, has_binary_weight, is_packable, own_affine, packed_twin
from stompp_kernels.nn import BinaryLayer, BinaryWeightLayer, PackedConv2d, PackedOnFloats, SharedSigns
from stompp_kernels.nn.packed import PackedLayer


def pack_modules(model: nn.Module) -> nn.Module:
    """The model, which is changed: each committed layer packs its own input and gives floats."""
    twins = {name: _twin(name, layer) for name, layer in model.named_modules() if isinstance(layer, BinaryLayer)}
    swap_layers(model, {name: twin for name, twin in twins.items() if twin is not None})
    return model.eval().requires_grad_(False)


def swap_layers(model: nn.Module, twins: Mapping[str, PackedLayer]) -> None:
    """Puts packed layers, which give floats, in the places of the model's layers of these names.

    Layers that are children of one module share the packing where they are given the same tensor, as an attention's
    query, key and value are.
    """
    names = {module: name for name, module in model.named_modules()}
    swapped: dict[str, nn.Module] = {}
    for parent in list(model.modules()):
        shared = {images: SharedSigns(images) for images in (False, True)}
        for name, layer in list(parent.named_children()):
            full_name = names[layer]
            if full_name not in twins:
                continue
            if full_name not in swapped:
                twin = twins[full_name]
                signs = shared[isinstance(twin, PackedConv2d)]
                swapped[full_name] = twin if isinstance(twin, BinaryWeightLayer) else PackedOnFloats(twin, signs)
            setattr(parent, name, swapped[full_name])


def _twin(name: str, layer: BinaryLayer) -> PackedLayer | None:
    """None where the layer stays as it is."""
    if is_packable(layer):
        return packed_twin(layer, own_affine(layer), (name,))
    if has_binary_weight(layer):
        return binary_weight_twin(layer, own_affine(layer), (name,))
    return None
