"""save_packed and load_packed of models that were converted layer by layer: encoders of transformers."""

import contextlib
import copy
import json
import sys

import pytest
import torch
import transformers
from models_for_tests import assert_same_state, committed, set_stage
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import stompp_kernels as sk
from stompp_kernels.cli import main
from stompp_kernels.conversion.files import config as serialize_config
from stompp_kernels.conversion.files import container as serialize_container
from stompp_kernels.nn import BinaryLinear, BinaryWeightLayer, PackedOnFloats, Stage

SIZES = {"vocab_size": 50, "max_position_embeddings": 20}
HIDDEN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ENCODERS = {
    "bert": {"model_type": "bert", **SIZES, **HIDDEN},
    "bert, eager attention": {"model_type": "bert", "attn_implementation": "eager", **SIZES, **HIDDEN},
    "roberta": {"model_type": "roberta", **SIZES, **HIDDEN},
    "electra": {"model_type": "electra", "embedding_size": 8, **SIZES, **HIDDEN},
    "distilbert": {"model_type": "distilbert", "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, **SIZES},
}
KEEP = (r"(^|[._])(embedding|pooler|classifier|predictions|decoder|lm_head)",)


def encoder(name, binarize="both", **options):
    torch.manual_seed(0)
    options = {"config": ENCODERS[name], "max_length": 10, **options}
    return sk.convert(set_stage(sk.models.create("bert", 3, binarize=binarize, **options), Stage.BINARY))


def of_transformers(name, **options):
    """A packed model of this class with a tiny config of its own."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    config = kind.config_class(**{**SIZES, **HIDDEN, **tokens, **options})
    model, _ = sk.prepare(kind(config).eval(), batch(1), keep_first=False, keep_last=False, keep=KEEP)
    return sk.convert(set_stage(model, Stage.BINARY))


def batch(size, length=10):
    """Tokens and a mask with padding."""
    g = torch.Generator().manual_seed(size)
    ids = torch.randint(3, 50, (size, length), generator=g)
    mask = (torch.arange(length) < torch.randint(4, length + 1, (size, 1), generator=g)).long()
    return {"input_ids": ids, "attention_mask": mask}


def outputs(model, inputs):
    with torch.no_grad():
        result = model(**inputs)
    return [result] if isinstance(result, torch.Tensor) else [t for t in result.values() if isinstance(t, torch.Tensor)]


def assert_same_outputs(model, other, mapped=False):
    """Bit for bit, but for mapped weights: BLAS may add in another order there, by where they lie in memory."""

    def same(a, b):
        return torch.allclose(a, b, rtol=1e-5, atol=1e-6) if mapped else torch.equal(a, b)

    for inputs in (batch(1), batch(5, 7)):
        pairs = list(zip(outputs(model, inputs), outputs(other, inputs), strict=True))
        assert pairs
        assert all(same(a, b) for a, b in pairs)


def round_trip(packed, folder, mmap=False):
    size = sk.save_packed(packed, folder / "net.safetensors")
    assert size == (folder / "net.safetensors").stat().st_size
    loaded = sk.load_packed(folder / "net.safetensors", mmap=mmap)
    assert type(loaded) is type(packed)
    assert not any(m.training for m in loaded.modules())
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    assert_same_state(loaded.state_dict(), packed.state_dict())
    assert_same_outputs(loaded, packed, mapped=mmap)
    assert str(sk.explain(loaded)) == str(sk.explain(packed))
    sk.save_packed(loaded, folder / "again.safetensors")
    first, second = (parts(folder / f"{name}.safetensors") for name in ("net", "again"))
    assert first[1]["sha256"] == second[1]["sha256"]
    return loaded


def parts(path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return load_file(path), metadata, json.loads(metadata["structure"])


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_come_back(name, tmp_path):
    packed = encoder(name)
    loaded = round_trip(packed, tmp_path)
    implementations = {model.encoder.config._attn_implementation for model in (packed, loaded)}
    assert implementations == {"eager" if "eager" in name else "sdpa"}
    assert loaded.max_length == 10
    signs = [{m.signs for m in model.modules() if isinstance(m, PackedOnFloats)} for model in (packed, loaded)]
    assert len(signs[0]) == len(signs[1]) < 12, "those of an attention's projections are shared"


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_the_pooling_comes_back(pooling, tmp_path):
    assert round_trip(encoder("bert", pooling=pooling), tmp_path).pooling == pooling


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_encoders_with_binary_weights_come_back(name, tmp_path):
    packed = encoder(name, binarize="weights")
    assert sum(isinstance(m, BinaryWeightLayer) for m in packed.modules()) == 12
    round_trip(packed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mmap", [False, True])
def test_every_implementation_reads_the_file(implementation, mmap, tmp_path):
    packed = encoder("roberta")
    loaded = round_trip(packed, tmp_path, mmap=mmap)
    if not mmap:
        path = tmp_path / "net.safetensors"
        path.write_bytes(bytes(path.stat().st_size))
        assert_same_outputs(loaded, packed)


def test_buffers_that_share_memory_are_saved(tmp_path):
    packed = of_transformers("BertForSequenceClassification")
    embeddings = packed.bert.embeddings
    embeddings.position_ids = embeddings.token_type_ids[:]
    round_trip(packed, tmp_path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("BertForSequenceClassification", {"num_labels": 3, "problem_type": "single_label_classification"}),
        ("BertForMaskedLM", {"attn_implementation": "eager"}),
        ("RobertaForTokenClassification", {"id2label": {0: "in", 1: "out"}}),
        ("LlamaModel", {"num_key_value_heads": 1}),
    ],
)
def test_models_of_transformers_come_back(name, options, tmp_path):
    packed = of_transformers(name, **options)
    loaded = round_trip(packed, tmp_path)
    assert any(isinstance(m, PackedOnFloats) for m in loaded.modules())
    assert loaded.config.id2label == packed.config.id2label
    tied = [len(list(m.named_parameters(remove_duplicate=False))) - len(list(m.parameters())) for m in (loaded, packed)]
    assert tied == [2 if name == "BertForMaskedLM" else 0] * 2, "the decoder's weight and bias"


def test_a_model_in_half_precision_comes_back(tmp_path):
    packed = encoder("bert").to(torch.bfloat16)
    sk.save_packed(packed, tmp_path / "net.safetensors")
    loaded = sk.load_packed(tmp_path / "net.safetensors")
    assert loaded.classifier.weight.dtype is torch.bfloat16
    assert_same_state(loaded.state_dict(), packed.state_dict())


def test_a_file_says_nothing_about_where_its_model_came_from(tmp_path):
    packed = of_transformers("BertForSequenceClassification")
    packed.config._name_or_path = "/home/someone/bert"
    sk.save_packed(packed, tmp_path / "net.safetensors")
    assert b"someone" not in (tmp_path / "net.safetensors").read_bytes()
    config = parts(tmp_path / "net.safetensors")[2]["model"]["config"]
    assert {"_name_or_path", "architectures", "transformers_version"}.isdisjoint(config)


# What cannot be saved


class OwnBert(transformers.BertForSequenceClassification):
    """Someone's own forward."""


def test_models_of_other_classes_are_refused_when_they_are_saved(tmp_path):
    model, _ = committed("mlp")
    with pytest.raises(
        ValueError, match=r"packed must be traced .*, or be a model of transformers or .Enc.*, got \w+, "
    ):
        sk.save_packed(sk.convert(model, by_layer=True), tmp_path / "net.safetensors")
    packed = of_transformers("BertForSequenceClassification")
    packed.__class__ = OwnBert
    with pytest.raises(ValueError, match="got OwnBert, whose forward no file can hold"):
        sk.save_packed(packed, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def change_activation(packed):
    packed.bert.encoder.layer[0].intermediate.intermediate_act_fn = nn.ReLU()


def change_epsilon(packed):
    packed.bert.embeddings.LayerNorm.eps = 0.5


def leave_a_layer_uncommitted(packed):
    packed.bert.encoder.layer[1].output.dense = BinaryLinear(32, 16)


def add_a_module(packed):
    packed.bert.extra = nn.Linear(3, 3)


def widen(packed):
    packed.classifier = nn.Linear(16, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_activation, r"module 'bert\.encoder\.layer\.0\.intermediate\.intermediate_act_fn' cannot .*'ReLU'"),
        (change_epsilon, r"module 'bert\.embeddings\.LayerNorm' cannot be saved .*eps=0\.5"),
        (leave_a_layer_uncommitted, r"module 'bert\.encoder\.layer\.1\.output\.dense' of type BinaryLinear cannot be"),
        (add_a_module, r"do not give this model: no module has the tensors \['bert\.extra\.bias', "),
        (widen, r"do not give this model: classifier\.weight must have shape \[2, 16\], got \[7, 16\]"),
    ],
)
def test_models_that_their_config_does_not_give_are_refused_when_they_are_saved(change, message, tmp_path):
    packed = of_transformers("BertForSequenceClassification")
    change(packed)
    with pytest.raises(ValueError, match=message):
        sk.save_packed(packed, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_ties_that_the_config_does_not_give_are_refused(tmp_path):
    packed = of_transformers("BertForMaskedLM")
    packed.config.tie_word_embeddings = False
    with pytest.raises(ValueError, match=r"do not give this model: the file lacks .*'cls\.predictions\.decoder"):
        sk.save_packed(packed, tmp_path / "net.safetensors")


def test_a_class_that_keeps_a_tensor_for_itself_is_refused(tmp_path, monkeypatch):
    packed, init = of_transformers("BertForSequenceClassification"), transformers.BertForSequenceClassification.__init__

    def init_with_table(self, config):
        init(self, config)
        self.table = [torch.arange(3)]

    monkeypatch.setattr(transformers.BertForSequenceClassification, "__init__", init_with_table)
    with pytest.raises(ValueError, match="type BertForSequenceClassification keeps a tensor that is no buffer"):
        sk.save_packed(packed, tmp_path / "net.safetensors")


# What cannot be loaded


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of a BertForSequenceClassification and of an EncoderClassifier."""
    folder = tmp_path_factory.mktemp("packed")
    sk.save_packed(of_transformers("BertForSequenceClassification"), folder / "bert")
    sk.save_packed(encoder("bert"), folder / "encoder")
    return folder


QUERY = "bert.encoder.layer.0.attention.self.query"


def config(structure, **changes):
    structure["model"]["config"].update(changes)


def layer(structure, name=QUERY, **changes):
    structure["layers"][name].update(changes)


def rename_layer(structure, name):
    structure["layers"][name] = structure["layers"].pop(QUERY)


def another_shape(tensors):
    tensors["classifier.bias"] = torch.zeros(5)


FORGED = {
    "unknown class": (lambda t, s: s["model"].update({"class": "BertForNothing"}), "class must be a model of trans"),
    "class of Python": (lambda t, s: s["model"].update({"class": "__class__"}), "class must be a model of trans"),
    "class as number": (lambda t, s: s["model"].update({"class": 5}), "class must be a model of transformers or"),
    "auto class": (lambda t, s: s["model"].update({"class": "AutoModel"}), "class must be a model of transformers"),
    "base class": (lambda t, s: s["model"].update({"class": "PreTrainedModel"}), "class must be a model of trans"),
    "config class": (lambda t, s: s["model"].update({"class": "BertConfig"}), "class must be a model of transformers"),
    "module": (lambda t, s: s["model"].update({"class": "pipelines"}), "class must be a model of transformers"),
    "function": (lambda t, s: s["model"].update({"class": "pipeline"}), "class must be a model of transformers"),
    "another model's class": (lambda t, s: s["model"].update({"class": "GPT2Model"}), "model_type must be 'gpt2', got"),
    "no class": (lambda t, s: s["model"].pop("class"), "a model must have a class, arguments and a config"),
    "arguments": (lambda t, s: s["model"].update(arguments={"x": 1}), r"has arguments \['x'\]"),
    "no config": (lambda t, s: s["model"].pop("config"), "a model must have a class, arguments and a config"),
    "config as list": (lambda t, s: s["model"].update(config=[1]), "arguments and config must be objects, the"),
    "unknown type": (lambda t, s: config(s, model_type="none"), "cannot be built from its config: Unrecognized"),
    "no type": (lambda t, s: s["model"]["config"].pop("model_type"), "the config with a model_type"),
    "code": (lambda t, s: config(s, auto_map={"AutoModel": "a--b.C"}), "a config with 'auto_map' cannot be loaded"),
    "inner code": (lambda t, s: config(s, inner=[{"auto_map": {}}]), "a config with 'auto_map' cannot be loaded"),
    "a path": (lambda t, s: config(s, _name_or_path="a/b"), "a config with '_name_or_path' cannot be loaded"),
    "quantized": (lambda t, s: config(s, quantization_config={}), "a config with 'quantization_config' cannot be"),
    "a backbone": (lambda t, s: config(s, backbone="a/b"), "a config with 'backbone' cannot be loaded"),
    "timm": (lambda t, s: config(s, model_type="timm_wrapper"), "a config with 'model_type' cannot be loaded"),
    "kernels": (
        lambda t, s: config(s, attn_implementation="a/b"),
        "attn_implementation must be one of 'eager', 'sdpa'",
    ),
    "private kernels": (lambda t, s: config(s, _attn_implementation="a/b"), "'_attn_implementation' cannot be loaded"),
    "many layers": (lambda t, s: config(s, num_hidden_layers=1 << 40), r"num_hidden_layers must be at most \d+ in a"),
    "more layers": (
        lambda t, s: t.update(x=torch.zeros(4096)) or config(s, num_hidden_layers=4000),
        "num_hidden_layers must be at most",
    ),
    "a few layers": (lambda t, s: config(s, num_hidden_layers=5), "the file lacks the model's tensors"),
    "no layers": (lambda t, s: config(s, num_hidden_layers=0), "the model has no module 'bert"),
    "many labels": (lambda t, s: config(s, num_labels=1 << 40), "num_labels must be at most"),
    "huge hidden size": (lambda t, s: config(s, hidden_size=1 << 40), "hidden_size must be at most"),
    "huge vocabulary": (lambda t, s: config(s, vocab_size=1 << 20), r"word_embeddings\.weight must have shape"),
    "hidden size of text": (lambda t, s: config(s, hidden_size="wide"), "cannot be built from its config"),
    "no heads": (lambda t, s: config(s, num_attention_heads=0), "cannot be built from its config"),
    "packed dropout": (lambda t, s: rename_layer(s, "dropout"), "'dropout' of type Dropout has no packed twin"),
    "packed block": (lambda t, s: rename_layer(s, "bert"), "'bert' of type BertModel has no packed twin"),
    "packed model": (lambda t, s: rename_layer(s, ""), "of type BertForSequenceClassification has no packed twin"),
    "packed nothing": (lambda t, s: rename_layer(s, "nobody"), "the model has no module 'nobody'"),
    "packed as a convolution": (
        lambda t, s: layer(s, type="PackedConv2d"),
        "of type PackedConv2d must be a list of 4 values",
    ),
    "packed as anything": (lambda t, s: layer(s, type="OtherLinear"), "'OtherLinear'"),
    "packed to bits": (lambda t, s: layer(s, writes="bits"), "query' writes bits, which the model's forward does n"),
    "packed shape": (
        lambda t, s: layer(s, shape=[1 << 40, 16]),
        "argument 'shape' of layer .* must be a list of 2 values, each",
    ),
    "layers as list": (lambda t, s: s.update(layers=[]), "layers must be an object"),
    "one layer less": (lambda t, s: s["layers"].pop(QUERY), "the file lacks the model's tensors .*query.bias"),
    "tensor missing": (lambda t, s: t.pop("classifier.bias"), r"lacks the model's tensors \['classifier.bias'\]"),
    "words missing": (lambda t, s: t.pop(f"{QUERY}.layer.weight"), r"query\.layer\.weight"),
    "buffer missing": (lambda t, s: t.pop("bert.embeddings.position_ids"), r"lacks .*position_ids"),
    "tensor too many": (lambda t, s: t.update(x=torch.zeros(2)), r"no module has the tensors \['x'\]"),
    "tensor of another shape": (lambda t, s: another_shape(t), r"classifier\.bias must have shape \[2\], got \[5\]"),
    "integers": (
        lambda t, s: t.update({"classifier.bias": torch.zeros(2).int()}),
        r"classifier\.bias must be torch.fl",
    ),
    "positions of floats": (
        lambda t, s: t.update({"bert.embeddings.position_ids": torch.zeros(1, 20)}),
        "position_ids must be torch.int64, got torch.float32",
    ),
    "model as list": (lambda t, s: s.update(model=[]), "a model must have a class, arguments and a config, got"),
}
FORGED_OWN = {
    "pretrained": (lambda t, s: s["model"]["arguments"].update(pretrained="a/b"), "has arguments .*'pretrained'"),
    "inner pretrained": (lambda t, s: config(s, pretrained="a/b"), "a config with 'pretrained' cannot be loaded"),
    "pooling": (lambda t, s: s["model"]["arguments"].update(pooling="max"), "pooling must be one of"),
    "many classes": (lambda t, s: s["model"]["arguments"].update(num_classes=1 << 40), "num_classes must be at most"),
    "length": (lambda t, s: s["model"]["arguments"].update(max_length=21), r"max_length must be in \[1, 20\], got 21"),
    "an argument less": (lambda t, s: s["model"]["arguments"].pop("pooling"), "has arguments"),
}


def rewrite(source, target, change):
    """A file with another structure or other tensors and a checksum that fits them."""
    tensors, metadata, structure = parts(source)
    change(tensors, structure)
    text = json.dumps(structure, sort_keys=True)
    save_file(tensors, target, metadata | {"structure": text, "sha256": serialize_container.digest(text, tensors)})
    return target


@pytest.mark.parametrize("change", [*FORGED, *FORGED_OWN])
def test_files_that_do_not_fit_are_refused_without_fetching_or_allocating(change, files, tmp_path, monkeypatch):
    import resource
    import socket

    def connect(*arguments):
        raise AssertionError("load_packed reaches the network")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    name, (function, message) = ("bert", FORGED[change]) if change in FORGED else ("encoder", FORGED_OWN[change])
    path = rewrite(files / name, tmp_path / "net.safetensors", function)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        ValueError, match=rf"net\.safetensors' holds a network that this package cannot build: .*{message}"
    ):
        sk.load_packed(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; most of it imports


@pytest.mark.parametrize("name", ["bert", "encoder"])
def test_rewritten_files_with_nothing_changed_load(name, files, tmp_path):
    path = rewrite(files / name, tmp_path / "net.safetensors", lambda tensors, structure: None)
    assert_same_outputs(sk.load_packed(path), sk.load_packed(files / name))


def test_building_more_than_the_file_holds_ends_early(files, tmp_path):
    # Tensors enough for the number of layers, none of them theirs.
    def change(tensors, structure):
        tensors.update({f"x{index}": torch.zeros(1) for index in range(300)})
        config(structure, num_hidden_layers=300)

    path = rewrite(files / "bert", tmp_path / "net.safetensors", change)
    with pytest.raises(ValueError, match="it has more parameters than the file has tensors"):
        sk.load_packed(path)
    with serialize_config.FewTensors(0), torch.no_grad():
        pass  # whose end must not fail, or gradients would stay off
    assert torch.is_grad_enabled()


def test_building_that_computes_too_long_ends_early(monkeypatch, files):
    """Some classes of transformers fill tables in loops of Python, which no count of tensors ends."""
    init = transformers.BertForSequenceClassification.__init__

    def init_with_loops(self, config):
        init(self, config)
        while True:
            with contextlib.suppress(Exception):
                [[position / 10000 for _ in range(16)] for position in range(1 << 16)]

    monkeypatch.setattr(transformers.BertForSequenceClassification, "__init__", init_with_loops)
    with pytest.raises(ValueError, match=r"cannot be built from its config: it takes more than 3\.\d s"):
        sk.load_packed(files / "bert")


def test_counts_are_bounded_by_bytes_and_not_by_shapes(files, tmp_path):
    def many_labels(tensors, structure):
        tensors["x"] = torch.zeros(1 << 40, 0)
        config(structure, num_labels=1 << 36)

    with pytest.raises(ValueError, match=r"tensor 'x' of shape \[1099511627776, 0\] is empty"):
        sk.load_packed(rewrite(files / "bert", tmp_path / "net.safetensors", many_labels))
    for key, limit in (("num_labels", 1 << 16), ("num_hidden_layers", 5), ("num_things", 1 << 17), ("any", 1 << 20)):

        def change(tensors, structure, key=key):
            tensors["x"] = torch.zeros(1 << 17, dtype=torch.bool)
            config(structure, **{key: (1 << 20) + 1})

        with pytest.raises(
            ValueError, match=rf"{key} must be at most {limit}\d* in a file of \d+ tensors, got 1048577"
        ):
            sk.load_packed(rewrite(files / "bert", tmp_path / "net.safetensors", change))


# What belongs to a model beside its tensors


def test_a_language_model_keeps_its_settings_of_generation(tmp_path):
    packed = of_transformers("LlamaForCausalLM", eos_token_id=[2, 7])
    packed.generation_config.update(temperature=0.7, eos_token_id=[2, 7], do_sample=True, bad_words_ids=[[3], [4, 5]])
    packed.generation_config.stop_strings = ["end", "\n"]
    loaded = round_trip(packed, tmp_path)
    assert loaded.generation_config == packed.generation_config
    assert loaded.generation_config.temperature == 0.7
    assert loaded.config.eos_token_id == [2, 7]
    for model in (loaded, packed):
        model.generation_config.stop_strings = None  # these need a tokenizer
    tokens = [m.generate(torch.tensor([[5, 6]]), max_new_tokens=5, do_sample=False) for m in (loaded, packed)]
    assert torch.equal(*tokens)


def test_settings_of_generation_that_hold_objects_are_refused(tmp_path):
    packed = of_transformers("LlamaForCausalLM")
    packed.generation_config.cache_implementation = "static"
    with pytest.raises(
        ValueError, match=r"generation_config cannot be saved .* with cache_implementation; set them to N"
    ):
        sk.save_packed(packed, tmp_path / "net.safetensors")


def test_a_config_keeps_settings_of_the_users_own(tmp_path):
    packed = of_transformers("BertForSequenceClassification", my_setting={"a": [1, 2.5, None, "b"]}, id2label={0: "no"})
    loaded = round_trip(packed, tmp_path)
    assert loaded.config.my_setting == {"a": [1, 2.5, None, "b"]}
    assert loaded.config.id2label == {0: "no"}
    expected, found = packed.config.to_dict(), loaded.config.to_dict()
    for notes in (expected, found):
        for key in ("architectures", "transformers_version", "_name_or_path"):
            notes.pop(key, None)
    assert found == expected


@pytest.mark.parametrize("loaded", [False, True])
def test_save_pretrained_is_refused(loaded, tmp_path):
    packed = of_transformers("BertForSequenceClassification")
    if loaded:
        packed = round_trip(packed, tmp_path)
    for model in (packed, copy.deepcopy(packed), packed.bert):
        with pytest.raises(ValueError, match=r"save_pretrained cannot save a packed network.*use sk\.save_packed"):
            model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_without_transformers_the_error_says_how_to_get_it(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("bert", "encoder"):
        with pytest.raises(ImportError, match=r'pip install "stompp_kernels\[transformers\]"'):
            sk.load_packed(files / name)


# A run


@pytest.mark.slow
def test_a_run_of_an_encoder_is_evaluated_and_saved(tmp_path, capsys):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "tokenizer")
    lines = [f"a {'good' if i % 2 else 'bad'} film\t{i % 2}" for i in range(16)]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    recipe = {
        "model": {"name": "bert", "options": {"config": ENCODERS["bert"], "max_length": 8}},
        "data": {
            "name": "sst2",
            "path": str(tmp_path),
            "options": {"tokenizer": str(tmp_path / "tokenizer"), "max_length": 8},
        },
        "epochs": 10,
        "batch_size": 8,
        "channels_last": False,
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    run, output = str(tmp_path / "run"), tmp_path / "net.safetensors"
    assert main(["train", str(tmp_path / "recipe.json"), "--output", run, "--device", "cpu"]) == 0
    accuracies = []
    for flags in ([], ["--packed"]):
        capsys.readouterr()
        assert main(["eval", run, *flags]) == 0
        accuracies.append(capsys.readouterr().out.split(" %")[0])
    assert accuracies[0] == accuracies[1]
    assert main(["convert", run, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("bgemm + ") == 12
    assert f"{output.stat().st_size:,} bytes" in shown
    loaded = sk.load_packed(output)
    assert loaded.max_length == 8
    assert outputs(loaded, {key: t % 9 for key, t in batch(3, 8).items()})[0].shape == (3, 2)
