"""Which implementation runs, how one is forced, and life without the compiled library."""

import pytest
import torch
from helpers import IMPLEMENTATIONS, assert_same_bits, generator, random_floats, random_signs, random_words
from processes import run_python

from stompp_kernels import native
from stompp_kernels.ops import (
    Affine,
    Threshold,
    bconv2d,
    bgemm,
    pack_conv_weight,
    pack_signs,
    pack_weight,
    progressive,
    refresh_mask_,
    unpack_signs,
)

needs_library = pytest.mark.skipif(
    native.library is None, reason="there is nothing to choose without the compiled library"
)


@needs_library
def test_implementations_are_listed_with_one_active():
    found = native.implementations()
    names = [item.name for item in found]
    assert len(set(names)) == len(names)
    assert {"scalar", "reference"} <= set(names)
    assert [item.name for item in found if item.active and item.device == "cpu"] == [native.active_implementation()]
    for item in found:
        assert item.description
        assert bool(item.reason) == (not item.available)
    assert found[names.index("scalar")].available
    reference = found[names.index("reference")]
    assert not reference.available
    assert "library" in reference.reason


def test_the_active_flag_follows_the_forced_implementation(implementation):
    active = [item.name for item in native.implementations() if item.active and item.device == "cpu"]
    assert active == [implementation]


@needs_library
def test_the_best_available_implementation_runs_unless_told_otherwise():
    result = run_python("from stompp_kernels import native; print(native.active_implementation())")
    assert result.stdout.split() == [IMPLEMENTATIONS[0]], result.stderr


def test_a_forced_implementation_is_restored_on_exit():
    before = native.active_implementation()
    for name in IMPLEMENTATIONS:
        with native.use_implementation(name):
            assert native.active_implementation() == name
            for inner in IMPLEMENTATIONS:
                with native.use_implementation(inner):
                    assert native.active_implementation() == inner
                assert native.active_implementation() == name
        assert native.active_implementation() == before


def test_a_forced_implementation_is_restored_after_an_exception():
    before = native.active_implementation()

    def fail_under(name):
        with native.use_implementation(name):
            raise KeyError(name)

    for name in IMPLEMENTATIONS:
        with pytest.raises(KeyError):
            fail_under(name)
        assert native.active_implementation() == before


@pytest.mark.parametrize("name", ["bogus", "", "AVX2", "scalar ", "cuda", "triton"])
def test_an_unknown_implementation_is_refused_by_name(name):
    before = native.active_implementation()
    with (
        pytest.raises(ValueError, match=f"implementation {name!r} cannot run here; available: .*"),
        native.use_implementation(name),
    ):
        pass
    assert native.active_implementation() == before


@needs_library
def test_the_reference_cannot_be_forced_beside_the_library():
    with pytest.raises(ValueError, match="'reference'"), native.use_implementation("reference"):
        pass


@needs_library
@pytest.mark.parametrize("name", ["bogus", "reference"])
def test_a_bogus_environment_variable_stops_the_import(name):
    result = run_python("import stompp_kernels.native", STOMPP_CPU=name)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ValueError: STOMPP_CPU={name!r} cannot run here; allowed: ")
    assert "scalar" in last


@needs_library
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_the_environment_variable_forces_an_implementation(name):
    code = (
        "import torch\n"
        "from stompp_kernels import native, ops\n"
        "weight = ops.pack_weight(torch.ones(1, 1)).data\n"
        "print(native.active_implementation(), int(weight[8:12].view(torch.int32)))\n"
    )
    result = run_python(code, STOMPP_CPU=name)
    layout = {"scalar": "1", "neon": "2", "avx2": "3", "avx512": "4", "amx": "4"}[name]
    assert result.stdout.split() == [name, layout], result.stderr


# The kernel refuses the tiles' registers to a process with an alternate signal stack that could not hold them.
WITH_A_SMALL_SIGNAL_STACK = """
import ctypes, torch
class Stack(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(4096)
stack = Stack(ctypes.addressof(memory), 0, len(memory))
assert ctypes.CDLL(None, use_errno=True).sigaltstack(ctypes.byref(stack), None) == 0, ctypes.get_errno()
from stompp_kernels import native, ops
[amx] = [item for item in native.implementations() if item.name == "amx"]
assert not amx.available and not amx.active and "refuses permission" in amx.reason, amx
assert native.active_implementation() == "avx512"
assert ops.bgemm(ops.pack_signs(torch.ones(64, 70)), ops.pack_weight(torch.ones(3, 70))).eq(70).all()
try:
    with native.use_implementation("amx"):
        raise SystemExit("amx was accepted")
except ValueError as error:
    assert "'amx'" in str(error)
"""


@pytest.mark.skipif("amx" not in IMPLEMENTATIONS, reason="needs a processor with AMX")
def test_a_process_that_is_refused_tiles_runs_without_them_and_says_so():
    result = run_python(WITH_A_SMALL_SIGNAL_STACK)
    assert result.returncode == 0, result.stderr


@needs_library
def test_an_empty_environment_variable_means_none():
    result = run_python("from stompp_kernels import native; print(native.active_implementation())", STOMPP_CPU="")
    assert result.stdout.split() == [IMPLEMENTATIONS[0]], result.stderr


def sample_results():
    """Results of every op on seeded inputs."""
    g = generator(11)
    x, w = random_floats((3, 5, 6, 42), g), random_floats((70, 21, 3, 3), g)
    words, weight = pack_signs(x), pack_conv_weight(w, 2)
    matrix, rows = pack_weight(random_signs((37, 252), g)), random_words((4,), 252, g)
    scale, bias = random_floats((70,), g), random_floats((70,), g)
    thresholds = torch.randint(-20, 20, (1, 70), generator=g, dtype=torch.int32)
    arguments = (words, weight, 2, 1, 1, 2, 0)
    mask = random_words((), 252, g)
    u = random_floats((3, 252), g).requires_grad_()
    out = progressive(u, mask, "approx_sign", batch_shared=True)
    out.backward(random_floats((3, 252), g))
    return [
        words,
        unpack_signs(words, 42),
        weight.words(),
        matrix.words(),
        bgemm(rows, matrix),
        bgemm(rows, matrix, Affine(scale[:37], bias[:37])),
        bgemm(rows, matrix, Threshold(thresholds[:, :37], random_words((), 37, g))),
        bconv2d(*arguments),
        bconv2d(*arguments, Affine(scale, bias, dtype=torch.bfloat16)),
        bconv2d(*arguments, Threshold(thresholds, random_words((), 70, g))),
        out.detach(),
        u.grad,
        refresh_mask_(mask.clone(), 252, 0.4, 3.0, -5, 6, 1 << 40),
    ]


HIDE_LIBRARY = """
import ctypes
class CDLL(ctypes.CDLL):
    def __init__(self, name, *arguments, **options):
        if str(name).endswith("libstompp_kernels.so"):
            raise OSError(f"{name}: file too short")
        super().__init__(name, *arguments, **options)
ctypes.CDLL = CDLL
"""

WITHOUT_LIBRARY = """
import sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import stompp_kernels
    from stompp_kernels import native, ops
    import torch
    from test_native import sample_results
    results = sample_results()
ours = [str(w.message) for w in caught if "stompp_kernels" in str(w.message)]
assert len(ours) == 1, ours
assert "reference path" in ours[0] and "libstompp_kernels.so" in ours[0] and "pip install" in ours[0], ours
[only] = [item for item in native.implementations() if item.device == "cpu"]
assert (only.name, only.available, only.active, only.reason) == ("reference", True, True, "")
assert native.active_implementation() == "reference"
with native.use_implementation("reference"):
    pass
try:
    with native.use_implementation("scalar"):
        raise SystemExit("scalar was accepted")
except ValueError as error:
    assert "'scalar'" in str(error) and "reference" in str(error)
torch.save(results, sys.argv[1])
compiled = torch.compile(lambda u: ops.progressive(u, None, "clip").sum(), backend="aot_eager",
                         fullgraph=True)
u = torch.ones(5, requires_grad=True)
compiled(u).backward()
assert u.grad.tolist() == [1] * 5
"""


@pytest.mark.slow
def test_without_the_library_all_ops_give_the_same_bits_after_one_warning(tmp_path):
    result = run_python(HIDE_LIBRARY + WITHOUT_LIBRARY, tmp_path / "results.pt")
    assert result.returncode == 0, result.stderr
    saved = torch.load(tmp_path / "results.pt")
    assert len(saved) == 13
    for name in IMPLEMENTATIONS:
        with native.use_implementation(name):
            for index, (ours, theirs) in enumerate(zip(sample_results(), saved, strict=True)):
                assert_same_bits(ours, theirs, f"{name}, result {index}")


def test_a_forced_implementation_without_the_library_is_refused():
    result = run_python(HIDE_LIBRARY + "import stompp_kernels", STOMPP_CPU="avx2")
    assert result.returncode == 1
    assert "ValueError: STOMPP_CPU='avx2' cannot run here: the compiled library did not load" in result.stderr
