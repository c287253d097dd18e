"""Folders of prepared transformers models: from_pretrained refuses them, sk.load_prepared rebuilds the model."""

import copy
import json

import pytest
import torch
import transformers
from models_for_tests import assert_same_state, masked_modules, seeded, snapshot
from processes import run_python
from safetensors.torch import load_file, save_file

import stompp_kernels as sk
from stompp_kernels.training.callbacks.hf_trainer import StoMPPTrainerCallback

pytestmark = pytest.mark.filterwarnings("ignore:training ended at step:RuntimeWarning")

OPTIONS = {"refresh": 2, "seed": 11}


def bert(**config):
    seeded(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {**sizes, "intermediate_size": 16, "max_position_embeddings": 8, "hidden_act": "relu", **config}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**settings))


def tokens(count=16):
    return torch.randint(0, 20, (count, 8), generator=torch.Generator().manual_seed(1))


def prepared(**options):
    inputs = {"input_ids": tokens()[:2], "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    return sk.prepare(bert(), inputs, **{"scale": "channel", **options})[0]


def trainer(directory, model, **arguments):
    args = transformers.TrainingArguments(
        directory, use_cpu=True, report_to="none", disable_tqdm=True, seed=3, **{"max_steps": 16, **arguments}
    )
    data = [{"input_ids": row, "labels": row[0] % 2} for row in tokens()]
    callback = StoMPPTrainerCallback(**OPTIONS)
    return transformers.Trainer(model, args, train_dataset=data, eval_dataset=data[:4], callbacks=[callback])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with checkpoints and what trainer.save_model() wrote, and the trained model."""
    folder, model = tmp_path_factory.mktemp("trained"), prepared(keep=("pooler",), keep_last=False)
    run = trainer(folder, model, save_steps=8)
    run.train()
    run.save_model()
    return folder, model


def assert_same_model(loaded, model):
    assert_same_state(snapshot(loaded), snapshot(model))
    stages = {name: m.stage for name, m in masked_modules(model).items()}
    assert {name: m.stage for name, m in masked_modules(loaded).items()} == stages
    with torch.no_grad():
        expected = model.eval()(input_ids=tokens()).logits
        assert torch.equal(loaded(input_ids=tokens()).logits, expected)


def test_what_a_trainer_saved_is_rebuilt(trained):
    folder, model = trained
    loaded = sk.load_prepared(folder)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert_same_model(loaded, model)
    assert loaded.config.to_dict() == model.config.to_dict()
    torch.testing.assert_close(
        sk.convert(loaded)(input_ids=tokens()).logits, sk.convert(model)(input_ids=tokens()).logits
    )


def test_training_goes_on_from_a_folder(trained, tmp_path):
    folder, whole = trained
    resumed = trainer(tmp_path, sk.load_prepared(folder / "checkpoint-8").train())
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-8"))
    assert_same_state(snapshot(resumed.model), snapshot(whole))


def test_it_can_be_saved_and_copied_again(trained, tmp_path):
    folder, model = trained
    loaded = copy.deepcopy(sk.load_prepared(folder))
    with torch.no_grad():
        loaded.classifier.bias.add_(1)
    loaded.save_pretrained(tmp_path)
    assert torch.equal(sk.load_prepared(tmp_path).classifier.bias, model.classifier.bias + 1)


@pytest.mark.parametrize("part", ["", "checkpoint-8"])
@pytest.mark.parametrize(
    "loader",
    [
        transformers.BertForSequenceClassification,
        transformers.BertModel,
        transformers.AutoModel,
        transformers.AutoModelForSequenceClassification,
    ],
)
def test_from_pretrained_refuses(part, loader, trained):
    with pytest.raises(ValueError, match=r"load it with stompp_kernels.load_prepared\(folder\)"):
        loader.from_pretrained(trained[0] / part)


@pytest.mark.slow
def test_from_pretrained_refuses_in_a_process_that_does_not_know_this_package(trained):
    code = "import sys, transformers; transformers.AutoModel.from_pretrained(sys.argv[1])"
    result = run_python(code, trained[0])
    assert result.returncode != 0
    assert "stompp_kernels.load_prepared(folder)" in result.stderr


def test_the_best_model_is_brought_back(tmp_path):
    run = trainer(tmp_path, prepared(), eval_strategy="steps", eval_steps=8, save_steps=8, load_best_model_at_end=True)
    run.train()
    run.save_model(tmp_path / "best")
    assert_same_model(sk.load_prepared(tmp_path / "best"), run.model)


def test_sharded_weights_and_other_models(tmp_path):
    seeded(0)
    config = transformers.T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    model, _ = sk.prepare(transformers.T5EncoderModel(config), (tokens()[:2],), binarize="weights")
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_state(snapshot(sk.load_prepared(tmp_path)), snapshot(model))


def test_example_inputs_that_are_no_tensors_are_refused(tmp_path):
    model = prepared()
    model.__dict__["_stompp_prepared"] = type(model.__dict__["_stompp_prepared"])({}, {"input_ids": [1, 2]})
    with pytest.raises(ValueError, match="example_inputs were tensors, got others for \\['input_ids'\\]"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="push_to_hub must be False"):
        prepared().save_pretrained(tmp_path, push_to_hub=True)


def change(name, **entries):
    def apply(folder):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return apply


def setting(**entries):
    def apply(folder):
        path = folder / "stompp_prepared.json"
        notes = json.loads(path.read_text())
        path.write_text(json.dumps({**notes, "settings": {**notes["settings"], **entries}}))

    return apply


def without_a_tensor(folder):
    state = load_file(folder / "model.safetensors")
    del state["classifier.bias"]
    save_file(state, folder / "model.safetensors")


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


DAMAGES = {
    "class": (change("stompp_prepared.json", **{"class": "Trainer"}), "class must be a model of transformers"),
    "dotted class": (change("stompp_prepared.json", **{"class": "a.b"}), "class must be a name"),
    "other class": (change("stompp_prepared.json", **{"class": "T5EncoderModel"}), "model_type must be 't5'"),
    "version": (change("stompp_prepared.json", version=2), "version must be 1, got 2"),
    "inputs": (change("stompp_prepared.json", inputs="set"), "inputs must be tensor, tuple or dict, got 'set'"),
    "more": (change("stompp_prepared.json", code="x"), "must have format, version, class"),
    "unknown setting": (setting(hook="x"), "settings must be among"),
    "nested setting": (setting(keep=[["x"]]), "keep must be a number, a text or a list of them"),
    "bad setting": (setting(binarize="all"), "binarize must be"),
    "other layers": (setting(keep=["encoder"]), "no layer to binarize|do not fit"),
    "other size": (change("config.json", hidden_size=16), "do not fit"),
    "lost tensor": (without_a_tensor, r"missing \['classifier.bias'\]"),
    "cut weights": (cut("model.safetensors"), "model.safetensors is no safetensors file"),
    "cut inputs": (cut("stompp_example_inputs.safetensors"), "example_inputs.safetensors is no safetensors file"),
    "cut notes": (cut("stompp_prepared.json"), "stompp_prepared.json is no JSON file"),
    "list": (lambda folder: (folder / "config.json").write_text("[]"), "must hold an object"),
    "outside": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'),
        "must name files of its folder, got '../x'",
    ),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("damage", DAMAGES)
def test_folders_that_do_not_fit_are_refused(damage, tmp_path):
    apply, message = DAMAGES[damage]
    prepared().save_pretrained(tmp_path)
    apply(tmp_path)
    with pytest.raises(ValueError, match=message):
        sk.load_prepared(tmp_path)


@pytest.mark.parametrize("name", ["stompp_prepared.json", "config.json", "model.safetensors"])
def test_a_missing_file_is_named(name, tmp_path):
    prepared().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        sk.load_prepared(tmp_path)
