"""On an NVIDIA GPU: the public ops, a whole progression, and torch.compile's own code around the Triton kernels."""

import pytest
import torch
from helpers import SHORT_FLOATS, assert_same_bits, random_floats, random_words

import stompp_kernels as sk
from stompp_kernels.ops import (
    Affine,
    Limits,
    conv2d_float,
    draw_state,
    max_pool2d_signs,
    pack_float_weight,
    pack_outside,
    pack_signs,
    progressive,
    progressive_drawn,
    refresh_mask_,
)

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:training ended at step:RuntimeWarning")]
ops = torch.ops.stompp_triton


def test_the_public_ops_run_the_triton_kernels(g):
    u, words = random_floats((4, 100), g).cuda(), random_words((), 100, g).cuda()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        progressive(u, words, "none", True)
        pack_signs(u)
        refresh_mask_(words, 100, 0.5, 2.0, 1, 2, 3)
        torch.cuda.synchronize()
    names = {event.key for event in profile.key_averages()}
    assert {"forward", "pack_rows", "refresh"} <= names
    # The op of the compiled library gives GPU tensors to the same kernels.
    assert_same_bits(torch.ops.stompp.progressive(u, words, "none", True), progressive(u, words, "none", True))


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
def test_the_gpu_computes_what_the_cpu_computes(dtype, g):
    shape = (3, 40, 6, 7)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        u, grad = (random_floats(shape, g, dtype).contiguous(memory_format=memory_format) for _ in range(2))
        words, draw = random_words((), 40 * 6 * 7, g), draw_state(0.4, 5, 6, 7)
        low, high = -torch.rand(40, generator=g), torch.rand(40, generator=g)
        results = []
        for device in ("cpu", "cuda"):
            leaf, found = u.detach().to(device).requires_grad_(), []
            for surrogate in ("none", "identity", "clip", "approx_sign"):
                for out in (
                    progressive(leaf, words.to(device), surrogate, True),
                    progressive(leaf, None, surrogate),
                    progressive_drawn(leaf, draw.to(device), surrogate),
                ):
                    leaf.grad = None
                    out.backward(grad.to(device))
                    found += [out.detach().cpu(), leaf.grad.cpu()]
            nhwc = leaf.detach().permute(0, 2, 3, 1)
            found += [pack_signs(nhwc).cpu(), pack_outside(nhwc, low.to(device), high.to(device)).cpu()]
            results.append(found)
        for on_cpu, on_gpu in zip(*results, strict=True):
            assert_same_bits(on_gpu, on_cpu)


@pytest.mark.parametrize("name", ["progressive", "progressive_gated", "progressive_drawn"])
def test_opcheck_passes(name, g):
    u, words = random_floats((3, 40), g, specials=0).cuda().requires_grad_(), random_words((), 40, g).cuda()
    arguments = (
        (u, draw_state(0.5, 1, 2, 3).cuda(), "clip") if name == "progressive_drawn" else (u, words, "clip", True)
    )
    results = torch.library.opcheck(getattr(ops, name).default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_opcheck_passes_for_the_ops_without_gradient(g):
    u, words = random_floats((3, 40), g, specials=0).cuda(), random_words((), 40, g).cuda()
    gate, limit = random_words((3,), 40, g).cuda(), torch.rand(40, generator=g).cuda()
    for name, arguments in [
        ("progressive_gate_backward", (u, gate, [40, 1], True)),
        ("progressive_backward", (u, u, words, "approx_sign", True)),
        ("refresh_mask_", (words, 40, 0.3, 2.0, 1, 2, 3)),
        ("pack_signs", (u,)),
        ("pack_outside", (u, -limit, limit)),
        ("max_pool2d_signs", (gate.view(1, 3, 2, 1), [2, 2], [1, 1], [1, 1], [1, 1], False)),
    ]:
        results = torch.library.opcheck(getattr(ops, name).default, arguments)
        assert set(results.values()) == {"SUCCESS"}, name


def test_float_convolutions_and_pooling_of_signs_give_the_words_of_the_cpu(g):
    """The inputs are integers, whose sums every order of additions has exactly, and TF32 too."""
    x, w = (torch.randint(-4, 5, shape, generator=g).float() for shape in ((2, 40, 9, 8), (70, 40, 3, 3)))
    low, high = torch.randint(-20, 0, (70,), generator=g).float(), torch.randint(0, 20, (70,), generator=g).float()
    for inputs in (x, x.contiguous(memory_format=torch.channels_last), pack_signs(x.permute(0, 2, 3, 1))):
        found = []
        for device in ("cpu", "cuda"):
            weight = pack_float_weight(w.to(device))
            limits, affine = (
                Limits(low.to(device), high.to(device)),
                Affine(low.to(device), high.to(device), fused=True),
            )
            words = conv2d_float(inputs.to(device), weight, 2, 1, epilogue=limits)
            floats = [conv2d_float(inputs.to(device), weight, 2, 1, epilogue=epilogue) for epilogue in (None, affine)]
            assert all(y.is_contiguous(memory_format=torch.channels_last) for y in floats)
            found.append([y.cpu() for y in (words, *floats, max_pool2d_signs(words, 3, 2, 1))])
        for on_cpu, on_gpu in zip(*found, strict=True):
            assert_same_bits(on_gpu, on_cpu)


def prepared(device):
    torch.manual_seed(0)
    net = sk.models.SmallResNet(image_size=8, widths=(32, 32), strides=(1, 2))
    return sk.prepare(net, torch.randn(1, 1, 8, 8))[0].to(device)


def train(model, run, device, steps, **options):
    progression = sk.StoMPP(model, steps, refresh=3, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    masks, losses = [], []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x, labels = torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator)
        loss = torch.nn.functional.cross_entropy(run(x.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progression.step()
        losses.append(float(loss))
        masks.append([masked.mask_words.cpu() for unit in progression.units for masked, _ in unit.masked()])
    return progression, losses, masks


@pytest.mark.parametrize("options", [{}, {"regime": "ste"}, {"activation_masks": "per_element"}])
def test_a_progression_draws_the_same_masks_on_both_devices(options):
    on_cpu, on_gpu = prepared("cpu"), prepared("cuda")
    _, cpu_losses, cpu_masks = train(on_cpu, on_cpu, "cpu", 24, **options)
    progression, gpu_losses, gpu_masks = train(on_gpu, on_gpu, "cuda", 24, **options)
    assert progression.fully_committed
    for ours, theirs in zip(gpu_masks, cpu_masks, strict=True):
        for mask, expected in zip(ours, theirs, strict=True):
            assert_same_bits(mask, expected)
    assert gpu_losses[0] == pytest.approx(cpu_losses[0], rel=1e-4)


@pytest.mark.parametrize("activation_masks", ["shared", "per_element"])
def test_inductor_compiles_a_step_once_a_commitment(activation_masks):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._inductor.compile(graph, inputs)

    model, eager = prepared("cuda"), prepared("cuda")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    options = {"activation_masks": activation_masks, "cooldown": 0.2}
    progression, losses, _ = train(model, compiled, "cuda", 20, **options)
    _, expected, _ = train(eager, eager, "cuda", 20, **options)
    assert len(graphs) <= 1 + len(progression.units)
    # Later ones part: a sign turns on the last bit.
    assert losses[:3] == pytest.approx(expected[:3], rel=1e-3)


def test_a_packed_network_in_a_cuda_graph():
    model = prepared("cuda")
    sk.StoMPP(model, 1, regime="vanilla_ste")
    packed = sk.convert(model)
    run = sk.capture_packed(packed, torch.randn(4, 1, 8, 8, device="cuda"))
    images = [torch.randn(4, 1, 8, 8, device="cuda") for _ in range(2)]
    found = [run(x) for x in images]
    for y, x in zip(found, images, strict=True):
        torch.testing.assert_close(y, packed(x))
    with pytest.raises(ValueError, match="shape that was captured"):
        run(images[0][:2])
