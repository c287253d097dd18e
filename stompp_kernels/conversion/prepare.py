"""prepare: a float model's eligible layers become progressive ones."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.conversion.split_activations import RELU_LIKE, split_activations, unshare_activations
from stompp_kernels.nn import BinaryConv2d, BinaryLayer, BinaryLinear, ProgressiveActivation
from stompp_kernels.nn.binary import LATENT_STD
from stompp_kernels.ops.checks import check_choice
from stompp_kernels.progression import link, trace_calls
from stompp_kernels.progression.example_run import as_arguments, undisturbed
from stompp_kernels.progression.execution import Call
from stompp_kernels.progression.stompp import BINARIZE
from stompp_kernels.table import table

SHORTCUT_NAMES = r"(^|[._])(downsample|shortcut)"
_UNSUPPORTED = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Bilinear)
SCALES = (None, "channel", "tensor")
INPUT_SCALES = (None, "tensor")


@dataclass(frozen=True)
class LayerReport:
    """What prepare did with one module: its name, its type before, the action and the reason."""

    name: str
    kind: str
    action: str
    reason: str


@dataclass(frozen=True)
class PreparationReport:
    """One row per layer, in order of execution, then one per activation; ``print`` shows a table."""

    rows: tuple[LayerReport, ...]

    def binarized(self) -> list[str]:
        """Names of the binarized layers."""
        return [row.name for row in self.rows if row.action == "binarized"]

    def __str__(self) -> str:
        cells = [(row.name, row.kind, row.action, row.reason) for row in self.rows]
        return table(("layer", "was", "action", "why"), cells)


def prepare(
    model: nn.Module,
    example_inputs: Any,
    *,
    binarize: str = "both",
    keep_first: bool = True,
    keep_last: bool = True,
    keep: Sequence[str] = (SHORTCUT_NAMES,),
    scale: str | None = None,
    latent_std: float | None = LATENT_STD,
    input_scale: str | None = None,
    padding_value: int = 0,
) -> tuple[nn.Module, PreparationReport]:
    """A copy of a float model in which eligible layers are progressive.

    Conv2d and Linear layers become BinaryConv2d and BinaryLinear; a ReLU (ReLU6, Hardtanh) whose output arrives at one
    becomes a ProgressiveActivation, and a layer that no such activation feeds gets one of its own, after a GELU or SiLU
    too. First, last and downsample layers stay in float, and so do activations that feed no binarized layer, subclasses
    of Conv2d and Linear (parametrized ones too), and layers with forward hooks.

    A ReLU that runs at several places, or is a function, is first given a module for each place (``relu``, ``relu_1``,
    ...) if it feeds such a layer. torch.fx reads the forward of the module that calls it, and of no other; what that
    module computes, its type and the names in its state dict stay.

    Args:
        model: left as it is.
        example_inputs: a tensor, tuple or dict of inputs; one sample is enough. The model is run on it to find the
            order of execution and, in eval and in training mode, the paths of gradients (see ``sk.link``); not zeros,
            so that the signs of inputs can be checked.
        binarize: "both" weights and activations, or "weights".
        keep_first, keep_last: the first and the last eligible layer to execute stay in float.
        keep: regular expressions, searched in qualified names; layers that match stay in float.
        scale: None: the layer computes with its weights as they are. "channel" or "tensor": it computes with
            u = weight / alpha and multiplies its output by alpha, a fixed scale, so that a pretrained layer's function
            is kept. alpha is chosen so that u has standard deviation ``latent_std``.
        latent_std: standard deviation of the latent weights; with scale None they are multiplied to have it (BatchNorm
            absorbs the factor). None keeps the weights, and with a scale uses the mean of |weight| as alpha.
        input_scale: None, or "tensor": a layer that binarizes its own input x computes with x / beta and multiplies its
            output by beta, a fixed scale, so that signs stand for values of the size that they replace (XNOR-Net,
            Rastegari et al. 2016). beta is the mean of |x| over the example inputs, which must be real ones then.
        padding_value: 0, +1 or -1: what binary convolutions pad with.

    Returns:
        The copy and a report of what was done with each layer and why.

    Raises:
        ValueError: nothing is eligible; an activation cannot be replaced (it works in place with its result unused, or
            each of its places cannot get a module of its own: the module that calls it runs at several places itself,
            or torch.fx cannot read its forward, which branches on values or on ``self.training``, say); or a layer that
            would binarize its own input gets one without negative entries. The message names it and the reason.
    """
    check_choice("binarize", binarize, BINARIZE)
    check_choice("scale", scale, SCALES)
    check_choice("input_scale", input_scale, INPUT_SCALES)
    check_choice("padding_value", padding_value, (0, 1, -1))
    if latent_std is not None and not latent_std > 0:
        raise ValueError(f"latent_std must be positive or None, got {latent_std}")
    if any(isinstance(module, BinaryLayer) for module in model.modules()):
        raise ValueError("model is prepared already: it holds binary layers")
    if isinstance(model, (nn.Conv2d, nn.Linear)):
        raise ValueError("model is a single layer: wrap it in an nn.Sequential with what comes before and after")
    model = copy.deepcopy(model)
    calls, runs = _trace_float(model, example_inputs)
    kept = _kept_layers(calls, dict(model.named_modules()), keep_first, keep_last, keep)
    binarized = [call for call in calls if call.name not in kept]
    if not binarized:
        raise ValueError(f"model has no layer to binarize; {'; '.join(f'{n}: {r}' for n, r in kept.items())}")
    if binarize == "both":
        binarized, runs = _separate_activations(model, binarized, runs, example_inputs)

    modules = dict(model.named_modules())
    scaled = input_scale is not None and binarize == "both"
    own = [call.name for call in binarized if scaled and not call.producer]
    input_scales = _mean_magnitudes(model, example_inputs, own)
    rows = {call.name: LayerReport(call.name, _kind(modules[call.name]), "kept", "") for call in calls}
    for name, reason in kept.items():
        rows[name] = LayerReport(name, _kind(modules[name]), "kept", reason)
    replaced: dict[str, list[str]] = {}
    for call in binarized:
        own_input = False
        reason = "weights only"
        if binarize == "both":
            _check_producer(call, runs)
            own_input = not call.producer
            reason = "binarizes its own input" if own_input else f"input binarized by {call.producer}"
            if call.producer:
                replaced.setdefault(call.producer, []).append(call.name)
        layer = modules[call.name]
        _replace(
            model,
            call.name,
            _binary_layer(layer, own_input, scale, latent_std, input_scales.get(call.name), padding_value),
        )
        rows[call.name] = LayerReport(call.name, _kind(layer), "binarized", reason)
    for name in runs:
        if not isinstance(modules[name], RELU_LIKE):
            continue
        if name in replaced:
            activation = ProgressiveActivation(device=next(model.parameters()).device)
            _replace(model, name, activation.train(modules[name].training))
            rows[name] = LayerReport(name, _kind(modules[name]), "progressive", f"feeds {', '.join(replaced[name])}")
        else:
            why = "weights only" if binarize == "weights" else "feeds no binarized layer"
            rows[name] = LayerReport(name, _kind(modules[name]), "kept", why)
    link(model, example_inputs)
    if binarize == "both":
        _check_activations(model, example_inputs, binarized)
    return model, PreparationReport(tuple(rows.values()))


def _trace_float(model: nn.Module, example_inputs: Any) -> tuple[list[Call], dict[str, int]]:
    return trace_calls(
        model,
        example_inputs,
        lambda module: isinstance(module, (nn.Conv2d, nn.Linear, *_UNSUPPORTED)),
        lambda module: isinstance(module, RELU_LIKE),
    )


def _separate_activations(
    model: nn.Module, binarized: list[Call], runs: dict[str, int], example_inputs: Any
) -> tuple[list[Call], dict[str, int]]:
    """One module for each place of the activations that feed these calls; the calls and runs after that."""
    names = {call.name for call in binarized}

    def trace() -> tuple[list[Call], dict[str, int]]:
        calls, runs = _trace_float(model, example_inputs)
        return [call for call in calls if call.name in names], runs

    if unshare_activations(model, binarized):
        binarized, runs = trace()
    if split_activations(model, binarized, runs, example_inputs):
        binarized, runs = trace()
    return binarized, runs


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _check_activations(model: nn.Module, example_inputs: Any, binarized: list[Call]) -> None:
    """That each binarized layer gets the signs it was meant to get, and not +1 everywhere."""
    for call in binarized:
        if call.producer and model.get_submodule(call.name).activation is not model.get_submodule(call.producer):
            raise ValueError(
                f"layer {call.name!r}: its input came from activation {call.producer!r}, not from what replaced it; "
                "use the result of the activation, not its input changed in place, and register it under one name"
            )
    # In the prepared model, where activations that were replaced let negative values pass.
    calls, _ = trace_calls(model, example_inputs, lambda m: isinstance(m, BinaryLayer), lambda _: False)
    for call in calls:
        if call.nonnegative and model.get_submodule(call.name).input_activation is not None:
            raise ValueError(
                f"layer {call.name!r}: the signs of its input would all be +1, for it comes from a ReLU (or the like) "
                "through something that does not preserve values, such as average pooling or a concatenation; move an "
                "nn.ReLU module to right before the layer, put a BatchNorm there, or keep it in float with keep=..."
            )


def _kept_layers(
    calls: list[Call], modules: dict[str, nn.Module], keep_first: bool, keep_last: bool, keep: Sequence[str]
) -> dict[str, str]:
    """The layers that stay in float, each with its reason."""
    kept: dict[str, str] = {}
    counts: dict[str, int] = {}
    for call in calls:
        counts[call.name] = counts.get(call.name, 0) + 1
        module = modules[call.name]
        if isinstance(module, _UNSUPPORTED):
            kept[call.name] = f"{_kind(module)} has no binary kernel"
        elif type(module) not in (nn.Conv2d, nn.Linear):
            base = "Conv2d" if isinstance(module, nn.Conv2d) else "Linear"
            kept[call.name] = f"is a subclass of {base} with code of its own"
        elif module._forward_hooks or module._forward_pre_hooks:
            kept[call.name] = "has forward hooks of its own"
        elif isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
            kept[call.name] = f"padding_mode={module.padding_mode!r} has no binary kernel"
        elif isinstance(module, nn.Conv2d) and _numeric_padding(module) is None:
            kept[call.name] = "padding='same' is not symmetric for this kernel"
        elif counts[call.name] > 1:
            kept[call.name] = "runs at several places"
    eligible = [call.name for call in calls if call.name not in kept]
    if keep_first and eligible:
        kept[eligible[0]] = "first layer"
    if keep_last and eligible:
        kept[eligible[-1]] = "last layer"
    for name in eligible:
        for pattern in keep:
            if re.search(pattern, name):
                kept.setdefault(name, "downsample layer" if pattern == SHORTCUT_NAMES else f"matches keep={pattern!r}")
    return kept


def _check_producer(call: Call, runs: dict[str, int]) -> None:
    if call.functional:
        raise ValueError(
            f"layer {call.name!r}: its input comes from a functional {call.functional}, which cannot be replaced; "
            "use an nn.ReLU module there, or keep the layer in float with keep=..."
        )
    if call.producer and runs[call.producer] > 1:
        raise ValueError(
            f"layer {call.name!r}: its input comes from activation {call.producer!r}, which runs at "
            f"{runs[call.producer]} places and would need a mask for each; give each place a module of its own"
        )


def _numeric_padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """(height, width), or None where "same" pads the two sides differently."""
    if not isinstance(conv.padding, str):
        return tuple(conv.padding)
    if conv.padding == "valid":
        return (0, 0)
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return None if any(r % 2 for r in reach) else (reach[0] // 2, reach[1] // 2)


def _mean_magnitudes(model: nn.Module, example_inputs: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """The mean of |x| over the inputs of each of these layers, [1]; none for one that only sees zeros."""
    found: dict[str, Tensor] = {}
    args, kwargs = as_arguments(example_inputs)
    with ExitStack() as stack:
        for name in names:

            def note(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                found[name] = inputs[0].abs().mean(dtype=torch.float32).reshape(1)

            stack.callback(model.get_submodule(name).register_forward_pre_hook(note).remove)
        stack.enter_context(undisturbed(model))
        model(*args, **kwargs)
    return {name: mean for name, mean in found.items() if mean > 0}


def _binary_layer(
    layer: nn.Module,
    own_input: bool,
    scale: str | None,
    latent_std: float | None,
    input_scale: Tensor | None,
    padding_value: int,
) -> BinaryLayer:
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    w = layer.weight.detach()
    alpha = None
    if scale is not None:
        flat = w.flatten() if scale == "tensor" else w.flatten(1)
        alpha = (flat.abs().mean(-1) if latent_std is None else flat.std(-1, correction=0) / latent_std).reshape(-1)
        alpha = torch.where(alpha > 0, alpha, torch.ones_like(alpha))
    common: dict[str, Any] = {
        "bias": layer.bias is not None,
        "binarize_input": own_input,
        "alpha": alpha,
        "input_scale": input_scale,
        "device": w.device,
        "dtype": w.dtype,
    }
    binary: BinaryLayer
    if isinstance(layer, nn.Linear):
        binary = BinaryLinear(layer.in_features, layer.out_features, **common)
    else:
        padding = _numeric_padding(layer)
        assert padding is not None
        binary = BinaryConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            padding,
            layer.dilation,
            layer.groups,
            padding_value=padding_value,
            **common,
        )
    with torch.no_grad():
        std = float(w.std(correction=0))
        factor = latent_std / std if scale is None and latent_std is not None and std > 0 else 1.0
        binary.weight.copy_(w * factor)
        if layer.bias is not None and binary.bias is not None:
            binary.bias.copy_(layer.bias * factor)
            binary.bias.requires_grad_(layer.bias.requires_grad)
    binary.weight.requires_grad_(layer.weight.requires_grad)
    binary.train(layer.training)
    return binary


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
