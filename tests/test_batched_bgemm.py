"""Products of the packed rows of two activations equal their oracle and torch's matmul."""

import pytest
import torch
from helpers import assert_same_bits, generator, random_floats, random_signs, random_words, strided_forms
from hypothesis import given
from hypothesis import strategies as st

from stompp_kernels.ops import batched_bgemm, bgemm, pack_signs, pack_weight, reference


def expected_product(a, b):
    return (a.double() @ b.double().mT).to(torch.int32)


@given(
    batch=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    M=st.integers(1, 70),
    N=st.integers(1, 140),
    K=st.integers(1, 300),
    seed=st.integers(0, 999),
)
def test_products_equal_the_reference_and_matmul(implementation, batch, M, N, K, seed):
    g = generator(seed)
    a, b = random_signs((*batch, M, K), g), random_signs((*batch, N, K), g)
    words = pack_signs(a), pack_signs(b)
    out = batched_bgemm(*words, K)
    assert_same_bits(out, reference.batched_bgemm(*words, K), "oracle")
    assert_same_bits(out, expected_product(a, b), "matmul")


@pytest.mark.parametrize(
    "shape",
    [  # B, H, M, N, K: heads of 64 channels over 49 keys, one head, one token, one channel, past the counts of 16 bits
        *((1, 1, 1, 1, 1), (2, 3, 1, 49, 64), (2, 1, 50, 49, 63), (1, 8, 49, 64, 49), (1, 1, 197, 197, 33)),
        *((3, 1, 2, 1, 65), (1, 2, 5, 3, 2 * 273 * 240 + 17)),
    ],
)
def test_awkward_shapes_equal_matmul_on_any_number_of_threads(implementation, shape, g):
    B, H, M, N, K = shape
    a, b = random_signs((B, H, M, K), g), random_signs((B, H, N, K), g)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert_same_bits(batched_bgemm(pack_signs(a), pack_signs(b), K), expected_product(a, b), f"{threads} threads")


def test_each_product_is_a_bgemm_with_a_packed_weight(implementation, g):
    a, b = random_words((2, 3, 40), 90, g), random_signs((2, 3, 35, 90), g)
    out = batched_bgemm(a, pack_signs(b), 90)
    for i in range(2):
        for h in range(3):
            assert_same_bits(out[i, h], bgemm(a[i, h], pack_weight(b[i, h])))


def test_zeros_and_nan_count_as_plus_one(implementation, g):
    a, b = random_floats((2, 3, 5, 40), g), random_floats((2, 3, 4, 40), g)
    a[0, 0, 0], b[0, 0, 0] = 0.0, -0.0
    out = batched_bgemm(pack_signs(a), pack_signs(b), 40)
    assert_same_bits(out, expected_product(reference.sign(a), reference.sign(b)))
    assert out[0, 0, 0, 0] == 40


def test_words_may_have_any_strides_and_alignment(implementation, g):
    a, b = random_words((2, 3, 5), 90, g), random_words((2, 3, 4), 90, g)
    expected = batched_bgemm(a, b, 90)
    for name, view in strided_forms(a):
        assert_same_bits(batched_bgemm(view, b, 90), expected, name)
    for name, view in strided_forms(b):
        assert_same_bits(batched_bgemm(a, view, 90), expected, name)


def test_bits_behind_the_right_rows_are_ignored(implementation, g):
    a, b = random_words((2, 5), 40, g), random_words((2, 4), 40, g)
    dirty = b.clone()
    dirty[..., 1] |= -256  # bits 8 to 31 of the second word lie behind 40
    assert_same_bits(batched_bgemm(a, dirty, 40), batched_bgemm(a, b, 40))


def test_empty_batches_and_rows_give_empty_products(implementation):
    words = torch.zeros(2, 3, 2, dtype=torch.int32)
    assert batched_bgemm(words[:0], words[:0], 40).shape == (0, 3, 3)
    assert batched_bgemm(words[:, :0], words, 40).shape == (2, 0, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a, b: (a.float(), b, 40), TypeError, r"a_words must be torch\.int32, got torch\.float32"),
        (lambda a, b: (a, b.long(), 40), TypeError, r"b_words must be torch\.int32, got torch\.int64"),
        (lambda a, b: (a, 3, 40), TypeError, "b_words must be a tensor, got int"),
        (lambda a, b: (a, b, 65), ValueError, r"a_words .* = 3 words for K = 65, got shape \[2, 5, 2\]"),
        (lambda a, b: (a, b[..., :1], 40), ValueError, r"b_words .* = 2 words for K = 40, got shape \[2, 4, 1\]"),
        (lambda a, b: (a, b, 0), ValueError, "K must be at least 1, got 0"),
        (lambda a, b: (a, b[:1], 40), ValueError, r"sizes of a_words before their rows, \[2\], got shape \[1, 4, 2\]"),
        (lambda a, b: (a[None], b, 40), ValueError, r"sizes of a_words before their rows, \[1, 2\], got shape"),
        (lambda a, b: (a[0, 0], b[0, 0], 40), ValueError, r"a_words must be \[\.\.\., rows, ceil\(K/32\)\], got shape"),
        (lambda a, b: (a, b[:, :0], 40), ValueError, r"b_words must have at least one row, got shape \[2, 0, 2\]"),
    ],
)
def test_bad_arguments(implementation, change, error, message):
    a, b = torch.zeros(2, 5, 2, dtype=torch.int32), torch.zeros(2, 4, 2, dtype=torch.int32)
    with pytest.raises(error, match=message):
        batched_bgemm(*change(a, b))


def test_sizes_stay_symbols_in_an_exported_graph():
    class Product(torch.nn.Module):
        def forward(self, a, b):
            return batched_bgemm(pack_signs(a), pack_signs(b), a.shape[-1])

    batch, rows, keys = (torch.export.Dim(name, min=2) for name in ("batch", "rows", "keys"))
    width = torch.export.Dim("width", min=33)  # torch.export takes one word for a constant
    shapes = ({0: batch, 1: rows, 2: width}, {0: batch, 1: keys, 2: width})
    given = torch.randn(2, 5, 40), torch.randn(2, 4, 40)
    program = torch.export.export(Product(), given, dynamic_shapes=shapes).module()
    a, b = torch.randn(3, 7, 70), torch.randn(3, 9, 70)
    assert_same_bits(program(a, b), expected_product(reference.sign(a), reference.sign(b)))
