"""What the benchmarks compare is the same computation, and their summaries say what the rows do."""

import ast
import importlib
import sys
from pathlib import Path

import pytest
import torch

import stompp_kernels as sk
from benchmarks import gpu_bgemm, gpu_progressive, timing, training_speed
from stompp_kernels.bench.turns import Timing

ROOT = Path(__file__).parents[1]


def small_model():
    torch.manual_seed(0)
    x = torch.randn(4, 1, 8, 8)
    model, _ = sk.prepare(sk.models.SmallResNet(), x[:1])
    return model, x


def test_the_plain_network_computes_what_an_uncommitted_one_does():
    model, x = small_model()
    soft, plain = training_speed.commit(model, 0.0).train(), training_speed.plain(model).train()
    labels = torch.tensor([1, 2, 3, 4])
    for network in (soft, plain):
        torch.nn.functional.cross_entropy(network(x), labels).backward()
    assert torch.equal(soft(x), plain(x))
    gradients = {name: p.grad for name, p in soft.named_parameters()}
    assert all(torch.equal(p.grad, gradients[name]) for name, p in plain.named_parameters())


def test_less_is_kept_for_backward_the_more_is_committed():
    model, x = small_model()
    kept = [
        training_speed.kept_bytes(training_speed.commit(model, f), x, torch.tensor([1, 2, 3, 4]))
        for f in training_speed.FRACTIONS
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < kept[0] / 2


def row(ours, other, threads=1, name="case"):
    ms = {"ours": {"median": ours}, "other": {"median": other}}
    return {"group": "g", "name": name, "threads": threads, "ms": ms, "ratios": {"other": other / ours}}


def test_scaling_is_the_time_with_fewest_threads_over_that_with_more():
    text = timing.scaling([row(4.0, 9.0, 1), row(2.0, 5.0, 2), row(9.0, 9.0, 1, "b"), row(3.0, 9.0, 2, "b")])
    assert text.splitlines()[-1].split() == ["g", "2", "2.45x", "2.00x", "3.00x"]


@pytest.fixture
def gpu_timings_are_made_up(monkeypatch):
    """Every side runs once, and takes as many milliseconds as its place."""

    def compare(sides, rounds):
        for function in sides.values():
            function()
        return {name: Timing(place, place, place, 2) for place, name in enumerate(sides, start=1)}

    for module in (gpu_progressive, gpu_bgemm):
        monkeypatch.setattr(module, "compare_on_gpu", compare)
    monkeypatch.setattr(gpu_bgemm, "in_graph", lambda calls: lambda: [call() for call in calls])
    monkeypatch.setattr(torch, "compile", lambda function: function)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_gpu_benchmark_compares_equal_results_and_counts_the_ops_bytes(gpu_timings_are_made_up, channels_last):
    pytest.importorskip("triton")
    inputs = gpu_progressive.Inputs.make(torch.bfloat16, (3, 8, 4, 4), channels_last, device="cpu")
    copy, forward, backward, drawn = gpu_progressive.measure_passes(inputs, 2)
    assert (copy["name"], copy["of_copy"]) == ("copy", 1.0)
    # 2 bytes read and written, a bit of the gate: 33/32 of a copy's bytes, in twice, three and four times its time.
    of_copy = [row["of_copy"] for row in (forward, backward, drawn)]
    assert of_copy == [pytest.approx(33 / 32 / times) for times in (2, 3, 4)]
    ours, drawn, eager, _ = gpu_progressive.measure_training(inputs, 2)
    assert (ours["over_ours"], eager["over_ours"]) == (1.0, 3.0)
    assert ours["kept_of_u"] == drawn["kept_of_u"] == 1 / 16
    assert eager["kept_of_u"] > 1


def test_the_gpu_benchmark_does_not_time_a_wrong_formula(gpu_timings_are_made_up, monkeypatch):
    pytest.importorskip("triton")
    inputs = gpu_progressive.Inputs.make(torch.bfloat16, (3, 8, 4, 4), False, device="cpu")
    monkeypatch.setattr(gpu_progressive, "formula", lambda u, frozen: u.clamp(-1, 1))
    with pytest.raises(AssertionError, match="wrong result"):
        gpu_progressive.measure_training(inputs, 2)


def test_the_gpu_products_are_timed_by_call_and_their_stack_with_one_packing(gpu_timings_are_made_up):
    many = gpu_bgemm.measure(gpu_bgemm.gemm_case("g", 40, 64, 96, "cpu"), 2)
    assert many["ratios"] == {"bf16": 2.0, "int8": 3.0}
    assert many["pops"] == 2 * 40 * 64 * 96 / 1e12
    case = gpu_bgemm.gemm_case("few rows", 2, 64, 96, "cpu", cache=64 * 96 * 4)
    assert len(case.others["bf16"]) == 3  # weights of 2 bytes an element, in a cache of 4 and one more
    calls = len(case.ours)
    assert len(case.others["copy"]) == calls > 3
    few = gpu_bgemm.measure(case, 2)
    assert few["ratios"] == {"bf16": pytest.approx(2 / 3 * calls)}
    assert few["of_copy"] == pytest.approx(3 * case.bytes / case.copy)
    layers = [
        gpu_bgemm.measure(gpu_bgemm.conv_case("ResNet-18, 3x3", 32, 40, 7, stride, 3, "cpu"), 2) for stride in (1, 2)
    ]
    packing = gpu_bgemm.measure(gpu_bgemm.packing_case("NHWC", (5, 40, 6, 6), True, "cpu"), 2)
    assert packing["of_copy"] == pytest.approx(
        17 / 16
    )  # 17/16 of what is read, in half the time of a copy, which writes as much
    assert gpu_bgemm.stack([*layers, packing])["ratios"] == {"bf16": 4 / 3}
    assert gpu_bgemm.stack(layers) is None


def test_the_gpu_products_are_not_timed_when_wrong(gpu_timings_are_made_up, monkeypatch):
    monkeypatch.setattr(gpu_bgemm, "bgemm", lambda a, weight: torch.zeros(40, 64, dtype=torch.int32))
    with pytest.raises(AssertionError, match="wrong result"):
        gpu_bgemm.measure(gpu_bgemm.gemm_case("g", 40, 64, 96, "cpu"), 2)
    monkeypatch.setattr(gpu_bgemm, "bconv2d", lambda words, *_, **__: words)
    with pytest.raises(AssertionError, match="wrong result"):
        gpu_bgemm.measure(gpu_bgemm.conv_case("g", 32, 32, 7, 1, 3, "cpu"), 2)


@pytest.mark.parametrize(
    "module",
    [
        "benchmarks.gpu_progressive",
        "benchmarks.gpu_bgemm",
        "benchmarks.gpu_blocks",
        "benchmarks.training_speed --device cuda",
    ],
)
def test_gpu_benchmarks_say_that_they_need_a_gpu(module, monkeypatch, capsys):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", module.split())
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module.split()[0]).main()
    assert ended.value.code == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_every_option_of_a_benchmark_says_what_it_is():
    silent = []
    for path in (ROOT / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            takes_help = getattr(getattr(node, "func", None), "attr", "") in ("add_argument", "addoption")
            if takes_help and not any(keyword.arg == "help" for keyword in node.keywords):
                silent.append(f"{path.name}: {ast.unparse(node)}")
    assert silent == []
