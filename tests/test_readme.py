"""The README: its example runs as it stands, its figures are those of the results files."""

import json
import re
from pathlib import Path

from benchmarks.report import readme, tables
from benchmarks.report.data import IMPLEMENTATIONS, Results, mean_ratio
from benchmarks.report.figures import FOLDER, PLOTS, outdated
from benchmarks.report.page import page
from stompp_kernels.training.report.figures import Picture

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"


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


def test_making_the_report_again_changes_neither_readme_nor_page():
    """Nothing is drawn: the page holds the pictures as they are on disk."""
    results, text = Results(RESULTS), README.read_text()
    assert readme.filled(text, results) == text, "python -m benchmarks.report --readme"
    files = [(plot, RESULTS / FOLDER / plot.file) for plot in PLOTS]
    pictures = [Picture(plot.file, plot.title, plot.text, path.read_bytes()) for plot, path in files if path.exists()]
    assert page(results, pictures) == (RESULTS / "report.html").read_text(), "python -m benchmarks.report"


def test_the_pictures_are_drawn_from_the_result_files():
    assert outdated(Results(RESULTS), RESULTS / FOLDER) == [], "python -m benchmarks.report"


def test_every_table_of_results_and_picture_is_generated():
    outside = readme.MARKED.sub("", README.read_text())
    headers = re.findall(r"^(\|.*\|)\n\|---", outside, re.MULTILINE)
    assert headers == ["| | runs in | any machine |"]
    assert "![" not in outside
    assert set(readme.TABLES) <= {found[2] for found in readme.MARKED.finditer(README.read_text())}
    for target in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text()):
        assert (ROOT / target).exists(), target


def test_the_demo_results_meet_their_targets():
    for name, least in (("demo_ste", 94), ("demo_ste_free", 85)):
        result = json.loads((RESULTS / f"{name}.json").read_text())["result"]
        assert result["packed_accuracy"] >= least
        assert result["different_predictions"] == 0
        assert result["train_seconds"] < 240
        assert result["binarized_fp32_bytes"] >= 20 * result["binarized_packed_bytes"]
        assert all(layer["packed_ms"] < layer["float_ms"] for layer in result["layers"])


def test_no_case_of_the_suite_was_refused():
    for name in IMPLEMENTATIONS:
        results = json.loads((RESULTS / f"suite_{name}.json").read_text())
        assert results["refused"] == []
        for _, group, side in tables.KERNELS:
            for threads in tables.THREADS:
                assert mean_ratio(results["rows"], group, side, threads) is not None, (group, side, threads)


def test_a_step_gets_faster_with_every_layer_committed():
    """What the README says in words, and at 0 % it takes the time of plain PyTorch."""
    plain, *committed = json.loads((RESULTS / "training_speed.json").read_text())["rows"]
    factors = [row["faster_than_0"] for row in committed]
    assert factors == sorted(factors)
    assert abs(plain["faster_than_0"] - 1) < 0.03


def test_the_networks_are_right_and_their_files_were_measured():
    results = json.loads((RESULTS / "networks_avx2.json").read_text())
    assert "--no-memory" not in results["command"]
    assert not [row for row in results["rows"] if "wrong" in row]


def test_the_study_is_finished():
    report = json.loads((RESULTS / "resnet20_cifar10_small" / "report.json").read_text())
    groups = {group["group"]: group for group in report["groups"]}
    for name in tables.STUDY.values():
        assert groups[name]["finished"] == len(groups[name]["seeds"]) >= 2
