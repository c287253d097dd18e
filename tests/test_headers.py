"""The bindings and the C++ example compile against the oldest torch that this package runs under."""

import re
import shutil
import subprocess

import check_headers
import pytest

from build_tools.settings import MIN_TORCH
from stompp_kernels import native


@pytest.fixture(scope="module")
def oldest():
    """The headers of the oldest torch: from build/headers, where .ci/run puts them, or from the package index."""
    try:
        return check_headers.fetch(check_headers.OLDEST)
    except check_headers.Unreachable as error:
        pytest.skip(f"the headers of torch {check_headers.OLDEST} are not in build/headers, and {error}")


def test_the_oldest_headers_are_those_of_the_oldest_torch_that_setup_takes():
    assert tuple(map(int, check_headers.OLDEST.split(".")))[:2] == MIN_TORCH


@pytest.mark.slow
def test_every_file_compiles_against_the_oldest_torch(oldest):
    found = set(check_headers.sources())
    assert {"csrc/torch/library.cpp", "csrc/torch/cuda/gpu.cpp", "examples/cpp/main.cpp"} <= found
    errors = check_headers.compile_all(oldest)
    assert not errors, "\n".join(errors.values())


def test_a_file_that_does_not_compile_is_named_with_the_compilers_words(oldest, monkeypatch):
    monkeypatch.setattr(
        check_headers, "sources", lambda: ["csrc/core/product/check_shapes.cpp", "csrc/torch/absent.cpp"]
    )
    [(source, message)] = check_headers.compile_all(oldest).items()
    assert source == "csrc/torch/absent.cpp"
    assert "No such file" in message


@pytest.mark.skipif(native.library is None, reason="there is no compiled library")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not on PATH")
def test_the_library_calls_nothing_that_the_oldest_torch_lacks(oldest):
    """One build runs under every torch from the oldest on, also one that was compiled against a newer torch."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", native.library.path], capture_output=True, text=True)
    called = set(re.findall(r"\b((?:aoti_)?torch_\w+)$", listed.stdout, re.MULTILINE))
    assert "aoti_torch_empty_strided" in called
    folders = [oldest.torch / "include/torch/csrc" / name for name in ("inductor/aoti_torch/c", "stable/c")]
    text = "".join(path.read_text() for folder in folders for path in folder.glob("*.h"))
    assert called <= set(re.findall(r"\w+", text))


def test_an_index_that_does_not_answer_differs_from_a_release_that_is_not_there(monkeypatch, tmp_path):
    def answer(text):
        failed = subprocess.CompletedProcess([], 1, "", text)
        monkeypatch.setattr(check_headers.subprocess, "run", lambda *arguments, **options: failed)

    answer("WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching distribution")
    with pytest.raises(check_headers.Unreachable, match="does not answer"):
        check_headers.fetch("2.10.0", tmp_path)
    answer("ERROR: No matching distribution found for torch==1.0")
    with pytest.raises(RuntimeError, match=r"torch==1\.0"):
        check_headers.fetch("1.0", tmp_path)
    assert list(tmp_path.iterdir()) == []
