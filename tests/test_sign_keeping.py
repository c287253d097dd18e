"""The sign of an activation that a layer binarizes is that of its input, wherever it is computed."""

import copy

import pytest
import torch
from models_for_tests import randomize_norms, set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn.sign_keeping import SIGN_KEEPING, keep_negative

KINDS = {
    "gelu": nn.GELU,
    "tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "in place": lambda: nn.SiLU(inplace=True),
    "mish": nn.Mish,
    "in-place mish": lambda: nn.Mish(inplace=True),
}


def values(g, n=4000):
    return torch.cat([torch.randn(n, generator=g) * scale for scale in (1, 10, 100, 1e4, 1e-3, 1e-20, 1e-38)])


def keeping(kind):
    activation = KINDS[kind]()
    activation.__class__ = SIGN_KEEPING[type(activation)]
    return activation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_signs_are_the_inputs_in_every_layout(kind, dtype):
    x = values(torch.Generator().manual_seed(0)).to(dtype)
    x = torch.cat([x, torch.tensor([0.0, -0.0, 1.0, -60000.0], dtype=dtype)])
    activation, plain = keeping(kind), KINDS[kind]()
    for layout in (x, torch.stack([x, x], -1)[..., 0], x[1:], x.reshape(-1, 1)):
        y, expected = activation(layout.clone()), plain(layout.clone())
        assert torch.equal(y < 0, layout < 0)
        assert y.dtype is dtype
        assert float((y - expected).abs().max()) <= (1.1e-30 if dtype is not torch.float16 else 1e-4)
    assert activation(torch.full((3,), torch.nan, dtype=dtype)).isnan().all()


def test_what_rounds_to_zero_is_found():
    """Without it the signs are not the input's: the plain functions lose them."""
    x = torch.tensor([-200.0, -1e4])
    for kind in KINDS:
        assert not bool((KINDS[kind]()(x.clone()) < 0).any()), kind
        assert bool((keeping(kind)(x.clone()) < 0).all()), kind


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_functions_own(kind):
    x = values(torch.Generator().manual_seed(1)).double()
    grads = []
    for activation in (keeping(kind), KINDS[kind]()):
        leaf = x.clone().requires_grad_()
        activation(leaf * 1).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=0, atol=1e-6)


def test_keep_negative_changes_nothing_else():
    y = torch.tensor([-0.0, 0.0, 1.0, -1.0, -0.0, torch.nan])
    kept = keep_negative(y, torch.tensor([True, False, False, True, False, True]))
    assert kept[:5].tolist() == [pytest.approx(-1e-30), 0.0, 1.0, -1.0, 0.0]
    assert kept[5].isnan()


def conv_net(activation, channels):
    def block():
        return [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), activation()]

    stem = [nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), activation()]
    return nn.Sequential(
        *stem, *block(), *block()[:2], nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)
    )


class Residual(nn.Module):
    """The activation is read as signs and as floats, and through a reshape."""

    def __init__(self, activation, channels):
        super().__init__()
        self.stem, self.act = (
            nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels)),
            activation(),
        )
        self.conv, self.act2 = nn.Conv2d(channels, channels, 3, padding=1), activation()
        self.fc, self.head = nn.Linear(49 * channels, 7), nn.Linear(7, 5)

    def forward(self, x):
        x = self.act(self.stem(x))
        x = self.act2(x + self.conv(x))
        return self.head(self.fc(x.flatten(1)))


# Where each function begins to round to -0.0, by vectors elsewhere than one by one.
EDGES = {"gelu": -5.5, "tanh": -5.1, "silu": -88.8, "in place": -88.8, "mish": -103.5, "in-place mish": -103.5}


def committed(net, x, seed, edge):
    """Random BatchNorms whose outputs lie around an edge, and around zero."""
    torch.manual_seed(seed)
    model, _ = sk.prepare(net, x)
    g = torch.Generator().manual_seed(seed)
    randomize_norms(model, g)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.randn(module.num_features, generator=g) * 0.4)
                module.bias.copy_(torch.where(torch.rand(module.num_features, generator=g) < 0.8, edge, 0.0))
    return set_stage(model, sk.nn.Stage.BINARY).eval()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("channels", [5, 33])
@pytest.mark.parametrize(
    ("net", "kind"),
    # The shortcut of the other network reads what works in place.
    [(net, kind) for kind in KINDS for net in (conv_net, Residual) if net is conv_net or "place" not in kind],
)
def test_verification_does_not_depend_on_the_memory_format(kind, net, channels, seed, tmp_path):
    g = torch.Generator().manual_seed(100 + seed)
    x = 3 * torch.randn(3, 3, 7, 7, generator=g)
    torch.manual_seed(seed)
    model = committed(net(KINDS[kind], channels), x, seed, EDGES[kind])
    packed = sk.convert(model, verify=x)
    formats = x, x.contiguous(memory_format=torch.channels_last), x[:, :, [0, 0, 2, 2, 4, 4, 6]]
    for other in formats:
        sk.convert(model, verify=other)
        with torch.no_grad():
            # The committed model itself, on bits, is training's forward.
            assert torch.allclose(packed(other), model(other), rtol=1e-3, atol=1e-3 * float(packed(other).abs().max()))
    sk.save_packed(packed, tmp_path / "net.safetensors")
    assert torch.equal(sk.load_packed(tmp_path / "net.safetensors")(x), packed(x))
    torch.testing.assert_close(sk.convert(model, verify=x, by_layer=True)(x), packed(x), rtol=1e-4, atol=1e-4)


def test_only_activations_that_are_binarized_are_changed():
    net = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 5), nn.Mish())
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    model, _ = sk.prepare(net, x)
    assert [type(model[index]).__name__ for index in (1, 3, 5)] == ["SignKeepingGELU", "SiLU", "Mish"]
    assert type(net[1]) is nn.GELU, "the original stays"
    assert type(copy.deepcopy(model)[1]).__name__ == "SignKeepingGELU"
    model, _ = sk.prepare(net, x, binarize="weights")
    assert type(model[1]) is nn.GELU


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "place" not in kind])
def test_a_layer_sees_the_sign_of_the_activation_s_input(kind, training):
    net = nn.Sequential(nn.Linear(8, 8), KINDS[kind](), nn.Linear(8, 8), nn.Linear(8, 5))
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model, _ = sk.prepare(net, x)
    set_stage(model, sk.nn.Stage.BINARY).train(training)
    with torch.no_grad():
        model[0].weight.mul_(300)
    seen = {}
    model[1].register_forward_hook(lambda module, args, y: seen.update(before=args[0], after=y))
    model[2].input_activation.register_forward_hook(lambda module, args, y: seen.update(signs=y))
    model(x)
    assert torch.equal(seen["signs"] < 0, seen["before"] < 0)
    assert bool((seen["after"] == -1e-30).any()), "some of them round to zero"
