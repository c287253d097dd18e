"""The number of threads never changes a bit."""

import pytest
import torch
from helpers import (
    SHORT_FLOATS,
    assert_same_bits,
    generator,
    grid,
    random_floats,
    random_signs,
    random_words,
)

from stompp_kernels.ops import (
    Affine,
    PackedWeight,
    Threshold,
    bconv2d,
    bgemm,
    pack_conv_weight,
    pack_signs,
    pack_weight,
    progressive,
    refresh_mask_,
    unpack_signs,
)


def packing():
    """Rows that are shared out, of every type, and weights of several panels."""
    g = generator(1)
    for dtype in SHORT_FLOATS:
        words = pack_signs(random_floats((700, 99), g, dtype))
        yield words
        yield unpack_signs(words, 99, dtype)
    for packed in (
        pack_weight(random_signs((300, 99), g)),
        pack_conv_weight(random_signs((300, 33, 3, 3), g), 3),
    ):
        yield packed.data
        yield packed.words()
        yield PackedWeight.from_words(packed.words(), packed.shape, packed.groups).data


def products():
    """Many rows (shared out) and few rows (then the panels are), with each epilogue."""
    g = generator(2)
    for M, N in [(1, 300), (3, 1000), (200, 67), (65, 33)]:
        a, weight = random_words((M,), 300, g), pack_weight(random_signs((N, 300), g))
        scale, bias = random_floats((N,), g), random_floats((N,), g)
        yield bgemm(a, weight)
        residual = random_floats((M, N), g, torch.float16)
        yield bgemm(a, weight, Affine(scale, bias, residual, torch.bfloat16))
        thresholds = torch.randint(-30, 30, (2, N), generator=g, dtype=torch.int32)
        epilogue = Threshold(thresholds, random_words((), N, g), random_words((M,), N, g))
        yield bgemm(a, weight, epilogue)


def convolutions():
    """Groups whose outputs share words of bits included."""
    g = generator(3)
    shapes = [(1, 40, 300), (2, 33, 10), (2, 64, 256), (37, 1, 37), (5, 3, 165)]
    for case in grid(shape=shapes, size=[(1, 1), (7, 9)]):
        groups, per_group, outputs = case["shape"]
        x = random_words((3, *case["size"]), groups * per_group, g)
        weight = pack_conv_weight(random_signs((outputs, per_group, 3, 3), g), groups)
        acc = bconv2d(x, weight, 1, 1, groups=groups)
        yield acc
        epilogue = Affine(random_floats((outputs,), g), random_floats((outputs,), g))
        yield bconv2d(x, weight, 1, 1, groups=groups, epilogue=epilogue)
        thresholds = torch.randint(-9, 9, (1, outputs), generator=g, dtype=torch.int32)
        epilogue = Threshold(thresholds, random_words((), outputs, g))
        yield bconv2d(x, weight, 1, 1, groups=groups, epilogue=epilogue)


def masks():
    g = generator(4)
    for shape, batch_shared in [((100_003,), False), ((300, 257), True), ((3, 70_001), True)]:
        u = random_floats(shape, g).requires_grad_()
        n = torch.Size(shape[1:] if batch_shared else shape).numel()
        words = random_words((), n, g)
        out = progressive(u, words, "approx_sign", batch_shared)
        out.backward(random_floats(shape, g))
        yield out.detach()
        yield u.grad
        yield refresh_mask_(words, n, 0.3, 2.0, 1, 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("results", [packing, products, convolutions, masks])
def test_one_and_more_threads_give_the_same_bits(implementation, results):
    torch.set_num_threads(1)
    expected = list(results())
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.get_num_threads() == threads
        for index, (ours, theirs) in enumerate(zip(results(), expected, strict=True)):
            assert_same_bits(ours, theirs, f"{threads} threads, result {index}")
