"""The forge's workflows: they run targets of the Makefile and nothing else, so that what they do is tested here."""

import re
from pathlib import Path

import check_headers
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".github" / "workflows"
NAMES = ("ci", "release", "wheels")

yaml = pytest.importorskip("yaml", reason="the extra `train` has PyYAML")


def workflow(name):
    return yaml.safe_load((FOLDER / f"{name}.yml").read_text())


def steps(name):
    return [step for job in workflow(name)["jobs"].values() for step in job.get("steps", ())]


def triggers(name):
    return workflow(name)[True]  # YAML 1.1 reads the key `on` as true


def targets():
    return set(" ".join(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)).split())


def matrix_values(name, key):
    for job in workflow(name)["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        yield from matrix.get(key, ())
        yield from (row[key] for row in matrix.get("include", ()) if key in row)


def test_these_are_all_workflows():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.yml" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_steps_run_make_and_targets_that_there_are(name):
    for step in steps(name):
        assert ("run" in step) != ("uses" in step)
        for line in step.get("run", "").splitlines():
            command = re.fullmatch(r"make (\$\{\{ matrix\.target \}\}|[\w-]+)( [A-Z]+=\S.*)?", line)
            assert command is not None, line
            wanted = matrix_values(name, "target") if command[1].startswith("$") else [command[1]]
            assert set(wanted) <= targets(), line


@pytest.mark.parametrize("name", NAMES)
def test_every_action_has_a_version_and_every_job_a_runner(name):
    for step in steps(name):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"])
    for job in workflow(name)["jobs"].values():
        assert "runs-on" in job or (FOLDER / Path(job["uses"]).name).is_file()
        assert set(job.get("needs", "").split()) <= set(workflow(name)["jobs"])


def test_tests_run_under_the_oldest_and_the_newest_torch_and_python():
    assert list(matrix_values("ci", "torch")) == [check_headers.VERSIONS[0], check_headers.VERSIONS[-1]]
    listed = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    for name in ("ci", "wheels"):
        assert list(matrix_values(name, "python")) == [listed[0], listed[-1]]


def test_ci_makes_what_the_checks_of_a_change_make():
    wanted = re.findall(r"^make (\S+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert set(wanted) == set(matrix_values("ci", "target"))
    assert workflow("ci")["jobs"]["wheels"]["uses"] == "./.github/workflows/wheels.yml"
    assert set(triggers("ci")) == {"push", "pull_request"}


def test_a_tag_publishes_the_wheels_that_were_tried_without_a_password():
    assert triggers("release") == {"push": {"tags": ["v*"]}}
    publish = workflow("release")["jobs"]["publish"]
    assert publish["needs"] == "wheels"
    assert publish["permissions"] == {"id-token": "write"}
    assert not re.search(r"password|secrets", str(workflow("release")))
    assert workflow("wheels")["jobs"]["try"]["needs"] == "linux"
    for name in NAMES:
        assert workflow(name)["permissions"] == {"contents": "read"}
