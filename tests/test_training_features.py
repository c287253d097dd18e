"""Progressive training with what PyTorch users combine it with."""

import copy
from functools import partial

import pytest
import torch
from helpers import assert_same_bits, generator
from models_for_tests import (
    IMAGES,
    BiRealNet,
    ResidualNet,
    assert_same_masks,
    assert_same_state,
    batch,
    binary_layers,
    make,
    make_without_norm,
    masked_modules,
    masks,
    seeded,
    set_stage,
    snapshot,
    train_steps,
)
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import stompp_kernels as sk
from stompp_kernels.nn import BinaryConv2d, BinaryLinear, ProgressiveActivation, Stage, copy_masks

pytestmark = pytest.mark.filterwarnings("ignore:training ended at step:RuntimeWarning")

REGIMES = {
    "none": {"regime": "ste_free"},
    "identity": {"regime": "ste", "surrogate": "identity"},
    "clip": {"regime": "ste", "surrogate": "clip"},
    "approx_sign": {"regime": "ste", "surrogate": "approx_sign"},
}
STEPS = 15
every_regime = pytest.mark.parametrize("regime", REGIMES)
both_regimes = pytest.mark.parametrize("regime", ["none", "clip"])
every_stage = pytest.mark.parametrize("stage", Stage)
every_short_float = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def start(model, regime, steps=STEPS, **options):
    progression = sk.StoMPP(model, steps, **{"refresh": 2, "cooldown": 0.2, **REGIMES[regime], **options})
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), progression


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_same_gradients(actual, expected, compare=assert_same_bits):
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        assert (actual[name] is None) == (grad is None), name
        if grad is not None:
            compare(actual[name], grad)


# ------------------------------------------------------------------------------------------------- autocast

LAYERS = {
    "conv": lambda: (BinaryConv2d(24, 5, 3, 1, 1, bias=True, binarize_input=True), (2, 24, 6, 5)),
    "conv, padded with a sign": lambda: (BinaryConv2d(24, 6, 3, 2, 1, 1, 2, False, -1, True), (2, 24, 6, 5)),
    "conv, scaled": lambda: (BinaryConv2d(8, 4, 3, binarize_input=True, alpha=torch.rand(4) + 0.1), (2, 8, 5, 5)),
    "linear": lambda: (BinaryLinear(40, 5, True, True), (3, 40)),
    "linear, scaled": lambda: (BinaryLinear(40, 5, False, True, torch.rand(1) + 0.1), (2, 3, 40)),
}


@every_short_float
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("surrogate", REGIMES)
@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16, torch.float16])
def test_a_committed_layer_gives_under_autocast_what_the_float_path_gives(dtype, name, surrogate, inputs):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]()
    set_stage(layer, Stage.BINARY, surrogate)
    x = torch.randn(shape).to(inputs).requires_grad_()

    def run():
        with torch.autocast("cpu", dtype):
            y = layer(x)
        if not y.requires_grad:
            return y, []
        wanted = [x, *layer.parameters()]
        grads = torch.autograd.grad(y.float().square().sum(), wanted, allow_unused=True)
        return y, [g for g in grads if g is not None]

    y, grads = run()
    with sk.float_simulation():
        expected, expected_grads = run()
    assert y.dtype == expected.dtype == dtype
    assert_same_bits(y, expected)  # the sums are integers up to 256, which either type holds
    for actual, wanted in zip(grads, expected_grads, strict=True):
        assert actual.dtype == wanted.dtype
        # The same torch kernels on the same +-1 operands; a memory format may change the order of a sum, and where the
        # processor lacks these types, what is added up is rounded to them at every step.
        largest = wanted.abs().max().item()
        torch.testing.assert_close(actual.float(), wanted.float(), rtol=2**-6, atol=2**-6 * largest)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert_same_bits(layer(x), expected, "without gradient")
        with torch.autocast("cpu", enabled=False):
            assert layer(x).dtype == inputs, "autocast is off again"


@every_short_float
def test_a_product_under_autocast_is_rounded_once(dtype):
    torch.manual_seed(0)
    layer = set_stage(BinaryLinear(5000, 7, binarize_input=True), Stage.BINARY)
    x = torch.randn(4, 5000) + 0.2
    layer.weight.data.add_(0.1)
    with torch.no_grad():
        exact = layer(x)
        assert exact.abs().max() > 256
        with torch.autocast("cpu", dtype):
            assert_same_bits(layer(x), exact.to(dtype))


@every_short_float
@every_regime
def test_a_progression_under_autocast_has_the_values_and_types_of_the_float_path(dtype, regime):
    model, _ = make("residual")
    optimizer, progression = start(model, regime)

    def run(model, x, y):
        types = {}
        hooks = [
            module.register_forward_hook(lambda m, i, out, name=name: types.update({name: out.dtype}))
            for name, module in model.named_modules()
        ]
        with torch.autocast("cpu", dtype):
            out = model(x)
            loss = cross_entropy(out, y)
        for hook in hooks:
            hook.remove()
        model.zero_grad()
        loss.backward()
        return out, types, gradients(model)

    def compare(actual, expected):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=2**-5, atol=2**-8 * max(1.0, expected.abs().max().item()))

    stages = set()
    for step in range(STEPS):
        simulated = copy.deepcopy(model)
        out, types, grads = run(model, *batch(step))
        with sk.float_simulation():
            expected, expected_types, expected_grads = run(simulated, *batch(step))
        assert_same_bits(out, expected, f"step {step}")
        assert types == expected_types
        assert {types[name] for name in binary_layers(model)} == {dtype}
        assert_same_gradients(grads, expected_grads, compare)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        optimizer.step()
        progression.step()
        stages.update(m.stage for m in masked_modules(model).values())
    assert progression.fully_committed
    assert stages == set(Stage)
    assert all(p.isfinite().all() for p in model.parameters())


@both_regimes
def test_masks_do_not_depend_on_autocast(regime):
    def run(enabled):
        model, _ = make("residual")
        optimizer, progression = start(model, regime)
        for step in range(10):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                train_steps(model, optimizer, progression, 1, step)
        return masks(model)

    assert_same_masks(run(True), run(False))


@both_regimes
def test_backward_inside_the_autocast_block_works_too(regime):
    def run():
        model, _ = make("mlp")
        set_stage(model, Stage.BINARY, regime)
        with torch.autocast("cpu", torch.bfloat16):
            model(torch.randn(5, 7, generator=generator())).float().square().sum().backward()
        return gradients(model)

    actual = run()
    with sk.float_simulation():
        expected = run()
    assert_same_gradients(
        actual, expected, lambda a, b: torch.testing.assert_close(a, b, rtol=2**-5, atol=2**-6 * b.abs().max().item())
    )


@both_regimes
def test_a_progression_compiles_under_autocast(regime):
    def run(compiled):
        torch._dynamo.reset()
        model, _ = make("bireal")
        forward = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        optimizer, progression = start(model, regime, 10)
        losses = []
        for step in range(10):
            with torch.autocast("cpu", torch.bfloat16):
                losses += train_steps(forward, optimizer, progression, 1, step)
        assert progression.fully_committed
        return torch.stack(losses), snapshot(model)

    with torch._dynamo.config.patch(recompile_limit=8):
        losses, state = run(True)
    expected, expected_state = run(False)
    torch._dynamo.reset()
    assert torch.equal(losses, expected)
    assert_same_state(state, expected_state)


@both_regimes
def test_a_step_that_the_grad_scaler_skips_moves_the_masks_only(regime):
    """``progression.step()`` counts a skipped step: the windows of a run are in steps, skipped or not."""
    model, _ = make("residual")
    optimizer, progression = start(model, regime)
    undisturbed, _ = make("residual")
    _, expected = start(undisturbed, regime)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    first = progression.units[0].window
    skipped = {0, first.start + 1, first.stop - 1, STEPS - 2}  # soft, partial, right before a commitment, committed
    stages = set()
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = cross_entropy(model(x), y)
        scaler.scale(loss * (torch.inf if step in skipped else 1)).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert bool(norm.isfinite()) == (step not in skipped)
        before, scale = {n: p.detach().clone() for n, p in model.named_parameters()}, scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == (scale / 2 if step in skipped else scale)
        progression.step()
        expected.step()
        assert_same_masks(masks(model), masks(undisturbed), f"step {step}: ")
        if step in skipped:
            for name, p in model.named_parameters():
                latent = isinstance(model.get_submodule(name.rpartition(".")[0]), sk.nn.BinaryLayer)
                assert torch.equal(p, before[name].clamp(-1, 1) if latent else before[name]), name
        stages.update(m.stage for m in masked_modules(model).values())
    assert progression.fully_committed
    assert stages == set(Stage)
    assert all(p.isfinite().all() for p in model.parameters())


def test_an_optimizer_without_any_gradient_left_is_not_given_to_the_grad_scaler():
    """In the STE-free regime committed weights have none, and a scaler refuses an optimizer that holds only such."""
    model, _ = make("mlp")
    set_stage(model, Stage.BINARY)
    latent = torch.optim.SGD([layer.weight for layer in binary_layers(model).values()], lr=0.1)
    rest = torch.optim.SGD(model.fc4.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    head = model.fc4.weight.detach().clone()
    with torch.autocast("cpu", torch.float16):
        loss = model(torch.randn(5, 7, generator=generator())).float().square().mean()
    scaler.scale(loss).backward()
    with pytest.raises(AssertionError, match="No inf checks were recorded for this optimizer"):
        scaler.step(latent)
    scaler.step(rest)
    assert not torch.equal(model.fc4.weight, head)


@pytest.mark.parametrize("name", ["mlp", "bireal", "residual"])
def test_a_converted_network_runs_under_autocast(name):
    model, x = make(name)
    set_stage(model, Stage.BINARY).eval()
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):  # no ties, which bfloat16 decides otherwise
            norm.running_mean.normal_()
            norm.running_var.uniform_(5, 20)
    packed = sk.convert(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out, expected = packed(x), model(x)
    assert out.dtype == expected.dtype
    # What a packed block hands on is float32, and here a shortcut's sum is rounded to bfloat16.
    torch.testing.assert_close(out, expected, rtol=2**-4, atol=2**-4)


# ------------------------------------------------------------------------------------ accumulation of gradients


@pytest.mark.parametrize("parts", [2, 4])
@every_regime
def test_accumulated_gradients_equal_those_of_the_whole_batch(parts, regime):
    """``progression.step()`` once per ``optimizer.step()``, not per micro-batch."""

    def run(parts):
        model, _ = make_without_norm()
        optimizer, progression = start(model, regime)
        losses, steps = [], []
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = 0.0
            for x, y in zip(*(t.chunk(parts) for t in batch(step, 8)), strict=True):
                part = cross_entropy(model(x), y) / parts
                part.backward()
                loss += part.item()
            optimizer.step()
            progression.step()
            losses.append(loss)
            steps.append(masks(model))
        assert progression.fully_committed
        return losses, steps, model

    losses, steps, model = run(parts)
    expected_losses, expected_steps, expected = run(1)
    for actual, wanted in zip(steps, expected_steps, strict=True):
        assert_same_masks(actual, wanted)
    # A sum of 8 samples in another order.
    torch.testing.assert_close(losses, expected_losses, rtol=1e-4, atol=1e-4)
    for p, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, wanted, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ channels_last


# 9 channels: of 1x1 convolutions with a stride and 2 to 7 channels in channels_last, oneDNN on AVX2 computes wrong
# gradients and writes behind its memory (its issue 6035).
CHANNELS_LAST = {"residual": partial(ResidualNet, width=9), "bireal": BiRealNet}


@every_regime
@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_channels_last_stays_and_changes_no_mask(name, regime):
    last = torch.channels_last
    seeded()
    model, _ = sk.prepare(CHANNELS_LAST[name](), torch.randn(IMAGES))
    contiguous = copy.deepcopy(model)
    model.to(memory_format=last)
    optimizer, progression = start(model, regime)
    optimizer2, progression2 = start(contiguous, regime)
    formats = {}
    for key, module in model.named_modules():
        if isinstance(module, (BinaryConv2d, ProgressiveActivation)):
            module.register_forward_hook(lambda m, i, out, key=key: formats.update({key: out.clone()}))
    for step in range(STEPS):
        x, y = batch(step)
        results = []
        for net, form in ((model, last), (contiguous, torch.contiguous_format)):
            net.zero_grad()
            out = net(x.contiguous(memory_format=form))
            cross_entropy(out, y).backward()
            results.append((out, gradients(net)))
        assert len(formats) >= 4
        assert all(out.is_contiguous(memory_format=last) for out in formats.values()), step
        assert all(m.weight.is_contiguous(memory_format=last) for m in model.modules() if isinstance(m, BinaryConv2d))
        (out, grads), (expected, expected_grads) = results
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        assert_same_gradients(
            grads, expected_grads, lambda a, b: torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        )
        for opt, p in ((optimizer, progression), (optimizer2, progression2)):
            opt.step()
            p.step()
        assert_same_masks(masks(model), masks(contiguous), f"step {step}: ")
        # Rounding must not add up: an activation near 0 has either sign.
        model.load_state_dict(contiguous.state_dict())
        optimizer.load_state_dict(optimizer2.state_dict())
    assert progression.fully_committed
    with torch.no_grad(), sk.float_simulation():
        simulated = model.eval()(x.contiguous(memory_format=last))
    with torch.no_grad():
        torch.testing.assert_close(model(x.contiguous(memory_format=last)), simulated)


# ------------------------------------------------------------------------------------------------ checkpointing


class Checkpointed(nn.Module):
    """Runs a residual net's blocks through torch.utils.checkpoint, or as they are."""

    def __init__(self, net, use_reentrant=None):
        super().__init__()
        self.net, self.use_reentrant = net, use_reentrant

    def forward(self, x):
        net = self.net
        x = net.relu(net.bn1(net.conv1(x)))
        for block in net.blocks:
            x = block(x) if self.use_reentrant is None else checkpoint(block, x, use_reentrant=self.use_reentrant)
        return net.fc(torch.flatten(net.pool(x), 1))


@pytest.mark.slow
@every_stage
@every_regime
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_blocks_have_the_same_gradients(use_reentrant, stage, regime):
    net, x = make("residual")
    # Committed and STE-free nothing before the last activation has a gradient; half of the model shows more.
    part = net.blocks[1] if stage is Stage.BINARY and regime == "none" else net
    set_stage(part, stage, regime)

    def run(use_reentrant):
        net.zero_grad()
        loss = Checkpointed(net, use_reentrant)(x).square().sum()
        loss.backward()
        return loss, gradients(net)

    loss, grads = run(use_reentrant)
    expected_loss, expected = run(None)
    assert torch.equal(loss, expected_loss)
    assert_same_gradients(grads, expected)
    assert sum(g is not None for g in grads.values()) >= 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")  # of runs without gradient
@pytest.mark.parametrize(
    ("regime", "use_reentrant"), [*((regime, False) for regime in REGIMES), ("identity", True), ("clip", True)]
)
def test_a_progression_with_checkpoints_repeats_the_one_without(regime, use_reentrant):
    def run(use_reentrant):
        net, _ = make("residual")
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):  # it would count each batch twice, in the second forward too
                norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
        model = Checkpointed(net, use_reentrant)
        sk.link(model, torch.ones(IMAGES))
        optimizer, progression = start(model, regime)
        losses = train_steps(model, optimizer, progression, STEPS)
        assert progression.fully_committed
        return torch.stack(losses), snapshot(model), progression.without_gradient()

    losses, state, cut_off = run(use_reentrant)
    expected, expected_state, expected_cut_off = run(None)
    assert torch.equal(losses, expected)
    assert_same_state(state, expected_state)
    assert cut_off == expected_cut_off, "the graph of a checkpointed run shows the paths"


def test_a_reentrant_checkpoint_needs_an_input_with_gradient():
    """torch's reentrant form has gradients only where an input has one; a committed STE-free activation has none."""
    block = nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(5, 7, generator=generator())
    activation = set_stage(ProgressiveActivation((7,)), Stage.BINARY)
    u = activation(x.clone().requires_grad_())
    assert not u.requires_grad
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
        assert not checkpoint(block, u, use_reentrant=True).requires_grad
    checkpoint(block, u, use_reentrant=False).sum().backward()
    expected = gradients(block)
    assert all(g is not None for g in expected.values())
    block.zero_grad()
    checkpoint(block, u.requires_grad_(), use_reentrant=True).sum().backward()
    assert_same_gradients(gradients(block), expected)


# ------------------------------------------------------------------------------------------------------- copies


@pytest.mark.slow
@every_stage
@both_regimes
@pytest.mark.parametrize("duplicate", ["deepcopy", "save"])
def test_copies_train_independently(stage, regime, duplicate, tmp_path):
    model, _ = make("residual")
    optimizer, progression = start(model, regime)
    steps = {Stage.SOFT: 0, Stage.PARTIAL: 2, Stage.BINARY: STEPS}[stage]
    train_steps(model, optimizer, progression, steps)
    assert max(m.stage for m in masked_modules(model).values()) is stage
    if duplicate == "save":
        torch.save(model, tmp_path / "model.pt")
        other = torch.load(tmp_path / "model.pt", weights_only=False)
    else:
        other = copy.deepcopy(model)
    assert_same_masks(masks(other), masks(model))
    before = snapshot(model)
    memory = {t.data_ptr() for t in (*model.parameters(), *model.buffers()) if t.numel()}
    assert not memory & {t.data_ptr() for t in (*other.parameters(), *other.buffers())}

    # The copy goes on with a progression of its own, the original stays.
    optimizer2, progression2 = start(other, regime)
    optimizer2.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # or they share their momentum
    progression2.load_state_dict(progression.state_dict())
    rest = train_steps(other, optimizer2, progression2, STEPS - steps, steps)
    assert_same_state(snapshot(model), before)
    expected = train_steps(model, optimizer, progression, STEPS - steps, steps)
    assert rest == expected
    assert_same_state(snapshot(other), snapshot(model))

    # Each has packed weights of its own.
    x = batch(0)[0]
    with torch.no_grad():
        y = model.eval()(x)
        for layer in binary_layers(other.eval()).values():
            layer.release_signs()  # what was committed without a surrogate is held apart from the weights
            layer.weight.neg_()
        assert not torch.equal(other(x), y)
        assert torch.equal(model(x), y)


@both_regimes
def test_a_moving_average_averages_weights_and_takes_masks_as_they_are(regime):
    """``update_parameters`` copies the mask words and leaves the stages behind; ``copy_masks`` takes both over."""
    model, _ = make("residual")
    optimizer, progression = start(model, regime)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = batch(0)[0]
    for step in range(STEPS):
        train_steps(model, optimizer, progression, 1, step)
        average.update_parameters(model)
        copy_masks(model, average.module)
        for name, p in model.named_parameters():
            expected[name] = p.detach().clone() if step == 0 else expected[name].lerp(p.detach(), 0.5)
            torch.testing.assert_close(average.module.get_parameter(name), expected[name])
        assert_same_masks(masks(average.module), masks(model), f"step {step}: ")
        with torch.no_grad():
            y = average.eval()(x)
            with sk.float_simulation():
                assert_same_bits(y, average(x), "no stale packed weights")
    assert progression.fully_committed
    assert sk.convert(average.module)(x).isfinite().all()


def test_an_average_of_buffers_spoils_masks_until_they_are_copied():
    """``use_buffers=True`` averages the words of masks as numbers."""
    model, _ = make("residual")
    optimizer, progression = start(model, "clip", 40, refresh=1)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for step in range(3):
        train_steps(model, optimizer, progression, 1, step)
        average.update_parameters(model)
    masked = model.blocks[0].conv1
    assert masked.stage is Stage.PARTIAL
    assert not torch.equal(average.module.blocks[0].conv1.mask_words, masked.mask_words)
    copy_masks(model, average.module)
    assert_same_masks(masks(average.module), masks(model))
    mean = average.module.blocks[0].bn1.running_mean
    assert not torch.equal(mean, model.blocks[0].bn1.running_mean), "what is averaged stays so"


def test_masks_are_copied_between_copies_only():
    with pytest.raises(ValueError, match=r"target must be a copy of source, got another module at 'relu'"):
        copy_masks(make("residual")[0], make("mlp")[0])


# -------------------------------------------------------------------------------------------------- state dicts


def stages_of(name, regime="none"):
    """The net in every stage."""
    return {stage: set_stage(make(name)[0], stage, regime) for stage in Stage}


@pytest.mark.parametrize("name", ["residual", "bireal", "mlp", "branching"])
def test_state_dicts_have_the_same_plain_keys_in_every_stage(name):
    models = stages_of(name)
    keys = {stage: list(model.state_dict()) for stage, model in models.items()}
    assert keys[Stage.SOFT] == keys[Stage.PARTIAL] == keys[Stage.BINARY]
    assert not any("parametrizations" in key for key in keys[Stage.SOFT])
    ends = {key.rpartition(".")[2] for key in keys[Stage.SOFT]}
    assert ends <= {"weight", "bias", "mask_words", "_extra_state", *nn.BatchNorm2d(1).state_dict()}
    parameters = {name for name, _ in models[Stage.SOFT].named_parameters()}
    assert parameters == {key for key in keys[Stage.SOFT] if key.endswith(("weight", "bias"))}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("source", Stage)
@pytest.mark.parametrize("target", Stage)
def test_a_state_dict_loads_into_a_model_of_any_stage(source, target, assign, tmp_path):
    saved = set_stage(make("residual")[0], source, "clip")
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    model = set_stage(make("residual", seed=1)[0], target)
    x = batch(0)[0]
    with torch.no_grad():
        model.eval()(x)  # packs weights
    model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True, assign=assign)
    assert_same_masks(masks(model), masks(saved))
    assert_same_state(snapshot(model), snapshot(saved))
    with torch.no_grad():
        assert_same_bits(model(x), saved.eval()(x))

    # It goes on like the one that was saved, its masks refreshed in place.
    runs = []
    for net in (saved.train(), model.train()):
        words = [m.mask_words for m in masked_modules(net).values()]
        optimizer, progression = start(net, "clip")
        runs.append(train_steps(net, optimizer, progression, STEPS))
        assert progression.fully_committed
        assert all(m.mask_words is w for m, w in zip(masked_modules(net).values(), words, strict=True))
    assert runs[0] == runs[1]
    assert_same_state(snapshot(model), snapshot(saved))


def test_loading_never_leaves_packed_weights_of_before(tmp_path):
    model, _ = make("residual")
    set_stage(model, Stage.BINARY).eval()
    x = batch(0)[0]
    with torch.no_grad():
        before = model(x)
        flipped = {k: -v if k.endswith("conv1.weight") else v for k, v in model.state_dict().items()}
        for assign in (False, True):
            model.load_state_dict(copy.deepcopy(flipped), assign=assign)
            after = model(x)
            assert not torch.equal(after, before)
            with sk.float_simulation():
                assert_same_bits(after, model(x))
            flipped = {k: -v if k.endswith("conv1.weight") else v for k, v in flipped.items()}
            before = after


def test_a_prefix_that_is_frozen_learns_again_after_an_earlier_state_was_loaded():
    model, _ = make("residual")
    early = snapshot(model)
    optimizer, progression = start(model, "none")
    state = progression.state_dict()
    train_steps(model, optimizer, progression, STEPS)
    assert not all(p.requires_grad for p in model.parameters())
    model.load_state_dict(early)
    progression.load_state_dict(state)
    assert all(p.requires_grad for p in model.parameters())
