"""Max pooling of signs equals torch's."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_bits, generator, grid, random_words, strided_forms
from hypothesis import assume, given
from hypothesis import strategies as st

from stompp_kernels.ops import max_pool2d_signs, reference, unpack_signs

PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(
    channels=st.integers(1, 140),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=PAIRS,
    stride=st.none() | PAIRS,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    ceil_mode=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pooling_equals_torchs(implementation, channels, size, kernel, stride, padding, dilation, ceil_mode, seed):
    assume(dilation == (1, 1) or padding == (0, 0))
    assume(all(p <= k // 2 for p, k in zip(padding, kernel, strict=True)))
    assume(all(s + 2 * p >= d * (k - 1) + 1 for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    words = random_words((2, *size), channels, generator(seed))
    x = unpack_signs(words, channels).permute(0, 3, 1, 2)
    expected = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    pooled = max_pool2d_signs(words, kernel, stride, padding, dilation, ceil_mode)
    assert torch.equal(unpack_signs(pooled, channels).permute(0, 3, 1, 2), expected)
    assert pooled.is_contiguous()
    assert not (channels % 32 and (pooled[..., -1] >> (channels % 32) != 0).any()), "tail bits are 0"


@pytest.mark.parametrize("case", grid(size=[(23, 40), (8, 1)], words=[1, 2, 3, 4, 9], window=[(2, 2, 0), (3, 2, 1)]))
def test_the_kernel_equals_the_reference(implementation, case, g):
    kernel, stride, padding = case["window"]
    shape = (3, *case["size"], case["words"])
    words = torch.randint(-(2**31), 2**31, shape, generator=g).to(torch.int32) | 0x0F0F0F0F  # AND leaves some
    window = (kernel, min(kernel, shape[2])), (stride, stride + 1), (padding, 0), (1, 1), True
    expected = reference.max_pool2d_signs(words, *window)
    for name, x in strided_forms(words):
        assert_same_bits(max_pool2d_signs(x, *window), expected, name)
    torch.set_num_threads(2)
    many = words.repeat(100, 1, 1, 1)
    assert_same_bits(max_pool2d_signs(many, *window), expected.repeat(100, 1, 1, 1), "two threads")


def test_the_result_is_no_view_of_the_input(implementation, g):
    words = random_words((1, 3, 3), 32, g)
    for function in (max_pool2d_signs, reference.max_pool2d_signs):
        pooled = function(words, (1, 1), (1, 1), (0, 0), (1, 1), False)
        assert torch.equal(pooled, words)
        assert pooled.data_ptr() != words.data_ptr()


def test_a_kernel_may_be_larger_than_the_input_in_ceil_mode(implementation, g):
    words = random_words((1, 4, 4), 40, g)
    x = unpack_signs(words, 40).permute(0, 3, 1, 2)
    expected = F.max_pool2d(x, 5, 3, ceil_mode=True)
    pooled = max_pool2d_signs(words, 5, 3, ceil_mode=True)
    assert torch.equal(unpack_signs(pooled, 40).permute(0, 3, 1, 2), expected)


def test_bad_arguments(implementation):
    words = torch.zeros(1, 4, 4, 1, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"x_words must be torch\.int32, got torch\.float32"):
        max_pool2d_signs(words.float(), 2)
    with pytest.raises(ValueError, match=r"x_words must be \[N, H, W, C_words\], got shape \[4, 4, 1\]"):
        max_pool2d_signs(words[0], 2)
    with pytest.raises(ValueError, match=r"at least one pixel and one word, got shape \[1, 0, 4, 1\]"):
        max_pool2d_signs(words[:, :0], 2)
    with pytest.raises(ValueError, match="padding must be at most half of kernel_size 2, got 2"):
        max_pool2d_signs(words, 2, padding=2)
    with pytest.raises(ValueError, match="kernel_size 5 with dilation 1 reaches beyond 4 padded by 0"):
        max_pool2d_signs(words, 5)
    with pytest.raises(ValueError, match="dilation must be 1 where padding is not 0, got 2 and 1"):
        max_pool2d_signs(words, 2, padding=1, dilation=2)
    with pytest.raises(ValueError, match="kernel_size must be at least 1, got 0"):
        max_pool2d_signs(words, 0)
    with pytest.raises(ValueError, match=r"stride must be an int or two ints, got \(1, 2, 3\)"):
        max_pool2d_signs(words, 2, (1, 2, 3))
    assert max_pool2d_signs(words[:0], 2).shape == (0, 2, 2, 1)
