"""prepare names every layer that it refuses at once, and can leave these in float."""

import ast
import re
import warnings
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import seeded
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.prepare.checks import SHORTCUT_NAMES
from stompp_kernels.nn import BinaryConv2d, ProgressiveActivation

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def rows_of(report):
    return {row.name: row for row in report.rows}


class Threshold(nn.Module):
    """A functional activation that no module computes, before a convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(F.threshold(x, 0.1, 0.0))


class Shared(nn.Module):
    """One ReLU before two convolutions, in a forward that torch.fx cannot follow."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.relu = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU()

    def forward(self, x):
        y = self.one(self.relu(x)) if x.sum() < 1e9 else x
        return self.two(self.relu(y))


class Discarded(nn.Module):
    """A ReLU in place, whose result is not used."""

    def __init__(self):
        super().__init__()
        self.relu, self.conv = nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = 1.0 * x
        self.relu(x)
        return self.conv(x)


def net_of_all_kinds():
    seeded()
    return nn.Sequential(
        OrderedDict(
            [
                ("stem", nn.Conv2d(3, 4, 1)),
                ("functional", Threshold()),
                ("shared", Shared()),
                ("discarded", Discarded()),
                ("pooled-1", nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1))),
                ("good", nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))),
                ("downsample", nn.Conv2d(4, 4, 1)),
                ("head", nn.Conv2d(4, 2, 1)),
            ]
        )
    )


REASONS = {
    "functional.conv": "its input comes from a functional threshold",
    "shared.one": "its input comes from activation 'shared.relu', which would need a module for each place",
    "shared.two": "torch.fx cannot follow it",
    "discarded.conv": "its input came from activation 'discarded.relu', not from what replaced it",
    "pooled-1.2": "the signs of its input would all be +1",
}


def test_every_refused_layer_is_named_with_a_keep_to_paste():
    with pytest.raises(ValueError, match=r"^5 layers cannot be binarized:\n") as caught:
        sk.prepare(net_of_all_kinds(), IMAGES)
    lines = str(caught.value).splitlines()
    for name, reason in REASONS.items():
        assert any(line.startswith(f"layer {name!r}: ") and reason in line for line in lines), name
    assert lines[-1].startswith("keep=")
    keep = ast.literal_eval(lines[-1].removeprefix("keep="))
    assert keep[0] == SHORTCUT_NAMES
    assert "1 others are binarized then" in lines[-2]
    names = [name for name, _ in net_of_all_kinds().named_modules()]
    assert {n for n in names if any(re.search(pattern, n) for pattern in keep[1:])} == set(REASONS)
    _, report = sk.prepare(net_of_all_kinds(), IMAGES, keep=keep)
    assert report.binarized() == ["good.2"]
    assert rows_of(report)["downsample"].reason == "downsample layer"


def test_refused_layers_can_stay_in_float_with_the_reason():
    float_model = net_of_all_kinds()
    model, report = sk.prepare(float_model, IMAGES, on_refusal="keep")
    assert report.binarized() == ["good.2"]
    rows = rows_of(report)
    for name, reason in REASONS.items():
        assert rows[name].action == "kept"
        assert reason in rows[name].reason
        assert type(model.get_submodule(name)) is nn.Conv2d
        assert torch.equal(model.get_submodule(name).weight, float_model.get_submodule(name).weight)
    assert isinstance(model.good[2], BinaryConv2d)
    assert (rows["stem"].reason, rows["head"].reason) == ("first layer", "last layer")
    assert type(model.discarded.relu) is nn.ReLU


def test_layers_that_are_refused_once_others_stay_are_in_the_list_too():
    """Average pooling of a progressive activation has both signs, of a ReLU not."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.relu = nn.Conv2d(3, 4, 1), nn.ReLU()
            self.conv, self.pooled, self.head = nn.Conv2d(4, 4, 2, 2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
            self.hidden = [self.conv]

        def forward(self, x):
            x = self.relu(self.stem(x))
            return self.head(self.hidden[0](x) + self.pooled(F.avg_pool2d(x, 2)))

    with pytest.raises(ValueError, match="2 layers cannot") as caught:
        sk.prepare(Net(), IMAGES)
    assert "nothing is left to binarize then" in str(caught.value)
    assert re.search(r"layer 'conv': what replaced it does not run .*\nlayer 'pooled': the signs", str(caught.value))
    with pytest.raises(ValueError, match="model has no layer to binarize; conv: what replaced it"):
        sk.prepare(Net(), IMAGES, on_refusal="keep")


def test_what_to_do_about_refusals_is_checked():
    with pytest.raises(ValueError, match="on_refusal must be one of 'raise', 'keep', got 'skip'"):
        sk.prepare(net_of_all_kinds(), IMAGES, on_refusal="skip")
    with pytest.raises(ValueError, match="keep must be a sequence of regular expressions, got the string 'stem'"):
        sk.prepare(net_of_all_kinds(), IMAGES, keep="stem")


def xnor_block(norm, layer, pool=None):
    return nn.Sequential(nn.ReLU(), pool or nn.Identity(), norm, layer)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("trained", [False, True])
def test_a_fresh_batchnorm_before_a_layer_is_judged_by_batch_statistics(batch, trained):
    seeded()
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *xnor_block(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.AvgPool2d(2)),
        *xnor_block(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 8), nn.MaxPool2d(1)),
        nn.Flatten(),
        *xnor_block(nn.BatchNorm1d(8), nn.Linear(8, 8)),
        nn.Linear(8, 2),
    )
    if trained:
        net.train()(IMAGES.repeat(4, 1, 1, 1))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model, report = sk.prepare(net, IMAGES[:1].repeat(batch, 1, 1, 1) + torch.rand(batch, 3, 16, 16))
    assert report.binarized() == ["4", "8", "13"]
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for index in (3, 7, 12):
        state = model[index].state_dict()
        assert all(torch.equal(value, before[f"{index}.{name}"]) for name, value in state.items())


def test_a_batchnorm_that_maps_to_positive_values_is_still_refused():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), *xnor_block(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.AvgPool2d(2)), nn.Conv2d(8, 2, 1)
    )
    nn.init.constant_(net[3].bias, 100.0)
    with pytest.raises(ValueError, match=r"layer '4': the signs of its input would all be \+1"):
        sk.prepare(net, IMAGES)
    nn.init.zeros_(net[3].bias)
    nn.init.constant_(net[3].running_mean, -1.0)  # not fresh: what it has seen counts
    with pytest.raises(ValueError, match=r"layer '4': the signs of its input would all be \+1"):
        sk.prepare(net, IMAGES)
    nn.init.constant_(net[3].running_mean, 0.3)
    assert sk.prepare(net, IMAGES)[1].binarized() == ["4"]


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm2d(8, track_running_stats=True), nn.SyncBatchNorm(8), nn.BatchNorm2d(8, affine=False)]
)
def test_other_normalizations_with_running_statistics(norm):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), *xnor_block(norm, nn.Conv2d(8, 8, 1), nn.AvgPool2d(2)), nn.Conv2d(8, 2, 1))
    assert sk.prepare(net, IMAGES)[1].binarized() == ["4"]


def test_an_attribute_that_is_a_function_becomes_a_module():
    class Block(nn.Module):
        def __init__(self, activation):
            super().__init__()
            self.activation, self.conv = activation, nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.conv(self.activation(x)) if x.dim() == 4 else x  # a branch that torch.fx cannot follow

    net = nn.Sequential(nn.Conv2d(3, 4, 1), Block(F.relu), Block(torch.relu), Block(F.relu6), nn.Conv2d(4, 2, 1))
    expected = net.eval()(IMAGES)
    model, report = sk.prepare(net, IMAGES)
    assert report.binarized() == ["1.conv", "2.conv", "3.conv"]
    assert [rows_of(report)[f"{i}.activation"].kind for i in (1, 2, 3)] == ["ReLU", "ReLU", "ReLU6"]
    assert isinstance(model[1].activation, ProgressiveActivation)
    assert net[1].activation is F.relu
    assert torch.equal(net(IMAGES), expected)


class Concatenation(nn.Module):
    """Concatenates features, and reduces and binarizes the result."""

    def __init__(self, second, pool, between):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.second, self.pool, self.between = second, pool, between
        self.c, self.d = nn.Conv2d(16, 8, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x):
        h = F.relu(self.a(x))
        g = self.second(self.b(h))
        return self.d(self.c(self.between(self.pool(torch.cat([h, g], 1)))).mean((2, 3)))


@pytest.mark.parametrize("second", [nn.ReLU(), nn.Sigmoid(), nn.ReLU6(), nn.Softplus()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(4),
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    ],
    ids=str,
)
def test_channels_without_a_sign_are_counted(second, pool):
    model = Concatenation(second, pool, nn.Identity())
    with pytest.warns(
        RuntimeWarning, match=r"layer 'c': 8 of 16 channels of its input are never negative.*ReLU"
    ) as told:
        _, report = sk.prepare(model, torch.randn(2, 3, 8, 8))
    assert [one.filename for one in told] == [__file__]
    (reason,) = (row.reason for row in report.rows if row.name == "c")
    assert reason == "binarizes its own input; 8 of 16 channels of its input are never negative"


def test_a_second_relu_does_not_bring_the_signs_back():
    model = Concatenation(nn.ReLU(), nn.AvgPool2d(2), nn.ReLU())
    with pytest.warns(RuntimeWarning, match="layer 'c': 8 of 16 channels of the input of between are never negative"):
        sk.prepare(model, torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    "second", [nn.Identity(), nn.GELU(), nn.Tanh(), nn.BatchNorm2d(8)], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("between", [nn.Identity(), nn.BatchNorm2d(16), nn.ReLU()], ids=lambda m: type(m).__name__)
def test_channels_that_are_positive_by_chance_are_not_counted(second, between):
    model = Concatenation(second, nn.AvgPool2d(2), between)
    nn.init.constant_(model.b.bias, 9.0)  # no entry is negative for these inputs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sk.prepare(model, torch.randn(1, 3, 4, 4))


class Generated(nn.Module):
    """The weights of a convolution come from layers that read a parameter without a batch dimension."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.code, self.expand, self.weights = nn.Parameter(torch.ones(5)), nn.Linear(5, 6), nn.Linear(6, 16)

    def forward(self, x):
        x = self.stem(x)
        weights = self.weights(torch.tanh(self.expand(self.code))).view(4, 4, 1, 1)
        return self.head(self.conv(F.conv2d(x, weights)))


@pytest.mark.parametrize("binarize", ["both", "weights"])
def test_inputs_without_a_batch_are_refused_behind_the_first_layer_too(binarize):
    with pytest.raises(ValueError, match=r"layer 'weights': its input of shape \[6\] has no batch dimension"):
        sk.prepare(Generated(), IMAGES, binarize=binarize, keep_first=False)
    _, report = sk.prepare(Generated(), IMAGES, binarize=binarize, keep_first=False, on_refusal="keep")
    assert "its input of shape [5] has no batch dimension" in rows_of(report)["expand"].reason
    assert report.binarized() == ["stem", "conv"]
