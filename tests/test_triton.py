"""The Triton kernels against the oracle, interpreted or on a GPU, and what they compile to."""

import json
import os
import zlib

import numpy
import pytest
import torch
from helpers import FLOATS, SHORT_FLOATS, assert_same_bits, generator, grid, random_floats, random_words, strided_forms
from processes import run_python

from stompp_kernels.ops import draw_state, reference

pytest.importorskip("triton")

import triton

from stompp_kernels.ops.triton import OPS, launch

SURROGATES = ("none", "identity", "clip", "approx_sign")
KINDS = ("all frozen", "own mask", "shared mask", "drawn mask")
# Around words, tiles and the batch; five dimensions; one row, one column.
SHAPES = ((1,), (33,), (3, 40), (2, 1030), (5, 1), (2, 3, 5, 7), (3, 64, 2, 8), (2, 3, 2, 3, 4))

ops = torch.ops.stompp_triton

# What numpy says of infinities, in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "interpreter" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the same kernels run on this machine's GPU")
    return "cpu" if request.param == "interpreter" else "cuda"


@triton.jit
def _count(out, n):
    for _ in range(n):
        triton.language.store(out, triton.language.load(out) + 1)


@pytest.fixture
def loops(device):
    """The test's kernel loops as often as an argument says."""
    out = torch.zeros(1, dtype=torch.int32, device=device)
    try:
        _count[(1,)](out, 3)
    except Exception as error:
        if "only 0-dimensional arrays can be converted" not in str(error):
            raise
        pytest.skip(
            f"the interpreter of Triton {triton.__version__} cannot count to an argument beside numpy "
            f"{numpy.__version__}"
        )
    assert out.item() == 3


def forms(x, how_many, g):
    """Some of the ways x can lie in memory; one byte off its alignment is for CPUs only."""
    found = [(name, view) for name, view in strided_forms(x) if "byte" not in name]
    return [found[int(i)] for i in torch.randperm(len(found), generator=g)[:how_many]]


def floats_for(device, shape, g, dtype):
    """Random floats with special values; for Triton's interpreter, which widens bfloat16 denormals wrongly and does not
    round to the nearest bfloat16, normal ones that all products of the kernels are exact for."""
    x = random_floats(shape, g, dtype)
    if device == "cuda" or dtype != torch.bfloat16:
        return x
    eighths = (torch.randint(-16, 17, tuple(shape), generator=g) / 8).to(dtype)
    return torch.where(x.isfinite() & (x != 0), eighths, x)


def case_id(case):
    return "-".join(str(value).removeprefix("torch.") for value in case.values())


def same(actual, expected, what=""):
    assert_same_bits(actual.cpu(), expected, what)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("case", grid(kind=KINDS, dtype=FLOATS, surrogate=SURROGATES), ids=case_id)
def test_the_progressive_kernels_equal_the_oracle(device, case):
    kind, dtype, surrogate = case.values()
    g = generator(zlib.crc32(case_id(case).encode()))
    for index in torch.randperm(len(SHAPES), generator=g)[: 2 if device == "cpu" else None].tolist():
        shape = torch.Size(SHAPES[index])
        shared = kind == "shared mask"
        words = random_words((), (shape[1:] if shared else shape).numel(), g) if "drawn" not in kind else None
        words = None if kind == "all frozen" else words
        u, grad = (floats_for(device, shape, g, dtype) for _ in range(2))
        for name, view in forms(u, 2 if device == "cpu" else 6, g):
            what = f"{list(shape)} {name}"
            on_device = torch.empty_strided(view.shape, view.stride(), dtype=dtype, device=device).copy_(view)
            if kind == "drawn mask":
                draw = draw_state(0.4, seed=-(2**40) - 5, tensor_id=2**32 - 1, step=2**33 + index)
                out, gate = ops.progressive_drawn(on_device, draw.to(device), surrogate)
                expected, expected_gate = reference.progressive_drawn(view, draw, surrogate)
            else:
                mask = None if words is None else words.to(device)
                arguments, expected_arguments = (mask, surrogate, shared), (words, surrogate, shared)
                expected = reference.progressive(view, *expected_arguments)
                same(ops.progressive(on_device, *arguments), expected, what)
                expected_grad = reference.progressive_backward(grad, view, *expected_arguments)
                same(ops.progressive_backward(grad.to(device), on_device, *arguments), expected_grad, what)
                if surrogate == "approx_sign":
                    continue
                out, gate = ops.progressive_gated(on_device, *arguments)
                expected_gate = reference.progressive_gated(view, *expected_arguments)[1]
            same(out, expected, what)
            same(gate, expected_gate, what)
            assert out.stride() == expected.stride(), what
            back = ops.progressive_gate_backward(grad.to(device), gate, out.stride(), shared)
            same(back, reference.progressive_gate_backward(grad, expected_gate, expected.stride(), shared), what)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 511, 512, 513, 1100])
def test_the_refresh_kernel_equals_the_oracle(device, n, g):
    for p, r, seed, step in [(0.0, 1.0, 0, 0), (1.0, 1.0, -1, 1), (0.3, 4.0, -(2**62), 2**62 + 1), (0.5, 100, 7, 3)]:
        words = random_words((), n, g)
        expected, ours = words.clone(), words.to(device)
        reference.refresh_mask_(expected, n, p, r, seed, 2**32 - 2, step)
        ops.refresh_mask_(ours, n, p, r, seed, 2**32 - 2, step)
        same(ours, expected, f"p={p} r={r}")


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
@pytest.mark.parametrize("shape", [(1,), (33,), (3, 40), (5, 64), (2, 3, 5, 7), (2, 3, 3, 64), (3, 1, 70)])
def test_the_packing_kernels_equal_the_oracle(device, dtype, shape, g):
    x, low, high = floats_for(device, shape, g, dtype), random_floats(shape[-1:], g), random_floats(shape[-1:], g)
    planes = x.movedim(-1, 0 if len(shape) < 3 else 1).contiguous().movedim(0 if len(shape) < 3 else 1, -1)
    for name, view in [*forms(x, 2 if device == "cpu" else 6, g), ("planes", planes)]:
        on_device = torch.empty_strided(shape, view.stride(), dtype=dtype, device=device).copy_(view)
        same(ops.pack_signs(on_device), reference.pack_signs(view), name)
        expected = reference.pack_outside(view, low, high)
        same(ops.pack_outside(on_device, low.to(device), high.to(device)), expected, name)
    words = reference.pack_signs(x)
    for out_dtype in (dtype, torch.float64):
        unpacked = ops.unpack_signs(words.to(device), shape[-1], out_dtype)
        same(unpacked, reference.unpack_signs(words, shape[-1], out_dtype))


@pytest.mark.parametrize("words", [1, 2, 5])
@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((9, 8), ([2, 2], [2, 2], [0, 0], [1, 1], False)),
        ((7, 10), ([3, 3], [2, 2], [1, 1], [1, 1], True)),
        ((8, 9), ([4, 1], [1, 3], [2, 0], [1, 1], False)),
        ((6, 7), ([2, 3], [1, 2], [0, 0], [3, 2], True)),
        ((4, 4), ([5, 5], [3, 3], [0, 0], [1, 1], True)),
        ((1, 1), ([1, 1], [1, 1], [0, 0], [1, 1], False)),
    ],
)
def test_the_pooling_kernel_equals_the_oracle(device, words, size, window, g):
    x = torch.randint(-(2**31), 2**31, (3, *size, words), generator=g).to(torch.int32) | 0x0F0F0F0F  # AND leaves some
    expected = reference.max_pool2d_signs(x, *window)
    for name, view in forms(x, 2 if device == "cpu" else 6, g):
        on_device = torch.empty_strided(view.shape, view.stride(), dtype=view.dtype, device=device).copy_(view)
        same(ops.max_pool2d_signs(on_device, *window), expected, name)


def integers(shape, g, dtype=torch.float32):
    """Small ones, whose sums and scaled sums every type's products are exact for, in any order."""
    return torch.randint(-4, 5, tuple(shape), generator=g).to(dtype)


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
@pytest.mark.parametrize(("M", "N", "K"), [(1, 5, 3), (7, 33, 32), (20, 70, 100), (70, 31, 33)])
def test_the_binary_weight_kernel_equals_the_oracle_on_matrices(device, loops, dtype, M, N, K, g):
    if device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16")
    words = reference.pack_weight(random_floats((N, K), g)).to(device)
    scale, bias = integers((N,), g), integers((N,), g) / 2
    # Rounded to 16 bits once, from what float32 holds exactly.
    x = integers((2, M, K), g, dtype)
    for shift in (None, bias):
        expected = reference.linear_binary_weight(x, words.cpu(), N, K, scale, shift)
        shift = None if shift is None else shift.to(device)
        for view in (x, x.transpose(0, 2).contiguous().transpose(0, 2)):
            on_device = torch.empty_strided(view.shape, view.stride(), dtype=dtype, device=device).copy_(view)
            same(ops.linear_binary_weight(on_device, words, N, K, scale.to(device), shift), expected)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("shape", "O", "kernel", "geometry"),
    [
        ((2, 40, 5, 6), 20, (3, 2), ([1, 2], [1, 0], [1, 2], 1)),
        ((1, 3, 9, 8), 33, (5, 3), ([2, 3], [2, 1], [1, 1], 1)),
        ((2, 12, 4, 5), 8, (3, 3), ([1, 1], [1, 1], [1, 1], 4)),
        ((1, 34, 5, 4), 34, (3, 3), ([2, 1], [1, 2], [1, 1], 34)),
        ((1, 66, 3, 3), 6, (1, 1), ([1, 1], [0, 0], [1, 1], 2)),
    ],
)
def test_the_binary_weight_kernel_equals_the_oracle_on_images(device, loops, shape, O, kernel, geometry, g):
    groups = geometry[-1]
    weight_shape = [O, shape[1] // groups, *kernel]
    words = reference.pack_conv_weight(random_floats(weight_shape, g), groups)
    scale, bias, x = integers((O,), g), integers((O,), g), integers(shape, g)
    expected = reference.conv2d_binary_weight(x, words, weight_shape, *geometry, scale, bias)
    for image in (x, x.to(memory_format=torch.channels_last)):
        arguments = words.to(device), weight_shape, *geometry, scale.to(device), bias.to(device)
        out = ops.conv2d_binary_weight(image.to(device), *arguments)
        same(out, expected)
        assert out.stride() == expected.stride()


def test_nan_and_infinity_stay_in_their_rows_of_the_binary_weight_kernel(device, loops, g):
    words = reference.pack_weight(random_floats((20, 70), g))
    x = integers((18, 70), g)
    x[3, 69], x[17, 5] = torch.nan, torch.inf
    out = ops.linear_binary_weight(x.to(device), words.to(device), 20, 70, torch.ones(20, device=device), None)
    same(out, reference.linear_binary_weight(x, words, 20, 70, torch.ones(20), None))


def test_rows_beyond_the_grids_second_dimension_are_done_too(device):
    assert launch.grid(3, 65535) == (3, 65535, 1)
    assert launch.grid(3, 65536) == (3, 65535, 2)
    if device == "cuda":
        u = torch.randn(70000, 3, device=device)
        words = torch.tensor([5], dtype=torch.int32)
        same(ops.progressive(u, words.to(device), "none", True), reference.progressive(u.cpu(), words, "none", True))


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements_are_addressed_right():
    n = 2**31 + 1000
    u = torch.full((n,), 0.25, dtype=torch.bfloat16, device="cuda")
    u[-1:], u[2**31] = -0.5, 3.0
    out, gate = ops.progressive_gated(u, None, "clip", False)
    assert out[[0, 2**31, n - 1]].tolist() == [1.0, 1.0, -1.0]
    assert (gate[0, [0, 2**31 // 32]] & 0xFF).tolist() == [0xFF, 0xFE]
    back = ops.progressive_gate_backward(u, gate, [1], False)
    assert back[[0, 2**31, n - 1]].tolist() == [0.25, 0.0, -0.5]


def test_empty_tensors_stay_empty(device):
    empty = torch.empty(0, 5, device=device)
    words = torch.zeros(1, dtype=torch.int32, device=device)
    out, gate = ops.progressive_gated(empty, words, "clip", True)
    assert out.shape == (0, 5)
    assert gate.shape == (0, 1)
    assert ops.progressive_gate_backward(empty, gate, [5, 1], True).shape == (0, 5)
    assert ops.pack_signs(empty).shape == (0, 1)
    ops.refresh_mask_(words[:0], 0, 0.5, 1.0, 0, 0, 0)
    weight, ones = torch.zeros(12, dtype=torch.uint8, device=device), torch.ones(3, device=device)
    assert ops.linear_binary_weight(empty, weight, 3, 5, ones, None).shape == (0, 3)
    images = torch.zeros(0, 4, 6, 2, dtype=torch.int32, device=device)
    assert ops.max_pool2d_signs(images, [2, 2], [2, 2], [0, 0], [1, 1], False).shape == (0, 2, 3, 2)


def test_bad_arguments_are_refused_before_a_kernel_runs(device, g):
    u, words = torch.ones(3, 40, device=device), random_words((), 120, g).to(device)
    gate = random_words((1,), 120, g).to(device)
    bytes_, image = torch.zeros(24, dtype=torch.uint8, device=device), torch.ones(1, 40, 2, 2, device=device)
    conv, pairs = ([3, 40, 1, 1], [1, 1], [0, 0], [1, 1]), ([1, 1], [1, 1], [0, 0], [1, 1])
    for call, message in [
        (lambda: ops.progressive(u.int(), None, "none", False), "u must be"),
        (lambda: ops.progressive(u, words[:3], "none", False), "mask_words must have shape"),
        (lambda: ops.progressive(u, words.long(), "none", False), "mask_words must be torch.int32"),
        (lambda: ops.progressive(u, words, "ste", False), "surrogate must be one of"),
        (lambda: ops.progressive_gated(u, words, "approx_sign", False), "surrogate must be one of"),
        (lambda: ops.progressive_drawn(u, words[:4], "none"), "draw must be torch.int64"),
        (lambda: ops.progressive_gate_backward(u, gate[:, :3], [40, 1], False), "gate must have shape"),
        (lambda: ops.progressive_gate_backward(u, gate, [80, 2], False), "strides must be those of dense"),
        (lambda: ops.progressive_backward(u[:2], u, words, "clip", False), "grad must have shape"),
        (lambda: ops.refresh_mask_(words, 121, 1.5, 2.0, 0, 0, 0), "p must be in"),
        (lambda: ops.refresh_mask_(words, 12, 0.5, 2.0, 0, 0, 0), "mask_words must have shape"),
        (lambda: ops.pack_signs(u.double()), "x must be"),
        (lambda: ops.unpack_signs(words, 33, torch.float32), "words must have a last dimension"),
        (lambda: ops.unpack_signs(words, 120, torch.int32), "dtype must be one of"),
        (lambda: ops.pack_outside(u, u[0, :39], u[0]), "low must have shape"),
        (lambda: ops.max_pool2d_signs(u, *pairs, False), r"x_words must be torch\.int32"),
        (lambda: ops.max_pool2d_signs(words, *pairs, False), r"x_words must be \[N, H, W, C_words\]"),
        (lambda: ops.linear_binary_weight(u, bytes_[:-4], 3, 40, u[0, :3], None), r"weight must have shape \[24\]"),
        (lambda: ops.linear_binary_weight(u, bytes_, 3, 40, u[0, :4], None), "scale must have shape"),
        (lambda: ops.linear_binary_weight(u.double(), bytes_, 3, 40, u[0, :3], None), "x must be"),
        (lambda: ops.conv2d_binary_weight(image, bytes_, *conv, 1, u[0, :3], u[0]), "bias must have shape"),
        (lambda: ops.conv2d_binary_weight(image, bytes_, *conv, 2, u[0, :3], None), r"x must be \[N, 80, H, W\]"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_the_gradient_comes_from_the_same_ops(device, g):
    for shape in [(3, 40), (2, 3, 4, 5)]:
        u = random_floats(shape, g).to(device).requires_grad_()
        grad = random_floats(shape, g)
        words = random_words((), torch.Size(shape[1:]).numel(), g)
        draw = draw_state(0.5, 1, 2, 3)
        for surrogate in SURROGATES:
            for name in ("shared", "drawn"):
                u.grad = None
                saved = []
                with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # noqa: B023
                    if name == "drawn":
                        out = ops.progressive_drawn(u, draw.to(device), surrogate)[0]
                    elif surrogate == "approx_sign":
                        out = ops.progressive(u, words.to(device), surrogate, True)
                    else:
                        out = ops.progressive_gated(u, words.to(device), surrogate, True)[0]
                assert (u.data_ptr() in {t.data_ptr() for t in saved}) == (surrogate == "approx_sign")
                out.backward(grad.to(device))
                same(u.grad, expected_gradient(u.detach().cpu(), grad, words, draw, surrogate, name == "drawn"), name)


def expected_gradient(u, grad, words, draw, surrogate, drawn):
    if drawn:
        u_row = u.flatten()
        words = reference.progressive_drawn(u_row, draw, "approx_sign")[1][0]
        return reference.progressive_backward(grad.flatten(), u_row, words, surrogate, False).reshape(u.shape)
    return reference.progressive_backward(grad, u, words, surrogate, True)


def test_every_op_has_the_schema_of_its_twin():
    for name in OPS:
        signatures = {
            # Names of mutated arguments' aliases and the kind of ints are how torch infers a schema.
            str(getattr(space, name).default._schema)
            .partition("::")[2]
            .replace("a0!", "a!")
            .replace("SymInt", "int")
            .replace("int[2]", "int[]")
            for space in (torch.ops.stompp, torch.ops.stompp_triton)
        }
        assert len(signatures) == 1, signatures


def test_block_sizes_fit_the_tensor():
    for itemsize in (2, 4, 8):
        for n in (1, 100, 1000, 10**9):
            size = launch.elementwise(n, itemsize)
            # One 16-byte load a thread.
            assert size.tile * 8 * itemsize == size.warps * 32 * 16
            assert size.warps == 1 or (size.warps // 2) * 32 * 16 // itemsize < n
    for rows, outputs in ((1, 1), (16, 32), (17, 33), (10**9, 10**6)):
        tile = launch.product(rows, outputs)
        assert min(tile.rows, tile.outputs) >= 16  # what tl.dot takes
        assert tile.rows == 16 or rows > 16


def test_block_sizes_of_any_batch_are_those_of_a_large_one():
    """A graph's symbol is not compared with a number: that would fix the batch."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    environment = ShapeEnv()
    batch = environment.create_unbacked_symint()
    assert launch.elementwise(batch, 4) == launch.elementwise(10**9, 4)
    assert launch.product(batch, 64) == launch.product(10**9, 64)
    _, rows, more = launch.grid(3, batch)
    assert isinstance(rows, torch.SymInt)
    assert isinstance(more, torch.SymInt)
    assert environment.guards == []


@pytest.fixture(scope="module")
def compiled_ahead_of_time(tmp_path_factory):
    """What PTX and SASS each kernel becomes for each architecture, with no GPU needed."""
    cache = str(tmp_path_factory.mktemp("triton"))
    result = run_python(
        "import triton_ahead_of_time as a; a.main()", TRITON_CACHE_DIR=cache, TRITON_DEFAULT_FP_FUSION="1"
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_every_kernel_compiles_for_every_architecture(compiled_ahead_of_time):
    names = {row["name"].partition("-")[0] for row in compiled_ahead_of_time}
    kernels = {
        "forward",
        "forward_drawn",
        "backward",
        "gate_backward",
        "refresh",
        "permute",
        "pack_rows",
        "pack_planes",
        "max_pool",
    }
    assert names == kernels | {"unpack_rows", "binary_weight"}
    for name in names:
        found = {r["architecture"] for r in compiled_ahead_of_time if r["name"].startswith(name)}
        assert found == {80, 90, 100}


@pytest.mark.slow
def test_floats_move_in_16_byte_accesses_and_bits_once(compiled_ahead_of_time):
    """One load of u (and of grad), one store of the result, a byte of mask and gate each: nothing is read twice."""
    floats = {"forward": 1, "forward_drawn": 1, "gate_backward": 1, "backward": 2}
    for row in compiled_ahead_of_time:
        kernel, _, dtype = row["name"].partition("-")
        if kernel not in floats:
            continue
        vector = "v2.b64" if dtype == "fp64" else "v4.b32"
        loads, stores = ({k: n for k, n in row["ptx"].items() if k.startswith(way)} for way in ("ld", "st"))
        reads_bits = {} if kernel == "forward_drawn" else {"ld.global.b8": 1}
        state = {"ld.global.b64": 4} if kernel == "forward_drawn" else {}
        assert loads == {f"ld.global.{vector}": floats[kernel], **reads_bits, **state}, row
        writes_bits = {"st.global.b8": 1} if kernel.startswith("forward") else {}
        assert stores == {f"st.global.{vector}": 1, **writes_bits}, row
        assert row["sass"]["LDG.E.128"] == floats[kernel], row
        assert row["sass"]["STG.E.128"] == 1, row
    packing = [row for row in compiled_ahead_of_time if row["name"].startswith("pack_")]
    assert all({k for k in row["ptx"] if k.startswith("ld")} == {"ld.global.v4.b32"} for row in packing)


@pytest.mark.slow
def test_products_with_binary_weights_run_on_tensor_cores_but_for_fp32(compiled_ahead_of_time):
    """The weights travel as words: 4 bytes for 32 of them."""
    for row in compiled_ahead_of_time:
        kernel, _, dtype = row["name"].partition("-")
        if kernel == "binary_weight":
            assert (row["mma"] > 0) == (dtype != "fp32"), row
            assert "ld.global.b32" in row["ptx"], row


@pytest.mark.slow
def test_16_bit_forward_needs_no_shared_memory(compiled_ahead_of_time):
    for row in compiled_ahead_of_time:
        if row["name"] in ("forward-bf16", "forward-fp16") or row["name"].startswith("gate_backward"):
            assert row["shared_bytes"] == 0, row


SEEN_THROUGH = """
import sys
import torch
import torch._functorch.config
from torch._dynamo.backends.common import aot_autograd

import stompp_kernels
import stompp_kernels.ops.triton
from stompp_kernels.ops.progressive import register_autograd

register_autograd("stompp_triton")
ops = torch.ops.stompp_triton
graphs = []

def record(graph, inputs):
    graphs.append(graph)
    return graph

def progressive(u, mask, draw):
    return ops.progressive_gated(u * 2, mask, "clip", True)[0] + ops.progressive_drawn(u, draw, "none")[0]

u, mask, draw = torch.randn(4, 64, requires_grad=True), torch.zeros(2, dtype=torch.int32), torch.tensor([1, 2, 3, 4])

def kernels(graph):
    return sum("triton_kernel_wrapper" in str(node.target) for node in graph.graph.nodes)

compiled = torch.compile(progressive, backend=aot_autograd(fw_compiler=record, bw_compiler=record), fullgraph=True)
try:
    compiled(u, mask, draw)
except Exception as error:  # the graph is made; to run it takes a GPU
    print(type(error).__name__, file=sys.stderr)
for graph in graphs:
    print("graph", kernels(graph))

class Module(torch.nn.Module):
    def forward(self, u, mask, draw):
        return progressive(u, mask, draw)

exported = torch.export.export(Module(), (u.detach(), mask, draw))
print("exported", sorted(str(node.target) for node in exported.graph.nodes if "stompp" in str(node.target)))
"""


@pytest.mark.slow
def test_compiled_graphs_see_the_kernels_and_exported_ones_the_ops():
    result = run_python(SEEN_THROUGH)
    assert result.returncode == 0, result.stderr
    assert "graph 2" in result.stdout, result.stdout + result.stderr
    exported = ["stompp_triton.progressive_drawn.default", "stompp_triton.progressive_gated.default"]
    assert f"exported {exported}" in result.stdout, result.stdout + result.stderr
