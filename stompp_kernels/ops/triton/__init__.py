"""Triton kernels and their launchers, ``torch.ops.stompp_triton``: the ops that run on NVIDIA GPUs.

The ops have the names, schemas and results of those of ``torch.ops.stompp``. kernels.py holds the kernels, launch.py
their block sizes, the other files a launcher for each op. Importing this folder needs Triton.
"""

from stompp_kernels.ops.triton import binary_weight, pack, pool, progressive  # noqa: F401  (they define the ops)

OPS = (
    "progressive",
    "progressive_gated",
    "progressive_drawn",
    "progressive_backward",
    "progressive_gate_backward",
    "refresh_mask_",
    "pack_signs",
    "pack_outside",
    "unpack_signs",
    "max_pool2d_signs",
    "linear_binary_weight",
    "conv2d_binary_weight",
)
