"""Packed networks under other types: cast to them, converted under them; and what their layers tell of themselves."""

import copy

import pytest
import torch
from models_for_tests import NETS, binary_layers, committed, float_convs_of, set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import BinaryWeightLayer, PackedConv2d, PackedOnFloats
from stompp_kernels.nn.gives_floats import GivesFloats, narrowed
from stompp_kernels.nn.packed import PackedLayer

CASTS = [torch.bfloat16, torch.float16, torch.float64]
# For outputs of order 1: what is left in float has 8 or 11 bits.
TOLERANCES = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-4}


def converted(name, by_layer, binarize="both"):
    model, x = committed(name, 2, binarize=binarize)
    return sk.convert(model, verify=x, by_layer=by_layer), x


@pytest.mark.sweep(4)
@pytest.mark.parametrize("binarize", ["both", "weights"])
@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", CASTS)
def test_networks_are_cast(dtype, name, by_layer, binarize):
    packed, x = converted(name, by_layer, binarize)
    expected = packed(x)
    cast = copy.deepcopy(packed).to(dtype)
    y = cast(x.to(dtype))
    assert y.dtype is dtype
    # Signs of what rounds differently may flip, so only most of the outputs are near; float64 rounds no differently.
    error = (y.double() - expected.double()).abs() / expected.double().abs().max()
    assert float(error.median()) <= TOLERANCES[dtype]
    assert {module.dtype for module in cast.modules() if isinstance(module, GivesFloats)} == {dtype}
    for layer in cast.modules():
        if isinstance(layer, PackedLayer):
            assert layer.weight.dtype is dtype
            assert {buffer.dtype for buffer in layer.buffers()} <= {torch.float32, torch.int32}
    if dtype is torch.float64:
        assert torch.equal(cast.float()(x), expected), "and back"
    assert torch.equal(packed(x), expected), "the original stays"


@pytest.mark.parametrize("torch_s", [True, False])
@pytest.mark.parametrize("way", ["bfloat16", "half", "double", "to", "type"])
def test_every_way_to_cast(way, torch_s):
    model, x = committed("residual", 1)
    with float_convs_of(torch_s):
        packed = sk.convert(model)
    dtype = {"bfloat16": torch.bfloat16, "half": torch.float16, "double": torch.float64}.get(way, torch.bfloat16)
    if way in ("to", "type"):
        cast = packed.to("cpu", dtype) if way == "to" else packed.type(dtype)
    else:
        cast = getattr(packed, way)()
    assert cast(x.to(dtype)).dtype is dtype


@pytest.mark.parametrize("dtype", [torch.float32, *CASTS])
def test_files_hold_networks_of_every_type(tmp_path, dtype):
    packed, x = converted("residual", False)
    file = tmp_path / "net.safetensors"
    sk.save_packed(packed, file)
    loaded, cast, x = sk.load_packed(file).to(dtype), packed.to(dtype), x.to(dtype)
    assert torch.equal(loaded(x), cast(x))
    sk.save_packed(cast, file)
    assert torch.equal(sk.load_packed(file)(x), cast(x))
    next(module for module in cast.modules() if isinstance(module, PackedLayer)).half()
    if dtype is not torch.float16:
        with pytest.raises(ValueError, match=rf"must have the type of its parameters, {dtype}, .*got torch\.float16"):
            sk.save_packed(cast, file)


@pytest.mark.parametrize("by_layer", [False, True])
def test_other_types_are_refused(by_layer):
    packed, _ = converted("mlp", by_layer)
    with pytest.raises(TypeError, match=r"can be cast to torch\.float32, .*, got torch\.complex64"), pytest.warns():
        packed.to(torch.complex64)


@pytest.mark.parametrize("by_layer", [False, True])
def test_autocast_leaves_a_network_callable(by_layer):
    packed, x = converted("residual", by_layer)
    with torch.autocast("cpu", torch.bfloat16):
        y = packed(x)
    assert float((y.float() - packed(x)).abs().median()) < 0.1


def test_float64_keeps_signs_that_float32_cannot_hold():
    x = torch.tensor([-1e-300, 1e-300, -0.0, 0.0, -1.0, float("nan"), float("-inf")], dtype=torch.float64)
    assert (narrowed(x) < 0).tolist() == (x < 0).tolist()
    assert narrowed(x).dtype is torch.float32
    assert torch.equal(narrowed(x)[4:5], torch.tensor([-1.0]))
    for dtype in (torch.float32, torch.bfloat16):
        y = torch.ones(2, dtype=dtype)
        assert narrowed(y) is y


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_default_type_does_not_matter(name, by_layer, default):
    model, x = committed(name, 3)
    expected = sk.convert(model, verify=x, by_layer=by_layer)
    torch.set_default_dtype(default)
    try:
        packed = sk.convert(model, verify=x, by_layer=by_layer)
        y = packed(x)
        copy.deepcopy(packed).to(torch.bfloat16)(x.bfloat16())
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(y, expected(x))
    tensors, wanted = packed.state_dict(), expected.state_dict()
    assert {key: t.dtype for key, t in tensors.items()} == {key: t.dtype for key, t in wanted.items()}
    assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)


def attributes(layer):
    names = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding")
    names = (*names, "dilation", "groups")
    found = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    weight = layer.weight
    found |= {name: getattr(weight, name) for name in ("dtype", "device", "ndim")}
    return found | {"shape": tuple(weight.shape), "numel": weight.numel(), "dim": weight.dim(), "size": weight.size(0)}


@pytest.mark.parametrize("binarize", ["both", "weights"])
@pytest.mark.parametrize("name", NETS)
def test_layers_answer_what_models_ask_of_float_ones(name, binarize):
    model, _ = committed(name, 2, binarize=binarize)
    packed = sk.convert(model, by_layer=True)
    floats = NETS[name][0]()
    for layer_name in binary_layers(model):
        twin, original = packed.get_submodule(layer_name), floats.get_submodule(layer_name)
        expected = attributes(original)
        assert attributes(model.get_submodule(layer_name)) == expected
        assert attributes(twin) == expected
        assert not twin.weight.requires_grad
        assert hasattr(twin, "bias")
        assert isinstance(twin, (PackedOnFloats, BinaryWeightLayer, PackedLayer))
    packed.to(torch.bfloat16)
    assert {packed.get_submodule(n).weight.dtype for n in binary_layers(model)} == {torch.bfloat16}


def test_layers_of_a_graph_answer_too():
    packed, _ = converted("residual", False)
    conv = next(module for module in packed.modules() if isinstance(module, PackedConv2d) and module.has_thresholds)
    assert conv.in_channels == conv.out_channels == 5
    assert conv.kernel_size == (3, 3)
    assert conv.bias is None
    with pytest.raises(AttributeError):
        conv.in_features  # noqa: B018


@pytest.mark.parametrize("padding_value", [0, 1])
def test_a_binary_convolution_tells_its_padding_mode(padding_value):
    layer = sk.nn.BinaryConv2d(3, 4, 3, padding=1, padding_value=padding_value)
    assert layer.padding_mode == ("zeros" if padding_value == 0 else "constant")


@pytest.mark.parametrize("kind", ["T5EncoderModel", "T5ForConditionalGeneration"])
def test_models_that_ask_for_a_weight_s_type(kind):
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=100, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    x = {"input_ids": torch.randint(5, 90, (2, 16))}
    if kind == "T5ForConditionalGeneration":
        x["decoder_input_ids"] = torch.randint(5, 90, (2, 6))
    model, report = sk.prepare(getattr(transformers, kind)(config).eval(), x)
    assert any(name.endswith("wo") for name in report.binarized())
    set_stage(model, sk.nn.Stage.BINARY).eval()
    with torch.no_grad():
        expected, y = model(**x)[0], sk.convert(model, verify=x)(**x)[0]
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        assert sk.convert(model).to(torch.bfloat16)(**x)[0].dtype is torch.bfloat16


def test_a_packed_weight_is_no_tensor():
    packed, _ = converted("mlp", True)
    weight, x = packed.fc2.weight, torch.ones(1, 40)
    for use in (lambda: nn.functional.linear(x, weight), lambda: torch.relu(weight)):
        with pytest.raises(TypeError, match="must be given floats, got a packed weight, which holds signs as bits"):
            use()
