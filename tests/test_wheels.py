"""The compiled libraries load under any Python and any glibc from 2.28 on, and wheels hold them and no others."""

import platform
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import smoke
import torch
import try_wheel
import wheels
from helpers import IMPLEMENTATIONS

from stompp_kernels import cuda_library, native

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's formats"),
    pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not on PATH"),
]
needs_library = pytest.mark.skipif(native.library is None, reason="there is no compiled library")

SYMBOLS = """
     1: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND malloc@GLIBC_2.2.5 (4)
     2: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND pthread_create@GLIBC_2.34 (5)
     3: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND _ZSt9terminatev@GLIBCXX_3.4.30 (6)
     4: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND PyList_New
     5: 0000000000001000     8 FUNC    GLOBAL DEFAULT   12 stompp_compiler
"""
DYNAMIC = """
 0x0000000000000001 (NEEDED)             Shared library: [libc10.so]
 0x0000000000000001 (NEEDED)             Shared library: [libcudart.so.13]
 0x000000000000001d (RUNPATH)            Library runpath: [/opt]
"""


@needs_library
def test_the_libraries_of_this_tree_load_anywhere():
    assert wheels.problems_of_library(native.library.path) == []
    if cuda_library.PATH.is_file():
        assert wheels.problems_of_library(cuda_library.PATH) == []


@needs_library
def test_the_library_shows_its_c_functions_and_nothing_else():
    listed = subprocess.run(["nm", "-D", "--defined-only", native.library.path], capture_output=True, text=True).stdout
    functions = set(re.findall(r" T (\w+)$", listed, re.MULTILINE))
    names = (
        "active_implementation",
        "compiler",
        "implementation",
        "multiplies_bfloat16",
        "packed_bytes",
        "select_implementation",
    )
    assert functions == {f"stompp_{name}" for name in names}


def test_what_keeps_a_library_from_loading_is_named(monkeypatch):
    monkeypatch.setattr(wheels, "output_of", lambda *command: DYNAMIC if "--dynamic" in command else SYMBOLS)
    assert wheels.problems_of_library("lib.so") == [
        "pthread_create needs GLIBC 2.34",
        "_ZSt9terminatev needs GLIBCXX 3.4.30",
        "PyList_New is Python's",
        "it needs libcudart.so.13",
        "it has RUNPATH",
    ]


def test_a_wheel_is_tried_where_there_is_one(monkeypatch, tmp_path):
    monkeypatch.setattr(try_wheel, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="dist has no wheel for this machine; `make wheels` builds it"):
        try_wheel.newest_wheel()
    (tmp_path / "dist").mkdir()
    wheels = {
        name: tmp_path / "dist" / f"stompp_kernels-0.1.0-py3-none-manylinux_2_28_{name}.whl"
        for name in ("mips", "aarch64", "x86_64")
    }
    for wheel in wheels.values():
        wheel.touch()
    assert try_wheel.newest_wheel() == wheels[platform.machine()]
    assert try_wheel.newest_wheel("aarch64") == wheels["aarch64"]


@needs_library
def test_what_a_tried_wheel_must_compute_the_library_computes(monkeypatch, capsys):
    smoke.main()
    assert f"right: {', '.join(IMPLEMENTATIONS)}" in capsys.readouterr().out
    monkeypatch.setattr(smoke.ops, "unpack_signs", lambda words, K: -torch.ones(len(words), K))
    with pytest.raises(SystemExit, match=r"error: \w+: unpack_signs of 1 x 1 differs from plain PyTorch"):
        smoke.main()


def write_wheel(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("stompp_kernels/__init__.py", *names):
            archive.writestr(name, "")
    return path


def test_a_wheel_holds_the_libraries_that_were_built_and_no_others(monkeypatch, tmp_path):
    monkeypatch.setattr(wheels, "problems_of_library", lambda path: [])
    library = "libstompp_kernels.so"
    good = write_wheel(tmp_path / "a-1-py3-none-manylinux_2_28_x86_64.whl", f"stompp_kernels/{library}")
    assert wheels.problems_of_wheel(good, [library]) == []
    assert wheels.problems_of_wheel(good, [library, "_cuda.so"]) == [
        f"it holds stompp_kernels/{library}; expected stompp_kernels/{library}, stompp_kernels/_cuda.so"
    ]
    stale = write_wheel(tmp_path / "a-1-cp311-cp311-linux_x86_64.whl", "stompp_kernels/_C.cpython-311.so")
    assert [problem.split(" ")[0] for problem in wheels.problems_of_wheel(stale, [library])] == ["it", stale.name]
    monkeypatch.setattr(wheels, "MAX_WHEEL", 10)
    assert re.search(r"it has \d+ bytes, more than 10", wheels.problems_of_wheel(good, [library])[0])


@pytest.mark.parametrize(
    ("release", "said"),
    [
        ((12, 8), "kernels for GPUs by CUDA 12.8, for drivers of CUDA 12 and later"),
        ((13, 0), "by CUDA 13.0, for drivers of CUDA 13 and later; CUDA 12.8 would make them for older drivers too"),
    ],
)
def test_which_drivers_a_wheel_serves_is_said(monkeypatch, release, said):
    monkeypatch.setattr(wheels, "nvcc_version", lambda nvcc: release)
    assert wheels.drivers("nvcc").endswith(said)


@pytest.mark.skipif(not (wheels.ROOT / "MANIFEST.in").is_file(), reason="there is no source tree")
def test_the_source_distribution_is_small_and_has_what_builds(monkeypatch, tmp_path):
    monkeypatch.setenv("STOMPP_BUILD_NATIVE", "0")
    archive = wheels.build_sdist(tmp_path)
    assert archive.stat().st_size <= wheels.MAX_SDIST
    shutil.unpack_archive(archive, tmp_path)
    [folder] = (path for path in tmp_path.iterdir() if path.is_dir())
    assert not [path for path in folder.rglob("*") if path.suffix in (".so", ".pyc") or "tests" in path.parts]
    for part in ("build_tools", "csrc", "examples", "recipes", "scripts", "stompp_kernels"):
        listed = subprocess.run(["git", "ls-files", part], cwd=wheels.ROOT, capture_output=True, text=True, check=True)
        assert [name for name in listed.stdout.splitlines() if not (folder / name).is_file()] == []
