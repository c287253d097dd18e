"""torch.func's transforms and vmap over the progressive op and over layers at every stage."""

import copy

import pytest
import torch
from helpers import assert_same_bits, random_floats, random_words
from models_for_tests import set_stage
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vjp, vmap

from stompp_kernels import nn, ops
from stompp_kernels.nn import Stage

SURROGATES = ("none", "identity", "clip", "approx_sign")

# vmap runs an op without a batching rule once for each sample, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def linear_layer(seed=0):
    torch.manual_seed(seed)
    alpha = torch.rand(6) + 0.5
    layer = nn.BinaryLinear(37, 6, bias=True, binarize_input=True, alpha=alpha)
    layer.input_activation.set_mask_shape((37,))
    return layer, torch.randn(5, 37)


def conv_layer(seed=0, **options):
    torch.manual_seed(seed)
    layer = nn.BinaryConv2d(4, 6, 3, bias=True, binarize_input=True, **{"padding": 1, **options})
    layer.input_activation.set_mask_shape((4, 7, 6))
    return layer, torch.randn(5, 4, 7, 6)


def strided_conv_layer(seed=0):
    return conv_layer(seed, stride=(2, 1), groups=2, padding_value=-1)


every_layer = pytest.mark.parametrize("build", [linear_layer, conv_layer, strided_conv_layer])
every_stage = pytest.mark.parametrize("stage", Stage)
every_surrogate = pytest.mark.parametrize("surrogate", SURROGATES)


def at(build, stage, surrogate, seed=0):
    layer, x = build(seed)
    return set_stage(layer, stage, surrogate), x


def loss_of(layer, x):
    return lambda parameters, x=x: functional_call(layer, parameters, (x,)).square().mean()


def plain_gradients(layer, x, *inputs):
    """By autograd, with zeros where no gradient passes."""
    y = layer(x).square().mean()
    found = torch.autograd.grad(y, inputs, allow_unused=True) if y.requires_grad else [None] * len(inputs)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)]


@every_layer
@every_stage
@every_surrogate
def test_grad_of_functional_call_is_autograds(build, stage, surrogate):
    layer, x = at(build, stage, surrogate)
    parameters = dict(layer.named_parameters())
    expected = plain_gradients(layer, x, *parameters.values())
    ours = grad(loss_of(layer, x))({name: p.detach() for name, p in parameters.items()})
    for (name, gradient), wanted in zip(ours.items(), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, msg=name)
    leaf = x.clone().requires_grad_()
    (wanted,) = plain_gradients(layer, leaf, leaf)
    torch.testing.assert_close(grad(lambda x: layer(x).square().mean())(x), wanted)
    y, pull = vjp(layer, x)
    assert_same_bits(y.detach(), layer(x).detach())
    torch.testing.assert_close(pull(2 * y.detach() / y.numel())[0], wanted)


@every_layer
@every_stage
@every_surrogate
def test_gradients_per_sample_are_those_of_each_sample(build, stage, surrogate):
    layer, x = at(build, stage, surrogate)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, sample):
        return functional_call(layer, parameters, (sample.unsqueeze(0),)).square().mean()

    ours = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        for name, gradient in grad(loss)(parameters, sample).items():
            torch.testing.assert_close(ours[name][i], gradient, msg=name)
    sums = grad(lambda parameters: vmap(loss, in_dims=(None, 0))(parameters, x).sum())(parameters)
    for name, gradient in sums.items():
        torch.testing.assert_close(gradient, ours[name].sum(0), msg=name, rtol=1e-4, atol=1e-5)


@every_layer
@every_stage
def test_an_ensemble_of_stacked_layers_gives_each_ones_output(build, stage):
    layers = [at(build, stage, "clip", seed)[0].eval() for seed in range(3)]
    x = build()[1]
    parameters, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta") if stage is Stage.SOFT else copy.deepcopy(layers[0])
    ours = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    for layer, y in zip(layers, ours, strict=True):
        torch.testing.assert_close(y, layer(x))
    with torch.no_grad():
        again = layers[0](x)
    assert_same_bits(again, layers[0](x).detach(), "nothing of a transform's weights is kept")


@every_layer
@every_stage
def test_a_jacobian_has_the_rows_that_autograd_gives(build, stage):
    layer, x = at(build, stage, "clip")
    x = x[:1]
    jacobian = jacrev(layer)(x)
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    for row, output in zip(jacobian.flatten(0, y.dim() - 1), y.flatten(), strict=True):
        (wanted,) = torch.autograd.grad(output, leaf, retain_graph=True)
        torch.testing.assert_close(row, wanted)


@every_surrogate
@pytest.mark.parametrize("form", ["all frozen", "masked", "shared by the batch", "drawn"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0)])
def test_the_progressive_op_under_grad_and_vmap(implementation, surrogate, form, order, g):
    u = random_floats((3, 4, 5), g, specials=0)
    u = u.permute(order).contiguous().permute([order.index(d) for d in range(3)])
    weights = torch.randn(3, 4, 5, generator=g)
    masks = {"masked": random_words((), 60, g), "shared by the batch": random_words((), 20, g), "all frozen": None}
    draw = ops.draw_state(0.4, 1, 2, 3)

    def batch(u):
        if form == "drawn":
            return (ops.progressive_drawn(u.contiguous(), draw, surrogate) * weights).sum()
        return (ops.progressive(u, masks[form], surrogate, form == "shared by the batch") * weights).sum()

    leaf = u.clone().requires_grad_()
    (expected,) = torch.autograd.grad(batch(leaf), leaf)
    assert_same_bits(grad(batch)(u), expected)

    def sample(u, weights):
        if form == "drawn":
            return (ops.progressive_drawn(u.contiguous(), draw, surrogate) * weights).sum()
        return (ops.progressive(u, masks["shared by the batch"], surrogate) * weights).sum()

    each = torch.stack([grad(sample)(u[i], weights[i]) for i in range(3)])
    assert_same_bits(vmap(grad(sample))(u, weights), each)
    assert_same_bits(grad(lambda u: vmap(sample)(u, weights).sum())(u), each)
    if form == "shared by the batch":
        assert_same_bits(each, expected)


def test_what_has_no_rule_is_refused_and_not_wrong(g):
    x = torch.randn(4, 40, generator=g)
    weight, scale = ops.pack_binary_weight(torch.randn(6, 40, generator=g)), torch.ones(6)
    for function in (
        lambda x: ops.linear_binary_weight(x, weight, scale),
        lambda x: ops.progressive(x, None, "clip"),
        lambda x: ops.progressive_drawn(x, ops.draw_state(0.5, 1, 2, 3), "clip"),
    ):
        with pytest.raises(NotImplementedError, match="jvp"):
            jvp(function, (x,), (x,))
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        grad(lambda u: grad(lambda u: ops.progressive(u, None, "clip").square().sum())(u).sum())(x)
    with pytest.raises(RuntimeError, match="refresh_mask_"):
        vmap(lambda m: ops.refresh_mask_(m, 32, 0.5, 1.0, 1, 1, 1))(torch.zeros(3, 1, dtype=torch.int32))


def test_forward_mode_tangents_are_not_dropped(g):
    x = torch.randn(4, 40, generator=g)
    weight, draw = ops.pack_binary_weight(torch.randn(6, 40, generator=g)), ops.draw_state(0.5, 1, 2, 3)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match="jvp"):
            ops.linear_binary_weight(dual, weight, torch.ones(6))
        with pytest.raises(RuntimeError, match="takes signs"):
            ops.pack_signs(dual)
        for drawn in (False, True):
            with pytest.raises(NotImplementedError, match="jvp"):
                ops.progressive_drawn(dual, draw, "clip") if drawn else ops.progressive(dual, None, "clip")


def test_ops_under_vmap_give_each_samples_result(implementation, g):
    weight, scale = ops.pack_binary_weight(torch.randn(6, 40, generator=g)), torch.rand(6, generator=g)
    kernel = ops.pack_binary_weight(torch.randn(6, 20, 2, 2, generator=g), 2)
    floats = ops.pack_float_weight(torch.randn(6, 40, 2, 2, generator=g))
    matrix, words = ops.pack_weight(torch.randn(6, 40, generator=g)), random_words((3, 4), 40, g)
    x, image = torch.randn(3, 4, 40, generator=g), torch.randn(3, 2, 40, 5, 5, generator=g)
    residual = torch.randn(3, 4, 6, generator=g)
    for function, inputs in [
        (lambda x: ops.linear_binary_weight(x, weight, scale), (x,)),
        (lambda x: ops.conv2d_binary_weight(x, kernel, scale, None, 2, 1, 1, 2), (image,)),
        (lambda x: ops.conv2d_float(x, floats, padding=1), (image,)),
        (lambda w, r: ops.bgemm(w, matrix, ops.Affine(scale, scale, r)), (words, residual)),
    ]:
        each = [function(*sample) for sample in zip(*inputs, strict=True)]
        torch.testing.assert_close(vmap(function)(*inputs), torch.stack(each))
        *fixed, learned = inputs

        def gradient(*sample, function=function):
            return grad(lambda t: function(*sample[:-1], t).square().sum())(sample[-1])

        each = [gradient(*sample) for sample in zip(*fixed, learned, strict=True)]
        torch.testing.assert_close(vmap(gradient)(*fixed, learned), torch.stack(each))
        whole = grad(lambda t: vmap(function)(*fixed, t).square().sum())(learned)  # noqa: B023
        torch.testing.assert_close(whole, torch.stack(each))
    assert_same_bits(vmap(ops.pack_signs)(x), ops.pack_signs(x))
