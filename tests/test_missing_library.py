"""What is said where the compiled library did not load: which copy is imported, what is wrong and what mends it."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from processes import run_python

from stompp_kernels import missing_library, native

LIBRARY = missing_library.LIBRARY
ABSENT = OSError(f"{LIBRARY}: cannot open shared object file: No such file or directory")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A source tree with the package, nothing compiled in it, and no other copy of the package in sight."""
    package = tmp_path / "tree" / "stompp_kernels"
    package.mkdir(parents=True)
    (tmp_path / "tree" / "setup.py").touch()
    monkeypatch.setattr(sys, "path", [str(package.parent)])
    return package


def add_copy(folder):
    """A compiled copy of the package in a folder."""
    (folder / "stompp_kernels").mkdir(parents=True)
    (folder / "stompp_kernels" / LIBRARY).touch()
    return folder / "stompp_kernels"


def test_without_any_compiled_copy_it_says_how_to_build_one(tree, tmp_path):
    built = f"Build it with `pip install --no-build-isolation -e .` in {tree.parent}."
    assert missing_library.remedy(ABSENT, tree) == built
    installed = tmp_path / "site-packages" / "stompp_kernels"
    installed.mkdir(parents=True)
    message = "Install it again with `pip install --force-reinstall --no-deps stompp_kernels`."
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


ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0"
MACH_O = b"\xcf\xfa\xed\xfe"


@pytest.mark.parametrize(
    ("header", "made_for"),
    [
        (ELF + b"\x3e\0", "Linux on x86_64"),
        (ELF + b"\xb7\0", "Linux on aarch64"),
        (ELF + b"\xf3\0", "Linux on another processor"),
        (MACH_O + b"\x0c\0\0\x01" + bytes(12), "macOS on arm64"),
        (MACH_O + b"\x07\0\0\x01" + bytes(12), "macOS on x86_64"),
    ],
)
def test_a_library_for_another_platform_is_named(tree, monkeypatch, header, made_for):
    (tree / LIBRARY).write_bytes(header)
    monkeypatch.setattr(missing_library, "this_platform", lambda: "Plan 9 on mips")
    message = missing_library.remedy(ABSENT, tree)
    assert message.startswith(f"{tree / LIBRARY} is for {made_for}, and this is Plan 9 on mips. Build it again")


@pytest.mark.skipif(native.library is None, reason="there is no compiled library")
def test_the_platform_of_the_library_that_runs_is_this_one():
    assert missing_library.platform_of(native.library.path) == missing_library.this_platform()


def test_a_system_with_musl_is_told_to_take_glibc(tree, monkeypatch):
    (tree / LIBRARY).touch()
    monkeypatch.setattr(missing_library.sysconfig, "get_config_var", {"HOST_GNU_TYPE": "x86_64-alpine-linux-musl"}.get)
    assert "needs glibc, which a system with musl (Alpine Linux) has not" in missing_library.remedy(ABSENT, tree)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        ("/a/lib.so: undefined symbol: stompp_implementation", "is of another version of this package"),
        ("/a/lib.so: undefined symbol: aoti_torch_new", f"was built against another torch than {torch.__version__}"),
        ("libtorch_cpu.so: cannot open shared object file", "does not find a library that it was built against"),
        ("/lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found", "was built on a newer system than this one"),
        ("/a/lib.so: file too short", "is damaged"),
        ("/a/lib.so: invalid ELF header", "is damaged"),
        ("anything else", "does not load"),
    ],
)
def test_a_library_that_does_not_load_is_explained(tree, error, meaning):
    (tree / LIBRARY).touch()
    message = missing_library.remedy(OSError(error), tree)
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
import sys, torch
torch.ops.load_library(sys.argv[2])
sys.path.insert(0, sys.argv[1])
try:
    import stompp_kernels
except ImportError as error:
    print(error)
else:
    raise SystemExit("both copies were imported")
"""


@pytest.mark.skipif(native.library is None, reason="there is no library of another copy")
def test_a_second_copy_in_a_process_is_refused_in_one_sentence(tmp_path):
    package = Path(missing_library.__file__).parent
    shutil.copytree(package, tmp_path / "stompp_kernels", ignore=shutil.ignore_patterns("_cuda.so", "__pycache__"))
    result = run_python(IMPORT_BESIDE_ANOTHER_COPY, tmp_path, native.library.path)
    assert result.returncode == 0, result.stderr
    assert f"registered in this process by another copy ({native.library.path})" in result.stdout
    assert f"{tmp_path / 'stompp_kernels'} cannot register them again: import one copy" in result.stdout
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.skipif(native.library is None, reason="there is no library to load")
def test_the_same_library_may_be_in_the_process_already():
    """A program's own torch.ops.load_library, or a second import after the modules were thrown away."""
    code = "import sys, torch\ntorch.ops.load_library(sys.argv[1])\nimport stompp_kernels"
    result = run_python(code, native.library.path)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_file_that_is_no_library_is_explained_by_the_warning(tmp_path):
    package = Path(missing_library.__file__).parent
    shutil.copytree(package, tmp_path / "stompp_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "stompp_kernels" / LIBRARY).touch()
    result = run_python("import sys\nsys.path.insert(0, sys.argv[1])\nimport stompp_kernels", tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{LIBRARY} is damaged. Install it again with `pip install --force-reinstall" in result.stderr
