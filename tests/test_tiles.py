"""Products of the sizes that run on tiles of int8 where the processor has them: every epilogue, on 1 to 3 threads.

Smaller ones run on emulated tiles in tests/core.
"""

import dataclasses

import pytest
import torch
from helpers import SHORT_FLOATS, assert_same_bits, generator, random_floats, random_signs, random_words

from stompp_kernels.ops import (
    Affine,
    AffineSigns,
    Threshold,
    bconv2d,
    bgemm,
    pack_conv_weight,
    pack_signs,
    pack_weight,
    reference,
)

# M, N, K: rows and outputs that do not fill their tiles, K in parts and with tails.
MATRICES = ((96, 192, 256), (101, 200, 300), (130, 320, 1029), (200, 193, 4100))
# Input, groups, outputs, kernel, stride, padding, dilation: lines of some tiles, lines that follow each other, strides,
# and channels that are gathered.
CONVOLUTIONS = (
    ((2, 64, 15, 17), 1, 70, (3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 128, 7, 7), 1, 64, (3, 3), (1, 1), (1, 1), (1, 1)),
    ((1, 64, 30, 40), 1, 96, (3, 3), (2, 2), (1, 1), (1, 1)),
    ((2, 128, 12, 20), 2, 160, (3, 2), (1, 1), (2, 0), (2, 1)),
    ((2, 100, 14, 9), 1, 200, (3, 3), (1, 2), (2, 1), (1, 1)),
)


def epilogues(M, N, g):
    """Each with what it makes of the sums [M, N]; None leaves them."""
    scale, bias, other_scale, other_bias = (random_floats((N,), g) for _ in range(4))
    yield None, lambda sums: sums
    for dtype in SHORT_FLOATS:
        residual = random_floats((M, N), g, dtype)
        affine = Affine(scale, bias, residual, dtype, True, other_scale, other_bias)
        wanted = (scale, bias, residual, other_scale, other_bias, True, dtype)
        yield affine, lambda sums, wanted=wanted: reference.affine(sums, *wanted)
    yield (
        AffineSigns(scale, bias),
        lambda sums: pack_signs(reference.affine(sums, scale, bias, None, None, None, False, torch.float32)),
    )
    thresholds, flips = torch.randint(-40, 40, (2, N), generator=g, dtype=torch.int32), random_words((), N, g)
    residual = random_words((M,), N, g)
    yield Threshold(thresholds[:1], flips), lambda sums: reference.threshold(sums, thresholds[:1], flips, None)
    yield (
        Threshold(thresholds, flips, residual),
        lambda sums: reference.threshold(sums, thresholds, flips, residual),
    )


def on_threads(compute, expected, what):
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert_same_bits(compute(), expected, f"{what}, {threads} threads")


def reshaped(epilogue, shape):
    """The epilogue of a convolution: residuals lie as its output does."""
    names = [name for name in ("residual", "residual_words") if getattr(epilogue, name, None) is not None]
    changes = {name: getattr(epilogue, name).view(*shape, -1) for name in names}
    return dataclasses.replace(epilogue, **changes) if changes else epilogue


@pytest.mark.parametrize(("M", "N", "K"), MATRICES)
def test_matrix_products(implementation, M, N, K):
    g = generator(M)
    a, w = random_words((M,), K, g), random_signs((N, K), g)
    sums = reference.bgemm(a, reference.pack_weight(w), N, K)
    weight = pack_weight(w)
    for epilogue, finish in epilogues(M, N, g):
        on_threads(lambda epilogue=epilogue: bgemm(a, weight, epilogue), finish(sums), type(epilogue).__name__)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("padding_value", [0, 1, -1])
@pytest.mark.parametrize(("size", "groups", "outputs", "kernel", "stride", "padding", "dilation"), CONVOLUTIONS)
def test_convolutions(implementation, size, groups, outputs, kernel, stride, padding, dilation, padding_value):
    g = generator(outputs)
    x, w = random_signs(size, g), random_signs((outputs, size[1] // groups, *kernel), g)
    geometry = (stride, padding, dilation, groups, padding_value)
    words = pack_signs(x.permute(0, 2, 3, 1))
    sums = reference.bconv2d(words, reference.pack_conv_weight(w, groups), w.shape, *geometry)
    weight = pack_conv_weight(w, groups)
    flat, shape = sums.flatten(0, 2), sums.shape[:3]
    for epilogue, finish in epilogues(len(flat), outputs, g):
        expected = finish(flat)
        expected = expected.view(*shape, expected.shape[-1])
        given = reshaped(epilogue, shape)
        on_threads(lambda given=given: bconv2d(words, weight, *geometry, given), expected, type(epilogue).__name__)
