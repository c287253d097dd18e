"""export_packed and load_exported: the program that torch.export makes of a packed network, in another process too."""

import os

import pytest
import torch
from helpers import IMPLEMENTATIONS
from models_for_tests import committed, set_stage
from processes import run_python
from torch import nn
from torch.export import Dim

import stompp_kernels as sk
from stompp_kernels import native
from stompp_kernels.nn import Stage
from stompp_kernels.nn.packed import PackedLayer

NAMES = ("residual", "bireal", "mlp")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with every net's program, and a packed residual network with an input."""
    folder = tmp_path_factory.mktemp("exported")
    for name in NAMES:
        model, x = committed(name, 3)
        packed = sk.convert(model)
        sk.export_packed(packed, folder / f"{name}.pt2", x[:3])
        with torch.no_grad():  # by batch: float layers round differently in each
            torch.save([(x[:batch], packed(x[:batch])) for batch in (16, 1, 5)], folder / f"{name}.pt")
    return folder


ANOTHER_PROCESS = """
import sys
from pathlib import Path
import torch
import stompp_kernels as sk
from stompp_kernels import native

for implementation in sys.argv[2:]:
    with native.use_implementation(implementation):
        for path in sorted(Path(sys.argv[1]).glob("*.pt2")):
            for module in (torch.export.load(path).module(), sk.load_exported(path)):
                for x, expected in torch.load(path.with_suffix(".pt")):
                    assert torch.equal(module(x), expected), (implementation, path.name, len(x))
            print(path.stem)
"""


@pytest.mark.slow
def test_another_process_runs_the_program_with_the_same_bits_on_any_implementation(exported):
    result = run_python(ANOTHER_PROCESS, exported, *IMPLEMENTATIONS)
    assert result.stdout.split() == len(IMPLEMENTATIONS) * sorted(NAMES), result.stdout + result.stderr


def packed_weights(module):
    return [m.weight.data for m in module.modules() if isinstance(m, PackedLayer)]


def test_weights_are_packed_for_the_implementation_that_loads_them(implementation, exported):
    model, _ = committed("residual", 3)
    here = packed_weights(sk.convert(model))
    constants = [t for m in sk.load_exported(exported / "residual.pt2").modules() for t in vars(m).values()]
    found = [t for t in constants if isinstance(t, torch.Tensor) and t.dtype == torch.uint8]
    assert len(found) == len(here) == 4
    assert all(any(torch.equal(ours, theirs) for theirs in here) for ours in found)


def test_a_network_loaded_for_another_implementation_is_exported_for_it(implementation, exported, tmp_path):
    model, x = committed("residual", 3)
    sk.save_packed(sk.convert(model), tmp_path / "net.safetensors")
    program = sk.export_packed(sk.load_packed(tmp_path / "net.safetensors"), tmp_path / "net.pt2", x)
    here = packed_weights(sk.convert(model))
    assert all(any(torch.equal(c, w) for w in here) for c in program.constants.values())


def test_the_ops_stay_whole(exported):
    program = torch.export.load(exported / "residual.pt2")
    ops = {str(node.target) for node in program.graph.nodes if "stompp" in str(node.target)}
    assert "stompp.bconv2d_threshold.default" in ops
    assert ops & {"stompp.pack_outside.default", "stompp.conv2d_float_signs.default"}
    assert len(program.constants) == 4, "the packed weights are constants of the program"
    assert not any("pack_weight" in op for op in ops)


def test_the_network_and_its_results_stay_as_they_were(tmp_path):
    model, x = committed("residual", 4)
    packed = sk.convert(model)
    before = {key: value.clone() for key, value in packed.state_dict().items()}
    with torch.no_grad():
        expected = packed(x)
        sk.export_packed(packed, tmp_path / "net.pt2", x)
        assert torch.equal(packed(x), expected)
    assert all(torch.equal(value, before[key]) for key, value in packed.state_dict().items())


def test_a_fixed_batch(tmp_path):
    model, x = committed("mlp", 4)
    packed = sk.convert(model)
    sk.export_packed(packed, tmp_path / "net.pt2", x[:1], dynamic_batch=False)
    loaded = sk.load_exported(tmp_path / "net.pt2")
    assert torch.equal(loaded(x[:1]), packed(x[:1]))
    with pytest.raises(Exception, match=r"Guard failed|Expected input"):
        loaded(x[:2])


class TwoInputs(nn.Module):
    def __init__(self, batch=None):
        super().__init__()
        self.batch = batch
        self.first, self.relu, self.fc, self.last = nn.Linear(7, 40), nn.ReLU(), nn.Linear(40, 40), nn.Linear(40, 3)

    def forward(self, x, shift):
        y = self.fc(self.relu(self.first(x))) + shift
        return self.last(y if self.batch is None else y.reshape(self.batch, -1))


def two_inputs(**options):
    torch.manual_seed(0)
    inputs = {"x": torch.randn(4, 7), "shift": torch.randn(4, 40)}
    model, _ = sk.prepare(TwoInputs(**options), inputs)
    return sk.convert(set_stage(model, Stage.BINARY).eval()), inputs


@pytest.mark.parametrize("as_tuple", [False, True])
def test_several_inputs_share_a_batch(as_tuple, tmp_path):
    packed, inputs = two_inputs()
    sk.export_packed(packed, tmp_path / "net.pt2", tuple(inputs.values()) if as_tuple else inputs)
    loaded = sk.load_exported(tmp_path / "net.pt2")
    for batch in (1, 3, 4):
        part = {key: value[:batch] for key, value in inputs.items()}
        ours = loaded(*part.values()) if as_tuple else loaded(**part)
        assert torch.equal(ours, packed(**part))


def test_images_of_any_size():
    """What torch.export asks of the ops' fake kernels: sizes that are symbols in every dimension of an image."""
    model, x = committed("bireal", 2)
    packed = sk.convert(model)
    shapes = ({0: Dim("batch"), 2: Dim("height", min=3), 3: Dim("width", min=3)},)
    with torch.no_grad():
        module = torch.export.export(packed, (x[:3],), dynamic_shapes=shapes).module()
        for shape in [(3, 3, 8, 8), (1, 3, 5, 11), (4, 3, 17, 6)]:
            images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            assert torch.equal(module(images), packed(images))


def test_a_network_of_one_batch_size_is_refused_with_the_way_out(tmp_path):
    packed, inputs = two_inputs(batch=4)
    with pytest.raises(ValueError, match="does not take batches of any size; dynamic_batch=False exports it"):
        sk.export_packed(packed, tmp_path / "net.pt2", inputs)
    assert list(tmp_path.iterdir()) == []
    sk.export_packed(packed, tmp_path / "net.pt2", inputs, dynamic_batch=False)
    assert torch.equal(sk.load_exported(tmp_path / "net.pt2")(**inputs), packed(**inputs))


@pytest.mark.parametrize("inputs", [torch.ones(()), ("text",), torch.ones(0, 7)])
def test_inputs_without_a_batch_are_refused(inputs, tmp_path):
    packed = sk.convert(committed("mlp")[0])
    with pytest.raises(ValueError, match="example_inputs must be tensors with a batch dimension for dynamic_batch"):
        sk.export_packed(packed, tmp_path / "net.pt2", inputs)


def test_an_encoder_that_was_converted_by_layer(tmp_path):
    pytest.importorskip("transformers")
    config = {"model_type": "bert", "vocab_size": 50, "max_position_embeddings": 20, "hidden_size": 16}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = sk.models.create("bert", 3, config=config, max_length=10, binarize="both")
    packed = sk.convert(set_stage(model, Stage.BINARY).eval())
    inputs = {"input_ids": torch.randint(3, 50, (4, 10)), "attention_mask": torch.ones(4, 10, dtype=torch.int64)}
    sk.export_packed(packed, tmp_path / "net.pt2", inputs)
    loaded = sk.load_exported(tmp_path / "net.pt2")
    for batch in (1, 4):
        part = {key: value[:batch] for key, value in inputs.items()}
        with torch.no_grad():
            torch.testing.assert_close(loaded(**part), packed(**part), rtol=1e-5, atol=1e-5)


def test_only_packed_networks_are_taken(tmp_path):
    with pytest.raises(TypeError, match=r"packed must be a network made by sk\.convert, got Linear"):
        sk.export_packed(nn.Linear(3, 3), tmp_path / "net.pt2", torch.ones(2, 3))


def test_an_export_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"old")

    def fail(*arguments):
        raise OSError("no space left on device")

    packed, x = sk.convert(committed("mlp")[0]), committed("mlp")[1]
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        sk.export_packed(packed, path, x)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]


def test_files_that_are_no_program_are_refused(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at"):
        sk.load_exported(tmp_path / "absent.pt2")
    data = (exported / "mlp.pt2").read_bytes()
    for content in (b"", b"nothing", data[:1000], data[: len(data) // 2], data[:-100]):
        (tmp_path / "net.pt2").write_bytes(content)
        with pytest.raises(ValueError, match=r"net\.pt2' is damaged or no exported program"):
            sk.load_exported(tmp_path / "net.pt2")


@pytest.mark.skipif(native.library is None, reason="the reference path's weights have no header")
def test_weights_of_another_version_are_refused(tmp_path):
    model, x = committed("mlp")
    packed = sk.convert(model)
    for module in packed.modules():
        if isinstance(module, PackedLayer):
            module.weight.data[4] = 77
    sk.export_packed(packed, tmp_path / "net.pt2", x)
    with pytest.raises(ValueError, match=r"holds a weight .* \(.*version of the format\); export the network again"):
        sk.load_exported(tmp_path / "net.pt2")
