"""Whole-network benchmarks: what is compared is right, profiles add up, and wrong networks are refused."""

import copy
import itertools
import json
import math
import re
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models_for_tests import committed, set_stage
from torch import nn

import stompp_kernels as sk
from benchmarks import networks
from stompp_kernels import native
from stompp_kernels.bench import bound as bounds
from stompp_kernels.bench import command, memory, printout, sides, subjects
from stompp_kernels.bench.bound import bound
from stompp_kernels.bench.command import Options, find
from stompp_kernels.bench.network import measure, sizes
from stompp_kernels.cli import main
from stompp_kernels.conversion import profile as layers
from stompp_kernels.nn import FloatConv2d, PackedConv2d, Stage
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import Limits

QUICK = {"compile": False, "seconds": 0.05, "at_least": 2}
SMALL = {"width": 8, "image_size": 32}
WAYS = ("eager", "compiled", "packaged")


@pytest.fixture(autouse=True)
def one_thread(restore_threads):
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def resnet():
    return subjects.untrained("resnet18", 10, SMALL)


# Subjects


def test_a_committed_network_without_training_has_signs_of_both_kinds_everywhere(resnet):
    means = {}
    for name, module in resnet.model.named_modules():
        if isinstance(module, sk.nn.ProgressiveActivation):
            assert module.committed
            module.register_forward_hook(lambda m, i, y, name=name: means.update({name: y.mean().item()}))
    with torch.no_grad():
        resnet.model(resnet.inputs(8))
    assert len(means) == 16
    assert all(-0.95 < mean < 0.95 for mean in means.values())
    assert not resnet.model.training
    assert not resnet.float_model.training


def test_inputs_are_as_many_samples_of_the_same_shape(resnet):
    x = resnet.inputs(3)
    assert x.shape == (3, 3, 32, 32)
    assert x.is_contiguous(memory_format=torch.channels_last)
    tokens = subjects.Subject("bert", {"ids": torch.tensor([[4, 5]])}, None, None, None).inputs(2)
    assert tokens["ids"].tolist() == [[4, 5], [4, 5]]


def test_what_cannot_be_converted_says_why():
    model, x = committed("residual")
    for layer in [m for m in model.modules() if isinstance(m, sk.nn.BinaryLayer)]:
        layer.soften()
    subject = subjects.of_models("soft", x[:1], copy.deepcopy(model), model)
    assert subject.packed is None
    assert "a layer whose weights are committed" in subject.reason
    row = measure(subject, 1, 1, ["fp32", "packed"], **QUICK)
    assert row["reason"] == subject.reason
    assert set(row["best_ms"]) == {"fp32"}
    assert subject.reason in printout.comparison([row])


# Sides


def test_every_form_runs_and_gives_logits(resnet):
    inputs = resnet.inputs(2)
    made, missing = sides.make_sides(resnet, inputs, compile=False)
    assert missing == {}
    forms = sides.default_forms(inputs.device)
    assert ("fast" in forms) == native.multiplies_bfloat16()
    assert [side.name for side in made] == [f"{form} eager" for form in forms]
    original = resnet.float_model(inputs)
    results = {side.form: side.run() for side in made}
    assert all(result.shape == (2, 10) for result in results.values())
    torch.testing.assert_close(results["fp32"], original, rtol=1e-4, atol=1e-4)
    assert results["bf16"].dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(results["int8"], original).min() > 0.5
    gaps = results["int8"].flatten().sort().values.diff()
    steps = results["int8"] / gaps[gaps > 1e-4].min()
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-2)


def test_fast_float_layers_are_left_out_with_the_reason(resnet, monkeypatch):
    inputs = resnet.inputs(2)
    alone = subjects.Subject("a file", resnet.sample, None, None, resnet.packed)
    made, missing = sides.make_sides(alone, inputs, ("packed", "fast"), compile=False)
    assert [side.name for side in made] == ["packed eager"]
    assert missing == {"fast": "there is only a packed network, whose float layers are as they are"}
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: False)
    assert "fast" not in sides.default_forms(inputs.device)
    assert "does not multiply bfloat16" in sides.make_sides(resnet, inputs, ("fast",), compile=False)[1]["fast"]


@pytest.mark.slow
def test_compiled_and_packaged_sides_give_what_the_eager_ones_do():
    small = subjects.untrained("small_resnet", 10, {"widths": (8, 16), "strides": (1, 2)})
    with sides.folding(), torch.no_grad():
        made, missing = sides.make_sides(small, small.inputs(1), ("fp32", "packed"))
        results = {side.name: side.run() for side in made}
    assert missing == {}
    assert list(results) == [f"{form} {how}" for form in ("fp32", "packed") for how in WAYS]
    for form in ("fp32", "packed"):
        for how in WAYS[1:]:
            torch.testing.assert_close(results[f"{form} {how}"], results[f"{form} eager"], rtol=1e-3, atol=1e-3)


class Mean(nn.Module):
    """torch.export does not take it: what runs is decided by the data."""

    def forward(self, x):
        return x.mean((1, 2), keepdim=True)[:, 0] if x.sum() > 0 else x.flatten(1)[:, :1]


@pytest.mark.slow
def test_a_network_that_torch_does_not_package_is_timed_without_that_and_says_why():
    subject = subjects.Subject("branches", torch.ones(1, 3, 4), Mean(), None, None)
    row = measure(subject, 1, 1, ["fp32"], seconds=0.05, at_least=2)
    assert set(row["ms"]) == {"fp32 eager", "fp32 compiled"}
    assert list(row["missing"]) == ["fp32 packaged"]
    assert re.search("fp32 packaged: torch makes no package of it: .*data-dependent", printout.latencies(row))


def test_a_wrong_packed_network_is_not_timed(resnet):
    packed = copy.deepcopy(resnet.packed)
    layer = next(m for m in packed.modules() if isinstance(m, PackedConv2d) and m.has_thresholds)
    layer.thresholds += 8
    wrong = subjects.Subject("wrong", resnet.sample, resnet.float_model, resnet.model, packed)
    with pytest.raises(ValueError, match=r"packed eager gives another result.*not timed"):
        measure(wrong, 1, 1, **QUICK)


def test_a_side_without_finite_results_or_of_another_shape_is_not_timed():
    for result in (torch.tensor([[torch.nan, 1.0]]), torch.ones(1, 3)):
        with pytest.raises(ValueError, match=r"int8 eager must give finite values of shape \[1, 2\]"):
            sides.check(sides.Side("int8", "eager", lambda result=result: result), torch.ones(1, 2))


# Profiles


@pytest.mark.parametrize("name", ["residual", "bireal", "mlp"])
def test_a_profile_names_every_call_and_adds_up_to_the_whole(name):
    model, x = committed(name)
    packed = sk.convert(model)
    rows = layers.profile(packed, x, 0.05)
    calls = [n for n in packed.graph.nodes if n.op in ("call_module", "call_function", "call_method")]
    names = [n.target if n.op == "call_module" else f"function_{n.name}" for n in calls]
    assert [row.name for row in rows] == [*names, layers.REST]
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert all(row.ms > 0 for row in rows)
    binary = {name for name, m in packed.named_modules() if isinstance(m, PackedLayer)}
    assert {row.name for row in rows if row.binary} == binary
    assert all(row.operations > 0 for row in rows if row.binary)
    # The clocks are gone, and the network is what it was.
    assert not any("forward" in vars(m) for m in packed.modules())
    assert not any(name.startswith("function_") for name, _ in packed.named_modules())
    torch.testing.assert_close(packed(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_profile_of_any_module_sees_nested_layers():
    network = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.ReLU()), nn.Linear(6, 2))
    rows = layers.profile(network, torch.randn(3, 4), 0.05)
    assert [(row.name, row.kind) for row in rows[:-1]] == [("0.0", "Linear"), ("0.1", "ReLU"), ("1", "Linear")]
    assert [row.operations for row in rows] == [2 * 3 * 4 * 6, 0, 2 * 3 * 6 * 2, 0]


def test_the_rest_is_what_the_layers_leave(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(layers, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    rows = layers.profile(network, torch.randn(3, 4), 0.01)
    # A clock that ticks at every look: one second a layer, and seven in all from the first look to the last.
    assert [(row.name, row.ms) for row in rows] == [("0", 1e3), ("1", 1e3), ("2", 1e3), (layers.REST, 4e3)]
    assert [row.share for row in rows] == [1 / 7, 1 / 7, 1 / 7, 4 / 7]


def test_operations_are_those_of_the_float_layers(resnet):
    """2 * O * I * kh * kw a pixel, whether a packed layer writes words or floats."""
    expected = {}
    for name, module in resnet.float_model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda m, i, y, name=name: expected.update({name: 2 * m.weight.numel() * y.shape[2] * y.shape[3]})
            )
    resnet.float_model(resnet.inputs(1))
    rows = {row.name: row for row in layers.profile(resnet.packed, resnet.inputs(1), 0.01)}
    packed = {name: m for name, m in resnet.packed.named_modules() if isinstance(m, PackedLayer)}
    assert {m.replaces[0]: rows[name].operations for name, m in packed.items()} == {
        m.replaces[0]: expected[m.replaces[0]] for m in packed.values()
    }


# The bound


def test_the_bound_is_of_the_float_layers_and_the_binary_operations(resnet):
    inputs = resnet.inputs(1)
    found = bound(resnet.model, inputs, resnet.packed, lambda: resnet.packed(inputs), 0.05, compile=False)
    shortcuts = [f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)]
    assert sorted(found.float_layers) == sorted(["conv1", "maxpool", *shortcuts, "avgpool", "fc"])
    binary = [row.operations for row in layers.profile(resnet.packed, inputs, 0.01) if row.binary]
    assert found.binary_operations == sum(binary)
    assert found.ms == found.float_ms + found.binary_operations / found.bgemm_gops / 1e6
    assert found.packed_over_bound > 0


def test_the_ratio_to_the_bound_is_that_of_the_median_turn(resnet, monkeypatch):
    def turns(device, sides, seconds, in_a_row):
        return {name: [12.0, 33.0, 20.0] if name == "packed" else [4.0, 11.0, 5.0] for name in sides}

    monkeypatch.setattr(bounds, "sample_on", turns)
    found = bound(resnet.model, resnet.inputs(1), resnet.packed, lambda: None, 0.05, compile=False)
    share = found.binary_operations / (2 * math.prod(bounds._LARGE))
    assert (found.packed_ms, found.float_ms) == (20.0, 5.0)
    assert found.packed_over_bound == pytest.approx(3 / (1 + share))


@pytest.mark.parametrize(("reads", "swapped"), [("floats", True), ("bits", False)])
def test_the_bound_takes_convolutions_that_write_bits_from_the_packed_network(reads, swapped):
    conv, ran = nn.Conv2d(3, 8, 3, bias=False), []
    limits = Limits(torch.zeros(8), torch.full((8,), torch.inf))
    packed = nn.ModuleDict({"first_signs": FloatConv2d.of(conv, reads, limits)})
    packed["first_signs"].register_forward_hook(lambda *_: ran.append(True))
    x = torch.randn(1, 3, 8, 8)
    found = bound(nn.Sequential(OrderedDict(first=conv)), x, packed, lambda: x, 0.01, compile=False)
    assert found.float_layers == ("first",)
    assert bool(ran) == swapped


def test_the_bound_counts_float_products_that_no_layer_holds():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.last = nn.Softmax(-1)

        def forward(self, x):
            y = self.first(x)
            return self.last(nn.functional.scaled_dot_product_attention(y, y, y))

    x = torch.randn(1, 4, 8)
    found = bound(Attention(), x, nn.Identity(), lambda: x, 0.01, compile=False)
    assert found.float_layers == ("first", "scaled_dot_product_attention", "last"), "the last is a layer, once"
    assert found.binary_operations == 0


@pytest.mark.gpu
def test_on_a_gpu_the_sides_are_cuda_graphs():
    subject = subjects.untrained("resnet18", 10, SMALL).to("cuda")
    row = measure(subject, 2, 1, **QUICK)
    assert set(row["best_ms"]) == {"fp32", "bf16", "packed"}
    assert "profile" not in row
    assert row["bound"]["ms"] > 0
    with pytest.raises(ValueError, match="forms must be one of"):
        measure(subject, 2, 1, ["int8"], **QUICK)


# Bytes


@pytest.mark.slow
def test_binarized_weights_are_32_times_smaller_in_a_file():
    subject = subjects.untrained("resnet20", 10, {"width": 32})
    found = sizes(subject)
    assert found["binarized"]["fp32"] == 32 * found["binarized"]["file"]
    assert found["binarized"]["file"] < found["binarized"]["memory"] < found["binarized"]["fp32"] / 8
    float_bytes = sum(t.numel() * t.element_size() for t in subject.float_model.state_dict().values())
    assert float_bytes < found["file"]["fp32"] < 1.1 * float_bytes
    assert found["file"]["packed"] > found["binarized"]["file"] + found["binarized"]["constants"]
    if memory._PROCESS.exists():
        assert found["peak"]["fp32"] >= float_bytes


def test_what_no_file_can_hold_is_said(resnet):
    packed = copy.deepcopy(resnet.packed)
    packed.fc = nn.Sequential(packed.fc)
    found = sizes(subjects.Subject("strange", resnet.sample, None, None, packed))
    assert "cannot be saved" in found["reason"]


# Rows, tables, results files


def test_a_row_has_what_tables_and_results_files_show(resnet):
    row = measure(resnet, 2, 1, ["fp32", "packed"], **QUICK)
    assert json.loads(json.dumps(row)) == row
    assert (row["network"], row["batch"], row["threads"]) == ("resnet18", 2, 1)
    for values in row["ms"].values():
        assert 0 < values["least"] <= values["p20"] <= values["p50"] <= values["p90"] <= values["p99"]
        assert values["calls"] >= 2
    assert row["ratios"] == {"fp32": row["best_ms"]["fp32"] / row["best_ms"]["packed"]}
    shown = printout.setting(row)
    assert all(layer["name"] in shown for layer in row["profile"])
    assert "packed / bound" in shown
    kinds = printout.setting(row, every_layer=False).split("\n\n")[1]
    assert {line.split()[0] for line in kinds.splitlines()[2:]} <= {
        layer["kind"].split()[0] for layer in row["profile"]
    }
    line = printout.comparison([row]).splitlines()[-1].split()
    assert line[:3] == ["resnet18", "2", "1"]
    assert f"{row['ratios']['fp32']:.2f}x" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"seconds": 0}, "seconds must be positive, got 0"),
        ({"forms": ["fp8"]}, "forms must be one of"),
    ],
)
def test_bad_arguments_are_named(resnet, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(resnet, **{"batch": 1, "threads": 1, **QUICK, **arguments})


def made_up(fp32, network="a", threads=1, **more):
    return {"network": network, "batch": 1, "threads": threads, "best_ms": {"fp32": fp32, "packed": 1.0}, **more}


def test_of_several_rounds_the_quietest_counts_unless_one_is_wrong():
    rows = [made_up(3.0), made_up(2.0), made_up(4.0), made_up(9.0, threads=2)]
    assert networks.quietest(rows) == [rows[1], rows[3]]
    wrong = made_up(5.0, wrong="why")
    assert networks.quietest([made_up(3.0), wrong, made_up(2.0)]) == [wrong]


def test_a_results_file_keeps_the_rows_of_other_networks(tmp_path):
    path = tmp_path / "networks.json"
    assert networks.replace_in(path, "rows", [made_up(1.0)]) == [made_up(1.0)]
    path.write_text(json.dumps({"rows": [made_up(1.0), made_up(2.0, "b")]}))
    assert networks.replace_in(path, "rows", [made_up(3.0)]) == [made_up(2.0, "b"), made_up(3.0)]


def test_a_wrong_result_is_an_error_or_a_row_and_the_other_settings_are_measured(monkeypatch, resnet, capsys):
    def measure(subject, batch, threads, *_):
        if batch == 2:
            raise ValueError("packed eager gives another result")
        return {"network": subject.name, "batch": batch, "threads": threads, "ms": {}, "best_ms": {}}

    monkeypatch.setattr(command, "measure", measure)
    options = Options(batch=(1, 2, 3), threads=(1, 2))
    rows = list(command.measured(resnet, options, keep_wrong=True))
    assert [(row["threads"], row["batch"], "wrong" in row) for row in rows] == [
        *((1, 1, False), (1, 2, True), (1, 3, False)),
        *((2, 1, False), (2, 2, True), (2, 3, False)),
    ]
    assert capsys.readouterr().out.count("resnet18: packed eager gives another result\n") == 2
    assert "another result" in printout.closing(rows, [])
    with pytest.raises(ValueError, match="another result"):
        list(command.measured(resnet, options))


# The command


@pytest.fixture
def no_peaks(monkeypatch):
    """No memory is measured, as on a system without /proc: that takes a fresh process for each form."""
    monkeypatch.setattr(memory, "_PROCESS", Path("/no/proc"))


FLAGS = ["--batch", "2", "--threads", "1", "--no-compile", "--seconds", "0.05", "--forms", "fp32", "packed"]


@pytest.mark.slow
def test_the_command_times_a_registered_model_and_writes_a_results_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "_in_fresh_process", lambda *arguments: 12_345_678)
    output = tmp_path / "result.json"
    assert main(["bench", "small_resnet", "--classes", "10", *FLAGS, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "small_resnet, batch 2, 1 threads" in shown
    assert "growth of a process" in shown
    written = json.loads(output.read_text())
    assert {"processor", "torch"} <= set(written["machine"])
    assert [row["network"] for row in written["rows"]] == ["small_resnet"]
    assert [row["network"] for row in written["bytes"]] == ["small_resnet"]


@pytest.mark.slow
def test_the_command_times_a_packed_file(resnet, no_peaks, tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    sk.save_packed(resnet.packed, path)
    assert main(["bench", str(path), *FLAGS, "--shape", "3", "32", "32"]) == 0
    shown = capsys.readouterr().out
    assert "packed eager" in shown
    assert "fp32 eager" not in shown
    assert main(["bench", str(path), *FLAGS]) == 2
    assert "shape must be given for a packed file: the sizes of one sample, as --shape 3" in capsys.readouterr().err
    features, _ = committed("mlp")
    sk.save_packed(sk.convert(features), path)
    assert main(["bench", str(path), *FLAGS]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False])
def test_the_command_times_a_packed_encoder(own, no_peaks, tmp_path, capsys):
    """Tokens, as many as its classifier was made for, or as it has positions."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = {"vocab_size": 50, "max_position_embeddings": 20, **sizes}
    options = {"model_type": "bert", **config}
    model = sk.models.create("bert", 3, config=options, max_length=10, binarize="both")
    if not own:
        float_model = transformers.BertForSequenceClassification(transformers.BertConfig(**config))
        model, _ = sk.prepare(float_model, {"input_ids": torch.arange(3)[None]})
    path = tmp_path / "net.safetensors"
    sk.save_packed(sk.convert(set_stage(model, Stage.BINARY)), path)
    for shape, length in ((None, 10 if own else 20), ([7], 7)):
        assert find(str(path), Options(shape=shape)).inputs(2)["input_ids"].shape == (2, length)
    assert main(["bench", str(path), *FLAGS, "--shape", "7"]) == 0
    assert "packed eager" in capsys.readouterr().out
    for shape in (["21"], ["0"], ["3", "224", "224"]):
        assert main(["bench", str(path), *FLAGS, "--shape", *shape]) == 2
        expected = rf"shape must be one number of tokens for Bert\w+, at most 20, got \[{', '.join(shape)}\]"
        assert re.search(expected, capsys.readouterr().err)


def test_the_command_says_what_it_takes(tmp_path, capsys):
    assert main(["bench", "resnet19", *FLAGS]) == 2
    assert "model must be one of bert, binary_vit, bireal18" in capsys.readouterr().err
    assert main(["bench", str(tmp_path), *FLAGS]) == 2
    assert "no run of `stompp train`" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["bench", "mlp", *FLAGS, "--device", "cuda"]) == 2
        assert "torch sees no NVIDIA GPU" in capsys.readouterr().err
