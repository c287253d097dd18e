"""explain: one row per module call of a packed network."""

import pytest
import torch
from models_for_tests import committed, float_convs_of, set_stage
from safetensors.torch import load_file
from torch import nn

import stompp_kernels as sk
from stompp_kernels import native
from stompp_kernels.nn import PackedConv2d, PackSigns, Stage


def explained(name="residual"):
    with float_convs_of(torch_s=True):
        packed = sk.convert(committed(name)[0])
    return packed, {row.name: row for row in sk.explain(packed).rows}


def test_rows_are_the_calls_in_order_of_execution():
    packed, rows = explained()
    calls, hooks = [], []
    for name, module in packed.named_modules():
        if name in rows:
            hooks.append(module.register_forward_hook(lambda m, i, y, name=name: calls.append(name)))
    packed(torch.randn(1, 3, 8, 8))
    assert calls == list(rows)


def test_fused_layers_say_so():
    _, rows = explained()
    first, second, last = rows["blocks.0.conv1_fused"], rows["blocks.0.conv2_fused"], rows["blocks.1.conv2_affine"]
    assert first.kernel == second.kernel == "bconv2d + threshold"
    assert "+-1 shortcut" not in first.reason
    assert "+-1 shortcut" in second.reason
    assert (last.kernel, last.reason) == ("bconv2d + affine", "what comes next needs floats")
    convolutions = [name for name, row in rows.items() if row.kernel == "PrepackedConv2d"]
    assert convolutions == ["conv1", "blocks.1.downsample.0"]


def test_linear_layers_and_own_inputs():
    _, rows = explained("mlp")
    assert rows["fc2_fused"].kernel == "bgemm + threshold"
    assert rows["fc3_affine"].kernel == "bgemm + affine"
    packed, rows = explained("bireal")
    packs = [row for row in rows.values() if row.kernel == "pack_signs"]
    assert len(packs) == 1 == sum(isinstance(m, PackSigns) for m in packed.modules())
    assert packs[0].reason == "float input of a binary layer"
    reasons = [row.reason for row in rows.values() if row.kernel == "bconv2d + affine signs"]
    assert reasons == ["BatchNorm and float shortcut folded, read as signs and as floats"]


def test_float_layers_say_why():
    _, rows = explained()
    for name in ("conv1", "fc", "blocks.1.downsample.0"):
        assert rows[name].implementation == "torch"
        assert rows[name].reason == "kept in float by prepare"
    assert rows["pool"].reason == "stands next to a float layer"
    (norm,) = [row for row in rows.values() if row.kernel == "pack_outside"]
    assert (norm.nbytes, norm.float_nbytes) == (2 * 4 * 5, 4 * 4 * 5)
    assert "BatchNorm" in norm.reason
    unpack = [row for row in rows.values() if row.kernel == "unpack_signs"]
    assert [row.reason for row in unpack] == ["a float module reads these signs"]


def test_bytes():
    packed, rows = explained()
    model, _ = committed("residual")
    for name, row in rows.items():
        module = packed.get_submodule(name)
        if isinstance(module, PackedConv2d):
            assert row.nbytes == module.nbytes
            assert row.float_nbytes == 4 * model.get_submodule(module.replaces[0]).weight.numel()
            constants = sum(b.numel() * b.element_size() for b in module.buffers())
            assert row.file_nbytes == module.weight.words().numel() * 4 + constants
            assert row.operations is row.ms is row.share is None
        elif isinstance(module, nn.Linear):
            assert row.nbytes == row.float_nbytes == 4 * (10 * 4 + 4)


def test_the_implementation_is_the_one_that_runs(implementation):
    packed, _ = explained()
    rows = {row.name: row for row in sk.explain(packed).rows}
    assert rows["blocks.0.conv1_fused"].implementation == implementation == native.active_implementation()


def test_the_table_has_a_line_per_row():
    packed, rows = explained()
    lines = str(sk.explain(packed)).splitlines()
    assert lines[0].split()[:3] == ["layer", "kernel", "implementation"]
    assert len(lines) == len(rows) + 3
    for row, line in zip(rows.values(), lines[2:-1], strict=True):
        assert line.startswith(row.name)
        cells = (row.kernel, row.nbytes, row.file_nbytes, row.float_nbytes, row.reason)
        assert all(str(cell) in line for cell in cells)
    in_a_file, in_fp32 = (sum(getattr(row, name) for row in rows.values()) for name in ("file_nbytes", "float_nbytes"))
    assert lines[-1].endswith(
        f"{in_a_file:,} in a file, {in_fp32:,} in fp32: {in_fp32 / in_a_file:.1f}x smaller in a file"
    )


class Siamese(nn.Module):
    """One encoder called twice, by layers that are and are not packed."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.head = nn.Linear(64, 8)

    def forward(self, x):
        return self.head(self.encoder(x)) * self.head(self.encoder(x.flip(-1)))


class Transformer(nn.Module):
    """Its forward reads parameters of its own, and torch's encoder layer those of its attention."""

    def __init__(self):
        super().__init__()
        self.embedding, self.positions = nn.Linear(8, 64), nn.Parameter(torch.randn(1, 12, 64))
        self.block = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.block(self.embedding(x) + self.positions).mean(1))


class TiedWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.norm1, self.relu, self.norm2 = nn.BatchNorm1d(64), nn.ReLU(), nn.BatchNorm1d(64)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.norm2(self.inner(self.relu(self.norm1(self.first(x))))))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("by_layer", [None, True])
@pytest.mark.parametrize(
    ("kind", "shape", "own"),
    [(Siamese, (2, 1, 12, 12), ()), (Transformer, (2, 12, 8), ("positions",)), (TiedWeights, (2, 64), ())],
)
def test_the_sums_are_those_of_all_tensors_each_once(kind, shape, own, by_layer, tmp_path):
    torch.manual_seed(0)
    network, x = kind(), torch.randn(shape)
    model, _ = sk.prepare(network, x)
    packed = sk.convert(set_stage(model, Stage.BINARY).eval(), verify=x, by_layer=by_layer)
    explanation = sk.explain(packed)
    sk.save_packed(packed, tmp_path / "net.safetensors", example_inputs=x)
    in_a_file = sum(tensor.nbytes for tensor in load_file(tmp_path / "net.safetensors").values())
    if by_layer:  # what torch.export reads holds no tensors that nothing reads, such as counts of batches
        assert 0 <= explanation.file_nbytes - in_a_file <= 64
    else:
        assert explanation.file_nbytes == in_a_file
    in_fp32 = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    assert 0.95 * in_fp32 < explanation.float_nbytes <= in_fp32, "but for what is folded"
    assert set(own) <= set(explanation.own_tensors)
    assert all(name in str(explanation).splitlines()[-1] for name in own)


def test_inputs_add_operations_and_time():
    model, x = committed("residual")
    with float_convs_of(torch_s=True):
        packed = sk.convert(model)
    explanation = sk.explain(packed, x, seconds=0.05)
    rows = {row.name: row for row in explanation.rows}
    assert list(rows) == [str(n.target) for n in packed.graph.nodes if n.op == "call_module"]
    assert 0 < sum(row.share for row in rows.values()) < 1
    assert all(row.ms > 0 for row in rows.values())
    assert rows["fc"].operations == 2 * len(x) * 10 * 4
    assert rows["blocks.0.conv1_fused"].operations == 2 * len(x) * 8 * 8 * 5 * 5 * 9
    assert rows["relu_pack"].operations == 0
    lines = str(explanation).splitlines()
    assert "operations" in lines[0]
    assert all("%" in line for line in lines[2:])
