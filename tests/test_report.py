"""The report on runs: what it reads from logs, its numbers, the page and the figures."""

import json
import re
import sys

import numpy as np
import pytest
from processes import run_python
from report_page import Page

from stompp_kernels.training.report import Group, group_runs, read_run, summary, write_report
from stompp_kernels.training.report.figures import _decades, _table, draw
from stompp_kernels.training.report.logs import DIAGNOSTICS

UNITS, WARMUP, WINDOW, TOTAL = 4, 60, 40, 280
COMMITS = [WARMUP + WINDOW * (i + 1) for i in range(UNITS)]
DIP, SLOPE = 12.0, 0.05


def batch_accuracy(step, dip):
    """Steady learning, and a dip in the quarter of a window after each commit."""
    return 40 + SLOPE * step - dip * any(0 < step - commit <= WINDOW // 4 for commit in COMMITS)


def records(seed=0, name="bnn", dip=DIP, stop=TOTAL, final=60.0, **recipe):
    """The log of a run of 4 units that ends, or is killed, at ``stop``."""
    recipe = {
        "name": f"{name}_seed{seed}",
        "model": {"name": "resnet20", "binarize": "both" if dip else "weights"},
        "data": {"name": "digits"},
        "progression": {"regime": "ste_free", "surrogate": "identity", "order": "forward"},
        "seed": seed,
        "paper": None,
        **recipe,
    }
    units = [f"blocks.{i}.conv" for i in range(UNITS)]
    windows = [[commit - WINDOW, commit] for commit in COMMITS]
    start = {"recipe": recipe, "units": units, "windows": windows, "total_steps": TOTAL, "num_classes": 10}
    log = [{"event": "start", "step": 0, **start, "steps_per_epoch": 40, "parameters": 1, "machine": {}}]
    for step in range(1, stop + 1):
        frontier = sum(step >= commit for commit in COMMITS)
        if step in COMMITS:
            index = COMMITS.index(step)
            log.append(
                {"event": "commit", "step": step, "unit": units[index], "index": index, "frozen": 0.8 + index / 50}
            )
        if step % 10 == 0:
            accuracies = [batch_accuracy(s, dip) for s in range(step - 9, step + 1)]
            values = {"frontier": frontier, "step_ms": 8.0 - frontier, "accuracies": accuracies, "losses": [1.0] * 10}
            log.append({"event": "step", "step": step, "epoch": step / 40, "lr": 0.1, "p": 0.0, **values})
            values = dict.fromkeys(DIAGNOSTICS, [0.25] * UNITS)
            values["gradient_norm"] = [None if i < frontier else 10.0**-i for i in range(UNITS)]
            log.append({"event": "diagnostics", "step": step, **values})
        if step % 40 == 0:
            accuracy = final - 0.01 * (stop - step)
            log.append({"event": "evaluation", "step": step, "accuracy": accuracy, "loss": 1.0, "frontier": frontier})
    if stop == TOTAL:
        end = {"accuracy": final, "best_accuracy": final + 1, "seconds": 100.0 + seed}
        log.append({"event": "end", "step": TOTAL, **end})
    return log


def write_run(folder, log, cut=0):
    """A run's folder; ``cut`` bytes of the log's end are missing."""
    folder.mkdir(parents=True)
    text = "".join(json.dumps(record) + "\n" for record in log).encode()
    (folder / "log.jsonl").write_bytes(text[: len(text) - cut])
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two seeds of a BNN, of a BWN, whose second run was killed; the report's folder and the files written."""
    root = tmp_path_factory.mktemp("report")
    paper = {"row": "BNN <ResNet-50> & CIFAR-10", "top1": 69.5}
    runs = [
        write_run(root / "runs/bnn_0", records(0, final=60.0, paper=paper)),
        write_run(root / "runs/bwn_0", records(0, "bwn", dip=0.0, final=80.0)),
        write_run(root / "runs/bnn_1", records(1, final=62.0, paper=paper)),
        write_run(root / "runs/bwn_1", records(1, "bwn", dip=0.0, stop=200, final=70.0), cut=20),
    ]
    return root / "out", write_report(runs, root / "out", title="BNN <b>against</b> BWN"), runs


def test_the_files_are_the_page_the_numbers_and_whole_figures(report):
    from matplotlib.image import imread

    output, files, _ = report
    assert files[0] == output / "report.html"
    assert sorted(files) == sorted(output.iterdir()), "all are listed, and no temporary file is left"
    figures = sorted(path.stem for path in files if path.suffix == ".png")
    assert figures == [
        *("around_commits", "batch_accuracy", "flip_ratio", "frozen"),
        *("gradient_norm", "loss", "saturation", "step_time", "test_accuracy"),
    ]
    for path in files:
        if path.suffix == ".png":
            pixels = imread(path)
            assert min(pixels.shape[:2]) > 150
            assert pixels.std() > 0.01, f"{path.name} is blank"


def test_the_page_holds_all_that_it_shows_and_escapes_text(report):
    output, files, _ = report
    text = (output / "report.html").read_text()
    page = Page(text)
    pictures = [reference for reference in page.references if reference.startswith("data:image/png;base64,")]
    assert page.references == pictures
    assert len(pictures) == sum(path.suffix == ".png" for path in files)
    assert not re.search(r"https?://|url\(|@import", text)
    assert page.tags.isdisjoint({"script", "link", "iframe", "b"})
    assert "<h1>BNN &lt;b&gt;against&lt;/b&gt; BWN</h1>" in text
    assert "BNN &lt;ResNet-50&gt; &amp; CIFAR-10" in text


def test_the_table_shows_mean_spread_and_distance_to_the_paper(report):
    output, _, _ = report
    page = Page((output / "report.html").read_text())
    bnn, bwn = page.rows("final")
    assert bnn["recipe"] == "bnn resnet20 on digits"
    assert [bnn[key] for key in ("regime", "surrogate", "order", "binarized")] == ["ste_free", "", "forward", "both"]
    assert [bnn[key] for key in ("seeds", "steps", "final", "best")] == ["0, 1", "280", "61.0 ± 1.4 (2)", "62.0"]
    assert (bnn["frozen"], json.loads((output / "report.json").read_text())["groups"][0]["frozen"]) == ("83", 83.0)
    assert [bnn[key] for key in ("chance", "difference", "seconds")] == ["10.0", "-8.5", "100"]
    assert bnn["paper"] == "69.5 BNN <ResNet-50> & CIFAR-10"
    assert bwn["final"] == "80.0 (1) 1 of 2 unfinished"
    assert [bwn["paper"], bwn["difference"]] == ["", ""]

    states = {row["folder"]: (row["state"], row["note"]) for row in page.rows("folder")}
    assert states["bnn_1"] == ("finished", "")
    assert states["bwn_1"][0] == "unfinished: step 200 of 280"
    assert re.fullmatch(r"line \d+, the last one, is damaged and left out", states["bwn_1"][1])


def test_the_table_has_packed_figures_times_and_links_to_recipes(tmp_path):
    runs = [write_run(tmp_path / "a run" / str(seed), records(seed, epochs=7)) for seed in range(2)]
    for seed, run in enumerate(runs):
        (run / "packed.json").write_text(json.dumps({"accuracy": 60.0 + seed, "bytes": 1000}))
    (runs[0] / "recipe.json").write_text("{}")
    write_report(runs, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    (row,) = Page(text).rows("final")
    assert [row["packed"], row["ms a step"], row["steps"]] == ["60.5 1,000 bytes", "6.0", "280 7 epochs"]
    assert re.findall(r'<a href="(.*?)">', text) == ["../a%20run/0/recipe.json"]
    (runs[0] / "packed.json").write_text("[]")
    with pytest.raises(ValueError, match=r"packed\.json' must hold keys and values, got \[\]"):
        summary(runs)


@pytest.mark.slow
def test_a_study_stands_for_its_runs_and_a_report_for_none(tmp_path):
    write_run(tmp_path / "alone", records(0, "alone"))
    for seed in range(2):
        write_run(tmp_path / "study" / f"bnn_seed{seed}", records(seed))
    write_report([tmp_path / "study"], tmp_path / "study" / "report")
    (tmp_path / "study" / "wanted").mkdir()
    write_report([tmp_path / "alone", tmp_path / "study"], tmp_path / "out")
    write_report(
        sorted(tmp_path.iterdir()), tmp_path / "out"
    )  # as the shell gives runs/*, an earlier report among them
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert [row["folder"] for row in page.rows("folder")] == ["alone", "study/bnn_seed0", "study/bnn_seed1"]
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match=r"run must be a folder that stompp train wrote, got '.*other'"):
        write_report(sorted(tmp_path.iterdir()), tmp_path / "out")


def diverging(factor):
    log = records()
    for record in log:
        if record["event"] == "diagnostics":
            record["gradient_norm"] = [None if v is None else v * factor for v in record["gradient_norm"]]
    return log


@pytest.mark.slow
def test_a_run_that_diverges_does_not_decide_on_the_colours_of_the_others(tmp_path):
    logs = {"good": diverging(1.0), "bad": diverging(1e11), "other": diverging(2.0)}
    groups = [Group(name, (read_run(write_run(tmp_path / name, log)),)) for name, log in logs.items()]
    tables = [table[np.isfinite(table)] for table in (_table(g.runs[0], "gradient_norm")[1] for g in groups)]
    for chosen in (tables, tables[:2]):
        norm = _decades(chosen)
        assert norm.vmax <= 2.0
        assert norm.vmin >= 1e-3 * 0.99
    assert draw(groups)


def test_sparse_records_are_not_painted_over_the_steps_between(tmp_path):
    log = [r for r in records() if r["event"] != "diagnostics" or r["step"] <= 50 or r["step"] == 280]
    edges, table = _table(read_run(write_run(tmp_path / "run", log)), "frozen")
    assert edges.tolist() == [0, 10, 20, 30, 40, 50, 270, 280]
    assert np.isnan(table).any(axis=0).tolist() == [False] * 5 + [True, False]


def test_the_dip_is_that_of_the_bnn_and_none_of_the_bwn(report):
    output, _, runs = report
    bnn, bwn = json.loads((output / "report.json").read_text())["groups"]
    assert [bnn, bwn] == summary(runs)
    assert bnn["sawtooth"]["dip"] == pytest.approx(DIP, abs=1e-3), "steady learning is kept out"
    assert bnn["sawtooth"]["dip_std"] == pytest.approx(0, abs=1e-3)
    assert bwn["sawtooth"]["dip"] == pytest.approx(0, abs=1e-3)
    assert bnn["sawtooth"]["window"] == WINDOW
    assert bnn["sawtooth"]["commits"] == 2 * UNITS
    assert bwn["sawtooth"]["commits"] == UNITS + 2, "the killed run saw two commits and enough steps after them"

    change = SLOPE * WINDOW / 4
    assert bwn["sawtooth"]["after"] - bwn["sawtooth"]["before"] == pytest.approx(change, abs=1e-3)
    assert bnn["sawtooth"]["after"] - bnn["sawtooth"]["before"] == pytest.approx(change - DIP, abs=1e-3)
    assert bwn["sawtooth"]["at_start"] == pytest.approx(change, abs=1e-3)
    starts_in_a_dip = (UNITS - 1) / UNITS  # the first window starts where nothing was committed
    assert bnn["sawtooth"]["at_start"] == pytest.approx(change - DIP * starts_in_a_dip, abs=1e-3)

    page = Page((output / "report.html").read_text())
    teeth = {row["recipe"]: row["depth of the dip"] for row in page.rows("depth of the dip")}
    assert teeth == {"bnn": "12.00 ± 0.00 (8)", "bwn": "0.00 ± 0.00 (6)"}


def test_a_run_that_has_just_begun_makes_a_page_without_figures(tmp_path):
    run = write_run(tmp_path / "run", records(stop=0))
    output = tmp_path / "out"
    output.mkdir()
    (output / "saturation.png").write_bytes(b"of another report")
    (output / "notes.txt").write_text("kept")
    assert write_report([run], output) == [output / "report.html", output / "report.json"]
    assert sorted(path.name for path in output.iterdir()) == ["notes.txt", "report.html", "report.json"]
    row = json.loads((output / "report.json").read_text())["groups"][0]
    assert [row["accuracy"], row["finished"], row["sawtooth"], row["seconds"]] == [None, 0, None, None]


def test_a_group_without_a_finished_run_shows_its_last_evaluations(tmp_path):
    runs = [write_run(tmp_path / str(seed), records(seed, stop=120, final=30.0 + seed)) for seed in range(2)]
    (row,) = summary(runs)
    assert [row["accuracy"], row["finished"], row["steps"], row["total_steps"]] == [30.5, 0, 120, TOTAL]


def test_a_resumed_run_counts_its_repeated_steps_once(tmp_path):
    log = records()
    again = [{"event": "resume", "step": 200}, *(record for record in log if record["step"] > 200)]
    once, twice = write_run(tmp_path / "once", log), write_run(tmp_path / "twice", [*log, *again])
    assert summary([once]) == summary([twice])


def test_groups_are_recipes_and_their_labels_tell_them_apart(tmp_path):
    reverse = {"regime": "ste_free", "surrogate": "identity", "order": "reverse"}
    logs = [records(1), records(0, output="elsewhere"), records(0, progression=reverse), records(10, "other", epochs=3)]
    groups = group_runs([read_run(write_run(tmp_path / str(i), log)) for i, log in enumerate(logs)])
    assert [group.label for group in groups] == ["bnn, order forward", "bnn, order reverse", "other"]
    assert [[run.name for run in group.runs] for group in groups] == [["1", "0"], ["2"], ["3"]]


STEP = {"event": "step", "step": 1}
EVALUATION = {"event": "evaluation", "step": 1, "accuracy": None, "loss": 1.0, "frontier": 0}
DIAGNOSTIC = {"event": "diagnostics", "step": 1, **{name: [1.0] for name in DIAGNOSTICS}}


@pytest.mark.parametrize(
    ("place", "line", "message"),
    [
        (3, '{"event": "st', r"log\.jsonl, line 4: must be a JSON object with a key 'event', got b'{\"event\": \"st'"),
        (2, "[1]", "line 3: must be a JSON object"),
        (2, '{"step": 1}', "line 3: must be a JSON object with a key 'event'"),
        (0, json.dumps(STEP), "line 1: the first record must be 'start', got 'step'"),
        (1, json.dumps(STEP), "line 2: 'step' record lacks the key 'accuracies'"),
        (1, json.dumps(EVALUATION), r"line 2: float\(\)"),
        (1, json.dumps(DIAGNOSTIC), "line 2: gradient_norm must be one number a unit, 4"),
    ],
)
def test_a_damaged_log_is_an_error_that_names_file_and_line(tmp_path, place, line, message):
    run = write_run(tmp_path / "run", records())
    lines = (run / "log.jsonl").read_text().splitlines()
    lines.insert(place, line)
    (run / "log.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        summary([run])


def test_a_log_without_its_start_is_an_error(tmp_path):
    run = write_run(tmp_path / "run", records(stop=0), cut=20)
    with pytest.raises(ValueError, match=r"log\.jsonl: must begin with a 'start' record"):
        summary([run])


def test_wrong_arguments_are_errors_before_anything_is_written(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", records(stop=0))
    with pytest.raises(FileNotFoundError, match=r"must be a folder that stompp train wrote.*log\.jsonl"):
        summary([tmp_path])
    with pytest.raises(ValueError, match="one folder or more, got none"):
        summary([])
    with pytest.raises(ValueError, match=r"different folders, got .*run' twice"):
        summary([run, tmp_path / "." / "run"])
    with pytest.raises(ValueError, match="output must be a folder, got the file"):
        write_report([run], run / "log.jsonl")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"stompp_kernels\[report\]"):
        write_report([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_kit_knows_no_report_and_the_package_neither_kit_nor_benchmarks():
    code = """
import sys
import stompp_kernels
above = ("report", "bench", "training", "cli")
assert not [name for name in sys.modules if name.startswith("stompp_kernels.") and name.split(".")[1] in above]
from stompp_kernels.report import figures, folder, html, png
assert not [name for name in sys.modules if name.startswith(("stompp_kernels.training", "stompp_kernels.bench"))]
assert "matplotlib" not in sys.modules
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
