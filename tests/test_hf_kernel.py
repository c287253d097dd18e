"""The kernel for Hugging Face's `kernels`: it needs torch alone, and what is built of it runs beside this package."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import export_hf_kernel
import pytest
import torch
from processes import run_python

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

NAMESPACE = "_stompp_ops_1f2e3d"

# What kernel-builder adds to a project: the definition of an empty module, and the names that it chose.
REGISTRATION_H = """#pragma once
#include <Python.h>
#define MODULE(name)                                              \\
  PyMODINIT_FUNC PyInit_##name() {                                \\
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, #name};   \\
    return PyModule_Create(&module);                              \\
  }
#define REGISTER_EXTENSION(name) MODULE(name)
"""
OPS_PY = f"""import torch
from . import {NAMESPACE}
ops = torch.ops.{NAMESPACE}
def add_op_namespace_prefix(op_name):
    return f"{NAMESPACE}::{{op_name}}"
"""

# In a process that has this package too, whose ops must stay apart.
COMPARE = """
import sys
import torch
import stompp_kernels as sk
sys.path.insert(0, sys.argv[1])
import stompp_ops
assert stompp_ops.native.library.path.name.startswith("_stompp_ops_1f2e3d"), stompp_ops.native.library.path
assert all(hasattr(torch.ops._stompp_ops_1f2e3d, name) for name in sk.ops.schemas.SCHEMAS)
def signs(x):
    return torch.where(x < 0, -1.0, 1.0)
for item in stompp_ops.native.implementations():
    if not item.available or item.device != "cpu":
        continue
    with stompp_ops.native.use_implementation(item.name):
        for M, N, K in [(1, 10, 70), (67, 33, 300)]:
            a, w = torch.randn(M, K), torch.randn(N, K)
            words = stompp_ops.pack_signs(a)
            assert torch.equal(words, stompp_ops.reference.pack_signs(a)), item.name
            assert torch.equal(words, sk.ops.pack_signs(a)), item.name
            assert torch.equal(stompp_ops.bgemm(words, stompp_ops.pack_weight(w)), (signs(a) @ signs(w).T).int())
x = torch.randn(2, 40, 9, 9)
def both_ways(x):
    return stompp_ops.unpack_signs(stompp_ops.pack_signs(x), 9)
compiled = torch.compile(both_ways, backend="eager", fullgraph=True)
assert torch.equal(compiled(x), signs(x))
u = torch.randn(64, requires_grad=True)
stompp_ops.progressive(u, None, "clip").sum().backward()
assert torch.equal(u.grad, (u.abs() <= 1).float())
print("right")
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernel")
    export_hf_kernel.export(folder)
    return folder


def test_the_project_lists_every_source_and_no_other(kernel):
    build = tomllib.loads((kernel / "build.toml").read_text())
    assert build["general"]["backends"] == [section["backend"] for section in build["kernel"].values()] == ["cpu"]
    [section] = build["kernel"].values()
    listed = {*section["src"], *build["torch"]["src"]}
    cpp = {path.relative_to(kernel).as_posix() for path in kernel.rglob("*") if path.suffix in (".h", ".cpp")}
    assert listed == cpp
    assert "-ffp-contract=off" in section["cxx-flags"]
    assert (kernel / "torch-ext" / build["general"]["name"].replace("-", "_") / "__init__.py").is_file()
    assert "`bgemm`" in (kernel / "CARD.md").read_text()


def test_no_file_names_the_package_or_its_namespace_in_code(kernel):
    for path in kernel.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) != "torch.ops.stompp", path
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert not node.module.startswith("stompp"), path
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value != "stompp", path
                assert not node.value.startswith("stompp::"), path
    assert not [path for path in kernel.rglob("*.cpp") if "LIBRARY(stompp" in path.read_text()]


def test_a_module_that_imports_another_package_is_refused():
    with pytest.raises(SystemExit, match=r"error: ops\.py imports numpy\.linalg, which a kernel of the hub cannot"):
        export_hf_kernel.check_imports("def f():\n    import numpy.linalg", "ops.py")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="is not empty"):
        export_hf_kernel.export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def build(kernel, output):
    """Compiles the project by its build.toml, as kernel-builder would, and puts the result beside its Python."""
    project = tomllib.loads((kernel / "build.toml").read_text())
    [section] = project["kernel"].values()
    (kernel / "torch-ext" / "registration.h").write_text(REGISTRATION_H)
    package = output / "stompp_ops"
    shutil.copytree(kernel / "torch-ext" / "stompp_ops", package)
    (package / "_ops.py").write_text(OPS_PY)
    torch_folder = Path(torch.__file__).parent
    system = [sysconfig.get_path("include"), torch_folder / "include"]
    flags = ["-std=c++17", "-O1", "-fPIC", *section["cxx-flags"], f"-DTORCH_EXTENSION_NAME={NAMESPACE}"]
    flags += [*(f"-I{folder}" for folder in section["include"]), *(f"-isystem{folder}" for folder in system)]
    sources = [name for name in [*section["src"], *project["torch"]["src"]] if name.endswith(".cpp")]

    def compile_one(name):
        target = output / (name.replace("/", "_") + ".o")
        subprocess.run(["c++", *flags, "-c", name, "-o", target], cwd=kernel, check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    subprocess.run(["c++", "-shared", *objects, *libraries, "-o", package / f"{NAMESPACE}.abi3.so"], check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on PATH")
@pytest.mark.skipif(not Path(sysconfig.get_path("include"), "Python.h").is_file(), reason="Python has no headers here")
def test_what_is_built_of_it_runs_beside_this_package(kernel, tmp_path):
    build(kernel, tmp_path)
    done = run_python(COMPARE, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "right\n"
