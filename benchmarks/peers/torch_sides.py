"""torch: fp32, bf16, and int8 with weights packed beforehand as ours are. Convolutions are channels_last."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import bench_bconv2d
from benchmarks.case import Call
from benchmarks.peers.products import ZERO_POINT, Candidate, Product, as_bytes, as_integers

Sides = dict[str, list[Candidate]]


def missing() -> dict[str, str]:
    """Sides that this torch has not, and why."""
    engines = torch.backends.quantized.supported_engines
    return {} if "x86" in engines else {"torch int8": f"its quantized engines here are {', '.join(engines)}: no x86"}


def sides(product: Product) -> Sides:
    found = _convolutions(product) if product.is_conv else _matrices(product)
    return {name: candidates for name, candidates in found.items() if name not in missing()}


def _same(y: Tensor) -> Tensor:
    return y


def _dequantized(y: Tensor) -> Tensor:
    return y.dequantize()


def as_bfloat16(exact: Tensor) -> Tensor:
    """Sums are fp32, and these are exact: rounded once."""
    return exact.to(torch.bfloat16)


def _matrices(product: Product) -> Sides:
    x, w = product.x, product.w
    x16, w16 = x.bfloat16(), w.bfloat16()
    x8, w8 = x.to(torch.int8), w.to(torch.int8)
    fp32 = [
        Candidate("linear", lambda: F.linear(x, w), _same, as_integers),
        Candidate("matmul", lambda: x @ w.T, _same, as_integers),
    ]
    bf16 = [Candidate("linear", lambda: F.linear(x16, w16), _same, as_bfloat16)]
    found = {"torch fp32": fp32, "torch bf16": bf16}
    if "torch int8" in missing():
        return found
    int8 = [
        Candidate("quantized.linear to 8 bits", _quantized_linear(x, w), _dequantized, as_bytes),
        Candidate("_int_mm to int32", lambda: torch._int_mm(x8, w8.T), _same, as_integers),
    ]
    return {**found, "torch int8": int8}


def _quantized_linear(x: Tensor, w: Tensor) -> Call:
    torch.backends.quantized.engine = "x86"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*are deprecated", category=UserWarning)
        inputs = torch.quantize_per_tensor(x, 1.0, ZERO_POINT, torch.quint8)
        weights = torch.quantize_per_tensor(w, 1.0, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weights, None)
    return lambda: torch.ops.quantized.linear(inputs, packed, 1.0, 128)


def _convolutions(product: Product) -> Sides:
    x, w = product.x, product.w
    x16, w16 = x.bfloat16(), w.bfloat16()
    found = {
        "torch fp32": [Candidate("conv2d", lambda: F.conv2d(x, w, padding=1), _same, as_integers)],
        "torch bf16": [Candidate("conv2d", lambda: F.conv2d(x16, w16, padding=1), _same, as_bfloat16)],
    }
    if "torch int8" in missing():
        return found
    int8 = Candidate("quantized.conv2d to 8 bits", bench_bconv2d.int8(x, w, 1, 1, 1), _dequantized, as_bytes)
    return {**found, "torch int8": [int8]}
