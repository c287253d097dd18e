"""The torch-free core on NumPy arrays: packing, bgemm and bconv2d, for programs without torch.

Words are those of :mod:`stompp_kernels.ops.pack`: int32, 32 signs each, along the last dimension. The compiled module
behind it belongs to one release of Python, so no wheel holds it: it is built from source, where ``STOMPP_CORE=1`` asks
for it. ``examples/numpy`` has a program.
"""

try:
    from stompp_kernels._core import (
        PackedWeight,
        active_implementation,
        bconv2d,
        bgemm,
        implementations,
        pack_signs,
        pack_weight,
        select_implementation,
        unpack_signs,
    )
except ImportError as error:
    raise ImportError(
        f"stompp_kernels.core is not built for this Python ({error}): run `STOMPP_CORE=1 pip install "
        "--no-build-isolation .` in the source tree, with pybind11 or torch installed; without torch, add "
        "STOMPP_BUILD_NATIVE=0 and --no-deps."
    ) from error

__all__ = [
    "PackedWeight",
    "active_implementation",
    "bconv2d",
    "bgemm",
    "implementations",
    "pack_signs",
    "pack_weight",
    "select_implementation",
    "unpack_signs",
]
