"""torch.compile around a whole progression: a moving p compiles nothing, a commitment compiles once."""

import sys
from itertools import pairwise

import pytest
import torch
from helpers import assert_same_bits
from models_for_tests import MLP, assert_same_state, make, randomize_norms, seeded, set_stage, snapshot, train_steps
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import ProgressiveActivation, Stage

pytestmark = pytest.mark.filterwarnings("ignore:training ended at step:RuntimeWarning")


@pytest.fixture(autouse=True)
def torch_defaults():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        yield
    torch._dynamo.reset()


class Deep(nn.Module):
    """More binary layers than torch compiles one function for."""

    def __init__(self, layers=9):
        super().__init__()
        blocks = [nn.Sequential(nn.ReLU(), nn.Linear(8, 8)) for _ in range(layers)]
        self.layers = nn.Sequential(nn.Linear(7, 8), *blocks, nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        return self.layers(x)


def counting(backend):
    """A backend, and the graphs that it was given."""
    graphs = []

    def compile_graph(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    return compile_graph, graphs


def run(model, compiled, shape, steps, graphs=(), evaluate=False, **options):
    """Trains ``compiled``; losses, the model's state, and graphs and frontier at the end of each step."""
    progression = sk.StoMPP(model, steps, refresh=2, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses, counts, frontiers = [], [], [progression.frontier]
    for step in range(steps):
        losses += train_steps(compiled.train(), optimizer, progression, 1, step, shape)
        counts.append(len(graphs))
        frontiers.append(progression.frontier)
        if evaluate:
            with torch.no_grad():
                losses.append(compiled.eval()(torch.ones(shape)).sum())
    assert progression.fully_committed
    return torch.stack(losses), snapshot(model), counts, frontiers


CASES = {
    "ste_free": {"regime": "ste_free", "warmup": 0.1, "cooldown": 0.2},
    "ste_free, nothing frozen": {"regime": "ste_free", "freeze_prefix": False, "cooldown": 0.2},
    "ste_free, reverse": {"regime": "ste_free", "order": "reverse", "cooldown": 0.2},
    "ste": {"regime": "ste", "surrogate": "clip", "overlap": 0.5, "cooldown": 0.2},
    "ste, approx_sign": {"regime": "ste", "surrogate": "approx_sign", "order": "global"},
    "vanilla_ste": {"regime": "vanilla_ste"},
    "ste_free, per element": {"activation_masks": "per_element", "cooldown": 0.2},
    "ste, approx_sign, per element": {
        "regime": "ste",
        "surrogate": "approx_sign",
        "activation_masks": "per_element",
        "cooldown": 0.2,
    },
}
QUICK = ("ste_free", "vanilla_ste")


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("name", "case"),
    [
        *(pytest.param("residual", "ste_free", marks=pytest.mark.slow), ("bireal", "ste")),
        *(pytest.param("mlp", case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES),
    ],
)
def test_a_moving_p_compiles_nothing_and_a_commitment_once(name, case):
    model, x = make(name)
    backend, graphs = counting("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    losses, state, counts, frontiers = run(model, compiled, x.shape, 30, graphs, **CASES[case])
    committed = [after > before for before, after in pairwise(frontiers)]
    assert counts[0] == 1
    for step in range(1, 30):
        # What step() commits at the end of a step is compiled in the next.
        assert counts[step] - counts[step - 1] == committed[step - 1], step
    assert counts[-1] == 1 + sum(committed[:-1]) <= 1 + frontiers[-1]
    reference, _ = make(name)
    expected, expected_state, *_ = run(reference, reference, x.shape, 30, **CASES[case])
    assert torch.equal(losses, expected)
    assert_same_state(state, expected_state)


@pytest.mark.slow
def test_more_layers_than_torch_compiles_one_function_for():
    seeded()
    original, shape = Deep(), (5, 7)
    model, reference = (sk.prepare(original, torch.randn(shape))[0] for _ in range(2))
    backend, graphs = counting("eager")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    losses, state, _, frontiers = run(model, compiled, shape, 30, graphs, cooldown=0.2)
    assert frontiers[-1] == 9
    assert len(graphs) == 9 + 1
    expected, expected_state, *_ = run(reference, reference, shape, 30, cooldown=0.2)
    assert torch.equal(losses, expected)
    assert_same_state(state, expected_state)


@torch._dynamo.config.patch(recompile_limit=2)
def test_evaluation_in_between_has_graphs_of_its_own():
    model, x = make("mlp")
    backend, graphs = counting("eager")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    losses, *_ = run(model, compiled, x.shape, 12, graphs, evaluate=True, cooldown=0.2)
    assert len(graphs) == 2 * (2 + 1)
    reference, _ = make("mlp")
    assert torch.equal(losses, run(reference, reference, x.shape, 12, evaluate=True, cooldown=0.2)[0])


def limits(before, steps=20, **options):
    """torch's limit after each step of a progression of 4 units."""
    model, _ = make("residual")
    with torch._dynamo.config.patch(recompile_limit=before):
        progression = sk.StoMPP(model, steps, cooldown=0.2, **options)
        values = [torch._dynamo.config.recompile_limit]
        for _ in range(steps):
            progression.step()
            values.append(torch._dynamo.config.recompile_limit)
    return values


def test_the_recompile_limit_rises_with_the_first_commitment_and_never_falls():
    assert limits(8) == [8] * 4 + [16] * 17
    assert limits(100) == [100] * 4 + [108] * 17
    assert limits(8, regime="vanilla_ste") == [16] * 21
    model, _ = make("residual")
    progression = sk.StoMPP(model, 20, cooldown=0.2)
    values = []
    for step in range(20):
        if step == 6:
            torch._dynamo.config.recompile_limit = 50
        if step == 10:
            torch._dynamo.config.recompile_limit = 3
        progression.step()
        values.append(torch._dynamo.config.recompile_limit)
    assert values[3:6] == [16] * 3
    assert values[6:10] == [50] * 4
    assert values[10:12] == [3, 16], "raised again by the next commitment"


def test_a_process_that_does_not_compile_does_not_load_the_compiler(monkeypatch):
    model, _ = make("mlp")
    progression = sk.StoMPP(model, 8, cooldown=0.0)
    for name in [name for name in sys.modules if name.startswith("torch._dynamo")]:
        monkeypatch.delitem(sys.modules, name)
    for _ in range(8):
        progression.step()
    assert progression.fully_committed
    assert "torch._dynamo" not in sys.modules


def test_compiled_soft_tensors_of_another_shape_are_clipped_until_they_are_partly_frozen():
    activation = ProgressiveActivation((5, 4))
    backend, graphs = counting("eager")
    compiled = torch.compile(activation, backend=backend)
    x, other = 2 * torch.randn(2, 5, 4), 2 * torch.randn(2, 5, 3)
    assert_same_bits(compiled(x), x.clamp(-1, 1))
    assert_same_bits(compiled(other), other.clamp(-1, 1))
    activation.refresh(0.5, 1.0, 0, 0, 1)
    assert_same_bits(compiled(x), activation(x))
    assert len(graphs) == 2
    with pytest.raises(ValueError, match=r"must have shape \[2, 5, 4\] while it is partly frozen, got \[2, 5, 3\]"):
        compiled(other)


def packed_resnet():
    torch.manual_seed(0)
    model = sk.models.create("resnet20", 7, binarize="both", width=4, image_size=16)
    randomize_norms(set_stage(model, Stage.BINARY), torch.Generator().manual_seed(1))
    return sk.convert(model.eval())


def test_a_packed_resnet_is_one_graph_for_batches_of_any_size():
    packed = packed_resnet()
    compile_graph, graphs = counting("aot_eager")  # test_aot_inductor.py: inductor
    compiled = torch.compile(packed, fullgraph=True, backend=compile_graph)
    with torch.no_grad():
        for batch in (4, 2, 9):
            x = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))
            torch._dynamo.mark_dynamic(x, 0)
            # BatchNorms that stay in float are decomposed: float rounding.
            torch.testing.assert_close(compiled(x), packed(x), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1
    ops = {str(node.target).removeprefix("stompp.") for node in graphs[0].graph.nodes if "stompp" in str(node.target)}
    assert {"bconv2d_threshold.default", "bconv2d_affine.default"} <= ops
    assert ops & {"pack_outside.default", "conv2d_float_signs.default"}


def test_an_activation_without_a_mask_compiles_to_a_clip():
    compiled = torch.compile(ProgressiveActivation(), fullgraph=True, backend="aot_eager")
    x = 2 * torch.randn(3, 5)
    assert_same_bits(compiled(x), x.clamp(-1, 1))


@pytest.mark.parametrize("stage", Stage)
def test_a_stage_is_two_flags(stage):
    model, _ = sk.prepare(MLP(), torch.randn(2, 7))
    layer = set_stage(model, stage).fc2
    assert (layer.started, layer.committed) == (stage >= Stage.PARTIAL, stage is Stage.BINARY)
    layer.stage = Stage.SOFT
    layer.stage = stage
    assert layer.stage is stage
    assert layer.get_extra_state().tolist() == [int(stage), 0, 40, 40]
