"""Float layers that multiply bfloat16: ops, modules, and networks converted with float_layers="fast"."""

import copy
import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import generator, random_signs
from models_for_tests import committed, set_stage
from safetensors import safe_open
from safetensors.torch import load_file
from test_serialize_modules import batch, of_transformers
from torch import nn

import stompp_kernels as sk
from stompp_kernels import native
from stompp_kernels.conversion.files import container
from stompp_kernels.nn import BFloat16Linear, FloatConv2d, Stage
from stompp_kernels.nn.bfloat16 import bfloat16_layers
from stompp_kernels.ops import Affine, Limits, conv2d_float, pack_float_weight, pack_signs, unpack_signs

# (channels, outputs, kernel, stride, padding, dilation, image)
SHAPES = [
    (3, 40, (7, 7), 2, 3, 1, (19, 33)),
    (64, 32, (1, 1), 1, 0, 1, (7, 5)),
    (70, 65, (1, 1), 2, 1, 1, (6, 9)),
    (33, 8, (3, 2), (1, 2), 1, 2, (9, 8)),
]


@pytest.fixture(params=[True, False], ids=["multiplies bfloat16", "does not"])
def multiplies(request, monkeypatch):
    """The processor has, or has no, instructions for products of bfloat16; without them the op multiplies floats."""
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: request.param)
    return request.param


def fast(model, x, **options):
    """The converted network and the texts of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        packed = sk.convert(model, float_layers="fast", compare_speed=False, **options)
    return packed, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("words", [False, True], ids=["floats", "words"])
@pytest.mark.parametrize("parts", [1, 2])
def test_sums_are_within_the_documented_bound(implementation, shape, words, parts, g):
    C, O, kernel, stride, padding, dilation, size = shape
    x = random_signs((2, C, *size), g) if words else torch.randn(2, C, *size, generator=g)
    w = torch.randn(O, C, *kernel, generator=g)
    exact, magnitudes = (
        F.conv2d(a.double(), b.double(), None, stride, padding, dilation) for a, b in ((x, w), (x.abs(), w.abs()))
    )
    read = pack_signs(x.permute(0, 2, 3, 1).contiguous()) if words else x
    y = conv2d_float(read, pack_float_weight(w, parts), stride, padding, dilation)
    bound = (2**-16 if words and parts == 2 else 2**-7) * magnitudes
    assert y.shape == exact.shape
    assert ((y - exact).abs() <= bound + 1e-30).all()


def test_epilogues_follow_the_same_sums(implementation, g):
    x, w = torch.randn(2, 3, 9, 40, generator=g), torch.randn(37, 3, 3, 3, generator=g)
    weight, scale, bias = pack_float_weight(w, 1), torch.randn(37, generator=g), torch.randn(37, generator=g)
    sums = conv2d_float(x, weight, 1, 1)
    channels = (-1, 1, 1)
    torch.testing.assert_close(
        conv2d_float(x, weight, 1, 1, epilogue=Affine(scale, bias)),
        sums * scale.view(channels) + bias.view(channels),
        rtol=0,
        atol=0,
    )
    low, high = scale, scale.abs() + 1
    words = conv2d_float(x, weight, 1, 1, epilogue=Limits(low, high))
    outside = (sums < low.view(channels)) | (sums > high.view(channels))
    assert torch.equal(unpack_signs(words, 37).permute(0, 3, 1, 2) < 0, outside)


def test_results_do_not_depend_on_threads(restore_threads, g):
    x, weight = torch.randn(3, 40, 9, 30, generator=g), pack_float_weight(torch.randn(70, 40, 3, 3, generator=g), 1)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(conv2d_float(x, weight, 1, 1))
    assert all(torch.equal(result, results[0]) for result in results)


def test_weights_are_the_sums_of_their_parts(g):
    w = torch.randn(40, 3, 5, 5, generator=g)
    for parts, bound in ((1, 2**-8), (2, 2**-16)):
        packed = pack_float_weight(w, parts)
        assert packed.data.dtype is torch.bfloat16
        assert packed.data.shape == (2, 3, parts, 16, 32, 2)
        error = (packed.unpacked() - w).abs() / w.abs()
        assert bound / 64 < error.max() <= bound
    with pytest.raises(ValueError, match="bfloat16_parts must be one of 0, 1, 2, got 3"):
        pack_float_weight(w, 3)
    with pytest.raises(RuntimeError, match="w must not require a gradient"):
        pack_float_weight(w.requires_grad_(), 1)


def test_weights_of_another_shape_are_refused(g):
    weight = pack_float_weight(torch.randn(40, 3, 5, 5, generator=g), 2)
    x = torch.randn(1, 3, 8, 8)
    for data in (weight.data[:1], weight.data[:, :2], weight.data[:, :, :, :8], weight.data.flatten(4)):
        with pytest.raises((ValueError, RuntimeError), match=r"weight.* must have shape|weight.*shape"):
            conv2d_float(x, sk.ops.FloatWeight(data, weight.shape))


def test_gradients_of_the_input_are_those_of_the_rounded_weights(g):
    x, w = torch.randn(1, 3, 8, 8, generator=g, requires_grad=True), torch.randn(4, 3, 3, 3, generator=g)
    weight = pack_float_weight(w, 1)
    (found,) = torch.autograd.grad(conv2d_float(x, weight, 1, 1).sum(), x)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight.unpacked(), None, 1, 1).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(5, 70), (2, 3, 70), (70,), (0, 70)])
def test_linear_layers(multiplies, shape, g):
    linear, x = nn.Linear(70, 45), torch.randn(shape, generator=g)
    layer = BFloat16Linear.of(linear)
    with torch.no_grad():
        y, expected = layer(x), linear(x)
    assert y.shape == expected.shape
    if not multiplies:
        assert torch.equal(y, expected)
    assert layer.arithmetic == ("bfloat16" if multiplies else "float32")
    torch.testing.assert_close(y, expected, rtol=0, atol=0.03)
    assert layer.state_dict().keys() == linear.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(layer)(x), y)
        torch.testing.assert_close(layer.double()(x.double()), linear.double()(x.double()))


def test_linear_layers_follow_their_weights(monkeypatch, g):
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: True)
    layer, other, x = BFloat16Linear(64, 8), nn.Linear(64, 8), torch.randn(3, 64, generator=g)
    layer.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(layer(x), other(x), rtol=0, atol=0.03)
        assert torch.equal(layer.half().float()(x), layer(x))


def test_networks_say_what_is_multiplied(multiplies):
    model, x = committed("residual")
    packed, texts = fast(model, x, verify=x)
    rows = {row.name: row for row in sk.explain(packed).rows}
    stem, projection, head = rows["conv1_signs"], rows["blocks.1.downsample.0"], rows["fc"]
    if multiplies:
        assert stem.arithmetic == head.arithmetic == "bfloat16"
        assert projection.arithmetic == "bfloat16, weights in two parts"
        assert any("changes the outputs by" in text for text in texts)
    else:
        assert stem.arithmetic == projection.arithmetic == head.arithmetic == "float32"
        assert "no effect" in stem.reason
        assert "no effect" in head.reason
        assert any("does not multiply bfloat16, so all float layers run in float32" in text for text in texts)
    assert all(row.arithmetic.startswith("bits") for row in rows.values() if row.kernel.startswith("bconv2d"))
    assert "bits, then float32" in str(sk.explain(packed))
    kept = [p.dtype for p in packed.state_dict().values()]
    assert torch.bfloat16 not in kept


def test_exact_networks_have_no_such_layers():
    model, x = committed("residual")
    packed = sk.convert(model, verify=x, float_layers="exact")
    assert not bfloat16_layers(packed)
    assert {row.arithmetic for row in sk.explain(packed).rows} <= {"bits", "bits, then float32", "float32"}
    with pytest.raises(ValueError, match="float_layers must be one of 'exact', 'fast', got 'quick'"):
        sk.convert(model, float_layers="quick")


def test_files_keep_the_choice_and_exact_weights(multiplies, tmp_path):
    model, x = committed("residual")
    packed, _ = fast(model, x)
    path = tmp_path / "net.safetensors"
    sk.save_packed(packed, path)
    loaded = sk.load_packed(path)
    assert bfloat16_layers(loaded).keys() == bfloat16_layers(packed).keys() != set()
    with torch.no_grad():
        assert torch.equal(loaded(x), packed(x))
        assert torch.equal(copy.deepcopy(packed)(x), packed(x))
    assert not any(t.dtype is torch.bfloat16 for t in load_file(path).values())
    assert torch.equal(loaded.fc.weight, model.fc.weight)


def test_exported_networks_keep_the_choice(tmp_path):
    model, x = committed("residual")
    packed, _ = fast(model, x)
    program = sk.export_packed(packed, tmp_path / "net.pt2", x)
    with torch.no_grad():
        torch.testing.assert_close(sk.load_exported(tmp_path / "net.pt2")(x), packed(x), rtol=0, atol=1e-4)
    if native.multiplies_bfloat16():
        assert torch.bfloat16 in {t.dtype for t in program.constants.values() if isinstance(t, torch.Tensor)}


@pytest.mark.sweep(2)
def test_models_converted_layer_by_layer(multiplies, tmp_path, monkeypatch):
    exact = of_transformers("BertForSequenceClassification", num_labels=3)
    monkeypatch.setattr(sk, "convert", lambda model, convert=sk.convert: convert(model, float_layers="fast"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = of_transformers("BertForSequenceClassification", num_labels=3)
    linear = {name for name, layer in bfloat16_layers(packed).items() if isinstance(layer, BFloat16Linear)}
    assert linear == {"bert.pooler.dense", "classifier"}
    path = tmp_path / "bert.safetensors"
    sk.save_packed(packed, path)
    loaded = sk.load_packed(path)
    assert set(bfloat16_layers(loaded)) == set(bfloat16_layers(packed))
    x = batch(4)
    with torch.no_grad():
        y, same, wanted = (network(**x).logits for network in (packed, loaded, exact))
    assert torch.equal(same, y)
    torch.testing.assert_close(y, wanted, rtol=0, atol=0.02)
    rows = {row.name: row for row in sk.explain(loaded).rows}
    assert rows["classifier"].arithmetic == ("bfloat16" if multiplies else "float32")
    forge(path, tmp_path / "forged.safetensors", lambda structure: structure.update(bfloat16=["bert.embeddings"]))
    with pytest.raises(ValueError, match=r"'bert\.embeddings' of type BertEmbeddings cannot multiply bfloat16"):
        sk.load_packed(tmp_path / "forged.safetensors")
    forge(path, tmp_path / "forged.safetensors", lambda structure: structure.update(bfloat16="classifier"))
    with pytest.raises(ValueError, match=r"bfloat16 must be a list of names, got .classifier."):
        sk.load_packed(tmp_path / "forged.safetensors")


def forge(path, other, change):
    """Writes a file with a changed structure and the checksum of that."""
    with safe_open(path, "pt") as file:
        structure = json.loads(file.metadata()["structure"])
    change(structure)
    other.write_bytes(container.to_bytes(structure, load_file(path)))


def test_forged_settings_are_refused(tmp_path):
    model, x = committed("residual")
    path, forged = tmp_path / "net.safetensors", tmp_path / "forged.safetensors"
    sk.save_packed(fast(model, x)[0], path)
    forge(path, forged, lambda s: s["modules"]["conv1_signs"]["arguments"].update(bfloat16=1))
    with pytest.raises(
        ValueError, match=r"argument 'bfloat16' of module 'conv1_signs' .* must be true or false, got 1"
    ):
        sk.load_packed(forged)


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.act = nn.Conv2d(4, 8, 3, 1, 1, groups=2), nn.ReLU()
        self.layer, self.head = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.head(self.layer(self.act(self.stem(x))))


def test_layers_that_stay_exact_are_named(monkeypatch):
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: True)
    x = torch.randn(2, 4, 6, 6, generator=generator(0))
    model, _ = sk.prepare(Grouped(), x)
    packed, texts = fast(set_stage(model, Stage.BINARY).eval(), x, verify=x)
    assert any("leaves these layers in float32" in text and "stem (PrepackedConv2d)" in text for text in texts)
    assert set(bfloat16_layers(packed)) == {"head"}


def test_what_bfloat16_changes_is_measured_and_a_wrong_layer_named(monkeypatch):
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: True)
    model, x = committed("residual")
    _, texts = fast(model, x, verify=x)
    (text,) = (text for text in texts if "changes the outputs" in text)
    share = float(text.split("outputs by ")[1].split()[0])
    assert 0 < share < 1
    assert "of the signs of activations" in text
    wrong = FloatConv2d.round_weight

    def doubled(self):
        wrong(self)
        if self.rounded is not None and self.reads == "bits":
            self.rounded = self.rounded * 2

    monkeypatch.setattr(FloatConv2d, "round_weight", doubled)
    with pytest.raises(ValueError, match=r"blocks.1.downsample.0 multiplies bfloat16 and is off by 1 of its output"):
        sk.convert(model, verify=x, float_layers="fast")
