"""Versions of the source tree, checked out and built in a cache folder; the user's own tree is only read."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.compiled import ROOT

WORK_TREE = "."
BUILT = ".built"  # in a revision's folder, written last
LOG_LINES = 30  # of a failed build that are shown


class TreeError(Exception):
    """A version that does not exist or cannot be built; the message is for the user."""


@dataclass(frozen=True)
class Tree:
    """A built version.

    Attributes:
        name: as the user gave it.
        commit: 40 digits, or "work tree".
        folder: of its sources, with the compiled library in place.
    """

    name: str
    commit: str
    folder: Path


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Holds the cache for one comparison; another one waits, which its times need in any case."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the comparison that uses {cache}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def commit_of(revision: str, root: Path = ROOT) -> str:
    """The commit that git knows by a name.

    Raises:
        TreeError: there is none.
    """
    command = ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError as error:
        raise TreeError(f"git does not run ({error}); versions are taken from its repository") from None
    if done.returncode != 0:
        raise TreeError(
            f"{revision!r} is no revision of {root}; allowed: a commit, a branch, a tag, or . for the work tree"
        )
    return done.stdout.strip()


def provide(revision: str, cache: Path, jobs: int, root: Path = ROOT) -> Tree:
    """A built version, from the cache if it is there.

    A revision has a folder named by its commit. The work tree, uncommitted and untracked files included, is copied to a
    folder of its own, where only what changed is compiled again.

    Args:
        revision: what git knows, or "." for the work tree.
        jobs: compilers at a time.

    Raises:
        TreeError: there is no such revision, or it does not build; with the end of the build's log.
    """
    if revision == WORK_TREE:
        tree = Tree(revision, "work tree", cache / "worktree")
        copy_work_tree(root, tree.folder)
        build(tree, jobs)
        return tree
    commit = commit_of(revision, root)
    tree = Tree(revision, commit, cache / commit)
    mark = tree.folder / BUILT
    if mark.exists() and mark.read_text() == built_with():
        return tree
    shutil.rmtree(tree.folder, ignore_errors=True)
    check_out(commit, tree.folder, root)
    build(tree, jobs)
    mark.write_text(built_with())
    return tree


def built_with() -> str:
    """What else than the sources decides about the library."""
    variables = {name: os.environ.get(name, "") for name in ("CXX", "CXXFLAGS", "LDFLAGS")}
    return json.dumps({"python": sysconfig.get_config_var("SOABI"), "torch": metadata.version("torch"), **variables})


def check_out(commit: str, folder: Path, root: Path) -> None:
    folder.mkdir(parents=True)
    with subprocess.Popen(["git", "archive", "--format=tar", commit], cwd=root, stdout=subprocess.PIPE) as archive:
        subprocess.run(["tar", "-x", "-C", folder], stdin=archive.stdout, check=True)
    if archive.returncode != 0:
        raise TreeError(f"git archive {commit} ended with status {archive.returncode}")


def copy_work_tree(root: Path, folder: Path) -> None:
    """Brings a folder's sources to those of the work tree; a file that did not change keeps its time."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    wanted = {name for name in listed if name and (root / name).is_file()}
    for path in sources_in(folder):
        if path.relative_to(folder).as_posix() not in wanted:
            path.unlink()
    for name in wanted:
        content, target = (root / name).read_bytes(), folder / name
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Written now: a compiler's output is older, whatever the time of the original.
            target.write_bytes(content)
    # A copy of a library that was cut short would look newer than the library.
    for library in (folder / "stompp_kernels").glob("*.so"):
        library.unlink()


def sources_in(folder: Path) -> list[Path]:
    """All but what a build or Python put there."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [p for p in files if p.relative_to(folder).parts[0] != "build" and p.suffix not in (".so", ".pyc")]


def build(tree: Tree, jobs: int) -> None:
    """Compiles the kernels for CPUs in place; the log lies beside the folder."""
    print(f"building {tree.name} ({tree.commit[:12]})", flush=True)
    variables = {**os.environ, "STOMPP_BUILD_NATIVE": "1", "STOMPP_CUDA": "0", "MAX_JOBS": str(jobs)}
    path = tree.folder.with_name(tree.folder.name + ".log")
    with open(path, "w") as log:
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=tree.folder, env=variables, stdout=log, stderr=log, check=False)
    if done.returncode != 0:
        end = "\n".join(path.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise TreeError(f"{tree.name} ({tree.commit[:12]}) does not build; the end of {path}:\n{end}")
