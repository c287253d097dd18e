"""From a float model to a progressive one (prepare) and from a committed one to packed bits (convert)."""

from stompp_kernels.conversion.cuda_graph import capture_packed
from stompp_kernels.conversion.explain import explain
from stompp_kernels.conversion.files.export import export_packed, load_exported, package_packed
from stompp_kernels.conversion.files.packed_file import load_packed, save_packed
from stompp_kernels.conversion.packing.convert import convert
from stompp_kernels.conversion.prepare.load import load_prepared
from stompp_kernels.conversion.prepare.prepare import PreparationReport, prepare

__all__ = [
    "PreparationReport",
    "capture_packed",
    "convert",
    "explain",
    "export_packed",
    "load_exported",
    "load_packed",
    "load_prepared",
    "package_packed",
    "prepare",
    "save_packed",
]
