"""Which layers stay in float, and why; which of those to be binarized cannot be."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.conversion.prepare.copy import shared_tensors
from stompp_kernels.conversion.prepare.layers import (
    attached_names,
    kind_of,
    numeric_padding,
    taken_attribute,
    transposed_linear,
)
from stompp_kernels.conversion.prepare.report import LayerReport, RefusedLayers
from stompp_kernels.conversion.prepare.roles import Roles
from stompp_kernels.conversion.prepare.split_forward import is_relu_like
from stompp_kernels.nn import BinaryLayer
from stompp_kernels.progression import trace_calls
from stompp_kernels.progression.example_run import forwards, has_own_forward
from stompp_kernels.progression.execution import Call, place
from stompp_kernels.progression.never_negative import never_negative
from stompp_kernels.progression.parameter_use import ParameterUse, trace_parameter_use

SHORTCUT_NAMES = r"(^|[._])(downsample|shortcut)"
_CONVS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
_UNSUPPORTED = (nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d, nn.Bilinear)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_patterns(model: nn.Module, keep: Sequence[str]) -> None:
    """Warns of a pattern that matches no module.

    Raises:
        ValueError: ``keep`` is no sequence of regular expressions.
    """
    if isinstance(keep, str):
        raise ValueError(f"keep must be a sequence of regular expressions, got the string {keep!r}")
    names = [name for name, _ in model.named_modules()]
    for pattern in keep:
        try:
            found = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise ValueError(f"keep must hold regular expressions, got {pattern!r} ({error})") from error
        if not found and pattern != SHORTCUT_NAMES:
            warnings.warn(f"keep={pattern!r} matches no module of the model", RuntimeWarning, stacklevel=4)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer that prepare says something about in any case."""
    return isinstance(module, (*_CONVS, nn.Linear, *_UNSUPPORTED, *transposed_linear()))


def trace_float(model: nn.Module, example_inputs: Any) -> tuple[list[Call], dict[str, int]]:
    """The calls of a float model's layers, with the ReLU-like activations that feed them, and its modules' runs."""
    return trace_calls(model, example_inputs, is_layer, is_relu_like)


def kept_layers(
    model: nn.Module,
    calls: list[Call],
    use: ParameterUse,
    roles: Roles,
    keep_first: bool,
    keep_last: bool,
    keep: Sequence[str],
) -> dict[str, str]:
    """The layers that stay in float, each with its reason."""
    modules = dict(model.named_modules())
    kept: dict[str, str] = {}
    for call in calls:
        reason = _reason_to_stay(modules[call.name])
        if reason is not None:
            kept[call.name] = reason
    eligible = list(dict.fromkeys(call.name for call in calls if call.name not in kept))
    if keep_first and eligible:
        first = eligible[0]
        # A transformer's query, key and value are one projection.
        alike = [name for name in roles.reading_alike(first) if name in eligible]
        kept.update(dict.fromkeys(alike, f"part of the first projection: it reads what {first} reads"))
        kept[first] = "first layer"
    if keep_last and eligible:
        kept[eligible[-1]] = "last layer"
    for name in eligible:
        for pattern in keep:
            if re.search(pattern, name):
                kept.setdefault(name, "downsample layer" if pattern == SHORTCUT_NAMES else f"matches keep={pattern!r}")
        if name in roles.shortcuts and SHORTCUT_NAMES in keep:
            kept.setdefault(name, "projects a shortcut")
        if (found := use.read_elsewhere(name)) is not None:
            kept.setdefault(name, f"its {found[0]} is read by {place(model, found[1].reader)} too, {found[1].mode}")
    _keep_shared(model, eligible, kept)
    return kept


def _keep_shared(model: nn.Module, eligible: list[str], kept: dict[str, str]) -> None:
    """Adds the layers that share a parameter, but for those that can share one latent weight (see ``tied_layers``)."""
    shared = shared_tensors(model)
    waiting = [name for name in eligible if name not in kept]
    while waiting:
        stays = {name: why for name in waiting if (why := _reason_of_sharing(model, name, shared, waiting)) is not None}
        kept.update(stays)
        waiting = [name for name in waiting if name not in stays] if stays else []


def _reason_of_sharing(
    model: nn.Module, name: str, shared: Mapping[tuple[str, str], list[tuple[str, str]]], binarized: Sequence[str]
) -> str | None:
    """Why a layer that shares a parameter cannot be binarized along with these; None where it can."""
    layer = model.get_submodule(name)
    if others := shared.get((name, "bias")):
        return f"shares its bias with {'.'.join(others[0])}"
    for module, parameter in shared.get((name, "weight"), ()):
        owner = model.get_submodule(module)
        if module not in binarized:
            return f"shares its weight with {module}.{parameter}, which stays in float".replace("with .", "with ")
        if type(owner) is not type(layer) or owner.weight is not layer.weight:
            return f"shares its weight with {module}.{parameter} by a view of it"
    return None


def check_batches(calls: Sequence[Call]) -> None:
    """Checks that the inputs of the layers have a batch dimension, without which masks would lose one."""
    refused = {
        call.name: f"its input of shape {list(call.single)} has no batch dimension; unsqueeze(0) gives it one, or keep "
        "the layer in float with keep=..."
        for call in calls
        if call.single
    }
    if refused:
        raise RefusedLayers(refused)


def tied_layers(model: nn.Module, binarized: Sequence[str]) -> list[list[str]]:
    """The names of those of these layers that share a weight, in groups."""
    groups: dict[int, list[str]] = {}
    for name in binarized:
        groups.setdefault(id(model.get_submodule(name).weight), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def check_ties(model: nn.Module, binarized: Sequence[str]) -> None:
    """Checks that layers that share a weight are binarized together."""
    shared = shared_tensors(model)
    reasons = {name: _reason_of_sharing(model, name, shared, binarized) for name in binarized}
    refused = {name: f"{reason}; keep it in float with keep=..." for name, reason in reasons.items() if reason}
    if refused:
        raise RefusedLayers(refused)


def _reason_to_stay(module: nn.Module) -> str | None:
    """Why a layer cannot be binarized, by itself; None where it can."""
    if isinstance(module, _UNSUPPORTED):
        return f"{kind_of(module)} has no binary kernel"
    if type(module) not in (*_CONVS, nn.Linear, *transposed_linear()):
        base = next((kind for kind in _CONVS if isinstance(module, kind)), nn.Linear)
        return f"is a subclass of {base.__name__} with code of its own"
    if has_own_forward(module):
        return "has a forward of its own, not that of its class"
    if module._forward_hooks or module._forward_pre_hooks:
        return "has forward hooks of its own"
    weight = module._parameters.get("weight")
    if type(weight) is not nn.Parameter:
        return "its weight is no parameter of its own" if weight is None else f"its weight is a {type(weight).__name__}"
    if weight.dtype not in _DTYPES:
        return f"its weight is of type {str(weight.dtype).removeprefix('torch.')}, not of a floating-point one"
    if isinstance(module, transposed_linear()) and (weight._backward_hooks or weight._post_accumulate_grad_hooks):
        return "its weight has gradient hooks, which would find it transposed"
    if isinstance(module, _CONVS) and module.padding_mode != "zeros":
        return f"padding_mode={module.padding_mode!r} has no binary kernel"
    if isinstance(module, (nn.Conv1d, nn.Conv2d)) and numeric_padding(module) is None:
        return "padding='same' is not symmetric for this kernel"
    if isinstance(module, nn.ConvTranspose2d) and (why := _why_not_transposed(module)) is not None:
        return why
    if (taken := taken_attribute(module)) is not None:
        return f"has an attribute {taken!r}, a name that binary layers use"
    return None


def _why_not_transposed(conv: nn.ConvTranspose2d) -> str | None:
    """Why a transposed convolution has no binary kernel, if it has none."""
    for name in ("kernel_size", "stride", "padding", "output_padding", "dilation"):
        if len(set(getattr(conv, name))) > 1:
            return f"{name} {tuple(getattr(conv, name))} differs in height and width, for which it has no binary kernel"
    if conv.dilation[0] > 1 or conv.kernel_size[0] % conv.stride[0] or conv.output_padding[0] > conv.padding[0]:
        return (
            f"kernel {conv.kernel_size[0]} at stride {conv.stride[0]} has no binary kernel: one that is a multiple of "
            "the stride has, without dilation, its output padded at most by its padding"
        )
    return None


def other_multiplications(model: nn.Module, calls: list[Call], use: ParameterUse) -> list[LayerReport]:
    """A row for each module that multiplies by a weight of its own and is none of the layers called."""
    rows = []
    called = {call.name for call in calls}
    for name, module in model.named_modules():
        if any(name == layer or name.startswith(f"{layer}.") for layer in called):
            continue
        kind, reason = kind_of(module), None
        runs = [mode for mode, names in use.called.items() if name in names]
        found = use.read_elsewhere(name) if is_layer(module) or name in use.products else None
        if found is not None:
            how = "" if runs else ", and its own forward does not run"
            reason = f"its {found[0]} is read by {place(model, found[1].reader)} {found[1].mode}{how}"
        elif is_layer(module) and runs:
            training = all("training" in mode for mode in runs)
            reason = "runs in training mode only" if training else "does not run in eval mode without gradients"
        elif name in use.products:
            reason = f"multiplies by its {use.products[name]}, but {kind} has no binary kernel"
        if reason is not None:
            rows.append(LayerReport(name or use.products.get(name, ""), kind, "kept", reason))
    return rows


def attachments(module: nn.Module) -> str:
    """What a report adds on a replaced module: the attributes and hooks that went over to what replaces it."""
    names = attached_names(module)
    return f"; keeps {', '.join(names)}" if names else ""


def merged(calls: Sequence[Call]) -> list[Call]:
    """One call for each layer: of one that runs several times, what all its runs have in common.

    Where an activation feeds some of them only, the layer binarizes its own input.
    """
    by_name: dict[str, list[Call]] = {}
    for call in calls:
        by_name.setdefault(call.name, []).append(call)
    found = []
    for own in by_name.values():
        first = next((call for call in own if call.functional), own[0])
        if len({(call.producer, bool(call.functional)) for call in own}) > 1:
            first = replace(first, producer="", functional="")
        single = next((call.single for call in own if call.single), ())
        nonnegative, dropout = any(call.nonnegative for call in own), any(call.dropout for call in own)
        found.append(replace(first, dropout=dropout, nonnegative=nonnegative, single=single))
    return found


def runs_at_several_places(call: Call, runs: Mapping[str, int]) -> bool:
    """Whether the activation that feeds a call runs more often than the module whose forward calls it."""
    return bool(call.producer) and runs[call.producer] > runs.get(call.place, 1)


def check_producers(model: nn.Module, calls: Sequence[Call], runs: Mapping[str, int]) -> None:
    """Checks that the activations that feed these calls can be replaced."""
    refused: dict[str, str] = {}
    for call in calls:
        taken = taken_attribute(model.get_submodule(call.producer)) if call.producer else None
        if call.functional:
            refused[call.name] = (
                f"its input comes from a functional {call.functional}, which cannot be replaced; "
                "use an nn.ReLU module there, or keep the layer in float with keep=..."
            )
        elif runs_at_several_places(call, runs):
            refused[call.name] = (
                f"its input comes from activation {call.producer!r}, which runs at {runs[call.producer]} places and "
                "would need a mask for each; give each place a module of its own, or keep the layer in float with "
                "keep=..."
            )
        elif taken is not None:
            refused[call.name] = (
                f"its input comes from activation {call.producer!r}, which has an attribute {taken!r}, a name that "
                "progressive activations use; rename it, or keep the layer in float with keep=..."
            )
    if refused:
        raise RefusedLayers(refused)


def check_reads(model: nn.Module, example_inputs: Any, binarized: Sequence[str]) -> None:
    """Checks that the binary layers run, and that nothing else reads their weights, in every mode."""
    use = trace_parameter_use(model, example_inputs)
    evaluated = [mode for mode in use.called if "eval" in mode]
    refused: dict[str, str] = {}
    for name in binarized:
        idle = [mode for mode in evaluated if name not in use.called[mode]]
        if (found := use.read_elsewhere(name)) is not None:
            refused[name] = (
                f"{place(model, found[1].reader)} reads its latent {found[0]} {found[1].mode}, and not the signs that "
                "the layer computes with; call the layer there, or keep it in float with keep=..."
            )
        elif idle:
            refused[name] = (
                f"what replaced it does not run {idle[0]}: the model calls the float layer, or none; hold layers as "
                "submodules only, not in lists, dicts or closures, or keep the layer in float with keep=..."
            )
    if refused:
        raise RefusedLayers(refused)


def check_signs(model: nn.Module, example_inputs: Any, calls: Sequence[Call]) -> dict[str, str]:
    """Checks that each binarized layer gets the signs it was meant to get, and not +1 everywhere.

    Returns:
        Of layers of which some inputs have no sign, which.
    """
    refused: dict[str, str] = {}
    for call in calls:
        if call.producer and model.get_submodule(call.name).activation is not model.get_submodule(call.producer):
            refused[call.name] = (
                f"its input came from activation {call.producer!r}, not from what replaced it; use the result of the "
                "activation, not its input changed in place, and register it under one name, or keep the layer in "
                "float with keep=..."
            )
    # In the prepared model, where activations that were replaced let negative values pass.
    read = {call.name: call.producer or call.name for call in calls}
    axes = {name: -1 if hasattr(model.get_submodule(layer), "in_features") else 1 for layer, name in read.items()}
    with batch_statistics(model):
        counts = never_negative(model, example_inputs, axes)
        found, _ = trace_calls(model, example_inputs, lambda m: isinstance(m, BinaryLayer), lambda _: False)
    for call in found:
        # A shift that is learned can move the threshold off the end of a ReLU's range.
        if call.nonnegative and not call.shift and model.get_submodule(call.name).input_activation is not None:
            refused[call.name] = (
                "the signs of its input would all be +1, for it comes from a ReLU (or the like) through something that "
                "does not preserve values, such as average pooling or a concatenation; move an nn.ReLU module to right "
                "before the layer, put a BatchNorm or a shift that is learned for each channel there, or keep it in "
                "float with keep=..."
            )
    if refused:
        raise RefusedLayers(refused)
    shifted = {call.name for call in calls if call.shift}
    said: dict[str, str] = {}
    for layer, name in read.items():
        count, channels = counts.get(name, (0, 0))
        if count and layer not in shifted:
            what = f"the input of {name}" if name != layer else "its input"
            said[layer] = f"{count} of {channels} channels of {what} are never negative"
    return said


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, normalizations that have seen no data yet use the statistics of the batch.

    A mean of 0 and a variance of 1 map what is not negative to what is not, as no trained BatchNorm does.
    """

    def normalize(name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any] | None:
        if not _is_fresh(module):
            return None

        def with_batch(*inputs: Any, **keywords: Any) -> Any:
            module.training = True
            try:
                return forward(*inputs, **keywords)
            except ValueError:  # one value per channel has no variance
                module.training = False
                return forward(*map(_standardized, inputs), **keywords)
            finally:
                module.training = False

        return with_batch

    with forwards(model, normalize):
        yield


def _is_fresh(module: nn.Module) -> bool:
    mean, variance = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return False
    return bool((mean == 0).all()) and bool((variance == 1).all())


def _standardized(x: Any) -> Any:
    """x with mean 0 and standard deviation 1 over all its entries."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return (x - x.mean()) / x.std(correction=0).clamp_min(torch.finfo(x.dtype).tiny)
