"""A training step as the network freezes: `python -m benchmarks.training_speed`.

A ResNet-18-shaped binary network (eight basic blocks, 64 to 512 channels, 32 x 32 images, batch 64) in the STE-free
regime, with 0, 25, 50, 75 and 100 % of its binary layers committed from the input on, beside the same network written
in plain PyTorch (clip, no mask: what 0 % computes). Steps alternate in one process; medians. Plain PyTorch alternates
with 0 % alone: beside the short steps of the others, what runs before a step matters to its caches.

Two figures of memory: what autograd keeps for backward (saved_tensors_hooks, parameters left out), and by how much a
process grows at its peak over three steps of one network (a fresh process each; on a GPU what torch allocates).
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import resource
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import stompp_kernels as sk
from benchmarks.timing import RESULTS, save, saved_bytes
from stompp_kernels.bench.turns import compare
from stompp_kernels.nn import BinaryConv2d, ProgressiveActivation
from stompp_kernels.table import table

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
WIDTHS, STRIDES = (64, 64, 128, 128, 256, 256, 512, 512), (1, 1, 2, 1, 2, 1, 2, 1)


class Clip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-1, 1)


class ClippedConv2d(nn.Module):
    """A convolution with clipped weights, as a PyTorch user writes it."""

    def __init__(self, layer: BinaryConv2d) -> None:
        super().__init__()
        self.weight, self.stride, self.padding = (
            nn.Parameter(layer.weight.detach().clone()),
            layer.stride,
            layer.padding,
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight.clamp(-1, 1), None, self.stride, self.padding)


def plain(model: nn.Module) -> nn.Module:
    """The same network with nothing of this package in it."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, (BinaryConv2d, ProgressiveActivation)):
            model.set_submodule(name, ClippedConv2d(module) if isinstance(module, BinaryConv2d) else Clip())
    return model


def commit(model: nn.Module, fraction: float) -> nn.Module:
    """A copy whose first layers, up to that fraction, are committed."""
    model = copy.deepcopy(model)
    units = sk.StoMPP(model, total_steps=1000).units
    for unit in units[: round(fraction * len(units))]:
        for masked, _ in unit.masked():
            masked.commit()
    sk.StoMPP(model, total_steps=1000)  # finds them committed, and freezes what they cut off
    return model


def training_step(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def synchronized(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        loss = step()
        torch.cuda.synchronize()
        return loss

    return call


def kept_bytes(model: nn.Module, x: Tensor, labels: Tensor) -> int:
    """Bytes that stand for backward when it begins."""
    own = (*model.parameters(), *model.buffers(), x)
    return saved_bytes(lambda: nn.functional.cross_entropy(model(x), labels), own)


def networks(batch: int, device: str) -> tuple[dict[str, nn.Module], Tensor, Tensor]:
    """Every network by name, all with the same weights, and a batch."""
    torch.manual_seed(0)
    x, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    float_model = sk.models.SmallResNet(in_channels=3, image_size=32, widths=WIDTHS, strides=STRIDES)
    model, _ = sk.prepare(float_model, x[:1])
    models = {"plain PyTorch": plain(model), **{f"{f:.0%} committed": commit(model, f) for f in FRACTIONS}}
    return {name: m.to(device) for name, m in models.items()}, x.to(device), labels.to(device)


def peak_bytes(name: str, batch: int, threads: int, device: str) -> int:
    """By how much memory grows at its peak over three steps of a network; to be called in a fresh process."""
    torch.set_num_threads(threads)
    models, x, labels = networks(batch, device)
    step = training_step(models[name], x, labels)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
    else:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        before = pages * resource.getpagesize()
    for _ in range(3):
        step()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() - before
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def peaks(names: Iterable[str], *arguments: Any) -> dict[str, int]:
    context = multiprocessing.get_context("spawn")
    found = {}
    for name in names:
        with ProcessPoolExecutor(1, context) as pool:
            found[name] = pool.submit(peak_bytes, name, *arguments).result()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="number of threads (default: 2)")
    parser.add_argument("--batch", type=int, default=64, help="samples per step (default: 64)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to train on (default: cpu)")
    parser.add_argument("--seconds", type=float, default=90.0, help="seconds to measure, in all (default: 90)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda needs an NVIDIA GPU, and torch sees none")
    torch.set_num_threads(arguments.threads)
    models, x, labels = networks(arguments.batch, arguments.device)
    peak = peaks(models, arguments.batch, arguments.threads, arguments.device)
    memory = {name: kept_bytes(m, x, labels) for name, m in models.items()}
    steps = {name: training_step(m, x, labels) for name, m in models.items()}
    if on_gpu:
        steps = {name: synchronized(step) for name, step in steps.items()}
    pair = ("plain PyTorch", "0% committed")
    both = compare({name: steps[name] for name in pair}, arguments.seconds / 3, at_least=3)
    freezing = compare({name: steps[name] for name in list(steps)[1:]}, arguments.seconds * 2 / 3, at_least=3)

    rows: list[dict[str, Any]] = []
    for name in steps:
        timings = both if name == "plain PyTorch" else freezing
        timing = timings[name]
        rows.append(
            {
                "name": name,
                "ms": timing.median,
                "p20": timing.p20,
                "p80": timing.p80,
                "faster_than_0": timings["0% committed"].median / timing.median,
                "kept_mbytes": memory[name] / 1e6,
                "peak_mbytes": peak[name] / 1e6,
            }
        )
    cells = [
        (
            r["name"],
            f"{r['ms']:.0f}",
            f"{r['faster_than_0']:.2f}x",
            f"{r['kept_mbytes']:.0f}",
            f"{r['peak_mbytes']:.0f}",
        )
        for r in rows
    ]
    print(table(("network", "ms a step", "speed", "MB kept for backward", "MB at the peak"), cells))
    command = "python -m benchmarks.training_speed" + (" --device cuda" if on_gpu else "")
    print(save("training_speed_cuda" if on_gpu else "training_speed", command, rows, arguments.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
