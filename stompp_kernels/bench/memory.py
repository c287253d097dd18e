"""Bytes of a network in files and in memory."""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from stompp_kernels.bench.subjects import Subject, call
from stompp_kernels.conversion import load_packed, save_packed
from stompp_kernels.models.registry import Inputs
from stompp_kernels.nn import BinaryLayer
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import PackedWeight

_STATUS = Path("/proc/self/status")


def file_bytes(subject: Subject) -> dict[str, int]:
    """Sizes of a network's files, by form: the fp32 state dict and the packed network, as safetensors.

    What cannot be converted or saved has no packed entry.
    """
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        if subject.float_model is not None:
            path = Path(folder) / "fp32.safetensors"
            state = subject.float_model.state_dict()
            save_file({key: t.cpu().clone(memory_format=torch.contiguous_format) for key, t in state.items()}, path)
            sizes["fp32"] = path.stat().st_size
        if subject.packed is not None:
            sizes["packed"] = save_packed(subject.packed, Path(folder) / "packed.safetensors")
    return sizes


def binarized_bytes(model: nn.Module, packed: nn.Module) -> dict[str, int]:
    """Bytes of the binarized layers alone.

    Returns:
        ``fp32``: their weights in fp32; ``file``: the same as bits in a file; ``memory``: as bits in the order of this
        machine's kernels, headers and border sums included; ``constants``: scales, biases and thresholds, which also
        do a BatchNorm's work.
    """
    layers = [m for m in model.modules() if isinstance(m, BinaryLayer)]
    packed_layers = [m for m in packed.modules() if isinstance(m, PackedLayer)]
    weights = [m.weight for m in packed_layers if isinstance(m.weight, PackedWeight)]
    return {
        "fp32": sum(4 * m.weight.numel() for m in layers),
        "file": sum(w.portable_nbytes for w in weights),
        "memory": sum(w.nbytes for w in weights),
        "constants": sum(b.numel() * b.element_size() for m in packed_layers for b in m.buffers()),
    }


def peak_bytes(subject: Subject, batch: int = 1, threads: int = 1) -> dict[str, int]:
    """By how much a fresh process grows at its peak as it loads a network and runs it three times on the CPU, by form.

    Empty where the system has no ``/proc``.
    """
    if not _STATUS.exists():
        return {}
    peaks = {}
    inputs = subject.inputs(batch)
    with tempfile.TemporaryDirectory() as folder:
        for form, path in _written(subject, Path(folder)).items():
            # Not forked: a child begins with all that its parent has.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                peaks[form] = pool.submit(_peak, form, path, inputs, threads).result()
    return peaks


def _written(subject: Subject, folder: Path) -> dict[str, Path]:
    files = {}
    if subject.float_model is not None:
        files["fp32"] = folder / "fp32.pt"
        torch.save(subject.float_model, files["fp32"])
    if subject.packed is not None:
        files["packed"] = folder / "packed.safetensors"
        save_packed(subject.packed, files["packed"])
    return files


@torch.no_grad()
def _peak(form: str, path: Path, inputs: Inputs, threads: int) -> int:
    torch.set_num_threads(threads)
    before = _status("VmRSS")
    # The file is this module's own.
    network = load_packed(path) if form == "packed" else torch.load(path, weights_only=False)
    for _ in range(3):
        call(network, inputs)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """Bytes of resident memory now (VmRSS) or at the peak of this program (VmHWM)."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])
