"""On an NVIDIA GPU: binary products and packed networks against the oracle, and how the ops behave there."""

import copy
import dataclasses

import pytest
import torch
from helpers import (
    SHORT_FLOATS,
    assert_same_bits,
    generator,
    random_floats,
    random_signs,
    random_words,
)
from hypothesis import given, settings
from models_for_tests import NETS, committed, float_convs_of, make, set_stage
from safetensors import safe_open
from test_bconv2d import convolutions, expected_conv
from test_epilogue import random_thresholds
from torch import nn

import stompp_kernels as sk
from stompp_kernels import cuda_library, native
from stompp_kernels.nn import FloatConv2d
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import (
    Affine,
    AffineSigns,
    Limits,
    PackedWeight,
    Threshold,
    bconv2d,
    bgemm,
    conv2d_float,
    pack_conv_weight,
    pack_signs,
    pack_weight,
    reference,
)

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


def test_the_library_for_gpus_runs():
    assert native.cuda is not None, native.cuda_missing_reason
    assert native.implementation_of("bgemm", torch.device(DEVICE)) == "cuda"


def epilogues(shape, K, g):
    """Makes epilogues of every kind, for accumulators of this shape that are sums of K signs; on the CPU."""
    N = shape[-1]
    scale, bias = random_floats((N,), g), random_floats((N,), g)
    limits = random_thresholds(2, N, K + 1, g)
    flips = random_words((), N, g)
    yield None
    for dtype, residual_dtype in zip(SHORT_FLOATS, (torch.bfloat16, torch.float32, torch.float16), strict=True):
        yield Affine(scale, bias, None, dtype)
        yield Affine(scale, bias, random_floats(shape, g, residual_dtype), dtype, fused=True)
    yield AffineSigns(scale, bias, random_floats(shape, g), fused=True, residual_scale=bias, residual_bias=scale)
    yield Affine(scale, bias, random_floats(shape, g), rprelu=random_floats((3, N), g))
    outside = torch.stack([-bias.abs(), scale.abs()])
    yield AffineSigns(scale, bias, rprelu=random_floats((3, N), g), limits=outside)
    yield Threshold(limits[:1], flips)
    yield Threshold(limits, flips, random_words(shape[:-1], N, g))


def on_gpu(epilogue):
    if epilogue is None:
        return None
    values = {field.name: getattr(epilogue, field.name) for field in dataclasses.fields(epilogue)}
    return dataclasses.replace(
        epilogue, **{name: value.to(DEVICE) for name, value in values.items() if isinstance(value, torch.Tensor)}
    )


def expected(acc, epilogue):
    if epilogue is None:
        return acc
    if isinstance(epilogue, Affine):
        return reference.affine(acc, *epilogue.operands())
    if isinstance(epilogue, AffineSigns):
        return reference.affine_signs(acc, *epilogue.operands())[1]
    return reference.threshold(acc, epilogue.thresholds, epilogue.flip_words, epilogue.residual_words)


def check_every_epilogue(product, acc, K, g, what):
    """``product(epilogue)`` on the GPU, for accumulators that are ``acc``."""
    for epilogue in epilogues(acc.shape, K, g):
        assert_same_bits(product(on_gpu(epilogue)).cpu(), expected(acc, epilogue), f"{what}, {epilogue}")


# Around the tiles of the kernels (16 and 128 rows, 64 and 256 outputs, 512 bits of K) and far from them.
ROWS = (1, 2, 7, 16, 17, 100, 128, 129, 300)
OUTPUTS = (1, 31, 33, 64, 65, 250, 256, 257, 700)
INPUTS = (1, 31, 64, 100, 511, 512, 513, 1500, 4096)


@pytest.mark.parametrize("M", ROWS)
def test_matrix_products_equal_the_reference(M):
    g = generator(M)
    for i, N in enumerate(OUTPUTS):
        K = INPUTS[(i + M) % len(INPUTS)]
        a, w = random_words((M,), K, g), random_signs((N, K), g)
        acc = reference.bgemm(a, reference.pack_weight(w), N, K)
        weight, rows = pack_weight(w.to(DEVICE)), a.to(DEVICE)
        assert_same_bits(weight.words().cpu(), reference.pack_signs(w))
        check_every_epilogue(lambda e, rows=rows, weight=weight: bgemm(rows, weight, e), acc, K, g, f"{M} {N} {K}")


@pytest.mark.parametrize("K", INPUTS)
def test_many_rows_fill_wide_tiles(K):
    """The widest tiles need blocks for every multiprocessor."""
    g = generator(K)
    M, N = 4099, 1280
    a, w = random_words((M,), K, g), random_signs((N, K), g)
    acc = (sign_values(a, K) @ w.T.to(DEVICE)).to(torch.int32).cpu()  # exact in fp32, whose sums stay below 2^24
    weight, rows = pack_weight(w.to(DEVICE)), a.to(DEVICE)
    check_every_epilogue(lambda e: bgemm(rows, weight, e), acc, K, g, f"{M} {N} {K}")


def sign_values(words, K):
    return reference.unpack_signs(words.to(DEVICE), K, torch.float32)


def test_leading_dimensions_strides_and_empty_rows(g):
    w = random_signs((70, 200), g)
    weight = pack_weight(w.to(DEVICE))
    a = random_words((6, 3, 2), 200, g)
    acc = reference.bgemm(a, reference.pack_weight(w), 70, 200)
    for rows, want in [
        (a.to(DEVICE), acc),
        (a.transpose(0, 1).to(DEVICE).transpose(0, 1), acc),
        (a.to(DEVICE)[1:4, 1], acc[1:4, 1]),
        (torch.cat([a.new_zeros(1), a.flatten()]).to(DEVICE)[1:].view(a.shape), acc),  # 4 bytes off
        (a.to(DEVICE)[:0], acc[:0]),
    ]:
        assert_same_bits(bgemm(rows, weight).cpu(), want)
    assert bconv2d(a[:0].reshape(0, 3, 2, 7).to(DEVICE), conv_weight((5, 200, 1, 1), g)).shape == (0, 3, 2, 5)


def conv_weight(shape, g, groups=1):
    return pack_conv_weight(random_signs(shape, g).to(DEVICE), groups)


@settings(max_examples=400)
@given(convolutions())
def test_convolutions_equal_the_reference(arguments):
    x, w, *geometry = arguments.values()
    g = generator(x.numel())
    groups = arguments["groups"]
    acc = reference.bconv2d(
        reference.pack_signs(x.permute(0, 2, 3, 1)), reference.pack_conv_weight(w, groups), w.shape, *geometry
    )
    words, weight = pack_signs(x.to(DEVICE).permute(0, 2, 3, 1)), pack_conv_weight(w.to(DEVICE), groups)
    assert_same_bits(weight.unpack().cpu(), w)
    K = w[0].numel()
    check_every_epilogue(lambda e: bconv2d(words, weight, *geometry, e), acc, K, g, str(geometry))


@pytest.mark.parametrize("padding_value", [0, 1, -1])
@pytest.mark.parametrize(
    ("shape", "outputs", "kernel", "stride", "groups"),
    [
        ((3, 64, 28, 28), 64, 3, 1, 1),
        ((2, 128, 28, 28), 256, 3, 2, 1),
        ((2, 96, 30, 17), 192, 3, 2, 3),
        ((2, 256, 14, 14), 512, 1, 2, 1),
        ((2, 144, 28, 28), 144, 3, 1, 144),
        ((1, 40, 40, 40), 40, 7, 1, 10),
        ((2, 3, 40, 40), 70, 7, 2, 1),
        ((66, 64, 16, 16), 512, 3, 1, 1),  # wide tiles: two for each multiprocessor of an H200
    ],
)
def test_layers_of_networks_equal_torchs_convolution(shape, outputs, kernel, stride, groups, padding_value, g):
    x, w = random_signs(shape, g), random_signs((outputs, shape[1] // groups, kernel, kernel), g)
    geometry = ((stride, stride), (kernel // 2, kernel // 2), (1, 1), groups, padding_value)
    acc = expected_conv(x, w, *geometry)
    words, weight = pack_signs(x.to(DEVICE).permute(0, 2, 3, 1)), pack_conv_weight(w.to(DEVICE), groups)
    check_every_epilogue(lambda e: bconv2d(words, weight, *geometry, e), acc, w[0].numel(), g, str(geometry))


@pytest.mark.parametrize(
    ("shape", "groups"), [((70, 200), 1), ((64, 1, 3, 3), 64), ((24, 40, 3, 2), 2), ((8, 2, 5, 5), 4)]
)
def test_weights_move_between_devices(shape, groups, g):
    w = random_signs(shape, g)
    pack = pack_weight if len(shape) == 2 else lambda w: pack_conv_weight(w, groups)
    on_cpu, there = pack(w), pack(w.to(DEVICE))
    moved = on_cpu.to(DEVICE)
    assert moved.data.is_cuda
    assert_same_bits(moved.data.cpu(), there.data.cpu())
    assert_same_bits(there.to("cpu").data, on_cpu.data)
    dirty = on_cpu.words() | ~reference.pack_bits(torch.ones(shape[1], dtype=torch.bool))  # tail bits are ignored
    assert_same_bits(PackedWeight.from_words(dirty.to(DEVICE), shape, groups).data.cpu(), there.data.cpu())


def packed_layers(packed):
    return {name: module for name, module in packed.named_modules() if isinstance(module, PackedLayer)}


def calls_of_layers(packed, x):
    """{layer: (inputs, output)} of a run."""
    found, hooks = {}, []
    for name, layer in packed_layers(packed).items():
        hooks.append(layer.register_forward_hook(lambda m, i, y, name=name: found.update({name: (i, y)})))
    with torch.no_grad():
        packed(x)
    for hook in hooks:
        hook.remove()
    return found


def checksum(path):
    """Returns the checksum of a packed network's structure and tensors."""
    with safe_open(path, framework="pt") as file:
        return file.metadata()["sha256"]


@pytest.mark.parametrize("name", NETS)
def test_a_packed_file_loads_on_both_devices(name, tmp_path):
    model, x = committed(name, 5)
    packed = sk.convert(model)
    calls = calls_of_layers(packed, x)
    sk.save_packed(packed, tmp_path / "cpu")
    loaded = sk.load_packed(tmp_path / "cpu").to(DEVICE)
    products = [row for row in sk.explain(loaded).rows if row.kernel.startswith(("bgemm", "bconv2d"))]
    assert {row.implementation for row in products} == {"cuda"}
    for layer, (inputs, output) in calls.items():
        found = loaded.get_submodule(layer)(*(value.to(DEVICE) for value in inputs))
        assert_same_bits(found.cpu(), output, layer)
    with torch.no_grad():
        assert loaded(x.to(DEVICE)).isfinite().all()
    sk.save_packed(loaded, tmp_path / "gpu")
    assert checksum(tmp_path / "gpu") == checksum(tmp_path / "cpu")
    back = loaded.to("cpu")
    with torch.no_grad():
        assert torch.equal(back(x), packed(x))


@pytest.mark.parametrize("name", NETS)
def test_a_network_converts_on_a_gpu_as_on_the_cpu(name):
    model, _ = make(name, 5)
    g = generator(6)
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):  # no ties, which the devices' arithmetic may break
            for values in (norm.weight.data, norm.bias.data, norm.running_mean):
                values.copy_(torch.randn(values.shape, generator=g))
    set_stage(model, sk.nn.Stage.BINARY).eval()
    with float_convs_of(torch_s=True):  # as they are on a GPU
        on_cpu = sk.convert(model)
    there = sk.convert(copy.deepcopy(model).to(DEVICE))
    assert {layer.weight.data.device.type for layer in packed_layers(there).values()} == {"cuda"}
    state = there.state_dict()
    for key, value in on_cpu.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(state[key].cpu(), value)
        else:
            assert_same_bits(state[key].cpu(), value, key)


@pytest.mark.parametrize("epilogue", ["floats", "affine", "bits"])
def test_float_convolutions_move_to_a_gpu(epilogue, g, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x, w = torch.randint(-9, 10, (2, 40, 9, 8), generator=g).float(), torch.randint(-9, 10, (34, 40, 3, 3), generator=g)
    low, high = torch.full((34,), -50.0), torch.full((34,), 90.0)
    epilogues = {"floats": None, "affine": Affine(low, high), "bits": Limits(low, high)}
    conv = nn.Conv2d(40, 34, 3, 2, 1, bias=False)
    conv.weight.data = w.float()
    for reads, inputs in (("floats", x), ("bits", pack_signs(x.permute(0, 2, 3, 1)))):
        module = FloatConv2d.of(conv, reads, epilogues[epilogue])
        expected = module(inputs)  # of integers: exact in any order
        moved = copy.deepcopy(module).to(DEVICE)
        for _ in range(2):
            assert_same_bits(moved(inputs.to(DEVICE)).cpu(), expected)
        op = conv2d_float(inputs.to(DEVICE), moved.weight, 2, 1, epilogue=moved._epilogue())
        assert_same_bits(op.cpu(), expected)


def sample_products(g):
    """(input on the GPU, function of it, what it must give for an input on the CPU)."""
    w, kernel = random_signs((300, 700), g), random_signs((70, 40, 3, 3), g)
    matrix, packed = pack_weight(w.to(DEVICE)), pack_conv_weight(kernel.to(DEVICE))
    t = torch.randint(-20, 20, (1, 70), generator=g, dtype=torch.int32)
    threshold = Threshold(t, random_words((), 70, g))
    geometry = ((1, 1), (1, 1), (1, 1), 1, 0)
    moved = on_gpu(threshold)

    def convolved(x):
        acc = reference.bconv2d(x, reference.pack_conv_weight(kernel, 1), kernel.shape, *geometry)
        return expected(acc, threshold)

    def multiplied(a):
        return reference.bgemm(a, reference.pack_weight(w), 300, 700)

    return [
        (lambda: random_words((200,), 700, g), lambda a: bgemm(a, matrix), multiplied),
        (lambda: random_words((2, 9, 8), 40, g), lambda x: bconv2d(x, packed, *geometry, moved), convolved),
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_products_are_captured_in_a_cuda_graph(index, g):
    make, run, oracle = sample_products(g)[index]
    x = make().to(DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x)
    for _ in range(3):
        other = make()
        x.copy_(other)
        out.fill_(-1)
        graph.replay()
        assert_same_bits(out.cpu(), oracle(other))


@pytest.mark.parametrize("index", [0, 1])
def test_products_run_on_the_current_stream_and_wait_for_nothing(index, g):
    make, run, oracle = sample_products(g)[index]
    x, other = make().to(DEVICE), make()
    ready = other.to(DEVICE)
    run(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(x)  # leaves the memory that the next result takes
        torch.cuda._sleep(500_000_000)  # a quarter of a second and more: what comes behind it must not overtake it
        x.copy_(ready)
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        out = run(x)
        assert not stream.query(), "the call waited for the device"
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before + 1  # its result
    stream.synchronize()
    assert_same_bits(out.cpu(), oracle(other))


def test_a_device_that_is_not_the_current_one(g):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    a, w = random_words((50,), 100, g), random_signs((70, 100), g)
    out = bgemm(a.to("cuda:1"), pack_weight(w.to("cuda:1")))
    assert out.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert_same_bits(out.cpu(), reference.bgemm(a, reference.pack_weight(w), 70, 100))
    with pytest.raises(RuntimeError, match="weight is on cuda:0 and a_words on cuda:1"):
        bgemm(a.to("cuda:1"), pack_weight(w.to("cuda:0")))


def test_wrong_devices_and_bytes_are_refused(g):
    a, w = random_words((50,), 100, g).to(DEVICE), random_signs((70, 100), g)
    weight = pack_weight(w.to(DEVICE))
    with pytest.raises(RuntimeError, match="bgemm: weight must be the 10240 packed bytes"):
        bgemm(a, pack_weight(w))  # packed for the CPU
    with pytest.raises(
        RuntimeError, match="bgemm: weight is on cpu and a_words on cuda:0, but all tensors must be on one"
    ):
        bgemm(a, dataclasses.replace(weight, data=weight.data.cpu()))
    with pytest.raises(RuntimeError, match="bgemm: a_words is on cpu and another argument on a GPU"):
        bgemm(a.cpu(), weight)
    for data in (
        weight.data[:-16],
        torch.cat([weight.data, weight.data[:16]]),
        weight.data.view(70, -1) if 0 else weight.data[None],
    ):
        with pytest.raises(RuntimeError, match="bgemm: weight must be the 10240 packed bytes of its shape"):
            bgemm(a, dataclasses.replace(weight, data=data))
    shifted = torch.cat([weight.data.new_zeros(4), weight.data])[4:]
    with pytest.raises(RuntimeError, match="multiple of 16 bytes"):
        bgemm(a, dataclasses.replace(weight, data=shifted))
    with pytest.raises(RuntimeError, match="weight must be uint8"):
        torch.ops.stompp.bgemm(a, weight.data.view(torch.int32), 70, 100)
    scale, bias = torch.ones(70), torch.ones(70, device=DEVICE)
    with pytest.raises(RuntimeError, match="bgemm_affine: scale is on cpu"):
        bgemm(a, weight, Affine(scale, bias))
    with pytest.raises(RuntimeError, match="bgemm_affine: residual is on cpu"):
        bgemm(a, weight, Affine(bias, bias, torch.zeros(50, 70)))
    thresholds, flips = torch.zeros(1, 70, dtype=torch.int32), random_words((), 70, g)
    with pytest.raises(RuntimeError, match="bgemm_threshold: thresholds is on cpu"):
        bgemm(a, weight, Threshold(thresholds, flips.to(DEVICE)))
    with pytest.raises(RuntimeError, match="bconv2d: x_words is on cpu"):
        bconv2d(random_words((1, 4, 4), 40, g), conv_weight((5, 40, 3, 3), g))
    for wrong, message in [((a[:, :3], weight), "a_words"), ((a.float(), weight), "a_words")]:
        with pytest.raises((TypeError, ValueError), match=message):
            bgemm(*wrong)
    torch.cuda.synchronize()


@pytest.mark.parametrize("name", [*cuda_library.OPS, "pack_weight", "pack_conv_weight"])
def test_opcheck_passes(name, g):
    w, kernel = random_signs((37, 70), g).to(DEVICE), random_signs((10, 20, 3, 2), g).to(DEVICE)
    gemm = (random_words((4,), 70, g).to(DEVICE), pack_weight(w).data, 37, 70)
    scale = torch.rand(37, device=DEVICE)
    t, flips = torch.zeros(1, 37, dtype=torch.int32, device=DEVICE), random_words((), 37, g).to(DEVICE)
    x = random_words((2, 5, 6), 40, g).to(DEVICE)
    conv = (x, pack_conv_weight(kernel, 2).data, [10, 20, 3, 2], [1, 2], [1, 0], [1, 1], 2, 0)
    arguments = {
        "bgemm": gemm,
        "bgemm_affine": (*gemm, scale, scale, None, None, None, False, torch.float16),
        "bgemm_affine_signs": (*gemm, scale, scale, None, None, None, False, True),
        "bgemm_threshold": (*gemm, t, flips, None),
        "bconv2d": conv,
        "bconv2d_affine_signs": (*conv, scale[:10], scale[:10], None, None, None, True, False),
        "bconv2d_affine": (*conv, scale[:10], scale[:10], None, None, None, True, torch.bfloat16),
        "bconv2d_threshold": (*conv, t[:, :10], flips[:1] & 1023, None),
        "pack_weight": (w,),
        "pack_conv_weight": (kernel, 2),
        "pack_weight_words": (pack_signs(w), [37, 70], 1),
        "unpack_weight_words": (pack_weight(w).data, [37, 70], 1),
    }[name]
    results = torch.library.opcheck(getattr(torch.ops.stompp, name).default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_a_compiled_network_is_one_graph_with_the_same_bits(g):
    w, kernel = random_signs((37, 70), g).to(DEVICE), random_signs((70, 20, 3, 3), g).to(DEVICE)
    matrix, packed = pack_weight(w), pack_conv_weight(kernel)
    t, flips = torch.zeros(1, 70, dtype=torch.int32, device=DEVICE), random_words((), 70, g).to(DEVICE)

    def network(image):
        hidden = bconv2d(pack_signs(image), packed, padding=1, epilogue=Threshold(t, flips))
        return bgemm(hidden, matrix).float().mean((1, 2))

    image = random_floats((2, 6, 5, 20), g, specials=0).to(DEVICE)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(compiled(image), network(image))
