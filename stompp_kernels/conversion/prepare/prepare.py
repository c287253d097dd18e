"""prepare: a float model's eligible layers become progressive ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from typing import Any

import torch
from torch import nn

from stompp_kernels.conversion.prepare.checks import (
    SHORTCUT_NAMES,
    attachments,
    check_batches,
    check_patterns,
    check_producers,
    check_reads,
    check_signs,
    check_ties,
    is_layer,
    kept_layers,
    merged,
    other_multiplications,
    tied_layers,
    trace_float,
)
from stompp_kernels.conversion.prepare.copy import copy_model
from stompp_kernels.conversion.prepare.folder import remembers_settings
from stompp_kernels.conversion.prepare.keep_signs import keep_signs
from stompp_kernels.conversion.prepare.layers import (
    binary_layer,
    kind_of,
    mean_magnitudes,
    progressive_activation,
    replace,
    transposed_linear,
)
from stompp_kernels.conversion.prepare.report import LayerReport, PreparationReport, RefusedLayers, refusal
from stompp_kernels.conversion.prepare.roles import find_roles
from stompp_kernels.conversion.prepare.split_activations import name_functions, split_activations, unshare_activations
from stompp_kernels.conversion.prepare.split_forward import RELU_LIKE
from stompp_kernels.nn import BinaryLayer, BinaryMatmul
from stompp_kernels.nn.binary import LATENT_STD, tie_weights
from stompp_kernels.nn.decoder_layers import keep_activations
from stompp_kernels.ops.checks import check_choice, check_module
from stompp_kernels.progression.execution import Call, SeveralShapesError, connect
from stompp_kernels.progression.fast_paths import fast_paths_off, turn_off_fast_paths
from stompp_kernels.progression.input_checks import batch_required, check_inputs, check_values, running_on
from stompp_kernels.progression.parameter_use import trace_parameter_use
from stompp_kernels.progression.settings import BINARIZE

SCALES = (None, "channel", "tensor")
INPUT_SCALES = (None, "tensor")
ON_REFUSAL = ("raise", "keep")


@remembers_settings
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
    on_refusal: str = "raise",
) -> tuple[nn.Module, PreparationReport]:
    """Makes a copy of a float model in which eligible layers are progressive.

    Conv2d, Conv1d, ConvTranspose2d (whose kernel is a multiple of its stride) and Linear layers (transformers' Conv1D
    too) become BinaryConv2d, BinaryConv1d, BinaryConvTranspose2d and BinaryLinear; a ReLU (ReLU6, Hardtanh)
    whose output arrives at one becomes a ProgressiveActivation, and a layer that no such activation feeds gets one of
    its own, after a GELU or SiLU too. A parameter that is added right before a layer, a number for each channel, shifts
    the values that are clipped and binarized (ReActNet's RSign), and learns until they are committed. First, last and
    downsample layers stay in float, and so do activations that feed no binarized layer, subclasses of Conv2d and Linear
    (parametrized ones too), layers with forward hooks, and layers whose weights another module shares or reads; but
    layers that are binarized and share a weight go on sharing it, with one mask. Attributes, buffers and hooks that
    were set on a layer or an activation go over to what replaces it. A :class:`stompp_kernels.nn.BinaryMatmul`, a
    product of two activations, stays what it is and becomes a unit of the progression.

    The fused kernel of ``nn.TransformerEncoderLayer`` for eval mode, which reads the weights of its layers, is turned
    off where they are binary.

    A ReLU that runs at several places, or is a function, is first given a module for each place (``relu``, ``relu_1``,
    ...) if it feeds such a layer. torch.fx reads the forward of the module that calls it, and of no other; what that
    module computes, its type and the names in its state dict stay.

    Args:
        model: left as it is.
        example_inputs: a tensor, tuple or dict of inputs, of the size that the model is trained with: masks of
            activations get the sizes of a sample. One sample is enough. The model is run on it to find the order of
            execution and, in eval and in training mode, with and without gradients, what reads which weights and the
            paths of gradients (see ``sk.link``); not zeros, so that the signs of inputs can be checked, for which
            BatchNorms that saw no data yet use the statistics of these inputs.
        binarize: "both" weights and activations, or "weights".
        keep_first, keep_last: the first and the last eligible layer to execute stay in float; with the first those that
            read the same values, as key and value do, with positions added or not.
        keep: regular expressions, searched in qualified names; layers that match stay in float. It takes the place of
            the default, which keeps names with "downsample" or "shortcut", and layers of kernel 1 that project a
            shortcut by whatever name: their result is added to what other layers make of the same input.
        scale: None: the layer computes with its weights as they are. "channel" or "tensor": it computes with
            u = weight / alpha and multiplies its output by alpha, a fixed scale, so that a pretrained layer's function
            is kept. alpha is chosen so that u has standard deviation ``latent_std``.
        latent_std: standard deviation of the latent weights; with scale None they are multiplied to have it (BatchNorm
            absorbs the factor). None keeps the weights, and with a scale uses the mean of ``abs(weight)`` as alpha.
        input_scale: None, or "tensor": a layer that binarizes its own input x computes with x / beta and multiplies its
            output by beta, a fixed scale, so that signs stand for values of the size that they replace (XNOR-Net,
            Rastegari et al. 2016). beta is the mean of ``abs(x)`` over the example inputs: give real ones then.
        padding_value: 0, +1 or -1: what binary convolutions pad with.
        on_refusal: what becomes of layers that cannot be binarized as the model stands: "raise" an error that names
            all of them, or "keep" them in float, with the reason in the report.

    Returns:
        The copy and a report of what was done with each layer and why.

    Raises:
        TypeError: ``example_inputs`` is no such thing, or does not fit the model's forward.
        ValueError: the model fails on the example inputs, or they hold NaN; nothing is eligible; or, with
            on_refusal="raise", some layers cannot be binarized. The message names each with its reason, and ends with a
            ``keep`` that leaves just these in float: an activation cannot be replaced (it works in place with its
            result unused, or each of its places cannot get a module of its own: the module that calls it runs at
            several places itself, or torch.fx cannot read its forward, which branches on values or on
            ``self.training``, say); a layer that would binarize its own input gets one without negative entries; or
            what takes a layer's place would not run in every mode.

    Example:
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        ...     nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        ...     nn.Flatten(), nn.Linear(16 * 16, 10),
        ... )
        >>> prepared, report = sk.prepare(model, torch.randn(2, 3, 8, 8))
        >>> report.binarized()  # the first and the last layer stay in float
        ['3']
        >>> type(prepared[3]).__name__, type(prepared[2]).__name__, type(prepared[5]).__name__
        ('BinaryConv2d', 'ProgressiveActivation', 'ReLU')
    """
    check_module("model", model)
    check_choice("binarize", binarize, BINARIZE)
    check_choice("scale", scale, SCALES)
    check_choice("input_scale", input_scale, INPUT_SCALES)
    check_choice("padding_value", padding_value, (0, 1, -1))
    check_choice("on_refusal", on_refusal, ON_REFUSAL)
    check_patterns(model, keep)
    if latent_std is not None and not latent_std > 0:
        raise ValueError(f"latent_std must be positive or None, got {latent_std}")
    if any(isinstance(module, BinaryLayer) for module in model.modules()):
        raise ValueError("model is prepared already: it holds binary layers")
    products = [name for name, module in model.named_modules() if isinstance(module, BinaryMatmul)]
    if products and binarize == "weights":
        raise ValueError(
            f"binarize must be 'both' for this model, got 'weights': the products of activations {products} would stay "
            "clipped; make the model without them"
        )
    if isinstance(model, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        raise ValueError("model is a single layer: wrap it in an nn.Sequential with what comes before and after")
    check_inputs("example_inputs", example_inputs, model)
    check_values("example_inputs", example_inputs)
    _warn_of_types(model)
    plan = _plan(model, example_inputs, keep_first, keep_last, keep)
    options = _Options(binarize, scale, latent_std, input_scale, padding_value)
    refused: dict[str, str] = {}
    while True:
        binarized = merged([call for call in plan.calls if call.name not in plan.kept and call.name not in refused])
        if not binarized and (on_refusal == "keep" or not refused):
            raise ValueError(f"model has no layer to binarize; {plan.reasons({**refused, **plan.kept})}")
        try:
            prepared = _attempt(copy_model(model), example_inputs, plan, refused, options) if binarized else None
        except RefusedLayers as error:
            refused.update(error.reasons)  # others may be refused once these stay
            continue
        if prepared is None or (refused and on_refusal == "raise"):
            raise refusal(refused, keep, [call.name for call in binarized])
        return prepared


@dataclass(frozen=True)
class _Options:
    binarize: str
    scale: str | None
    latent_std: float | None
    input_scale: str | None
    padding_value: int


@dataclass(frozen=True)
class _Plan:
    """What is known of a float model: its calls, the layers that stay and why, and what else multiplies by weights."""

    calls: list[Call]
    runs: dict[str, int]
    kept: dict[str, str]
    others: list[LayerReport]
    notes: dict[str, str]  # on layers of which few are worth it

    def reasons(self, kept: dict[str, str]) -> str:
        found = [*kept.items(), *((row.name, row.reason) for row in self.others)]
        listed = "; ".join(f"{name}: {reason}" for name, reason in found)
        choices = {"first layer": "keep_first=False", "last layer": "keep_last=False"}
        given = [f"{choice} to binarize the {where}" for where, choice in choices.items() if where in kept.values()]
        hint = f"; give {', '.join(given)}" if given else ""
        return f"{listed}{hint}" or "no Conv2d or Linear runs in it"


def _warn_of_types(model: nn.Module) -> None:
    """Warns of parameters that ``sk.convert`` will refuse, before the model is trained."""
    types = {str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype is not torch.float32}
    if types:
        warnings.warn(
            f"model has {', '.join(sorted(types))} parameters, and sk.convert takes float32: prepare model.float(), "
            "and train it under torch.autocast where short types are wanted",
            RuntimeWarning,
            stacklevel=4,
        )


def _plan(model: nn.Module, example_inputs: Any, keep_first: bool, keep_last: bool, keep: Sequence[str]) -> _Plan:
    model = copy_model(model)
    with running_on("example_inputs", example_inputs), batch_required("example_inputs", model, is_layer):
        calls, runs = trace_float(model, example_inputs)
    with fast_paths_off(model):
        use = trace_parameter_use(model, example_inputs)
        roles = find_roles(model, example_inputs, is_layer)
    kept = kept_layers(model, calls, use, roles, keep_first, keep_last, keep)
    return _Plan(calls, runs, kept, other_multiplications(model, calls, use), roles.notes(model))


def _attempt(
    model: nn.Module, example_inputs: Any, plan: _Plan, refused: dict[str, str], options: _Options
) -> tuple[nn.Module, PreparationReport]:
    """Prepares a copy with these layers refused; raises RefusedLayers where there are more of them."""
    kept = {**refused, **plan.kept}
    calls, runs = plan.calls, plan.runs
    binarized = merged([call for call in calls if call.name not in kept])
    both = options.binarize == "both"
    check_batches(binarized)
    check_ties(model, [call.name for call in binarized])
    tied = tied_layers(model, [call.name for call in binarized])
    if both:
        binarized, runs = _separate_activations(model, binarized, runs, example_inputs)
        check_producers(model, binarized, runs)
    modules = dict(model.named_modules())
    scaled = options.input_scale is not None and both
    own = [call.name for call in binarized if scaled and not call.producer]
    input_scales = mean_magnitudes(model, example_inputs, own)
    rows = {call.name: LayerReport(call.name, kind_of(modules[call.name]), "kept", "") for call in calls}
    for name, reason in kept.items():
        rows[name] = LayerReport(name, kind_of(modules[name]), "kept", reason)
    fed: dict[str, list[str]] = {}
    for call in binarized:
        layer, own_input = modules[call.name], both and not call.producer
        how = _how(layer, call, options.binarize)
        for names in tied:
            if call.name in names:
                how += f"; shares its weight with {', '.join(name for name in names if name != call.name)}"
        rows[call.name] = LayerReport(call.name, kind_of(layer), "binarized", how)
        scales = (options.scale, options.latent_std, input_scales.get(call.name))
        replace(model, call.name, binary_layer(layer, own_input, *scales, options.padding_value))
        if both and call.producer:
            fed.setdefault(call.producer, []).append(call.name)
    for name, note in plan.notes.items():
        if name in rows:
            rows[name] = replace_fields(rows[name], reason=f"{rows[name].reason}; {note}")
    for names in tied:
        tie_weights([model.get_submodule(name) for name in names])
    activations = _replace_activations(model, modules, runs, fed, options.binarize)
    keep_activations(model)

    fused = turn_off_fast_paths(model, lambda module: isinstance(module, BinaryLayer))
    check_reads(model, example_inputs, [call.name for call in binarized])
    try:
        connect(model, example_inputs)
    except SeveralShapesError as error:
        reasons = _fed_by(model, error, binarized)
        if not reasons:  # an activation of a product's, which no layer that could stay in float reads
            raise
        raise RefusedLayers(reasons) from error
    keeping = keep_signs(model, example_inputs)
    if both:
        for name, without_sign in check_signs(model, example_inputs, binarized).items():
            rows[name] = replace_fields(rows[name], reason=f"{rows[name].reason}; {without_sign}")
            warnings.warn(
                f"layer {name!r}: {without_sign}, as they come from a ReLU or the like: their signs are +1 for every "
                "input and tell the layer nothing. Move the ReLU to right before the layer, as an nn.ReLU module, put "
                "a BatchNorm before it, or keep the layer in float with keep=...",
                RuntimeWarning,
                stacklevel=4,
            )
    reason = "its fused kernel for eval mode would read the latent weights of its layers"
    slowed = [LayerReport(name, kind_of(modules[name]), "fused kernel off", reason) for name in fused]
    why = "a layer binarizes it: where it rounds to zero it keeps the sign of its input"
    signed = [LayerReport(name, kind, "keeps signs", why) for name, kind in keeping.kinds.items()]
    signed += [LayerReport(name, kind_of(modules[name]), "loses signs", why) for name, why in keeping.left.items()]
    why = "a product of two activations, whose masks advance together"
    products = [
        LayerReport(name, kind_of(m), "progressive", why) for name, m in modules.items() if isinstance(m, BinaryMatmul)
    ]
    return model, PreparationReport((*rows.values(), *plan.others, *products, *activations, *signed, *slowed))


def _fed_by(model: nn.Module, error: SeveralShapesError, calls: list[Call]) -> dict[str, str]:
    """The layers that an activation of several shapes feeds, each with the reason why it cannot be binarized."""
    activation = model.get_submodule(error.activation)
    names = [call.name for call in calls if call.producer == error.activation]
    names += [call.name for call in calls if model.get_submodule(call.name).input_activation is activation]
    return dict.fromkeys(names, f"{error}; keep the layer in float with keep=...")


def _how(layer: nn.Module, call: Call, binarize: str) -> str:
    """The reason in the report's row of a binarized layer."""
    how = "weights only"
    if binarize == "both":
        how = f"input binarized by {call.producer}" if call.producer else "binarizes its own input"
        if call.shift:
            unmoved = " (all signs are +1 until that moves)" if call.nonnegative and not call.producer else ""
            how += f", shifted by {call.shift}{unmoved}"
    if isinstance(layer, transposed_linear()):
        how += "; its weight is [out, in] now"
    if isinstance(layer, nn.Conv1d):
        how += "; its weight is [out, in, 1, kernel] now"
    if isinstance(layer, nn.ConvTranspose2d):
        how += "; its weight and bias are those of each phase of the stride now"
    return how + attachments(layer)


def _replace_activations(
    model: nn.Module, modules: dict[str, nn.Module], runs: dict[str, int], fed: dict[str, list[str]], binarize: str
) -> list[LayerReport]:
    """Replaces the activations that feed layers, and reports on all that run."""
    rows = []
    device = next(model.parameters()).device
    for name in runs:
        module = modules[name]
        if not isinstance(module, RELU_LIKE):
            continue
        if name in fed:
            reason = f"feeds {', '.join(fed[name])}{attachments(module)}"
            rows.append(LayerReport(name, kind_of(module), "progressive", reason))
            replace(model, name, progressive_activation(module, device))
        else:
            why = "weights only" if binarize == "weights" else "feeds no binarized layer"
            rows.append(LayerReport(name, kind_of(module), "kept", why))
    return rows


def _separate_activations(
    model: nn.Module, binarized: list[Call], runs: dict[str, int], example_inputs: Any
) -> tuple[list[Call], dict[str, int]]:
    """One module for each place of the activations that feed these calls; the calls and runs after that."""
    names = {call.name for call in binarized}

    def trace() -> tuple[list[Call], dict[str, int]]:
        calls, runs = trace_float(model, example_inputs)
        return merged([call for call in calls if call.name in names]), runs

    if unshare_activations(model, binarized):
        binarized, runs = trace()
    if name_functions(model, binarized):
        binarized, runs = trace()
    if split_activations(model, binarized, runs, example_inputs):
        binarized, runs = trace()
    return binarized, runs
