"""Verification of packed networks: signs of floats that are zero but for rounding."""

import pytest
import torch
from models_for_tests import set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.verify import verify_packed
from stompp_kernels.nn import Stage


class Net(nn.Module):
    """What the first layer makes of zeros is its bias, of which a binary layer reads the signs."""

    def __init__(self, between, images):
        super().__init__()
        torch.manual_seed(0)
        kind, size = (nn.Conv2d, (1,)) if images else (nn.Linear, ())
        self.first, self.second, self.head = kind(4, 40, *size), kind(40, 8, *size), kind(8, 2, *size)
        self.between = between

    def forward(self, x):
        return self.head(self.second(self.between(self.first(x))))


def networks(between, images, x, bias):
    """A committed model and the packed network of one whose first bias has the other sign."""
    model, report = sk.prepare(Net(between, images), x)
    assert report.binarized() == ["second"]
    set_stage(model, Stage.BINARY).eval()
    model.first.bias.data.fill_(-bias)
    packed = sk.convert(model)
    model.first.bias.data.fill_(bias)
    return model, packed


BETWEEN = {"activation": nn.ReLU, "own": nn.Tanh}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("images", [False, True])
def test_signs_of_what_is_zero_to_rounding_may_differ(between, images, g):
    x = torch.randn(3, 4, 2, 2, generator=g) if images else torch.randn(3, 4, generator=g)
    x[1] = 0.0
    model, packed = networks(BETWEEN[between](), images, x, 1e-6)
    with torch.no_grad(), sk.float_simulation():
        assert not torch.allclose(packed(x)[1], model(x)[1], atol=0.01)
    verify_packed(model, packed, x)
    model, packed = networks(BETWEEN[between](), images, x, 0.1)
    with pytest.raises(ValueError, match="differs at between in" if between == "activation" else "output differs"):
        verify_packed(model, packed, x)


def test_signs_of_integers_may_not_differ(g):
    x = torch.randn(3, 4, generator=g)
    net = nn.Sequential(*(nn.Linear(*sizes) for sizes in ((4, 40), (40, 32))), nn.ReLU(), nn.Linear(32, 8))
    model, _ = sk.prepare(nn.Sequential(*net, nn.Linear(8, 2)), x)
    set_stage(model, Stage.BINARY).eval()
    model[1].bias.data.zero_()  # sums of 40 signs may be zero
    packed = sk.convert(model)
    verify_packed(model, packed, x)
    fused = next(module for module in packed.modules() if getattr(module, "has_thresholds", False))
    fused.thresholds += 2  # sums of 40 signs are even
    with pytest.raises(ValueError, match="differs at 2 in"):
        verify_packed(model, packed, x)
