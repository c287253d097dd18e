"""The sign of an activation that a layer binarizes is that of its input, wherever it is computed."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import randomize_norms, set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.files import container
from stompp_kernels.nn.sign_keeping import SIGN_KEEPING, SignKeeping, keep_negative

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


@pytest.mark.slow
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


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


def of_transformers(name):
    return pytest.importorskip("transformers.activations").ACT2FN[name]


@pytest.mark.parametrize(
    ("activation", "keeps"),
    [
        (Swish, True),
        (nn.Tanhshrink, True),
        *((lambda name=name: of_transformers(name), True) for name in ("gelu", "gelu_new", "gelu_fast", "quick_gelu")),
        (nn.ELU, False),  # computed so that it does not round to zero
        (nn.Hardswish, False),  # zero below -3
        (nn.Hardshrink, False),
        (nn.LeakyReLU, False),
        (nn.LogSigmoid, False),  # negative where its input is positive
        (lambda: nn.PReLU(8), False),
    ],
)
def test_activations_of_any_class_are_tried(activation, keeps, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), activation(), nn.Linear(8, 8), nn.Linear(8, 5))
    kind = type(net[1])
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    model, report = sk.prepare(net, x)
    assert isinstance(model[1], SignKeeping) == keeps
    assert type(net[1]) is kind, "the original stays"
    assert [row.kind for row in report.rows if row.action == "keeps signs"] == [kind.__name__] * keeps
    set_stage(model, sk.nn.Stage.BINARY).eval()
    with torch.no_grad():
        model[0].weight.mul_(300)
    if keeps:
        y = torch.tensor([[-1e4, -100.0, -15.0, -1.0, -1e-5, 0.0, 1e-5, 3.0]])
        assert torch.equal(model[1](y.clone()) < 0, y < 0)
        assert bool((kind.forward(model[1], y) == 0).any()), "some of them round to zero"
        again = pickle.loads(pickle.dumps(model[1]))
        assert type(again) is type(model[1])
    packed = sk.convert(model, verify=x)
    sk.save_packed(packed, tmp_path / "net.safetensors")
    assert torch.equal(sk.load_packed(tmp_path / "net.safetensors")(x), packed(x))


class Functional(nn.Module):
    def __init__(self, branches=False):
        super().__init__()
        self.a, self.b, self.c, self.head = (nn.Linear(8, 8) for _ in range(4))
        self.branches = branches

    def forward(self, x):
        x = self.a(x)
        if self.branches and x.sum() > 1e9:
            return x
        x = F.gelu(x, approximate="tanh")
        return self.head(F.mish(self.c(F.silu(self.b(x)))))


def test_functions_become_modules_that_keep_signs():
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model, report = sk.prepare(Functional(), x)
    assert [row.name for row in report.rows if row.action == "keeps signs"] == ["gelu_1", "silu_1"]
    assert model.gelu_1.approximate == "tanh"
    set_stage(model, sk.nn.Stage.BINARY).eval()
    with torch.no_grad():
        model.a.weight.mul_(300)
    seen = {}
    model.b.input_activation.register_forward_hook(lambda module, args, y: seen.update(signs=y))
    model(x)
    assert torch.equal(seen["signs"] < 0, model.a(x) < 0)
    sk.convert(model, verify=x)


class Excited(nn.Module):
    """The layer binarizes the activation times a positive scale, as in EfficientNet."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.squeeze, self.b, self.head = (
            *(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.Linear(8, 8)),
            nn.Linear(8, 4),
        )

    def forward(self, x):
        y = self.act(self.a(x))
        return self.head(self.b(torch.sigmoid(self.squeeze(y.mean(0, keepdim=True))) * (y / 2)))


def test_signs_are_kept_through_positive_scales():
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    _, report = sk.prepare(Excited(), x, keep=("squeeze",))
    assert [row.name for row in report.rows if row.action == "keeps signs"] == ["act"]


def test_functions_that_modules_keep_become_modules():
    layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True)
    net = nn.Sequential(nn.Linear(16, 16), layer, nn.Linear(16, 4))
    _, report = sk.prepare(net, torch.randn(2, 5, 16))
    assert [row.name for row in report.rows if row.action == "keeps signs"] == ["1.activation"]


def test_functions_in_a_forward_that_cannot_be_read_are_warned_of():
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"layers \['b', 'c'\] binarize what a function rounds to zero"):
        model, report = sk.prepare(Functional(branches=True), x)
    assert [row.name for row in report.rows if row.action == "loses signs"] == ["b", "c"]
    assert not any(isinstance(module, nn.GELU) for module in model.modules())
    assert type(model) is Functional


def test_files_of_models_converted_layer_by_layer_name_what_keeps_signs(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    net = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **sizes))
    inputs = {"input_ids": torch.randint(50, (2, 8))}
    model, _ = sk.prepare(net, inputs, keep=("intermediate",))
    set_stage(model, sk.nn.Stage.BINARY).eval()
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight.mul_(1e4)
    packed = sk.convert(model, verify=inputs)
    path = tmp_path / "net.safetensors"
    sk.save_packed(packed, path)
    loaded = sk.load_packed(path)
    assert isinstance(loaded.bert.encoder.layer[0].intermediate.intermediate_act_fn, SignKeeping)
    assert torch.equal(loaded(**inputs).logits, packed(**inputs).logits)
    structure, tensors, _ = container.read(path)
    structure["keeps_signs"] = ["bert.encoder.layer.0.output.dropout"]
    path.write_bytes(container.to_bytes(structure, tensors))
    with pytest.raises(ValueError, match="is no activation that rounds to zero"):
        sk.load_packed(path)
