"""The ops as torch sees them: schemas, fake kernels, autograd, torch.compile, and hostile arguments."""

import random

import pytest
import torch
from helpers import (
    FLOATS,
    assert_same_bits,
    generator,
    random_floats,
    random_signs,
    random_words,
)

from stompp_kernels import native
from stompp_kernels.ops import (
    Affine,
    Threshold,
    bconv2d,
    bgemm,
    conv2d_binary_weight,
    draw_state,
    linear_binary_weight,
    max_pool2d_signs,
    pack_binary_weight,
    pack_conv_weight,
    pack_float_weight,
    pack_signs,
    pack_weight,
    progressive,
    progressive_drawn,
    reference,
    refresh_mask_,
    unpack_signs,
)
from stompp_kernels.ops.schemas import SCHEMAS

ops = torch.ops.stompp


def gemm_arguments(g):
    return random_words((4,), 70, g), pack_weight(random_signs((37, 70), g)).data, 37, 70


def conv_arguments(g, groups=2):
    weight = pack_conv_weight(random_signs((10, 20, 3, 2), g), groups)
    x = random_words((2, 5, 6), 20 * groups, g)
    return x, weight.data, [10, 20, 3, 2], [1, 2], [1, 0], [1, 1], groups, 0


def binary_weight_arguments(g):
    """Makes operands of products of floats with binary weights: small integers, whose sums are exact in any order."""

    def integers(*shape):
        return torch.randint(-9, 10, shape, generator=g).float()

    matrix, kernel = random_signs((37, 70), g), random_signs((10, 20, 3, 2), g)
    image, scale, bias = integers(2, 40, 5, 6), torch.rand(37, generator=g), integers(37)
    linear = pack_binary_weight(matrix).data, 37, 70
    conv = pack_binary_weight(kernel, 2).data, [10, 20, 3, 2], [1, 2], [1, 0], [1, 1], 2
    small = pack_binary_weight(random_signs((40, 1, 3, 2), g), 40).data, [40, 1, 3, 2], [2, 1], [1, 1], [1, 1], 40
    return {
        "pack_binary_weight_words": [(reference.pack_signs(matrix), [37, 70], 1)],
        "unpack_binary_weight_words": [(linear[0], [37, 70], 1), (conv[0], conv[1], 2), (small[0], small[1], 40)],
        "linear_binary_weight": [
            (integers(4, 70), *linear, scale, None),
            (integers(2, 3, 70).half(), *linear, scale, bias),
        ],
        "conv2d_binary_weight": [
            (image, *conv, scale[:10], bias[:10]),
            (image.bfloat16().to(memory_format=torch.channels_last), *conv, scale[:10], None),
            (image, *small, torch.rand(40, generator=g), None),
        ],
    }


def float_conv_arguments(g):
    """Small integers, whose sums are exact in any order."""
    image, weight = (torch.randint(-9, 10, shape, generator=g).float() for shape in ((2, 40, 5, 6), (34, 40, 3, 2)))
    scale, bias = torch.rand(34, generator=g), torch.rand(34, generator=g)
    geometry = pack_float_weight(weight).data, [34, 40, 3, 2], [1, 2], [1, 0], [1, 1]
    words = random_words((2, 5, 6), 40, g)
    return {
        "conv2d_float": [
            (image, *geometry, None, None, False),
            (image.to(memory_format=torch.channels_last), *geometry, scale, bias, True),
            (words, *geometry, scale, bias, False),
        ],
        "conv2d_float_signs": [(image, *geometry, -scale, bias), (words, *geometry, bias, scale)],
    }


def sample_arguments(g):
    """Arguments for every op: {name: [(args), ...]}."""
    x, w = random_floats((3, 40), g), random_signs((5, 40), g)
    limit = torch.rand(40, generator=g)
    conv_w = random_signs((6, 20, 3, 2), g)
    words, mask = random_words((3,), 40, g), random_words((), 120, g)
    u, grad = (random_floats((3, 40), g, specials=0) for _ in range(2))  # opcheck: NaN is not NaN
    image = random_floats((2, 3, 2, 5), g, specials=0).to(memory_format=torch.channels_last)
    gemm, conv = gemm_arguments(g), conv_arguments(g)
    conv_out = ops.bconv2d(*conv).shape

    def affine(shape):
        scale, bias = (random_floats(shape[-1:], g, specials=0) for _ in range(2))
        residual = random_floats(shape, g, torch.bfloat16, specials=0)
        return [
            (scale, bias, None, None, None, False, torch.float16),
            (scale, bias, residual, bias, scale, True, torch.float32),
            (scale, bias, residual, None, None, True, torch.float32, torch.stack([scale, bias, scale])),
        ]

    def affine_signs(shape):
        plain, with_residual, bent = affine(shape)
        limits = torch.stack([-bent[0].abs(), bent[0].abs()])
        return [(*plain[:-1], True), (*with_residual[:-1], False), (*bent[:6], True, bent[7], limits)]

    def threshold(shape):
        t = torch.randint(-9, 9, (2, shape[-1]), generator=g, dtype=torch.int32)
        flips = random_words((), shape[-1], g)
        return [(t[:1], flips, None), (t, flips, random_words(shape[:-1], shape[-1], g))]

    return {
        "pack_signs": [(x,), (x.half().T,), (x.bfloat16()[0],)],
        "pack_outside": [(x, -limit, limit), (x.bfloat16(), limit, -limit), (x.half(), limit, limit)],
        "unpack_signs": [(words, 40, dtype) for dtype in FLOATS],
        "pack_weight": [(w,)],
        "pack_conv_weight": [(conv_w, 1), (conv_w, 3)],
        "pack_weight_words": [(reference.pack_signs(w), [5, 40], 1)],
        "unpack_weight_words": [
            (pack_weight(w).data, [5, 40], 1),
            (pack_conv_weight(conv_w, 3).data, [6, 20, 3, 2], 3),
        ],
        "bgemm": [gemm],
        "bgemm_affine": [(*gemm, *extra) for extra in affine((4, 37))],
        "bgemm_affine_signs": [(*gemm, *extra) for extra in affine_signs((4, 37))],
        "bgemm_threshold": [(*gemm, *extra) for extra in threshold((4, 37))],
        "bconv2d": [conv],
        "bconv2d_affine": [(*conv, *extra) for extra in affine(conv_out)],
        "bconv2d_affine_signs": [(*conv, *extra) for extra in affine_signs(conv_out)],
        "bconv2d_threshold": [(*conv, *extra) for extra in threshold(conv_out)],
        "batched_bgemm": [
            (random_words((2, 3, 5), 40, g), random_words((2, 3, 4), 40, g), 40),
            (random_words((6, 2), 70, g).transpose(0, 1), random_words((2, 1), 70, g), 70),
        ],
        "max_pool2d_signs": [
            (random_words((2, 7, 6), 70, g), [3, 2], [2, 1], [1, 0], [1, 1], False),
            (random_words((1, 9, 8), 40, g).transpose(1, 2), [2, 3], [2, 2], [0, 0], [2, 1], True),
        ],
        **binary_weight_arguments(g),
        **float_conv_arguments(g),
        "progressive": [
            (u.clone().requires_grad_(), mask, "clip", False),
            (u.half(), None, "none", False),
            (u.clone().requires_grad_(), random_words((), 40, g), "approx_sign", True),
            (image.clone().requires_grad_(), random_words((), 60, g), "clip", False),
            (image, random_words((), 30, g), "clip", True),
            (u.T, random_words((), 3, g), "none", True),
        ],
        "progressive_gated": [
            (u.clone().requires_grad_(), mask, "clip", False),
            (u.half(), None, "none", False),
            (u.clone().requires_grad_(), random_words((), 40, g), "identity", True),
            (image.clone().requires_grad_(), random_words((), 60, g), "clip", False),
            (image, random_words((), 30, g), "clip", True),
            (u.T, random_words((), 3, g), "none", True),
        ],
        "progressive_drawn": [
            (u.clone().requires_grad_(), draw_state(0.4, -7, 3, 2**33), "none"),
            (u.half().T, draw_state(1.0, 7, 2**32 - 1, 0), "identity"),
            (image.clone().requires_grad_(), draw_state(0.5, 1, 2, 3), "approx_sign"),
        ],
        "progressive_gate_backward": [
            (grad, random_words((1,), 120, g), grad.stride(), False),
            (grad.T, random_words((3,), 40, g).reshape(3, 2).repeat(14, 1)[:40, :1] & 7, [3, 1], True),
            (image.clone(), random_words((2,), 30, g), image.stride(), True),
        ],
        "progressive_backward": [
            (grad, u, mask, "identity", False),
            (grad, u, None, "clip", True),
            (image.clone(), image, random_words((), 30, g), "clip", True),
        ],
        "refresh_mask_": [(mask.clone(), 120, 0.3, 2.0, 1, 2, 3)],
    }


def test_the_samples_cover_every_op(g):
    assert sample_arguments(g).keys() == SCHEMAS.keys()


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_registered_schema_is_the_one_in_schemas_py(name):
    registered = getattr(ops, name).default._schema
    written = torch._C.parse_schema(f"stompp::{name}{SCHEMAS[name]}")
    assert str(registered) == str(written)


@pytest.mark.skipif(native.library is None, reason="the library's own list of ops is compared")
def test_no_op_of_the_library_is_missing_in_schemas_py():
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
    names = {op.removeprefix("stompp::") for op in registered if op.startswith("stompp::")}
    assert names == SCHEMAS.keys()


@pytest.mark.parametrize("name", SCHEMAS)
def test_opcheck_passes(name, g):
    for arguments in sample_arguments(g)[name]:
        results = torch.library.opcheck(getattr(ops, name).default, arguments)
        assert set(results.values()) == {"SUCCESS"}


WITH_WEIGHTS = {
    *(name for name in SCHEMAS if name.startswith(("bgemm", "bconv2d"))),
    "unpack_weight_words",
    "unpack_binary_weight_words",
    "linear_binary_weight",
    "conv2d_binary_weight",
}


def as_tuple(out):
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("name", SCHEMAS)
def test_raw_ops_equal_the_reference(implementation, name, g):
    packed = name.startswith("pack_") and "weight" in name
    for arguments in sample_arguments(g)[name]:
        plain = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        if packed and native.library is not None:  # opaque bytes
            continue
        out = getattr(ops, name)(*arguments)
        if name in WITH_WEIGHTS:
            plain[int(not name.startswith("unpack_"))] = portable_bytes(name, plain)
        expected = getattr(reference, name)(*plain)
        if name == "refresh_mask_":
            out, expected = arguments[0], plain[0]
        for ours, theirs in zip(as_tuple(out), as_tuple(expected), strict=True):
            assert_same_bits(ours, theirs, name)


def portable_bytes(name, arguments):
    """The packed weight among the arguments, in the reference's form."""
    if name.startswith("unpack_"):
        data, shape, groups = arguments
    elif name.startswith(("bgemm", "linear")):
        data, shape, groups = arguments[1], arguments[2:4], 1
    else:
        data, shape, groups = arguments[1], arguments[2], arguments[6]
    words = ops.unpack_weight_words(data, shape, groups)
    return reference.pack_weight_words(words, shape, groups)


def every_op(g):
    """(function, arguments) that between them call every op; each is one graph."""
    matrix = pack_weight(random_signs((37, 70), g))
    kernel = pack_conv_weight(random_signs((10, 20, 3, 3), g), 2)
    w, conv_w = random_signs((37, 70), g), random_signs((10, 20, 3, 3), g)
    t = torch.randint(-9, 9, (2, 37), generator=g, dtype=torch.int32)
    flips, residual = random_words((), 37, g), random_words((4,), 37, g)
    scale, bias = random_floats((10,), g), random_floats((10,), g)
    x, image = random_floats((4, 70), g), random_floats((2, 5, 6, 40), g)

    def linear(x):
        words = pack_signs(x)
        hidden = bgemm(words, matrix, Threshold(t, flips, residual))
        scaled = bgemm(words, matrix, Affine(t[0].float(), t[1].float()))
        return bgemm(words, matrix), unpack_signs(hidden, 37), scaled

    def convolution(image):
        words = pack_signs(image)
        out = bconv2d(words, kernel, 1, 1, groups=2, epilogue=Affine(scale, bias))
        t10 = t[:1, :10]
        bits = bconv2d(words, kernel, 2, 1, 1, 2, -1, Threshold(t10, flips[:1]))
        return out, bits, max_pool2d_signs(bconv2d(words, kernel, groups=2), 2, ceil_mode=True)

    def packing(w, conv_w):
        packed, conv = pack_weight(w), pack_conv_weight(conv_w, 2)
        words = pack_signs(x)
        return bgemm(words, packed), conv.words(), packed.unpack(), bconv2d(pack_signs(image), conv, groups=2)

    def float_inputs(x, image):
        weights = pack_binary_weight(w), pack_binary_weight(conv_w, 2)
        y = linear_binary_weight(x.round().clamp(-9, 9), weights[0], t[0].float(), t[1].float())
        pixels = image.permute(0, 3, 1, 2).round().clamp(-9, 9)
        return y, conv2d_binary_weight(pixels, weights[1], scale, None, 2, 1, groups=2), weights[1].words()

    def masked(u, mask):
        return progressive(u * 2, mask, "approx_sign").square() + progressive(u, None, "clip")

    def drawn(u, draw):
        return progressive_drawn(u * 2, draw, "approx_sign").square() + progressive_drawn(u, draw, "clip")

    def refreshed(mask):
        refresh_mask_(mask, 120, 0.3, 2.0, 1, 2, 3)
        return pack_signs(unpack_signs(mask, 120)) ^ mask, mask + 0

    return [
        (linear, (x,)),
        (convolution, (image,)),
        (packing, (w, conv_w)),
        (float_inputs, (random_floats((4, 70), g, specials=0), random_floats((2, 5, 6, 40), g, specials=0))),
        (masked, (random_floats((3, 40), g, specials=0), random_words((), 120, g))),
        (drawn, (random_floats((3, 40), g, specials=0), draw_state(0.4, 1, 2, 3))),
        (refreshed, (random_words((), 120, g),)),
    ]


def compare_compiled(function, arguments, **options):
    def run(f):
        copies = [a.clone() for a in arguments]
        if function.__name__ in ("masked", "drawn"):
            copies[0].requires_grad_()
        out = f(*copies)
        outputs = [out] if isinstance(out, torch.Tensor) else list(out)
        if function.__name__ in ("masked", "drawn"):
            out.sum().backward()
            outputs.append(copies[0].grad)
        return [*outputs, *copies]

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, **options)
    for ours, expected in zip(run(compiled), run(function), strict=True):
        assert_same_bits(ours.detach(), expected.detach(), function.__name__)
    return compiled


@pytest.mark.parametrize("index", range(7))
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_functions_are_one_graph_with_the_same_bits(index, dynamic, g):
    """What is compiled calls the ops, whichever implementation they have."""
    compare_compiled(*every_op(g)[index], backend="aot_eager", dynamic=dynamic)


def test_inductor_runs_the_ops_as_they_are(g):
    """No code of its own to generate between them, so no C++ compiler is needed."""
    matrix = pack_weight(random_signs((37, 120), g))
    t = torch.randint(-9, 9, (1, 37), generator=g, dtype=torch.int32)

    def product(x):
        return bgemm(pack_signs(x), matrix, Threshold(t, t[0, :2]))

    def masked(u, mask):
        return progressive(u, mask, "approx_sign")

    compare_compiled(product, (random_floats((3, 120), g),), backend="inductor")
    arguments = (random_floats((3, 40), g, specials=0), random_words((), 120, g))
    compare_compiled(masked, arguments, backend="inductor")


def test_a_new_mask_or_probability_does_not_recompile(g):
    compiled_graphs = []

    def count(graph, _):
        compiled_graphs.append(graph)
        return graph

    u = random_floats((3, 40), g)
    for op, seconds in [
        (progressive, [random_words((), 120, g) for _ in range(3)]),
        (progressive_drawn, [draw_state(step / 4, 1, 2, step) for step in range(3)]),
    ]:
        torch._dynamo.reset()
        compiled_graphs.clear()
        function = torch.compile(lambda u, second, op=op: op(u, second, "clip"), backend=count, fullgraph=True)
        for second in seconds:
            assert_same_bits(function(u, second), op(u, second, "clip"))
        assert len(compiled_graphs) == 1


def test_meta_tensors_give_shapes_without_computing():
    x = torch.empty(3, 40, device="meta")
    assert ops.pack_signs(x).shape == (3, 2)
    assert ops.progressive(x, None, "none", False).device.type == "meta"


def hostile_tensor(rng, good):
    """Something near ``good`` that an op has to refuse or to get right."""
    kind = rng.randrange(4, 11)
    if kind == 4:
        return good.to(rng.choice([torch.int64, torch.float32, torch.uint8, torch.bool]))
    if kind == 5:
        return good.flatten()
    if kind == 6:
        return good[..., : rng.randrange(good.shape[-1] + 1)] if good.dim() else good
    if kind == 7:
        return good.unsqueeze(rng.randrange(good.dim() + 1))
    if kind == 8:
        return good.new_empty([0] * max(good.dim(), 1))
    if kind == 9:
        return torch.ones((), dtype=good.dtype)
    return good.expand(2, *good.shape).transpose(0, -1)


def hostile(rng, value):
    if isinstance(value, torch.Tensor):
        return hostile_tensor(rng, value)
    small = [-(2**63), -1, 0, 1, 2, 3, 5, 31, 32, 33, 2**31, 2**62, 2**63 - 1]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(small)
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, 0.5, 1.0, 1e300, float("inf"), float("nan")])
    if isinstance(value, str):
        return rng.choice(["none", "identity", "clip", "approx_sign", "", "x" * 1000])
    if isinstance(value, list):
        changed = [rng.choice(small[:10]) if rng.random() < 0.5 else v for v in value]
        return changed[: rng.randrange(len(changed) + 1)] if rng.random() < 0.2 else changed
    if isinstance(value, torch.dtype):
        return rng.choice([torch.int32, torch.bool, torch.complex64, *FLOATS])
    return value


@pytest.mark.skipif(native.library is None, reason="the checks of the compiled library are tested")
@pytest.mark.parametrize("name", SCHEMAS)
def test_hostile_arguments_give_an_error_or_a_result_and_never_a_crash(implementation, name):
    rng, samples = random.Random(name), sample_arguments(generator(7))[name]
    refused = answered = 0
    for _ in range(60):
        arguments = list(rng.choice(samples))
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(arguments))
            arguments[at] = hostile(rng, arguments[at])
        try:
            out = getattr(ops, name)(*arguments)
        except RuntimeError:  # also torch's own, of arguments that do not fit the schema
            refused += 1
        else:
            assert out is None or all(isinstance(t, torch.Tensor) for t in as_tuple(out))
            answered += 1
    assert answered > 0
    assert refused > 0


@pytest.mark.skipif(native.library is None, reason="the checks of the compiled library are tested")
def test_random_bytes_are_never_taken_for_a_packed_weight(implementation, g):
    a = random_words((4,), 70, g)
    good = pack_weight(random_signs((37, 70), g)).data
    for _ in range(100):
        noise = torch.randint(0, 256, (len(good),), generator=g, dtype=torch.uint8)
        with pytest.raises(RuntimeError, match="packed weight"):
            ops.bgemm(a, noise, 37, 70)
        altered = torch.where(torch.rand(len(good), generator=g) < 0.01, noise, good)
        altered[:64] = good[:64]
        assert ops.bgemm(a, altered, 37, 70).shape == (4, 37)  # other weights, no crash
