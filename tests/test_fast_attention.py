"""Attention that multiplies bfloat16: its module, and networks converted with float_layers="fast"."""

import copy
import json
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import generator
from models_for_tests import set_stage
from safetensors import safe_open
from test_fast_float_layers import fast, forge
from test_serialize_modules import HIDDEN, KEEP, SIZES, batch
from torch import nn

import stompp_kernels as sk
from stompp_kernels import native
from stompp_kernels.conversion.profile import profile
from stompp_kernels.nn import BFloat16Attention, Stage
from stompp_kernels.nn.bfloat16 import bfloat16_layers, in_float32
from stompp_kernels.nn.bfloat16_attention import CHILD

transformers = pytest.importorskip("transformers")

NO_BFLOAT16 = "this processor does not multiply bfloat16"


@pytest.fixture(params=[True, False], ids=["multiplies bfloat16", "does not"])
def multiplies(request, monkeypatch):
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: request.param)
    return request.param


def heads(g, batch=2, count=3, queries=100, keys=97, channels=24):
    """Queries, keys and values as a network has them: the heads of a token lie beside each other."""
    sizes = (batch, queries, count, channels), (batch, keys, count, channels), (batch, keys, count, channels)
    return [torch.randn(size, generator=g).transpose(1, 2) for size in sizes]


def masks(g):
    """By name; query 3 sees no key, or all alike."""
    hidden = torch.rand(2, 1, 100, 97, generator=g) < 0.3
    hidden[:, :, 3] = True
    return {
        "bool": ~hidden,
        "floats": torch.randn(2, 3, 1, 97, generator=g).masked_fill(hidden[:, :, :1], -torch.inf),
        "the lowest floats": torch.zeros(100, 97).masked_fill(hidden[0, 0], torch.finfo(torch.float32).min),
        "large floats": 1000 + 4 * torch.randn(100, 97, generator=g),
    }


@pytest.mark.parametrize("mask", [None, *masks(generator(0))])
@pytest.mark.parametrize("sizes", [{}, {"channels": 1}, {"count": 1, "channels": 65}], ids=str)
def test_masks_count_as_they_are(multiplies, mask, sizes, g):
    given = None if mask is None else masks(g)[mask]
    tensors = heads(g, **{"count": 3 if given is None or given.shape[:2] == (2, 3) else 1, **sizes})
    if given is not None and given.dim() == 4:
        given = given[:, : tensors[0].shape[1]]
    exact, found = F.scaled_dot_product_attention(*tensors, given), BFloat16Attention()(*tensors, given)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05 if multiplies else 0, equal_nan=True)


@pytest.mark.parametrize(("queries", "keys"), [(100, 100), (96, 130), (130, 96)])
def test_causal_attention_and_scales(multiplies, queries, keys, g):
    tensors = heads(g, queries=queries, keys=keys)
    for options in ({"is_causal": True}, {"is_causal": True, "scale": 0.5}, {"scale": -0.2}, {"scale": 0.0}):
        exact, found = F.scaled_dot_product_attention(*tensors, **options), BFloat16Attention()(*tensors, **options)
        torch.testing.assert_close(found, exact, rtol=0, atol=0.06 if multiplies else 0)


def cases_in_float32(g):
    """By name, arguments that the module leaves to torch."""
    query, key, value = heads(g)
    return {
        "few queries": (heads(g, queries=95), {}),
        "few keys": (heads(g, keys=95), {}),
        "float64": ([x.double() for x in (query, key, value)], {}),
        "three dimensions": ([x[0] for x in (query, key, value)], {}),
        "grouped heads": ([query[:, :2], key[:, :1], value[:, :1]], {"enable_gqa": True}),
        "other channels": ([query, key, value[..., :7]], {}),
        "a mask of other floats": ([x.double() for x in (query, key, value, torch.zeros(100, 97))], {}),
        "one token": (heads(g, queries=1, keys=1), {}),
        "an empty batch": ([x[:0] for x in (query, key, value)], {}),
        "a gradient": ([query.clone().requires_grad_(), key, value], {}),
    }


@pytest.mark.parametrize("name", cases_in_float32(generator(0)))
def test_what_does_not_fit_is_torchs(name, monkeypatch, g):
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: True)
    args, kwargs = cases_in_float32(g)[name]
    assert torch.equal(BFloat16Attention()(*args, **kwargs), F.scaled_dot_product_attention(*args, **kwargs))


def test_dropout_and_autocast_are_torchs(monkeypatch, g):
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: True)
    layer, tensors = BFloat16Attention(), heads(g)
    assert torch.equal(layer(*tensors, dropout_p=1.0), F.scaled_dot_product_attention(*tensors, dropout_p=1.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(*tensors).dtype is torch.bfloat16


def test_the_module_multiplies_bfloat16_where_the_processor_does(multiplies, g):
    layer, tensors = BFloat16Attention(), heads(g)
    exact, found = F.scaled_dot_product_attention(*tensors), layer(*tensors)
    assert layer.arithmetic == ("bfloat16" if multiplies else "float32")
    assert layer.state_dict() == {}
    assert torch.equal(found, exact) != multiplies
    torch.testing.assert_close(found, exact, rtol=0, atol=0.04)
    with in_float32(layer):
        assert torch.equal(layer(*tensors), exact)
    assert torch.equal(copy.deepcopy(layer)(*tensors), found)


@pytest.mark.skipif(not native.multiplies_bfloat16(), reason=NO_BFLOAT16)
def test_another_implementation_multiplies_float32(g):
    layer, tensors = BFloat16Attention(), heads(g)
    exact = F.scaled_dot_product_attention(*tensors)
    assert not torch.equal(layer(*tensors), exact)
    with sk.use_implementation("scalar"):
        assert torch.equal(layer(*tensors), exact)


class Attending(nn.Module):
    """One layer of attention between binarized layers, which torch.fx traces; every other token is masked."""

    def __init__(self, masked=True, tokens=100):
        super().__init__()
        self.embed, self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(4))
        self.out, self.head = nn.Linear(24, 24), nn.Linear(24, 3)
        hidden = torch.zeros(tokens).masked_fill(torch.arange(tokens) % 2 == 1, -torch.inf)
        self.register_buffer("mask", hidden[None] if masked else None)

    def forward(self, x):
        x = self.embed(x)
        q, k, v = (layer(x).unflatten(-1, (2, 12)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(value=v, key=k, query=q, attn_mask=self.mask, scale=0.03)
        return self.head(self.out(y.transpose(1, 2).flatten(2)).mean(1)) + torch.bmm(x[:, :3, :3], x[:, :3, :3])[:, 0]


def committed(model, x):
    model, _ = sk.prepare(model, x)
    return set_stage(model, Stage.BINARY).eval()


X = torch.randn(2, 100, 24, generator=generator(3))


@pytest.mark.parametrize("masked", [True, False])
def test_traced_networks(multiplies, masked, tmp_path):
    model = committed(Attending(masked), X)
    exact = sk.convert(model, verify=X, compare_speed=False)
    packed, texts = fast(model, X, verify=X)
    assert CHILD in bfloat16_layers(packed)
    assert not bfloat16_layers(exact)
    assert packed.state_dict().keys() == exact.state_dict().keys()
    row = {row.name: row for row in sk.explain(packed).rows}[CHILD]
    assert row.kernel == "BFloat16Attention"
    assert row.arithmetic == ("bfloat16" if multiplies else "float32")
    assert ("no effect" in row.reason) != multiplies
    timed = {time.name: time for time in profile(packed, X, seconds=0.01)}[CHILD]
    assert timed.operations == 2 * 2 * 2 * 100 * 100 * 12 * 2
    (warned,) = [text for text in texts if ("leaves these layers" if multiplies else "changes nothing here") in text]
    assert "bmm (bmm)" in warned or not multiplies
    with torch.no_grad():
        y = packed(X)
        assert multiplies or torch.equal(y, exact(X))
        path = tmp_path / "net.safetensors"
        sk.save_packed(packed, path)
        loaded = sk.load_packed(path)
        assert torch.equal(loaded(X), y)
        assert torch.equal(copy.deepcopy(packed)(X), y)
    assert bfloat16_layers(loaded).keys() == bfloat16_layers(packed).keys()


def test_traced_networks_are_exported_and_compiled(tmp_path):
    packed, _ = fast(committed(Attending(), X), X)
    sk.export_packed(packed, tmp_path / "net.pt2", X)
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        y = packed(X)
        torch.testing.assert_close(sk.load_exported(tmp_path / "net.pt2")(X), y, rtol=0, atol=1e-4)
        torch.testing.assert_close(compiled(X), y, rtol=0, atol=1e-4)
    if native.multiplies_bfloat16():
        casts = [
            node.kwargs.get("dtype") or node.args[1:] for node in sk.load_exported(tmp_path / "net.pt2").graph.nodes
        ]
        assert "torch.bfloat16" in str(casts)


def test_forged_modules_are_refused(tmp_path):
    path, forged = tmp_path / "net.safetensors", tmp_path / "forged.safetensors"
    sk.save_packed(fast(committed(Attending(), X), X)[0], path)
    forge(path, forged, lambda s: s["modules"][CHILD]["arguments"].update(heads=2))
    with pytest.raises(ValueError, match=f"module '{CHILD}' of type BFloat16Attention"):
        sk.load_packed(forged)


def test_an_attention_that_is_off_is_named(monkeypatch):
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: True)
    right = BFloat16Attention.forward
    monkeypatch.setattr(
        BFloat16Attention,
        "forward",
        lambda self, *args, **kwargs: right(self, *args, **kwargs) * (1 if self._in_float32 else 1.02),
    )
    with pytest.raises(ValueError, match=f"{CHILD} multiplies bfloat16 and is off by 0.02[0-9]* of its output's norm"):
        fast(committed(Attending(), X), X, verify=X)


def of_transformers(name, float_layers, attn_implementation=None, **options):
    """The packed model, and the texts of the warnings."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "attn_implementation": attn_implementation}
    config = kind.config_class(**{**SIZES, **HIDDEN, **tokens, **options, "max_position_embeddings": 128})
    model, _ = sk.prepare(kind(config).eval(), batch(1), keep_first=False, keep_last=False, keep=KEEP)
    set_stage(model, Stage.BINARY)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        packed = sk.convert(model, float_layers=float_layers, compare_speed=False)
    assert model.config._attn_implementation == (attn_implementation or "sdpa")
    assert all(CHILD not in dict(module.named_children()) for module in model.modules())
    return packed, [str(warning.message) for warning in caught]


ATTENDING = ["bert.encoder.layer.0.attention.self", "bert.encoder.layer.1.attention.self"]


def test_models_of_transformers(multiplies, tmp_path):
    exact, _ = of_transformers("BertForSequenceClassification", "exact")
    packed, _ = of_transformers("BertForSequenceClassification", "fast")
    children = {f"{name}.{CHILD}" for name in ATTENDING}
    assert children <= bfloat16_layers(packed).keys()
    assert packed.config._attn_implementation == "sdpa"
    assert packed.state_dict().keys() == exact.state_dict().keys()
    rows = {row.name: row for row in sk.explain(packed).rows}
    assert {rows[name].arithmetic for name in children} == {"bfloat16" if multiplies else "float32"}
    path = tmp_path / "bert.safetensors"
    sk.save_packed(packed, path)
    with safe_open(path, "pt") as file:
        assert set(ATTENDING) < set(json.loads(file.metadata()["structure"])["bfloat16"])
    inputs, few = batch(3, 100), batch(3, 10)
    with torch.no_grad():
        torch.testing.assert_close(packed(**few).logits, exact(**few).logits, rtol=0, atol=0.02)
        wanted, y = exact(**inputs).logits, packed(**inputs).logits
        for other in (sk.load_packed(path), pickle.loads(pickle.dumps(packed))):
            assert torch.equal(other(**inputs).logits, y)
            assert bfloat16_layers(other).keys() == bfloat16_layers(packed).keys()
    if not multiplies:
        assert torch.equal(y, wanted)
    torch.testing.assert_close(y, wanted, rtol=0, atol=0.1)


def test_causal_and_grouped_heads_of_transformers(monkeypatch):
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: True)
    options = {"num_key_value_heads": 1, "num_attention_heads": 2, "head_dim": 16}
    for name, more in (("GPT2LMHeadModel", {}), ("LlamaForCausalLM", options)):
        exact, _ = of_transformers(name, "exact", **more)
        packed, _ = of_transformers(name, "fast", **more)
        assert any(name.endswith(CHILD) for name in bfloat16_layers(packed))
        with torch.no_grad(), in_float32(packed):
            inputs = batch(2, 100)
            assert torch.equal(packed(**inputs).logits, exact(**inputs).logits)


def test_attention_that_stays_exact_is_named(monkeypatch):
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: True)
    packed, texts = of_transformers("BertForSequenceClassification", "fast", attn_implementation="eager")
    assert not any(name.endswith(CHILD) for name in bfloat16_layers(packed))
    (text,) = [text for text in texts if "leaves these layers in float32" in text]
    assert f"{ATTENDING[0]} (BertSelfAttention)" in text
    _, texts = of_transformers("BertForSequenceClassification", "fast")
    assert not any("leaves these layers in float32" in text for text in texts)
