"""Bytes of a network in files and in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import fx, nn

from stompp_kernels.bench.subjects import Subject, call
from stompp_kernels.conversion import load_packed, save_packed
from stompp_kernels.nn import BinaryLayer
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import PackedWeight, bconv2d, pack_conv_weight, pack_signs

_PROCESS = Path("/proc/self")


def file_bytes(subject: Subject) -> dict[str, int]:
    """Sizes of a network's files, by form: the fp32 state dict and the packed network, both as safetensors.

    Raises:
        ValueError: the packed network holds what its format does not know.
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
    if not (_PROCESS / "clear_refs").exists():
        return {}
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.pt"
        torch.save(subject.inputs(batch), inputs)
        for form, path in _written(subject, Path(folder)).items():
            peaks[form] = _in_fresh_process(form, path, inputs, threads)
    return peaks


def _in_fresh_process(*arguments: object) -> int:
    code = "import sys; from stompp_kernels.bench.memory import peak; print(peak(*sys.argv[1:]))"
    package_parent = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package_parent, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=True
    )
    return int(done.stdout)


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
def peak(form: str, path: str, inputs_path: str, threads: str) -> int:
    """What :func:`peak_bytes` runs in each process: the growth, in bytes, with a network in a file of this module's."""
    torch.set_num_threads(int(threads))
    inputs = torch.load(inputs_path)
    _touch_libraries()
    (_PROCESS / "clear_refs").write_text("5")  # the peak begins anew, see proc(5)
    before = _status("VmRSS")
    network = load_packed(path) if form == "packed" else torch.load(path, weights_only=False)
    for _ in range(3):
        call(network, inputs)
    return _status("VmHWM") - before


def _touch_libraries() -> None:
    """Runs a little of everything: the code that it brings in is no network's own."""
    x = torch.randn(1, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    nn.Sequential(nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(6272, 8)).eval()(x)
    bconv2d(pack_signs(x.permute(0, 2, 3, 1)), pack_conv_weight(torch.randn(32, 32, 3, 3)), padding=1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network"
        save_packed(fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 1, 1))), path)
        load_packed(path)
        torch.save(nn.Linear(1, 1), path)
        torch.load(path, weights_only=False)


def _status(field: str) -> int:
    """Bytes of resident memory now (VmRSS) or at the peak (VmHWM)."""
    lines = (_PROCESS / "status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
