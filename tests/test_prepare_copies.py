"""What the copy that prepare returns keeps: ties of parameters, names, hooks and attributes, types of numbers."""

import copy
from collections import OrderedDict

import pytest
import torch
from models_for_tests import seeded, train_steps
from torch import nn
from torch.nn.utils import parametrizations, prune

import stompp_kernels as sk
from stompp_kernels.nn import BinaryLinear, ProgressiveActivation, Stage

ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def rows_of(report):
    return {row.name: row for row in report.rows}


class Chain(nn.Module):
    """first - norm - relu - one - norm - relu - two - norm - relu - three - last, all of 8 features."""

    def __init__(self):
        super().__init__()
        seeded()
        self.first, self.one, self.two, self.three, self.last = (nn.Linear(8, 8) for _ in range(5))
        self.norms = nn.ModuleList([nn.BatchNorm1d(8) for _ in range(3)])
        self.relus = nn.ModuleList([nn.ReLU() for _ in range(3)])

    def forward(self, x):
        x = self.first(x)
        for norm, relu, layer in zip(self.norms, self.relus, (self.one, self.two, self.three), strict=True):
            x = layer(relu(norm(x)))
        return self.last(x)


def test_layers_that_share_a_weight_go_on_sharing_it():
    net = Chain()
    net.two.weight = net.one.weight
    model, report = sk.prepare(net, ROWS)
    assert report.binarized() == ["one", "two", "three"]
    assert model.one.weight is model.two.weight
    assert "one.weight" in dict(model.named_parameters())
    assert "two.weight" not in dict(model.named_parameters())
    assert rows_of(report)["one"].reason.endswith("shares its weight with two")
    assert rows_of(report)["two"].reason.endswith("shares its weight with one")
    assert copy.deepcopy(model).one.weight is not model.one.weight
    again = copy.deepcopy(model)
    assert again.one.weight is again.two.weight


@pytest.mark.parametrize("order", ["forward", "reverse", "global"])
@pytest.mark.parametrize("regime", ["ste_free", "ste"])
def test_a_shared_weight_has_one_mask(order, regime):
    net = Chain()
    net.two.weight = net.one.weight
    model, _ = sk.prepare(net, ROWS)
    progression = sk.StoMPP(model, total_steps=30, order=order, regime=regime, refresh=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    signs = None
    for step in range(30):
        train_steps(model, optimizer, progression, 1, start=step, shape=(8, 8))
        assert model.one.stage is model.two.stage
        assert torch.equal(model.one.mask_words, model.two.mask_words)
        if model.one.committed and regime == "ste_free":
            now = model.one.weight < 0
            signs = now if signs is None else signs
            assert torch.equal(now, signs), "a committed weight moved"
    assert model.one.stage is Stage.BINARY
    assert signs is not None or regime == "ste"
    x = torch.randn(5, 8)
    torch.testing.assert_close(sk.convert(model.eval(), verify=x)(x), model(x), rtol=1e-5, atol=1e-5)
    model.two.soften()
    assert model.one.stage is model.two.stage is Stage.SOFT
    assert not model.one.mask_words.any()


def tie_to_last(net):
    net.last.weight = net.two.weight


def tie_bias(net):
    net.two.bias = net.three.bias


def tie_by_view(net):
    net.two.weight = nn.Parameter(net.one.weight.data.t())


def tie_to_a_part(net):
    whole = torch.randn(16, 8)
    net.one.weight, net.two.weight = nn.Parameter(whole[:8]), nn.Parameter(whole[4:12])


def tie_to_an_embedding(net):
    net.embedding = nn.Embedding(8, 8)
    net.two.weight = net.embedding.weight


def tie_to_a_buffer(net):
    net.register_buffer("average", net.two.weight.data)


@pytest.mark.parametrize(
    ("tie", "binarized", "name", "reason"),
    [
        (tie_to_last, ["one", "three"], "two", "shares its weight with last.weight, which stays in float"),
        (tie_bias, ["one"], "two", "shares its bias with three.bias"),
        (tie_by_view, ["three"], "one", "shares its weight with two.weight by a view of it"),
        (tie_to_a_part, ["three"], "two", "shares its weight with one.weight by a view of it"),
        (tie_to_an_embedding, ["one", "three"], "two", "shares its weight with embedding.weight, which stays in float"),
        (tie_to_a_buffer, ["one", "three"], "two", "shares its weight with average, which stays in float"),
    ],
)
def test_other_ties_stay_in_float_and_stay_ties(tie, binarized, name, reason):
    net = Chain()
    tie(net)
    model, report = sk.prepare(net, ROWS)
    assert report.binarized() == binarized
    assert (rows_of(report)[name].action, rows_of(report)[name].reason) == ("kept", reason)

    def memory(model):
        tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        keys = [f"{key}.{which}" for key in ("one", "two", "three", "last") for which in ("weight", "bias")]
        owners = [tensors[key] for key in (*keys, "embedding.weight", "average") if key in tensors]
        return [[a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() for a in owners] for b in owners]

    assert memory(model) == memory(net)
    assert torch.equal(model.get_submodule(name).weight, net.get_submodule(name).weight)
    tied = model.get_submodule(name)
    with torch.no_grad():
        tied.weight.zero_()
    if tie is tie_by_view:
        assert not model.two.weight.any()


def test_a_shared_weight_of_a_refused_layer_is_refused_with_it():
    class Net(Chain):
        def forward(self, x):
            x = self.one(self.relus[0](self.first(x)))
            return self.last(self.three(self.relus[2](self.two(self.relus[1](x).cumsum(1)))))

    net = Net()
    net.two.weight = net.one.weight
    with pytest.raises(ValueError, match=r"(?s)layer 'two': the signs.*layer 'one': shares its weight with two.weight"):
        sk.prepare(net, ROWS)
    model, report = sk.prepare(net, ROWS, on_refusal="keep")
    assert report.binarized() == ["three"]
    assert model.one.weight is model.two.weight


def test_parameters_in_one_storage_that_do_not_overlap_are_no_tie():
    net = Chain()
    flat = torch.randn(3, 8, 8)
    for layer, weight in zip((net.one, net.two, net.three), flat, strict=True):
        layer.weight = nn.Parameter(weight)
    _, report = sk.prepare(net, ROWS)
    assert report.binarized() == ["one", "two", "three"]


def test_a_layer_under_two_names_is_replaced_under_both():
    net = Chain()
    net.again = nn.ModuleDict({"two": net.two})
    model, report = sk.prepare(net, ROWS)
    assert report.binarized() == ["one", "two", "three"]
    assert isinstance(model.two, BinaryLinear)
    assert model.again["two"] is model.two


def test_a_layer_with_a_weight_that_is_computed_stays():
    net = Chain()
    parametrizations.weight_norm(net.one)
    prune.l1_unstructured(net.two, "weight", 0.5)
    weight = net.three.weight.detach()
    del net.three.weight
    net.three.weight = weight
    with torch.no_grad():  # so that the pruned weight holds no graph, which cannot be copied
        net.eval()(ROWS)
    with pytest.raises(ValueError, match="no layer to binarize") as caught:
        sk.prepare(net, ROWS)
    assert "one: is a subclass of Linear with code of its own" in str(caught.value)
    assert "two: has forward hooks of its own" in str(caught.value)
    assert "three: its weight is no parameter of its own" in str(caught.value)


class CustomParameter(nn.Parameter):
    pass


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda layer: setattr(layer, "forward", lambda x: x), "has a forward of its own, not that of its class"),
        (lambda layer: setattr(layer, "stage", 3), "has an attribute 'stage', a name that binary layers use"),
        (lambda layer: setattr(layer, "weight", CustomParameter(layer.weight.data)), "its weight is a CustomParameter"),
    ],
)
def test_layers_that_cannot_be_replaced_as_they_are_stay(change, reason):
    net = Chain()
    change(net.two)
    _, report = sk.prepare(net, ROWS)
    assert report.binarized() == ["one", "three"]
    assert rows_of(report)["two"].reason == reason


def test_attributes_and_hooks_of_replaced_modules_go_over():
    net, calls = Chain(), []
    layer, relu = net.two, net.relus[1]
    layer.lr_scale = 0.1
    layer.register_buffer("seen", torch.ones(1))
    layer.register_buffer("passing", torch.ones(1), persistent=False)
    layer.register_parameter("gain", nn.Parameter(torch.ones(2)))
    layer.adapter = nn.Identity()
    layer.weight.no_weight_decay = True
    layer.weight.register_hook(lambda grad: calls.append("gradient") or 0 * grad)
    layer.weight.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    layer.register_full_backward_pre_hook(lambda *_: calls.append("backward pre"))
    layer.register_state_dict_post_hook(lambda *_: calls.append("state"))
    layer.register_state_dict_pre_hook(lambda *_: calls.append("state pre"))
    layer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    layer.register_load_state_dict_pre_hook(lambda module, *_: calls.append(type(module).__name__))
    relu.register_forward_hook(lambda *_: calls.append("relu"))
    relu.note = "kept"
    net.first.weight.layer_decay = 0.5
    model, report = sk.prepare(net, ROWS)
    assert report.binarized() == ["one", "two", "three"]
    assert rows_of(report)["two"].reason.endswith("; keeps adapter, gain, lr_scale, passing, seen, hooks")
    assert rows_of(report)["relus.1"].reason.endswith("; keeps note, hooks")
    two = model.two
    assert isinstance(two, BinaryLinear)
    assert isinstance(model.relus[1], ProgressiveActivation)
    assert (two.lr_scale, model.relus[1].note, two.weight.no_weight_decay) == (0.1, "kept", True)
    assert model.first.weight.layer_decay == 0.5
    assert isinstance(two.adapter, nn.Identity)
    assert "two.gain" in dict(model.named_parameters())
    assert "two.seen" in model.state_dict()
    assert "two.passing" not in model.state_dict()

    calls.clear()
    model.train()(ROWS).sum().backward()
    assert {"relu", "gradient", "accumulated", "backward", "backward pre"} == set(calls)
    assert not two.weight.grad.any()
    calls.clear()
    model.load_state_dict(model.state_dict())
    assert {"state", "state pre", "loaded", "BinaryLinear"} == set(calls)


def test_an_activation_whose_hook_changes_its_output_is_not_the_source():
    net = Chain()
    net.relus[1].register_forward_hook(lambda module, inputs, output: 2 * output - 1)
    model, report = sk.prepare(net, ROWS)
    assert rows_of(report)["two"].reason == "binarizes its own input"
    assert type(model.relus[1]) is nn.ReLU


def test_a_relu_with_code_of_its_own_is_not_replaced():
    class Shifted(nn.ReLU):
        def forward(self, x):
            return super().forward(x) - 0.5

    net = Chain()
    net.relus[1] = Shifted()
    model, report = sk.prepare(net, ROWS)
    assert type(model.relus[1]) is Shifted
    assert rows_of(report)["two"].reason == "binarizes its own input"


NAMES = ["block1-0", "3x3", "class", "a b", "0", "x\"]+'y", "self", "über", "_stompp_target_0_"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_that_a_submodule_can_have(name):
    class Block(nn.Module):
        """A shared activation, so that its forward is written anew; names as they come."""

        def __init__(self):
            super().__init__()
            self.add_module(name, nn.ReLU())
            self.add_module(f"{name}_conv", nn.Sequential(OrderedDict([(name, nn.Conv2d(4, 4, 1))])))
            self.register_parameter(f"{name}_gain", nn.Parameter(torch.full((1,), 2.0)))
            self.second = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            relu, conv = getattr(self, name), getattr(getattr(self, f"{name}_conv"), name)
            return self.second(relu(conv(relu(x)) * getattr(self, f"{name}_gain")))

    seeded()
    net = nn.Sequential(OrderedDict([("stem", nn.Conv2d(3, 4, 1)), (name, Block()), ("head", nn.Conv2d(4, 2, 1))]))
    model, report = sk.prepare(net, IMAGES)
    assert report.binarized() == [f"{name}.{name}_conv.{name}", f"{name}.second"]
    assert {row.name for row in report.rows if row.action == "progressive"} == {f"{name}.{name}", f"{name}.{name}_1"}
    progression = sk.StoMPP(model, total_steps=4, order="global")
    for _ in range(4):
        model(IMAGES).sum().backward()
        progression.step()
    assert all(layer.committed for layer in (model.get_submodule(name).second, model.get_submodule(f"{name}.{name}")))
    assert torch.equal(copy.deepcopy(model)(IMAGES), model(IMAGES))


def conv1d_net():
    from transformers.pytorch_utils import Conv1D

    seeded()
    net = Chain()
    net.two, net.three = Conv1D(12, 8), Conv1D(8, 12)
    net.norms[2] = nn.BatchNorm1d(12)
    return net


@pytest.mark.parametrize("scale", [None, "channel"])
def test_a_transposed_linear_layer_is_binarized(scale):
    net = conv1d_net()
    model, report = sk.prepare(net, ROWS, scale=scale)
    assert report.binarized() == ["one", "two", "three"]
    row = rows_of(report)["two"]
    assert (row.kind, row.reason) == ("Conv1D", "input binarized by relus.1; its weight is [out, in] now")
    assert (model.two.in_features, model.two.out_features) == (8, 12)
    x = torch.rand(5, 8) * 0.1
    factor = (model.two.weight / net.two.weight.t()).mean().detach()
    with torch.no_grad():
        if scale == "channel":
            torch.testing.assert_close(model.two(x), net.two(x))
        else:
            torch.testing.assert_close(model.two.weight, net.two.weight.t() * factor)
            torch.testing.assert_close(model.two.bias, net.two.bias * factor)
    del net.two.weight
    net.two.weight = nn.Parameter(torch.randn(8, 12))
    net.two.weight.register_hook(lambda grad: grad)
    assert (
        rows_of(sk.prepare(net, ROWS)[1])["two"].reason
        == "its weight has gradient hooks, which would find it transposed"
    )


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"scale": "channel", "input_scale": "tensor"}])
def test_the_default_type_of_numbers_does_not_matter(default, dtype, options):
    net, x = Chain().to(dtype), ROWS.to(dtype)
    net.relus[1] = nn.Identity()
    expected, _ = sk.prepare(net, x, **options)
    torch.set_default_dtype(default)
    try:
        model, report = sk.prepare(net, x, **options)
        assert report.binarized() == ["one", "two", "three"]
        model.train()(x).sum().backward()
        assert model(x).dtype is dtype
    finally:
        torch.set_default_dtype(torch.float32)
    before = expected.state_dict()
    assert {name: value.dtype for name, value in model.state_dict().items()} == {n: v.dtype for n, v in before.items()}
    assert torch.equal(model.two.weight, expected.two.weight)
