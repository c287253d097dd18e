"""State dicts that were cast as a whole: loaded right, or refused with the key."""

import pytest
import torch
from helpers import assert_same_bits, generator, random_signs
from models_for_tests import set_stage

from stompp_kernels import nn, ops
from stompp_kernels.nn import Stage


def progressive_layer(stage, per_element=False):
    torch.manual_seed(3)
    layer = nn.BinaryLinear(3000, 6, bias=True, binarize_input=True, alpha=torch.rand(6) + 0.5)
    layer.input_activation.set_mask_shape((3000,))
    layer.input_activation.draw_per_element(per_element)
    return set_stage(layer, stage, "clip")


def packed_layers():
    g = generator(4)
    scale, bias = torch.rand(6, generator=g), torch.randn(6, generator=g)
    weight = ops.pack_weight(random_signs((6, 40), g))
    kernel = ops.pack_conv_weight(random_signs((6, 40, 2, 2), g))
    thresholds = torch.randint(-5000, 5000, (1, 6), generator=g, dtype=torch.int32)
    flips = torch.zeros(1, dtype=torch.int32)
    geometry = (1, 1), (0, 0), (1, 1), 0
    norm = nn.PackBatchNorm(40, False)
    norm.low.copy_(torch.randn(40, generator=g))
    conv = torch.nn.Conv2d(4, 6, 3)
    return {
        "affine": nn.PackedLinear(weight, ops.Affine(scale, bias)),
        "threshold": nn.PackedConv2d(kernel, ops.Threshold(thresholds, flips), *geometry),
        "binary weight": nn.BinaryWeightLinear(ops.pack_binary_weight(random_signs((6, 40), g)), scale, bias),
        "norm": norm,
        "float convolution": nn.FloatConv2d.of(conv, "floats", ops.Limits(scale, bias)),
    }


def cast(state, dtype, floats_only):
    return {k: v if floats_only and not v.is_floating_point() else v.to(dtype) for k, v in state.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("per_element", [False, True])
def test_progressive_layers(dtype, stage, per_element):
    layer, other = progressive_layer(stage, per_element), progressive_layer(Stage.SOFT, per_element)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"'mask_words' must be torch.int32, got") as refusal:
        other.load_state_dict(cast(layer.state_dict(), dtype, False))
    assert "'input_activation.mask_words'" in str(refusal.value)
    assert "'_extra_state' must be torch.int64" in str(refusal.value)
    assert ("'input_activation.draw'" in str(refusal.value)) == per_element
    for key, value in other.state_dict().items():
        assert_same_bits(value, before[key], key)
    other.load_state_dict(cast(layer.state_dict(), dtype, True))
    for key, value in layer.state_dict().items():
        wanted = value.to(dtype).to(value.dtype) if value.is_floating_point() else value
        assert_same_bits(other.state_dict()[key], wanted, key)
    assert other.stage is stage


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
@pytest.mark.parametrize("name", packed_layers())
def test_packed_layers(dtype, name):
    layer, other = packed_layers()[name], packed_layers()[name]
    state = layer.state_dict()
    for key, value in state.items():
        changed = {**state, key: value.to(dtype)}
        with pytest.raises(RuntimeError, match=f"'{key}' must be {value.dtype}, got {dtype}"):
            other.load_state_dict(changed)
    with pytest.raises(RuntimeError) as refusal:
        torch.nn.ModuleDict({"inner": other}).load_state_dict(
            {f"inner.{key}": value for key, value in cast(state, dtype, False).items()}
        )
    assert all(f"'inner.{key}'" in str(refusal.value) for key in state)
    other.load_state_dict(state)
    for key, value in state.items():
        assert_same_bits(other.state_dict()[key], value, key)
