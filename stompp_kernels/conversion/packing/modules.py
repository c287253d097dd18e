"""Committed layers swapped for packed ones in a model that keeps its own forward: one that torch.fx cannot trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from stompp_kernels.conversion.packing.fast_layers import round_attention, round_linear_layers
from stompp_kernels.conversion.packing.folding import fold_function
from stompp_kernels.conversion.packing.sign_chains import SignChain, sign_chains
from stompp_kernels.conversion.packing.twins import (
    binary_weight_twin,
    has_binary_weight,
    is_packable,
    matmul_twin,
    own_affine,
    packed_twin,
)
from stompp_kernels.nn import (
    BinaryLayer,
    BinaryMatmul,
    BinaryWeightLayer,
    PackedConv2d,
    PackedLinear,
    PackedOnFloats,
    ProgressiveActivation,
    SharedSigns,
    SignActivation,
)
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.nn.reshaped_convs import ReshapedLayer, reshape_of
from stompp_kernels.ops import Threshold


def pack_modules(model: nn.Module, fast: bool = False) -> nn.Module:
    """The model in eval mode, which is changed: each committed layer packs its own input and gives floats.

    Where a function of each value is all that reads them, and a packed layer all that reads its results, the first
    layer gives the next one's words if the function's signs are one threshold of its sums.

    Args:
        fast: let linear layers that stay in float, and the attention of transformers, multiply bfloat16 where the
            processor does.
    """
    twins = {name: _twin(name, layer) for name, layer in model.named_modules() if isinstance(layer, BinaryLayer)}
    packed = {name: twin for name, twin in twins.items() if twin is not None}
    linear = [name for name, twin in packed.items() if isinstance(twin, PackedLinear)]
    folded = [chain for chain in sign_chains(model, linear) if _fold(model, chain, packed)]
    swap_layers(model, packed, folded)
    _swap_products(model)
    owned = {module.input_activation for module in model.modules() if isinstance(module, BinaryLayer)}
    owned |= {a for module in model.modules() if isinstance(module, BinaryMatmul) for a in module.activations}
    for name, module in list(model.named_modules()):
        if isinstance(module, ProgressiveActivation) and module.committed and module not in owned:
            model.set_submodule(name, SignActivation())
    if fast:
        round_linear_layers(model)
        round_attention(model)
    return model.eval().requires_grad_(False)


def _swap_products(model: nn.Module) -> None:
    """Puts packed products in the places of the model's committed ones, which may have several names."""
    made: dict[nn.Module, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, BinaryMatmul) and module.committed:
            model.set_submodule(name, made.setdefault(module, matmul_twin(module, name)))


@torch.no_grad()
def _fold(model: nn.Module, chain: SignChain, twins: dict[str, PackedLayer]) -> bool:
    """Gives the chain's layer thresholds that do its function's work, or says why not."""
    layer, function = model.get_submodule(chain.layer), model.get_submodule(chain.function)
    assert isinstance(layer, BinaryLayer)
    affine, K = own_affine(layer), layer.weight[0].numel()
    found = fold_function(function, affine, K)
    if isinstance(found, Threshold):
        twins[chain.layer] = packed_twin(layer, found, (chain.layer, chain.function))
        return True
    reach, middle = K * float(affine.scale[found].abs()), float(affine.bias[found])
    twins[chain.layer].why_floats = (
        f"only signs are read behind {type(function).__name__}, but those of channel {found}, whose sums reach "
        f"{middle - reach:.3g} to {middle + reach:.3g}, are no single threshold"
    )
    return False


def swap_layers(model: nn.Module, twins: Mapping[str, PackedLayer], folded: Sequence[SignChain] = ()) -> None:
    """Puts packed layers in the places of the model's layers of these names.

    Layers that are children of one module share the packing where they are given the same tensor, as an attention's
    query, key and value are.

    Args:
        folded: chains whose layer writes the reader's words: nothing is left to their functions.
    """
    readers = {chain.reader for chain in folded}
    names = {module: name for name, module in model.named_modules()}
    swapped: dict[str, nn.Module] = {}
    for parent in list(model.modules()):
        shared = {images: SharedSigns(images) for images in (False, True)}
        # Not named_children, which leaves out a layer's other names.
        for name, layer in list(parent._modules.items()):
            full_name = "" if layer is None else names[layer]
            if layer is None or full_name not in twins:
                continue
            if full_name not in swapped:
                twin = twins[full_name]
                reads_floats = not isinstance(twin, BinaryWeightLayer) and full_name not in readers
                signs = shared[isinstance(twin, PackedConv2d)]
                swapped[full_name] = PackedOnFloats(twin, signs) if reads_floats else twin
                if reshape_of(layer) is not None:
                    swapped[full_name] = ReshapedLayer(swapped[full_name], layer)
            setattr(parent, name, swapped[full_name])
    for chain in folded:
        model.set_submodule(chain.function, nn.Identity())
    for module in model.modules():
        if hasattr(module, "save_pretrained"):
            module.save_pretrained = _refuse_save_pretrained


def _refuse_save_pretrained(*args: Any, **kwargs: Any) -> None:
    """Stands in the place of a model's own method, in which packed layers would lose their settings without a word."""
    raise ValueError(
        "save_pretrained cannot save a packed network, as from_pretrained could not read it; use "
        "sk.save_packed(packed, path) and sk.load_packed(path)"
    )


def _twin(name: str, layer: BinaryLayer) -> PackedLayer | None:
    """None where the layer stays as it is."""
    if is_packable(layer):
        return packed_twin(layer, own_affine(layer), (name,))
    if has_binary_weight(layer):
        return binary_weight_twin(layer, own_affine(layer), (name,))
    return None
