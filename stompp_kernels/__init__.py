"""Custom kernels for training binary neural networks with StoMPP and running them on packed bits.

model, report = sk.prepare(model, example_inputs)        # eligible layers become progressive
progression = sk.StoMPP(model, total_steps=...)          # progression.step() after each optimizer.step()
packed = sk.convert(model)                               # the packed inference twin
sk.save_packed(packed, "net.safetensors")
"""

import importlib
from typing import Any

from stompp_kernels.torch_release import torch_problem

_problem = torch_problem()

if not _problem:
    from stompp_kernels import models, nn, ops
    from stompp_kernels.conversion import (
        PreparationReport,
        capture_packed,
        convert,
        explain,
        export_packed,
        load_exported,
        load_packed,
        load_prepared,
        package_packed,
        prepare,
        save_packed,
    )
    from stompp_kernels.models.registry import prepare_models_by
    from stompp_kernels.native import Implementation, implementations, use_implementation
    from stompp_kernels.nn import float_simulation
    from stompp_kernels.ops import PackedWeight
    from stompp_kernels.progression import StoMPP, link

    prepare_models_by(prepare)  # models lie below conversion, and import nothing of it

# Without a torch that fits, stompp_kernels.core works all the same.

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports ``sk.training`` when it is first used: a packed network runs without it."""
    if name in __all__ and _problem:
        raise ImportError(_problem)
    if name == "training":
        return importlib.import_module("stompp_kernels.training")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Implementation",
    "PackedWeight",
    "PreparationReport",
    "StoMPP",
    "capture_packed",
    "convert",
    "explain",
    "export_packed",
    "float_simulation",
    "implementations",
    "link",
    "load_exported",
    "load_packed",
    "load_prepared",
    "models",
    "nn",
    "ops",
    "package_packed",
    "prepare",
    "save_packed",
    "use_implementation",
]
