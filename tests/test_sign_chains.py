"""Functions of each value between packed layers of models that keep their own forward: found, folded, saved."""

import copy
import sys

import pytest
import torch
import transformers
from models_for_tests import seeded, set_stage
from safetensors import safe_open
from test_serialize_modules import rewrite
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.packing import modules as pack_modules
from stompp_kernels.conversion.packing.sign_chains import SignChain, sign_chains
from stompp_kernels.conversion.prepare.keep_signs import KeptSigns
from stompp_kernels.conversion.verify import verify_packed
from stompp_kernels.nn import PackedLinear, PackedOnFloats, ProgressiveActivation, SignActivation, Stage
from stompp_kernels.ops.reference import bits_from_words

SIZES = {"vocab_size": 50, "max_position_embeddings": 20}
HIDDEN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
DISTIL = {"dim": 16, "hidden_dim": 40, "n_layers": 2, "n_heads": 2}
IN_BERT = SignChain("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense")

# Finding


def encoder(model_type="bert", **options):
    """A committed encoder of transformers, its feed-forward layers 16 x 40."""
    seeded()
    sizes = DISTIL if model_type == "distilbert" else HIDDEN
    config = {"model_type": model_type, **SIZES, **sizes, **options}
    return set_stage(sk.models.create("bert", 3, config=config, max_length=10, binarize="both"), Stage.BINARY).eval()


def tokens(size=3, length=10):
    ids = torch.randint(3, 50, (size, length), generator=torch.Generator().manual_seed(size))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def chains_of(block):
    return sign_chains(block, [name for name, m in block.named_modules() if type(m) is nn.Linear])


@pytest.mark.parametrize(
    ("model_type", "inner"),
    [
        ("bert", ("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense")),
        ("roberta", ("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense")),
        ("electra", ("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense")),
        ("albert", ("ffn", "activation", "ffn_output")),
        ("distilbert", ("ffn.lin1", "ffn.activation", "ffn.lin2")),
    ],
)
def test_encoders_have_one_chain_a_block(model_type, inner):
    sizes = DISTIL if model_type == "distilbert" else HIDDEN
    config = transformers.AutoConfig.for_model(model_type, **SIZES, **sizes)
    found = chains_of(transformers.AutoModel.from_config(config).eval())
    assert len(found) == (1 if model_type == "albert" else 2)
    blocks = [chain.layer.removesuffix(inner[0]) for chain in found]
    assert found == [SignChain(*(block + name for name in inner)) for block in blocks]


class Block(nn.Module):
    """Two layers and a function between them, as it should be."""

    def __init__(self, function=None):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.function = function or nn.GELU()

    def forward(self, x, more=None):
        return self.last(self.function(self.first(x)))


class OnlyBranch(Block):
    def forward(self, x, more=None):
        return super().forward(x if more is None else x + more)


class ReadsTheFunction(Block):
    def forward(self, x, more=None):
        y = self.function(self.first(x))
        return self.last(y) + y


class ReadsTheLayer(Block):
    def forward(self, x, more=None):
        y = self.first(x)
        return self.last(self.function(y)) + y


class ReadsWhereNothingIsGiven(Block):
    def forward(self, x, more=None):
        y = self.function(self.first(x))
        return self.last(y) + y if more is None else self.last(y)


class ReadsWhereMoreIsGiven(Block):
    def forward(self, x, more=None):
        y = self.function(self.first(x))
        return self.last(y) if more is None else self.last(y) + y


class CallsTheFunctionAgain(Block):
    def forward(self, x, more=None):
        return self.last(self.function(self.first(x))) + self.function(x)


class CallsTheReaderAgain(Block):
    def forward(self, x, more=None):
        return self.last(self.last(self.function(self.first(x))))


class Returns(Block):
    def forward(self, x, more=None):
        y = self.function(self.first(x))
        return self.last(y), y


class Multiplies(Block):
    def forward(self, x, more=None):
        return self.last(self.function(self.first(x)) * x)


class BranchesOnValues(Block):
    def forward(self, x, more=None):
        y = self.function(self.first(x))
        return self.last(y) if x.sum() > 0 else y


def shared_function():
    function = nn.GELU()
    return nn.Sequential(Block(function), Block(function))


def hooked(name):
    block = Block()
    block.get_submodule(name).register_forward_hook(lambda module, inputs, output: None)
    return block


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        return x * self.scale


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean()


def test_a_block_whose_output_is_read_once_has_a_chain():
    expected = [SignChain("first", "function", "last")]
    for block in (Block(), Block(nn.SiLU()), OnlyBranch(), Block(nn.Dropout())):
        assert chains_of(block.eval()) == expected
    assert sign_chains(Block().eval(), ["first"]) == sign_chains(Block().eval(), ["last"]) == []
    soft, hard = (ProgressiveActivation((8,)) for _ in range(2))
    hard.commit()
    assert chains_of(Block(hard).eval()) == expected
    assert chains_of(Block(soft).eval()) == []


@pytest.mark.parametrize(
    "make",
    [
        *(ReadsTheFunction, ReadsTheLayer, ReadsWhereNothingIsGiven, ReadsWhereMoreIsGiven, Returns, Multiplies),
        *(CallsTheFunctionAgain, CallsTheReaderAgain, BranchesOnValues, shared_function),
        *(lambda: hooked("first"), lambda: hooked("function"), lambda: hooked("last")),
        *(lambda: Block(nn.Softmax(-1)), lambda: Block(nn.PReLU()), lambda: Block(Scaled()), lambda: Block(Centred())),
        lambda: Block(nn.LayerNorm(8, elementwise_affine=False)),
    ],
)
def test_other_readers_other_calls_and_other_functions_are_no_chain(make):
    assert chains_of(make().eval()) == []


def test_another_reader_in_a_block_of_transformers(monkeypatch):
    layer_type = transformers.models.bert.modeling_bert.BertLayer

    def read_twice(self, x):
        y = self.intermediate(x)
        return self.output(y, x) + y[..., : x.shape[-1]]

    layer = layer_type(transformers.BertConfig(**SIZES, **HIDDEN)).eval()
    assert chains_of(layer) == [IN_BERT]
    monkeypatch.setattr(layer_type, "feed_forward_chunk", read_twice)
    assert chains_of(layer) == []
    monkeypatch.undo()
    layer.intermediate.register_forward_hook(lambda module, inputs, output: None)
    assert chains_of(layer) == []


# Packed encoders

FOLDED = {
    "gelu": ("bert", {}),
    "silu": ("bert", {"hidden_act": "silu"}),
    "relu": ("bert", {"hidden_act": "relu"}),
    "roberta": ("roberta", {}),
    "distilbert": ("distilbert", {"activation": "gelu"}),
    "distilbert, relu": ("distilbert", {"activation": "relu"}),
}


def widen_range(model, factor):
    """Makes the scales of the first feed-forward layer so large that GELU rounds to -0.0."""
    model.encoder.encoder.layer[0].intermediate.dense.alpha *= factor
    return model


def words_of(packed):
    return [name for name, m in packed.named_modules() if isinstance(m, PackedLinear) and m.writes == "bits"]


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", FOLDED)
def test_packed_encoders_hand_on_words(name, implementation, monkeypatch):
    model_type, options = FOLDED[name]
    model = encoder(model_type, **options)
    for first in [m for n, m in model.named_modules() if n.endswith(("intermediate.dense", "lin1"))]:
        with torch.no_grad():  # both signs, constant ones, flipped ones; alpha is positive
            first.bias.uniform_(-0.3, 0.3)
            first.bias[:3] = torch.tensor([100.0, -3.0, 0.0])
            first.alpha[3] = 1e-30
    packed = sk.convert(model, verify=tokens())
    assert len(words_of(packed)) == 2
    monkeypatch.setattr(pack_modules, "sign_chains", lambda model, layers: [])
    before = sk.convert(model, verify=tokens())
    assert words_of(before) == []
    for form in (packed, copy.deepcopy(packed)):
        for size, length in ((1, 10), (4, 7)):
            with torch.no_grad():
                assert torch.equal(form(**tokens(size, length)), before(**tokens(size, length)))
    reasons = [row.reason for row in sk.explain(packed).rows if row.kernel == "bgemm + threshold"]
    assert reasons == ["all up to the next signs folded to integer thresholds"] * 2


def test_the_float_simulation_s_signs_are_those_handed_on():
    model = encoder()
    packed, kept, found = sk.convert(model), {}, {}
    block = "encoder.encoder.layer.1."
    model.get_submodule(block + IN_BERT.function).register_forward_hook(lambda m, i, y: kept.update(y=y))
    packed.get_submodule(block + IN_BERT.layer).register_forward_hook(lambda m, i, y: found.update(y=y))
    with torch.no_grad(), sk.float_simulation():
        model(**tokens())
        packed(**tokens())
    assert found["y"].dtype is torch.int32
    assert torch.equal(bits_from_words(found["y"], 40), kept["y"] < 0)
    assert (kept["y"] < 0).float().mean() not in (0, 1)


def test_a_block_in_which_gelu_rounds_to_zero_keeps_its_floats(tmp_path, monkeypatch):
    keeping_signs = sk.convert(widen_range(encoder(), 50.0), verify=tokens())
    assert len(words_of(keeping_signs)) == 2
    monkeypatch.setattr(
        sys.modules["stompp_kernels.conversion.prepare.prepare"], "keep_signs", lambda *_: KeptSigns({}, {})
    )
    packed = sk.convert(widen_range(encoder(), 50.0), verify=tokens())
    assert words_of(packed) == ["encoder.encoder.layer.1.intermediate.dense.layer"]
    path = tmp_path / "net.safetensors"
    sk.save_packed(packed, path)
    for form in (packed, sk.load_packed(path)):
        rows = {row.name: row.reason for row in sk.explain(form).rows}
        reason = rows["encoder.encoder.layer.0.intermediate.dense.layer"]
        assert "only signs are read behind GELUActivation, but those of channel 0, whose sums reach" in reason
        assert rows["encoder.encoder.layer.0.output.dense.layer"] == "what comes next needs floats"


def test_verify_sees_a_wrong_threshold():
    model = encoder()
    packed = sk.convert(model)
    packed.encoder.encoder.layer[1].intermediate.dense.layer.thresholds += 4
    with pytest.raises(ValueError, match=r"differs at encoder\.encoder\.layer\.1\.intermediate\.dense in \d+ of 1200"):
        verify_packed(model, packed, tokens())


@pytest.mark.slow
def test_folded_encoders_compile_and_are_exported(tmp_path):
    packed, inputs = sk.convert(encoder(hidden_act="relu")), tokens(2)
    assert len(words_of(packed)) == 2
    with torch.no_grad():
        expected = packed(**inputs)
        torch.testing.assert_close(torch.compile(packed, fullgraph=True)(**inputs), expected, rtol=1e-5, atol=1e-5)
        sk.export_packed(packed, tmp_path / "net.pt2", inputs)
        torch.testing.assert_close(sk.load_exported(tmp_path / "net.pt2")(**inputs), expected, rtol=1e-5, atol=1e-5)
    rows = {row.name: row for row in sk.explain(packed, inputs, seconds=0.01).rows}
    row = rows["encoder.encoder.layer.0.intermediate.dense.layer"]
    assert (row.kernel, row.operations) == ("bgemm + threshold", 2 * 20 * 16 * 40)


# Files


def checksum_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()["sha256"]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", FOLDED)
def test_folded_encoders_come_back(name, tmp_path):
    model_type, options = FOLDED[name]
    packed, path = sk.convert(encoder(model_type, **options)), tmp_path / "net.safetensors"
    sk.save_packed(packed, path)
    loaded = sk.load_packed(path)
    assert words_of(loaded) == words_of(packed)
    assert str(sk.explain(loaded)) == str(sk.explain(packed))
    with torch.no_grad():
        assert torch.equal(loaded(**tokens()), packed(**tokens()))
    checksum = checksum_of(path)
    sk.save_packed(loaded, path)
    assert checksum_of(path) == checksum


@pytest.mark.parametrize("hidden_act", ["gelu", "relu"])
def test_files_in_which_nothing_was_folded_load(hidden_act, tmp_path, monkeypatch):
    """As they were written before there were chains; a committed activation is then a module of its own."""
    monkeypatch.setattr(pack_modules, "sign_chains", lambda model, layers: [])
    packed, path = sk.convert(encoder(hidden_act=hidden_act), verify=tokens()), tmp_path / "net.safetensors"
    sk.save_packed(packed, path)
    monkeypatch.undo()
    loaded = sk.load_packed(path)
    assert words_of(loaded) == []
    assert sum(isinstance(m, PackedOnFloats) for m in loaded.modules()) == 12
    assert sum(isinstance(m, SignActivation) for m in loaded.modules()) == (2 if hidden_act == "relu" else 0)
    with torch.no_grad():
        assert torch.equal(loaded(**tokens()), packed(**tokens()))


FORGED = {
    "another function": (
        lambda s: s["layers"][FIRST].update(replaces=[FIRST, "encoder.pooler.activation"]),
        "writes bits, which the model's forward does not",
    ),
    "a reader less": (lambda s: s["layers"].pop(FIRST.replace("intermediate", "output")), "writes bits, which the"),
    "signs of a layer": (lambda s: s["signs"].append("classifier"), "'classifier' of type Linear has no signs in its"),
    "signs of nobody": (lambda s: s["signs"].append("nobody"), "nobody"),
}
FIRST = "encoder.encoder.layer.0.intermediate.dense"


@pytest.mark.parametrize("change", FORGED)
def test_files_whose_chains_do_not_fit_are_refused(change, tmp_path):
    function, message = FORGED[change]
    sk.save_packed(sk.convert(encoder()), tmp_path / "net")
    path = rewrite(tmp_path / "net", tmp_path / "forged", lambda tensors, structure: function(structure))
    with pytest.raises(ValueError, match=f"this package cannot build: .*{message}"):
        sk.load_packed(path)


def test_an_installed_class_that_reads_the_floats_refuses_the_file(tmp_path, monkeypatch):
    sk.save_packed(sk.convert(encoder()), tmp_path / "net.safetensors")
    layer_type = transformers.models.bert.modeling_bert.BertLayer

    def read_twice(self, x):
        y = self.intermediate(x)
        return self.output(y, x) + y.mean()

    monkeypatch.setattr(layer_type, "feed_forward_chunk", read_twice)
    with pytest.raises(ValueError, match=r"0\.intermediate\.dense' writes bits, which the model's forward does not"):
        sk.load_packed(tmp_path / "net.safetensors")


def test_a_sign_activation_is_a_committed_one():
    activation = ProgressiveActivation((5,)).eval()
    activation.commit()
    x = torch.tensor([[-1.0, -0.0, 0.0, 3.0, -1e-45], [float("-inf"), float("inf"), 1.0, -2.0, 0.5]])
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(SignActivation()(x.to(dtype)), activation(x.to(dtype)))
