"""Forwards as strangers write them: statements in place, old hooks, objects as outputs, what torch.fx cannot trace."""

import collections
import math
import types
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.verify import verify_packed
from stompp_kernels.nn import Stage
from stompp_kernels.progression.copies import copy_module

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Three layers, of which the second is binarized; what comes between is the subclass's."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        return self.between(self.a(x))

    def between(self, h):
        return self.c(self.b(h))


def committed(model, x=X):
    torch.manual_seed(0)
    prepared, report = sk.prepare(model, x, on_refusal="keep")
    assert report.binarized()
    return set_stage(prepared, Stage.BINARY).eval()


def tensors(output):
    return [t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]


def same(one, other):
    one, other = tensors(one), tensors(other)
    return len(one) == len(other) > 0 and all(map(torch.equal, one, other))


def saved_and_loaded(packed, path):
    sk.save_packed(packed, path / "net.safetensors")
    return sk.load_packed(path / "net.safetensors")


class OnValues(Net):
    def between(self, h):
        sizes = torch.zeros(len(h), 32) if h.dim() == 2 else None  # sizes of what stands for a tensor
        assert h.shape[0] < 100, f"at most 99 samples, got {h.shape[0]}"
        return self.c(self.b(h + sizes))


class Written(Net):
    def between(self, h):
        y = torch.empty_like(h)
        y[:, 1:], y[:, 0] = h[:, :-1], 0.5
        return self.c(self.b(y))


@torch.jit.script
def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


class Scripted(Net):
    def between(self, h):
        return self.c(swish(self.b(h)))


@pytest.mark.parametrize("kind", [OnValues, Written, Scripted])
def test_what_torch_fx_cannot_trace_is_converted_layer_by_layer_if_verified(kind, tmp_path):
    model = committed(kind())
    with pytest.warns(
        UserWarning,
        match="torch.fx cannot trace the model, so its layers are converted one by one, and each gives floats. "
        "The results are the same, but nothing is folded .* slower .*; by_layer=True asks for this without a warning",
    ):
        packed = sk.convert(model, verify=X)
    assert type(packed) is kind
    assert same(saved_and_loaded(packed, tmp_path)(X), packed(X))
    with pytest.raises(ValueError, match=r"cannot be traced by torch\.fx; by_layer=True"):
        sk.convert(model)
    with pytest.raises(ValueError, match=r"cannot be traced by torch\.fx; by_layer=True"):
        sk.convert(model, verify=X, by_layer=False)


class ChangedInPlace(Net):
    """Outputs of a layer and of a product are changed in place by who reads them, as Longformer's queries are."""

    def __init__(self):
        super().__init__()
        self.product = sk.nn.BinaryMatmul()

    def between(self, h):
        y = self.b(h)
        y /= 2.0
        z = self.product(y.unflatten(1, (4, 8)), y.unflatten(1, (4, 8)))
        z.neg_()
        return self.c(torch.cat([z, z], 1).flatten(1))


@pytest.mark.parametrize("by_layer", [False, True])
def test_outputs_that_are_changed_in_place_are_compared_as_they_were(by_layer):
    model = committed(ChangedInPlace())
    for product in (m for m in model.modules() if isinstance(m, sk.nn.BinaryMatmul)):
        product.commit()
    packed = sk.convert(model, verify=X, by_layer=by_layer)
    with sk.float_simulation():
        torch.testing.assert_close(packed(X), model(X))


class Counts(Net):
    """Changes its own buffers at each call, and reads them."""

    def forward(self, x):
        self.steps.add_(1)
        self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
        return self.between(self.a(x - self.mean)) * self.steps


class Statements(Net):
    """Functions in place whose results no one takes, of a tensor and of a part of one."""

    def between(self, h):
        h.mul_(2.0).sub_(0.1)
        F.elu(h, inplace=True)
        y = self.b(h)
        y.clamp_(-20, 20)
        y[:, :8].add_(1.0)
        torch.relu_(y)
        return self.c(y)


class Modules(Net):
    def __init__(self):
        super().__init__()
        self.act = nn.LeakyReLU(0.5, inplace=True)

    def between(self, h):
        y = self.b(h)
        self.act(y)
        return self.c(y)


@pytest.mark.parametrize("kind", [Counts, Statements, Modules])
def test_statements_in_place_are_no_dead_code(kind, tmp_path):
    model = committed(kind())
    packed = sk.convert(model, verify=X)
    assert isinstance(packed, torch.fx.GraphModule)
    assert float(packed.steps if kind is Counts else 0) == 0, "verify leaves no trace"
    loaded = saved_and_loaded(packed, tmp_path)
    for _ in range(2):
        y = packed(X)
        torch.testing.assert_close(y, model(X).detach(), rtol=1e-4, atol=1e-5)
        assert torch.equal(loaded(X), y)


class OldWeightNorm(nn.Module):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.a = nn.utils.weight_norm(nn.Conv1d(1, 16, 3, padding=1))
        self.b, self.c = nn.Conv1d(16, 16, 3, padding=2, dilation=2), nn.Conv1d(16, 16, 1)
        self.d, self.e = nn.utils.spectral_norm(nn.Linear(16, 16)), nn.Linear(16, 3)

    def forward(self, x):
        return self.e(torch.tanh(self.d(self.c(self.b(torch.tanh(self.a(x)))).amax(-1))))


def test_hooks_that_make_weights_are_constants(tmp_path):
    """torch's old weight_norm keeps a result of autograd as an attribute, which copy.deepcopy refuses."""
    x = X.reshape(2, 1, 16)
    model = committed(OldWeightNorm(), x)
    assert not model.a.weight.is_leaf or model.a.weight_g.requires_grad
    packed = sk.convert(model, verify=x)
    assert not any(module._forward_pre_hooks for module in packed.modules())
    assert model.a._forward_pre_hooks, "the model stays as it is"
    assert same(saved_and_loaded(packed, tmp_path)(x), packed(x))
    with torch.no_grad():
        assert torch.equal(copy_module(model)(x), model(x))


class Keeps(Net):
    """Keeps results of autograd: in a list of dicts, in an object, and as a buffer."""

    def between(self, h):
        self.levels = [{"mean": h.mean(), "features": (h, h + 1)}]
        self.record = types.SimpleNamespace(largest=h.amax())
        self.steps = 0.9 * self.steps + h.mean()
        return self.c(self.b(h))


def test_models_that_keep_results_of_autograd_are_prepared_again_and_converted():
    float_model = Keeps()
    float_model(X).sum().backward()
    assert not float_model.steps.is_leaf
    model = committed(float_model)
    model.train()
    model(X).sum().backward()
    packed = sk.convert(model.eval(), verify=X)
    assert not model.levels[0]["features"][0].is_leaf, "the model stays as it is"
    with sk.float_simulation():
        torch.testing.assert_close(packed(X), model(X))


@dataclass
class Found:
    logits: torch.Tensor
    hidden: tuple | None = None


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Objects(Net):
    def between(self, h):
        y = self.b(h)
        return {"found": [Found(self.c(y), hidden=Pair(y, -y))]}


class ObjectsOfSizes(Objects):
    def between(self, h):
        h = h + torch.zeros(h.shape[1])
        return super().between(h)


@pytest.mark.filterwarnings("ignore:torch.fx cannot trace")
@pytest.mark.parametrize("kind", [Objects, ObjectsOfSizes])
def test_objects_in_outputs_are_compared_saved_and_exported(kind, tmp_path):
    model = committed(kind())
    packed = sk.convert(model, verify=X)
    expected = packed(X)["found"][0]
    assert isinstance(expected, Found)
    plain = {"found": [{"logits": expected.logits, "hidden": (expected.hidden.first, expected.hidden.second)}]}
    sk.export_packed(packed, tmp_path / "net.pt2", X)
    for network in (saved_and_loaded(packed, tmp_path), sk.load_exported(tmp_path / "net.pt2")):
        found = network(X)
        assert same(found, plain)
        assert list(found["found"][0]) == ["logits", "hidden"]
        assert type(found["found"][0]["hidden"]) is tuple
    packed.c.bias += 1
    with pytest.raises(ValueError, match="output differs"):
        verify_packed(model, packed, X)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.rnn = nn.Embedding(30, 16), nn.LSTM(16, 16, batch_first=True)
        self.a, self.b, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 30)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids, attention_mask=None):
        y, _ = self.rnn(self.tokens(input_ids))
        return self.head(self.b(self.a(y)) * attention_mask[..., None])


def test_inputs_of_a_tokenizer_and_tied_float_weights(tmp_path):
    """Tokenizers of transformers give a UserDict."""
    ids = torch.arange(12).reshape(2, 6)
    inputs = collections.UserDict(input_ids=ids, attention_mask=torch.ones(2, 6))
    packed = sk.convert(committed(Tied(), inputs), verify=inputs)
    assert same(saved_and_loaded(packed, tmp_path)(**inputs), packed(**inputs))


class Sequences(nn.Module):
    """Attention and a recurrent layer, called with numbers and tuples, in a forward that torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.a, self.attention = nn.Linear(8, 32), nn.MultiheadAttention(32, 4, batch_first=True)
        self.rnn = nn.LSTM(32, 16, bidirectional=True, batch_first=True)
        self.b, self.up = nn.Linear(32, 32), nn.ConvTranspose1d(32, 32, 2, 2)
        self.c = nn.Linear(32, 4)

    def forward(self, x):
        h = self.a(x) + torch.zeros(x.shape[1], 32)
        y, weights = self.attention(h, h, h, need_weights=True, average_attn_weights=False)
        start = torch.zeros(2, len(x), 16)
        y, (last, _) = self.rnn(y, (start, start))
        y = self.up(self.b(y).transpose(1, 2), output_size=[2 * x.shape[1]]).transpose(1, 2)
        return self.c(y), weights, last


@pytest.mark.filterwarnings("ignore:torch.fx cannot trace")
def test_exported_graphs_call_float_modules_whatever_their_arguments(tmp_path):
    """torch runs attention by a fused kernel, but not while torch.export reads it: a module gives its own bits."""
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    packed = sk.convert(committed(Sequences(), x), verify=x)
    loaded = saved_and_loaded(packed, tmp_path)
    kinds = {type(module) for module in loaded.modules()}
    assert {nn.MultiheadAttention, nn.LSTM, nn.ConvTranspose1d} <= kinds
    assert same(loaded(x), packed(x))


class Unpooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 2, 3, 1, 1)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x):
        y, places = self.pool(self.a(x))
        return self.c(self.unpool(self.b(y), places, output_size=x.size()))


def test_unpooling_is_saved(tmp_path):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    packed = sk.convert(committed(Unpooled(), x), verify=x)
    assert same(saved_and_loaded(packed, tmp_path)(x), packed(x))


class Causal(nn.Module):
    """Attention with a mask, or with the kernel that needs none."""

    def __init__(self, masked, change=0.0):
        super().__init__()
        self.masked, self.change = masked, change

    def forward(self, x):
        q = x.unflatten(-1, (2, 4)).transpose(0, 1)[None]
        mask = torch.ones(len(x), len(x), dtype=torch.bool).tril() if self.masked else None
        y = F.scaled_dot_product_attention(q, q + 1, q - 1, attn_mask=mask, is_causal=not self.masked)
        return y * (1 + self.change)


class Sums(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return x @ x.T * (1 + self.change)


def test_exported_graphs_are_equal_to_the_bit_but_where_attention_runs_by_another_kernel():
    from stompp_kernels.conversion.files.exported import _check_equal

    ulp = 2 * torch.finfo(torch.float32).eps
    _check_equal(Sums(0.0), Sums(0.0), X)
    with pytest.raises(ValueError, match="gives another result"):
        _check_equal(Sums(0.0), Sums(ulp), X)
    _check_equal(Causal(True), Causal(False, ulp), X)
    for masked in (True, False):
        with pytest.raises(ValueError, match="gives another result"):
            _check_equal(Causal(masked), Causal(masked, ulp), X)
    with pytest.raises(ValueError, match="gives another result"):
        _check_equal(Causal(True), Causal(False, 1e-3), X)
    nan = torch.full_like(X, math.nan)
    _check_equal(Sums(0.0), Sums(0.0), nan)
