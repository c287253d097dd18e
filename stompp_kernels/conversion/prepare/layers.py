"""Puts progressive layers and activations into the places of float ones, with what users attached to these."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.conversion.prepare.copy import adopt_attributes
from stompp_kernels.nn import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryConvTranspose2d,
    BinaryLayer,
    BinaryLinear,
    ProgressiveActivation,
)
from stompp_kernels.nn.reshaped_convs import weight_of_phases
from stompp_kernels.progression.example_run import as_arguments, forwards, undisturbed

BINARY_CONVS: dict[Any, Any] = {
    nn.Conv1d: BinaryConv1d,
    nn.Conv2d: BinaryConv2d,
    nn.ConvTranspose2d: BinaryConvTranspose2d,
}
_HOOKS_OF_RUNS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOKS_OF_STATES = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_post_hooks")
_HOOK_OPTIONS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


def transposed_linear() -> tuple[type[nn.Module], ...]:
    """transformers' Conv1D, a linear layer that keeps its weight as [in, out]; nothing where it is not loaded."""
    module = sys.modules.get("transformers.pytorch_utils")
    return () if module is None else (module.Conv1D,)


def kind_of(module: nn.Module) -> str:
    """Returns the name of a module's type."""
    return type(module).__name__


def numeric_padding(conv: nn.Conv1d | nn.Conv2d) -> tuple[int, ...] | None:
    """One number for each dimension, or None where "same" pads the two sides differently."""
    if not isinstance(conv.padding, str):
        return tuple(conv.padding)
    if conv.padding == "valid":
        return (0,) * len(conv.kernel_size)
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return None if any(r % 2 for r in reach) else tuple(r // 2 for r in reach)


def mean_magnitudes(model: nn.Module, example_inputs: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """The mean of |x| over the inputs of each of these layers, [1]; none for one that only sees zeros."""
    found: dict[str, Tensor] = {}
    args, kwargs = as_arguments(example_inputs)

    def note(name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any] | None:
        def observed(x: Tensor) -> Any:
            found[name] = x.abs().mean(dtype=torch.float32).reshape(1)
            return forward(x)

        return observed if name in names else None

    if names:
        with forwards(model, note), undisturbed(model):
            model(*args, **kwargs)
    return {name: mean for name, mean in found.items() if mean > 0}


def binary_layer(
    layer: nn.Module,
    own_input: bool,
    scale: str | None,
    latent_std: float | None,
    input_scale: Tensor | None,
    padding_value: int,
) -> BinaryLayer:
    """The progressive layer of a Conv2d, a Linear, or a transposed linear layer; see ``sk.prepare`` for the scales."""
    weight, bias = layer.weight, layer.bias
    w = weight_of_twin(layer)
    alpha = None
    if scale is not None:
        flat = w.flatten() if scale == "tensor" else w.flatten(1)
        alpha = (flat.abs().mean(-1) if latent_std is None else flat.std(-1, correction=0) / latent_std).reshape(-1)
        alpha = torch.where(alpha > 0, alpha, torch.ones_like(alpha))
    common: dict[str, Any] = {
        "bias": bias is not None,
        "binarize_input": own_input,
        "alpha": alpha,
        "input_scale": input_scale,
        "device": w.device,
        "dtype": w.dtype,
    }
    binary: BinaryLayer
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        padding = numeric_padding(layer)
        assert padding is not None
        geometry: tuple[Any, ...] = (layer.kernel_size, layer.stride, padding, layer.dilation)
        kind: Any = BinaryConv2d
        if isinstance(layer, nn.Conv1d):
            kind, geometry = BinaryConv1d, tuple(value for (value,) in geometry)
        channels = layer.in_channels, layer.out_channels
        binary = kind(*channels, *geometry, layer.groups, padding_value=padding_value, **common)
    elif isinstance(layer, nn.ConvTranspose2d):
        numbers = (layer.kernel_size[0], layer.stride[0], layer.padding[0], layer.output_padding[0], layer.groups)
        binary = BinaryConvTranspose2d(layer.in_channels, layer.out_channels, *numbers, **common)
        bias = None if bias is None else bias.repeat_interleave(layer.stride[0] ** 2)
    else:
        binary = BinaryLinear(w.shape[1], w.shape[0], **common)
    with torch.no_grad():
        std = float(w.std(correction=0))
        factor = latent_std / std if scale is None and latent_std is not None and std > 0 else 1.0
        for target, values, source in ((binary.weight, w, weight), (binary.bias, bias, bias)):
            if target is not None and source is not None:
                target.copy_(values * factor)
                target.requires_grad_(source.requires_grad)
                adopt_attributes(source, target)
    binary.train(layer.training)
    adopt(layer, binary)
    return binary


def weight_of_twin(layer: nn.Module) -> Tensor:
    """Returns the weights of a layer in the shape that its binary twin has."""
    weight = layer.weight.detach()
    if isinstance(layer, transposed_linear()):
        return weight.t().contiguous()
    if isinstance(layer, nn.Conv1d):
        return weight.unsqueeze(2)
    return weight_of_phases(weight, layer.stride[0], layer.groups) if isinstance(layer, nn.ConvTranspose2d) else weight


def progressive_activation(activation: nn.Module, device: torch.device) -> ProgressiveActivation:
    """What takes the place of a ReLU-like activation."""
    progressive = ProgressiveActivation(device=device)
    progressive.train(activation.training)
    adopt(activation, progressive)
    return progressive


@functools.cache
def _own_attributes(kind: Any) -> frozenset[str]:
    """What the constructor of a layer's or an activation's type sets."""
    with torch.device("meta"):  # draws no random numbers
        if issubclass(kind, (nn.ReLU, nn.Hardtanh)):
            return frozenset(vars(kind()))
        return frozenset(vars(kind(*((1, 1, 1) if kind in BINARY_CONVS else (1, 1)))))


@functools.cache
def _names_taken(kind: Any) -> frozenset[str]:
    """What a module that takes the place of this kind needs for itself."""
    with torch.device("meta"):
        if issubclass(kind, (nn.ReLU, nn.Hardtanh)):
            return frozenset(dir(ProgressiveActivation()))
        return frozenset(dir(BINARY_CONVS[kind](1, 1, 1) if kind in BINARY_CONVS else BinaryLinear(1, 1)))


def _attached(module: nn.Module) -> dict[str, Any]:
    """Attributes that users set on a module of a known type: plain ones, parameters, buffers and submodules."""
    own = _own_attributes(_base(module))
    plain = {name: value for name, value in vars(module).items() if name not in own and name != "forward"}
    stores = {**module._parameters, **module._buffers, **module._modules}
    return {**plain, **{name: value for name, value in stores.items() if name not in ("weight", "bias")}}


def _base(module: nn.Module) -> Any:
    """The type of layer or activation that a module is, or is derived from."""
    bases = (*BINARY_CONVS, nn.Linear, *transposed_linear(), nn.ReLU, nn.ReLU6, nn.Hardtanh)
    return next((base for base in bases if isinstance(module, base)), nn.Module)


def taken_attribute(module: nn.Module) -> str | None:
    """The name of an attribute set on a layer or an activation that a progressive one has too, with another meaning."""
    return next((name for name in _attached(module) if name in _names_taken(_base(module))), None)


def adopt(source: nn.Module, target: nn.Module) -> None:
    """Gives ``target`` the hooks and attributes that users attached to ``source``, whose place it takes."""
    for name, value in _attached(source).items():
        if name in source._buffers:
            target.register_buffer(name, value, name not in source._non_persistent_buffers_set)
        elif name in source._parameters:
            target.register_parameter(name, value)
        elif name in source._modules:
            target.add_module(name, value)
        else:
            setattr(target, name, value)
    for store in (*_HOOKS_OF_RUNS, *_HOOKS_OF_STATES, *_HOOK_OPTIONS):
        getattr(target, store).update(getattr(source, store))
    target._is_full_backward_hook = source._is_full_backward_hook
    for hook in source._load_state_dict_pre_hooks.values():
        # Each is kept with a reference to the module that it was registered on.
        target._register_load_state_dict_pre_hook(hook.hook, hook.with_module)


def attached_names(module: nn.Module) -> list[str]:
    """What users attached to a layer or an activation, in words for a report."""
    stores = (*_HOOKS_OF_RUNS, *_HOOKS_OF_STATES, "_load_state_dict_pre_hooks")
    hooks = ["hooks"] if any(getattr(module, store) for store in stores) else []
    return sorted(_attached(module)) + hooks


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module into the place of another, under each of its names."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child, value in parent._modules.items():
            if value is old:
                parent._modules[child] = module
