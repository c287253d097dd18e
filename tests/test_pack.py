"""Packing of signs and weights: the bit contract, layouts and the way between them."""

import math

import pytest
import torch
from helpers import (
    FLOATS,
    IMPLEMENTATIONS,
    SHORT_FLOATS,
    assert_same_bits,
    generator,
    random_floats,
    random_signs,
    random_words,
    special_values,
    strided_forms,
)
from hypothesis import given
from hypothesis import strategies as st

from stompp_kernels import native
from stompp_kernels.ops import (
    PackedWeight,
    bconv2d,
    bgemm,
    pack_conv_weight,
    pack_outside,
    pack_signs,
    pack_weight,
    reference,
    unpack_signs,
)


@given(
    K=st.integers(1, 5000),
    rows=st.sampled_from([(), (1,), (3,), (2, 3), (0,)]),
    dtype=st.sampled_from(SHORT_FLOATS),
    seed=st.integers(0, 999),
)
def test_packed_signs_equal_the_reference(implementation, K, rows, dtype, seed):
    x = random_floats((*rows, K), generator(seed), dtype)
    assert_same_bits(pack_signs(x), reference.pack_signs(x))


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
def test_every_tail_length_packs_with_zero_tail_bits(implementation, dtype, g):
    for K in range(1, 131):
        x = random_floats((2, K), g, dtype)
        words = pack_signs(x)
        assert_same_bits(words, reference.pack_signs(x), f"K = {K}")
        assert not reference.bits_from_words(words, words.shape[-1] * 32)[:, K:].any()


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
def test_a_bit_is_one_exactly_where_the_value_is_below_zero(implementation, dtype):
    x = special_values(dtype)
    expected = [math.copysign(1, v) < 0 and v != 0 and not math.isnan(v) for v in x.tolist()]
    bits = reference.bits_from_words(pack_signs(x), len(x)).tolist()
    assert bits == expected
    assert any(bits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_pattern_packs_as_torch_compares_it(implementation, dtype):
    x = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)
    assert reference.bits_from_words(pack_signs(x), len(x)).equal(x < 0)
    # In rows of 31 the patterns also go through the code for tails.
    x = x[: len(x) // 31 * 31].view(-1, 31)
    assert reference.bits_from_words(pack_signs(x), 31).equal(x < 0)


@given(
    K=st.integers(1, 300),
    rows=st.sampled_from([(), (1,), (3,), (2, 3), (0,)]),
    dtype=st.sampled_from(SHORT_FLOATS),
    seed=st.integers(0, 999),
)
def test_values_outside_limits_equal_the_reference(implementation, K, rows, dtype, seed):
    g = generator(seed)
    x, low, high = random_floats((*rows, K), g, dtype), random_floats((K,), g), random_floats((K,), g)
    assert_same_bits(pack_outside(x, low, high), reference.pack_outside(x, low, high))


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
@pytest.mark.parametrize("shape", [(3, 45), (2, 3, 5, 67), (2, 5, 9, 33)])
def test_values_outside_limits_are_found_in_any_strides(implementation, dtype, shape, g):
    x = random_floats(shape, g, dtype)
    low, high = random_floats(shape[-1:], g), random_floats((2 * shape[-1],), g)[::2]
    expected = reference.pack_outside(x, low, high)
    for name, form in strided_forms(x):
        assert_same_bits(pack_outside(form, low, high), expected, name)


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
def test_infinite_limits_are_never_reached_and_NaN_is_never_outside(implementation, dtype):
    x = special_values(dtype).repeat(40)
    low, high = torch.full((len(x),), -math.inf), torch.full((len(x),), math.inf)
    assert not pack_outside(x, low, high).any()
    always = reference.bits_from_words(pack_outside(x, high, low), len(x))
    assert always.equal(~x.isnan())


@pytest.mark.parametrize(
    ("low", "high", "error", "message"),
    [
        (torch.zeros(4), torch.zeros(5), ValueError, r"low must have shape \[5\], got \[4\]"),
        (torch.zeros(5), torch.zeros(5, 1), ValueError, "high must have shape"),
        (torch.zeros(5).double(), torch.zeros(5), TypeError, "low must be torch.float32"),
        (torch.zeros(5), None, TypeError, "high must be a tensor"),
    ],
)
def test_bad_limits_are_named(implementation, low, high, error, message):
    with pytest.raises(error, match=message):
        pack_outside(torch.zeros(2, 5), low, high)


def test_bits_are_little_endian_and_least_significant_first(implementation):
    x = torch.ones(40)
    x[[0, 5, 31, 33]] = -1
    assert pack_signs(x).tolist() == [1 + 2**5 - 2**31, 2]


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
@pytest.mark.parametrize("shape", [(7,), (3, 45), (2, 3, 5, 67)])
def test_packing_reads_any_strides_and_alignment(implementation, dtype, shape, g):
    x = random_floats(shape, g, dtype)
    for name, view in strided_forms(x):
        assert_same_bits(pack_signs(view), reference.pack_signs(x), name)


@pytest.mark.parametrize("dtype", FLOATS)
def test_unpacked_signs_equal_the_reference(implementation, dtype, g):
    for K in [*range(1, 70), 1000]:
        words = random_words((2, 3), K, g)
        out = unpack_signs(words, K, dtype)
        assert_same_bits(out, reference.unpack_signs(words, K, dtype), f"K = {K}")
        if dtype != torch.float64:
            assert_same_bits(pack_signs(out), words, f"K = {K}")


def test_unpacking_reads_any_strides_and_alignment(implementation, g):
    words = random_words((2, 3, 4), 90, g)
    for name, view in strided_forms(words):
        assert_same_bits(unpack_signs(view, 90), reference.unpack_signs(words, 90, torch.float32), name)


@given(
    N=st.integers(1, 67),
    K=st.integers(1, 100),
    dtype=st.sampled_from(SHORT_FLOATS),
    seed=st.integers(0, 999),
)
def test_a_matrix_comes_back_from_the_layout_of_each_implementation(implementation, N, K, dtype, seed):
    w = random_floats((N, K), generator(seed), dtype)
    packed = pack_weight(w)
    assert packed.shape == (N, K)
    assert packed.data.dtype == torch.uint8
    assert_same_bits(packed.words(), reference.pack_signs(w))
    assert_same_bits(packed.unpack(dtype), reference.sign(w))
    again = PackedWeight.from_words(packed.words(), packed.shape)
    assert_same_bits(again.data, packed.data)


@given(
    O=st.integers(1, 40),
    groups=st.integers(1, 3),
    I=st.integers(1, 70),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 999),
)
def test_a_convolution_weight_comes_back_from_the_layout_of_each_implementation(
    implementation, O, groups, I, kernel, seed
):
    w = random_floats((O * groups, I, *kernel), generator(seed))
    packed = pack_conv_weight(w, groups)
    assert (packed.shape, packed.groups) == (tuple(w.shape), groups)
    assert_same_bits(packed.words(), reference.pack_signs(w.permute(0, 2, 3, 1)))
    assert_same_bits(packed.unpack(), reference.sign(w))
    again = PackedWeight.from_words(packed.words(), packed.shape, groups)
    assert_same_bits(again.data, packed.data)


def test_weights_pack_from_any_strides_and_alignment(implementation, g):
    matrix, kernel = random_floats((5, 70), g), random_floats((6, 9, 3, 2), g)
    for name, view in strided_forms(matrix):
        assert_same_bits(pack_weight(view).data, pack_weight(matrix).data, name)
    for name, view in strided_forms(kernel):
        expected = pack_conv_weight(kernel, 2).data
        assert_same_bits(pack_conv_weight(view, 2).data, expected, name)
    for name, view in strided_forms(pack_conv_weight(kernel, 2).words()):
        assert_same_bits(PackedWeight.from_words(view, kernel.shape, 2).data, expected, name)


def test_set_tail_bits_in_portable_words_are_ignored(implementation, g):
    words = random_words((3,), 37, g)
    dirty = words | torch.tensor([0, -1 << 5], dtype=torch.int32)
    assert not dirty.equal(words)
    assert_same_bits(PackedWeight.from_words(dirty, (3, 37)).words(), words)


def test_each_implementation_packs_in_its_own_layout(g):
    w = random_signs((40, 70), g)
    layouts = {}
    for name in IMPLEMENTATIONS:
        with native.use_implementation(name):
            layouts[name] = int(pack_weight(w).data[8:12].view(torch.int32))
    expected = {"scalar": 1, "neon": 2, "avx2": 3, "avx512": 4, "amx": 4}
    assert layouts == {name: expected[name] for name in IMPLEMENTATIONS}


@pytest.mark.parametrize("packer", IMPLEMENTATIONS)
def test_a_weight_packed_by_one_implementation_runs_and_unpacks_on_another(implementation, packer, g):
    w = random_signs((67, 75), g)
    kernel = random_signs((2 * 35, 21, 3, 2), g)
    a, x = random_words((9,), 75, g), random_words((2, 5, 6), 42, g)
    with native.use_implementation(packer):
        matrix, conv = pack_weight(w), pack_conv_weight(kernel, 2)
    assert native.active_implementation() == implementation
    assert_same_bits(matrix.words(), reference.pack_signs(w))
    assert_same_bits(conv.unpack(), kernel)
    assert_same_bits(bgemm(a, matrix), reference.bgemm(a, reference.pack_weight(w), 67, 75))
    expected = reference.bconv2d(x, reference.pack_conv_weight(kernel, 2), kernel.shape, (1, 2), (1, 0), (1, 1), 2, 0)
    assert_same_bits(bconv2d(x, conv, (1, 2), (1, 0), groups=2), expected)


def test_moving_a_weight_to_its_own_device_returns_it(g):
    packed = pack_weight(random_signs((3, 5), g))
    assert packed.to("cpu") is packed


def test_portable_bytes_count_32_bit_words():
    assert pack_weight(torch.ones(3, 33)).portable_nbytes == 3 * 2 * 4
    packed = pack_conv_weight(torch.ones(4, 33, 3, 5))
    assert packed.portable_nbytes == 4 * 15 * 2 * 4 == packed.words().numel() * 4
    assert packed.nbytes == packed.data.numel()


def test_an_empty_batch_packs_to_an_empty_batch(implementation):
    words = pack_signs(torch.empty(0, 3, 40))
    assert words.shape == (0, 3, 2)
    assert unpack_signs(words, 40).shape == (0, 3, 40)


def test_nan_is_refused_only_when_the_check_is_on(implementation):
    x = torch.tensor([1.0, math.nan, -1.0])
    assert pack_signs(x).tolist() == [4]
    with pytest.raises(ValueError, match="NaN"):
        pack_signs(x, check_nan=True)
    assert pack_signs(x.nan_to_num(), check_nan=True).tolist() == [4]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pack_signs([1.0]), TypeError, "x must be a tensor, got list"),
        (lambda: pack_signs(torch.ones(3, dtype=torch.int32)), TypeError, "got torch.int32"),
        (lambda: pack_signs(torch.ones(3, dtype=torch.float64)), TypeError, "got torch.float64"),
        (lambda: pack_signs(torch.ones(())), ValueError, "last dimension"),
        (lambda: pack_signs(torch.ones(3, 0)), ValueError, r"got shape \[3, 0\]"),
        (lambda: unpack_signs(torch.ones(3), 3), TypeError, "words must be torch.int32"),
        (lambda: unpack_signs(torch.ones(3).int(), 0), ValueError, "K must be at least 1"),
        (lambda: unpack_signs(torch.ones(3).int(), 97), ValueError, r"= 4 words for K = 97"),
        (lambda: unpack_signs(torch.ones(3).int(), 64), ValueError, r"= 2 words for K = 64"),
        (lambda: unpack_signs(torch.ones(()).int(), 1), ValueError, "last dimension"),
        (
            lambda: unpack_signs(torch.ones(1).int(), 3, torch.int8),
            TypeError,
            "dtype must be one of .* got torch.int8",
        ),
        (lambda: pack_weight(torch.ones(3, 4, 1, 1)), ValueError, r"w must be \[N, K\]"),
        (lambda: pack_weight(torch.ones(3, 4).double()), TypeError, "w must be"),
        (lambda: pack_weight(torch.ones(0, 4)), ValueError, "not empty"),
        (lambda: pack_weight(torch.ones(4, 0)), ValueError, "not empty"),
        (lambda: pack_conv_weight(torch.ones(3, 4)), ValueError, "w must be"),
        (lambda: pack_conv_weight(torch.ones(3, 4, 1, 1), 2), ValueError, "divisor of the 3"),
        (lambda: pack_conv_weight(torch.ones(3, 4, 1, 1), 0), ValueError, "groups"),
        (lambda: pack_conv_weight(torch.ones(3, 4, 1, 1), -1), ValueError, "groups"),
        (lambda: pack_conv_weight(torch.ones(3, 4, 1, 1), 1.0), ValueError, "groups"),
        (lambda: pack_conv_weight(torch.ones(3, 4, 0, 1)), ValueError, "not empty"),
        (
            lambda: PackedWeight.from_words(torch.ones(3, 2).int(), (3, 65)),
            ValueError,
            r"words must have shape \[3, 3\], got \[3, 2\]",
        ),
        (
            lambda: PackedWeight.from_words(torch.ones(3, 2), (3, 64)),
            TypeError,
            "words must be torch.int32",
        ),
        (
            lambda: PackedWeight.from_words(torch.ones(1, 1).int(), (1, 2**30)),
            ValueError,
            r"below 2\^30",
        ),
    ],
)
def test_bad_packing_arguments_are_named(implementation, call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1, 1, 4, 4), (2, 33, 5, 7), (3, 64, 4, 4), (2, 5, 1, 17), (1, 100, 40, 1), (0, 3, 4, 5), (2, 40, 17, 16)]
)
def test_planes_pack_as_their_contiguous_copy(implementation, shape, dtype):
    """NCHW permuted to NHWC: packed without a copy, also where images, channels or rows are views."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x.view(-1)[::7] = -0.0
    x.view(-1)[3::11] = float("nan")
    x.view(-1)[4::13] = -float("inf")
    one_channel = x[:, :1].expand(-1, 50, -1, -1)
    for view in (x, x[:, :, :, -3:], x[:, ::2], x[::2], x.flip(0)[:, :, 1:], one_channel):
        nhwc = view.permute(0, 2, 3, 1)
        assert torch.equal(pack_signs(nhwc), reference.pack_signs(nhwc))
