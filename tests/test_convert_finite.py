"""A model that holds NaN, inf or impossible statistics is refused by name, and NaN is equal to nothing."""

import math
import re

import pytest
import torch
from models_for_tests import committed, make, set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.verify import verify_packed

TENSORS = {
    "blocks.0.conv1.weight": "a latent weight",
    "blocks.0.conv1.alpha": "a scale",
    "blocks.0.bn1.weight": "gamma",
    "blocks.0.bn1.bias": "beta",
    "blocks.0.bn1.running_mean": "statistics",
    "blocks.0.bn1.running_var": "statistics",
    "conv1.weight": "a float layer's weight",
    "fc.bias": "a float layer's bias",
}


def tensor_of(model, name):
    owner, _, own = name.rpartition(".")
    return getattr(model.get_submodule(owner), own)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", TENSORS, ids=TENSORS.get)
def test_what_is_not_finite_is_refused_by_name(name, value, by_layer):
    model, x = committed("residual", scale="channel")
    sk.convert(model, verify=x)
    with torch.no_grad():
        tensor_of(model, name).view(-1)[1] = value
    what = "NaN" if math.isnan(value) else "inf"
    with pytest.raises(ValueError, match=rf"must hold finite numbers: {re.escape(name)} has 1 {what} of"):
        sk.convert(model, by_layer=by_layer)


def test_a_bias_and_an_input_scale_too():
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.Linear(8, 2))
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    model, _ = sk.prepare(model, x, scale="tensor", input_scale="tensor")
    set_stage(model, sk.nn.Stage.BINARY)
    for name in ("2.bias", "2.input_scale", "2.alpha"):
        tensor = tensor_of(model, name)
        kept = tensor.detach().clone()
        with torch.no_grad():
            tensor.fill_(math.nan)
        with pytest.raises(ValueError, match=f"{name} has {tensor.numel()} NaN of {tensor.numel()}"):
            sk.convert(model)
        with torch.no_grad():
            tensor.copy_(kept)
    model[2].alpha.zero_()
    with pytest.raises(ValueError, match=r"2\.alpha has a scale that is not positive, 0"):
        sk.convert(model)


def test_a_negative_variance_is_refused():
    model, _ = committed("mlp")
    model.bn2.running_var[3] = -0.5
    with pytest.raises(ValueError, match=r"bn2\.running_var has a negative variance, -0\.5"):
        sk.convert(model)


def test_the_first_of_many_are_named():
    model, _ = committed("residual")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    count = len(list(model.parameters()))
    with pytest.raises(ValueError, match=rf"conv1\.weight has .*bn1\.weight has .*, and {count - 5} more$"):
        sk.convert(model)


def test_a_mask_of_infinities_is_the_models_own_affair():
    model, x = committed("mlp")
    model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    sk.convert(model, verify=x)


class Returns(nn.Module):
    """A model that returns something else than its network computes."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x):
        return self.change(self.model(x))


def marked(value, at=0):
    def change(y):
        y = y.clone()
        y.view(-1)[at] = value
        return y

    return change


@pytest.mark.parametrize(
    ("expected", "found", "message"),
    [
        (math.nan, math.nan, r"by NaN: the packed network gives 1 of"),
        (math.nan, 0.0, r"by NaN: the model gives 1 of"),
        (0.0, math.nan, r"by NaN: the packed network gives 1 of"),
        (math.inf, 5.0, r"in 1 infinite values"),
        (5.0, math.inf, r"in 1 infinite values"),
        (math.inf, -math.inf, r"in 1 infinite values"),
        (-math.inf, -math.inf, None),
        (5.0, 5.0, None),
    ],
)
def test_outputs_that_are_not_finite_are_compared(expected, found, message):
    model, x = make("mlp")
    set_stage(model, sk.nn.Stage.BINARY).eval()
    packed = Returns(sk.convert(model, by_layer=True), marked(found)).eval()
    model = Returns(model, marked(expected)).eval()
    for layer in packed.modules():
        if isinstance(layer, sk.nn.packed.PackedLayer):
            layer.replaces = tuple(f"model.{name}" for name in layer.replaces)
    if message is None:
        verify_packed(model, packed, x)
    else:
        with pytest.raises(ValueError, match=f"output differs from the model's {message}"):
            verify_packed(model, packed, x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: (y, y), "in holding 2 values instead of 1"),
        (lambda y: y.double(), "of torch.float64 instead of"),
        (lambda y: None, "in holding 0 values instead of 1|in being None"),
        (lambda y: 3, "in being 3 instead of"),
    ],
)
def test_outputs_of_another_kind_differ(change, message):
    model, x = make("mlp")
    set_stage(model, sk.nn.Stage.BINARY).eval()
    packed = Returns(sk.convert(model, by_layer=True), change).eval()
    model = Returns(model, lambda y: y).eval()
    for layer in packed.modules():
        if isinstance(layer, sk.nn.packed.PackedLayer):
            layer.replaces = tuple(f"model.{name}" for name in layer.replaces)
    with pytest.raises(ValueError, match=message):
        verify_packed(model, packed, x)
