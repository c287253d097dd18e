"""Max pooling of signs equals torch's."""

import pytest
import torch
import torch.nn.functional as F
from helpers import generator, random_words
from hypothesis import assume, given
from hypothesis import strategies as st

from stompp_kernels.ops import max_pool2d_signs, unpack_signs

PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(
    channels=st.integers(1, 70),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=PAIRS,
    stride=st.none() | PAIRS,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    ceil_mode=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pooling_equals_torchs(channels, size, kernel, stride, padding, dilation, ceil_mode, seed):
    assume(dilation == (1, 1) or padding == (0, 0))
    assume(all(p <= k // 2 for p, k in zip(padding, kernel, strict=True)))
    assume(all(s + 2 * p >= d * (k - 1) + 1 for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    words = random_words((2, *size), channels, generator(seed))
    x = unpack_signs(words, channels).permute(0, 3, 1, 2)
    expected = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    pooled = max_pool2d_signs(words, kernel, stride, padding, dilation, ceil_mode)
    assert torch.equal(unpack_signs(pooled, channels).permute(0, 3, 1, 2), expected)
    assert not (channels % 32 and (pooled[..., -1] >> (channels % 32) != 0).any()), "tail bits are 0"


def test_bad_arguments():
    words = torch.zeros(1, 4, 4, 1, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"x_words must be torch\.int32, got torch\.float32"):
        max_pool2d_signs(words.float(), 2)
    with pytest.raises(ValueError, match=r"x_words must be \[N, H, W, C_words\], got shape \[4, 4, 1\]"):
        max_pool2d_signs(words[0], 2)
    with pytest.raises(ValueError, match="padding must be at most half of kernel_size 2, got 2"):
        max_pool2d_signs(words, 2, padding=2)
    with pytest.raises(ValueError, match="kernel_size 5 with dilation 1 reaches beyond 4 padded by 0"):
        max_pool2d_signs(words, 5)
    with pytest.raises(ValueError, match="dilation must be 1 where padding is not 0, got 2 and 1"):
        max_pool2d_signs(words, 2, padding=1, dilation=2)
    with pytest.raises(ValueError, match="kernel_size must be at least 1, got 0"):
        max_pool2d_signs(words, 0)
