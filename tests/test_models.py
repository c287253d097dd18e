"""The registry, and that each of its models is built, prepared, trained and packed as its paper says."""

import inspect
import sys

import pytest
import torch
from models_for_tests import assert_same_state, binary_layers, set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.models import registry
from stompp_kernels.nn import ProgressiveActivation, Stage
from stompp_kernels.nn import packed as packed_layers
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import pack_signs

SMALL, HALVED = {"width": 4, "image_size": 16}, {"width": 4, "image_size": 32}
# name -> options, binarized layers, those of them that binarize their own input, shortcut convolutions in float
IMAGE_MODELS = {
    "resnet18": (HALVED, 16, 0, 3),
    "resnet34": (HALVED, 32, 0, 3),
    "resnet50": (HALVED, 48, 0, 4),
    "resnet18_cifar": (SMALL, 16, 0, 3),
    "resnet34_cifar": (SMALL, 32, 0, 3),
    "resnet50_cifar": (SMALL, 48, 0, 4),
    "resnet20": (SMALL, 18, 0, 2),
    "resnet32": (SMALL, 30, 0, 2),
    "resnet56": (SMALL, 54, 0, 2),
    "bireal18": (HALVED, 16, 0, 3),
    "bireal18_cifar": (SMALL, 16, 0, 3),
    "mobilenet_v2": ({"width": 0.1, "image_size": 32}, 51, 17, 0),
    "mobilenet_v2_cifar": ({"width": 0.1, "image_size": 16}, 51, 17, 0),
    "mlp": ({"widths": (12, 12, 12)}, 2, 0, 0),
    "small_resnet": ({"widths": (8, 8, 16, 16)}, 8, 0, 1),
}


def small(name, seed=0, num_classes=7, **options):
    torch.manual_seed(seed)
    return sk.models.create(name, num_classes, **IMAGE_MODELS[name][0], **options)


def batch(name, size, seed=0):
    """Random images of the small model's size, and labels."""
    g = torch.Generator().manual_seed(seed)
    shape = sk.models.example_inputs(name, **IMAGE_MODELS[name][0]).shape
    return torch.randn((size, *shape[1:]), generator=g), torch.randint(7, (size,), generator=g)


def train_to_the_end(model, batches):
    """A few steps of a progression that commits every layer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    progression = sk.StoMPP(model, total_steps=len(batches), order="global", refresh=1, cooldown=1 / len(batches))
    for inputs, labels in batches:
        optimizer.zero_grad()
        logits = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        progression.step()
    return progression


def test_the_list_is_what_is_tested_here():
    in_test_record_models = ["binary_vit", "bnext_t", "reactnet_a"]
    assert sk.models.list() == sorted([*IMAGE_MODELS, *in_test_record_models, "bert"])
    assert all(sk.models.entry(name).description for name in sk.models.list())


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_every_model_maps_images_to_logits_and_is_binarized_where_it_should(name):
    _, binarized, own, shortcuts = IMAGE_MODELS[name]
    model = small(name)
    x, _ = batch(name, 3)
    assert model(x).shape == (3, 7)
    _, report = sk.prepare(model, x[:1], **sk.models.entry(name).prepare_options)
    layers = [row for row in report.rows if row.kind in ("Conv2d", "Linear")]
    assert len(report.binarized()) == binarized
    assert sum(row.reason == "binarizes its own input" for row in layers) == own
    kept = [row.reason for row in layers if row.action == "kept"]
    assert kept == ["first layer", *["downsample layer"] * shortcuts, "last layer"]


# Counts of the papers' authors' and torchvision's networks; ResNet-20 to 56 have projections for shortcuts.
@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        ("resnet18", 1000, 11_689_512),
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
        ("resnet18_cifar", 10, 11_173_962),
        ("resnet34_cifar", 10, 21_282_122),
        ("resnet50_cifar", 10, 23_520_842),
        ("resnet20", 10, 272_474),
        ("resnet32", 10, 466_906),
        ("resnet56", 10, 855_770),
        ("mobilenet_v2", 1000, 3_504_872),
        ("mobilenet_v2_cifar", 10, 2_236_682),
    ],
)
def test_parameter_counts(name, num_classes, parameters):
    with torch.device("meta"):
        model = sk.models.create(name, num_classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_mobilenet_rounds_scaled_channels_as_published():
    with torch.device("meta"):
        models = [sk.models.create("mobilenet_v2", 1000, width=width) for width in (0.35, 0.75, 1.4)]
    assert [sum(p.numel() for p in model.parameters()) for model in models] == [1_677_128, 2_636_424, 6_108_776]


@pytest.mark.parametrize(("name", "entries"), [("resnet18", 122), ("resnet50", 320)])
def test_resnet_parameters_have_torchvisions_names(name, entries):
    model = sk.models.create(name, width=2)
    state = model.state_dict()
    assert len(state) == entries
    if name == "resnet50":
        assert (model.layer2[0].conv1.stride, model.layer2[0].conv2.stride) == ((1, 1), (2, 2))
    expected = ["conv1.weight", "bn1.running_var", "layer4.1.bn2.bias", "layer2.0.downsample.1.weight", "fc.bias"]
    assert set(expected) < set(state)
    assert list(state)[:2] == ["conv1.weight", "bn1.weight"]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 7),
        ("bireal18", 7),
        ("mobilenet_v2", 7),
        ("resnet18_cifar", 4),
        ("bireal18_cifar", 4),
        ("mobilenet_v2_cifar", 4),
        ("resnet20", 8),
    ],
)
def test_the_last_map_has_the_papers_size(name, size):
    shapes = []
    with torch.device("meta"):
        model = sk.models.create(name).eval()
        model.avgpool.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape[2:]))
        model(sk.models.example_inputs(name).to("meta"))
    assert shapes == [(size, size)]


@pytest.mark.parametrize(
    ("block", "norm"),
    [
        (sk.models.BasicBlock(6, 6, 1), "bn2"),
        (sk.models.Bottleneck(24, 6, 1), "bn3"),
        (sk.models.BiRealBlock(6, 6, 1), "bn"),
        (sk.models.InvertedResidual(6, 6, 1, 3), "project.1"),
    ],
)
def test_shortcuts_lead_around_the_block(block, norm):
    x = torch.randn(2, 24 if norm == "bn3" else 6, 5, 5, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(block.get_submodule(norm).weight)
    expected = x.relu() if norm in ("bn2", "bn3") else x
    assert torch.equal(block.eval()(x), expected)


@pytest.mark.parametrize(("name", "count"), [("mobilenet_v2_cifar", 52), ("resnet20", 21)])
def test_convolutions_start_with_kaimings_variance(name, count):
    torch.manual_seed(0)
    model = sk.models.create(name)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    ratios = torch.tensor([float(conv.weight.detach().var()) * conv.weight[0].numel() / 2 for conv in convs])
    assert len(convs) == count
    assert (ratios - 1).abs().max() < 0.2, "each close to 2 / fan-in, of depthwise ones too"


@pytest.mark.parametrize("name", ["resnet20", "bireal18_cifar", "mlp"])
def test_a_seed_makes_a_model(name):
    state = small(name, binarize="both").state_dict()
    assert_same_state(small(name, binarize="both").state_dict(), state)
    other = small(name, seed=1, binarize="both")
    weights = [key for key, p in other.named_parameters() if p.dim() > 1]
    assert not any(torch.equal(other.get_parameter(key), state[key]) for key in weights)


# The ImageNet forms left out have the CIFAR forms' blocks.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in IMAGE_MODELS if name not in ("resnet34", "resnet50", "mobilenet_v2")]
)
def test_trained_to_the_end_the_packed_network_equals_the_float_simulation(name):
    model = small(name, binarize="both")
    progression = train_to_the_end(model, [batch(name, 8, seed) for seed in range(3)])
    assert progression.progress().frontier == IMAGE_MODELS[name][1]
    x, _ = batch(name, 6, seed=3)
    model.eval()
    with torch.no_grad(), sk.float_simulation():
        expected = model(x)
    packed = sk.convert(model)
    assert sum(isinstance(m, PackedLayer) for m in packed.modules()) == IMAGE_MODELS[name][1]
    with torch.no_grad():
        torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-5)
    assert (expected.std(0) > 0).all(), "the input decides"


@pytest.mark.parametrize("name", ["resnet20", "resnet50", "bireal18_cifar"])
def test_committed_activations_stop_the_gradient_on_post_activation_shortcuts_only(name):
    model = set_stage(small(name, binarize="both"), Stage.BINARY)
    x, labels = batch(name, 4)
    nn.functional.cross_entropy(model(x), labels).backward()
    reached = {key for key, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert ("conv1.weight" in reached) == (name == "bireal18_cifar")
    assert {"fc.weight", "fc.bias"} < reached


@pytest.mark.parametrize("size", [15, 18, 21])
@pytest.mark.parametrize("name", ["resnet18_cifar", "bireal18_cifar", "bireal18", "mobilenet_v2_cifar"])
def test_odd_image_sizes(name, size):
    options = {**IMAGE_MODELS[name][0], "image_size": size}
    x = sk.models.example_inputs(name, **options)
    assert sk.models.create(name, 3, **options).eval()(x).shape == (1, 3)


def test_weights_only_keeps_the_activations():
    model = small("resnet18_cifar", binarize="weights")
    assert not any(isinstance(m, ProgressiveActivation) for m in model.modules())
    assert isinstance(model.layer1[0].relu1, nn.ReLU)
    sk.StoMPP(model, total_steps=100, binarize="weights")


def test_prepare_options_take_the_place_of_the_entrys_own():
    model = small("resnet18_cifar", binarize="both", prepare_options={"scale": "channel"})
    assert {layer.alpha is not None for layer in binary_layers(model).values()} == {True}
    model = encoder(binarize="both", prepare_options={"scale": None})
    assert {layer.alpha is not None for layer in binary_layers(model).values()} == {False}
    assert len(binary_layers(model)) == 12, "the entry's other options hold"


def test_example_inputs_follow_the_options_and_repeat():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = sk.models.example_inputs("resnet18_cifar", in_channels=2, image_size=9)
    assert first.shape == (1, 2, 9, 9)
    assert (first < 0).any()
    assert torch.equal(first, sk.models.example_inputs("resnet18_cifar", in_channels=2, image_size=9))
    assert torch.equal(before, torch.get_rng_state())
    shapes = {name: tuple(sk.models.example_inputs(name).shape[1:]) for name in IMAGE_MODELS}
    assert shapes["resnet50"] == shapes["mobilenet_v2"] == shapes["bireal18"] == (3, 224, 224)
    assert shapes["resnet50_cifar"] == shapes["resnet20"] == (3, 32, 32)
    assert shapes["mlp"] == shapes["small_resnet"] == (1, 8, 8)


def test_options_are_listed_with_their_defaults():
    assert sk.models.entry("resnet20").options() == {"in_channels": 3, "image_size": 32, "width": 16}
    assert sk.models.entry("resnet50").options() == {"in_channels": 3, "image_size": 224, "width": 64}
    assert sk.models.entry("bert").options()["max_length"] == 128


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet19", {}, "name must be one of .*resnet18, .*got 'resnet19'"),
        ("resnet20", {"num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ("resnet20", {"depth": 3}, "'depth' is no option of model 'resnet20'; allowed are image_size, in_c.*, width"),
        ("resnet20", {"width": 0}, "width must be an integer of at least 1, got 0"),
        ("resnet20", {"width": 4.5}, "width must be an integer of at least 1, got 4.5"),
        ("resnet20", {"image_size": -1}, "image_size must be an integer of at least 1, got -1"),
        ("mobilenet_v2", {"width": 0.0}, "width must be positive, got 0.0"),
        ("mlp", {"widths": (8, 0)}, r"widths\[1\] must be an integer of at least 1, got 0"),
        ("resnet20", {"binarize": "all"}, "binarize must be one of 'both', 'weights', got 'all'"),
        (
            "resnet20",
            {"prepare_options": {"scale": None}},
            "binarize must be .* with prepare_options, got None",
        ),
        (
            "resnet20",
            {"binarize": "both", "prepare_options": {"scales": None}},
            "'scales' is no prepare option; allowed are input_scale, keep, .*scale",
        ),
        (
            "resnet20",
            {"binarize": "both", "prepare_options": {"binarize": "weights"}},
            "'binarize' is no prepare option",
        ),
    ],
)
def test_errors_name_what_is_wrong_and_what_is_allowed(name, options, message):
    with pytest.raises(ValueError, match=message):
        sk.models.create(name, **options)


def test_the_example_has_the_models_options():
    with pytest.raises(ValueError, match=r"'depth' is no option of model 'mlp'; allowed are image_size, in_.*, widths"):
        sk.models.example_inputs("mlp", depth=3)
    assert sk.models.example_inputs("mlp", widths=(3,), in_channels=2).shape == (1, 2, 8, 8)


class Tiny(nn.Module):
    """What someone who knows PyTorch would write."""

    def __init__(self, num_classes=10, features=6, in_channels=3):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(in_channels, features, 3), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(features, features, 3), nn.ReLU()
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x):
        return self.fc(self.relu2(self.conv2(self.relu1(self.conv1(x)))).mean((2, 3)))


def test_one_line_adds_a_model(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    sk.models.register("tiny", Tiny, "Two convolutions")
    assert "tiny" in sk.models.list()
    model = sk.models.create("tiny", 5, binarize="both", features=4, image_size=9)
    assert model.conv2.weight.shape == (4, 4, 3, 3)
    assert model.relu1.mask_shape == (4, 7, 7)
    assert model(sk.models.example_inputs("tiny", image_size=9)).shape == (1, 5)
    with pytest.raises(ValueError, match="'tiny', which is registered already"):
        sk.models.register("tiny", Tiny, "Again")
    with pytest.raises(TypeError, match=r"factory of model 'headless' must take num_classes, it takes \(\)"):
        sk.models.register("headless", lambda: Tiny(), "No classes")


SIZES = {"vocab_size": 50, "max_position_embeddings": 20}
HIDDEN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ENCODERS = {
    "bert": {"model_type": "bert", **SIZES, **HIDDEN},
    "bert, eager attention": {"model_type": "bert", "attn_implementation": "eager", **SIZES, **HIDDEN},
    "roberta": {"model_type": "roberta", **SIZES, **HIDDEN},
    "electra": {"model_type": "electra", "embedding_size": 8, **SIZES, **HIDDEN},
    "distilbert": {"model_type": "distilbert", "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, **SIZES},
}
BERT_LAYERS = [
    f"encoder.encoder.layer.{index}.{name}"
    for index in range(2)
    for name in (
        *(f"attention.self.{projection}" for projection in ("query", "key", "value")),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    )
]


def encoder(name="bert", seed=0, num_classes=3, **options):
    torch.manual_seed(seed)
    return sk.models.create("bert", num_classes, config=ENCODERS[name], max_length=10, **options)


def token_batch(size, length=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (size, length), generator=g)
    mask = (torch.arange(length) < torch.randint(4, length + 1, (size, 1), generator=g)).long()
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_linear_layers_of_an_encoder_are_binarized_and_train(name):
    model = encoder(name, binarize="both")
    layers = binary_layers(model)
    assert len(layers) == 12
    assert all(layer.input_activation.mask_shape[0] == 10 and layer.alpha is not None for layer in layers.values())
    others = [key for key, m in model.named_modules() if type(m) is nn.Linear]
    assert {key.removeprefix("encoder.") for key in others} <= {"pooler.dense", "embeddings_project", "classifier"}
    if name.startswith("bert"):
        assert list(dict(sorted(layers.items(), key=lambda item: item[1].execution_index))) == BERT_LAYERS
    train_to_the_end(model, [(token_batch(4, seed=seed), torch.tensor([0, 1, 2, 0])) for seed in range(3)])
    model.eval()
    inputs = token_batch(5, seed=9)
    with torch.no_grad():
        logits = model(**inputs)
        with sk.float_simulation():
            torch.testing.assert_close(logits, model(**inputs), rtol=1e-5, atol=1e-5)
    assert logits.shape == (5, 3)
    assert (logits.std(0) > 0).all()


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", ENCODERS)
def test_committed_encoders_are_converted_layer_by_layer(name, monkeypatch):
    model = encoder(name, binarize="both")
    set_stage(model, Stage.BINARY)
    packed = sk.convert(model, verify=token_batch(4))
    assert not binary_layers(packed)
    calls = []
    monkeypatch.setattr(packed_layers, "pack_signs", lambda x: calls.append(1) or pack_signs(x))
    for size, length in ((1, 10), (3, 7)):
        inputs = token_batch(size, length)
        with torch.no_grad(), sk.float_simulation():
            torch.testing.assert_close(packed(**inputs), model.eval()(**inputs), rtol=1e-5, atol=1e-5)
    assert len(calls) == 2 * 2 * 3, "query, key and value share one of each block's three"
    kernels = [row.kernel for row in sk.explain(packed).rows]
    assert kernels.count("bgemm + affine") == 10
    assert kernels.count("bgemm + threshold") == 2, "the GELU of each block is folded"


@pytest.mark.parametrize("name", ENCODERS)
def test_a_prepared_encoder_computes_what_it_did_but_for_the_clipping(name):
    float_model = encoder(name).eval()
    example = sk.models.example_inputs("bert", config=ENCODERS[name], max_length=10)
    options = {
        **sk.models.entry("bert").prepare_options,
        "latent_std": 0.05,
        "input_scale": None,
    }  # no weight is clipped
    model, _ = sk.prepare(float_model, example, **options)
    inputs = token_batch(4)
    with torch.no_grad():
        expected, clipped = float_model(**inputs), model(**inputs)
        for layer in binary_layers(model).values():
            layer.input_activation = None
        torch.testing.assert_close(model(**inputs), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(clipped, expected, rtol=1e-4, atol=1e-4), "LayerNorm gives out more than [-1, 1]"


@pytest.mark.parametrize(("name", "pooling"), [("bert", "pooler"), ("bert", "mean"), ("distilbert", "mean")])
def test_padding_does_not_change_the_logits(name, pooling):
    model = encoder(name, pooling=pooling).eval()
    assert model.pooling == pooling
    assert encoder(name).pooling == ("mean" if name == "distilbert" else "pooler")
    short = {**token_batch(3, length=6), "attention_mask": torch.ones(3, 6, dtype=torch.int64)}
    padded = {"input_ids": nn.functional.pad(short["input_ids"], (0, 4), value=7)}
    padded["attention_mask"] = nn.functional.pad(short["attention_mask"], (0, 4))
    with torch.no_grad():
        torch.testing.assert_close(model(**padded), model(**short), rtol=1e-5, atol=1e-5)


def test_an_unused_pooler_is_left_out_so_that_every_parameter_learns():
    for pooling in ("mean", "pooler"):
        model = encoder(pooling=pooling)
        model(**token_batch(2)).sum().backward()
        unused = {key for key, p in model.named_parameters() if p.grad is None}
        assert unused == set()


def test_a_pretrained_encoder_is_read_from_its_folder(tmp_path):
    source = encoder(seed=5).eval()
    source.encoder.half().save_pretrained(tmp_path)
    model = sk.models.create("bert", 3, pretrained=tmp_path, max_length=10)
    assert all(module.training for module in model.modules())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert_same_state(model.encoder.state_dict(), source.encoder.float().state_dict())
    kinds = {"token_type_ids": torch.ones(2, 10, dtype=torch.int64)}
    model.eval()
    assert not torch.equal(model(**token_batch(2), **kinds), model(**token_batch(2)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "one of pretrained and config must be given, got None and None"),
        ({"config": {"hidden_size": 16}}, ValueError, "config must have a model_type"),
        ({"config": ENCODERS["bert"], "max_length": 21}, ValueError, r"max_length must be in \[1, 20\], got 21"),
        ({"config": ENCODERS["bert"], "pooling": "max"}, ValueError, "pooling must be one of None, 'pooler', 'mean'"),
        (
            {"config": ENCODERS["distilbert"], "pooling": "pooler", "max_length": 10},
            ValueError,
            "pooling must be 'mean' for DistilBertModel, which has no pooler",
        ),
        ({"pretrained": "./no/such/folder"}, FileNotFoundError, "pretrained must be a folder with config.json"),
    ],
)
def test_errors_of_the_encoder_classifier(options, error, message):
    with pytest.raises(error, match=message):
        sk.models.create("bert", 2, **options)


def test_without_transformers_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "stompp_kernels\[transformers\]"'):
        encoder()


def test_every_factory_takes_its_options_by_keyword():
    for name in sk.models.list():
        for option, default in sk.models.entry(name).options().items():
            assert default is not inspect.Parameter.empty, (name, option)
