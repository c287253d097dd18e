"""The closed list of PyTorch's own operators that a packed file may call, where torch.export has read the network.

What an argument may be follows from the operator's schema: tensors are nodes, numbers are bounded, texts are listed.
Arguments that ask for memory have bounds of their own, as the functions of calls.py.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from stompp_kernels.conversion.files.kinds import (
    BOOLEAN,
    DEVICES,
    DTYPE,
    INDEX,
    MEMORY_FORMATS,
    NODE,
    NONE,
    NUMBER,
    Kind,
    Parameter,
    choice,
    integer,
    list_of,
    wrapped,
)

# By name; every overload that computes with tensors is taken.
_UNBOUNDED = """
    abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu clamp
    clamp_max clamp_min clone copysign cos cosh deg2rad div elu eq erf erfc exp exp2 expm1 floor floor_divide fmax fmin
    fmod frac ge gelu glu gt hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan le leaky_relu lerp log log10
    log1p log2 log_sigmoid logical_and logical_not logical_or logical_xor lt masked_fill maximum minimum mish mul
    nan_to_num ne neg pow prelu rad2deg reciprocal relu relu6 remainder round rsqrt rsub selu sgn sigmoid sign silu sin
    sinh softplus softshrink sqrt square sub tan tanh threshold true_divide trunc where xlogy addcmul addcdiv
    __and__ __lshift__ __or__ __rshift__ __xor__ angle bitwise_left_shift bitwise_right_shift complex conj
    conj_physical divide erfinv float_power greater greater_equal heaviside hypot imag isneginf isposinf ldexp lgamma
    less less_equal logaddexp logaddexp2 logit multiply negative not_equal polar positive real resolve_conj resolve_neg
    rrelu signbit sinc special_expit special_logit subtract view_as_complex view_as_real

    add_ sub_ mul_ div_ relu_ clamp_ clamp_min_ clamp_max_ copy_ fill_ zero_ masked_fill_ sigmoid_ tanh_ exp_ sqrt_
    hardtanh_ relu6_ leaky_relu_ elu_ silu_ hardswish_ hardsigmoid_ mish_ index_put_ squeeze_ unsqueeze_ transpose_ t_
    neg_ abs_ rsqrt_ pow_ detach_ celu_ selu_ floor_ ceil_ round_ gelu_ threshold_ log_ sin_ cos_ square_ reciprocal_
    floor_divide_ remainder_ lerp_ addcmul_ addcdiv_ addmm_ baddbmm_ bitwise_and_ bitwise_or_ bitwise_xor_ bitwise_not_
    __iand__ __ior__ __ixor__ logical_and_ logical_or_ logical_xor_ logical_not_ cumsum_ triu_ tril_ masked_scatter_
    index_add_ index_copy_ index_fill_ scatter_ scatter_add_ scatter_reduce_ clip_ nan_to_num_

    all amax amin any argmax argmin aminmax count_nonzero cummax cumprod cumsum logcumsumexp logsumexp max mean median
    min norm prod std std_mean sum topk var var_mean sort argsort softmax log_softmax linalg_vector_norm frobenius_norm
    mode nansum nanmean linalg_norm diff kthvalue cov nanmedian bucketize searchsorted

    mse_loss l1_loss smooth_l1_loss huber_loss kl_div cross_entropy_loss nll_loss nll_loss2d nll_loss_nd
    binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss margin_ranking_loss triplet_margin_loss
    soft_margin_loss pairwise_distance

    addmv addr cross linalg_cross linalg_matmul linalg_vecdot tensordot vdot lstm_cell gru_cell rnn_tanh_cell
    rnn_relu_cell norm_except_dim

    addmm baddbmm addbmm bilinear bmm dot einsum inner linear matmul mm mv outer scaled_dot_product_attention conv1d
    conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d embedding cdist cosine_similarity

    alias broadcast_tensors cat channel_shuffle chunk contiguous detach diagonal expand_as flatten flip gather hstack
    vstack index index_select lift_fresh lift_fresh_copy masked_select meshgrid movedim narrow numpy_T permute
    pixel_shuffle pixel_unshuffle ravel reshape reshape_as roll rot90 scatter select slice split split_with_sizes
    squeeze stack swapaxes swapdims t take_along_dim tensor_split transpose tril triu type_as unbind unflatten unfold
    unsqueeze view view_as index_put scatter_add select_scatter slice_scatter to _to_copy item sym_size sym_numel
    sym_stride concat concatenate adjoint mT mH clip column_stack dstack fill fliplr flipud index_add index_copy
    index_fill masked_scatter moveaxis scatter_reduce sum_to_size unsafe_chunk unsafe_split
    unsafe_split_with_sizes diagonal_scatter

    batch_norm group_norm instance_norm layer_norm rms_norm native_layer_norm native_group_norm dropout feature_dropout
    alpha_dropout avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool1d_with_indices
    max_pool2d_with_indices max_pool3d_with_indices scalar_tensor zeros_like ones_like full_like grid_sampler
"""
# Those that ask for memory: a name in braces stands for each of those listed, then follow arguments and their bounds.
_BOUNDED = """
    adaptive_{avg,max}_pool{1d,2d,3d} output_size:out
    upsample_{nearest1d,nearest2d,nearest3d,linear1d} output_size:interpolated scale_factors:factors
    upsample_{bilinear2d,bicubic2d,trilinear3d} output_size:interpolated scale_factors:factors
    _upsample_{nearest_exact2d,bilinear2d_aa,bicubic2d_aa} output_size:interpolated scale_factors:factors
    {constant_pad_nd,pad} pad:pads mode:pad_mode
    {reflection,replication}_pad{1d,2d} padding:pads
    {expand,broadcast_to} size:broadcast
    repeat repeats:repeats
    tile dims:repeats
    repeat_interleave repeats:repeats
    {zeros,ones,full,new_zeros,new_ones,new_full,affine_grid_generator} size:made
    {max_unpool2d,max_unpool3d} output_size:interpolated padding:padding
    arange start:int end:int
    linspace steps:factor
    one_hot num_classes:factor
    eye n:factor m:factor
    tril_indices row:factor col:factor
    {gru,lstm,rnn_tanh,rnn_relu} num_layers:factor
    im2col kernel_size:patch padding:patch_padding
    col2im output_size:interpolated kernel_size:kernel
    {fft_fft,fft_ifft,fft_rfft,fft_irfft,fft_hfft,fft_ihfft} n:interpolated
    {fft_fft2,fft_ifft2,fft_rfft2,fft_irfft2,fft_fftn,fft_ifftn,fft_rfftn,fft_irfftn} s:interpolated
    {fft_fftshift,fft_ifftshift}
    {stft,istft} n_fft:interpolated hop_length:interpolated win_length:interpolated length:made
    {hann_window,hamming_window} window_length:interpolated
"""
_MOST_DIMENSIONS = 16
_INT = integer(-(1 << 24), 1 << 24) | NODE
_TEXTS = {
    "approximate": choice("none", "tanh"),
    "rounding_mode": choice("floor", "trunc"),
    "reduce": choice("sum", "mean", "prod", "amax", "amin"),
    "padding": choice("same", "valid"),
    "indexing": choice("ij", "xy"),
    "norm": choice("forward", "backward", "ortho"),
    "pad_mode": choice("constant", "reflect", "replicate", "circular"),
    "equation": Kind(
        "letters, commas, dots and ->",
        lambda v: type(v) is str and len(v) <= 64 and all(c.isascii() and (c.isalpha() or c in ",.-> ") for c in v),
    ),
}
# Named so, an argument has the bounds that the modules and functions of this name have.
_NAMED = {
    **dict.fromkeys(("kernel_size",), "kernel"),
    **dict.fromkeys(("stride", "dilation"), "strides"),
    **dict.fromkeys(("output_padding",), "padding"),
    **dict.fromkeys(("upscale_factor", "downscale_factor"), "factor"),
}


# What an argument may be by the text of its type.
_BY_TYPE: dict[str, Kind] = {
    "Tensor": NODE,
    "List[Tensor]": list_of(NODE, 0, 4096) | NODE,
    "List[Optional[Tensor]]": list_of(NODE | NONE, 0, _MOST_DIMENSIONS),
    "bool": BOOLEAN,
    "float": NUMBER | NODE,
    "number": NUMBER | NODE,
    "List[float]": list_of(NUMBER | NODE, 0, _MOST_DIMENSIONS),
    "List[bool]": list_of(BOOLEAN, 0, _MOST_DIMENSIONS),
    "List[int]": list_of(_INT, 0, 4096) | _INT,
    "Device": wrapped("device", DEVICES),
}


def _spelled_out(line: str) -> list[str]:
    """A line for each name that a line with braces stands for."""
    found = re.search(r"\{([\w,]+)\}", line)
    if found is None:
        return [line]
    return [one for name in found[1].split(",") for one in _spelled_out(line.replace(found[0], name, 1))]


def _kind_of(argument: Any) -> Kind | None:
    """What an argument may be by its type; None for a type that no file can hold."""
    optional = argument.type.kind() == "OptionalType"
    inner = argument.type.getElementType() if optional else argument.type
    kind = _kind_of_type(argument.name, str(inner))
    return kind | NONE if kind is not None and optional else kind


def _kind_of_type(name: str, text: str) -> Kind | None:
    if name in ("dtype", "memory_format"):  # whose type is int in a schema
        return DTYPE if name == "dtype" else wrapped("memory_format", MEMORY_FORMATS)
    if text in ("int", "SymInt"):
        return INDEX if name in ("start", "end") else _INT
    return _TEXTS.get(name) if text == "str" else _BY_TYPE.get(text.replace("SymInt", "int"))


def _signature_of(overload: Any, bounds: dict[str, Kind], kinds: dict[str, Kind]) -> tuple[Parameter, ...] | None:
    """The parameters of an overload of tensors; None for one of numbers, texts, names or results given to it."""
    schema = overload._schema
    of_tensors = any("Tensor" in str(value.type) for value in (*schema.returns, *schema.arguments[:1]))
    if not of_tensors or any(a.is_out or "Dimname" in str(a.type) for a in schema.arguments):
        return None
    parameters: list[Parameter] = []
    for argument in schema.arguments:
        kind = bounds[argument.name] | NONE if argument.name in bounds else _kind_of(argument)
        if kind is None and not argument.has_default_value():
            return None
        if kind is None:
            continue  # a layout or generator, which must be left out
        if parameters and kind is NODE:
            kind = NODE | NUMBER  # torch.export writes a number where it adds one
        of_sizes = str(argument.type) in ("int", "SymInt", "List[int]", "List[SymInt]")
        if of_sizes and argument.name in _NAMED and argument.name not in bounds:
            kind = kinds[_NAMED[argument.name]]
        parameters.append(Parameter(argument.name, kind, not argument.has_default_value()))
    return tuple(parameters)


def operators(kinds: dict[str, Kind]) -> tuple[dict[str, Any], dict[str, tuple[Parameter, ...]]]:
    """The listed operators by their names in a file, ``aten.add.Tensor``, and their signatures.

    Args:
        kinds: those of calls.py, by the names that bounds have here.
    """
    found: dict[str, Any] = {}
    signatures: dict[str, tuple[Parameter, ...]] = {}
    for line in (*_UNBOUNDED.split(), *(line for text in _BOUNDED.strip().splitlines() for line in _spelled_out(text))):
        name, *given = line.split()
        bounds = {key: kinds[kind] for key, _, kind in (part.partition(":") for part in given)}
        packet = getattr(torch.ops.aten, name, None)
        for overload in () if packet is None else packet.overloads():
            operator = getattr(packet, overload)
            signature = _signature_of(operator, bounds, kinds)
            if signature is not None:
                found[f"aten.{name}.{overload}"], signatures[f"aten.{name}.{overload}"] = operator, signature
    return found, signatures
