"""bconv2d against its oracle and against torch's conv2d on the +-1 values."""

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    assert_same_bits,
    generator,
    random_signs,
    random_words,
    strided_forms,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from stompp_kernels import native
from stompp_kernels.ops import PackedWeight, bconv2d, pack_conv_weight, pack_signs, reference
from stompp_kernels.ops.geometry import conv2d_out_size

PADDING_VALUES = (0, 1, -1)


def pack_nchw(x):
    return pack_signs(x.permute(0, 2, 3, 1))


def expected_conv(x, w, stride, padding, dilation, groups, padding_value):
    """torch's own conv2d, NCHW floats to NHWC int32."""
    x, w = x.float(), w.float()  # exact: every sum is an integer below 2^24
    if padding_value == 0:
        y = F.conv2d(x, w, None, stride, padding, dilation, groups)
    else:
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=float(padding_value))
        y = F.conv2d(x, w, None, stride, 0, dilation, groups)
    return y.permute(0, 2, 3, 1).to(torch.int32)


def check_conv(x, w, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, padding_value=0):
    arguments = (stride, padding, dilation, groups, padding_value)
    out = bconv2d(pack_nchw(x), pack_conv_weight(w, groups), *arguments)
    assert out.is_contiguous()
    assert_same_bits(out, expected_conv(x, w, *arguments), f"conv2d, {arguments}")
    return out


@st.composite
def convolutions(draw):
    """Arguments of a valid convolution; inputs may be smaller than the kernel's reach."""
    kind = draw(st.sampled_from(["dense", "dense", "two groups", "three groups", "depthwise"]))
    groups = {"dense": 1, "two groups": 2, "three groups": 3}.get(kind) or draw(st.integers(1, 40))
    per_group = 1 if kind == "depthwise" else draw(st.sampled_from([*range(1, 71), 8, 16, 24, 32, 64]))
    outputs = groups * draw(st.integers(1, 3) if kind == "depthwise" else st.integers(1, 70))
    sides = []
    for _ in range(2):
        kernel, dilation = draw(st.sampled_from([1, 2, 3, 5, 7])), draw(st.integers(1, 2))
        size, stride = draw(st.integers(1, 8)), draw(st.integers(1, 3))
        lacking = dilation * (kernel - 1) + 1 - size
        padding = max(0, (lacking + 1) // 2) + draw(st.integers(0, 2))
        sides.append((kernel, dilation, size, stride, padding))
    kernel, dilation, size, stride, padding = zip(*sides, strict=True)
    g = generator(draw(st.integers(0, 999)))
    return {
        "x": random_signs((draw(st.integers(1, 2)), per_group * groups, *size), g),
        "w": random_signs((outputs, per_group, *kernel), g),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_value": draw(st.sampled_from(PADDING_VALUES)),
    }


@settings(max_examples=300)
@given(convolutions())
def test_convolutions_equal_the_reference_and_torch(implementation, arguments):
    out = check_conv(**arguments)
    x, w, *geometry = arguments.values()
    oracle = reference.bconv2d(
        reference.pack_signs(x.permute(0, 2, 3, 1)),
        reference.pack_conv_weight(w, arguments["groups"]),
        w.shape,
        *geometry,
    )
    assert_same_bits(out, oracle, "oracle")


@pytest.mark.parametrize("padding_value", PADDING_VALUES)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (7, 1), (2, 5)])
def test_kernels_strides_and_dilations_combine(implementation, kernel, padding_value, g):
    x, w = random_signs((1, 33, 7, 6), g), random_signs((5, 33, *kernel), g)
    for stride in [(1, 1), (3, 1), (2, 3)]:
        for dilation in [(1, 1), (1, 2)]:
            reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            same = (reach[0] // 2, reach[1] // 2)
            for padding in [same, (reach[0], reach[1] + 1)]:
                check_conv(x, w, stride, padding, dilation, padding_value=padding_value)


@pytest.mark.parametrize("padding_value", PADDING_VALUES)
@pytest.mark.parametrize("channels", [1, 3, 7, 8, 9, 24, 31, 32, 33, 64])
def test_every_split_into_groups_is_right(implementation, channels, padding_value, g):
    """Groups on and off the byte and word boundaries of both layouts, full depthwise included."""
    x = random_signs((1, 2 * channels, 4, 5), g)
    for groups, outputs in [(1, 5), (2, 2 * 33), (2, 10), (2 * channels, 2 * channels)]:
        w = random_signs((outputs, 2 * channels // groups, 3, 3), g)
        check_conv(x, w, padding=(1, 1), groups=groups, padding_value=padding_value)


@pytest.mark.parametrize("padding_value", PADDING_VALUES)
def test_depthwise_with_a_channel_multiplier_is_right(implementation, padding_value, g):
    for channels, multiplier in [(1, 37), (37, 1), (5, 4), (16, 33), (33, 2)]:
        x = random_signs((2, channels, 5, 4), g)
        w = random_signs((channels * multiplier, 1, 3, 3), g)
        check_conv(x, w, (2, 1), (1, 1), (1, 2), channels, padding_value)


@pytest.mark.parametrize("padding_value", PADDING_VALUES)
@pytest.mark.parametrize("size", [2, 4, 8])
def test_groups_of_few_channels_are_right(implementation, size, padding_value, g):
    """Their words are shared by whole groups; the last word has only some of them."""
    for groups in (2, 3, 32 // size, 32 // size + 1, 37):
        x = random_signs((2, groups * size, 6, 5), g)
        w = random_signs((groups * size, size, 3, 3), g)
        check_conv(x, w, padding=(1, 1), groups=groups, padding_value=padding_value)
        check_conv(x, w, (1, 2), (2, 0), (2, 1), groups, padding_value)
        assert_same_bits(pack_conv_weight(w, groups).unpack(), w)


@pytest.mark.parametrize("padding_value", PADDING_VALUES)
def test_inputs_smaller_than_the_kernel_are_right_when_padded(implementation, padding_value, g):
    for size in [(1, 1), (1, 6), (6, 1), (2, 2)]:
        x, w = random_signs((1, 9, *size), g), random_signs((3, 9, 7, 7), g)
        check_conv(x, w, padding=(6, 6), padding_value=padding_value)
        check_conv(x, w, (3, 3), (7, 8), (2, 2), padding_value=padding_value)


def test_windows_that_lie_wholly_in_the_padding_add_nothing(implementation, g):
    x, w = random_signs((1, 5, 1, 1), g), random_signs((4, 5, 2, 2), g)
    out = bconv2d(pack_nchw(x), pack_conv_weight(w), padding=4)
    assert out[0, 0, 0].eq(0).all()
    assert out.ne(0).any()
    check_conv(x, w, padding=(4, 4))


@pytest.mark.parametrize("taps", [(7, 7), (1, 1), (3, 1)])
def test_counts_do_not_wrap_where_every_bit_differs(implementation, taps):
    """As in test_bgemm, with 16-bit counts that also run over the bounds of taps."""
    for K in (248, 249, 65472, 65473, 65536, 2 * 65472 + 17):
        channels = K // (taps[0] * taps[1]) + 1
        w = pack_conv_weight(torch.full((33, channels, *taps), -1.0))
        # A 1 pixel margin: the middle pixel of the output has all taps inside.
        x = torch.ones(1, taps[0], taps[1], channels)
        for padding_value in PADDING_VALUES:
            out = bconv2d(pack_signs(x), w, padding=1, padding_value=padding_value)
            assert out[0, 1, 1].eq(-channels * taps[0] * taps[1]).all()


def test_ints_and_pairs_mean_the_same(implementation, g):
    x, w = random_words((1, 6, 7), 20, g), pack_conv_weight(random_signs((5, 20, 3, 3), g))
    assert_same_bits(bconv2d(x, w, 2, 1, 2), bconv2d(x, w, (2, 2), [1, 1], (2, 2)))


def test_an_empty_batch_gives_an_empty_batch_of_the_right_shape(implementation, g):
    for groups in (1, 2, 40):
        w = pack_conv_weight(random_signs((80, 40 // groups, 3, 3), g), groups)
        out = bconv2d(torch.empty(0, 6, 9, 2, dtype=torch.int32), w, (1, 2), 1, groups=groups)
        assert (out.shape, out.dtype) == ((0, 6, 5, 80), torch.int32)


def test_words_and_weights_may_have_any_strides_and_alignment(implementation, g):
    for groups in (1, 3):
        words = random_words((2, 5, 6), 66, g)
        weight = pack_conv_weight(random_signs((36, 66 // groups, 3, 3), g), groups)
        expected = bconv2d(words, weight, 1, 1, groups=groups)
        for name, view in strided_forms(words):
            assert_same_bits(bconv2d(view, weight, 1, 1, groups=groups), expected, name)
        for name, view in strided_forms(weight.data):
            packed = PackedWeight(view, weight.shape, groups)
            assert_same_bits(bconv2d(words, packed, 1, 1, groups=groups), expected, name)
    words = random_words((2, 5, 6), 70, g)
    weight = pack_conv_weight(random_signs((5, 40, 3, 3), g))
    for view in (words[:, :, 1:, 1:], words[:, 1:, :, :2], words[1:, ::2, ::3, 1:]):
        assert_same_bits(bconv2d(view, weight, 1, 1), bconv2d(view.clone(), weight, 1, 1))


def test_out_size_equals_torch():
    for size in range(1, 9):
        for kernel, stride, padding, dilation in [(1, 1, 0, 1), (3, 2, 1, 1), (2, 3, 2, 2)]:
            if size + 2 * padding < dilation * (kernel - 1) + 1:
                continue
            y = F.conv1d(torch.ones(1, 1, size), torch.ones(1, 1, kernel), None, stride, padding, dilation)
            assert conv2d_out_size(size, kernel, stride, padding, dilation) == y.shape[-1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": (0, -2)}, ValueError, "padding must be at least 0"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": (1, 2, 3)}, ValueError, "stride must be an int or two ints"),
        ({"stride": 1.5}, (TypeError, ValueError), "stride|float"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1"),
        ({"groups": 2}, ValueError, "groups must be the 1 that the weight was packed with, got 2"),
        ({"padding_value": 2}, ValueError, "padding_value must be one of 0, 1, -1, got 2"),
        ({"padding_value": None}, ValueError, "padding_value"),
        ({"dilation": 4}, ValueError, "3x3 with dilation .* reaches beyond the 5x6 input"),
    ],
)
def test_bad_arguments_are_named(implementation, arguments, error, message, g):
    weight = pack_conv_weight(random_signs((4, 40, 3, 3), g))
    with pytest.raises(error, match=message):
        bconv2d(random_words((1, 5, 6), 40, g), weight, **arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, w: (x.float(), w), TypeError, "x_words must be torch.int32"),
        (lambda x, w: (x[0], w), ValueError, r"x_words must be \[N, H, W, C_words\]"),
        (lambda x, w: (x[..., :1], w), ValueError, "= 2 words for K = 40"),
        (lambda x, w: (x[:, :0], w), ValueError, "at least one row and column"),
        (lambda x, w: (x, w.data), TypeError, "weight must be a PackedWeight"),
        (lambda x, w: (x, torch.ones(4, 40, 3, 3)), TypeError, "weight must be a PackedWeight"),
        (
            lambda x, w: (x, PackedWeight(w.data, (4, 360))),
            ValueError,
            r"packed from \[O, I/groups, kh, kw\]",
        ),
    ],
)
def test_bad_tensors_are_named(implementation, change, error, message, g):
    weight = pack_conv_weight(random_signs((4, 40, 3, 3), g))
    with pytest.raises(error, match=message):
        bconv2d(*change(random_words((1, 5, 6), 40, g), weight))


@pytest.mark.skipif(native.library is None, reason="the reference's packed weights are plain words with no header")
def test_packed_bytes_of_other_shapes_or_groups_and_cut_bytes_are_refused(implementation, g):
    x = random_words((1, 5, 6), 64, g)
    packed = pack_conv_weight(random_signs((4, 32, 3, 3), g), 2).data

    def run(data=packed, shape=(4, 32, 3, 3), groups=2, **changes):
        geometry = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], **changes}
        return torch.ops.stompp.bconv2d(x, data, list(shape), *geometry.values(), groups, padding_value=0)

    assert run().shape == (1, 3, 4, 4)
    for shape, groups in [
        ((4, 64, 3, 3), 1),
        ((2, 32, 3, 3), 2),
        ((4, 32, 1, 9), 2),
        ((4, 16, 3, 3), 4),
        ((-4, 32, 3, 3), 2),
    ]:
        with pytest.raises(RuntimeError, match="another shape"):
            run(shape=shape, groups=groups)
    for length in (0, 10, 63, 64, len(packed) - 1):
        with pytest.raises(RuntimeError, match=r"packed weight: (shorter|its size)"):
            run(packed[:length])
    for changes, message in [
        ({"shape": (4, 32, 3)}, "weight_shape must be"),
        ({"stride": [1]}, "two values each"),
        ({"stride": [0, 1]}, "stride and dilation must be at least 1"),
        ({"dilation": [1, 0]}, "stride and dilation must be at least 1"),
        ({"padding": [-1, 0]}, "padding must not be negative"),
        ({"padding": [2**31, 0]}, r"below 2\^31"),
        ({"dilation": [3, 1]}, "reaches beyond"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            run(**changes)
    with pytest.raises(RuntimeError, match="last dimension must be"):
        torch.ops.stompp.bconv2d(x[..., :1], packed, [4, 32, 3, 3], [1, 1], [0, 0], [1, 1], 2, 0)
    with pytest.raises(RuntimeError, match="padding_value must be 0, 1 or -1, got 4294967296"):
        torch.ops.stompp.bconv2d(x, packed, [4, 32, 3, 3], [1, 1], [0, 0], [1, 1], 2, 2**32)


@pytest.mark.parametrize("kernel", [1, 3, 16, 17])
@pytest.mark.parametrize("channels", [2, 32, 45])
def test_depthwise_counts_hold_every_tap(implementation, channels, kernel):
    """17 x 17 taps are more than a byte counts; all products are -1, then +1."""
    x = torch.ones(1, kernel + 1, kernel + 2, channels)
    for w in (-torch.ones(channels, 1, kernel, kernel), torch.ones(channels, 1, kernel, kernel)):
        weight = pack_conv_weight(w, channels)
        y = bconv2d(pack_signs(x), weight, groups=channels)
        assert_same_bits(y, torch.full((1, 2, 3, channels), int(w.sum()) // channels, dtype=torch.int32))
        assert weight.nbytes == 64 + 4 * kernel**2 * ((channels + 31) // 32) or not native.library
        assert_same_bits(weight.unpack(), w)
