"""In the STE-free regime the signs of committed weights are out of everyone's reach."""

import copy
import re
import warnings

import pytest
import torch
from helpers import assert_same_bits
from models_for_tests import assert_same_state, make, seeded, snapshot
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import stompp_kernels as sk
from stompp_kernels.nn import BinaryConv2d, BinaryLinear, Stage

pytestmark = [
    pytest.mark.filterwarnings("ignore:training ended at step:RuntimeWarning"),
]


def train_steps(model, x, progression, steps):
    """Steps on seeded inputs of x's shape, with a fresh optimizer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    g = seeded(5)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(x.shape, generator=g)).square().sum().backward()
        optimizer.step()
        progression.step()


def partly_committed(net="residual", steps=14, total=20, **options):
    """A model whose first units are committed and whose last is not."""
    model, x = make(net)
    progression = sk.StoMPP(model, total, refresh=2, **options)
    train_steps(model, x, progression, steps)
    assert 0 < progression.frontier < len(progression.units)
    return model, x, progression


def committed_layers(progression):
    return {u.name: u.layer for u in progression.units if u.layer.stage is Stage.BINARY}


def signs(progression):
    return {name: layer.weight.detach() < 0 for name, layer in committed_layers(progression).items()}


def assert_signs(progression, expected):
    now = signs(progression)
    for name, bits in expected.items():
        assert torch.equal(now[name], bits), name


def by_lbfgs(model, x):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3)
    # A curvature of before the commitments, as if it had stepped all the time.
    for p in model.parameters():
        p.grad = torch.randn_like(p)

    def closure():
        loss = model(x).square().sum()
        if loss.requires_grad:
            loss.backward()
        return loss

    optimizer.step(closure)
    for p in model.parameters():
        p.grad = None


def by_sign_flip(model, x):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(-1)


def by_data(model, x):
    for p in model.parameters():
        p.data.mul_(-1)


def by_foreach(model, x):
    torch._foreach_neg_([p.detach() for p in model.parameters()])


def by_vector(model, x):
    vector_to_parameters(-parameters_to_vector(model.parameters()), model.parameters())


def by_zeros(model, x):
    for p in model.parameters():
        p.data.zero_()


def by_average(model, x):
    average = torch.optim.swa_utils.AveragedModel(copy.deepcopy(model))
    with torch.no_grad():
        for p in average.parameters():
            p.copy_(torch.randn_like(p))
    for p, mean in zip(model.parameters(), average.module.parameters(), strict=True):
        p.data.copy_(mean.data)


WRITERS = [by_lbfgs, by_sign_flip, by_data, by_foreach, by_vector, by_zeros, by_average]
writers = pytest.mark.parametrize("write", WRITERS, ids=lambda f: f.__name__)


@pytest.mark.sweep(3)
@writers
@pytest.mark.parametrize("net", ["residual", "mlp"])
@pytest.mark.parametrize("binarize", ["both", "weights"])
def test_the_network_keeps_its_committed_signs(write, net, binarize):
    model, x = make(net, binarize=binarize)
    progression = sk.StoMPP(model, 20, refresh=2, binarize=binarize)
    train_steps(model, x, progression, 14)
    before = signs(progression)
    products = {name: layer.latent().clone() for name, layer in committed_layers(progression).items()}
    write(model, x)
    for name, layer in committed_layers(progression).items():
        assert_same_bits(layer.latent(), products[name], "the layer computes from what it was committed with")
        assert_same_bits(layer.packed_weight().unpack(), products[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = model.state_dict()
    assert_signs(progression, before)
    for name, bits in before.items():
        assert torch.equal(state[f"{name}.weight"] < 0, bits)


@pytest.mark.parametrize("write", [by_sign_flip, by_foreach, by_vector], ids=lambda f: f.__name__)
def test_the_next_step_restores_weights_and_says_so_once(write):
    model, x, progression = partly_committed()
    before = signs(progression)
    write(model, x)
    with pytest.warns(RuntimeWarning, match=r"signs of committed weights, in 'blocks.0.conv1'"):
        progression.step()
    write(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        progression.step()
    assert_signs(progression, before)


def test_lbfgs_through_commitments():
    model, x = make("mlp")
    progression = sk.StoMPP(model, 12, refresh=2)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.05, max_iter=4)
    y = torch.randint(4, (len(x),))
    kept, evaluations = {}, []

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        evaluations.append({name: layer.latent().detach() < 0 for name, layer in committed_layers(progression).items()})
        return loss

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(16):
            optimizer.step(closure)
            assert_signs(progression, kept)
            for inside in evaluations:
                for name, bits in inside.items():
                    assert torch.equal(bits, kept[name]), "inside a step too"
            evaluations.clear()
            if step < 12:
                progression.step()
                kept = {**signs(progression), **kept}
    assert len(kept) == 2
    (message,) = [str(w.message) for w in caught]
    assert re.match(r"LBFGS\.step\(\) changed \d+ signs of committed weights, in 'fc[23]'", message)


@pytest.mark.parametrize("regime", ["ste", "vanilla_ste"])
def test_with_a_surrogate_signs_go_on_changing(regime):
    model, x = make("mlp")
    progression = sk.StoMPP(model, 10, regime=regime, surrogate="clip")
    train_steps(model, x, progression, 10)
    assert all(unit.layer.committed_words is None for unit in progression.units)
    weight = progression.units[0].layer.weight
    before = weight.detach() < 0
    by_sign_flip(model, x)
    train_steps(model, x, progression, 1)
    assert not torch.equal(before, weight < 0)


def test_a_state_dict_that_is_loaded_counts():
    model, _, progression = partly_committed()
    other, _, _ = partly_committed(steps=13)
    by_sign_flip(other, None)
    other_state = {name: -value if name.endswith("conv1.weight") else value for name, value in snapshot(model).items()}
    model.load_state_dict(other_state)
    layer = progression.units[0].layer
    assert torch.equal(layer.latent() < 0, other_state[f"{progression.units[0].name}.weight"] < 0)
    progression.load_state_dict(progression.state_dict())
    progression.step()
    assert torch.equal(layer.weight < 0, other_state[f"{progression.units[0].name}.weight"] < 0)
    model.load_state_dict({f"{progression.units[0].name}.weight": torch.ones_like(layer.weight)}, strict=False)
    assert bool((layer.latent() == 1).all())


def test_softened_and_recommitted_layers_take_the_signs_of_their_weights():
    _, _, progression = partly_committed()
    layer = progression.units[0].layer
    layer.soften()
    with torch.no_grad():
        layer.weight.fill_(-0.5)
    assert bool((layer.latent() == -0.5).all())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        progression.step()
    assert bool((layer.latent() == -1).all())


def test_a_resumed_run_has_the_same_bits_after_a_write():
    model, x, progression = partly_committed()
    by_data(model, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        states = copy.deepcopy(model.state_dict()), progression.state_dict()
    resumed, _ = make("residual")
    second = sk.StoMPP(resumed, 20, refresh=2)
    resumed.load_state_dict(states[0])
    second.load_state_dict(states[1])
    for m, p in ((model, progression), (resumed, second)):
        train_steps(m, x, p, 6)
    assert_same_state(snapshot(model), snapshot(resumed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("alpha", [None, 1e-3, 7.0])
def test_signs_are_held_and_restored_in_every_type(dtype, alpha):
    torch.manual_seed(0)
    scale = None if alpha is None else torch.full((6,), alpha, dtype=dtype)
    layer = BinaryLinear(37, 6, alpha=scale, dtype=dtype)
    expected = layer.weight.detach() < 0
    layer.commit()
    layer.hold_signs()
    for write in (torch.neg, torch.zeros_like, lambda w: w * 1e-30):
        layer.weight.data.copy_(write(layer.weight.data))
        layer.restore_signs_()
        assert torch.equal(layer._in_units_of_scale() < 0, expected)
        assert layer.restore_signs_() == 0
    layer.weight.data[0, :4] = float("nan")
    layer.restore_signs_()
    assert bool(layer.weight[0, :4].isnan().all()), "a NaN is not hidden"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_is_held_moves_copies_and_compiles_with_the_layer(memory_format):
    torch.manual_seed(0)
    layer = BinaryConv2d(5, 6, 3, padding=1).to(memory_format=memory_format)
    x = torch.randn(2, 5, 6, 6)
    layer.commit()
    expected = layer(x)
    layer.hold_signs()
    assert "committed_words" not in layer.state_dict()
    assert layer.latent().stride() == layer.weight.stride()
    for twin in (layer, copy.deepcopy(layer), layer.to("cpu")):
        by_data(twin, None)
        assert_same_bits(twin(x), expected)
    by_data(layer, None)
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager")(x), expected)
    target = BinaryConv2d(5, 6, 3, padding=1)
    sk.nn.copy_masks(layer, target)
    assert target.committed_words is None, "an average has signs of its own"


def test_a_converted_network_has_the_committed_signs():
    model, x = make("residual")
    progression = sk.StoMPP(model, 20, refresh=2)
    train_steps(model, x, progression, 20)
    model.eval()
    with torch.no_grad():
        expected = model(x)
    for layer in committed_layers(progression).values():
        layer.weight.data.neg_()
    torch.testing.assert_close(sk.convert(model)(x), expected, rtol=1e-4, atol=1e-4)
