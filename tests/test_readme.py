"""The tables and figures of the README and the documentation are those of the results files."""

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.report import readme, tables
from benchmarks.report.data import KEPT, README_SOURCES, Results, mean_ratio
from benchmarks.report.figures import FOLDER, outdated

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


@pytest.fixture(scope="module")
def results():
    return Results(*README_SOURCES)


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_making_the_tables_again_changes_nothing(page, results):
    text = page.read_text()
    assert readme.filled(text, results, readme.PAGES[page]) == text, "python -m benchmarks.report --readme"


def test_the_kept_pictures_are_those_shown_and_drawn_from_the_result_files(results):
    shown = readme.kept_pictures()
    assert {path.name for path in (KEPT / FOLDER).iterdir()} == shown != set()
    assert not shown & set(outdated(results, KEPT / FOLDER)), "python -m benchmarks.report --readme"


def test_the_repository_holds_no_more_than_it_keeps():
    """Pages, raw timings and logs of runs are made by commands."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert sum(path.stat().st_size for path in files) < 4.8e6
    assert sum(path.stat().st_size for path in KEPT.glob("*.json")) < 1.5e5
    assert not [path for path in files if path.suffix in (".html", ".jsonl") and "results" in path.parts]


def test_every_table_of_results_and_picture_is_generated():
    outside = readme.MARKED.sub("", README.read_text())
    headers = re.findall(r"^(\|.*\|)\n\|---", outside, re.MULTILINE)
    assert headers == ["| page | what it answers |"]
    assert "![" not in outside
    shown = {found[2] for page in readme.PAGES for found in readme.MARKED.finditer(page.read_text())}
    assert set(readme.TABLES) <= shown


def test_the_demo_results_meet_their_targets(results):
    for name, least in (("demo_ste", 94), ("demo_ste_free", 85)):
        result = results.need(name)["result"]
        assert result["packed_accuracy"] >= least
        assert result["different_predictions"] == 0
        assert result["train_seconds"] < 240
        assert result["binarized_fp32_bytes"] >= 20 * result["binarized_packed_bytes"]
        assert all(layer["packed_ms"] < layer["float_ms"] for layer in result["layers"])


def test_no_case_of_the_suite_was_refused(results):
    for name in results.implementations("suite"):
        suite = results.need(f"suite_{name}")
        assert suite["refused"] == []
        for _, group, side in tables.KERNELS:
            for threads in tables.THREADS:
                assert mean_ratio(suite["rows"], group, side, threads) is not None, (group, side, threads)


def test_a_step_gets_faster_with_every_layer_committed(results):
    """What the README says in words, and at 0 % it takes the time of plain PyTorch."""
    plain, *committed = results.need("training_speed")["rows"]
    factors = [row["faster_than_0"] for row in committed]
    assert factors == sorted(factors)
    assert abs(plain["faster_than_0"] - 1) < 0.03


def test_the_networks_are_right_and_their_files_were_measured(results):
    networks = results.need("networks_avx2")
    assert "--no-memory" not in networks["command"]
    assert not [row for row in networks["rows"] if "wrong" in row]


def test_the_study_is_finished(results):
    for study, name in tables.STUDY.values():
        groups = {group["group"]: group for group in results.need(f"{study}/report")["groups"]}
        assert groups[name]["finished"] == len(groups[name]["seeds"]) >= 2
