"""Masks and their soft refresh: known answers, statistics, and the stream's independence."""

import math

import pytest
import torch
from helpers import assert_same_bits, misaligned, random_words
from hypothesis import given
from hypothesis import strategies as st

from stompp_kernels.ops import count_frozen, full_mask, pack_signs, progressive, reference, refresh_mask_


def zeros(n):
    return torch.zeros(reference.words_for(n), dtype=torch.int32)


def drawn(n, p=0.5, r=1.0, seed=0, tensor_id=0, step=0):
    """A mask of n entries that were all drawn once."""
    return refresh_mask_(zeros(n), n, p, r, seed, tensor_id, step)


def fraction(words, n):
    return count_frozen(words) / n


def assert_near_probability(observed, p, trials):
    """Within 5 standard deviations: about one seed in two million would fail a right generator."""
    assert abs(observed - p) <= 5 * math.sqrt(p * (1 - p) / trials)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    out = reference.philox4x32_10([torch.tensor([word]) for word in counter], tuple(key))
    assert " ".join(f"{int(word):08x}" for word in out) == expected


def test_compiled_philox_gives_the_known_answer(implementation):
    """With seed, step and tensor 0 the first words are the vector of zeros: bits = word < p * 2^32."""
    answer = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    for lane, word in enumerate(answer):
        for p, bit in [(word / 2**32, 0), ((word + 1) / 2**32, 1)]:
            assert int(drawn(4, p=p)[0]) >> lane & 1 == bit


def test_the_known_answer_of_pi_reaches_every_part_of_the_key_and_counter(implementation):
    seed, step = 0x85A308D3_A4093822 - 2**64, 0x03707344_13198A2E
    group = 0x243F6A88
    # A mask that long is too large: only its formula is checked, on the group of the vector.
    out = reference.philox4x32_10(
        [torch.tensor([w]) for w in (group, seed >> 32 & 0xFFFFFFFF, step & 0xFFFFFFFF, step >> 32)],
        (seed & 0xFFFFFFFF, 0x299F31D0),
    )
    assert [int(word) for word in out] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    n = 4096
    expected = zeros(n)
    reference.refresh_mask_(expected, n, 0.5, 1.0, seed, 0x299F31D0, step)
    assert_same_bits(drawn(n, 0.5, 1.0, seed, 0x299F31D0, step), expected)


@given(
    n=st.integers(0, 5000),
    p=st.one_of(st.sampled_from([0.0, 1.0, 0.5, 1e-9]), st.floats(0, 1)),
    r=st.one_of(st.sampled_from([1.0, 2.0, 100.0, 1e30, math.inf]), st.floats(1, 1000)),
    seed=st.integers(-(2**63), 2**63 - 1),
    tensor_id=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2**63 - 1),
)
def test_the_refresh_equals_the_reference(implementation, n, p, r, seed, tensor_id, step):
    words = random_words((), n, torch.Generator().manual_seed(n)) if n else zeros(0)
    expected = words.clone()
    reference.refresh_mask_(expected, n, p, r, seed, tensor_id, step)
    assert refresh_mask_(words, n, p, r, seed, tensor_id, step) is words
    assert_same_bits(words, expected)


def test_a_long_mask_equals_the_reference(implementation, g):
    n = 32 * 512 * 5 + 7  # several tasks of the thread pool
    words = random_words((), n, g)
    expected = words.clone()
    for step in range(3):
        reference.refresh_mask_(expected, n, 0.3, 4.0, 99, 7, step)
        refresh_mask_(words, n, 0.3, 4.0, 99, 7, step)
        assert_same_bits(words, expected)


@pytest.mark.parametrize("p", [0.03, 0.25, 0.5, 0.9])
def test_a_full_redraw_freezes_the_fraction_p(implementation, p):
    n = 200_001
    assert_near_probability(fraction(drawn(n, p=p, seed=3), n), p, n)


@pytest.mark.parametrize("start", [zeros, full_mask])
def test_after_many_steps_the_frozen_fraction_tends_to_p(implementation, start):
    n, r, p = 20_000, 10.0, 0.3
    words = start(n)
    for step in range(200):  # what is left of the start: 0.9^200 < 1e-9
        refresh_mask_(words, n, p, r, 5, 1, step)
    assert_near_probability(fraction(words, n), p, n)


@pytest.mark.parametrize("r", [1.0, 3.0, 100.0])
def test_entries_are_drawn_again_at_the_rate_of_one_in_r(implementation, r):
    n, steps = 100_000, 5
    cleared = set_ = 0
    for step in range(steps):
        thawed = refresh_mask_(full_mask(n), n, 0.0, r, 1, 2, step)
        cleared += n - count_frozen(thawed)
        set_ += count_frozen(refresh_mask_(zeros(n), n, 1.0, r, 1, 2, step))
    assert_near_probability(cleared / (n * steps), 1 / r, n * steps)
    assert cleared == set_  # the same entries are drawn again, whatever p is


def test_p_of_0_clears_and_p_of_1_sets_everything_when_all_is_drawn_again(implementation, g):
    for n in (1, 31, 32, 33, 1000):
        words = random_words((), n, g)
        assert refresh_mask_(words.clone(), n, 0.0, 1.0, 9, 0, 0).eq(0).all()
        assert_same_bits(refresh_mask_(words, n, 1.0, 1.0, 9, 0, 0), full_mask(n))


def test_an_infinite_period_changes_nothing(implementation, g):
    words = random_words((), 1000, g)
    before = words.clone()
    refresh_mask_(words, 1000, 0.5, math.inf, 1, 2, 3)
    assert_same_bits(words, before)


@pytest.mark.parametrize("n", [1, 5, 31, 33, 63, 1001])
def test_tail_bits_stay_zero(implementation, n):
    words = zeros(n)
    for step in range(20):
        refresh_mask_(words, n, 1.0 if step % 2 else 0.7, 1.0, 4, 4, step)
        assert not reference.bits_from_words(words, len(words) * 32)[n:].any()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"seed": -1},
        {"seed": 1 << 32},
        {"seed": 1 << 62},
        {"tensor_id": 1},
        {"tensor_id": 1 << 31},
        {"step": 1},
        {"step": 1 << 32},
        {"step": 1 << 62},
    ],
    ids=str,
)
def test_seed_tensor_and_step_give_independent_bits_high_words_included(implementation, change):
    n = 20_000
    agreeing = n - count_frozen(drawn(n) ^ drawn(n, **change))
    assert_near_probability(agreeing / n, 0.5, n)


def test_no_two_of_seed_tensor_and_step_can_be_swapped(implementation):
    words = [drawn(5000, seed=s, tensor_id=t, step=k) for s, t, k in [(1, 2, 3), (2, 1, 3), (3, 2, 1)]]
    words += [drawn(5000, seed=1, tensor_id=3, step=2), drawn(5000, seed=1 << 32 | 1)]
    for i, a in enumerate(words):
        assert all(abs(count_frozen(a ^ b) / 5000 - 0.5) < 0.05 for b in words[:i])


def test_a_prefix_of_a_longer_mask_is_the_shorter_mask(implementation):
    long = drawn(10_000, seed=8, step=3)
    assert_same_bits(drawn(320, seed=8, step=3), long[:10])


def test_the_generators_of_torch_are_left_alone(implementation):
    before = torch.get_rng_state()
    drawn(1000)
    assert torch.get_rng_state().equal(before)


def test_a_mask_may_begin_anywhere_in_its_storage(implementation, g):
    start = random_words((), 1000, g)
    expected = refresh_mask_(start.clone(), 1000, 0.5, 3.0, 1, 2, 3)
    storage = torch.full((40,), 77, dtype=torch.int32)
    view = storage[3:35].copy_(start)
    refresh_mask_(view, 1000, 0.5, 3.0, 1, 2, 3)
    assert_same_bits(view, expected)
    assert storage[:3].eq(77).all()
    assert storage[35:].eq(77).all()
    assert_same_bits(refresh_mask_(misaligned(start), 1000, 0.5, 3.0, 1, 2, 3), expected)


@pytest.mark.parametrize("n", [0, 1, 32, 33, 4097])
def test_frozen_entries_are_counted(n, g):
    assert count_frozen(full_mask(n)) == n
    assert_same_bits(full_mask(n), pack_signs(torch.full((n,), -1.0)) if n else zeros(0))
    if n:
        x = torch.randn(n, generator=g)
        assert count_frozen(pack_signs(x)) == int((x < 0).sum())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask_words": torch.ones(2)}, TypeError, "mask_words must be torch.int32"),
        ({"mask_words": torch.ones(3).int()}, ValueError, r"shape \[2\], got \[3\]"),
        ({"mask_words": torch.ones(1, 2).int()}, ValueError, r"shape \[2\], got \[1, 2\]"),
        ({"mask_words": torch.ones(4).int()[::2]}, ValueError, "must be contiguous"),
        ({"n": -1}, ValueError, "n must be at least 0, got -1"),
        ({"p": -0.1}, ValueError, r"p must be in \[0, 1\], got -0.1"),
        ({"p": 1.1}, ValueError, "p must be in"),
        ({"p": math.nan}, ValueError, "p must be in"),
        ({"r": 0.5}, ValueError, "r must be at least 1, got 0.5"),
        ({"r": math.nan}, ValueError, "r must be at least 1"),
        ({"tensor_id": -1}, ValueError, "tensor_id must fit 32 bits"),
        ({"tensor_id": 2**32}, ValueError, "tensor_id must fit 32 bits"),
        ({"step": -1}, ValueError, "step must be"),
        ({"step": 2**63}, ValueError, "step must be"),
        ({"seed": 2**63}, ValueError, "seed must"),
        ({"seed": -(2**63) - 1}, ValueError, "seed must"),
    ],
)
def test_bad_arguments_are_named(implementation, arguments, error, message):
    good = {"mask_words": torch.ones(2).int(), "n": 40, "p": 0.5, "r": 2.0}
    with pytest.raises(error, match=message):
        refresh_mask_(**{**good, "seed": 0, "tensor_id": 0, "step": 0, **arguments})


def test_the_raw_op_refuses_what_it_cannot_do(implementation):
    op = torch.ops.stompp.refresh_mask_
    words = torch.ones(2, dtype=torch.int32)
    for arguments, message in [
        ((words, 65, 0.5, 1.0, 0, 0, 0), "ceil"),
        ((words, -1, 0.5, 1.0, 0, 0, 0), "ceil"),
        ((words.float(), 40, 0.5, 1.0, 0, 0, 0), "int32"),
        ((words, 40, math.nan, 1.0, 0, 0, 0), "p must be"),
        ((words, 40, 0.5, 0.0, 0, 0, 0), "r must be"),
        ((words, 40, 0.5, 1.0, 0, -1, 0), "tensor_id"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            op(*arguments)


@pytest.mark.parametrize("surrogate", ["none", "identity", "clip"])
def test_a_refresh_between_forward_and_backward_changes_no_gradient(surrogate):
    u = torch.randn(64, requires_grad=True)
    mask = random_words((), 64, torch.Generator().manual_seed(0))
    expected = reference.progressive_backward(torch.ones(64), u.detach(), mask.clone(), surrogate, False)
    y = progressive(u, mask, surrogate)
    refresh_mask_(mask, 64, 1.0, 1.0, 0, 0, 1)
    y.sum().backward()
    assert_same_bits(u.grad, expected)


def test_a_refresh_between_forward_and_backward_is_noticed_where_the_mask_is_kept():
    u = torch.randn(64, requires_grad=True)
    mask = torch.zeros(2, dtype=torch.int32)
    y = progressive(u, mask, "approx_sign")
    refresh_mask_(mask, 64, 1.0, 1.0, 0, 0, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
