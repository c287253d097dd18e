"""The report on result files: its arithmetic, the page, the pictures' digests, and what stands in a README."""

import base64
import json
import re
import shutil
import sys

import pytest
from report_page import Page

from benchmarks import keep
from benchmarks.report import readme, tables
from benchmarks.report.__main__ import main, write
from benchmarks.report.data import FILES, STUDIES, Results, mean_ratio, sides
from benchmarks.report.figures import PLOTS, outdated
from benchmarks.roofline import Ceilings
from stompp_kernels.report import png

MACHINE = {"commit": "abc123def456", "processor": "Made-up <9000>", "features": "avx2 fma", "torch": "9.9"}


def suite_row(group, name, threads=1, ours=2.0, operations=4_000_000, nbytes=1000, clock=1.0, **ratios):
    ms = {side: {"median": t, "p20": 0.9 * t, "p80": 1.2 * t, "calls": 5} for side, t in {"ours": ours}.items()}
    ms |= {side: {"median": r * ours, "p20": r, "p80": 3 * r, "calls": 5} for side, r in ratios.items()}
    return {
        "op": "bgemm",
        "group": group,
        "name": name,
        "threads": threads,
        "kind": "binary",
        "operations": operations,
        "bytes": nbytes,
        "gops": operations / ours / 1e6,
        "gbytes_per_s": nbytes / ours / 1e6,
        "ratios": ratios,
        "spread": {side: [0.8 * ratio, 1.1 * ratio] for side, ratio in ratios.items()},
        "ms": ms,
        "clock_ms": clock,
    }


SUITE = [
    suite_row("bgemm", "256 x 256 x 4096", eager=8.0, compiled=2.0),
    suite_row("bgemm", "4096 x 4096 x 4096", eager=8.0, compiled=9.0, clock=1.3),
    suite_row("bgemm", "256 x 256 x 4096", threads=2, ours=1.0, eager=3.0, compiled=5.0),
    suite_row("pack_signs", "fp32", operations=0, eager=5.0, compiled=6.0, copy=1.5),
]
CEILINGS = [
    {"name": "binary", "threads": 1, "per_second": 4e9},
    {"name": "read", "threads": 1, "bytes": 100, "bytes_per_second": 4e6},
    {"name": "read", "threads": 1, "bytes": 10_000, "bytes_per_second": 2e6},
    {"name": "copy", "threads": 1, "bytes": 1000, "bytes_per_second": 1e6},
]
TRAINING = [
    {"name": name, "ms": 1.0, "faster_than_0": faster, "kept_mbytes": kept}
    for name, faster, kept in (("plain PyTorch", 0.99, 80.0), ("0% committed", 1.0, 80.0), ("100% committed", 4.0, 2.0))
]
NETWORKS = [
    {
        "network": "resnet18",
        "batch": 1,
        "threads": 1,
        "best_ms": {"fp32": 40.0, "packed": 8.0},
        "ratios": {"fp32": 5.0},
        "bound": {"ms": 6.0, "packed_over_bound": 1.33},
    },
    {"network": "bert", "batch": 1, "threads": 1, "ms": {}, "best_ms": {}, "wrong": "differs in layer 3"},
]
DEPTH = [
    {
        "group": f"{regime}_{layers:02}",
        "seeds": [0, 1],
        "finished": 2,
        "accuracy": 90.0 - layers,
        "accuracy_std": 1.4,
        "accuracies": [89.0 - layers, 91.0 - layers],
    }
    for regime in ("ste", "ste_free", "vanilla_ste")
    for layers in (4, 32)
]
BLOCKADES = [
    {
        **DEPTH[0],
        "group": f"{surrogate}_{unit}",
        "accuracies": [90.0 + unit, 91.0],
        "blockade": {
            "unit": unit,
            "surrogate": surrogate,
            "rest": "soft",
            "gradient_behind": 0.01,
            "gradient_ahead": 0.02,
        },
    }
    for surrogate, unit in ((None, 0), ("none", 1), ("none", 2), ("clip", 1))
]
GPU_PRODUCTS = [
    {"group": "cubes", "name": "8 x 8 x 8", "pops": 1.5, "ratios": {"bf16": 7.0}, "ms": {"ours": {"median": 0.25}}},
    {"group": "packing", "name": "NHWC", "pops": 0.0, "ratios": {}, "ms": {"ours": {"median": 2.0}}, "of_copy": 0.9},
]
GPU_PASSES = [
    {"group": "bf16", "name": "forward", "median": 0.5, "of_copy": 0.95},
    {"group": "bf16", "name": "both ways: eager", "median": 3.0, "over_ours": 4.0, "kept_of_u": 1.5},
]
MADE_UP = {
    "suite_avx2": {"command": "pytest benchmarks", "machine": MACHINE, "refused": ["bgemm: <odd>"], "rows": SUITE},
    "ceilings_avx2": {"command": "ceilings", "machine": MACHINE, "rows": CEILINGS},
    "peers_avx2": {
        "command": "peers",
        "machine": MACHINE,
        "missing": {"larq": "no wheel for it"},
        "wrong": ["1 x 2 x 4: other integers"],
        "versions": {"onnxruntime": "1.2"},
        "rows": [{**suite_row("bgemm", "1 x 2 x 3", onnxruntime=7.25), "how": {"onnxruntime": "MatMul"}}],
    },
    "networks_avx2": {"command": "networks", "machine": MACHINE, "rows": NETWORKS, "bytes": []},
    "gpu_bgemm": {"command": "gpu_bgemm", "machine": MACHINE, "rows": GPU_PRODUCTS},
    "gpu_progressive": {"command": "gpu_progressive", "machine": MACHINE, "rows": GPU_PASSES},
    "gpu_rates": {"command": "gpu_rates", "machine": MACHINE, "rows": [{"name": "mma", "operations_per_s": 9e15}]},
    "training_speed": {"command": "training_speed", "machine": MACHINE, "rows": TRAINING},
    "depth_digits/report": {"groups": DEPTH, "runs": []},
    "blockade_digits/report": {"groups": BLOCKADES, "runs": []},
}


def put(folder, files):
    for name, content in files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path):
    return put(tmp_path / "results", MADE_UP)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The report on the made-up files."""
    root = tmp_path_factory.mktemp("made_up")
    write(Results(put(root / "results", MADE_UP)), root / "output")
    return root / "output"


@pytest.fixture(scope="module")
def page(output):
    return Page((output / "report.html").read_text())


def test_a_bound_is_the_larger_of_both_times():
    ceilings = Ceilings(CEILINGS)
    by_operations = ceilings.bound(suite_row("g", "n", operations=4_000_000, nbytes=1000))
    assert (by_operations.by, by_operations.seconds) == ("operations", pytest.approx(1e-3))
    assert by_operations.share(2.0) == pytest.approx(0.5)
    by_bytes = ceilings.bound(suite_row("g", "n", operations=400, nbytes=1000))  # 1000 bytes at 3 MB/s
    assert (by_bytes.by, by_bytes.seconds) == ("bytes", pytest.approx(1000 / 3e6))
    copied = ceilings.bound(suite_row("g", "n", operations=0, nbytes=500))
    assert (copied.by, copied.seconds) == ("bytes", pytest.approx(500 / 1e6))


def test_a_bandwidth_is_on_the_line_in_the_logarithm_of_the_size():
    ceilings = Ceilings(CEILINGS[::-1])
    assert ceilings.bytes_per_second("read", 1, 1000) == pytest.approx(3e6), "half-way from 100 to 10,000"
    assert ceilings.bytes_per_second("read", 1, 10) == ceilings.bytes_per_second("read", 1, 100) == 4e6
    assert ceilings.bytes_per_second("read", 1, 10_000) == ceilings.bytes_per_second("read", 1, 1 << 40) == 2e6
    two = Ceilings([{**row, "threads": 2} for row in CEILINGS])
    assert two.bytes_per_second("read", 2, 2000) == pytest.approx(3e6), "each thread has half of the bytes"


def test_there_is_no_bound_where_a_ceiling_was_not_measured():
    ceilings = Ceilings(CEILINGS)
    assert ceilings.bound(suite_row("g", "n", threads=2)) is None
    assert ceilings.bound({**suite_row("g", "n"), "kind": "signed sum"}) is None
    assert Ceilings([row for row in CEILINGS if row["name"] != "copy"]).bound(suite_row("g", "n", operations=0)) is None


def test_the_better_of_eager_and_compiled_counts():
    assert sides(SUITE[0]) == {"PyTorch": 2.0}
    assert sides(SUITE[3]) == {"PyTorch": 5.0, "copy": 1.5}
    assert mean_ratio(SUITE, "bgemm", "PyTorch", 1) == pytest.approx(4.0), "of 2 and 8"
    assert mean_ratio(SUITE, "bgemm", "copy", 1) is None


def test_the_page_shows_every_case_with_its_bound(page):
    cases = page.rows("share")
    assert [(row["group"], row["case"], row["threads"]) for row in cases] == [
        (row["group"], row["name"], str(row["threads"])) for row in SUITE
    ]
    first, _, two_threads, packed = cases
    assert (first["ms"], first["p20 to p80"], first["speed"]) == ("2", "1.8 to 2.4", "2 GOPS")
    assert (first["eager"], first["copy"]) == ("8.00x 6.40 to 8.80", "")
    assert (first["bound, ms"], first["bound by"], first["share"]) == ("1", "operations", "50 %")
    assert (two_threads["bound, ms"], two_threads["share"]) == ("", ""), "no ceiling with two threads"
    assert (packed["speed"], packed["bound by"], packed["share"]) == ("0.0 GB/s", "bytes", "50 %")
    assert packed["copy"] == "1.50x 1.20 to 1.65"


def test_the_page_says_where_and_by_what_files_were_made(page):
    rows = {row["file"]: row for row in page.rows("processor")}
    assert set(rows) == {f"{name}.json" for name in MADE_UP}
    assert {key: rows["suite_avx2.json"][key] for key in MACHINE} == MACHINE
    assert "pytest benchmarks" in rows["suite_avx2.json"]["made by"]


def test_the_page_names_what_is_missing_refused_or_doubtful(page):
    items = page.items
    for name, command in FILES.items():
        named = any(item.startswith(f"{name}.json is missing: {command}") for item in items)
        assert named == (name not in MADE_UP), name
    assert "suite, AVX2: bgemm: <odd>: refused, its result was wrong." in items
    slow = [item for item in items if "slowed down" in item]
    assert slow == ["suite, AVX2: 1 of 4 were measured while a core was slowed down."]
    assert "networks, AVX2: bert: differs in layer 3" in items
    assert "peers, AVX2: 1 x 2 x 4: other integers" in items
    assert {"larq is left out: no wheel for it", "onnxruntime 1.2"} <= set(items)


def test_the_page_has_what_a_gpu_left(page):
    products = [(row["bf16"], row["int8"], row["of a copy"], row["Pop/s"]) for row in page.rows("bf16")]
    assert products == [("7.00x", "", "", "1.500"), ("", "", "90 %", "")]
    assert [(row["of a copy"], row["of our time"]) for row in page.rows("of our time")] == [
        ("95.0 %", ""),
        ("", "4.00x"),
    ]
    assert [row["Pop/s"] for row in page.rows("instruction")] == ["9.000"]
    assert not any(item.startswith("gpu_") for item in page.items)


def test_without_any_result_of_a_gpu_one_line_says_what_makes_them(tmp_path):
    files = {name: file for name, file in MADE_UP.items() if not name.startswith("gpu_")}
    assert Results(put(tmp_path, files)).missing()["gpu_*.json"] == "bash benchmarks/gpu_check.sh OUT"


def test_the_page_has_groups_peers_networks_ceilings_and_studies(page):
    groups = {(row["group"], row["against"]): row for row in page.rows("against")}
    assert groups["bgemm", "eager"]["mean, threads: 1"] == "8.00x"
    assert groups["bgemm", "compiled"]["range, threads: 1"] == "2.00 to 9.00"
    assert groups["pack_signs", "copy"]["mean, threads: 2"] == "", "not timed with two threads"
    assert [row["onnxruntime"] for row in page.rows("onnxruntime")] == ["7.25x 5.80 to 7.98 MatMul"]
    assert [row["speedup over fp32"] for row in page.rows("packed, ms")] == ["5.00x"]
    assert [row["speed"] for row in page.rows("ceiling")] == ["4 GOPS", "0.0 GB/s", "0.0 GB/s", "0.0 GB/s"]
    studies = [len(rows) - 1 for rows in page.tables if "test accuracy, %" in rows[0]]
    assert studies == [len(BLOCKADES), len(DEPTH)]


def test_the_page_holds_its_pictures(page, output):
    pictures = [base64.b64decode(picture.removeprefix("data:image/png;base64,")) for picture in page.references]
    assert pictures == [(output / "figures" / plot.file).read_bytes() for plot in PLOTS]


def test_pictures_are_not_blank(output):
    from matplotlib.image import imread

    for plot in PLOTS:
        pixels = imread(output / "figures" / plot.file)
        assert min(pixels.shape[:2]) > 150
        assert pixels.std() > 0.01, f"{plot.name} is blank"


def test_a_page_is_made_from_nothing(tmp_path):
    (tmp_path / "results").mkdir()
    write(Results(tmp_path / "results"), tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.items) == len(FILES) + len(STUDIES) + 1, "one for those of a GPU"
    assert page.references == []


CHANGES = [  # file, change, figures that show it
    ("suite_avx2", lambda file: file["rows"][0]["ratios"].update(compiled=2.5), ["speedups.png"]),
    ("suite_avx2", lambda file: file["rows"][1].update(gops=99.0), ["roofline.png", "sizes.png"]),
    ("suite_avx2", lambda file: file["rows"][0]["ms"]["ours"].update(median=3.0), ["roofline.png", "threads.png"]),
    ("suite_avx2", lambda file: file["rows"][0]["ms"]["ours"].update(p80=3.0), []),
    ("ceilings_avx2", lambda file: file["rows"][0].update(per_second=5e9), ["roofline.png"]),
    ("networks_avx2", lambda file: file["rows"][0]["best_ms"].update(packed=9.0), ["networks.png"]),
    ("networks_avx2", lambda file: file["rows"][0]["bound"].update(ms=5.0), ["networks.png"]),
    ("training_speed", lambda file: file["rows"][2].update(faster_than_0=4.1), ["step_time.png"]),
    ("training_speed", lambda file: file["rows"][2].update(kept_mbytes=3.0), ["step_time.png"]),
    ("depth_digits/report", lambda file: file["groups"][0]["accuracies"].append(50.0), ["depth.png"]),
    ("depth_digits/report", lambda file: file["groups"][0].update(finished=1), ["depth.png"]),
    ("blockade_digits/report", lambda file: file["groups"][1]["accuracies"].append(50.0), ["blockade.png"]),
    ("peers_avx2", lambda file: file["rows"][0]["ratios"].update(onnxruntime=1.0), []),
]


@pytest.mark.parametrize(("name", "change", "expected"), CHANGES)
def test_a_changed_result_file_makes_its_pictures_outdated(name, change, expected, folder, output):
    assert outdated(Results(folder), output / "figures") == []
    file = json.loads((folder / f"{name}.json").read_text())
    change(file)
    put(folder, {name: file})
    assert outdated(Results(folder), output / "figures") == expected


def test_missing_pictures_and_pictures_of_missing_data_are_outdated(folder, output, tmp_path):
    figures = tmp_path / "figures"
    shutil.copytree(output / "figures", figures)
    (figures / "sizes.png").unlink()
    (folder / "training_speed.json").unlink()
    assert outdated(Results(folder), figures) == ["sizes.png", "step_time.png"]
    write(Results(folder), tmp_path)
    assert outdated(Results(folder), figures) == []
    assert not (figures / "step_time.png").exists()


def test_a_digest_takes_numbers_to_six_digits():
    assert png.digest({"a": [1 / 3, "x"]}) == png.digest({"a": (1 / 3 + 1e-12, "x")})
    assert png.digest([1.00001]) != png.digest([1.00002])
    assert png.digest([1, 2]) != png.digest([2, 1])


def test_what_is_not_a_whole_png_file_is_refused(output):
    whole = (output / "figures" / "depth.png").read_bytes()
    assert len(png.texts(whole)[png.KEY]) == 64
    for broken, message in ((b"GIF89a", "signature"), (whole[:-20], "ends early"), (whole[:50], "ends early")):
        with pytest.raises(ValueError, match=message):
            png.texts(broken)


TEXT = "Before.\n\n<!-- benchmarks.report: {} -->\n<!-- end -->\n\nAfter.\n"


def test_a_block_is_filled_and_filling_again_changes_nothing(folder):
    text = readme.filled(TEXT.format("training speed") + TEXT.format("depth"), Results(folder))
    assert text.startswith(
        "Before.\n\n<!-- benchmarks.report: training speed -->\n| layers committed | 0 % | 100 % |\n"
    )
    assert "\n|---|---|---|\n" in text
    assert "| MB kept for backward | 80 | 2 |\n<!-- end -->\n\nAfter.\n" in text
    assert "![Accuracy against depth](benchmarks/results/figures/depth.png)\n<!-- end -->" in text
    assert readme.filled(text, Results(folder)) == text


def test_a_changed_result_file_changes_the_readme(folder):
    text = readme.filled(TEXT.format("training speed"), Results(folder))
    file = json.loads(json.dumps(MADE_UP["training_speed"]))
    file["rows"][2]["faster_than_0"] = 4.1
    put(folder, {"training_speed": file})
    changed = readme.filled(text, Results(folder))
    assert changed == text.replace("| 4.0x |", "| 4.1x |") != text


def test_a_picture_without_data_leaves_its_block_empty(folder):
    (folder / "depth_digits" / "report.json").unlink()
    assert readme.filled(TEXT.format("depth"), Results(folder)) == TEXT.format("depth")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.format("demo"), r"demo_ste\.json is missing in .*results; stompp demo --results .* makes it"),
        (TEXT.format("demos"), "asks for 'demos'; there are .*demo, kernels, .*speedups"),
        ("<!-- benchmarks.report: depth -->\n", "needs an '<!-- end -->'"),
        ("<!-- benchmarks.report: depth -->\n" + TEXT.format("depth"), "needs an '<!-- end -->'"),
    ],
)
def test_what_cannot_be_filled_is_refused(text, message, folder):
    with pytest.raises(ValueError, match=message):
        readme.filled(text, Results(folder))


def test_the_kernel_table_shows_a_group_that_was_not_timed(tmp_path):
    rows = [suite_row("bgemm", "a", threads=n, eager=9.0, compiled=8.0) for n in (1, 2)]
    put(tmp_path, {f"suite_{name}": {"rows": rows} for name in ("avx2", "avx512")})
    text = tables.kernels(Results(tmp_path))
    assert "| 8.0x / 8.0x | 8.0x / 8.0x |" in text
    assert "| - / - | - / - |" in text


@pytest.mark.parametrize("content", ["{", "", "[1, 2"])
def test_a_damaged_file_is_named(content, folder):
    (folder / "training_speed.json").write_text(content)
    with pytest.raises(ValueError, match=r"training_speed\.json is not JSON"):
        Results(folder)


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"results must be a folder, got '.*none'"):
        Results(tmp_path / "none")


def test_the_command_writes_page_and_figures(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", "--results", str(folder), "--output", str(folder)])
    assert main() == 0
    assert {path.name for path in (folder / "figures").iterdir()} == {plot.file for plot in PLOTS}
    assert (folder / "report.html").exists()
    wanted = [*FILES, *(f"{study}/report" for study in STUDIES)]
    left_out = re.findall(r"left out: (.*)\.json; ", capsys.readouterr().out)
    assert left_out == [name for name in wanted if name not in MADE_UP]


def test_what_is_kept_gives_the_same_tables_and_figures(folder, tmp_path):
    raw = Results(folder)
    path = tmp_path / "machine.json"
    path.write_text(keep.text_of({name: keep.file_to_keep(file) for name, file in raw.files.items()}))
    kept = Results(path)
    assert kept.files.keys() == raw.files.keys()
    for plot in PLOTS:
        assert png.rounded(plot.data(kept)) == png.rounded(plot.data(raw)), plot.name
    keys = ("group", "name", "threads", "kind", "operations", "bytes", "gops", "ratios", "clock_ms")
    cases = [[[row[key] for key in keys] for row in one.need("suite_avx2")["rows"]] for one in (raw, kept)]
    assert cases[0] == cases[1]
    assert tables.training_speed(kept) == tables.training_speed(raw)
    assert write(kept, tmp_path / "page")


def test_rows_are_added_to_those_of_other_cases(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "KEPT", tmp_path)

    def kept(*arguments):
        monkeypatch.setattr(sys, "argv", ["keep", "machine", *map(str, arguments)])
        assert keep.main() == 0
        return Results(tmp_path / "machine.json").need("suite_avx2")

    before = kept("--results", folder)["rows"]
    again = {**before[0], "ms": {"ours": {"median": 9.0}}}
    other = {**again, "name": "another"}
    new = put(
        tmp_path / "new", {"suite_avx2": {"command": "again --output a --add", "machine": {}, "rows": [again, other]}}
    )
    after = kept("--add", "--results", new)
    assert [row["name"] for row in after["rows"]] == [*(row["name"] for row in before), "another"]
    assert [row["ms"]["ours"]["median"] for row in (after["rows"][0], after["rows"][-1])] == [9.0, 9.0]
    assert after["rows"][1:-1] == before[1:]
    assert after["command"].endswith("; again --add"), "without a folder"

    def studied(*names):
        groups = [{"group": name, "seeds": [0, 1], "accuracy": float(len(name))} for name in names]
        return put(tmp_path / "_".join(names), {"small/report": {"groups": groups, "runs": []}})

    kept("--results", studied("ste", "free"))
    kept("--add", "--results", studied("free", "global"))
    groups = Results(tmp_path / "machine.json").need("small/report")["groups"]
    assert [row["group"] for row in groups] == ["ste", "free", "global"]

    none = put(tmp_path / "none", {"suite_avx2": {"command": "a name was wrong", "machine": {}, "rows": []}})
    assert kept("--add", "--results", none)["rows"] == after["rows"]


def test_the_nearest_peer_is_one_that_is_held_and_has_every_case():
    rows = [
        {"group": "bgemm", "threads": 1, "ratios": {"slow": 4.0, "near": 2.0, "loose": 1.0, "rare": 0.5}},
        {"group": "bgemm", "threads": 1, "ratios": {"slow": 4.0, "near": 8.0, "loose": 1.0, "ours, fast": 0.1}},
        {"group": "bgemm", "threads": 2, "ratios": {"slow": 0.1, "near": 9.0}},
    ]
    assert tables._nearest({"rows": rows, "notes": {"loose": "not held"}}, "bgemm") == "4.0x, slow"
    assert tables._nearest({"rows": rows}, "bgemm") == "1.0x, loose"
    assert tables._nearest({"rows": rows}, "network") == "-"


def test_the_nearest_peer_of_one_network_to_either_of_our_sides():
    rows = [
        {"group": "network", "name": "a", "threads": 1, "ratios": {"near": 3.0, "far": 6.0, tables.FAST: 1.5}},
        {"group": "network", "name": "b", "threads": 1, "ratios": {"near": 1.0, "far": 1.0}},
    ]
    assert tables._nearest({"rows": rows}, "network", "a") == "3.0x, near"
    assert tables._nearest({"rows": rows}, "network", "a", tables.FAST) == "2.0x, near"
    assert tables._nearest({"rows": rows}, "network", "b", tables.FAST) == "-"


def test_the_table_of_networks_with_amx_compares_fast_float_layers(folder, tmp_path):
    assert tables.networks_with_amx(Results(folder)) == ""
    ms = {"fp32": 20.0, "int8": 8.0, "packed": 4.0, "fast": 2.0}
    row = {"network": "resnet18", "batch": 1, "threads": 1, "best_ms": ms}
    results = Results(put(tmp_path / "amx", {"networks_amx": {"rows": [row]}}))
    assert tables.networks_with_amx(results).splitlines()[-1] == "| ResNet-18 | 4.0 ms | 2.0 ms | 10.0x | - | 4.0x |"


def test_keeping_again_replaces_only_what_was_measured_again(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(keep, "KEPT", tmp_path)
    for arguments in (["machine"], ["machine"]):
        monkeypatch.setattr(sys, "argv", ["keep", *arguments, "--results", str(folder)])
        assert keep.main() == 0
    first = (tmp_path / "machine.json").read_text()
    assert max(map(len, first.splitlines())) < 2000
    again = put(tmp_path / "again", {"training_speed": {**MADE_UP["training_speed"], "command": "another"}})
    monkeypatch.setattr(sys, "argv", ["keep", "machine", "--results", str(again)])
    assert keep.main() == 0
    files = json.loads((tmp_path / "machine.json").read_text())
    assert files.keys() == MADE_UP.keys()
    assert files["training_speed"]["command"] == "another"
    monkeypatch.setattr(sys, "argv", ["keep", "machine", "--replace", "--results", str(again)])
    assert keep.main() == 0
    assert json.loads((tmp_path / "machine.json").read_text()).keys() == {"training_speed"}
