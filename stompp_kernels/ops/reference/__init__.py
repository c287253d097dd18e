"""The oracle of every op: plain PyTorch, written to be read, on any device.

Each function has the arguments of the op of its name under ``torch.ops.stompp`` and defines its result bit for bit; of
sums of floats, but for the order of the additions. It is also what runs on a device, or in an installation, that has no
compiled kernel.

Packed weights are opaque bytes; the reference's are simply the portable words.
"""

from stompp_kernels.ops.reference.bits import (
    WORD_BITS,
    bits_from_words,
    pack_bits,
    pack_conv_weight,
    pack_outside,
    pack_signs,
    pack_weight,
    pack_weight_words,
    sign,
    unpack_signs,
    unpack_weight_words,
    words_for,
)
from stompp_kernels.ops.reference.epilogues import (
    affine,
    affine_signs,
    apply_rprelu,
    fused_multiply_add,
    multiply_add,
    threshold,
)
from stompp_kernels.ops.reference.float_products import (
    BFLOAT16_STEP,
    FLOAT_PANEL,
    conv2d_binary_weight,
    conv2d_float,
    conv2d_float_signs,
    linear_binary_weight,
    pack_binary_weight_words,
    round_float_panels,
    unpack_binary_weight_words,
    unpack_float_weight,
)
from stompp_kernels.ops.reference.pool import (
    max_pool2d_out_size,
    max_pool2d_signs,
)
from stompp_kernels.ops.reference.products import (
    bconv2d,
    bconv2d_affine,
    bconv2d_affine_signs,
    bconv2d_threshold,
    bgemm,
    bgemm_affine,
    bgemm_affine_signs,
    bgemm_threshold,
)
from stompp_kernels.ops.reference.progressive import (
    keeps_strides,
    mask_rows,
    philox4x32_10,
    progressive,
    progressive_backward,
    progressive_drawn,
    progressive_gate_backward,
    progressive_gated,
    refresh_limits,
    refresh_mask_,
    result_format,
    rows_in_memory,
)

__all__ = [
    "BFLOAT16_STEP",
    "FLOAT_PANEL",
    "WORD_BITS",
    "affine",
    "affine_signs",
    "apply_rprelu",
    "bconv2d",
    "bconv2d_affine",
    "bconv2d_affine_signs",
    "bconv2d_threshold",
    "bgemm",
    "bgemm_affine",
    "bgemm_affine_signs",
    "bgemm_threshold",
    "bits_from_words",
    "conv2d_binary_weight",
    "conv2d_float",
    "conv2d_float_signs",
    "fused_multiply_add",
    "keeps_strides",
    "linear_binary_weight",
    "mask_rows",
    "max_pool2d_out_size",
    "max_pool2d_signs",
    "multiply_add",
    "pack_binary_weight_words",
    "pack_bits",
    "pack_conv_weight",
    "pack_outside",
    "pack_signs",
    "pack_weight",
    "pack_weight_words",
    "philox4x32_10",
    "progressive",
    "progressive_backward",
    "progressive_drawn",
    "progressive_gate_backward",
    "progressive_gated",
    "refresh_limits",
    "refresh_mask_",
    "result_format",
    "round_float_panels",
    "rows_in_memory",
    "sign",
    "threshold",
    "unpack_binary_weight_words",
    "unpack_float_weight",
    "unpack_signs",
    "unpack_weight_words",
    "words_for",
]
