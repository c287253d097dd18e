"""Files of models that were converted layer by layer hold every kind of layer that convert packs."""

import json
from collections.abc import Mapping

import pytest
import torch
import transformers
from models_for_tests import assert_same_state, set_stage
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.files import container
from stompp_kernels.nn import BinaryLayer, Stage
from stompp_kernels.nn.file_classes import _CLASSES, register_file_class
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.nn.reshaped_convs import ReshapedLayer

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CONFIG = {"model_type": "bert", "vocab_size": 30, "max_position_embeddings": 20, **SIZES}


class Kinds(nn.Module):
    """A layer of each kind, in a model that a file names by its class."""

    def __init__(self, config):
        super().__init__()
        self.config = transformers.AutoConfig.for_model(**config) if isinstance(config, Mapping) else config
        width = self.config.hidden_size
        self.embedding, self.first = nn.Embedding(self.config.vocab_size, width), nn.Linear(width, width)
        self.strided = nn.Conv1d(width, 2 * width, 4, 2, 1, groups=2)
        self.dilated = nn.Conv1d(2 * width, width, 3, padding="same", dilation=2, bias=False)
        self.up = nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.cropped = nn.ConvTranspose2d(width, 2 * width, 3, 3, 1, output_padding=1, groups=2)
        self.image = nn.Conv2d(2 * width, width, 3, 2, 1)
        self.shared = nn.Linear(width, width)
        self.again = self.shared
        self.transposed = transformers.pytorch_utils.Conv1D(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, ids):
        x = self.first(self.embedding(ids)).transpose(1, 2)
        x = self.dilated(self.strided(x)).unflatten(2, (2, -1))
        x = self.image(self.cropped(self.up(x))).flatten(2).transpose(1, 2)
        for layer in (self.shared, self.again):
            x = layer(x - x.mean())
        return self.head(self.transposed(x).mean(1))


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_file_class(Kinds, config_of=lambda model: model.config, arguments={})
    yield
    del _CLASSES["Kinds"]


def ids(batch=2):
    return torch.randint(30, (batch, 12), generator=torch.Generator().manual_seed(batch))


def packed(binarize="both"):
    torch.manual_seed(0)
    model, report = sk.prepare(Kinds(CONFIG), ids(), binarize=binarize)
    assert len(report.binarized()) == 7
    return sk.convert(set_stage(model, Stage.BINARY).eval(), verify=ids(), by_layer=True)


def forged(source, target, change):
    """The file with another structure, and a checksum that fits it."""
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    tensors, structure = load_file(source), json.loads(metadata["structure"])
    change(structure["layers"])
    text = json.dumps(structure, sort_keys=True)
    save_file(tensors, target, metadata | {"structure": text, "sha256": container.digest(text, tensors)})
    return target


@pytest.mark.parametrize("binarize", ["both", "weights"])
def test_every_kind_of_layer_comes_back(binarize, tmp_path):
    network = packed(binarize)
    size = sk.save_packed(network, tmp_path / "net.safetensors")
    assert "model" in container.read(tmp_path / "net.safetensors")[0], "the file names the class"
    loaded = sk.load_packed(tmp_path / "net.safetensors")
    assert type(loaded) is Kinds
    assert loaded.again is loaded.shared
    assert_same_state(loaded.state_dict(), network.state_dict())
    assert torch.equal(loaded(ids(3)), network(ids(3)))
    for name in ("strided", "dilated", "up", "cropped"):
        layers = [model.get_submodule(name) for model in (network, loaded)]
        assert all(isinstance(layer, ReshapedLayer) for layer in layers)
        assert layers[0].stride == layers[1].stride
    assert str(sk.explain(loaded)) == str(sk.explain(network))
    assert sk.save_packed(loaded, tmp_path / "again.safetensors") == size


@pytest.mark.parametrize(
    ("kind", "sizes", "inputs"),
    [
        (
            "Wav2Vec2ForCTC",
            {"conv_dim": (8, 8, 8), "conv_stride": (4, 2, 2), "conv_kernel": (8, 3, 2), "num_conv_pos_embeddings": 4},
            {"input_values": torch.randn(2, 400, generator=torch.Generator().manual_seed(0))},
        ),
        (
            "VitPoseForPoseEstimation",
            {
                "use_simple_decoder": False,
                "backbone_config": {
                    "model_type": "vitpose_backbone",
                    "image_size": (16, 16),
                    "patch_size": (8, 8),
                    **SIZES,
                },
            },
            {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))},
        ),
    ],
)
def test_models_of_transformers_with_such_layers_come_back(kind, sizes, inputs, tmp_path):
    torch.manual_seed(0)
    kind = getattr(transformers, kind)
    own = {**SIZES, "num_conv_pos_embedding_groups": 2, "vocab_size": 12} if "conv_dim" in sizes else {}
    model = kind(kind.config_class(**{**own, **sizes})).eval()
    prepared, _ = sk.prepare(model, inputs, on_refusal="keep")
    network = sk.convert(set_stage(prepared, Stage.BINARY).eval(), verify=inputs)
    assert sum(isinstance(m, PackedLayer) for m in network.modules()) == sum(
        isinstance(m, BinaryLayer) for m in prepared.modules()
    )
    assert any(isinstance(m, ReshapedLayer) for m in network.modules())
    sk.save_packed(network, tmp_path / "net.safetensors")
    loaded = sk.load_packed(tmp_path / "net.safetensors")
    with torch.no_grad():
        expected, found = (next(iter(net(**inputs).values())) for net in (network, loaded))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["strided", "up"])
def test_a_layer_of_another_shape_is_refused(name, tmp_path):
    sk.save_packed(packed(), tmp_path / "net.safetensors")

    def change(layers):
        layers[name]["shape"] = [16, *layers[name]["shape"][1:-1], 8]

    path = forged(tmp_path / "net.safetensors", tmp_path / "forged.safetensors", change)
    with pytest.raises(ValueError, match=rf"'{name}' of type Conv\w+ has no packed twin PackedConv2d of shape"):
        sk.load_packed(path)


def test_a_layer_of_another_kind_is_not_reshaped():
    with pytest.raises(ValueError, match="replaced must be a Conv1d or a ConvTranspose2d, float or binary, got Linear"):
        ReshapedLayer(nn.Linear(2, 2), nn.Linear(2, 2))
