"""Products of two activations: a unit of the progression, and a product on bits once they are converted."""

import pytest
import torch
from helpers import random_floats
from models_for_tests import masked_modules, set_stage
from test_serialize import rewrite
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import BinaryLayer, BinaryMatmul, PackedMatmul, Stage
from stompp_kernels.ops import reference
from stompp_kernels.training.diagnostics import Diagnostics

pytestmark = pytest.mark.filterwarnings("ignore:training ended at step:RuntimeWarning")

UNITS = ["query", "key", "scores", "value", "mix"]


class Attention(nn.Module):
    """Layers and products in an order of execution that is not that of registration."""

    def __init__(self, heads=3, width=5):
        super().__init__()
        self.mix, self.scores = BinaryMatmul(zero_one=True), BinaryMatmul()
        self.value, self.key, self.query = (nn.Linear(heads * width, heads * width) for _ in range(3))
        self.first, self.head = nn.Linear(7, heads * width), nn.Linear(heads * width, 4)
        self.heads = heads

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x):
        x = self.first(x)
        query, key = self.split(self.query(x)), self.split(self.key(x))
        shares = (self.scores(query, key) * 0.4).softmax(-1)
        value = self.split(self.value(x)).transpose(2, 3)
        mixed = self.mix(shares * x.shape[1] - 1, value).transpose(1, 2).flatten(2)
        return self.head((mixed + x).mean(1))


def prepared(tokens=6, batch=2):
    torch.manual_seed(0)
    x = torch.randn(batch, tokens, 7)
    return *sk.prepare(Attention(), x), x


def trained(progression, model, x, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 4).backward()
        optimizer.step()
        progression.step()


@pytest.mark.parametrize("zero_one", [False, True])
def test_each_stage_is_clip_and_sign_of_both_sides(zero_one, g):
    product = BinaryMatmul(zero_one)
    a, b = (2 * torch.randn(2, 3, size, 5, generator=g) for size in (4, 6))
    for activation, x in zip(product.activations, (a, b), strict=True):
        activation.set_mask_shape(x.shape[1:])

    def expected(u, v):
        return torch.einsum("bhmk,bhnk->bhmn", (u + 1) / 2 if zero_one else u, v)

    torch.testing.assert_close(product(a, b), expected(a.clamp(-1, 1), b.clamp(-1, 1)))
    assert product.stage is Stage.SOFT
    product.left.commit()
    torch.testing.assert_close(product(a, b), expected(reference.sign(a), b.clamp(-1, 1)))
    assert (product.stage, product.committed) == (Stage.SOFT, False)
    product.commit()
    signs = expected(reference.sign(a), reference.sign(b))
    assert torch.equal(product(a, b), signs)
    assert (product.stage, product.committed) == (Stage.BINARY, True)
    assert torch.equal(PackedMatmul(zero_one)(a, b), signs)


@pytest.mark.parametrize("zero_one", [False, True])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (1, 7, 64), (49, 49, 63), (5, 64, 49), (3, 2, 130)])
def test_the_packed_product_equals_the_committed_one(implementation, zero_one, M, N, K, g):
    product = BinaryMatmul(zero_one)
    product.commit()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        a, b = random_floats((2, 1, M, K), g, dtype), random_floats((2, 1, N, K), g, dtype)
        a[0, 0, 0], b[0, 0, 0] = 0.0, -0.0
        expected = product(a.double(), b.double()).float()
        assert torch.equal(PackedMatmul(zero_one)(a, b), expected), dtype
        strided = a.transpose(2, 3).contiguous().transpose(2, 3)
        assert torch.equal(PackedMatmul(zero_one)(strided, b), expected), dtype


def test_a_cast_network_writes_its_type(g):
    a, b = torch.randn(2, 3, 40, generator=g), torch.randn(2, 4, 40, generator=g)
    assert PackedMatmul().bfloat16()(a, b).dtype is torch.bfloat16
    assert torch.equal(PackedMatmul().double()(a, b).float(), PackedMatmul()(a, b))


@pytest.mark.parametrize("kind", [BinaryMatmul, PackedMatmul])
@pytest.mark.parametrize(
    "shapes", [((2, 3, 40), (2, 4, 41)), ((2, 3, 40), (4, 40)), ((2, 3, 40), (1, 4, 40)), ((40,), (40,))]
)
def test_shapes_that_do_not_fit_are_refused(kind, shapes):
    with pytest.raises(ValueError, match=r"a and b must be \[\.\.\., M, K\] and \[\.\.\., N, K\], got \["):
        kind()(*map(torch.zeros, shapes))


def test_prepare_reports_products_and_refuses_them_for_weights_alone():
    _, report, x = prepared()
    rows = {row.name: row for row in report.rows}
    assert report.binarized() == ["query", "key", "value"]
    for name in ("scores", "mix"):
        assert (rows[name].kind, rows[name].action) == ("BinaryMatmul", "progressive")
    with pytest.raises(ValueError, match=r"'both' for this model, got 'weights': .*\['mix', 'scores'\]"):
        sk.prepare(Attention(), x, binarize="weights")


def test_products_are_units_in_their_place_of_execution():
    model, _, _ = prepared()
    progression = sk.StoMPP(model, 60, cooldown=0.0)
    assert [unit.name for unit in progression.units] == UNITS
    scores, mix = (progression.units[UNITS.index(name)] for name in ("scores", "mix"))
    assert (scores.layer, scores.weights, scores.activation) == (model.scores, None, None)
    assert scores.activations == (model.scores.left, model.scores.right)
    assert [m.mask_shape for m, _ in scores.masked()] == [(3, 6, 5), (3, 6, 5)]
    assert [m.mask_shape for m, _ in mix.masked()] == [(3, 6, 6), (3, 5, 6)]
    ids = [tensor_id for unit in progression.units for _, tensor_id in unit.masked()]
    assert sorted(set(ids)) == ids
    assert [unit.window for unit in progression.units] == [range(start, start + 12) for start in range(0, 60, 12)]
    assert repr(progression).endswith("0 of 5 layers and products committed)")


def test_a_progression_freezes_both_sides_in_their_window_and_commits_them():
    model, _, x = prepared()
    progression = sk.StoMPP(model, 50, refresh=1, cooldown=0.0, shape="linear")
    seen = []
    for step in range(1, 51):
        trained(progression, model, x, 1)
        progress = progression.progress()
        if 20 < step < 30:
            assert progress.active == ("scores",)
            seen.append(model.scores.left.frozen() + model.scores.right.frozen())
            assert progress.frozen == seen[-1] / 180
        assert model.scores.stage is (Stage.SOFT if step <= 20 else Stage.PARTIAL if step < 30 else Stage.BINARY)
    assert 0 < seen[0] < seen[-1] < 180
    assert progression.fully_committed
    assert progression.progress().frontier == 5


def test_an_order_names_products():
    model, _, _ = prepared()
    order = ["mix", "scores", "value", "key", "query"]
    units = {unit.name: unit for unit in sk.StoMPP(model, 50, order=order, cooldown=0.0).units}
    assert [units[name].window.start for name in order] == [0, 10, 20, 30, 40]
    with pytest.raises(ValueError, match=r"order must name every unit once: .*'scores'"):
        sk.StoMPP(model, 50, order=["query", "key", "value"])


def test_no_gradient_passes_committed_products_and_the_progression_says_so():
    model, _, x = prepared()
    progression = sk.StoMPP(model, 50, order=["scores", "mix", "query", "key", "value"], cooldown=0.0)
    for _ in range(10):
        progression.step()
    assert model.scores.committed
    assert {"query.weight", "key.bias"} <= set(progression.without_gradient())
    assert "value.weight" not in progression.without_gradient()
    for _ in range(10):
        progression.step()
    assert "value.weight" in progression.without_gradient()
    assert "first.weight" not in progression.without_gradient(), "the shortcut passes the products"
    model(x).sum().backward()
    assert model.value.weight.grad is None
    assert model.first.weight.grad is not None


@pytest.mark.parametrize("surrogate", ["clip", "identity", "approx_sign"])
def test_surrogates_of_activations_are_those_of_products(surrogate):
    model, _, x = prepared()
    sk.StoMPP(model, 10, regime="vanilla_ste", surrogate_activations=surrogate)
    assert {m.surrogate for m in (*model.scores.activations, *model.mix.activations)} == {surrogate}
    assert model.scores.committed
    model(x).sum().backward()
    assert model.query.weight.grad.abs().sum() > 0


def test_per_element_masks_are_drawn_for_products():
    model, _, x = prepared()
    progression = sk.StoMPP(model, 10, activation_masks="per_element", order="global", cooldown=0.0)
    assert all(m.draw is not None for m in (*model.scores.activations, *model.mix.activations))
    trained(progression, model, x, 10)
    assert progression.fully_committed


def test_resuming_gives_the_same_masks():
    options = {"total_steps": 40, "refresh": 2, "cooldown": 0.0, "regime": "ste"}

    def masks(stop):
        model, _, _ = prepared()
        progression = sk.StoMPP(model, **options)
        for step in range(30):
            if step == stop:
                state, saved = progression.state_dict(), model.state_dict()
                assert state["config"]["units"] == UNITS
                model, _, _ = prepared()
                model.load_state_dict(saved)
                progression = sk.StoMPP(model, **options)
                progression.load_state_dict(state)
            progression.step()
        return {name: m.mask_words for name, m in masked_modules(model).items()}

    expected, found = masks(stop=30), masks(stop=19)
    assert {"scores.left", "scores.right", "mix.left", "mix.right"} <= expected.keys()
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())
    assert expected["scores.right"].any()


def test_a_second_progression_on_products_alone_is_noticed():
    class Gram(nn.Module):
        def __init__(self):
            super().__init__()
            self.product = BinaryMatmul()

        def forward(self, x):
            return self.product(x, x)

    model = Gram()
    assert [name for name, _ in sk.link(model, torch.randn(1, 3, 4))] == ["product"]
    first = sk.StoMPP(model, 10)
    with pytest.warns(RuntimeWarning, match="the model has a StoMPP already"):
        sk.StoMPP(model, 10)
    assert len(first.units) == 1


def test_a_product_that_did_not_run_is_named():
    model, _, _ = prepared()
    model.unused = BinaryMatmul()
    with pytest.raises(ValueError, match=r"layers and products \['unused'\] did not run on the example inputs"):
        sk.StoMPP(model, 50)


def test_diagnostics_tell_of_products_what_there_is():
    model, _, x = prepared()
    progression = sk.StoMPP(model, 50)
    diagnostics = Diagnostics(model, progression.units)
    model(x).sum().backward()
    norms, record = diagnostics.gradient_norms(), diagnostics.record(x)
    for index, name in enumerate(UNITS):
        is_product = name in ("scores", "mix")
        assert (norms[index] is None) == (record["flip_ratio"][index] is None) == is_product
        assert 0 <= record["saturation"][index] <= 1
    sides = []
    hooks = [m.register_forward_pre_hook(lambda m, i: sides.append(i[0].abs() > 1)) for m in model.scores.activations]
    model.eval()(x)
    assert record["saturation"][2] == pytest.approx(float(torch.stack(sides).float().mean()))
    assert len(hooks) == 2


def converted(by_layer, **options):
    model, _, x = prepared()
    set_stage(model, Stage.BINARY).eval()
    return model, sk.convert(model, verify=x, by_layer=by_layer, compare_speed=False, **options), x


@pytest.mark.parametrize("by_layer", [False, True])
def test_committed_products_run_on_bits(by_layer):
    model, packed, x = converted(by_layer)
    kinds = {name: type(m) for name, m in packed.named_modules()}
    assert kinds["scores"] is kinds["mix"] is PackedMatmul
    assert not any(isinstance(m, (BinaryLayer, BinaryMatmul)) for m in packed.modules())
    with torch.no_grad(), sk.float_simulation():
        torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-4)
    rows = {row.name: row for row in sk.explain(packed, x, seconds=0.01).rows}
    assert rows["scores"].kernel == rows["mix"].kernel == "batched_bgemm"
    assert "both of +1 and -1" in rows["scores"].reason
    assert "of 1 and 0" in rows["mix"].reason
    assert (rows["scores"].operations, rows["mix"].operations) == (2 * 5 * 2 * 3 * 6 * 6, 2 * 6 * 2 * 3 * 6 * 5)
    more = torch.randn(3, 9, 7)
    with torch.no_grad(), sk.float_simulation():
        torch.testing.assert_close(packed(more), model(more), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by_layer", [False, True])
def test_verify_names_a_product_that_differs(by_layer, monkeypatch):
    right = PackedMatmul.forward
    monkeypatch.setattr(PackedMatmul, "forward", lambda self, a, b: right(self, a, b) + (2.0 if self.zero_one else 0.0))
    with pytest.raises(ValueError, match="the packed network differs at mix"):
        converted(by_layer)


@pytest.mark.parametrize("by_layer", [False, True])
def test_products_that_are_not_committed_stay_in_float_and_are_named(by_layer):
    model, _, x = prepared()
    set_stage(model, Stage.BINARY).eval()
    model.scores.right.soften()
    with pytest.warns(RuntimeWarning, match=r"1 of 5 binary layers and products are not committed .*: scores \(soft\)"):
        packed = sk.convert(model, verify=x, by_layer=by_layer, compare_speed=False)
    with torch.no_grad(), sk.float_simulation():
        torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-4)
    rows = {row.name: row for row in sk.explain(packed).rows}
    assert rows["scores"].reason == "a product of two activations, not committed yet"
    assert rows["mix"].kernel == "batched_bgemm"
    if not by_layer:
        with pytest.raises(ValueError, match="'scores' of type BinaryMatmul is not committed"):
            sk.save_packed(packed, "unused.safetensors")


def test_a_forward_that_leaves_a_committed_product_out_is_not_traced():
    model, _, x = prepared()
    model.unused = BinaryMatmul()
    set_stage(model, Stage.BINARY).eval()
    with pytest.raises(ValueError, match=r"does not call the committed layers \['unused'\]"):
        sk.convert(model, example_inputs=x)


@pytest.mark.parametrize("by_layer", [False, True])
def test_files_and_programs_hold_products(by_layer, tmp_path):
    _, packed, x = converted(by_layer)
    size = sk.save_packed(packed, tmp_path / "net.safetensors", x)
    loaded = sk.load_packed(tmp_path / "net.safetensors")
    assert sum(isinstance(m, PackedMatmul) for m in loaded.modules()) == 2
    assert size < 20_000
    assert torch.equal(loaded(x), packed(x))
    sk.export_packed(packed, tmp_path / "net.pt2", x)
    exported = sk.load_exported(tmp_path / "net.pt2")
    torch.testing.assert_close(exported(x), packed(x), rtol=1e-4, atol=1e-4)
    ops = {str(node.target) for node in torch.export.load(tmp_path / "net.pt2").graph.nodes}
    assert "stompp.batched_bgemm.default" in ops


HOSTILE = {
    "zero_one as a number": lambda m: m.update(arguments={"zero_one": 1}),
    "another argument": lambda m: m["arguments"].update(replaces=["x"]),
    "no argument": lambda m: m.update(arguments={}),
    "packed settings": lambda m: m.update(shape=[4, 4]),
}


@pytest.mark.parametrize("change", [*HOSTILE, "one operand", "a number", "a tensor of its own"])
def test_files_with_other_products_are_refused(change, tmp_path):
    _, packed, _ = converted(False)
    sk.save_packed(packed, tmp_path / "net.safetensors")

    def forge(tensors, structure):
        call = next(node for node in structure["graph"] if node["target"] == "scores")
        if change in HOSTILE:
            HOSTILE[change](structure["modules"]["scores"])
        elif change == "one operand":
            call["args"].pop()
        elif change == "a number":
            call["args"][1] = 1 << 40
        else:
            tensors["scores.weight"] = torch.zeros(3, dtype=torch.int32)

    with pytest.raises(ValueError, match="holds a network that this package cannot build"):
        sk.load_packed(rewrite(tmp_path / "net.safetensors", tmp_path / "forged.safetensors", forge))


def test_a_file_whose_operands_do_not_fit_fails_at_the_call(tmp_path):
    _, packed, x = converted(False)
    sk.save_packed(packed, tmp_path / "net.safetensors")

    def forge(tensors, structure):
        call = next(node for node in structure["graph"] if node["target"] == "scores")
        call["args"][1] = {"node": structure["graph"][0]["name"]}

    loaded = sk.load_packed(rewrite(tmp_path / "net.safetensors", tmp_path / "forged.safetensors", forge))
    with pytest.raises(ValueError, match=r"a and b must be \[\.\.\., M, K\] and \[\.\.\., N, K\]"):
        loaded(x)


def small_vit(**options):
    torch.manual_seed(0)
    sizes = {"width": 16, "depths": (1, 1), "expansions": (2, 2), "reductions": (2, 1), "image_size": 16}
    return sk.models.create("binary_vit", 7, **sizes, **options)


def test_binary_attention_is_an_option_that_changes_nothing_where_it_is_left_out():
    plain, binary = small_vit().state_dict(), small_vit(binary_attention=True).state_dict()
    assert not any("products" in key for key in plain)
    assert {key for key in binary if "products" not in key} == plain.keys()
    with pytest.raises(ValueError, match="binarize must be 'both' for this model, got 'weights'"):
        small_vit(binary_attention=True, binarize="weights")


def test_the_binary_vit_with_binary_attention_trains_converts_saves_and_exports(tmp_path):
    model = small_vit(binary_attention=True, binarize="both")
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    progression = sk.StoMPP(model, 4, order="global", refresh=1, cooldown=0.25)
    names = [unit.name for unit in progression.units if unit.weights is None]
    assert names == [f"stage{i}.0.attention.products.{name}" for i in (1, 2) for name in ("scores", "mix")]
    assert len(progression.units) == 13 + 4
    trained(progression, model, x, 4)
    assert progression.fully_committed
    packed = sk.convert(model.eval(), verify=x)
    assert sum(isinstance(m, PackedMatmul) for m in packed.modules()) == 4
    with torch.no_grad(), sk.float_simulation():
        torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-4)
    sk.save_packed(packed, tmp_path / "packed.safetensors")
    assert torch.equal(sk.load_packed(tmp_path / "packed.safetensors")(x), packed(x))
    sk.export_packed(packed, tmp_path / "packed.pt2", x)
    torch.testing.assert_close(sk.load_exported(tmp_path / "packed.pt2")(x), packed(x), rtol=1e-4, atol=1e-4)


def test_binary_attention_is_what_the_paper_says(g):
    attention = sk.models.BinaryAttention(8, heads=2, keys=4)
    for module in masked_modules(attention).values():
        module.commit()
    with torch.no_grad():
        attention.gain.copy_(torch.tensor([3.0, 5.0]).reshape(2, 1, 1))
        for shift in (attention.query_shift, attention.key_shift, attention.value_shift):
            shift.bias.normal_(generator=g)
    images = [torch.randn(3, 8, size, size, generator=g) for size in (4, 2, 2)]
    shifts = attention.query_shift, attention.key_shift, attention.value_shift
    q, k, v = (
        torch.where(x + shift.bias < 0, -1.0, 1.0).reshape(3, 2, 4, -1) for x, shift in zip(images, shifts, strict=True)
    )
    shares = torch.softmax(torch.einsum("bhdl,bhdm->bhlm", q, k) / 2, -1)
    alpha = 2 / attention.gain
    counts = torch.round((shares / alpha).clamp(0, 1))
    torch.testing.assert_close(attention(*images), torch.einsum("bhlm,bhdm->bhld", counts, v))
