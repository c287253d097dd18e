"""What is said where the compiled library did not load: which copy is imported, what is wrong and what mends it."""

import shutil
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from helpers import run_python

from stompp_kernels import missing_library, native

ABSENT = ModuleNotFoundError("No module named 'stompp_kernels._C'")
LIBRARY = f"_C{EXTENSION_SUFFIXES[0]}"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A source tree with the package, nothing compiled in it, and no other copy of the package in sight."""
    package = tmp_path / "tree" / "stompp_kernels"
    package.mkdir(parents=True)
    (tmp_path / "tree" / "setup.py").touch()
    monkeypatch.setattr(sys, "path", [str(package.parent)])
    return package


def add_copy(folder, name=LIBRARY):
    """A compiled copy of the package in a folder."""
    (folder / "stompp_kernels").mkdir(parents=True)
    (folder / "stompp_kernels" / name).touch()
    return folder / "stompp_kernels"


def test_without_any_compiled_copy_it_says_how_to_build_one(tree, tmp_path):
    built = f"Build it with `pip install --no-build-isolation -e .` in {tree.parent}."
    assert missing_library.remedy(ABSENT, tree) == built
    installed = tmp_path / "site-packages" / "stompp_kernels"
    installed.mkdir(parents=True)
    message = "Build it with `pip install --no-build-isolation .` from the source tree."
    assert missing_library.remedy(ABSENT, installed) == message


def test_a_compiled_copy_later_on_the_path_is_named(tree, tmp_path, monkeypatch):
    compiled = add_copy(tmp_path / "site-packages")
    monkeypatch.chdir(tree.parent)
    monkeypatch.setattr(sys, "path", ["", str(tree.parent), str(tmp_path / "absent"), str(compiled.parent)])
    message = missing_library.remedy(ABSENT, tree)
    assert f"The copy in {tree} is imported, which is not compiled, and it hides" in message
    assert f"hides the compiled one in {compiled}." in message
    assert f"take {tree.parent} out of PYTHONPATH" in message


def test_an_editable_installation_of_another_tree_is_named(tree, tmp_path, monkeypatch):
    compiled = add_copy(tmp_path / "other tree")
    information = tmp_path / "site-packages" / "stompp_kernels-0.1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: stompp_kernels\nVersion: 0.1.0\n")
    (information / "direct_url.json").write_text(
        f'{{"dir_info": {{"editable": true}}, "url": "{compiled.parent.as_uri()}"}}'
    )
    monkeypatch.setattr(sys, "path", [str(tree.parent), str(information.parent)])
    assert missing_library.compiled_copy(tree) == compiled


@pytest.mark.parametrize("name", ["_C.cpython-39-x86_64-linux-gnu.so", "_C.cpython-313t-darwin.so", "_C.pyd"])
def test_a_library_for_another_python_is_named(tree, tmp_path, monkeypatch, name):
    (tree / name).touch()
    monkeypatch.setattr(sys, "path", [str(tree.parent), str(add_copy(tmp_path / "site-packages", name).parent)])
    message = missing_library.remedy(ABSENT, tree)
    assert f"{tree} holds {name}, built for another Python than this one, which loads {LIBRARY}." in message
    assert "Build it again" in message


def test_an_interrupted_build_is_named(tree):
    (tree / "libstompp_kernels.so").touch()
    message = missing_library.remedy(ABSENT, tree)
    assert f"{tree} holds libstompp_kernels.so and no _C: a build was interrupted. Build it again" in message


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        ("/a/_C.so: undefined symbol: aoti_torch_new", f"was built against another torch than {torch.__version__}"),
        ("libtorch_cpu.so: cannot open shared object file", "does not find a library that it was built against"),
        ("/lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found", "was built on a newer system than this one"),
        ("/a/_C.so: file too short", "is damaged or was built for another system"),
        ("/a/_C.so: invalid ELF header", "is damaged or was built for another system"),
    ],
)
def test_a_library_that_does_not_load_is_explained(tree, error, meaning):
    (tree / LIBRARY).touch()
    message = missing_library.remedy(ImportError(error), tree)
    assert message.startswith(f"{tree / LIBRARY} {meaning}. Build it again")


@pytest.mark.skipif(native.library is None, reason="there is no compiled copy to hide")
def test_importing_the_source_tree_says_that_a_compiled_copy_is_installed(tmp_path):
    package = Path(missing_library.__file__).parent
    shutil.copytree(package, tmp_path / "stompp_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    result = run_python("import sys\nsys.path.insert(0, sys.argv[1])\nimport stompp_kernels", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "RuntimeWarning: stompp_kernels runs on the slow reference path" in result.stderr
    assert f"The copy in {tmp_path / 'stompp_kernels'} is imported" in result.stderr
    assert f"hides the compiled one in {package}" in result.stderr


IMPORT_BESIDE_ANOTHER_COPY = """
import importlib.machinery, importlib.util, sys, warnings
sys.path.insert(0, sys.argv[1])
class Editable:  # as setuptools installs one: asked where sys.path has no such module
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "stompp_kernels._C":
            return importlib.util.spec_from_file_location(name, sys.argv[2])
sys.meta_path.insert(0, Editable)
import stompp_kernels
assert "stompp_kernels._C" not in sys.modules
"""


@pytest.mark.skipif(native.library is None, reason="there is no library of another copy")
def test_the_library_of_another_copy_is_not_taken(tmp_path):
    package = Path(missing_library.__file__).parent
    shutil.copytree(package, tmp_path / "stompp_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    result = run_python(IMPORT_BESIDE_ANOTHER_COPY, tmp_path, native.library.__file__)
    assert result.returncode == 0, result.stderr
    assert f"{native.library.__file__} is of another copy of this package" in result.stderr
    assert f"hides the compiled one in {package}" in result.stderr


def test_a_file_that_is_no_library_is_explained_by_the_warning(tmp_path):
    package = Path(missing_library.__file__).parent
    shutil.copytree(package, tmp_path / "stompp_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "stompp_kernels" / LIBRARY).touch()
    result = run_python("import sys\nsys.path.insert(0, sys.argv[1])\nimport stompp_kernels", tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{LIBRARY} is damaged or was built for another system. Build it again" in result.stderr
