"""Float convolutions: one chain of fused multiply-adds, bit for bit, and what follows it."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_bits, generator, random_floats, random_signs, strided_forms
from hypothesis import given
from hypothesis import strategies as st

from stompp_kernels import native
from stompp_kernels.nn import FloatConv2d
from stompp_kernels.ops import Affine, Limits, conv2d_float, pack_float_weight, pack_signs, reference

needs_library = pytest.mark.skipif(native.library is None, reason="torch's own convolution adds in an order of its own")


def chain(x, w, stride, padding, dilation):
    """The sums as the kernels define them, from products and sums in float64 that are rounded once a step."""
    O, I, kh, kw = w.shape
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    OH, OW = ((x.shape[2 + i] - dilation[i] * (k - 1) - 1) // stride[i] + 1 for i, k in enumerate((kh, kw)))
    sums = torch.zeros(x.shape[0], O, OH, OW)
    for h in range(kh):
        for v in range(kw):
            top, left = h * dilation[0], v * dilation[1]
            pixels = x[:, :, top : top + (OH - 1) * stride[0] + 1, left : left + (OW - 1) * stride[1] + 1]
            pixels = pixels[:, :, :: stride[0], :: stride[1]]
            for c in range(I):
                weight = w[:, c, h, v].view(1, O, 1, 1)
                sums = reference.fused_multiply_add(pixels[:, c : c + 1].expand_as(sums), weight, sums)
    return sums


def case(g, I, O, kernel, size, batch=1):
    return random_floats((batch, I, *size), g, specials=0), random_floats((O, I, *kernel), g, specials=0)


@needs_library
@given(
    I=st.integers(1, 9),
    O=st.integers(1, 70),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 15), st.integers(1, 40)),
    batch=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_sums_are_one_chain_of_fused_multiply_adds(
    implementation, I, O, kernel, stride, padding, dilation, size, batch, seed
):
    for i in (0, 1):
        if dilation[i] * (kernel[i] - 1) + 1 > size[i] + 2 * padding[i]:
            return
    x, w = case(generator(seed), I, O, kernel, size, batch)
    out = conv2d_float(x, pack_float_weight(w), stride, padding, dilation)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_same_bits(out, chain(x, w, stride, padding, dilation))


@needs_library
@pytest.mark.parametrize("pixels", range(1, 40))
def test_every_count_of_pixels(implementation, pixels, g):
    for kernel in ((1, 1), (1, 2)):
        x, w = case(g, 5, 33, kernel, (1, pixels + kernel[1] - 1))
        assert_same_bits(conv2d_float(x, pack_float_weight(w)), chain(x, w, (1, 1), (0, 0), (1, 1)))


@needs_library
def test_sums_that_are_cut_into_many_tasks(implementation, restore_threads, g):
    """Lines in several chunks, and panels shared by threads: as computed at once."""
    for I, O, kernel, size, stride in ((3, 40, (7, 7), (90, 300), 2), (300, 1000, (1, 1), (5, 6), 1)):
        x, w = random_floats((2, I, *size), g, specials=0), random_floats((O, I, *kernel), g, specials=0)
        weight = pack_float_weight(w)
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(conv2d_float(x, weight, stride, 3 * (kernel[0] > 1)))
        assert all(torch.equal(result, results[0]) for result in results)
        exact = F.conv2d(x.double(), w.double(), None, stride, 3 * (kernel[0] > 1))
        K = w[0].numel()
        bound = (
            K
            * torch.finfo(torch.float32).eps
            * F.conv2d(x.double().abs(), w.double().abs(), None, stride, 3 * (kernel[0] > 1))
        )
        assert bool(((results[0].double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("I", [1, 31, 32, 33, 70])
def test_bits_are_read_as_signs(implementation, I, kernel, stride, g):
    x, w = random_signs((2, I, 6, 7), g), random_floats((35, I, *kernel), g, specials=0)
    words, weight = pack_signs(x.permute(0, 2, 3, 1)), pack_float_weight(w)
    for padding in (0, 1):
        assert_same_bits(conv2d_float(words, weight, stride, padding), conv2d_float(x, weight, stride, padding))


@pytest.mark.parametrize("O", [1, 32, 33, 64, 100])
def test_epilogues(implementation, O, g):
    x, w = case(g, 3, O, (3, 3), (9, 8), batch=2)
    weight = pack_float_weight(w)
    sums = conv2d_float(x, weight, 2, 1).permute(0, 2, 3, 1)
    scale, bias = (random_floats((O,), g, specials=0) for _ in range(2))
    for fused in (False, True):
        scaled = conv2d_float(x, weight, 2, 1, epilogue=Affine(scale, bias, fused=fused))
        assert_same_bits(scaled.permute(0, 2, 3, 1), reference.multiply_add(sums, scale, bias, fused))
    low, high = random_floats((O,), g, specials=0.5), random_floats((O,), g, specials=0.5)
    low[:1] = sums[0, 0, 0, :1]  # a sum that is its limit is not outside
    words = conv2d_float(x, weight, 2, 1, epilogue=Limits(low, high))
    assert_same_bits(words, reference.pack_outside(sums, low, high))


SPECIALS = {
    "none": [],
    "nan": [torch.nan],
    "infinities": [torch.inf, -torch.inf, torch.inf],
    "overflow": [3e38, -3e38, 2e38],
    "large": [1e30, -1e30],
    "denormal": [1e-40, -3e-42, -0.0],
}


@pytest.mark.sweep(3)
@needs_library
@pytest.mark.parametrize(
    "specials",  # processors take long for denormal numbers
    [pytest.param(name, marks=pytest.mark.slow) if name == "denormal" else name for name in SPECIALS],
)
@pytest.mark.parametrize(("kernel", "stride"), [((7, 7), 2), ((4, 3), 1), ((5, 5), (2, 1)), ((11, 11), 4)])
def test_bits_of_large_images_are_those_of_their_sums(implementation, restore_threads, kernel, stride, specials, g):
    """Which are computed by Winograd's rounding, where that can tell."""
    I = 3 if kernel[0] > 5 else 6
    x, w = case(g, I, 40, kernel, (37 * (stride if isinstance(stride, int) else 2), 150))
    if specials == "denormal":
        x *= 1e-38
    for i, value in enumerate(SPECIALS[specials]):
        x[0, i % I, 20 + i, 30 * (i + 1)] = value
    weight = pack_float_weight(w)
    sums = conv2d_float(x, weight, stride, 3).permute(0, 2, 3, 1)
    low, high = torch.full((40,), -torch.inf), torch.full((40,), torch.inf)
    n = torch.arange(40)
    ties = sums[0, 5, n % sums.shape[2], n]  # a sum that is its limit is not outside
    low[:20], high[20:] = ties[:20], ties[20:]
    low[1], low[2], low[3], high[21], high[22] = 0.0, torch.inf, torch.nan, -torch.inf, 3e38
    expected = reference.pack_outside(sums, low, high)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert_same_bits(conv2d_float(x, weight, stride, 3, epilogue=Limits(low, high)), expected)


def test_special_values_reach_their_own_pixels_only(implementation, g):
    x, w = case(g, 4, 40, (1, 1), (5, 6))
    clean = conv2d_float(x, pack_float_weight(w))
    x[0, 2, 1, 3], x[0, 0, 4, 4] = torch.nan, torch.inf
    out = conv2d_float(x, pack_float_weight(w))
    assert out[0, :, 1, 3].isnan().all()
    assert not out[0, :, 4, 4].isfinite().any()
    out[0, :, 1, 3], out[0, :, 4, 4] = clean[0, :, 1, 3], clean[0, :, 4, 4]
    assert_same_bits(out, clean)
    zeros = torch.full((1, 4, 2, 2), -0.0)
    limits = Limits(torch.zeros(40), torch.full((40,), torch.inf))
    assert not conv2d_float(zeros, pack_float_weight(w), epilogue=limits).any(), "zeros of both signs are +1"


def test_inputs_of_other_strides(implementation, g):
    x, w = case(g, 5, 9, (3, 3), (6, 7), batch=2)
    weight = pack_float_weight(w)
    expected = conv2d_float(x, weight, 1, 1)
    for form, same in strided_forms(x):
        assert_same_bits(conv2d_float(same, weight, 1, 1), expected, form)


def test_an_empty_batch(implementation):
    weight = pack_float_weight(torch.ones(40, 3, 3, 3))
    assert conv2d_float(torch.ones(0, 3, 5, 4), weight).shape == (0, 40, 3, 2)
    limits = Limits(torch.zeros(40), torch.zeros(40))
    assert conv2d_float(torch.ones(0, 3, 5, 4), weight, epilogue=limits).shape == (0, 3, 2, 2)


def test_weights_are_padded_to_panels_and_come_back(g):
    w = random_floats((33, 5, 2, 3), g)
    weight = pack_float_weight(w)
    assert (weight.data.shape, weight.nbytes) == ((2, 30, 32), 4 * 2 * 30 * 32)
    assert not weight.data[1, :, 1:].any()
    assert_same_bits(weight.unpacked().contiguous(), w)


def test_the_oracle_is_close(implementation, g):
    x, w = case(g, 6, 34, (3, 3), (7, 7))
    weight = pack_float_weight(w)
    arguments = weight.data, list(weight.shape), (2, 2), (1, 1), (1, 1)
    torch.testing.assert_close(conv2d_float(x, weight, 2, 1), reference.conv2d_float(x, *arguments, None, None, False))


LIMITS = Limits(torch.zeros(8), torch.zeros(8))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": "image"}, TypeError, "x must be a tensor, got str"),
        ({"x": torch.ones(1, 3, 5, 5).half()}, TypeError, "x must be torch.float32, torch.int32, got torch.float16"),
        ({"x": torch.ones(1, 4, 5, 5)}, ValueError, r"x must be \[N, 3, H, W\] for weights of 3 channels"),
        ({"x": torch.ones(1, 5, 5, 3, dtype=torch.int32)}, ValueError, r"x must be int32 \[N, H, W, 1\]"),
        ({"x": torch.ones(3, 5, 5)}, ValueError, r"got shape \[3, 5, 5\]"),
        ({"x": torch.ones(1, 3, 2, 5)}, ValueError, "the kernel 3x3 .* reaches beyond the 2x5 input"),
        ({"weight": torch.ones(8, 3, 3, 3)}, TypeError, "weight must be a FloatWeight made by pack_float_weight"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"padding": (1, -1)}, ValueError, "padding must be at least 0"),
        ({"dilation": (1, 1, 1)}, ValueError, "dilation must be an int or two ints"),
        ({"epilogue": "relu"}, TypeError, "epilogue must be None, Affine or Limits, got str"),
        ({"epilogue": Limits(LIMITS.low[1:], LIMITS.high)}, ValueError, "low must have shape"),
        ({"epilogue": Limits(LIMITS.low, LIMITS.high.double())}, TypeError, "high must be torch.float32"),
        ({"epilogue": Affine(LIMITS.low, LIMITS.high[1:])}, ValueError, "bias must have shape"),
        ({"epilogue": Affine(LIMITS.low, LIMITS.low, residual=LIMITS.low)}, ValueError, "without a residual"),
        ({"epilogue": Affine(LIMITS.low, LIMITS.low, rprelu=torch.ones(3, 8))}, ValueError, "or an RPReLU"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"x": torch.ones(1, 3, 5, 5), "weight": pack_float_weight(torch.ones(8, 3, 3, 3)), **change}
    with pytest.raises(error, match=message):
        conv2d_float(**arguments)


@pytest.mark.parametrize("w", [torch.ones(3, 3), torch.ones(0, 3, 1, 1)])
def test_bad_weights_are_named(w):
    with pytest.raises(ValueError, match=r"w must be \[O, I, kh, kw\], each at least 1"):
        pack_float_weight(w)


@pytest.mark.parametrize(
    "epilogue", [None, Affine(torch.arange(8.0), torch.ones(8), fused=True), LIMITS], ids=["floats", "affine", "bits"]
)
def test_the_module_is_the_op(implementation, epilogue, g):
    conv = torch.nn.Conv2d(3, 8, 3, 2, 1, bias=False)
    x = random_floats((2, 3, 9, 8), g, specials=0)
    module = FloatConv2d.of(conv, epilogue=epilogue)
    expected = conv2d_float(x, pack_float_weight(conv.weight.detach()), 2, 1, epilogue=epilogue)
    assert_same_bits(module(x), expected)
    half = module.half()(x)
    assert_same_bits(half, expected if expected.dtype is torch.int32 else expected.half(), "it computes in float32")
    module.float()
    words = FloatConv2d.of(conv, "bits", epilogue)
    assert_same_bits(words(pack_signs(x.permute(0, 2, 3, 1))), module(torch.where(x < 0, -1.0, 1.0)))
    module._in_float32 = True
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_the_module_refuses_unknown_forms():
    with pytest.raises(ValueError, match="writes must be one of 'floats', 'affine', 'bits', got 'signs'"):
        FloatConv2d(3, 8, 3, writes="signs")
    with pytest.raises(ValueError, match="reads must be one of 'floats', 'bits', got 'words'"):
        FloatConv2d(3, 8, 3, reads="words")
