"""prepare on the networks of torchvision and transformers, as those libraries make them."""

import warnings

import pytest
import torch
from corpus import by_torchvision
from models_for_tests import binary_layers, randomize_norms, seeded, set_stage

import stompp_kernels as sk
from stompp_kernels.nn import ProgressiveActivation, Stage

if by_torchvision.available():
    torchvision = by_torchvision.load()
needs_torchvision = pytest.mark.skipif(
    not by_torchvision.available(), reason="needs torchvision, of which PyPI has no build for CPU"
)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def sources(model):
    return {name: layer.activation for name, layer in binary_layers(model).items()}


def prepare_without_warning(model, inputs, **options):
    """A warning would say that the paths of gradients are not known."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return sk.prepare(model, inputs, **options)


@needs_torchvision
def test_torchvision_resnet18():
    seeded()
    float_model = torchvision.models.resnet18(num_classes=5)
    model, report = prepare_without_warning(float_model, IMAGES[:1])
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert report.binarized() == [f"{block}.conv{k}" for block in blocks for k in (1, 2)]
    assert isinstance(model.layer1[0], torchvision.models.resnet.BasicBlock)
    found = sources(model)
    assert found["layer1.0.conv1"] is model.relu
    assert found["layer3.1.conv1"] is model.layer3[0].relu_1
    assert all(found[f"{block}.conv2"] is model.get_submodule(block).relu for block in blocks)
    assert type(model.layer4[1].relu_1) is torch.nn.ReLU, "feeds the classifier, which stays"
    assert set(float_model.state_dict()) <= set(model.state_dict())


@needs_torchvision
def test_torchvision_resnet50_and_mobilenet_v2():
    seeded()
    net = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5, width_per_group=8
    )
    model, report = prepare_without_warning(net, IMAGES[:1])
    assert len(report.binarized()) == 4 * 3
    assert sum(isinstance(m, ProgressiveActivation) for m in model.modules()) == 12
    model, report = prepare_without_warning(torchvision.models.mobilenet_v2(num_classes=5), IMAGES[:1])
    assert len(report.binarized()) == 51
    own = [row.name for row in report.rows if row.reason == "binarizes its own input"]
    assert len(own) == 17, "the 1x1 convolutions after a linear bottleneck, and the last one"
    assert "features.1.conv.1" not in own


@needs_torchvision
def test_torchvision_vgg_is_refused_where_average_pooling_leaves_no_negative_sign():
    seeded()
    with torch.device("meta"):  # 100 million weights
        net = torchvision.models.VGG(torch.nn.Identity(), init_weights=False)
    net.features = torchvision.models.vgg.make_layers([4, "M", 8, "M"], batch_norm=True)
    net.classifier[0], net.classifier[3] = torch.nn.Linear(8 * 49, 16), torch.nn.Linear(16, 16)
    net.classifier[6] = torch.nn.Linear(16, 3)
    with pytest.raises(ValueError, match=r"layer 'classifier.0': the signs of its input would all be \+1"):
        sk.prepare(net, IMAGES[:1])
    _, report = prepare_without_warning(net, IMAGES[:1], keep=("classifier.0",))
    assert report.binarized() == ["features.4", "classifier.3"]


@needs_torchvision
def test_a_committed_torchvision_resnet_runs_on_bits(tmp_path):
    seeded()
    block = torchvision.models.resnet.BasicBlock
    model, _ = sk.prepare(torchvision.models.ResNet(block, [2, 1, 1, 1], num_classes=5), IMAGES[:1])
    set_stage(randomize_norms(model, torch.Generator().manual_seed(1)), Stage.BINARY).eval()
    packed = sk.convert(model)
    expected = model(IMAGES)
    assert torch.equal(packed(IMAGES), expected)
    sk.save_packed(packed, tmp_path / "net.safetensors")
    assert torch.equal(sk.load_packed(tmp_path / "net.safetensors")(IMAGES), expected)


def bert(**options):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 32}
    config = BertConfig(num_hidden_layers=2, num_attention_heads=2, num_labels=3, **sizes, **options)
    tokens = torch.randint(0, 50, (2, 8), generator=torch.Generator().manual_seed(0))
    return BertForSequenceClassification(config), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def resnet(layer_type):
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2], "num_labels": 3}
    return ResNetForImageClassification(ResNetConfig(layer_type=layer_type, **sizes)), {"pixel_values": IMAGES}


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 48, "num_labels": 3}
    config = ViTConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    return ViTForImageClassification(config), {"pixel_values": IMAGES}


@pytest.mark.parametrize(
    ("make", "binarized", "fed_upstream", "first", "last"),
    [
        (bert, 2 * 6 - 2, 0, "bert.encoder.layer.0.attention.self.query", "classifier"),
        (lambda: bert(hidden_act="relu"), 2 * 6 - 2, 2, "bert.encoder.layer.0.attention.self.query", "classifier"),
        (lambda: resnet("basic"), 4 * 2, 8, "resnet.embedder.embedder.convolution", "classifier.1"),
        (lambda: resnet("bottleneck"), 4 * 3, 12, "resnet.embedder.embedder.convolution", "classifier.1"),
        (vit, 2 * 6, 0, "vit.embeddings.patch_embeddings.projection", "classifier"),
    ],
    ids=["bert", "bert with relu", "resnet", "bottleneck resnet", "vit"],
)
def test_transformers(make, binarized, fed_upstream, first, last):
    seeded()
    float_model, inputs = make()
    model, report = prepare_without_warning(float_model, inputs)
    assert len(report.binarized()) == binarized
    assert sum("input binarized by" in row.reason for row in report.rows) == fed_upstream
    kept = {row.name: row.reason for row in report.rows if row.action == "kept"}
    for name in ("key", "value") if first.endswith("query") else ():
        assert kept[first.replace("query", name)] == f"part of the first projection: it reads what {first} reads"
    assert (kept[first], kept[last]) == ("first layer", "last layer")
    assert type(model) is type(float_model)

    progression = sk.StoMPP(model, total_steps=2 * binarized, refresh=1)
    for _ in range(2 * binarized):
        model(**inputs).logits.square().mean().backward()
        progression.step()
    assert all(layer.stage is Stage.BINARY for layer in binary_layers(model).values())
    cut_off = progression.without_gradient()
    for parameter in model.parameters():
        parameter.requires_grad_(True).grad = None
    model(**inputs).logits.square().mean().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached
    assert not reached & set(cut_off)
    assert f"{report.binarized()[0]}.weight" in cut_off


def test_transformers_models_are_converted_layer_by_layer():
    model, inputs = bert()
    model, _ = sk.prepare(model, inputs)
    set_stage(model, Stage.BINARY).eval()
    packed = sk.convert(model, verify=inputs)
    assert type(packed) is type(model)
    with pytest.raises(ValueError, match=r"model cannot be traced by torch\.fx"):
        sk.convert(model, by_layer=False)
