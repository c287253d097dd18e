"""The README: its example runs as it stands, its figures are those of the results files."""

import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    out = capsys.readouterr().out
    assert "bconv2d + threshold" in out
    assert (tmp_path / "network.safetensors").stat().st_size > 0
    assert (tmp_path / "network.pt2").stat().st_size > 0


def test_the_usage_example_is_short():
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    assert sum(bool(line.strip()) for line in code.group(1).splitlines()) <= 21


def test_the_demo_figures_are_those_of_the_results_files():
    rows = [line for line in README.read_text().splitlines() if line.startswith("|")]
    for column, name in ((2, "demo_ste"), (3, "demo_ste_free")):
        result = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["result"]
        cells = {row.split("|")[1].strip(): row.split("|")[column].strip() for row in rows}
        assert cells["test accuracy, fully binary"] == f"{result['accuracy']:.1f} %"
        same = result["test_images"] - result["different_predictions"]
        assert cells["packed predictions equal to the float simulation's"] == f"{same} of {result['test_images']}"
        size = result["binarized_fp32_bytes"] / result["binarized_packed_bytes"]
        assert cells["binarized layers, fp32 to packed file"] == f"{size:.1f}x smaller"
        ratios = [layer["float_ms"] / layer["packed_ms"] for layer in result["layers"]]
        layers = next(cell for row, cell in cells.items() if row.startswith("a binarized layer"))
        assert layers == f"{min(ratios):.1f}x to {max(ratios):.1f}x"
        float_ms, packed_ms = result["network_ms"]["64"]
        assert cells["the whole network, batch 64"] == f"{float_ms / packed_ms:.1f}x"


def test_the_demo_results_meet_their_targets():
    for name, least in (("demo_ste", 94), ("demo_ste_free", 85)):
        result = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["result"]
        assert result["packed_accuracy"] >= least
        assert result["different_predictions"] == 0
        assert result["train_seconds"] < 240
        assert result["binarized_fp32_bytes"] >= 20 * result["binarized_packed_bytes"]
        assert all(layer["packed_ms"] < layer["float_ms"] for layer in result["layers"])


KERNEL_ROWS = (  # (group of benchmarks.cpu, other side) of each row of the README's table, in order
    ("bgemm", "fp32"),
    ("bgemm few rows", "fp32"),
    ("bconv2d bits", "fp32"),
    ("bconv2d bits", "int8"),
    ("bconv2d float", "fp32"),
    ("bconv2d 1x1 bits", "fp32"),
    ("bconv2d depthwise bits", "fp32"),
    ("progressive", "eager"),
    ("BatchNorm + sign + pack", "two passes"),
)


@pytest.mark.parametrize(("column", "name"), [(2, "cpu_avx2"), (3, "cpu_avx512")])
def test_the_kernel_figures_are_those_of_the_results_files(column, name):
    results = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]
    starts = tuple(f"| `{op}`" for op in ("bgemm", "bconv2d", "progressive", "pack_outside"))
    lines = [line for line in README.read_text().splitlines() if line.startswith(starts)]
    expected = []
    for group, other in KERNEL_ROWS:
        means = [
            statistics.geometric_mean(
                row["ratios"][other] for row in results if row["group"] == group and row["threads"] == threads
            )
            for threads in (1, 2)
        ]
        expected.append(" / ".join(f"{mean:.1f}x" for mean in means))
    assert [line.split("|")[column].strip() for line in lines] == expected


def test_the_training_speed_is_that_of_the_results_file():
    rows = json.loads((ROOT / "benchmarks" / "results" / "training_speed.json").read_text())["rows"]
    plain, *committed = rows
    lines = {line.split("|")[1].strip(): line for line in README.read_text().splitlines() if line.startswith("|")}
    cells = {name: [cell.strip() for cell in line.split("|")[2:-1]] for name, line in lines.items()}
    assert cells["layers committed"] == [row["name"].removesuffix("% committed") + " %" for row in committed]
    speed = next(cell for name, cell in cells.items() if name.startswith("speed against 0 %"))
    assert speed == [f"{row['faster_than_0']:.1f}x" for row in committed]
    assert cells["MB kept for backward"] == [f"{row['kept_mbytes']:.0f}" for row in committed]
    # What the README says in words: falling at every point, at 0 % the time of plain PyTorch.
    factors = [row["faster_than_0"] for row in committed]
    assert factors == sorted(factors)
    assert abs(plain["faster_than_0"] - 1) < 0.03


NETWORKS = {
    "ResNet-18": "resnet18",
    "ResNet-50": "resnet50",
    "Bi-Real-18": "bireal18",
    "BERT-base, 128 tokens": "bert",
    "MobileNetV2": "mobilenet_v2",
}


def test_the_networks_figures_are_those_of_the_results_file():
    results = json.loads((ROOT / "benchmarks" / "results" / "networks_avx2.json").read_text())
    assert "--no-memory" not in results["command"]
    assert not [row for row in results["rows"] if "wrong" in row]
    rows = {row["network"]: row for row in results["rows"] if (row["batch"], row["threads"]) == (1, 1)}
    sizes = {row["network"]: row for row in results["bytes"]}
    lines = [line.split("|") for line in README.read_text().splitlines() if line.startswith("|")]
    cells = {line[1].strip(): [cell.strip() for cell in line[2:-1]] for line in lines if line[1].strip() in NETWORKS}
    assert list(cells) == list(NETWORKS)
    for title, name in NETWORKS.items():
        row, binarized = rows[name], sizes[name]["binarized"]
        assert cells[title] == [
            f"{row['best_ms']['fp32']:.1f} ms",
            f"{row['best_ms']['packed']:.1f} ms",
            f"{row['ratios']['fp32']:.1f}x",
            f"{row['ratios']['int8']:.1f}x",
            f"{row['bound']['packed_over_bound']:.2f}x",
            f"{binarized['fp32'] / binarized['file']:.1f}x",
        ]


TRAINED_ROWS = {  # rows of the README's table and the groups of the study
    "StoMPP + STE (clip)": "ste_clip",
    "StoMPP, STE-free": "ste_free_forward",
    "the same in reverse order": "ste_free_reverse",
    "vanilla STE, clip": "vanilla_clip",
    "vanilla STE, approx_sign": "vanilla_approx_sign",
    "vanilla STE, identity": "vanilla_identity",
    "weights only, forward": "bwn_forward",
    "weights only, reverse": "bwn_reverse",
}


def test_the_accuracies_are_those_of_the_study():
    report = json.loads((ROOT / "benchmarks" / "results" / "resnet20_cifar10_small" / "report.json").read_text())
    groups = {group["group"]: group for group in report["groups"]}
    rows = [line.split("|") for line in README.read_text().splitlines() if line.startswith("|")]
    cells = {row[1].strip(): row[2].strip() for row in rows}
    for name, group in TRAINED_ROWS.items():
        found = groups[group]
        assert found["finished"] == len(found["seeds"]) >= 2
        assert cells[name] == f"{found['accuracy']:.1f} ± {found['accuracy_std']:.1f} %"
