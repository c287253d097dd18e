"""Convolutions of signs. Weights are packed beforehand, as a user packs them once.

Plain PyTorch computes the same with +-1 in floats, channels_last: convolution, then what follows it. "fp32" and "int8"
are torch's convolutions alone, the least that a network without binary layers pays.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import PLAIN, Case, Sides, channels_last, in_turn, plain, signs
from benchmarks.shapes import CONVS, DEPTHWISE, Conv
from stompp_kernels import ops
from stompp_kernels.ops import reference

OTHER_CONVS = (
    Conv(56, 64, 64, kernel=5),
    Conv(28, 128, 128, kernel=7),
    Conv(56, 64, 128, stride=2),
    Conv(56, 64, 128, kernel=1, stride=2),
    Conv(56, 8, 32),
    Conv(56, 16, 32),
    Conv(56, 32, 32),
    Conv(28, 128, 128, groups=4),
    Conv(28, 128, 128, groups=32),
    Conv(28, 128, 128, groups=16),
    Conv(28, 128, 128, batch=64),
)
SCALE, BIAS = 0.5, 1.0  # of the epilogue to floats


def _formula(conv: Conv, out: str) -> Callable[[Tensor, Tensor], Tensor]:
    def formula(x: Tensor, w: Tensor) -> Tensor:
        y = F.conv2d(x, w, stride=conv.stride, padding=conv.padding, groups=conv.groups)
        if out == "bits":
            return torch.where(y < 0, -1.0, 1.0)
        return y * SCALE + BIAS if out == "float" else y

    return formula


def _epilogue(O: int, out: str) -> ops.Affine | ops.Threshold | None:
    if out == "bits":
        return ops.Threshold(torch.zeros(1, O, dtype=torch.int32), torch.zeros((O + 31) // 32, dtype=torch.int32))
    return ops.Affine(torch.full((O,), SCALE), torch.full((O,), BIAS)) if out == "float" else None


def case(group: str, conv: Conv, out: str, from_float: bool = False) -> Case:
    stride, padding, groups, O = conv.stride, conv.padding, conv.groups, conv.O

    def build() -> Sides:
        x = channels_last(signs(conv.batch, conv.C, conv.size, conv.size))
        w = signs(O, conv.C // groups, conv.kernel, conv.kernel, seed=1)
        nhwc, packed, w_last = x.permute(0, 2, 3, 1), ops.pack_conv_weight(w, groups), channels_last(w)
        words, epilogue, formula = ops.pack_signs(nhwc), _epilogue(O, out), _formula(conv, out)

        def ours() -> Tensor:
            given = ops.pack_signs(nhwc) if from_float else words
            return ops.bconv2d(given, packed, stride, padding, 1, groups, epilogue=epilogue)

        def expected() -> Tensor:
            y = formula(x, w_last).permute(0, 2, 3, 1)
            return reference.pack_signs(y) if out == "bits" else y

        def fp32() -> Tensor:
            return F.conv2d(x, w_last, stride=stride, padding=padding, groups=groups)

        others = {**plain(formula, x, w_last), "fp32": fp32, "int8": int8(x, w, stride, padding, groups)}
        return Sides(ours, others, expected)

    read = 4 * conv.inputs if from_float else conv.inputs // 8
    written = conv.pixels * (4 * ((O + 31) // 32) if out == "bits" else 4 * O)
    nbytes = read + conv.weights // 8 + written
    name = f"{conv.name} to {out}"
    return Case("bconv2d", group, name, (*PLAIN, "fp32", "int8"), build, conv.operations, nbytes)


def int8(x: Tensor, w: Tensor, stride: int, padding: int, groups: int) -> Callable[[], Tensor]:
    """torch's quantized convolution, with its weights packed beforehand as ours are."""
    torch.backends.quantized.engine = "x86"
    O = w.shape[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*are deprecated", category=UserWarning)
        quantized_x = torch.quantize_per_tensor(x, 1.0, 64, torch.quint8)
        quantized_w = torch.quantize_per_channel(w, torch.ones(O), torch.zeros(O, dtype=torch.long), 0, torch.qint8)
    prepacked = torch.ops.quantized.conv2d_prepack(quantized_w, None, [stride] * 2, [padding] * 2, [1, 1], groups)
    return lambda: torch.ops.quantized.conv2d(quantized_x, prepacked, 1.0, 128)


def cases() -> Iterator[Case]:
    for (size, channels), out in itertools.product(CONVS, ("bits", "int32", "float")):
        yield case(f"bconv2d {out}", Conv(size, channels, channels), out)
    for size, channels in CONVS:
        yield case("bconv2d 1x1 bits", Conv(size, channels, channels, kernel=1), "bits")
    for conv in OTHER_CONVS:
        yield case("bconv2d other bits", conv, "bits")
    for conv, out in itertools.product(DEPTHWISE, ("bits", "float")):
        yield case(f"bconv2d depthwise {out}", conv, out)
    for size, channels in CONVS:
        yield case("bconv2d from float to float", Conv(size, channels, channels), "float", from_float=True)


@in_turn(cases())
def test_bconv2d(turns, case, side):
    turns(case, side)
