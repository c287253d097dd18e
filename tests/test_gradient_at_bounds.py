"""The gradient of soft entries at exactly +-1, where latents are clipped to: 1, whatever torch's clamp says."""

import copy
import math

import loss_digest
import pytest
import torch
from helpers import FLOATS, assert_same_bits, random_floats, strided_forms
from models_for_tests import make
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import BinaryLinear, ProgressiveActivation
from stompp_kernels.nn.clip import clip
from stompp_kernels.ops import progressive

BOUNDS = [-math.inf, -2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0, math.inf, math.nan]
GATES = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0]


def bounds(dtype=torch.float32):
    return torch.tensor(BOUNDS, dtype=dtype)


def gates(dtype=torch.float32):
    return torch.tensor(GATES, dtype=dtype)


def gradient(f, u, g):
    u = u.detach().requires_grad_()
    return torch.autograd.grad(f(u), u, g)[0]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_and_gradients_in_every_layout(dtype, g):
    u = torch.cat([random_floats((300,), g, dtype), torch.tensor([1.0, -1.0] * 30, dtype=dtype)]).view(2, 5, 6, 6)
    grad = torch.randn(u.shape, generator=g).to(dtype)
    for name, form in strided_forms(u):
        assert_same_bits(clip(form.requires_grad_()), u.clamp(-1, 1), name)
        assert_same_bits(gradient(clip, form, grad), torch.where(u.abs() <= 1, grad, 0), name)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (33,)])
def test_awkward_shapes(shape):
    u = torch.ones(shape)
    assert_same_bits(gradient(clip, u, torch.ones(shape)), torch.ones(shape))


def test_an_infinite_gradient_stops_at_a_closed_gate():
    u = bounds()
    assert_same_bits(gradient(clip, u, torch.full_like(u, math.inf)), torch.where(gates() == 1, math.inf, 0.0))


def test_partly_frozen_entries_that_are_soft_have_the_same_gradient():
    u, g = bounds(), torch.arange(1.0, 12.0)
    words = torch.zeros(1, dtype=torch.int32)
    assert_same_bits(gradient(lambda u: progressive(u, words), u, g), gradient(clip, u, g))


def test_without_a_compiled_kernel(monkeypatch):
    monkeypatch.setattr("stompp_kernels.nn.clip._has_kernel", lambda u: False)
    assert_same_bits(gradient(clip, bounds(), torch.ones(11)), gates())


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled(backend):
    compiled = torch.compile(clip, backend=backend, fullgraph=True)
    assert_same_bits(gradient(compiled, bounds(), torch.ones(11)), gates())
    assert_same_bits(compiled(bounds()), bounds().clamp(-1, 1))


def test_transforms_of_torch_func():
    u = bounds()

    def total(u):
        return clip(u).nansum()

    assert_same_bits(torch.func.grad(total)(u), gates())
    assert_same_bits(torch.func.vmap(torch.func.grad(total))(u.expand(3, 11)), gates().expand(3, 11))
    assert_same_bits(torch.func.jvp(clip, (u,), (torch.ones(11),))[1], gates())
    assert_same_bits(torch.func.jacrev(clip)(u), torch.diag(gates()))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(u, torch.ones(11))
        assert_same_bits(torch.autograd.forward_ad.unpack_dual(clip(dual)).tangent, gates())


def test_a_second_derivative_passes_the_same_gate():
    u = bounds().requires_grad_()
    g = torch.arange(1.0, 12.0).requires_grad_()
    (first,) = torch.autograd.grad(clip(u), u, g, create_graph=True)
    assert_same_bits(torch.autograd.grad(first.square().sum(), g)[0], 2 * g.detach() * gates())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("linked", [False, True])
def test_soft_layers_at_the_bounds(compiled, autocast, linked):
    layer = BinaryLinear(4, 4, binarize_input=True)
    if linked:
        layer.input_activation.set_mask_shape((4,))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, 1.0, 0.5, 2.0]]).expand(4, 4))
    x = torch.tensor([[1.0, -1.0, 1.0, 1.0]] * 2, requires_grad=True)
    f = torch.compile(layer, backend="aot_eager") if compiled else layer
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = f(x)
    y.float().sum().backward()
    assert layer.weight.grad.tolist() == [[2, -2, 2, 0]] * 4
    assert x.grad.tolist() == [[-4, 4, 2, 4]] * 2


@pytest.mark.filterwarnings("ignore:training ended at step:RuntimeWarning")
def test_latents_that_reach_a_bound_come_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    model, _ = sk.prepare(model, torch.randn(4, 4))
    progression = sk.StoMPP(model, total_steps=1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    weight, x = model[2].weight, torch.randn(64, 4)
    seen = torch.zeros_like(weight, dtype=torch.bool)
    came_back = False
    for step in range(40):
        model.zero_grad()
        (model(x).mean() * (-1) ** (step // 10)).backward()
        optimizer.step()
        progression.step()
        at_bound = weight.detach().abs() == 1
        came_back |= bool((seen & ~at_bound).any())
        seen |= at_bound
    assert seen.any()
    assert came_back


def test_soft_stages_keep_no_more_than_one_bit_an_element():
    activation, kept = ProgressiveActivation((64,)), []
    u = torch.randn(32, 64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes), lambda t: t):
        activation(u)
    assert sum(kept) == 32 * 64 // 8


def test_a_soft_model_can_be_copied_and_differentiated_by_torch_func():
    model, x = make("mlp")
    parameters = dict(model.named_parameters())
    gradients = torch.func.grad(lambda p: torch.func.functional_call(model.eval(), p, (x,)).square().sum())(parameters)
    twin = copy.deepcopy(model)
    twin(x).square().sum().backward()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


def test_a_run_does_not_depend_on_what_computes_the_clip(monkeypatch):
    expected = loss_digest.digest("ste_free", "linear")
    monkeypatch.setattr("stompp_kernels.nn.clip._has_kernel", lambda u: False)
    assert loss_digest.digest("ste_free", "linear") == expected
    monkeypatch.setattr("stompp_kernels.nn.masked.clip", lambda u: torch.where(u.abs() < 1, u, u.detach().clamp(-1, 1)))
    assert loss_digest.digest("ste_free", "linear") != expected, "the run reaches no bound"
