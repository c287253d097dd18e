"""torch.set_default_dtype changes no result of the ops, their oracles, their gradients or the layers."""

import contextlib

import pytest
import torch
from helpers import assert_same_bits, generator, random_floats, random_signs, random_words
from models_for_tests import set_stage
from test_torch_integration import WITH_WEIGHTS, as_tuple, portable_bytes, sample_arguments

from stompp_kernels import nn, ops
from stompp_kernels.nn import Stage
from stompp_kernels.ops import reference
from stompp_kernels.ops.schemas import SCHEMAS

every_default = pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16])


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def copies(arguments):
    return [a.detach().clone() if torch.is_tensor(a) else a for a in arguments]


def assert_same_results(call, default, what=""):
    """``call()`` gives a tuple of tensors."""
    expected = call()
    with default_dtype(default):
        found = call()
    for ours, wanted in zip(found, expected, strict=True):
        assert_same_bits(ours, wanted, what)


@every_default
@pytest.mark.parametrize("name", SCHEMAS)
def test_ops_and_their_oracles(implementation, default, name):
    for arguments in sample_arguments(generator(3))[name]:

        def call(op, arguments=arguments):
            given = copies(arguments)
            out = op(*given)
            return as_tuple(given[0] if out is None else out)

        assert_same_results(lambda: call(getattr(torch.ops.stompp, name)), default, name)
        fake = [torch.empty_like(a, device="meta") if torch.is_tensor(a) else a for a in arguments]
        with default_dtype(default):
            shapes = getattr(torch.ops.stompp, name)(*fake)
        if shapes is not None:
            for a, b in zip(as_tuple(shapes), call(getattr(torch.ops.stompp, name)), strict=True):
                assert a.dtype == b.dtype
        plain = copies(arguments)
        if name in WITH_WEIGHTS:
            plain[int(not name.startswith("unpack_"))] = portable_bytes(name, plain)
        assert_same_results(lambda plain=plain: call(getattr(reference, name), plain), default, name)


def functions(g):
    """Calls of the public functions, gradients among them."""
    w, kernel = random_signs((37, 70), g), random_signs((10, 20, 3, 2), g)
    x, image = random_floats((4, 70), g, specials=0), random_floats((2, 40, 5, 6), g, specials=0)
    scale, bias = torch.rand(37, generator=g), torch.rand(37, generator=g)
    residual, words = random_floats((4, 37), g, specials=0), random_words((4,), 70, g)

    def with_gradients(function, *inputs):
        inputs = [t.detach().clone().requires_grad_() for t in inputs]
        y = function(*inputs)
        return (y.detach(), *torch.autograd.grad(y, inputs, torch.ones_like(y)))

    def product(epilogue):
        return as_tuple(ops.bgemm(words, ops.pack_weight(w), epilogue))

    return {
        "linear": lambda: with_gradients(
            lambda x, s, b: ops.linear_binary_weight(x, ops.pack_binary_weight(w), s, b), x, scale, bias
        ),
        "convolution": lambda: with_gradients(
            lambda x, s: ops.conv2d_binary_weight(x, ops.pack_binary_weight(kernel, 2), s, None, 1, 1, 1, 2),
            image,
            scale[:10],
        ),
        "float convolution": lambda: with_gradients(
            lambda x, w, s: ops.conv2d_float(x, ops.pack_float_weight(w), 1, 1, 1, ops.Affine(s, s + 1, fused=True)),
            image,
            random_floats((34, 40, 3, 2), generator(1), specials=0),
            scale[:34],
        ),
        "affine": lambda: with_gradients(
            lambda s, b, r: product(ops.Affine(s, b, r, torch.float32, True, b, s))[0], scale, bias, residual
        ),
        "signs": lambda: product(ops.AffineSigns(scale, bias, residual, floats=True)),
        "packing": lambda: (ops.pack_signs(x), ops.pack_weight(w).unpack(), ops.unpack_signs(words, 70)),
        "masks": lambda: (ops.full_mask(70), ops.draw_state(0.3, 1, 2, 3), ops.full_mask(0)),
        "fused": lambda: with_gradients(
            lambda x, s, b: ops.gradients.multiply_add(x, s, b, True), residual, scale, bias
        ),
    }


@every_default
@pytest.mark.parametrize("name", functions(generator()))
def test_functions_and_their_gradients(implementation, default, name, g):
    assert_same_results(functions(g)[name], default, name)


@every_default
@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("surrogate", ["none", "approx_sign"])
@pytest.mark.parametrize("images", [False, True])
def test_layers(default, stage, surrogate, images):
    torch.manual_seed(0)
    alpha, input_scale = torch.rand(6) + 0.5, torch.tensor([1.5])
    if images:
        layer = nn.BinaryConv2d(4, 6, 3, padding=1, binarize_input=True, alpha=alpha, input_scale=input_scale)
    else:
        layer = nn.BinaryLinear(37, 6, binarize_input=True, alpha=alpha, input_scale=input_scale)
    shape = (4, 7, 6) if images else (37,)
    x = torch.randn(3, *shape)

    def call():
        layer.input_activation.set_mask_shape(shape)
        set_stage(layer, stage, surrogate)
        layer.train()
        given = x.clone().requires_grad_()
        y = layer(given)
        if not y.requires_grad:
            return (y,)
        gradients = torch.autograd.grad(y, (given, layer.weight), torch.ones_like(y), allow_unused=True)
        return (y.detach(), *(t for t in gradients if t is not None), *layer.buffers())

    assert_same_results(call, default)
