"""The epilogues of both products, bit for bit."""

import ctypes
import ctypes.util
import dataclasses
import math

import pytest
import torch
from helpers import (
    INT32_MAX,
    INT32_MIN,
    SHORT_FLOATS,
    assert_same_bits,
    generator,
    grid,
    random_floats,
    random_signs,
    random_words,
    special_values,
    strided_forms,
)
from hypothesis import given
from hypothesis import strategies as st

from stompp_kernels.ops import (
    Affine,
    AffineSigns,
    Limits,
    Threshold,
    bconv2d,
    bgemm,
    pack_conv_weight,
    pack_signs,
    pack_weight,
    reference,
)


def random_thresholds(rows, N, reach, g):
    """Integers about as large as the products, and the two that no product passes."""
    t = torch.randint(-reach, reach + 1, (rows, N), generator=g, dtype=torch.int32)
    t[torch.rand(rows, N, generator=g) < 0.15] = INT32_MIN
    t[torch.rand(rows, N, generator=g) < 0.15] = INT32_MAX
    return t


def random_rprelu_and_limits(N, g, specials=0.0):
    limits = torch.stack([-random_floats((N,), g, specials=specials).abs(), random_floats((N,), g, specials=specials)])
    return random_floats((3, N), g, specials=specials), limits


def zero_tail(words, N):
    return not reference.bits_from_words(words, words.shape[-1] * 32)[..., N:].any()


@given(
    M=st.integers(1, 40),
    N=st.integers(1, 140),
    K=st.integers(1, 300),
    dtype=st.sampled_from(SHORT_FLOATS),
    residual_dtype=st.sampled_from([None, *SHORT_FLOATS]),
    fused=st.booleans(),
    specials=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 999),
)
def test_affine_products_equal_the_reference(implementation, M, N, K, dtype, residual_dtype, fused, specials, seed):
    g = generator(seed)
    a, weight = random_words((M,), K, g), pack_weight(random_signs((N, K), g))
    scale, bias = random_floats((N,), g, specials=specials), random_floats((N,), g, specials=specials)
    residual = residual_dtype and random_floats((M, N), g, residual_dtype, specials)
    own = tuple(random_floats((N,), g) for _ in range(2)) if residual is not None and seed % 2 else (None, None)
    rprelu, limits = random_rprelu_and_limits(N, g, specials) if seed % 3 else (None, None)
    out = bgemm(a, weight, Affine(scale, bias, residual, dtype, fused, *own, rprelu))
    y = reference.affine(bgemm(a, weight), scale, bias, residual, *own, fused, torch.float32, rprelu)
    assert_same_bits(out, y.to(dtype))
    expected = reference.pack_signs(y) if limits is None else reference.pack_outside(y, *limits)
    signs = AffineSigns(scale, bias, residual, fused, False, *own, rprelu, limits)
    assert_same_bits(bgemm(a, weight, signs), expected)
    floats, words = bgemm(a, weight, dataclasses.replace(signs, floats=True))
    assert_same_bits(floats, y)
    assert torch.equal(words, expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", SHORT_FLOATS)
@pytest.mark.parametrize("residual_dtype", [None, *SHORT_FLOATS])
def test_affine_convolutions_equal_the_reference(implementation, dtype, residual_dtype, fused, g):
    # With 2 x 168 outputs the second group's whole panels begin within a word.
    for groups, outputs in [(1, 35), (2, 10), (2, 90), (2, 336), (37, 37)]:
        x = random_words((2, 5, 4), 37 * 2 if groups == 2 else 37, g)
        w = random_signs((outputs, 1 if groups == 37 else 37, 3, 3), g)
        weight = pack_conv_weight(w, groups)
        acc = bconv2d(x, weight, 2, 1, groups=groups)
        scale, bias = random_floats((outputs,), g), random_floats((outputs,), g)
        residual = residual_dtype and random_floats(acc.shape, g, residual_dtype)
        for padding_value in (0, 1, -1):
            acc = bconv2d(x, weight, 2, 1, 1, groups, padding_value)
            own = (bias, scale) if residual is not None and padding_value else (None, None)
            y = reference.affine(acc, scale, bias, residual, *own, fused, torch.float32)
            out = bconv2d(x, weight, 2, 1, 1, groups, padding_value, Affine(scale, bias, residual, dtype, fused, *own))
            assert_same_bits(out, y.to(dtype))
            signs = AffineSigns(scale, bias, residual, fused, False, *own)
            words = bconv2d(x, weight, 2, 1, 1, groups, padding_value, signs)
            assert torch.equal(words, reference.pack_signs(y))
            rprelu, limits = random_rprelu_and_limits(outputs, g)
            bent = dataclasses.replace(signs, rprelu=rprelu, limits=limits, floats=True)
            found = bconv2d(x, weight, 2, 1, 1, groups, padding_value, bent)
            assert_same_bits(found[0], reference.apply_rprelu(y, rprelu))
            assert torch.equal(found[1], reference.pack_outside(found[0], *limits))
            both = bconv2d(x, weight, 2, 1, 1, groups, padding_value, dataclasses.replace(signs, floats=True))
            assert_same_bits(both[0], y)
            assert torch.equal(both[1], words)


def test_an_rprelu_is_torchs_prelu_between_two_shifts(implementation, g):
    a, weight = random_words((50,), 70, g), pack_weight(random_signs((64, 70), g))
    scale, bias = random_floats((64,), g), random_floats((64,), g)
    before, slope, after = rprelu = random_floats((3, 64), g)
    y = bgemm(a, weight, Affine(scale, bias))
    expected = torch.nn.functional.prelu(y + before, slope) + after
    assert_same_bits(bgemm(a, weight, Affine(scale, bias, rprelu=rprelu)), expected)


def test_affine_rounds_the_product_before_the_bias_is_added(implementation):
    """A fused multiply-add would keep the 2^-24 that rounding takes away."""
    scale, bias = torch.tensor([1 + 2.0**-23]), torch.tensor([-3.0])
    weight, a = pack_weight(torch.ones(1, 3)), pack_signs(torch.ones(1, 3))
    out = bgemm(a, weight, Affine(scale, bias)).item()
    assert out == float((torch.tensor(3.0) * scale) - 3.0) == 2.0**-21
    assert out != 3 * (1 + 2.0**-23) - 3


def test_fused_affine_rounds_once(implementation, g):
    scale, bias = torch.tensor([1 + 2.0**-23]), torch.tensor([-3.0])
    weight, a = pack_weight(torch.ones(1, 3)), pack_signs(torch.ones(1, 3))
    assert bgemm(a, weight, Affine(scale, bias, fused=True)).item() == 3 * (1 + 2.0**-23) - 3


def test_the_oracles_fused_multiply_add_is_the_c_librarys(g):
    fmaf = ctypes.CDLL(ctypes.util.find_library("m")).fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    x = torch.randint(-4608, 4609, (3000,), generator=g).float()
    scale = random_floats((3000,), g, specials=0.05)
    # Sums that cancel, that lie about half between two floats, and others.
    nearby = -(x * scale) * (1 + torch.randint(-3, 4, (3000,), generator=g) * 2.0**-24)
    far = x * scale * 2.0 ** torch.randint(20, 30, (3000,), generator=g)
    for bias in (nearby, far, random_floats((3000,), g, specials=0.05)):
        expected = [fmaf(*values) for values in zip(x.tolist(), scale.tolist(), bias.tolist(), strict=True)]
        assert_same_bits(reference.fused_multiply_add(x, scale, bias), torch.tensor(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_residual_is_read_as_torch_reads_it(implementation, dtype):
    residual = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype).view(256, 256)
    a, weight = pack_signs(torch.ones(256, 1)), pack_weight(torch.ones(256, 1))
    zero = torch.zeros(256)
    out = bgemm(a, weight, Affine(zero, zero, residual))
    assert_same_bits(out, 0.0 + residual.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_rounding_boundary_of_16_bit_outputs_is_torchs(implementation, dtype):
    """Each 16-bit value, the midpoint to the next one, and the fp32 neighbours of both."""
    values = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype).float()
    following = torch.arange(-32767, 32769, dtype=torch.int32).to(torch.int16).view(dtype).float()
    midpoints = (values.double() / 2 + following.double() / 2).float()
    x = torch.cat([values, midpoints])
    up, down = torch.full_like(x, math.inf), torch.full_like(x, -math.inf)
    x = torch.cat([x, torch.nextafter(x, up), torch.nextafter(x, down), special_values(torch.float32)])
    x = x[: x.numel() // 64 * 64].view(-1, 64)
    a, weight = pack_signs(torch.ones(len(x), 1)), pack_weight(torch.ones(64, 1))
    zero = torch.zeros(64)
    out = bgemm(a, weight, Affine(zero, zero, x, dtype))
    assert_same_bits(out, (0.0 + x).to(dtype))


@given(
    M=st.integers(1, 40),
    N=st.integers(1, 140),
    K=st.integers(1, 300),
    with_residual=st.booleans(),
    seed=st.integers(0, 999),
)
def test_thresholded_products_equal_the_reference(implementation, M, N, K, with_residual, seed):
    g = generator(seed)
    a, weight = random_words((M,), K, g), pack_weight(random_signs((N, K), g))
    thresholds = random_thresholds(1 + with_residual, N, int(2 * K**0.5) + 1, g)
    flips = random_words((), N, g)
    residual = random_words((M,), N, g) if with_residual else None
    out = bgemm(a, weight, Threshold(thresholds, flips, residual))
    assert_same_bits(out, reference.threshold(bgemm(a, weight), thresholds, flips, residual))
    assert zero_tail(out, N)


@pytest.mark.parametrize(
    "case",
    grid(
        shape=[(1, 40, 70), (2, 33, 10), (2, 32, 128), (3, 5, 99), (37, 1, 37), (9, 1, 36), (33, 8, 66)],
        with_residual=[False, True],
        padding_value=[0, 1, -1],
    ),
    ids=lambda case: "-".join(map(str, case.values())),
)
def test_thresholded_convolutions_equal_the_reference(implementation, case, g):
    """Groups whose outputs share words of bits included: 2 of 5, 3 of 33, depthwise of 37."""
    (groups, per_group, outputs), padding_value = case["shape"], case["padding_value"]
    x = random_words((2, 6, 5), groups * per_group, g)
    weight = pack_conv_weight(random_signs((outputs, per_group, 3, 3), g), groups)
    arguments = (1, 1, 1, groups, padding_value)
    acc = bconv2d(x, weight, *arguments)
    thresholds = random_thresholds(1 + case["with_residual"], outputs, int(4 * per_group**0.5), g)
    flips = random_words((), outputs, g)
    residual = random_words(acc.shape[:-1], outputs, g) if case["with_residual"] else None
    out = bconv2d(x, weight, *arguments, Threshold(thresholds, flips, residual))
    assert_same_bits(out, reference.threshold(acc, thresholds, flips, residual))
    assert zero_tail(out, outputs)


@pytest.mark.parametrize("N", [1, 31, 32, 33, 65])
def test_thresholds_compare_strictly_below(implementation, N):
    a, weight = pack_signs(torch.ones(3, 10)), pack_weight(torch.ones(N, 10))  # every product is 10
    flips = torch.zeros(reference.words_for(N), dtype=torch.int32)
    for value, bit in [(9, 0), (10, 0), (11, 1), (INT32_MIN, 0), (INT32_MAX, 1)]:
        thresholds = torch.full((1, N), value, dtype=torch.int32)
        out = bgemm(a, weight, Threshold(thresholds, flips))
        assert reference.bits_from_words(out, N).eq(bool(bit)).all()
        assert zero_tail(out, N)
        flipped = bgemm(a, weight, Threshold(thresholds, ~flips))
        assert reference.bits_from_words(flipped, N).eq(not bit).all()
        assert zero_tail(flipped, N)


def test_tail_bits_of_flips_and_residuals_never_reach_the_output(implementation, g):
    a, weight = random_words((9,), 70, g), pack_weight(random_signs((37, 70), g))
    thresholds = random_thresholds(2, 37, 9, g)
    ones = torch.full((2,), -1, dtype=torch.int32)
    out = bgemm(a, weight, Threshold(thresholds, ones, ones.expand(9, 2)))
    assert zero_tail(out, 37)


def test_epilogue_tensors_may_have_any_strides_and_alignment(implementation, g):
    x, weight = random_words((2, 4, 3), 40, g), pack_conv_weight(random_signs((37, 40, 1, 1), g))
    acc = bconv2d(x, weight)
    scale, bias = random_floats((37,), g), random_floats((37,), g)
    residual = random_floats(acc.shape, g, torch.bfloat16)
    expected = reference.affine(acc, scale, bias, residual, None, None, False, torch.float32)
    for views in zip(strided_forms(scale), strided_forms(bias), strict=True):
        (name, s), (_, b) = views
        assert_same_bits(bconv2d(x, weight, epilogue=Affine(s, b, residual)), expected, name)
    rprelu, limits = random_rprelu_and_limits(37, g)
    bent = reference.apply_rprelu(expected, rprelu)
    for (name, r), (_, l) in zip(strided_forms(rprelu), strided_forms(limits), strict=True):
        words = bconv2d(x, weight, epilogue=AffineSigns(scale, bias, residual, rprelu=r, limits=l))
        assert torch.equal(words, reference.pack_outside(bent, *limits)), name
    for name, view in strided_forms(residual):
        assert_same_bits(bconv2d(x, weight, epilogue=Affine(scale, bias, view)), expected, name)

    thresholds, flips = random_thresholds(2, 37, 9, g), random_words((), 37, g)
    bits = random_words((2, 4, 3), 37, g)
    expected = reference.threshold(acc, thresholds, flips, bits)
    for name, view in strided_forms(thresholds):
        assert_same_bits(bconv2d(x, weight, epilogue=Threshold(view, flips, bits)), expected, name)
    for name, view in strided_forms(flips):
        out = bconv2d(x, weight, epilogue=Threshold(thresholds, view, bits))
        assert_same_bits(out, expected, name)
    for name, view in strided_forms(bits):
        out = bconv2d(x, weight, epilogue=Threshold(thresholds, flips, view))
        assert_same_bits(out, expected, name)


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
def test_epilogues_of_an_empty_batch_are_empty(implementation, dtype):
    x, weight = torch.empty(0, 5, 5, 2, dtype=torch.int32), pack_conv_weight(torch.ones(40, 64, 3, 3))
    one = torch.ones(40)
    out = bconv2d(x, weight, epilogue=Affine(one, one, torch.empty(0, 3, 3, 40), dtype))
    assert (out.shape, out.dtype) == ((0, 3, 3, 40), dtype)
    thresholds, flips = torch.zeros(1, 40, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    out = bconv2d(x, weight, epilogue=Threshold(thresholds, flips))
    assert (out.shape, out.dtype) == ((0, 3, 3, 2), torch.int32)


f, i = torch.ones, lambda *shape: torch.ones(shape, dtype=torch.int32)


@pytest.mark.parametrize(
    ("epilogue", "error", "message"),
    [
        (Affine(f(40).double(), f(40)), TypeError, "scale must be torch.float32"),
        (Affine(f(40), f(40).half()), TypeError, "bias must be torch.float32"),
        (Affine(f(39), f(40)), ValueError, r"scale must have shape \[40\], got \[39\]"),
        (Affine(f(40), f(1)), ValueError, "bias must have shape"),
        (Affine(f(40), f(40), f(4, 1)), ValueError, "residual must have shape"),
        (Affine(f(40), f(40), i(4, 40)), TypeError, "residual must be"),
        (Affine(f(40), f(40), f(4, 40).double()), TypeError, "residual must be"),
        (Affine(f(40), f(40), None, torch.float64), TypeError, "dtype must be one of"),
        (Affine(f(40), 1.0), TypeError, "bias must be a tensor, got float"),
        (Affine(f(40), f(40), rprelu=f(2, 40)), ValueError, r"rprelu must have shape \[3, 40\], got \[2, 40\]"),
        (Affine(f(40), f(40), rprelu=f(3, 40).half()), TypeError, "rprelu must be torch.float32"),
        (AffineSigns(f(40), f(40), limits=f(2, 41)), ValueError, r"limits must have shape \[2, 40\], got \[2, 41\]"),
        (AffineSigns(f(40), f(40), limits=i(2, 40)), TypeError, "limits must be torch.float32"),
        (Threshold(f(1, 40), i(2)), TypeError, "thresholds must be torch.int32"),
        (Threshold(i(40), i(2)), ValueError, r"thresholds must have shape \[1, 40\]"),
        (Threshold(i(2, 40), i(2)), ValueError, r"thresholds must have shape \[1, 40\]"),
        (Threshold(i(1, 40), i(2), i(4, 2)), ValueError, r"must have shape \[2, 40\]"),
        (Threshold(i(1, 40), i(1)), ValueError, r"flip_words must have shape \[2\]"),
        (Threshold(i(2, 40), i(2), i(4, 1)), ValueError, r"residual_words must have shape \[4, 2\]"),
        (Threshold(i(2, 40), i(2), f(4, 2)), TypeError, "residual_words must be torch.int32"),
        ("relu", TypeError, "epilogue must be None, Affine, AffineSigns or Threshold, got str"),
        (Limits(f(40), f(40)), TypeError, "epilogue must be None, Affine, AffineSigns or Threshold, got Limits"),
        (Affine, TypeError, "epilogue must be None, Affine, AffineSigns or Threshold, got type"),
    ],
)
def test_bad_epilogues_are_named(implementation, epilogue, error, message, g):
    a, weight = random_words((4,), 70, g), pack_weight(random_signs((40, 70), g))
    with pytest.raises(error, match=message):
        bgemm(a, weight, epilogue)
    conv = pack_conv_weight(random_signs((40, 70, 1, 1), g))
    expected = (error, ValueError)  # the output's shape is checked first, and has 4 dimensions here
    with pytest.raises(expected):
        bconv2d(a.view(4, 1, 1, -1), conv, epilogue=epilogue)


@pytest.mark.parametrize("epilogue", [Affine, AffineSigns, Threshold])
def test_operands_are_the_fields_that_the_schema_names(epilogue):
    fields = {field.name: object() for field in dataclasses.fields(epilogue)}
    assert fields.keys() == set(epilogue.form.names)
    assert epilogue(**fields).operands() == tuple(fields[name] for name in epilogue.form.names)
    for product in ("bgemm", "bconv2d"):
        schema = getattr(torch.ops.stompp, product + epilogue.form.suffix).default._schema
        names = tuple(argument.name for argument in schema.arguments)
        assert names[-len(fields) :] == epilogue.form.names


def test_an_epilogue_is_made_of_its_parts():
    """Packed layers hand over the parts alone: form and operands, in the order of the ops."""
    from stompp_kernels.ops.epilogue import epilogue_of, parts_of

    vectors = [torch.full((2,), float(value)) for value in range(7)]
    affine = {"residual": torch.zeros(3, 2), "residual_scale": vectors[2], "residual_bias": vectors[3], "fused": True}
    for epilogue in (
        None,
        Affine(*vectors[:2], **affine, dtype=torch.float16, rprelu=torch.ones(3, 2)),
        AffineSigns(*vectors[:2], **affine, floats=True, rprelu=torch.ones(3, 2), limits=torch.zeros(2, 2)),
        Threshold(torch.zeros(2, 2, dtype=torch.int32), torch.ones(1, dtype=torch.int32), torch.zeros(3, 1)),
    ):
        again = epilogue_of(*parts_of(epilogue))
        assert type(again) is type(epilogue)
        assert all(
            getattr(again, name) is value for name, value in ({} if epilogue is None else vars(epilogue)).items()
        )
    with pytest.raises(TypeError, match="epilogue must be None, Affine"):
        parts_of(vectors[0])
