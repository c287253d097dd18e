"""Products of floats with binary weights against their oracle, torch's own products in float64, and exact integers."""

import pytest
import torch
import torch.nn.functional as F
from helpers import SHORT_FLOATS, assert_same_bits, generator, random_floats, random_signs, strided_forms
from hypothesis import given
from hypothesis import strategies as st

from stompp_kernels import native, nn
from stompp_kernels.ops import (
    BinaryWeight,
    conv2d_binary_weight,
    linear_binary_weight,
    pack_binary_weight,
    pack_conv_weight,
    pack_weight,
    reference,
)

needs_library = pytest.mark.skipif(
    native.library is None, reason="torch's own products add up in an order of their choice"
)
EPSILON = torch.finfo(torch.float32).eps


def integers(shape, g):
    """Small integers: float32 holds every sum of them, so any order of the additions gives the same bits."""
    return torch.randint(-9, 10, tuple(shape), generator=g).float()


def assert_close_sums(actual, x, w, product):
    """``product(x, w)`` within the bound of a sum of K terms: additions round (K - 1) times at most, each by half an
    epsilon of a partial sum, which is never larger than the sum of magnitudes."""
    K = w[0].numel()
    exact, magnitudes = product(x.double(), w.double()), product(x.double().abs(), w.double().abs())
    error = (actual.double() - exact).abs()
    assert bool((error <= K * EPSILON / 2 * magnitudes).all()), f"{(error / magnitudes).max() / EPSILON} epsilons"


@given(M=st.integers(1, 40), N=st.integers(1, 140), K=st.integers(1, 700), seed=st.integers(0, 999))
def test_linear_is_exact_on_integers_and_equals_the_oracle(implementation, M, N, K, seed):
    g = generator(seed)
    x, w, scale, bias = integers((M, K), g), random_signs((N, K), g), torch.rand(N, generator=g), integers((N,), g)
    out = linear_binary_weight(x, pack_binary_weight(w), scale, bias)
    assert_same_bits(out, (x @ w.T) * scale + bias, "float arithmetic")
    words = reference.pack_weight(w)
    assert_same_bits(out, reference.linear_binary_weight(x, words, N, K, scale, bias), "oracle")


def test_every_tail_of_K_gives_the_right_sums(implementation, g):
    for K in range(1, 132):
        x, w = integers((3, K), g), random_signs((35, K), g)
        assert_same_bits(linear_binary_weight(x, pack_binary_weight(w), torch.ones(35)), x @ w.T, f"K = {K}")


@pytest.mark.parametrize("M", [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 33])
def test_every_count_of_rows_and_outputs_gives_the_right_sums(implementation, M, g):
    x = integers((M, 77), g)
    for N in (1, 15, 16, 31, 32, 33, 64, 65, 96, 97, 128, 129, 161):
        w = random_signs((N, 77), g)
        assert_same_bits(linear_binary_weight(x, pack_binary_weight(w), torch.ones(N)), x @ w.T, f"N = {N}")


@pytest.mark.parametrize(("M", "N", "K"), [(1, 70, 4096), (7, 33, 5000), (40, 64, 768)])
def test_rounding_stays_within_the_bound_of_a_sum(implementation, M, N, K, g):
    x, w = torch.randn(M, K, generator=g), random_signs((N, K), g)
    out = linear_binary_weight(x, pack_binary_weight(w), torch.ones(N))
    assert_close_sums(out, x, w, lambda x, w: x @ w.T)


@needs_library
def test_a_row_depends_on_no_other_row(implementation, g):
    x, weight, scale = torch.randn(37, 100, generator=g), pack_binary_weight(random_signs((70, 100), g)), torch.ones(70)
    expected = linear_binary_weight(x, weight, scale)
    for count in (1, 2, 3, 5, 8):
        assert_same_bits(linear_binary_weight(x[:count], weight, scale), expected[:count], f"{count} rows")
    for value in (torch.inf, -torch.inf, torch.nan):
        spoiled = x.clone()
        spoiled[4, 7] = spoiled[20, 99] = value
        out = linear_binary_weight(spoiled, weight, scale)
        clean = [r for r in range(37) if r not in (4, 20)]
        assert_same_bits(out[clean], expected[clean])
        assert_same_bits(out[[4, 20]], value * weight.unpack()[:, [7, 99]].T)


def test_signed_zeros_and_opposite_infinities_follow_float_arithmetic(implementation, g):
    w = random_signs((40, 6), g)
    out = linear_binary_weight(torch.tensor([[0.0, -0.0] * 3]), pack_binary_weight(w), torch.ones(40))
    assert out.eq(0).all()
    x = torch.tensor([[torch.inf, torch.inf, 1.0, 2.0, 3.0, 4.0]])
    assert_same_bits(linear_binary_weight(x, pack_binary_weight(w), torch.ones(40)), x @ w.T)


CONVOLUTIONS = [
    # (batch, C, H, W), O, kernel, stride, padding, dilation, groups
    ((2, 64, 7, 9), 70, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 3, 11, 8), 33, (5, 2), (2, 3), (2, 0), (1, 1), 1),
    ((1, 40, 6, 15), 32, (2, 3), (1, 2), (0, 3), (2, 3), 1),
    ((2, 1, 5, 5), 1, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 32, 9, 30), 64, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    ((1, 33, 1, 40), 8, (1, 3), (1, 1), (0, 1), (1, 1), 1),
    ((1, 4, 3, 3), 5, (3, 3), (1, 1), (4, 5), (1, 1), 1),  # whole windows of padding
    ((2, 60, 5, 6), 42, (3, 3), (1, 1), (1, 1), (1, 1), 3),
    ((1, 10, 6, 6), 15, (2, 2), (1, 1), (1, 1), (1, 1), 5),
    ((2, 70, 6, 9), 70, (3, 3), (1, 1), (1, 1), (1, 1), 70),
    ((1, 32, 9, 9), 32, (3, 5), (2, 2), (1, 2), (1, 1), 32),
    ((1, 5, 20, 40), 5, (7, 7), (1, 1), (3, 3), (2, 1), 5),  # more taps than signs are expanded at once
    ((1, 6, 5, 5), 12, (3, 3), (1, 1), (1, 1), (1, 1), 6),  # two outputs of each channel
    ((1, 66, 6, 5), 66, (3, 3), (1, 1), (1, 1), (1, 1), 33),
    ((2, 40, 5, 5), 40, (3, 2), (2, 1), (1, 1), (1, 2), 10),
    ((1, 48, 5, 7), 48, (3, 3), (1, 1), (1, 1), (1, 1), 6),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions_are_exact_on_integers(implementation, case, g):
    shape, O, kernel, stride, padding, dilation, groups = case
    x, w = integers(shape, g), random_signs((O, shape[1] // groups, *kernel), g)
    scale, bias = torch.rand(O, generator=g), integers((O,), g)
    weight = pack_binary_weight(w, groups)
    expected = F.conv2d(x, w, None, stride, padding, dilation, groups) * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
    for image in (x, x.to(memory_format=torch.channels_last)):
        out = conv2d_binary_weight(image, weight, scale, bias, stride, padding, dilation, groups)
        assert_same_bits(out, expected)
        assert out.is_contiguous(memory_format=torch.channels_last)
    arguments = list(w.shape), stride, padding, dilation, groups, scale, bias
    assert_same_bits(reference.conv2d_binary_weight(x, reference.pack_conv_weight(w, groups), *arguments), expected)


@given(data=st.data())
def test_random_convolutions_are_exact_on_integers(implementation, data):
    def draw(*options):
        return data.draw(st.sampled_from(options))

    g = generator(data.draw(st.integers(0, 999)))
    groups, I = draw(1, 1, 2, 3, 8, 40), draw(1, 2, 3, 4, 8, 20, 33)
    O = groups * draw(1, 2, I, 33)
    kernel, stride, padding, dilation = ((draw(*r), draw(*r)) for r in ((1, 2, 3, 4), (1, 2, 3), (0, 1, 2, 4), (1, 3)))
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    H, W = (data.draw(st.integers(size, 14)) for size in least)
    x, w = integers((draw(1, 2), I * groups, H, W), g), random_signs((O, I, *kernel), g)
    out = conv2d_binary_weight(x, pack_binary_weight(w, groups), torch.ones(O), None, stride, padding, dilation, groups)
    assert_same_bits(out, F.conv2d(x, w, None, stride, padding, dilation, groups))


@pytest.mark.parametrize("groups", [1, 4, 64])
def test_the_rounding_of_convolutions_stays_within_the_bound_of_a_sum(implementation, groups, g):
    x, w = torch.randn(2, 64, 9, 9, generator=g), random_signs((64, 64 // groups, 3, 3), g)
    out = conv2d_binary_weight(x, pack_binary_weight(w, groups), torch.ones(64), None, 1, 1, 1, groups)
    assert_close_sums(out, x, w, lambda x, w: F.conv2d(x, w, None, 1, 1, 1, groups))


@pytest.mark.parametrize("groups", [1, 4, 64])
def test_nan_reaches_only_the_windows_that_see_it(implementation, groups, g):
    x, weight = (
        torch.randn(1, 64, 9, 20, generator=g),
        pack_binary_weight(random_signs((64, 64 // groups, 3, 3), g), groups),
    )
    expected = conv2d_binary_weight(x, weight, torch.ones(64), None, 1, 1, 1, groups)
    x[0, 5, 4, 8] = torch.nan
    out = conv2d_binary_weight(x, weight, torch.ones(64), None, 1, 1, 1, groups)
    sees = torch.zeros_like(out, dtype=torch.bool)
    group = 5 // (64 // groups) * (64 // groups)
    sees[0, group : group + 64 // groups, 3:6, 7:10] = True
    assert bool(out[sees].isnan().all())
    assert_same_bits(out[~sees], expected[~sees])


def test_wide_images_are_cut_into_strips_with_the_same_sums(implementation, g):
    """More prepared floats than a strip may have: 3 lines of 300 pixels of 256 channels."""
    x, w = integers((1, 256, 4, 300), g), random_signs((8, 256, 3, 3), g)
    out = conv2d_binary_weight(x, pack_binary_weight(w), torch.ones(8), None, 1, 1)
    assert_same_bits(out, F.conv2d(x, w, None, 1, 1))


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
def test_16_bit_floats_are_computed_in_float32(implementation, dtype, g):
    x, w = random_floats((5, 70), g, dtype, specials=0), random_signs((40, 70), g)
    scale, bias = torch.rand(40, generator=g), torch.randn(40, generator=g)
    weight = pack_binary_weight(w)
    out = linear_binary_weight(x, weight, scale, bias)
    assert_same_bits(out, linear_binary_weight(x.float(), weight, scale, bias).to(dtype))
    image, kernel = (
        random_floats((1, 40, 5, 6), g, dtype, specials=0),
        pack_binary_weight(random_signs((40, 1, 3, 3), g), 40),
    )
    out = conv2d_binary_weight(image, kernel, scale, bias, 1, 1, 1, 40)
    assert_same_bits(out, conv2d_binary_weight(image.float(), kernel, scale, bias, 1, 1, 1, 40).to(dtype))


@needs_library
@pytest.mark.parametrize("threads", [2, 3, 5])
def test_the_number_of_threads_changes_no_bit(implementation, threads, g, restore_threads):
    w = random_signs((160, 300), g)
    rows = [(torch.randn(M, 300, generator=g), pack_binary_weight(w)) for M in (1, 7, 200)]
    images = [
        (
            torch.randn(1, 64, size, size, generator=g),
            pack_binary_weight(random_signs((O, 64 // groups, 3, 3), g), groups),
        )
        for size, O, groups in ((5, 160, 1), (30, 64, 1), (9, 64, 64), (9, 32, 2))
    ]

    def compute():
        yield from (linear_binary_weight(x, weight, torch.ones(160)) for x, weight in rows)
        for x, weight in images:
            yield conv2d_binary_weight(x, weight, torch.ones(weight.shape[0]), None, 1, 1, 1, weight.groups)

    expected = list(compute())
    torch.set_num_threads(threads)
    for ours, one_thread in zip(compute(), expected, strict=True):
        assert_same_bits(ours, one_thread)


def test_inputs_may_have_any_strides_and_alignment(implementation, g):
    weight, scale = pack_binary_weight(random_signs((35, 40), g)), torch.rand(35, generator=g)
    x = integers((3, 2, 40), g)
    expected = linear_binary_weight(x, weight, scale)
    for name, view in strided_forms(x):
        assert_same_bits(linear_binary_weight(view, weight, scale), expected, name)
    for name, view in strided_forms(weight.data):
        assert_same_bits(linear_binary_weight(x, BinaryWeight(view, weight.shape), scale), expected, name)
    kernel, image = pack_binary_weight(random_signs((35, 40, 2, 2), g)), integers((2, 40, 5, 4), g)
    expected = conv2d_binary_weight(image, kernel, scale)
    for name, view in strided_forms(image):
        assert_same_bits(conv2d_binary_weight(view, kernel, scale), expected, name)


def test_empty_batches_stay_empty(implementation, g):
    weight, kernel = pack_binary_weight(random_signs((7, 40), g)), pack_binary_weight(random_signs((7, 40, 3, 3), g))
    assert linear_binary_weight(torch.empty(3, 0, 40), weight, torch.ones(7)).shape == (3, 0, 7)
    assert conv2d_binary_weight(torch.empty(0, 40, 5, 5), kernel, torch.ones(7)).shape == (0, 7, 3, 3)


@pytest.mark.parametrize(
    ("shape", "groups"), [((37, 70), 1), ((12, 20, 3, 2), 3), ((64, 1, 3, 3), 64), ((8, 4, 1, 1), 2)]
)
def test_weights_come_back_and_take_about_a_bit_each(implementation, shape, groups, g):
    w = random_signs(shape, g)
    weight = pack_binary_weight(w, groups)
    assert_same_bits(weight.unpack(), w)
    again = BinaryWeight.from_words(weight.words(), shape, groups)
    assert_same_bits(again.data, weight.data)
    big = pack_binary_weight(random_signs((64, 128, 3, 3), g))
    assert big.nbytes <= 64 * 128 * 9 // 8 + 64


@pytest.mark.skipif(native.library is None, reason="the reference's packed weights are plain words with no header")
def test_a_weight_packed_for_another_op_gives_the_same_sums(implementation, g):
    for w, pack in ((random_signs((40, 70), g), pack_weight), (random_signs((40, 20, 1, 1), g), pack_conv_weight)):
        x, N, K = integers((3, w.shape[1]), g), 40, w.shape[1]
        expected = x @ w.flatten(1).T
        out = torch.ops.stompp.linear_binary_weight(x, pack(w).data, N, K, torch.ones(40), None)
        assert_same_bits(out, expected)
        words = reference.pack_signs(x)
        products = torch.ops.stompp.bgemm(words, pack_binary_weight(w).data, N, K)
        assert_same_bits(products, torch.ops.stompp.bgemm(words, pack(w).data, N, K))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x, w, s: linear_binary_weight(x, pack_weight(torch.ones(3, 40)), s),
            TypeError,
            "must be a BinaryWeight",
        ),
        (lambda x, w, s: linear_binary_weight(x.double(), w, s), TypeError, "x must be torch.float32"),
        (lambda x, w, s: linear_binary_weight(x[:, 1:], w, s), ValueError, r"K = 40, got shape \[4, 39\]"),
        (lambda x, w, s: linear_binary_weight(x, w, s[1:]), ValueError, r"scale must have shape \[3\], got \[2\]"),
        (lambda x, w, s: linear_binary_weight(x, w, s.half()), TypeError, "scale must be torch.float32"),
        (lambda x, w, s: linear_binary_weight(x, w, s, s[:1]), ValueError, "bias must have shape"),
        (lambda x, w, s: linear_binary_weight(x, w, None), TypeError, "scale must be a tensor"),
        (lambda x, w, s: conv2d_binary_weight(x, w, s), ValueError, r"packed from \[O, I/groups, kh, kw\]"),
        (lambda x, w, s: pack_binary_weight(x.double()), TypeError, "w must be"),
        (lambda x, w, s: pack_binary_weight(x[0]), ValueError, "a weight must be"),
        (
            lambda x, w, s: BinaryWeight.from_words(torch.zeros(3, 1, dtype=torch.int32), (3, 40)),
            ValueError,
            "words must",
        ),
    ],
)
def test_bad_arguments_are_named(implementation, call, error, message, g):
    with pytest.raises(error, match=message):
        call(torch.ones(4, 40), pack_binary_weight(random_signs((3, 40), g)), torch.ones(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 1}, "groups must be the 2"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"padding": -1}, "padding must be at least 0"),
        ({"dilation": (1, 2, 3)}, "dilation must be an int or two"),
        ({"dilation": 9}, "reaches beyond"),
        ({"x": torch.ones(1, 39, 5, 5)}, r"x must be \[N, 40, H, W\]"),
        ({"x": torch.ones(40, 5, 5)}, r"x must be \[N, 40, H, W\]"),
        ({"x": torch.ones(1, 40, 0, 5)}, "at least 1"),
    ],
)
def test_bad_convolutions_are_named(implementation, arguments, message, g):
    weight = pack_binary_weight(random_signs((6, 20, 3, 3), g), 2)
    good = {"x": torch.ones(1, 40, 5, 5), "scale": torch.ones(6), "groups": 2}
    assert conv2d_binary_weight(weight=weight, **good).shape == (1, 6, 3, 3)
    with pytest.raises(ValueError, match=message):
        conv2d_binary_weight(weight=weight, **{**good, **arguments})


def layers(g):
    scale, bias = torch.rand(12, generator=g), torch.randn(12, generator=g)
    kernel = pack_binary_weight(random_signs((12, 20, 3, 3), g), 2)
    yield nn.BinaryWeightLinear(pack_binary_weight(random_signs((12, 70), g)), scale, bias), (3, 70)
    yield nn.BinaryWeightConv2d(kernel, scale, bias, (2, 1), (1, 1), (1, 2)), (2, 40, 6, 7)
    yield nn.BinaryWeightConv2d(pack_binary_weight(random_signs((12, 1, 3, 3), g), 12), scale), (1, 12, 5, 5)


def test_layers_compute_what_the_float_layers_do(implementation, g):
    for layer, shape in layers(g):
        x, w = integers(shape, g), layer.weight.unpack()
        if isinstance(layer, nn.BinaryWeightLinear):
            sums, channel = F.linear(x, w), (-1,)
        else:
            sums = F.conv2d(x, w, None, layer.stride, layer.padding, layer.dilation, layer.weight.groups)
            channel = (-1, 1, 1)
        assert_same_bits(layer(x), sums * layer.scale.view(channel) + layer.bias.view(channel))


def test_the_state_of_layers_is_portable(implementation, g):
    for (layer, shape), (other, _) in zip(layers(g), layers(generator(5)), strict=True):
        state = layer.state_dict()
        assert set(state) == {"weight", "scale", "bias"}
        assert_same_bits(state["weight"], layer.weight.words())
        x = torch.randn(shape, generator=g)
        assert not torch.equal(other(x), layer(x))
        other.load_state_dict(state)
        assert isinstance(other.weight, BinaryWeight)
        assert_same_bits(other(x), layer(x))
        with pytest.raises(RuntimeError, match="Missing key"):
            other.load_state_dict({name: value for name, value in state.items() if name != "weight"})
        moved = layer.to(torch.bfloat16)
        assert moved.scale.dtype == torch.float32
        assert isinstance(moved.to("cpu").weight, BinaryWeight)
        assert "writes float" in repr(layer)
        assert layer.nbytes == layer.weight.nbytes + 2 * 12 * 4
