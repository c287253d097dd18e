"""The versions that the regression gate compares: checked out, copied and built, in a repository of the test's own."""

import os
import subprocess

import pytest

from benchmarks.compare import trees
from benchmarks.compare.trees import TreeError, provide

# Notes each build.
SETUP = """
import sys
from pathlib import Path
with open("{log}", "a") as log:
    print(Path.cwd().name, Path("source.txt").read_text(), sys.argv[1:], file=log)
Path("stompp_kernels").mkdir(exist_ok=True)
print("compiling")
sys.exit(Path("source.txt").read_text() == "broken")
"""


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "setup.py").write_text(SETUP.format(log=tmp_path / "builds"))
    (root / ".gitignore").write_text("build/\n")
    (root / "source.txt").write_text("one")
    git(root, "add", ".")
    git(root, "-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "-m", "one")
    return root


def git(root, *arguments):
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def builds(root):
    log = root.parent / "builds"
    return log.read_text().splitlines() if log.exists() else []


def test_a_revision_is_built_once_and_a_half_built_one_anew(repository, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    tree = provide("main", cache, 1, repository)
    commit = git(repository, "rev-parse", "HEAD")
    assert (tree.commit, tree.folder) == (commit, cache / commit)
    assert builds(repository) == [f"{commit} one ['build_ext', '--inplace']"]
    provide(commit[:10], cache, 1, repository)
    assert len(builds(repository)) == 1
    (tree.folder / trees.BUILT).unlink()
    (tree.folder / "left over").touch()
    provide("main", cache, 1, repository)
    assert len(builds(repository)) == 2
    assert not (tree.folder / "left over").exists()
    monkeypatch.setenv("CXXFLAGS", "-O1")
    provide("main", cache, 1, repository)
    assert len(builds(repository)) == 3


def test_the_work_tree_is_copied_with_what_is_not_committed(repository, tmp_path):
    cache = repository / "build" / "compare"
    (repository / "source.txt").write_text("changed")
    (repository / "new.txt").write_text("new")
    before = git(repository, "status", "--porcelain")
    folder = provide(".", cache, 1, repository).folder
    assert (folder / "source.txt").read_text() == "changed"
    assert (folder / "new.txt").read_text() == "new"
    assert not (folder / "build").exists()
    assert git(repository, "status", "--porcelain") == before

    (folder / "build").mkdir()
    (folder / "build" / "kept.o").touch()
    (folder / "stompp_kernels" / "old.so").touch()
    times = (folder / "source.txt").stat().st_mtime_ns
    (repository / "new.txt").unlink()
    (repository / "setup.py").write_text((repository / "setup.py").read_text() + "\n")
    os.utime(repository / "setup.py", (0, 0))
    provide(".", cache, 1, repository)
    assert not (folder / "new.txt").exists()
    assert (folder / "build" / "kept.o").exists()
    assert not (folder / "stompp_kernels" / "old.so").exists()
    assert (folder / "source.txt").stat().st_mtime_ns == times
    assert (folder / "setup.py").stat().st_mtime_ns > times


def test_a_build_that_fails_shows_its_log_and_is_tried_again(repository, tmp_path):
    (repository / "source.txt").write_text("broken")
    git(repository, "-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "-am", "broken")
    for attempt in (1, 2):
        with pytest.raises(TreeError, match=r"main \(\w{12}\) does not build; the end of .*\.log:\ncompiling"):
            provide("main", tmp_path / "cache", 1, repository)
        assert len(builds(repository)) == attempt
