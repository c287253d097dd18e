"""What a figure must be read with: the machine, what holds it back, and how fast its clock is just now."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path

import torch

from stompp_kernels import native


def clock_ms() -> float:
    """Measures the milliseconds that a chain of dependent additions takes now, the least of several.

    It tells a core that is slowed down, by its clock or by others, from a kernel that got slow.
    """
    chain = torch.ones(1 << 14)
    least = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        chain.cumsum(0)
        least = min(least, time.perf_counter() - start)
    return 1e3 * least


# Variables that hold an implementation, torch or its libraries to an instruction set.
_LIMITS = (
    *("STOMPP_CPU", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"),
    "FBGEMM_ENABLE_INSTRUCTIONS",
)
# What kernels choose by, in the words of Linux.
_FEATURES = (
    *("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vpopcntdq", "avx512_vnni", "avx512_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "sve"),
)


def machine() -> dict[str, str | int]:
    """What a figure must be read with."""
    flags = _cpu_line("flags", "Features").split()
    return {
        **{name: os.environ[name] for name in _LIMITS if name in os.environ},
        "processor": processor(),
        "features": " ".join(name for name in _FEATURES if name in flags),
        "implementation": native.active_implementation(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **_gpu(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _gpu() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_implementation": native.implementation_of("bgemm", torch.device("cuda")),
        "cuda": str(torch.version.cuda),
        "triton": metadata.version("triton"),
    }


def processor() -> str:
    """Names the processor, as far as the system knows it."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


def _cpu_line(*names: str) -> str:
    """What Linux says of its first processor under one of these names; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(names)), "")
