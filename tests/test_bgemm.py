"""bgemm against its oracle and against torch's matmul."""

import pytest
import torch
from helpers import (
    assert_same_bits,
    generator,
    random_signs,
    random_words,
    strided_forms,
)
from hypothesis import given
from hypothesis import strategies as st

from stompp_kernels import native
from stompp_kernels.ops import PackedWeight, bgemm, pack_conv_weight, pack_signs, pack_weight, reference

# The AVX2 kernel widens its 8-bit counts after 30 bytes of K (248 bytes for a single row) and its
# 16-bit counts after 273 times 30 bytes: K around those, and around what overflows 16 bits.
SPILL, ONE_ROW_SPILL, FLUSH = 30 * 8, 248 * 8, 273 * 30 * 8


def expected_product(a, w):
    return (a.double() @ w.double().T).to(torch.int32)


@given(
    M=st.integers(1, 70),
    N=st.integers(1, 140),
    K=st.integers(1, 5000),
    seed=st.integers(0, 999),
)
def test_products_equal_the_reference_and_matmul(implementation, M, N, K, seed):
    g = generator(seed)
    a, w = random_signs((M, K), g), random_signs((N, K), g)
    out = bgemm(pack_signs(a), pack_weight(w))
    oracle = reference.bgemm(reference.pack_signs(a), reference.pack_weight(w), N, K)
    assert_same_bits(out, oracle, "oracle")
    assert_same_bits(out, expected_product(a, w), "matmul")


def test_every_tail_of_K_gives_the_right_product(implementation, g):
    for K in range(1, 132):
        a, w = random_signs((5, K), g), random_signs((35, K), g)
        assert_same_bits(bgemm(pack_signs(a), pack_weight(w)), expected_product(a, w), f"K = {K}")


@pytest.mark.parametrize("M", [1, 2, 3, 4, 5, 31, 32, 33, 64, 65])
def test_every_count_of_rows_and_outputs_gives_the_right_product(implementation, M, g):
    a = random_signs((M, 77), g)
    for N in (1, 2, 31, 32, 33, 63, 64, 65, 96, 97, 128, 129):
        w = random_signs((N, 77), g)
        assert_same_bits(bgemm(pack_signs(a), pack_weight(w)), expected_product(a, w), f"N = {N}")


@pytest.mark.parametrize(
    "K",
    [
        *(SPILL + d for d in (-8, -1, 0, 1, 8, 15, 16, 17, 24)),
        *(ONE_ROW_SPILL + d for d in (-8, -1, 0, 1, 8, 64, 65)),
        *(FLUSH - SPILL + d for d in (-1, 0, 1)),
        *(FLUSH + d for d in (-8, -1, 0, 1, 8, 63, 64, 65, SPILL)),
        *(2 * FLUSH + d for d in (-2 * SPILL, -1, 0, 17)),
    ],
)
@pytest.mark.parametrize(("M", "N"), [(1, 1), (1, 33), (5, 1), (5, 65)])
def test_counts_do_not_wrap_where_every_bit_differs(implementation, K, M, N):
    a_words = pack_signs(torch.ones(M, K))
    w = pack_weight(torch.full((N, K), -1.0))
    assert bgemm(a_words, w).eq(-K).all()


def test_a_long_random_row_equals_matmul(implementation, g):
    a, w = random_signs((6, 2 * FLUSH + 17), g), random_signs((3, 2 * FLUSH + 17), g)
    assert_same_bits(bgemm(pack_signs(a), pack_weight(w)), expected_product(a, w))


def test_leading_dimensions_are_kept(implementation, g):
    weight = pack_weight(random_signs((7, 40), g))
    words = random_words((2, 3, 4), 40, g)
    out = bgemm(words, weight)
    assert out.shape == (2, 3, 4, 7)
    assert_same_bits(out.flatten(0, 2), bgemm(words.flatten(0, 2), weight))
    assert_same_bits(bgemm(words[0, 0, 0], weight), out[0, 0, 0])


def test_an_empty_batch_gives_an_empty_product(implementation, g):
    weight = pack_weight(random_signs((7, 40), g))
    for shape in [(0, 2), (3, 0, 2)]:
        out = bgemm(torch.empty(shape, dtype=torch.int32), weight)
        assert (out.shape, out.dtype) == ((*shape[:-1], 7), torch.int32)


def test_words_and_weights_may_have_any_strides_and_alignment(implementation, g):
    words, weight = random_words((3, 5), 90, g), pack_weight(random_signs((35, 90), g))
    expected = bgemm(words, weight)
    for name, view in strided_forms(words):
        assert_same_bits(bgemm(view, weight), expected, name)
    for name, view in strided_forms(weight.data):
        assert_same_bits(bgemm(words, PackedWeight(view, weight.shape)), expected, name)
    inner = random_words((4, 6), 64, g)[:, 1:]  # rows that begin on another word
    inner = inner.unsqueeze(-1).expand(-1, -1, 2, 3)[..., 1:, :]
    assert_same_bits(bgemm(inner, weight), bgemm(inner.contiguous(), weight))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a, w: bgemm(a, w.data), TypeError, "weight must be a PackedWeight"),
        (lambda a, w: bgemm(a, torch.ones(3, 40)), TypeError, "got Tensor"),
        (lambda a, w: bgemm(a.long(), w), TypeError, "a_words must be torch.int32"),
        (lambda a, w: bgemm(a.float(), w), TypeError, "got torch.float32"),
        (lambda a, w: bgemm(a[:, :1], w), ValueError, r"= 2 words for K = 40, got shape \[4, 1\]"),
        (lambda a, w: bgemm(a[0, 0], w), ValueError, "last dimension"),
        (
            lambda a, w: bgemm(a, pack_conv_weight(torch.ones(3, 40, 1, 1))),
            ValueError,
            r"packed from \[N, K\], got shape \[3, 40, 1, 1\]",
        ),
    ],
)
def test_bad_arguments_are_named(implementation, call, error, message, g):
    with pytest.raises(error, match=message):
        call(random_words((4,), 40, g), pack_weight(random_signs((3, 40), g)))


needs_library = pytest.mark.skipif(
    native.library is None, reason="the reference's packed weights are plain words with no header"
)


@needs_library
def test_bytes_cut_short_are_refused(implementation, g):
    a, weight = random_words((4,), 40, g), pack_weight(random_signs((35, 40), g)).data
    for length in [0, 1, 3, 4, 63, 64, 65, 100, len(weight) // 2, len(weight) - 1]:
        with pytest.raises(RuntimeError, match=r"packed weight: (shorter|its size)"):
            torch.ops.stompp.bgemm(a, weight[:length], 35, 40)
    longer = torch.cat([weight, weight.new_zeros(1)])
    with pytest.raises(RuntimeError, match="its size does not match"):
        torch.ops.stompp.bgemm(a, longer, 35, 40)


@needs_library
def test_an_altered_header_is_refused(implementation, g):
    a, weight = random_words((4,), 40, g), pack_weight(random_signs((35, 40), g)).data
    for at in range(64):
        for value in (0x01, 0x80, 0xFF):
            altered = weight.clone()
            altered[at] ^= value
            with pytest.raises(RuntimeError, match="packed weight"):
                torch.ops.stompp.bgemm(a, altered, 35, 40)


@needs_library
def test_a_weight_of_another_shape_or_type_is_refused(implementation, g):
    a, packed = random_words((4,), 40, g), pack_weight(random_signs((35, 40), g)).data
    for N, K in [(34, 40), (35, 41), (40, 35), (-1, 40), (35, 0), (2**62, 40)]:
        with pytest.raises(RuntimeError, match="another shape"):
            torch.ops.stompp.bgemm(a, packed, N, K)
    with pytest.raises(RuntimeError, match="must be uint8"):
        torch.ops.stompp.bgemm(a, packed.to(torch.int8), 35, 40)
    with pytest.raises(RuntimeError, match="one-dimensional"):
        torch.ops.stompp.bgemm(a, packed.view(1, -1), 35, 40)
    with pytest.raises(RuntimeError, match="were not made by"):
        torch.ops.stompp.bgemm(a, torch.zeros_like(packed), 35, 40)
    conv = pack_conv_weight(random_signs((35, 40, 1, 1), g)).data
    expected = torch.ops.stompp.bgemm(a, conv, 35, 40)  # a 1x1 convolution is this matrix
    assert expected.shape == (4, 35)
