"""stompp_kernels.core: the torch-free core on NumPy arrays, and what is said where it was not built."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_fresh_python, run_python

import stompp_kernels as sk
from stompp_kernels import ops

ROOT = Path(__file__).parents[1]

needs_core = pytest.mark.skipif(
    importlib.util.find_spec("stompp_kernels._core") is None, reason="STOMPP_CORE=1 builds it, as `make test` does"
)

# Modules of this name are not found, whatever is installed.
HIDE = """
import sys
class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden)
"""

WITHOUT_TORCH = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find_spec(name, package)
sys.modules["torch"] = None
"""


@pytest.fixture
def core():
    from stompp_kernels import core

    yield core
    core.select_implementation("")


@pytest.fixture(params=[item.name for item in sk.implementations() if item.available and item.device == "cpu"])
def forced(request, core):
    core.select_implementation(request.param)
    assert core.active_implementation() == request.param


@needs_core
def test_it_has_the_implementations_of_the_library(core):
    found = {name: reason for name, _, reason in core.implementations()}
    assert found == {i.name: i.reason for i in sk.implementations() if i.device == "cpu" and i.name != "reference"}
    with pytest.raises(ValueError, match="unknown implementation"):
        core.select_implementation("bogus")


@needs_core
@pytest.mark.parametrize("K", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_signs_are_packed_as_the_op_packs_them(core, forced, K, dtype):
    x = np.random.default_rng(K).standard_normal((3, 2, K)).astype(dtype)
    x[..., 0] = np.array([[0.0, -0.0], [np.nan, -np.inf], [np.inf, -1e-7]])
    words = core.pack_signs(x)
    assert np.array_equal(words, ops.pack_signs(torch.from_numpy(x)).numpy())
    assert np.array_equal(core.unpack_signs(words, K), np.where(x < 0, -1, 1))
    assert np.array_equal(core.pack_signs(x[:, ::-1]), words[:, ::-1])


@needs_core
@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (5, 33, 70), (67, 70, 300)])
def test_bgemm_equals_the_product_of_signs(core, forced, M, N, K):
    random = np.random.default_rng(M)
    a, w = random.standard_normal((M, K), np.float32), random.standard_normal((N, K), np.float32)
    thresholds = random.integers(-5, 5, N).astype(np.int32)
    expected = np.where(a < 0, -1, 1) @ np.where(w < 0, -1, 1).T
    words, weight = core.pack_signs(a), core.pack_weight(w)
    assert np.array_equal(core.bgemm(words, weight), expected)
    bits = core.bgemm(words, weight, thresholds=thresholds)
    assert np.array_equal(core.unpack_signs(bits, N), np.where(expected < thresholds, -1, 1))


@needs_core
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding_value", [-1, 0, 1])
def test_bconv2d_equals_the_op(core, forced, groups, padding_value):
    random = np.random.default_rng(groups)
    x = random.standard_normal((2, 7, 6, 42), np.float32)
    w = random.standard_normal((10, 42 // groups, 3, 2), np.float32)
    thresholds = random.integers(-9, 9, 10).astype(np.int32)
    arguments = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "padding_value": padding_value}
    words, weight = core.pack_signs(x), core.pack_weight(w, groups)
    ours = ops.pack_conv_weight(torch.from_numpy(w), groups)
    expected = ops.bconv2d(torch.from_numpy(words), ours, groups=groups, **arguments)
    sums = core.bconv2d(words, weight, **arguments)
    assert np.array_equal(sums, expected.numpy())
    bits = core.bconv2d(words, weight, **arguments, thresholds=thresholds)
    assert np.array_equal(core.unpack_signs(bits, 10), np.where(sums < thresholds, -1, 1))


@needs_core
def test_bad_arguments_are_named(core):
    words, matrix = core.pack_signs(np.ones((2, 40), np.float32)), core.pack_weight(np.ones((3, 40), np.float32))
    kernel = core.pack_weight(np.ones((3, 40, 3, 3), np.float32))
    for call, error, message in [
        (lambda: core.pack_signs(np.ones(3)), TypeError, "x must be float32 or float16, got float64"),
        (lambda: core.pack_signs(np.array(1, np.float32)), ValueError, r"at least 1, got shape \[\]"),
        (lambda: core.unpack_signs(words, 65), ValueError, r"K = 65, got shape \[2, 2\]"),
        (lambda: core.pack_weight(np.ones((3, 4, 5), np.float32)), ValueError, r"w must be \[N, K\] or .* \[3, 4, 5\]"),
        (lambda: core.pack_weight(np.ones((3, 4), np.float32), 2), ValueError, "groups must be 1 for a matrix, got 2"),
        (lambda: core.pack_weight(np.ones((3, 4, 1, 1), np.float32), 2), ValueError, "groups"),
        (lambda: core.bgemm(words[:, :1].copy(), matrix), ValueError, r"K = 40 in its last dimension.*shape \[2, 1\]"),
        (lambda: core.bgemm(words, kernel), ValueError, "the weight be a matrix"),
        (lambda: core.bgemm(words, matrix, thresholds=np.ones(4, np.int32)), ValueError, r"thresholds .* shape \[3\]"),
        (lambda: core.bgemm(words.astype(np.int64), matrix), TypeError, "incompatible function arguments"),
        (lambda: core.bconv2d(words, kernel), ValueError, r"x must be \[N, H, W, ceil\(C / 32\)\].* shape \[2, 2\]"),
        (lambda: core.bconv2d(words.reshape(1, 1, 2, 2), kernel), ValueError, "reaches beyond the padded input"),
        (lambda: core.bconv2d(words.reshape(1, 1, 2, 2), kernel, stride=(0, 1)), ValueError, "stride and dilation"),
        (lambda: core.bconv2d(words.reshape(1, 1, 2, 2), kernel, padding_value=2), ValueError, "padding_value must be"),
    ]:
        with pytest.raises(error, match=message):
            call()


@needs_core
def test_it_works_where_there_is_no_torch():
    example = (ROOT / "examples" / "numpy" / "packed_layer.py").read_text()
    result = run_fresh_python(WITHOUT_TORCH + example)
    assert result.returncode == 0, result.stderr
    assert re.search(r"classes \[\d, \d\], torch imported: False", result.stdout)


@pytest.mark.parametrize("code", ["import stompp_kernels as sk; sk.prepare", "from stompp_kernels import convert"])
def test_without_torch_the_package_says_what_to_install(code):
    result = run_fresh_python(WITHOUT_TORCH + code)
    assert result.returncode == 1
    message = "ImportError: stompp_kernels needs torch >= 2.10, and there is none: run `pip install torch`"
    assert message in result.stderr


def test_without_the_module_the_command_that_builds_it_is_named():
    result = run_python("HIDDEN = 'stompp_kernels._core'" + HIDE + "from stompp_kernels import core")
    assert result.returncode == 1
    assert "ImportError: stompp_kernels.core is not built for this Python (No module named" in result.stderr
    assert "run `STOMPP_CORE=1 pip install --no-build-isolation .` in the source tree" in result.stderr
