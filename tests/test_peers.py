"""Other libraries compute what we do before they are timed, and one that is not there is reported."""

import json
import sys

import pytest
import torch
from processes import run_python

from benchmarks.peers import __main__ as peers
from benchmarks.peers import fastest, larq, onnx_runtime, openvino, products, torch_sides
from stompp_kernels import native
from stompp_kernels.bench.turns import timing_of

pytestmark = pytest.mark.slow  # imports the other libraries
needs_onnx_runtime = pytest.mark.skipif(bool(onnx_runtime.missing()), reason=onnx_runtime.missing())
SMALL = [
    pytest.param(lambda: products.matrix(1, 40, 70), id="one row"),
    pytest.param(lambda: products.matrix(33, 64, 1024), id="rows"),
    pytest.param(lambda: products.image(7, 64), id="image"),
]


def small_cases(ops):
    for M, N, K in ((3, 40, 96),) if "bgemm" in ops else ():
        yield products.PeerCase(
            products.bench_bgemm.case("bgemm", M, N, K), lambda M=M, N=N, K=K: products.matrix(M, N, K)
        )


def run(monkeypatch, folder, *arguments):
    """(exit status, results file) of `python -m benchmarks.peers`, on a small product."""
    command = ["peers", "--threads", "1", "--seconds", "0.01", "--output", str(folder), *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(peers, "cases", small_cases)
    status = peers.main()
    (path,) = folder.glob("peers_*.json")
    return status, json.loads(path.read_text())


def check_sides(sides, product):
    for name, candidates in sides.items():
        assert candidates, name
        for candidate in candidates:
            candidate.verify(product.exact)


@pytest.mark.parametrize("make", SMALL)
def test_torch_computes_the_same(make):
    product = make()
    sides = torch_sides.sides(product)
    check_sides(sides, product)
    assert {*sides, *torch_sides.missing()} == {"torch fp32", "torch bf16", "torch int8"}


@needs_onnx_runtime
@pytest.mark.parametrize("make", SMALL)
def test_onnx_runtime_computes_the_same(make):
    product = make()
    sides = onnx_runtime.sides(product, 1)
    check_sides(sides, product)
    assert set(sides) == {"onnxruntime fp32", "onnxruntime int8"}


def test_a_result_that_bytes_cannot_hold_is_compared_with_what_they_hold():
    product = products.Product(torch.ones(2, 300), torch.ones(3, 300))
    assert product.exact.unique().tolist() == [300]
    check_sides(torch_sides.sides(product), product)
    if not onnx_runtime.missing():
        check_sides(onnx_runtime.sides(product, 1), product)


@pytest.mark.parametrize("values", [lambda y: y + 1, lambda y: y[:1]])
def test_a_wrong_result_is_refused(values):
    product = products.matrix(2, 8, 32)
    candidate = products.Candidate("how", lambda: product.exact.clone(), values, products.as_integers)
    with pytest.raises(AssertionError, match="how: wrong result: not timed"):
        candidate.verify(product.exact)


def test_a_peer_with_a_wrong_result_is_reported_and_not_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(torch_sides, "as_integers", lambda exact: exact + 1)
    status, results = run(monkeypatch, tmp_path, "--groups", "bgemm")
    assert status == 1
    assert results["rows"] == []
    assert results["wrong"] == ["bgemm: 3 x 40 x 96: linear: wrong result: not timed"]


def test_of_several_ways_the_fastest_takes_the_turn(monkeypatch):
    def made_up(runs, *_):
        return {name: timing_of([run()] * 2) for name, run in runs.items()}

    monkeypatch.setattr(fastest, "compare", made_up)
    assert fastest.fastest({"slow": lambda: 3.0, "fast": lambda: 1.0}, 0.1) == "fast"


def test_peers_that_are_not_there_are_reported(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    status, results = run(monkeypatch, tmp_path, "--groups", "bgemm", "larq")
    assert status == 0
    assert "pip install" in results["missing"]["onnxruntime"]
    assert "pip install" in results["missing"]["openvino"]
    assert "--larq FOLDER" in results["missing"][larq.PEER]
    assert f"missing: {larq.PEER}" in capsys.readouterr().out
    (row,) = results["rows"]
    assert set(row["ratios"]) == {"torch fp32", "torch bf16", "torch int8"} - set(torch_sides.missing())
    assert row["how"].keys() == row["ms"].keys() == {"ours", *row["ratios"]}


@needs_onnx_runtime
def test_peers_that_are_there_are_in_the_rows(monkeypatch, tmp_path):
    status, results = run(monkeypatch, tmp_path, "--groups", "bgemm")
    assert status == 0
    reason = openvino.missing()
    assert results["missing"] == torch_sides.missing() | ({"openvino": reason} if reason else {})
    assert {"onnxruntime fp32", "onnxruntime int8"} <= set(results["rows"][0]["ratios"])


XNOR = """
from benchmarks.peers import fastest, products

(case,) = [case for case in products.cases(["bconv2d"]) if case.binarizes and "7x7x512" in case.suite.name]
row = fastest.measure(case, 1, 0.01, False)
assert row["how"]["openvino xnor"] == "FakeQuantize, BinaryConvolution", row
print(row["ratios"])
"""


@pytest.mark.skipif(bool(openvino.missing()), reason=openvino.missing())
def test_openvino_computes_the_same_from_floats():
    done = run_python(XNOR)  # for the reason below
    assert done.returncode == 0, done.stderr
    assert "openvino xnor" in done.stdout


NETWORK = """
import json, sys
from benchmarks.peers import network, onnx_runtime
from stompp_kernels.bench.subjects import untrained

subject, there = untrained("resnet20", num_classes=10), not onnx_runtime.missing()
row = network.measure(subject, 1, 0.01, there, compile=False, batch=2)
# OpenVINO's own would send messages from a process that it forks in a thread.
assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]
print(json.dumps(row))
"""


def test_whole_networks_are_rows_too():
    # In a process of its own: where the processor has AMX, OpenVINO 2026.4 leaves a thread that ran an fp32 and a bf16
    # network in a state in which the next signal with a handler (SIGCHLD's of a data loader) ends it by SIGSEGV.
    done = run_python(NETWORK)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    there = not onnx_runtime.missing()
    found = {"torch fp32", "torch bf16", "torch int8"} - set(torch_sides.missing())
    found |= set() if openvino.missing() else {"openvino fp32", "openvino bf16"}
    found |= {"ours, fast float layers"} if native.multiplies_bfloat16() else set()
    assert set(row["ratios"]) == found | ({"onnxruntime fp32", "onnxruntime int8"} if there else set())
    assert row["operations"] > 2 * 40e6  # the paper of ResNet-20 has 41 million multiplications and additions
    assert row["bytes"] > 0
    assert row["name"] == "resnet20, batch 2"


FAILS = "#!/bin/sh\necho 'no such distribution' >&2\nexit 1\n"

ANSWERS = """#!{python}
import json, sys
import numpy as np

if "-c" in sys.argv:
    sys.exit(0)
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "verify":
        with np.load(request["operands"]) as operands:
            x, w = operands["x"], operands["w"]
        size = x.shape[1]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1)
        taps = ((i, j) for i in range(3) for j in range(3))
        y = sum(padded[:, i : i + size, j : j + size] @ w[i, j] for i, j in taps)
        np.save(request["result"], y + {error})
    ms = [2.0] * 5 if request.get("indirect") else [3.0] * 5
    print(json.dumps({{"ms": ms, "version": "0.16.0"}}), flush=True)
"""


def environment(folder, code):
    """A virtual environment whose Python is this program."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(code)
    python.chmod(0o755)
    return folder


def test_a_larq_that_cannot_be_installed_is_reported(monkeypatch, tmp_path):
    made = environment(tmp_path / "environment", FAILS)
    _, results = run(monkeypatch, tmp_path, "--groups", "larq", "--larq", made)
    assert "no such distribution" in results["missing"][larq.PEER]
    nowhere = tmp_path / "nowhere"
    _, results = run(monkeypatch, tmp_path, "--groups", "larq", "--larq", nowhere, "--larq-python", nowhere)
    assert "cannot be run" in results["missing"][larq.PEER]


def test_larq_is_measured_in_its_own_process(monkeypatch, tmp_path):
    monkeypatch.setattr(larq, "CONVS", ((6, 32),))
    made = environment(tmp_path / "environment", ANSWERS.format(python=sys.executable, error=0))
    status, results = run(monkeypatch, tmp_path, "--groups", "larq", "--larq", made)
    assert status == 0
    assert results["versions"][larq.PEER] == "0.16.0"
    assert [row["name"] for row in results["rows"]] == ["3x3, 6x6x32 to bits", "3x3, 6x6x32 to float"]
    for row in results["rows"]:
        assert row["ms"]["larq"]["median"] == 2.0
        assert row["how"] == {"larq": "indirect bgemm"}
        low, high = row["spread"]["larq"]
        assert 0 < low <= row["ratios"]["larq"] <= high


def test_larq_with_a_wrong_result_is_not_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(larq, "CONVS", ((6, 32),))
    made = environment(tmp_path / "environment", ANSWERS.format(python=sys.executable, error=2))
    status, results = run(monkeypatch, tmp_path, "--groups", "larq", "--larq", made)
    assert status == 1
    assert results["rows"] == []
    assert "wrong result" in results["wrong"][0]


def test_a_larq_that_ends_early_is_reported(monkeypatch, tmp_path):
    made = environment(tmp_path / "environment", '#!/bin/sh\n[ "$2" = -c ] && exit 0\nexit 3\n')
    status, results = run(monkeypatch, tmp_path, "--groups", "larq", "--larq", made)
    assert status == 1
    assert "status 3" in results["wrong"][0]


def test_our_side_against_larq_is_checked():
    for out in ("bits", "float"):
        larq.our_case(5, 40, out).build().check()
