"""The conversion of a committed model into its packed inference network."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import torch
from torch import fx, nn

from stompp_kernels.conversion.input_notes import note_inputs
from stompp_kernels.conversion.packing.arguments import TracedArguments
from stompp_kernels.conversion.packing.fast_layers import warn_of_exact_layers
from stompp_kernels.conversion.packing.finite import check_finite
from stompp_kernels.conversion.packing.graph import pack_graph
from stompp_kernels.conversion.packing.modules import pack_modules
from stompp_kernels.conversion.packing.nodes import has_hooks
from stompp_kernels.conversion.packing.parametrizations import make_weights_constant
from stompp_kernels.conversion.packing.speed import warn_if_slower
from stompp_kernels.conversion.packing.trace import (
    LayersNotCalledError,
    torch_modules_with_binary_layers,
    trace_model,
)
from stompp_kernels.conversion.packing.twins import has_binary_weight, is_packable
from stompp_kernels.conversion.verify import verify_packed
from stompp_kernels.conversion.verify_fast import verify_fast
from stompp_kernels.nn import BinaryLayer, BinaryMatmul, PackedMatmul, ProgressiveActivation
from stompp_kernels.nn.decoder_layers import keep_activations
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops.checks import check_choice, check_module
from stompp_kernels.progression.copies import copy_module
from stompp_kernels.progression.input_checks import check_inputs
from stompp_kernels.progression.units import kinds_of

_REPLACED = (BinaryLayer, BinaryMatmul, ProgressiveActivation)
_SECONDS = 0.2  # what a comparison of speeds that nobody asked for may take, where a fourth of verify's is less


def convert(
    model: nn.Module,
    verify: Any = None,
    by_layer: bool | None = None,
    example_inputs: Any = None,
    float_layers: str = "exact",
    compare_speed: bool | None = None,
) -> nn.Module:
    """Makes the packed inference network of a model: what is committed runs on bits, the rest stays as it is.

    Where a chain layer -> BatchNorm -> activation, with or without a +-1 shortcut added before the activation, ends in
    a committed activation, it becomes one kernel that reads and writes bits, its arithmetic folded to integer
    thresholds that give the float network's signs exactly. A chain layer -> BatchNorm -> + float shortcut becomes one
    kernel that writes floats, the next layer's bits, or both. Max-pooling of signs runs on bits. The result equals the
    model in eval mode: signs that are decided on integers are identical, floats the same arithmetic up to its last
    rounding. Layers with binary weights and float inputs keep their weights as bits, and add in an order of their own.
    On the CPU convolutions that stay in float run by :func:`stompp_kernels.ops.conv2d_float`, with the BatchNorm and
    sign behind them, where that gives the bits of torch's convolution with the threads that are set now.

    A traced network takes the arguments of the model's forward. Optional ones are constants, with their defaults,
    unless example inputs give them: a forward may branch on what is None, True or "mean", which tracing cannot follow.
    Given as None, a bool or a string they are constants too, as tensors they are inputs, as numbers inputs where
    tracing can follow them; of lists, tuples and dicts the lengths and keys are fixed. A call with another value is a
    ValueError that names the argument, and ``sk.explain(packed).arguments`` lists what is fixed. ``*args`` and
    ``**kwargs`` are what the example inputs give, else nothing. The mode is fixed too: a forward that asks for
    ``self.training`` is that of eval mode.

    Float layers whose weights are parametrized (weight_norm, spectral_norm) keep the weights that they compute in eval
    mode, but in models of transformers.

    Nothing outside the copy that is converted is touched: other threads may run any model meanwhile, this one too.

    Args:
        model: prepared, and committed as a whole or in part; left as it is.
        verify: inputs (a tensor, tuple or dict) on which model and result are run and compared layer by layer.
            Signs may differ where a float is zero but for rounding, 1e-4 of its layer's largest at most; those
            decided on integers may not.
        by_layer: True: the model keeps its own forward, and each committed layer packs its own input and gives floats;
            nothing is folded across layers but an activation function between two of them, where torch.fx sees in the
            block that calls all three that no one else reads it, and its signs are one threshold of the layer's sums.
            False: torch.fx must trace it. None: False but for what torch.fx cannot trace: models of Hugging Face
            transformers; and, with a warning that says why, those that hold binary layers in a module of torch.nn, such
            as nn.TransformerEncoderLayer, and all others where ``verify`` can show that the result is right.
        example_inputs: a tensor, tuple of positional or dict of keyword arguments; their values do not count, but for
            those that become constants. None: those of ``verify``, if given. Their shapes, and the values of integer
            and mask tensors, stay with the result, for ``sk.save_packed`` to call torch.export with; files hold none.
        float_layers: "exact": the layers that stay in float multiply float32. "fast": convolutions of one group,
            linear layers and torch's scaled_dot_product_attention among them multiply bfloat16 and add up in float32
            where the processor has instructions for it (AMX-BF16). Floats and weights are rounded to bfloat16;
            convolutions that read signs, which are exact, have weights of two parts, 2^-17 off at most. Files keep
            float32 weights and the choice. A warning names the layers that stay exact, and with ``verify`` one says how
            much outputs and signs change.
        compare_speed: whether to time the packed network and a float network of the same layers in turns, and to warn
            where the packed one is slower by more than 5 %. True: for half a second or 15 calls of each, on ``verify``
            or ``example_inputs``; give one sample for the speed at batch 1. None: with ``verify``, until the calls
            decide it or 200 milliseconds, or a fourth of what verifying took if that is longer, are over. False: no.

    Returns:
        A torch.fx.GraphModule in eval mode, or with ``by_layer`` a module of the model's own type; ``sk.explain`` tells
        what became of each layer.

    Raises:
        TypeError: example inputs do not fit the model's forward.
        ValueError: no layer is committed, a parameter is not float32 or holds NaN or inf, as do statistics of a
            BatchNorm and scales, the model cannot be traced, a committed layer is not called, or results differ on the
            inputs to verify; the message names the first layer that does. ``float_layers`` is another text, or
            ``compare_speed`` has no inputs to time.

    Example:
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32, 32)), torch.randn(2, 1, 8, 8))
        >>> progression = sk.StoMPP(model, total_steps=10, regime="vanilla_ste")  # commits all layers at once
        >>> x = torch.randn(4, 1, 8, 8)
        >>> packed = sk.convert(model, verify=x)
        >>> packed(x).shape
        torch.Size([4, 10])
        >>> with sk.float_simulation():
        ...     torch.allclose(packed(x), model.eval()(x), rtol=1e-4, atol=1e-4)
        True
    """
    check_module("model", model)
    check_choice("float_layers", float_layers, ("exact", "fast"))
    for name, inputs in (("verify", verify), ("example_inputs", example_inputs)):
        if inputs is not None:
            check_inputs(name, inputs, model)
    if compare_speed and verify is None and example_inputs is None:
        raise ValueError("compare_speed=True needs inputs to time: give verify or example_inputs")
    _check_layers(model)
    other = {str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype is not torch.float32}
    if other:
        raise ValueError(f"model must have float32 parameters (model.float()), got {', '.join(sorted(other))}")
    check_finite(model)
    original, model = model, copy_module(model).eval()
    keep_activations(model)
    if not _is_transformer(model):  # whose file holds the tensors that its class makes
        make_weights_constant(model)
    inputs = verify if example_inputs is None else example_inputs
    if example_inputs is None and not _is_transformer(model):
        example_inputs = verify
    graph = None if by_layer else _graph_of(model, by_layer, example_inputs, verify is not None)
    _warn_of_hooks(model, graph)
    fast = float_layers == "fast"
    packed = pack_modules(model, fast) if graph is None else pack_graph(model, graph, fast)
    keep_activations(packed)
    if fast:
        warn_of_exact_layers(packed)
    if inputs is not None:
        note_inputs(packed, inputs)
    seconds = -time.perf_counter()
    if verify is not None:
        verify_packed(original, packed, verify)
        if fast:
            verify_fast(packed, verify)
    seconds += time.perf_counter()
    if compare_speed or (compare_speed is None and verify is not None):
        warn_if_slower(original, packed, inputs, None if compare_speed else max(_SECONDS, seconds / 4))
    return packed


def _check_layers(model: nn.Module) -> None:
    """Warns of layers that are not committed.

    Raises:
        ValueError: none is.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (BinaryLayer, BinaryMatmul))}
    if not layers:
        packed = any(isinstance(module, (PackedLayer, PackedMatmul)) for module in model.modules())
        why = "it is packed already" if packed else "pass it through sk.prepare, and train it"
        raise ValueError(f"model has no binary layer to convert: {why}")
    left = {name: layer for name, layer in layers.items() if not _becomes_packed(layer)}
    stages = ", ".join(f"{name} ({layer.stage.name.lower()})" for name, layer in left.items())
    how = "call progression.step() after each optimizer.step() until progression.fully_committed"
    if len(left) == len(layers):
        raise ValueError(f"model must have a layer whose weights are committed, got {stages}: {how}")
    if left:
        warnings.warn(
            f"{len(left)} of {len(layers)} binary {kinds_of(layers.values())} are not committed and stay in float, so "
            f"that the network cannot be saved: {stages}; {how}",
            RuntimeWarning,
            stacklevel=3,
        )


def _becomes_packed(layer: BinaryLayer | BinaryMatmul) -> bool:
    if isinstance(layer, BinaryMatmul):
        return layer.committed
    return is_packable(layer) or has_binary_weight(layer)


def _graph_of(model: nn.Module, by_layer: bool | None, example_inputs: Any, verified: bool) -> fx.Graph | None:
    """Traces the model; None where its layers are to be converted one by one."""
    arguments = TracedArguments(model, example_inputs)
    try:
        return trace_model(model, example_inputs)
    except Exception as error:
        if by_layer is None and _is_transformer(model):
            return None
        inside = torch_modules_with_binary_layers(model)
        if by_layer is None and (inside or (verified and not isinstance(error, LayersNotCalledError))):
            those = f", those inside {inside} too" if inside else ", and each gives floats"
            warnings.warn(
                f"torch.fx cannot trace the model, so its layers are converted one by one{those}. The results "
                "are the same, but nothing is folded across layers, so the network is slower than a traced one; "
                f"by_layer=True asks for this without a warning. What torch.fx could not follow: {error}",
                stacklevel=3,
            )
            return None
        constants = arguments.left_out
        hint = f" (with the defaults of {constants}; example_inputs can give others)" if constants else ""
        raise ValueError(
            f"model cannot be traced by torch.fx; by_layer=True converts its layers one by one: {error}{hint}"
        ) from error


def _warn_of_hooks(model: nn.Module, graph: fx.Graph | None) -> None:
    """Warns of hooks on modules that are replaced: they have nothing left to hang on."""
    replaced = [
        name
        for name, module in model.named_modules()
        if has_hooks(module) and (isinstance(module, _REPLACED) or (graph and not name))
    ]
    if replaced:
        names = ", ".join(repr(name) if name else "the model itself" for name in replaced)
        warnings.warn(f"the packed network does not run the forward hooks of {names}", stacklevel=3)


def _is_transformer(model: nn.Module) -> bool:
    """Returns whether a model holds one of Hugging Face transformers, none of which torch.fx can trace."""
    # Not transformers itself, which imports the class when that is asked for.
    transformers = sys.modules.get("transformers.modeling_utils")
    return transformers is not None and any(isinstance(m, transformers.PreTrainedModel) for m in model.modules())
