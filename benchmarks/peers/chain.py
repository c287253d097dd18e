"""Binary layers one after another, bits between them: the products alone, as a deep network has them.

A layer is a 3x3 convolution whose sums become bits by one threshold. The first reads floats and the last writes them,
so that one layer of many pays for both. It is OpenVINO's best case: it fuses the comparison into the convolution and
leaves out what padding adds, which ours computes and takes away.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.case import Case, Sides, channels_last, signs
from benchmarks.peers import openvino
from benchmarks.peers.fastest import in_turn
from benchmarks.shapes import CONVS
from stompp_kernels import ops
from stompp_kernels.bench.turns import using_threads

LAYERS = 9


def measure_all(threads: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each of ResNet's 3x3 layers.

    Raises:
        AssertionError: a result is wrong; nothing was timed.
    """
    with using_threads(threads):
        return [_measure(size, channels, threads, seconds) for size, channels in CONVS]


def _measure(size: int, channels: int, threads: int, seconds: float) -> dict[str, Any]:
    x = channels_last(signs(1, channels, size, size))
    weights = [signs(channels, channels, 3, 3, seed=layer + 1) for layer in range(LAYERS)]
    exact = x.double()
    for w in weights[:-1]:
        exact = torch.where(F.conv2d(exact, w.double(), padding=1) >= 0, 1.0, -1.0).double()
    exact = F.conv2d(exact, weights[-1].double(), padding=1)

    packed = [ops.pack_conv_weight(w) for w in weights]
    to_bits = ops.Threshold(torch.zeros(1, channels, dtype=torch.int32), torch.zeros(-(-channels // 32)).int())
    to_floats = ops.Affine(torch.ones(channels), torch.zeros(channels))

    def ours() -> torch.Tensor:
        words = ops.pack_signs(x.permute(0, 2, 3, 1))
        for w in packed[:-1]:
            words = ops.bconv2d(words, w, padding=1, epilogue=to_bits)
        return ops.bconv2d(words, packed[-1], padding=1, epilogue=to_floats).permute(0, 3, 1, 2)

    Sides(ours, {}, lambda: exact).check_ours()
    theirs = openvino.chain(x, weights, threads)
    theirs.verify(exact)
    operations = 2 * LAYERS * size * size * channels * channels * 9
    name = f"{LAYERS} x 3x3, {size}x{size}x{channels}"
    case = Case("bconv2d", "chain of bconv2d", name, (), _not_built, operations, 2 * x.nbytes)
    return in_turn(case, {"ours": ours}, {"openvino xnor": {theirs.how: theirs.run}}, threads, seconds)


def _not_built() -> Sides:
    raise TypeError("a chain's sides are made and checked here")
