"""Gradients of the ops against autograd's of their formulas in float64, and what refuses to cut one."""

import pytest
import torch
import torch.nn.functional as F
from helpers import SHORT_FLOATS, assert_same_bits, generator, random_floats, random_signs, random_words

from stompp_kernels import nn, ops
from stompp_kernels.ops import Affine, AffineSigns, Limits
from stompp_kernels.ops.gradients import multiply_add

# Gradients are computed in float32 and rounded to the input's type once.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def leaf(shape, g, dtype=torch.float32):
    return random_floats(shape, g, dtype, specials=0).requires_grad_()


def assert_gradients_equal_the_oracle(function, oracle, inputs, g):
    """``function(*inputs)`` and ``oracle``, of the same in float64, give each input that requires one its gradient."""
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    y, expected = function(*inputs), oracle(*exact)
    grad = random_floats(y.shape, g, y.dtype, specials=0)
    wanted = [i for i, t in enumerate(inputs) if t.requires_grad]
    ours = torch.autograd.grad(y, [inputs[i] for i in wanted], grad)
    theirs = torch.autograd.grad(expected, [exact[i] for i in wanted], grad.double())
    for i, a, b in zip(wanted, ours, theirs, strict=True):
        assert a.dtype == inputs[i].dtype
        scale = float(b.abs().max())
        # The largest magnitude bounds the terms that float32 rounds; 16 roundings of them at most meet in a sum here.
        torch.testing.assert_close(a.double(), b, rtol=TOLERANCE[a.dtype], atol=1e-5 * scale, msg=f"input {i}")


def subsets(*inputs):
    """The inputs with all, and with each alone, requiring a gradient."""
    yield inputs
    for alone in range(len(inputs)):
        yield [t.detach().requires_grad_(i == alone) for i, t in enumerate(inputs)]


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
@pytest.mark.parametrize("shape", [(70,), (4, 70), (2, 3, 70)])
def test_linear_binary_weight(implementation, dtype, shape, g):
    w = random_signs((37, 70), g)
    weight = ops.pack_binary_weight(w)
    for x, scale, bias in subsets(leaf(shape, g, dtype), leaf((37,), g), leaf((37,), g)):
        assert_gradients_equal_the_oracle(
            lambda x, scale, bias: ops.linear_binary_weight(x, weight, scale, bias),
            lambda x, scale, bias: x @ w.double().T * scale + bias,
            (x, scale, bias),
            g,
        )
    x, scale = leaf(shape, g, dtype), torch.rand(37, generator=g)
    assert_gradients_equal_the_oracle(
        lambda x: ops.linear_binary_weight(x, weight, scale), lambda x: x @ w.double().T * scale.double(), (x,), g
    )


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
@pytest.mark.parametrize(
    ("channels", "O", "kernel", "geometry"),
    [(40, 37, (3, 2), (1, 0, 1, 1)), (40, 10, (3, 2), ((2, 1), (1, 2), (1, 2), 2)), (40, 40, (3, 3), (2, 1, 1, 40))],
)
def test_conv2d_binary_weight(implementation, dtype, channels, O, kernel, geometry, g):
    w = random_signs((O, channels // geometry[-1], *kernel), g)
    weight = ops.pack_binary_weight(w, geometry[-1])
    image = leaf((2, channels, 7, 6), g, dtype)
    for inputs in subsets(image, leaf((O,), g), leaf((O,), g)):
        assert_gradients_equal_the_oracle(
            lambda x, scale, bias: ops.conv2d_binary_weight(x, weight, scale, bias, *geometry),
            lambda x, scale, bias: (
                F.conv2d(x, w.double(), None, *geometry) * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
            ),
            inputs,
            g,
        )
    nhwc = image.detach().to(memory_format=torch.channels_last).requires_grad_()
    y = ops.conv2d_binary_weight(nhwc, weight, torch.ones(O), None, *geometry)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert nhwc.grad.shape == image.shape


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("words", [False, True])
def test_conv2d_float(implementation, affine, words, g):
    geometry = (2, 1), (1, 2), (1, 2)
    bits = random_words((2, 7, 6), 40, g)
    image = ops.unpack_signs(bits, 40).permute(0, 3, 1, 2) if words else leaf((2, 40, 7, 6), g)
    for x, w, scale, bias in subsets(image, leaf((34, 40, 3, 2), g), leaf((34,), g), leaf((34,), g)):
        if not (x.requires_grad or w.requires_grad or affine) or (words and x.requires_grad):
            continue

        def function(x, w, scale, bias):
            epilogue = Affine(scale, bias, fused=True) if affine else None
            return ops.conv2d_float(bits if words else x, ops.pack_float_weight(w), *geometry, epilogue)

        def oracle(x, w, scale, bias):
            y = F.conv2d(x, w, None, *geometry)
            return y * scale.view(-1, 1, 1) + bias.view(-1, 1, 1) if affine else y

        if not affine:
            scale, bias = scale.detach(), bias.detach()
        assert_gradients_equal_the_oracle(function, oracle, (x, w, scale, bias), g)


def products(g):
    """(op on an epilogue, its sums) of both binary products."""
    words, weight = random_words((2, 3), 70, g), ops.pack_weight(random_signs((37, 70), g))
    yield lambda epilogue: ops.bgemm(words, weight, epilogue), ops.bgemm(words, weight)
    image, kernel = random_words((2, 5, 6), 40, g), ops.pack_conv_weight(random_signs((37, 20, 3, 2), g)[:36], 2)

    def convolution(epilogue=None):
        return ops.bconv2d(image, kernel, (1, 2), (1, 0), 1, 2, -1, epilogue)

    yield convolution, convolution()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", SHORT_FLOATS)
def test_affine_epilogues(implementation, fused, dtype, g):
    for product, sums in products(g):
        N = sums.shape[-1]
        constants = [leaf((N,), g) for _ in range(4)]
        for inputs in subsets(*constants, leaf(sums.shape, g, dtype)):
            assert_gradients_equal_the_oracle(
                lambda scale, bias, rs, rb, residual, product=product: product(
                    Affine(scale, bias, residual, torch.float32, fused, rs, rb)
                ),
                lambda scale, bias, rs, rb, residual, sums=sums: scale * sums + bias + rs * residual + rb,
                inputs,
                g,
            )
        for inputs in subsets(*constants[:2], leaf(sums.shape, g)):
            assert_gradients_equal_the_oracle(
                lambda scale, bias, residual, product=product: product(Affine(scale, bias, residual, dtype, fused)),
                lambda scale, bias, residual, sums=sums: scale * sums + bias + residual,
                inputs,
                g,
            )


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
def test_rprelus_of_affine_epilogues(implementation, dtype, g):
    def oracle(scale, bias, residual, rprelu, sums):
        y = scale * sums + bias + residual + rprelu[0]
        return torch.where(y > 0, y, y * rprelu[1]) + rprelu[2]

    for product, sums in products(g):
        N = sums.shape[-1]
        for inputs in subsets(leaf((N,), g), leaf((N,), g), leaf(sums.shape, g), leaf((3, N), g)):
            assert_gradients_equal_the_oracle(
                lambda scale, bias, residual, rprelu, product=product: product(
                    Affine(scale, bias, residual, dtype, rprelu=rprelu)
                ),
                lambda *values, sums=sums: oracle(*values, sums),
                inputs,
                g,
            )


def test_results_are_the_same_bits_with_and_without_gradients(implementation, g):
    x, w = leaf((4, 70), g), ops.pack_binary_weight(random_signs((37, 70), g))
    image, kernel = leaf((2, 40, 5, 6), g), ops.pack_binary_weight(random_signs((10, 20, 3, 2), g), 2)
    floats = ops.pack_float_weight(leaf((34, 40, 3, 2), g))
    scale, learned = torch.rand(37, generator=g), leaf((37,), g)
    matrix, _ = next(products(g))
    calls = [
        lambda: ops.linear_binary_weight(x, w, scale, scale),
        lambda: ops.conv2d_binary_weight(image, kernel, scale[:10], None, 1, 1, groups=2),
        lambda: ops.conv2d_float(image, floats, padding=1),
        *(
            lambda product=product, sums=sums: product(Affine(learned[: sums.shape[-1]], scale[: sums.shape[-1]]))
            for product, sums in products(g)
        ),
        lambda: matrix(Affine(learned, scale, rprelu=torch.stack([scale, -scale, scale]))),
    ]
    for call in calls:
        y = call()
        assert y.requires_grad
        with torch.no_grad():
            assert_same_bits(call(), y.detach())
        with torch.inference_mode():
            assert_same_bits(call(), y.detach())


def test_second_gradients_are_those_of_the_formula(implementation, g):
    w, kernel, f = random_signs((9, 40), g), random_signs((6, 20, 2, 2), g), leaf((5, 40, 2, 2), g)
    packed, packed_kernel = ops.pack_binary_weight(w), ops.pack_binary_weight(kernel, 2)
    scale, image = leaf((9,), g), leaf((2, 40, 3, 3), g)
    for function, oracle, inputs in [
        (
            lambda x, s: ops.linear_binary_weight(x, packed, s, s),
            lambda x, s: x @ w.double().T * s + s,
            (leaf((4, 40), g), scale),
        ),
        (
            lambda x, s: ops.conv2d_binary_weight(x, packed_kernel, s, None, groups=2),
            lambda x, s: F.conv2d(x, kernel.double(), groups=2) * s.view(-1, 1, 1),
            (image, scale[:6].detach().requires_grad_()),
        ),
        (lambda x, f: ops.conv2d_float(x, ops.pack_float_weight(f)), F.conv2d, (image, f)),
    ]:

        def penalty(function, inputs):
            first = torch.autograd.grad(function(*inputs).sin().sum(), inputs, create_graph=True)
            return torch.autograd.grad(sum(t.square().sum() for t in first), inputs)

        ours = penalty(function, inputs)
        theirs = penalty(oracle, [t.detach().double().requires_grad_() for t in inputs])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_autocast_changes_no_gradient(implementation, g):
    x, w = leaf((4, 70), g), ops.pack_binary_weight(random_signs((37, 70), g))
    image, kernel = leaf((2, 40, 5, 6), g), ops.pack_binary_weight(random_signs((10, 20, 3, 2), g), 2)
    for call, t in [
        (lambda: ops.linear_binary_weight(x, w, torch.ones(37)), x),
        (lambda: ops.conv2d_binary_weight(image, kernel, torch.ones(10), groups=2), image),
        (lambda: ops.conv2d_float(image, ops.pack_float_weight(torch.ones(5, 40, 2, 2))), image),
    ]:
        (expected,) = torch.autograd.grad(call().square().sum(), t)
        with torch.autocast("cpu", torch.bfloat16):
            (gradient,) = torch.autograd.grad(call().square().sum(), t)
        assert_same_bits(gradient, expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_functions_have_the_same_gradients(dynamic, g):
    w = ops.pack_binary_weight(random_signs((37, 70), g))
    kernel = ops.pack_binary_weight(random_signs((10, 20, 3, 2), g), 2)
    (product, sums), (convolution, pixels) = products(g)
    floats = ops.pack_float_weight(torch.randn(5, 40, 2, 2, generator=g))

    def linear(x, scale):
        return ops.linear_binary_weight(x, w, scale)

    def images(x, scale):
        return ops.conv2d_binary_weight(x, kernel, scale[:10], None, 2, 1, groups=2).sum() + ops.conv2d_float(x, floats)

    def epilogues(residual, scale):
        return product(Affine(scale, scale + 1, residual, fused=True))

    def epilogues_of_images(residual, scale):
        return convolution(Affine(scale[:36], -scale[:36], residual))

    shapes = [(linear, (4, 70)), (images, (2, 40, 5, 6)), (epilogues, sums.shape), (epilogues_of_images, pixels.shape)]
    for function, shape in shapes:
        inputs = leaf(shape, g), leaf((37,), g)
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        ours = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
        theirs = torch.autograd.grad(function(*inputs).square().sum(), inputs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b, function.__name__)
        with torch.no_grad():
            assert_same_bits(compiled(*inputs), function(*inputs), function.__name__)


def signs(g):
    """Calls on floats that take their signs."""
    limit = torch.rand(40, generator=g)
    (product, _), (convolution, _) = products(g)
    f = ops.pack_float_weight(torch.randn(7, 40, 1, 1, generator=g))
    layer = nn.PackedLinear(ops.pack_weight(random_signs((8, 40), g)), Affine(torch.ones(8), torch.zeros(8)))
    scale, kernel = torch.ones(37), random_signs((6, 40, 1, 1), g)
    return {
        "pack_signs": lambda x: ops.pack_signs(x),
        "pack_outside": lambda x: ops.pack_outside(x, -limit, limit),
        "pack_weight": lambda x: ops.pack_weight(x),
        "pack_conv_weight": lambda x: ops.pack_conv_weight(x.view(*x.shape, 1, 1)),
        "pack_binary_weight": lambda x: ops.pack_binary_weight(x),
        "AffineSigns of bgemm": lambda x: product(AffineSigns(scale, scale * x.sum(), None, False, True)),
        "AffineSigns with rprelu": lambda x: product(AffineSigns(scale, scale, rprelu=torch.ones(3, 37) * x.sum())),
        "AffineSigns with limits": lambda x: product(AffineSigns(scale, scale, limits=torch.ones(2, 37) * x.sum())),
        "AffineSigns of bconv2d": lambda x: convolution(AffineSigns(scale[:36] * x.sum(), scale[:36])),
        "conv2d_float with Limits": lambda x: ops.conv2d_float(
            x.view(1, 40, 1, -1), f, epilogue=Limits(-torch.ones(7), torch.ones(7))
        ),
        "PackSigns": lambda x: nn.PackSigns(False)(x),
        "PackBatchNorm": lambda x: nn.PackBatchNorm(40, False)(x),
        "PackedOnFloats": lambda x: nn.PackedOnFloats(layer, nn.SharedSigns(False))(x),
        "SignActivation": lambda x: nn.SignActivation()(x),
        "kernel": lambda x: ops.pack_conv_weight(kernel * x.sum()),
    }


@pytest.mark.parametrize("name", signs(generator()))
def test_signs_refuse_to_cut_a_gradient(implementation, name, g):
    call, x = signs(g)[name], leaf((3, 40), g)
    with pytest.raises(RuntimeError, match=r"takes signs, which no gradient passes, and \w+ requires a gradient"):
        call(x)
    with pytest.raises(RuntimeError, match="takes signs"):
        torch.func.grad(lambda x: call(x) and x.sum())(x.detach())
    with torch.no_grad():
        call(x)
    call(x.detach())
    with ops.signs_as_constants():
        call(x)
    with pytest.raises(RuntimeError, match="takes signs"):
        call(x)


def test_signs_as_constants_let_gradients_pass_around_them(implementation, g):
    for product, sums in products(g):
        N = sums.shape[-1]
        scale, residual = torch.rand(N, generator=g), leaf(sums.shape, g)
        bent = {"rprelu": torch.stack([scale, torch.ones(N), scale]), "limits": torch.stack([-scale, scale])}
        epilogue = AffineSigns(scale, scale, residual, floats=True, **bent)
        with torch.no_grad():
            expected = product(epilogue)
        with ops.signs_as_constants():
            floats, words = product(epilogue)
        assert_same_bits(floats.detach(), expected[0])
        assert_same_bits(words, expected[1])
        (gradient,) = torch.autograd.grad(floats.sum(), residual)
        assert_same_bits(gradient, torch.ones_like(residual))


@pytest.mark.parametrize("fused", [False, True])
def test_a_broadcast_shortcut_of_a_packed_layer_gets_its_gradient(implementation, fused, g):
    weight, x_words = ops.pack_weight(random_signs((37, 70), g)), random_words((4,), 70, g)
    constants = [torch.rand(37, generator=g) for _ in range(4)]
    epilogue = Affine(*constants[:2], None, torch.float32, fused, *constants[2:])
    layer, sums = nn.PackedLinear(weight, epilogue), ops.bgemm(x_words, weight)
    assert_gradients_equal_the_oracle(
        lambda residual: layer(x_words, residual),
        lambda residual: sums * constants[0].double() + constants[1] + residual * constants[2] + constants[3],
        (leaf((1, 37), g),),
        g,
    )
    x, scale, bias = leaf((4, 37), g), leaf((37,), g), leaf((37,), g)
    with torch.no_grad():
        expected = multiply_add(x, scale, bias, fused)
    assert_same_bits(multiply_add(x, scale, bias, fused).detach(), expected)
    assert_gradients_equal_the_oracle(
        lambda *t: multiply_add(*t, fused), lambda x, scale, bias: x * scale + bias, (x, scale, bias), g
    )


def test_an_adapter_on_a_packed_base_learns_what_it_learns_on_the_float_one(implementation, g):
    """Float modules that learn, between layers with packed weights: the simulation's gradients."""
    w = [random_signs((32, 32), g) for _ in range(2)]
    layers = [nn.BinaryWeightLinear(ops.pack_binary_weight(v), torch.full((32,), 0.1)) for v in w]
    adapter, x = leaf((32, 32), g), leaf((5, 32), g)

    def network(x, adapter, first, second):
        h = first(x) + x
        return second(h + h @ adapter * 0.1) + h

    assert_gradients_equal_the_oracle(
        lambda x, a: network(x, a, *layers),
        lambda x, a: network(x, a, *(lambda h, v=v: h @ v.double().T * torch.full((32,), 0.1).double() for v in w)),
        (x, adapter),
        g,
    )


def test_bad_arguments_are_named_where_a_gradient_is_wanted_too(implementation, g):
    x, weight = leaf((4, 40), g), ops.pack_binary_weight(random_signs((3, 40), g))
    with pytest.raises(ValueError, match=r"scale must have shape \[3\], got \[2\]"):
        ops.linear_binary_weight(x, weight, torch.ones(2))
    with pytest.raises(TypeError, match="scale must be a tensor"):
        ops.linear_binary_weight(x, weight, None)
    kernel = ops.pack_binary_weight(random_signs((3, 40, 1, 1), g))
    with pytest.raises(ValueError, match="stride must be an int or two ints"):
        ops.conv2d_binary_weight(x.view(1, 40, 2, 2), kernel, torch.ones(3), stride=(1, 2, 3))
    words, matrix = random_words((4,), 70, g), ops.pack_weight(random_signs((3, 70), g))
    with pytest.raises(ValueError, match="residual must have shape"):
        ops.bgemm(words, matrix, Affine(torch.ones(3), torch.ones(3), leaf((3, 3), g)))
