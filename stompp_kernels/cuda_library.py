"""The compiled library for NVIDIA GPUs, stompp_kernels/_cuda.so: finds it, or says why it does not run here.

It is a plain shared library. Loading it registers nothing: its kernels are given to torch.ops.stompp only where the
driver and a GPU fit.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

PATH = Path(__file__).parent / "_cuda.so"

# The ops that it has kernels for.
OPS = (
    "pack_weight_words",
    "unpack_weight_words",
    "bgemm",
    "bgemm_affine",
    "bgemm_affine_signs",
    "bgemm_threshold",
    "bconv2d",
    "bconv2d_affine",
    "bconv2d_affine_signs",
    "bconv2d_threshold",
)


class CudaLibrary:
    """The C functions of csrc/torch/cuda/library.cpp.

    Raises:
        OSError: the file is no library, or what it needs is missing.
        AttributeError: it is of another version of this package.
    """

    def __init__(self, path: Path) -> None:
        self._functions = functions = ctypes.CDLL(str(path))
        for name in ("architectures", "register"):
            getattr(functions, f"stompp_cuda_{name}").restype = ctypes.c_char_p
        functions.stompp_cuda_packed_bytes.restype = ctypes.c_int64
        functions.stompp_cuda_packed_bytes.argtypes = [ctypes.c_int64] * 5
        self.runtime_version: int = functions.stompp_cuda_runtime_version()
        self.driver_version: int = functions.stompp_cuda_driver_version()
        self.finds_torch = bool(functions.stompp_cuda_finds_torch())

    @property
    def architectures(self) -> list[str]:
        """What it was compiled for: "80", "90a", .. "120ptx"."""
        return self._functions.stompp_cuda_architectures().decode().split("_")

    def code_for(self, capability: int) -> int:
        """Capability (10 * major + minor) of the code that such a GPU runs, 0 if there is none."""
        return self._functions.stompp_cuda_code_for(capability)

    def packed_bytes(self, O: int, I: int, kh: int, kw: int, groups: int) -> int:
        """Bytes of a packed weight on a GPU.

        Raises:
            ValueError: no weight has this shape.
        """
        found = self._functions.stompp_cuda_packed_bytes(*map(int, (O, I, kh, kw, groups)))
        if found < 0:
            raise ValueError(f"no packed weight has {O} outputs of {I} x {kh} x {kw} in {groups} groups")
        return found

    def problem(self, capabilities: list[int]) -> str:
        """Why it cannot run with this torch and driver on any GPU of these capabilities; empty if it can."""
        if not self.finds_torch:
            return f"it did not find libtorch_cuda of torch {torch.__version__}"
        if self.runtime_version // 1000 > self.driver_version // 1000:
            return (
                f"it is built with CUDA {_release(self.runtime_version)}, and the driver is for CUDA "
                f"{_release(self.driver_version)}: update the driver, or build it with an older CUDA"
            )
        if not any(self.code_for(capability) for capability in capabilities):
            found = " and ".join(f"{c // 10}.{c % 10}" for c in sorted(set(capabilities)))
            return (
                f"it is compiled for {', '.join(self.architectures)}, and the GPU is of {found}: build it with "
                "TORCH_CUDA_ARCH_LIST naming that"
            )
        return ""

    def register(self) -> str:
        """Gives its kernels to torch.ops.stompp; what went wrong, or empty."""
        error = self._functions.stompp_cuda_register()
        return error.decode(errors="replace") if error else ""


def find(path: Path = PATH) -> tuple[CudaLibrary | None, str]:
    """The library, its kernels registered, and ""; or None and the reason in one line."""
    if torch.version.hip is not None:
        return None, "this torch is built for AMD GPUs, and the library holds machine code of NVIDIA's"
    reason = no_gpu()
    if reason:
        return None, reason
    if not path.is_file():
        return None, "it was not built: build the package where CUDA's nvcc is (STOMPP_CUDA=1 says what is missing)"
    try:
        library = CudaLibrary(path)
    except (OSError, AttributeError) as error:
        return None, f"it did not load ({' '.join(str(error).split())})"
    reason = library.problem(_capabilities()) or library.register()
    return (None, reason) if reason else (library, "")


def no_gpu() -> str:
    """Says why torch has no GPU of the vendor that it is built for; empty where it has one."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA"
    vendor = "AMD" if torch.version.hip is not None else "NVIDIA"
    return "" if torch.cuda.device_count() > 0 else f"torch sees no {vendor} GPU"


def _release(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _capabilities() -> list[int]:
    """Returns 10 * major + minor of each GPU.

    NVML answers where it is: torch would initialize CUDA, which a process that imports this package and then forks
    could not use in its children.
    """
    return _nvml_capabilities() or [
        10 * major + minor for major, minor in map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    ]


def _nvml_capabilities() -> list[int]:
    """Returns those of all GPUs, also hidden by CUDA_VISIBLE_DEVICES; empty where NVML does not answer."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    count, handle, major, minor = ctypes.c_uint(), ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    found = []
    for index in range(count.value):
        if (
            nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0
            and nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) == 0
        ):
            found.append(10 * major.value + minor.value)
    return found
