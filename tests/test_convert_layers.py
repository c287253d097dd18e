"""Every committed layer of a model is packed, or the conversion says why not; whatever its submodules are called."""

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from models_for_tests import binary_layers, set_stage
from torch import nn
from torch.nn import functional as F

import stompp_kernels as sk
from stompp_kernels.nn import Stage
from stompp_kernels.nn.packed import PackedLayer

G = torch.Generator().manual_seed(0)
TOKENS = torch.randn(2, 8, 16, generator=G)
X = torch.randn(6, 16, generator=G)


def replaced(packed):
    return {layer.replaces[0] for layer in packed.modules() if isinstance(layer, PackedLayer)}


def committed(model, x, **options):
    torch.manual_seed(0)
    model, _ = sk.prepare(model, x, **options)
    return set_stage(model, Stage.BINARY).eval()


def assert_equal(packed, model, x):
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            torch.testing.assert_close(packed(x), model(x).detach(), rtol=1e-4, atol=1e-5)


class Encoder(nn.Module):
    def __init__(self, norm_first=False, activation="relu"):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, activation, batch_first=True, norm_first=norm_first)
        self.emb, self.head = nn.Linear(16, 32), nn.Linear(32, 5)
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.enc(self.emb(x)).mean(1))


def without_fast_path(model):
    """What decides between torch's fused kernel, which reads the latent weights, and the layers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
    return model


@pytest.mark.parametrize(("activation", "binarize"), [("relu", "weights"), ("gelu", "both"), ("gelu", "weights")])
@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_inside_a_transformer_encoder_are_packed(norm_first, activation, binarize):
    model = committed(Encoder(norm_first, activation), TOKENS, binarize=binarize)
    layers = set(binary_layers(model))
    assert layers, "the encoder's layers are binarized"
    simulated = without_fast_path(copy.deepcopy(model))
    with pytest.warns(UserWarning, match=r"torch\.fx cannot trace the model, .*\['enc', 'enc.layers.0', "):
        packed = sk.convert(model)
    assert replaced(packed) == layers
    # The packed network is given fast paths again: they must leave layers that have no float weights alone.
    for module in packed.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = {"relu": 1, "gelu": 2}[activation]
    assert_equal(packed, simulated, TOKENS)
    assert_equal(sk.convert(simulated, by_layer=True, verify=TOKENS), simulated, TOKENS)
    with pytest.raises(ValueError, match=r"cannot be traced by torch\.fx; by_layer=True"):
        sk.convert(model, by_layer=False)


def test_layers_inside_a_traceable_module_of_torch_are_packed():
    class Listed(nn.Sequential):
        __module__ = "torch.nn.modules.container"  # whole to torch.fx, as every module of torch.nn

        def forward(self, x):
            return super().forward(x) + 1

    class Hidden(nn.Module):
        __module__ = "torch.nn.modules.linear"

        def __init__(self):
            super().__init__()
            self.inner, self.act = nn.Linear(32, 32), nn.ReLU()

        def forward(self, x):
            return self.act(self.inner(x))

    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), Hidden(), Listed(nn.Linear(32, 32)), nn.Linear(32, 5))
    model = committed(net, X)
    assert set(binary_layers(model)) == {"2.inner", "3.0"}
    packed = sk.convert(model, verify=X)
    assert replaced(packed) == {"2.inner", "3.0"}
    assert_equal(packed, model, X)


class Reads(nn.Module):
    """Runs a layer, or reads its weight."""

    def __init__(self, read):
        super().__init__()
        self.first, self.act, self.layer, self.last = nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 5)
        self.read = read

    def forward(self, x):
        x = self.act(self.first(x))
        return self.last(self.read(self.layer, x))


@pytest.mark.parametrize(
    "read",
    [
        lambda layer, x: F.linear(x, layer.weight, layer.bias),
        lambda layer, x: x @ layer.weight.t(),
        lambda layer, x: x * layer.weight.abs().mean(),
        lambda layer, x: x,
    ],
    ids=["F.linear", "matmul", "mean", "left out"],
)
def test_a_layer_that_is_not_called_is_refused_by_name(read):
    model = committed(Reads(lambda layer, x: layer(x)), X)
    sk.convert(model, verify=X)
    model.read = read
    with pytest.raises(ValueError, match=r"does not call the committed layers \['layer'\]"):
        sk.convert(model)


def test_a_packed_weight_that_is_read_by_layer_is_refused():
    model = committed(Reads(lambda layer, x: layer(x)), X)
    model.read = lambda layer, x: F.linear(x, layer.weight, layer.bias)
    with pytest.raises(TypeError, match="packed weight"):
        sk.convert(model, by_layer=True)(X)
    model.read = lambda layer, x: x if isinstance(layer, sk.nn.BinaryLayer) else layer(x)
    with pytest.raises(ValueError, match="the model does not call layer, which"):
        sk.convert(model, by_layer=True, verify=X)


NAMES = ("block1-0", "3x3", "class", "for", "None", "graph", "code", "meta", "recompile", "a b", "é", "0")


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_submodules_have_any_name(name, by_layer):
    def block():
        return nn.Sequential(OrderedDict([(name, nn.Linear(32, 32)), (f"{name}_", nn.ReLU())]))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.act = nn.Linear(16, 32), nn.ReLU()
            self._modules[name] = block()
            self._modules[f"{name}_"] = nn.ModuleDict({name: block()})
            self.head = nn.Linear(32, 5)

        def forward(self, x):
            x = self._modules[name](self.act(self.stem(x)))
            return self.head(self._modules[f"{name}_"][name](x))

    model = committed(Net(), X)
    layers = set(binary_layers(model))
    assert len(layers) == 2
    packed = sk.convert(model, verify=X, by_layer=by_layer)
    assert replaced(packed) == layers
    assert_equal(packed, model, X)
    assert set(binary_layers(model)) == layers, "the model's own names stay"


def test_submodules_with_the_names_that_a_conversion_gives():
    names = ("fc_packed", "fc", "fc_fused", "fc_affine", "fc_packed_packed", "fc_binary_weight")
    layers = [(name, nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())) for name in names]
    net = nn.Sequential(OrderedDict([("stem", nn.Linear(16, 16)), *layers, ("head", nn.Linear(16, 5))]))
    pairs = [pair for name in names for pair in ((name, nn.Linear(16, 16)), (f"{name}_pack", nn.ReLU()))]
    flat = nn.Sequential(
        OrderedDict([("stem", nn.Linear(16, 16)), ("relu", nn.ReLU()), *pairs, ("head", nn.Linear(16, 5))])
    )
    for model in (net, flat):
        for binarize in ("both", "weights"):
            torch.manual_seed(0)
            prepared, _ = sk.prepare(model, X, binarize=binarize)
            set_stage(prepared, Stage.BINARY).eval()
            packed = sk.convert(prepared, verify=X)
            assert replaced(packed) == set(binary_layers(prepared))
            assert_equal(packed, prepared, X)


def test_hooks_that_vanish_are_named_and_the_others_run():
    modules = [("stem", nn.Linear(16, 32)), ("norm", nn.BatchNorm1d(32)), ("act", nn.ReLU()), ("fc", nn.Linear(32, 32))]
    modules += [("norm2", nn.BatchNorm1d(32)), ("tap", nn.Identity()), ("act2", nn.ReLU()), ("fc2", nn.Linear(32, 32))]
    net = nn.Sequential(OrderedDict([*modules, ("head", nn.Linear(32, 5))]))
    model = committed(net, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sk.convert(model, verify=X, compare_speed=False)
    seen = []
    for name in ("norm2", "tap"):
        model.get_submodule(name).register_forward_hook(lambda module, args, y: -y)
    model.head.register_forward_hook(lambda module, args, y: seen.append(module))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed = sk.convert(model, verify=X, compare_speed=False)
    seen.clear()
    assert_equal(packed, model, X)
    assert len(seen) == 4, "twice each"
    model.fc.register_forward_hook(lambda module, args, y: None)
    model.act2.register_forward_pre_hook(lambda module, args: None)
    model.register_forward_hook(lambda module, args, y: None)
    with pytest.warns(UserWarning, match="does not run the forward hooks of the model itself, 'fc', 'act2'"):
        sk.convert(model)


@pytest.mark.parametrize("by_layer", [False, True])
def test_explain_says_why_a_layer_is_not_packed(by_layer):
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), *(nn.Linear(32, 32) for _ in range(3)), nn.Linear(32, 5))
    model = committed(net, X)
    model[2].input_activation.soften()
    model[3].soften()
    reasons = {row.name: row.reason for row in sk.explain(sk.convert(model, by_layer=by_layer)).rows}
    assert reasons["2"] == "its input is not committed yet"
    assert reasons["3"] == "not committed yet"
