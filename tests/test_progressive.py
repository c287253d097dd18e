"""The progressive op: forward and gradient against the oracle and the method's formula."""

import math

import pytest
import torch
from helpers import (
    FLOATS,
    assert_same_bits,
    generator,
    grid,
    random_floats,
    random_words,
    strided_forms,
)
from hypothesis import given
from hypothesis import strategies as st

from stompp_kernels import native
from stompp_kernels.ops import draw_state, full_mask, progressive, progressive_drawn, reference

SURROGATES = ("none", "identity", "clip", "approx_sign")
AWKWARD_SIZES = (1, 31, 32, 33, 8191, 8192, 8193)


def mask_for(kind, shape, g):
    """(mask_words, batch_shared) of a kind: every entry frozen, one bit an entry, one for a batch."""
    if kind == "none":
        return None, False
    shape = torch.Size(shape[1:] if kind == "batch_shared" else shape)
    return random_words((), shape.numel(), g), kind == "batch_shared"


def forward_and_gradient(u, grad, mask_words, surrogate, batch_shared):
    u = u.detach().requires_grad_()
    out = progressive(u, mask_words, surrogate, batch_shared)
    out.backward(grad)
    return out.detach(), u.grad


def check_both_ways(u, grad, mask_words, surrogate, batch_shared, what=""):
    out, u_grad = forward_and_gradient(u, grad, mask_words, surrogate, batch_shared)
    arguments = (mask_words, surrogate, batch_shared)
    assert_same_bits(out, reference.progressive(u, *arguments), f"forward {what}")
    expected = reference.progressive_backward(grad, u, *arguments)
    assert_same_bits(u_grad, expected, f"gradient {what}")
    return out, u_grad


@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    dtype=st.sampled_from(FLOATS),
    kind=st.sampled_from(["none", "own", "batch_shared"]),
    surrogate=st.sampled_from(SURROGATES),
    seed=st.integers(0, 999),
)
def test_forward_and_gradient_equal_the_reference(implementation, shape, dtype, kind, surrogate, seed):
    g = generator(seed)
    u, grad = random_floats(shape, g, dtype), random_floats(shape, g, dtype)
    mask_words, batch_shared = mask_for(kind, shape, g)
    check_both_ways(u, grad, mask_words, surrogate, batch_shared)


@pytest.mark.parametrize(
    "case",
    grid(dtype=FLOATS, kind=["none", "own", "batch_shared"]),
    ids=lambda case: f"{case['dtype']}-{case['kind']}",
)
def test_sizes_around_words_and_chunks_equal_the_reference(implementation, case, g):
    for surrogate in SURROGATES:
        for n in AWKWARD_SIZES:
            for shape in [(n,), (3, n)]:
                mask_words, batch_shared = mask_for(case["kind"], shape, g)
                u, grad = (random_floats(shape, g, case["dtype"]) for _ in range(2))
                check_both_ways(u, grad, mask_words, surrogate, batch_shared, f"{surrogate} {shape}")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("frozen", [False, True])
def test_corner_values_are_clipped_or_signed_as_the_method_says(implementation, dtype, frozen):
    u = torch.tensor([0.0, -0.0, 1.0, -1.0, 1.5, -1.5, math.inf, -math.inf, 0.25, -0.25], dtype=dtype)
    soft = [0.0, -0.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 0.25, -0.25]
    hard = [1.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]
    mask = full_mask(len(u)) if frozen else torch.zeros(1, dtype=torch.int32)
    assert_same_bits(progressive(u, mask), torch.tensor(hard if frozen else soft, dtype=dtype))
    if frozen:
        assert_same_bits(progressive(u, None), torch.tensor(hard, dtype=dtype))
    tiny = torch.nextafter(torch.zeros(2, dtype=dtype), torch.tensor([1.0, -1.0], dtype=dtype))
    assert tiny.tolist() != [0.0, 0.0]
    expected = torch.tensor([1.0, -1.0], dtype=dtype) if frozen else tiny
    assert_same_bits(progressive(tiny, mask[:1]), expected)
    nan = progressive(torch.tensor([math.nan], dtype=dtype), mask[:1])
    assert nan.item() == 1.0 if frozen else nan.isnan()


def method_gradient(u, grad, frozen, surrogate):
    """METHOD.md's table, entry by entry in Python floats."""
    out = []
    for x, g_x, committed in zip(u.tolist(), grad.tolist(), frozen.tolist(), strict=True):
        inside = abs(x) <= 1
        if not committed or surrogate == "clip":
            out.append(g_x if inside else 0.0)
        elif surrogate == "none":
            out.append(0.0)
        elif surrogate == "identity":
            out.append(g_x)
        else:
            out.append(g_x * (2 - 2 * abs(x)) if inside else 0.0)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_are_the_methods_formula(implementation, surrogate, dtype, g):
    # Eighths make every product of the formula exact in 16 bits.
    u = (torch.randint(-16, 17, (500,), generator=g) / 8).to(dtype)
    grad = (torch.randint(-8, 9, (500,), generator=g) / 8).to(dtype)
    mask_words = random_words((), 500, g)
    frozen = reference.bits_from_words(mask_words, 500)
    _, u_grad = forward_and_gradient(u, grad, mask_words, surrogate, False)
    assert u_grad.double().equal(method_gradient(u, grad, frozen, surrogate))
    _, u_grad = forward_and_gradient(u, grad, None, surrogate, False)
    assert u_grad.double().equal(method_gradient(u, grad, torch.ones(500).bool(), surrogate))


@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    dtype=st.sampled_from(FLOATS),
    kind=st.sampled_from(["none", "own", "batch_shared"]),
    surrogate=st.sampled_from(SURROGATES[:3]),
    seed=st.integers(0, 999),
)
def test_gates_equal_the_reference(implementation, shape, dtype, kind, surrogate, seed):
    g = generator(seed)
    u, grad = random_floats(shape, g, dtype), random_floats(shape, g, dtype)
    arguments = (*mask_for(kind, shape, g)[:1], surrogate, kind == "batch_shared")
    for name, view in strided_forms(u):
        out, gate = torch.ops.stompp.progressive_gated(view, *arguments)
        expected_out, expected_gate = reference.progressive_gated(view, *arguments)
        assert_same_bits(out, expected_out, name)
        assert_same_bits(gate, expected_gate, name)
        backward = torch.ops.stompp.progressive_gate_backward(grad, gate, out.stride(), arguments[2])
        assert_same_bits(backward, reference.progressive_backward(grad, u, *arguments), name)
        assert_same_bits(backward, reference.progressive_gate_backward(grad, gate, out.stride(), arguments[2]), name)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_backward_keeps_one_bit_an_element(implementation, dtype, surrogate, g):
    u = random_floats((64, 100), g, dtype).requires_grad_()
    words = random_words((), 100, g)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes), lambda t: t):
        progressive(u, words, surrogate, batch_shared=True)
    gate = 64 * 4 * 4  # 100 bits are 4 words
    assert sum(saved) == (u.nbytes + words.nbytes if surrogate == "approx_sign" else gate)


@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    dtype=st.sampled_from(FLOATS),
    surrogate=st.sampled_from(SURROGATES),
    p=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
    step=st.integers(0, 2**63 - 1),
)
def test_drawn_masks_equal_the_reference(implementation, shape, dtype, surrogate, p, seed, step):
    g = generator(step % 999)
    u, grad = random_floats(shape, g, dtype), random_floats(shape, g, dtype)
    draw = draw_state(p, seed, 2**32 - 1 - step % 5, step)
    for name, view in strided_forms(u):
        out, bits = torch.ops.stompp.progressive_drawn(view, draw, surrogate)
        expected_out, expected_bits = reference.progressive_drawn(view, draw, surrogate)
        assert_same_bits(out, expected_out, name)
        assert_same_bits(bits, expected_bits, name)
        assert out.stride() == expected_out.stride(), name
        leaf = view.detach().requires_grad_()
        progressive_drawn(leaf, draw, surrogate).backward(grad)
        # The same mask, stored: in the order of the memory of u'.
        row = torch.empty_strided(shape, out.stride(), dtype=dtype).copy_(view).as_strided((u.numel(),), (1,))
        words = reference.progressive_drawn(row, draw, "approx_sign")[1][0]
        grad_row = torch.empty_strided(shape, out.stride(), dtype=dtype).copy_(grad).as_strided((u.numel(),), (1,))
        expected = reference.progressive_backward(grad_row, row, words, surrogate, False)
        assert_same_bits(leaf.grad, expected.as_strided(shape, out.stride()), name)


def test_drawn_masks_freeze_a_fraction_p_of_the_entries(implementation):
    u = torch.full((64, 1000), 0.5)
    frozen = [progressive_drawn(u, draw_state(0.3, 1, 2, step)) == 1 for step in range(3)]
    for mask in frozen:
        assert abs(mask.float().mean() - 0.3) < 0.01
    # Fresh ones every step, and for every sample.
    assert abs((frozen[0] & frozen[1]).float().mean() - 0.09) < 0.01
    assert abs((frozen[0][0] & frozen[0][1]).float().mean() - 0.09) < 0.05


def test_a_drawn_mask_has_the_bits_of_a_refresh_that_redraws_everything(implementation):
    u = torch.full((1000,), 0.5)
    words = torch.zeros(32, dtype=torch.int32)
    torch.ops.stompp.refresh_mask_(words, 1000, 0.3, 1.0, 5, 6, 7)
    assert_same_bits(progressive_drawn(u, draw_state(0.3, 5, 6, 7)), progressive(u, words))


def test_draws_out_of_range_are_refused(implementation):
    u = torch.ones(40)
    for arguments, message in [
        ((1.5, 0, 0, 0), "p must be"),
        ((0.5, 2**63, 0, 0), "seed must be"),
        ((0.5, 0, 2**32, 0), "tensor_id must fit"),
        ((0.5, 0, 0, -1), "step must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            draw_state(*arguments)
    with pytest.raises(ValueError, match=r"draw must have shape \[4\]"):
        progressive_drawn(u, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="draw must be"):
        progressive_drawn(u, torch.zeros(4))


@pytest.mark.skipif(native.library is None, reason="the checks of the compiled library are tested")
def test_the_kernel_refuses_draws_out_of_range(implementation):
    for values, message in [([0, -1, 0, 0], "id"), ([0, 0, -1, 0], "step"), ([0, 0, 0, 2**32 + 1], "probability")]:
        with pytest.raises(RuntimeError, match=message):
            progressive_drawn(torch.ones(40), torch.tensor(values))


def test_no_gate_is_made_where_no_gradient_flows(implementation, g):
    u = random_floats((40,), g).requires_grad_()
    with torch.no_grad():
        out = progressive(u, random_words((), 40, g))
    assert out.grad_fn is None
    assert progressive(u.detach(), None).grad_fn is None


def test_gates_that_do_not_fit_are_refused(implementation, g):
    grad, gate = torch.ones(3, 40), random_words((1,), 120, g)
    backward = torch.ops.stompp.progressive_gate_backward
    for arguments, message in [
        ((grad, gate[:, :3], [40, 1], False), "gate has shape"),
        ((grad, gate, [40, 1], True), "gate has shape"),
        ((grad, gate, [1], False), "strides must be as many"),
        ((grad, gate, [80, 2], False), "strides must be those of dense"),
        ((grad, random_words((3,), 40, g), [1, 3], True), "batch outermost"),
        ((grad.int(), gate, [40, 1], False), "floating-point"),
        ((grad, gate.float(), [40, 1], False), "int32"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            backward(*arguments)
    with pytest.raises(RuntimeError, match="approx_sign has no gate"):
        torch.ops.stompp.progressive_gated(grad, None, "approx_sign", False)


def test_the_default_surrogate_is_ste_free(implementation):
    u = torch.tensor([0.5, -0.5], requires_grad=True)
    progressive(u, torch.tensor([1], dtype=torch.int32)).sum().backward()
    assert u.grad.tolist() == [0.0, 1.0]


def test_a_shared_mask_freezes_the_same_entries_of_every_element(implementation, g):
    u = random_floats((5, 3, 11), g, specials=0)
    words = random_words((), 33, g)
    out = progressive(u, words, batch_shared=True)
    for element, row in zip(u, out, strict=True):
        assert_same_bits(row, progressive(element, words))


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_the_gradient_passes_gradcheck_where_every_entry_is_soft(implementation, surrogate, g):
    u = torch.rand(3, 40, generator=g, dtype=torch.float64) * 4 - 2
    u[(u.abs() - 1).abs() < 1e-3] = 0.5  # the clip is not differentiable at 1
    words = torch.zeros(4, dtype=torch.int32)
    assert torch.autograd.gradcheck(
        lambda v: progressive(v, words, surrogate), u.clone().requires_grad_(), fast_mode=False
    )
    shared = torch.zeros(2, dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda v: progressive(v, shared, surrogate, True), u.clone().requires_grad_())


def test_the_ste_free_gradient_passes_gradcheck_where_the_sign_is_flat(implementation, g):
    u = torch.rand(50, generator=g, dtype=torch.float64) * 1.8 + 0.1
    u[(u - 1).abs() < 1e-3] = 0.5
    u *= torch.where(torch.rand(50, generator=g) < 0.5, -1.0, 1.0)
    words = random_words((), 50, g)
    assert torch.autograd.gradcheck(lambda v: progressive(v, words, "none"), u.requires_grad_())


def test_approx_sign_is_the_derivative_of_bi_reals_polynomial(implementation, g):
    """2u - u^2 for u >= 0 and 2u + u^2 below, constant outside [-1, 1]."""
    u = torch.rand(200, generator=g, dtype=torch.float64) * 4 - 2
    u[(u.abs() - 1).abs() < 1e-3] = 0.25
    grad = torch.randn(200, generator=g, dtype=torch.float64)
    polynomial = u.clone().requires_grad_()
    inner = polynomial.clamp(-1, 1)
    (2 * inner - inner * inner.abs()).backward(grad)
    _, u_grad = forward_and_gradient(u, grad, None, "approx_sign", False)
    torch.testing.assert_close(u_grad, polynomial.grad, rtol=1e-14, atol=1e-14)


def expected_strides(u, batch_shared):
    """Those of a dense u whose batch, where it shares a mask, is outermost; else contiguous ones."""
    order = sorted(range(u.dim()), key=u.stride, reverse=True)
    dense = u.permute(order).is_contiguous() and (not batch_shared or order[0] == 0)
    return u.stride() if dense else torch.empty(u.shape).stride()


@pytest.mark.parametrize("dtype", FLOATS)
def test_inputs_and_gradients_may_have_any_strides_and_alignment(implementation, dtype, g):
    for shape in [(70,), (3, 40), (2, 3, 5, 7)]:
        u, grad = random_floats(shape, g, dtype), random_floats(shape, g, dtype)
        for kind in ("own", "batch_shared"):
            words, batch_shared = mask_for(kind, shape, g)
            expected = reference.progressive(u, words, "none", batch_shared)
            arguments = (words, "approx_sign", batch_shared)
            expected_grad = reference.progressive_backward(grad, u, *arguments)
            for name, view in strided_forms(u):
                out = progressive(view, words, "none", batch_shared)
                assert_same_bits(out, expected, name)
                assert out.stride() == expected_strides(view, batch_shared), name
                backward = torch.ops.stompp.progressive_backward(grad, view, *arguments)
                assert_same_bits(backward, expected_grad, name)
            for name, view in strided_forms(grad):
                backward = torch.ops.stompp.progressive_backward(view, u, *arguments)
                assert_same_bits(backward, expected_grad, name)
            for name, view in strided_forms(words):
                assert_same_bits(progressive(u, view, "none", batch_shared), expected, name)


def test_an_expanded_gradient_flows_back(implementation, g):
    u = random_floats((3, 40), g, specials=0).requires_grad_()
    words = random_words((), 120, g)
    progressive(u, words, "clip").sum().backward()
    assert u.grad.equal((u.abs() <= 1).float())


def test_empty_tensors_stay_empty(implementation):
    for shape, batch_shared in [((0,), False), ((0, 33), True), ((3, 0), True), ((0, 5), False)]:
        count = 33 if shape == (0, 33) else 0
        words = torch.zeros(reference.words_for(count), dtype=torch.int32)
        u = torch.empty(shape, requires_grad=True)
        out = progressive(u, words, "clip", batch_shared)
        assert out.shape == shape
        out.sum().backward()
        assert u.grad.shape == shape


def test_a_scalar_is_one_entry(implementation):
    u = torch.tensor(-0.5)
    assert progressive(u, torch.tensor([0], dtype=torch.int32)).item() == -0.5
    assert progressive(u, torch.tensor([1], dtype=torch.int32)).item() == -1.0


def test_the_input_is_left_as_it_was(implementation, g):
    u, words = random_floats((100,), g), random_words((), 100, g)
    u_before, words_before = u.clone(), words.clone()
    progressive(u, words)
    assert_same_bits(u, u_before)
    assert_same_bits(words, words_before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"u": torch.ones(40).int()}, TypeError, "u must be .* got torch.int32"),
        ({"u": [1.0]}, TypeError, "u must be a tensor"),
        ({"surrogate": "ste"}, ValueError, "surrogate must be one of 'none', .* got 'ste'"),
        ({"mask_words": torch.ones(2)}, TypeError, "mask_words must be torch.int32"),
        ({"mask_words": torch.ones(40).bool()}, TypeError, "mask_words must be torch.int32"),
        (
            {"mask_words": torch.ones(3).int()},
            ValueError,
            r"mask_words must have shape \[2\], got \[3\]",
        ),
        ({"mask_words": torch.ones(1, 2).int()}, ValueError, "mask_words must have shape"),
        ({"u": torch.ones(2, 32), "batch_shared": True}, ValueError, r"must have shape \[1\]"),
        ({"u": torch.tensor(1.0), "batch_shared": True}, ValueError, "batch dimension"),
    ],
)
def test_bad_arguments_are_named(implementation, arguments, error, message):
    with pytest.raises(error, match=message):
        progressive(**{"u": torch.ones(40), "mask_words": torch.ones(2).int(), **arguments})


def test_gradients_of_another_shape_or_type_are_refused(implementation):
    u, words = torch.ones(40), torch.ones(2, dtype=torch.int32)
    for grad in (torch.ones(39), torch.ones(40, 1), torch.ones(40).half()):
        with pytest.raises(RuntimeError, match="grad"):
            torch.ops.stompp.progressive_backward(grad, u, words, "clip", False)


def test_a_second_derivative_is_refused():
    u = torch.randn(8, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(8, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(progressive(u, None, "clip"), u, grad, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiated once"):
        first.sum().backward()
