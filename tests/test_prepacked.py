"""PrepackedConv2d is nn.Conv2d, bit for bit."""

import copy

import pytest
import torch
from helpers import assert_same_bits
from torch import nn

from stompp_kernels.nn import PrepackedConv2d

CASES = [
    (3, 16, 7, {"stride": 2, "padding": 3}),
    (64, 40, 1, {"stride": 2, "bias": False}),
    (16, 16, 3, {"groups": 16, "padding": 1}),
    (10, 6, (3, 1), {"dilation": 2, "groups": 2}),
    (8, 8, 3, {"padding": "same"}),
    (8, 8, 3, {"padding": 1, "padding_mode": "reflect"}),
]


def pair(case):
    torch.manual_seed(0)
    channels, outputs, kernel, options = case
    conv = nn.Conv2d(channels, outputs, kernel, **options).eval().requires_grad_(False)
    return conv.to(memory_format=torch.channels_last), torch.randn(2, channels, 13, 12)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_results_are_torchs(case, format):
    conv, x = pair(case)
    x = x.contiguous(memory_format=format)
    twin = PrepackedConv2d.of(conv)
    for _ in range(2):
        assert_same_bits(twin(x), conv(x))
    assert repr(twin) == repr(conv).replace("Conv2d", "PrepackedConv2d")
    assert twin.state_dict().keys() == conv.state_dict().keys()


def test_changed_weights_are_packed_again():
    conv, x = pair(CASES[1])
    x = x.contiguous(memory_format=torch.channels_last)
    twin = PrepackedConv2d.of(conv)
    twin(x)
    assert twin._reordered is not None
    copied = copy.deepcopy(twin)
    conv.weight.mul_(-0.5)
    assert_same_bits(twin(x), conv(x))
    twin.load_state_dict({"weight": torch.ones_like(conv.weight)})
    assert_same_bits(twin(x), conv(x), "shared parameters")
    assert not torch.equal(copied(x), conv(x))


def test_gradients_pass():
    conv, x = pair(CASES[0])
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    PrepackedConv2d.of(conv)(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_autocast_holds():
    conv, x = pair(CASES[0])
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert PrepackedConv2d.of(conv)(x).dtype is torch.bfloat16
