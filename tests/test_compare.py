"""The regression gate: what it decides, what it builds, what it asks of the two versions. Nothing here is timed."""

import json
import os
import random
from pathlib import Path

import pytest

from benchmarks.compare import __main__ as gate
from benchmarks.compare import counts, paired, printout
from benchmarks.compare.decision import ERROR, FASTER, SAME, SLOWER, UNDECIDED, Plan, median_interval, verdict
from benchmarks.compare.paired import BROKEN, IN_NEITHER, NOT_IN_BASE, WRONG, Row
from benchmarks.compare.side import Side, SideError
from benchmarks.compare.trees import Tree
from benchmarks.instructions import Count

pytestmark = pytest.mark.slow  # builds trees
ROOT = Path(__file__).parents[1]
PLAN = Plan(1.0, 8.0, 100)


class MadeUp:
    """A side whose blocks take made-up times, by a clock that only they move."""

    def __init__(self, clock, lots, ms, noise):
        self.clock, self.lots, self.ms, self.noise = clock, lots, ms, noise

    def block(self):
        self.clock[0] += 0.02
        return self.ms * self.lots.lognormvariate(0, self.noise)


def found(slower_by, noise, seed=0, plan=PLAN):
    clock, lots = [0.0], random.Random(seed)
    base, head = (MadeUp(clock, lots, ms, noise) for ms in (1.0, 1.0 + slower_by))
    return paired.measure(f"case {seed}", base, head, plan, now=lambda: clock[0])


def test_ten_percent_are_caught_in_noise_of_three():
    assert all(found(0.10, 0.03, seed).verdict == SLOWER for seed in range(50))


def test_three_percent_are_not_slower():
    assert all(found(0.03, 0.03, seed).verdict in (SAME, UNDECIDED) for seed in range(50))


def test_equal_versions_are_never_slower_nor_faster():
    plan = Plan(1.0, 8.0, 1000)
    assert {found(0.0, 0.03, seed, plan).verdict for seed in range(1000)} == {SAME}


def test_wide_noise_is_measured_longer_and_left_undecided():
    row = found(0.05, 0.5)
    assert row.verdict == UNDECIDED
    assert row.low < 1 < 1.05 < row.high
    assert row.pairs > 4 * found(0.0, 0.03).pairs


def test_faster_is_told():
    row = found(-0.2, 0.03)
    assert row.verdict == FASTER
    assert row.low <= row.ratio <= row.high < 1 / 1.05


def test_slow_blocks_get_as_many_turns_as_a_decision_needs():
    plan = Plan(0.01, 0.01, 100)
    row = found(0.5, 0.01, plan=plan)
    assert (row.verdict, row.pairs) == (SLOWER, plan.least)


def test_who_is_first_changes():
    order = []

    class Side:
        def __init__(self, name):
            self.name = name

        def block(self):
            order.append(self.name)
            return 1.0

    paired.measure("case", Side("base"), Side("head"), Plan(30, 30, 1), now=lambda: len(order))
    firsts = order[::2]
    assert {"base", "head"} == set(firsts)
    assert order.count("base") == order.count("head")


@pytest.mark.parametrize("error", [0.5, 0.1, 0.01])
def test_the_interval_misses_the_median_as_seldom_as_it_says(error):
    lots, missed = random.Random(1), 0
    for _ in range(2000):
        low, high = median_interval([lots.expovariate(1.0) for _ in range(25)], error)
        missed += not low <= 0.6931471805599453 <= high
    # Three standard deviations beyond what is allowed.
    assert missed <= 2000 * error + 3 * (2000 * error * (1 - error)) ** 0.5


def test_the_interval_is_as_narrow_as_the_binomial_allows():
    # All of 6 values lie on one side of the median with probability 2 / 64.
    assert median_interval([3, 1, 2, 6, 5, 4], 2 / 64) == (1, 6)
    assert median_interval([3, 1, 2, 6, 5, 4], 1.99 / 64) == (-float("inf"), float("inf"))
    # Five of six on one side: 2 * (1 + 6) / 64.
    assert median_interval([3, 1, 2, 6, 5, 4], 14 / 64) == (2, 5)
    assert median_interval([], 0.1) == (-float("inf"), float("inf"))


def test_the_errors_of_all_looks_add_up_to_that_of_a_run():
    plan = Plan(2.0, 16.0, 50)
    assert [plan.end(look) for look in range(plan.looks)] == [2.0, 4.0, 8.0, 16.0]
    assert plan.error * plan.looks * plan.cases == pytest.approx(ERROR)
    assert median_interval([1.0] * plan.least, plan.error) == (1.0, 1.0)
    assert median_interval([1.0] * (plan.least - 1), plan.error) == (-float("inf"), float("inf"))


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((1.051, 1.2), SLOWER), ((1.04, 1.06), UNDECIDED), ((0.9, 1.05), SAME), ((0.8, 0.94), FASTER)],
)
def test_the_verdict_needs_the_whole_interval(interval, expected):
    assert verdict(interval) == expected


# The processes. What a case does is in a module of the test's own; both sides are this tree, unless said otherwise.
CASES = """
import os
import torch
from benchmarks.case import Case, Sides
import stompp_kernels

HEAD = os.environ.get("SIDE_OF_TEST", "")
print("noise on the standard output")


def case(name, build):
    return Case("op", "group " + name[0], name, (), build)


def right():
    return Sides(lambda: torch.ones(3), {}, lambda: torch.ones(3))


def wrong():
    return Sides(lambda: torch.zeros(3), {}, lambda: torch.ones(3))


def lacking():
    return stompp_kernels.ops.no_such_op


def dead():
    os._exit(7)


def cases():
    builders = {"a right": right, "b wrong": wrong, "c lacking": lacking, "d dead": dead, "a right too": right}
    for name, build in builders.items():
        yield case(name, build)
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "cases_of_test.py").write_text(CASES)
    (folder / "unloadable_of_test.py").write_text("raise RuntimeError('not here')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        yield ["cases_of_test", "unloadable_of_test"]


@pytest.fixture(scope="module")
def side(modules):
    made = Side(Tree("here", "work tree", ROOT), 1, modules)
    yield made
    made.close()


def test_a_worker_lists_checks_and_times(side):
    listed = side.ask("list")
    assert listed["cases"][0] == ["group a: a right", "group a"]
    assert listed["failed"] == {"unloadable_of_test": "RuntimeError: not here"}
    assert side.implementation not in ("", "reference")
    assert side.ask("prepare", key="group a: a right") == {}
    assert side.block() > 0
    assert "wrong result" in side.ask("prepare", key="group b: b wrong")["wrong"]
    assert "no_such_op" in side.ask("prepare", key="group c: c lacking")["error"]
    assert "not here" in side.ask("prepare", key="of another version")["error"]


def test_a_worker_that_ends_is_named_and_starts_again(side):
    with pytest.raises(SideError, match="here ended with status 7"):
        side.ask("prepare", key="group d: d dead")
    assert side.ask("prepare", key="group a: a right") == {}


def test_a_tree_without_a_compiled_library_is_refused(tmp_path):
    (tmp_path / "stompp_kernels").mkdir()
    (tmp_path / "stompp_kernels" / "__init__.py").touch()
    (tmp_path / "stompp_kernels" / "native.py").write_text("library, missing_reason = None, 'no library'")
    with pytest.raises(SideError, match="no library"):
        Side(Tree("empty", "0" * 40, tmp_path), 1, []).ask("list")


def test_the_package_is_that_of_the_tree(tmp_path):
    with pytest.raises(SideError, match=f"not from {tmp_path}"):
        Side(Tree("empty", "0" * 40, tmp_path), 1, []).ask("list")


class Answers:
    """A side that answers what a case finds; blocks take ``ms``."""

    def __init__(self, problem=None, ms=1.0, name="side"):
        self.problem, self.ms, self.closed = problem or {}, list(ms) if isinstance(ms, list) else [ms], 0
        self.tree = Tree(name, "0" * 40, ROOT)

    def ask(self, do, key):
        assert do == "prepare"
        if self.problem == "dead":
            raise SideError(self, "ended")
        return self.problem

    def block(self):
        return self.ms[min(self.closed, len(self.ms) - 1)]

    def close(self):
        self.closed += 1


SHORT = Plan(1e-3, 1e-3, 1)


@pytest.mark.parametrize(
    ("base", "head", "expected"),
    [
        ({}, {}, SAME),
        ({}, {"wrong": "w"}, WRONG),
        ({"error": "e"}, {"wrong": "w"}, WRONG),
        ({"error": "e"}, {}, NOT_IN_BASE),
        ({"wrong": "w"}, {}, NOT_IN_BASE),
        ({}, {"error": "e"}, BROKEN),
        ({"error": "e"}, {"error": "e"}, IN_NEITHER),
        ("dead", {}, NOT_IN_BASE),
        ({}, "dead", BROKEN),
    ],
)
def test_only_what_both_sides_compute_is_timed(base, head, expected):
    row = paired.compare("case", Answers(base), Answers(head), SHORT)
    assert row.verdict == expected
    assert (row.pairs > 0) == (expected == SAME)
    assert printout.failing([row]) == (expected in (WRONG, BROKEN))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([1.2], SLOWER),
        ([1.2, 1.0], UNDECIDED),
        ([1.2, 1.2, 1.0], UNDECIDED),
        ([0.8], FASTER),
        ([0.8, 1.0], UNDECIDED),
        ([0.8, 0.8, 1.2], UNDECIDED),
    ],
)
def test_what_changed_must_have_changed_in_new_processes_too(times, expected):
    base, head = Answers(), Answers(ms=times)
    rows = [paired.compare("case", base, head, SHORT), Row("other", SAME)]
    assert rows[0].verdict in (SLOWER, FASTER)
    assert [row.verdict for row in paired.confirm(rows, base, head, SHORT)] == [expected, SAME]
    assert base.closed == head.closed == 2


ONCE = ("--seconds", "0.001", "--max-seconds", "0.001", "--no-instructions")


def run_gate(tmp_path, modules, *arguments):
    """The gate on this tree against itself; its exit status and its file."""
    output = tmp_path / "out.json"
    parsed = gate.parser().parse_args(["BASE", *ONCE, "--output", str(output), *arguments])
    tree = Tree("here", "work tree", ROOT)
    return gate.run(tree, tree, parsed, modules), json.loads(output.read_text())


def test_a_wrong_result_fails_the_gate(tmp_path, modules, capsys, monkeypatch):
    monkeypatch.setattr(Side, "block", lambda self: 1.0)
    status, written = run_gate(tmp_path, modules)
    assert (status, written["failed"]) == (1, True)
    verdicts = {row["case"]: row["verdict"] for row in written["rows"]}
    assert verdicts["group a: a right"] == verdicts["group a: a right too"] == SAME
    assert verdicts["group b: b wrong"] == WRONG
    assert verdicts["group c: c lacking"] == verdicts["unloadable_of_test"] == IN_NEITHER
    assert verdicts["group d: d dead"] == BROKEN
    assert f"FAILED: 1 {BROKEN}" in capsys.readouterr().out


def test_right_results_of_cases_that_take_the_same_time_pass(tmp_path, monkeypatch):
    answers = {"list": {"cases": [["a: right", "a"], ["a: right too", "a"], ["b: wrong", "b"]], "failed": {}}}
    monkeypatch.setattr(Side, "ask", lambda self, do, **_: answers.get(do, {}))
    monkeypatch.setattr(Side, "block", lambda self: 1.0)
    status, written = run_gate(tmp_path, [], "--cases", "right")
    assert status == 0
    assert [row["case"] for row in written["rows"]] == ["a: right", "a: right too"]
    assert [row["verdict"] for row in written["rows"]] == [SAME, SAME]


def test_quick_takes_the_first_case_of_each_group():
    cases = [["a: 1", "a"], ["b: 1", "b"], ["a: 2", "a"], ["b: 2", "b"]]
    assert gate.chosen(cases, "", True) == ["a: 1", "b: 1"]
    assert gate.chosen(cases, "2", True) == ["a: 2", "b: 2"]
    assert gate.chosen(cases, "a", False) == ["a: 1", "a: 2"]


def test_a_summary_says_no_change_only_where_all_is_the_same():
    same, slower = Row("a", SAME, pairs=1), Row("b", SLOWER, 1.0, 1.1, 1.1, 1.08, 1.12, 40)
    assert printout.summary([same, same], []) == f"no change: 2 {SAME}"
    assert printout.summary([same, slower], []) == f"FAILED: 1 {SAME}, 1 {SLOWER}"
    assert printout.summary([same, Row("c", UNDECIDED, pairs=1)], []) == f"no change: 1 {SAME}, 1 {UNDECIDED}"
    assert printout.summary([same, Row("d", FASTER, pairs=1)], []) == f"passed: 1 {FASTER}, 1 {SAME}"
    *_, last = printout.tables([slower], []).splitlines()
    assert last.split() == ["b", "slower", "1.0000", "1.1000", "+10.0", "%", "+8.0", "%", "+12.0", "%"]


@pytest.mark.parametrize(("head", "expected"), [(4.0, SAME), (4.07, SAME), (4.09, SLOWER), (3.9, FASTER)])
def test_two_percent_more_instructions_are_slower(head, expected):
    row = counts.row_of(Count("case", "avx2", 4.0), Count("case", "avx2", head))
    assert row.verdict == expected
    assert printout.failing([row]) == (expected == SLOWER)


def test_without_valgrind_the_gate_says_so_and_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(counts, "missing_tool", lambda: "valgrind is not installed")
    tree = Tree("here", "work tree", ROOT)
    assert counts.compare_counts(tree, tree, tmp_path) == ([], "instructions not counted: valgrind is not installed")


def test_trees_with_the_same_core_share_the_program(tmp_path):
    for name, text in ("a", "int x;"), ("b", "int x;"), ("c", "int y;"):
        (tmp_path / name / "csrc" / "core").mkdir(parents=True)
        (tmp_path / name / "csrc" / "core" / "x.cpp").write_text(text)
    a, b, c = (counts.digest(tmp_path / name) for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_branch"], "'no_such_branch' is no revision"),
        ([".", "v0.0.no"], "'v0.0.no' is no revision"),
        ([".", ".", "--seconds", "3", "--max-seconds", "2"], "--max-seconds 2 is less than --seconds 3"),
    ],
)
def test_bad_arguments_end_with_status_2(arguments, message, tmp_path, capsys):
    assert gate.main([*arguments, "--cache", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_pattern_that_no_case_has_is_refused(monkeypatch):
    monkeypatch.setattr(Side, "ask", lambda self, do: {"cases": [["a: 1", "a"]], "failed": {}})
    base, head = (Side(Tree("here", "work tree", ROOT), 1, []) for _ in range(2))
    with pytest.raises(ValueError, match="--cases 'zzz': no case"):
        gate.time_both(base, head, gate.parser().parse_args(["BASE", "--cases", "zzz"]))


def test_the_help_names_what_can_be_compared():
    text = gate.parser().format_help()
    assert all(word in text for word in ("BASE", "HEAD", "--no-instructions", "2 % more instructions"))
